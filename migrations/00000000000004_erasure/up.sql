-- When a run's data was erased: nothing may bring it back.
ALTER TABLE runs ADD COLUMN erased_at timestamptz;

-- What was erased of a run, its deliveries and their attempts: hash and size, which tell nobody what it was, but show
-- whether somebody else's copy is it.
CREATE TABLE erased_parts (
    org_id uuid NOT NULL,
    run_id uuid NOT NULL,
    -- NULL: of the run itself.
    delivery_id uuid,
    attempt_number integer,
    part text NOT NULL,
    sha256 bytea NOT NULL,
    size bigint NOT NULL,
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id),
    CONSTRAINT erased_part CHECK (part IN
        ('output', 'metadata', 'failure_message', 'callback_url', 'payload', 'response_body')),
    CONSTRAINT part_is_kept_as_sha256 CHECK (length(sha256) = 32)
);

CREATE INDEX erased_parts_of_run ON erased_parts (org_id, run_id);
CREATE INDEX erased_parts_of_delivery ON erased_parts (delivery_id) WHERE delivery_id IS NOT NULL;
