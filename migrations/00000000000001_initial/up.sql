-- The state machine of a delivery, stated. One text for PostgreSQL and SQLite; SQLite reads the type names as it
-- likes and keeps ids as 16-byte blobs and moments as integers (microseconds since 1970 UTC).
--
-- Moments come from the program's clock, never from now(), and no CHECK compares two of them.

CREATE TABLE organizations (
    id uuid NOT NULL PRIMARY KEY,
    name text NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE api_tokens (
    id uuid NOT NULL PRIMARY KEY,
    org_id uuid NOT NULL REFERENCES organizations (id),
    token_sha256 bytea NOT NULL UNIQUE,
    -- Space-separated; NULL is all.
    scopes text,
    label text,
    created_at timestamptz NOT NULL,
    CONSTRAINT token_is_kept_as_sha256 CHECK (length(token_sha256) = 32)
);

CREATE TABLE signing_secrets (
    id uuid NOT NULL PRIMARY KEY,
    org_id uuid NOT NULL REFERENCES organizations (id),
    key_prefix text NOT NULL,
    -- The plain secret, sealed with the key named key_id and bound to id and org_id.
    key_id text NOT NULL,
    sealed bytea NOT NULL,
    is_current boolean NOT NULL,
    label text,
    disabled_at timestamptz,
    last_used_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT current_secret_is_enabled CHECK (NOT is_current OR disabled_at IS NULL)
);

CREATE UNIQUE INDEX one_current_secret ON signing_secrets (org_id) WHERE is_current;

CREATE TABLE runs (
    org_id uuid NOT NULL REFERENCES organizations (id),
    id uuid NOT NULL,
    status_code text NOT NULL,
    -- output and metadata are JSON text in our own normal form; never a JSON type, which would change it.
    output text,
    duration_ms bigint,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    completed_at timestamptz,
    callback_url text,
    metadata text,
    failure_code text,
    failure_message text,
    failure_stage_code text,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (org_id, id),
    CONSTRAINT run_status_code CHECK (status_code IN
        ('queued', 'dispatching', 'running', 'succeeded', 'failed', 'canceled', 'partial_succeeded')),
    CONSTRAINT terminal_run_has_completed_at CHECK
        (status_code IN ('queued', 'dispatching', 'running') OR completed_at IS NOT NULL)
);

CREATE TABLE deliveries (
    id uuid NOT NULL PRIMARY KEY,
    org_id uuid NOT NULL,
    run_id uuid NOT NULL,
    callback_url text NOT NULL,
    -- The frozen body: the exact bytes that are signed and sent.
    payload bytea NOT NULL,
    signing_secret_id uuid REFERENCES signing_secrets (id),
    is_automatic boolean NOT NULL,
    status_code text NOT NULL,
    failure_reason_code text,
    failure_detail text,
    attempt_count integer NOT NULL,
    max_attempts integer NOT NULL,
    next_attempt_at timestamptz,
    -- When the relay must look: the grace while new, next_attempt_at while waiting, the lease's end while delivering.
    wake_at timestamptz,
    -- Who holds the attempt in progress, and since when.
    claim_id uuid,
    claimed_at timestamptz,
    -- The API request that asked for the delivery.
    request_id text NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    completed_at timestamptz,
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id),
    CONSTRAINT delivery_status_code CHECK (status_code IN ('pending', 'delivering', 'succeeded', 'failed')),
    CONSTRAINT completed_at_iff_terminal CHECK
        ((completed_at IS NOT NULL) = (status_code IN ('succeeded', 'failed'))),
    CONSTRAINT wake_at_iff_open CHECK ((wake_at IS NOT NULL) = (completed_at IS NULL)),
    CONSTRAINT next_attempt_iff_pending CHECK ((next_attempt_at IS NOT NULL) = (status_code = 'pending')),
    CONSTRAINT claim_iff_delivering CHECK
        ((claim_id IS NOT NULL) = (status_code = 'delivering') AND (claimed_at IS NOT NULL) = (claim_id IS NOT NULL)),
    CONSTRAINT attempts_within_budget CHECK (attempt_count >= 0 AND attempt_count <= max_attempts AND max_attempts >= 1),
    CONSTRAINT success_has_no_failure CHECK (status_code <> 'succeeded' OR failure_reason_code IS NULL),
    CONSTRAINT failure_is_explained CHECK (status_code <> 'failed' OR failure_reason_code IS NOT NULL)
);

-- The judge of "in flight": at most one open delivery of a run.
CREATE UNIQUE INDEX one_open_delivery_per_run ON deliveries (org_id, run_id) WHERE completed_at IS NULL;
-- The run's end is announced by exactly one automatic delivery.
CREATE UNIQUE INDEX one_automatic_delivery_per_run ON deliveries (org_id, run_id) WHERE is_automatic;
-- The relay's list: what is open, by when to look.
CREATE INDEX open_deliveries_by_wake_at ON deliveries (wake_at) WHERE wake_at IS NOT NULL;
-- A run's history, newest first.
CREATE INDEX deliveries_of_run ON deliveries (org_id, run_id, created_at);

CREATE TABLE attempts (
    id uuid NOT NULL,
    delivery_id uuid NOT NULL REFERENCES deliveries (id),
    attempt_number integer NOT NULL,
    status_code integer,
    response_body text,
    response_time_ms bigint,
    -- NULL after a 2xx. The API's error_message is made of these two.
    failure_reason_code text,
    failure_detail text,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (delivery_id, attempt_number),
    CONSTRAINT attempts_count_from_1 CHECK (attempt_number >= 1),
    CONSTRAINT failed_attempt_is_explained CHECK ((failure_reason_code IS NULL) = (failure_detail IS NULL))
);
