-- What a POST with an Idempotency-Key made, so that the same request is answered the same and does nothing again.
CREATE TABLE idempotency_keys (
    org_id uuid NOT NULL REFERENCES organizations (id),
    idempotency_key text NOT NULL,
    -- Of method, path, query and body.
    request_sha256 bytea NOT NULL,
    -- The delivery or the secret; what its first answer showed is made of it again.
    made_id uuid NOT NULL,
    -- What that answer showed and may have changed since; never secret material.
    answer text,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, idempotency_key),
    CONSTRAINT request_is_kept_as_sha256 CHECK (length(request_sha256) = 32)
);

CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
