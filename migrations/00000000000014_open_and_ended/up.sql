-- Oldest program: 8
--
-- A delivery is one row of `deliveries`, which says what was fixed when it was accepted and never changes, and one of
-- these: the engine's state while it is open, which is written again and again and hence is narrow and has few indexes, or
-- what it came to. Nothing but payloads is wide, and they are written once.
--
-- No references between them: PostgreSQL checks each row by a statement of its own, and locks what it refers to.
CREATE TABLE open_deliveries (
    id uuid NOT NULL PRIMARY KEY,
    org_id uuid NOT NULL,
    run_id uuid NOT NULL,
    destination bigint NOT NULL,
    callback_host text NOT NULL,
    is_automatic boolean NOT NULL,
    payload_bytes integer NOT NULL,
    max_attempts integer NOT NULL,
    attempt_count integer NOT NULL,
    -- Of the last attempt.
    failure_reason_code text,
    failure_detail text,
    -- NULL while an attempt is made.
    next_attempt_at timestamptz,
    -- When the relay must look: the grace while new, next_attempt_at while waiting, the lease's end while delivering.
    wake_at timestamptz NOT NULL,
    -- Who makes the attempt in progress, and since when.
    claim_id uuid,
    claimed_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT waits_or_is_claimed CHECK ((next_attempt_at IS NULL) = (claim_id IS NOT NULL)),
    CONSTRAINT claim_has_a_time CHECK ((claim_id IS NULL) = (claimed_at IS NULL)),
    CONSTRAINT attempts_within_budget CHECK (attempt_count >= 0 AND attempt_count <= max_attempts AND max_attempts >= 1)
);

-- The judge of "in flight": at most one open delivery of a run.
CREATE UNIQUE INDEX one_open_delivery ON open_deliveries (org_id, run_id);
-- What is due, by time and by destination, and the attempts under way, by when their lease ends.
CREATE INDEX waiting_by_wake_at ON open_deliveries (wake_at) WHERE claim_id IS NULL;
CREATE INDEX waiting_by_destination ON open_deliveries (destination, wake_at) WHERE claim_id IS NULL;
CREATE INDEX leases_by_end ON open_deliveries (wake_at) WHERE claim_id IS NOT NULL;
-- Lists.
CREATE INDEX waiting_by_age ON open_deliveries (org_id, is_automatic, created_at, id) WHERE claim_id IS NULL;
CREATE INDEX waiting_by_host ON open_deliveries (org_id, callback_host, is_automatic, created_at, id)
    WHERE claim_id IS NULL;
CREATE INDEX waiting_by_failure ON open_deliveries (org_id, failure_reason_code, is_automatic, created_at, id)
    WHERE claim_id IS NULL AND failure_reason_code IS NOT NULL;
CREATE INDEX claimed_by_age ON open_deliveries (org_id, is_automatic, created_at, id) WHERE claim_id IS NOT NULL;
-- PostgreSQL:
-- A row is rewritten at each claim and goes when its delivery ends: leave room on its page, and vacuum early.
ALTER TABLE open_deliveries
    SET (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
-- Both:

CREATE TABLE ended_deliveries (
    id uuid NOT NULL PRIMARY KEY,
    org_id uuid NOT NULL,
    callback_host text NOT NULL,
    is_automatic boolean NOT NULL,
    status_code text NOT NULL,
    failure_reason_code text,
    failure_detail text,
    attempt_count integer NOT NULL,
    created_at timestamptz NOT NULL,
    completed_at timestamptz NOT NULL,
    CONSTRAINT ended_status_code CHECK (status_code IN ('succeeded', 'failed')),
    CONSTRAINT what_failed_is_explained CHECK ((failure_reason_code IS NOT NULL) = (status_code = 'failed')),
    CONSTRAINT ended_failure_reason_code CHECK (failure_reason_code IS NULL OR failure_reason_code IN
        ('http_error', 'timeout', 'connection_error', 'dns_error', 'tls_error', 'blocked_address', 'invalid_url',
         'signing_unavailable', 'outcome_unknown', 'superseded', 'gone', 'erased', 'withdrawn'))
);

CREATE INDEX ended_by_age ON ended_deliveries (org_id, status_code, is_automatic, created_at, id);
CREATE INDEX ended_by_host ON ended_deliveries (org_id, callback_host, status_code, is_automatic, created_at, id);
CREATE INDEX ended_by_failure ON ended_deliveries (org_id, failure_reason_code, is_automatic, created_at, id)
    WHERE failure_reason_code IS NOT NULL;
