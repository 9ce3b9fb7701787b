-- Oldest program: 16 (the ones before know one table only, and stop; stop dispatchers before, so that no result is lost)
--
-- What is left of the old layout moves, and goes. `deliveries` keeps what never changes.
-- PostgreSQL:
LOCK TABLE deliveries, attempts, runs IN ACCESS EXCLUSIVE MODE;
-- Both:
-- What was pruned, erased or ended since the filling.
DELETE FROM ended_deliveries AS e WHERE NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.id = e.id);
UPDATE ended_deliveries AS e SET failure_detail = d.failure_detail FROM deliveries d
    WHERE d.id = e.id AND e.id IN (SELECT delivery_id FROM erased_parts);
INSERT INTO ended_deliveries (id, org_id, callback_host, is_automatic, status_code, failure_reason_code, failure_detail,
        attempt_count, created_at, completed_at)
    SELECT id, org_id, callback_host, is_automatic, status_code, failure_reason_code, failure_detail, attempt_count,
        created_at, completed_at
    FROM deliveries d
    WHERE completed_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM ended_deliveries e WHERE e.id = d.id);
INSERT INTO open_deliveries (id, org_id, run_id, destination, callback_host, is_automatic, payload_bytes, max_attempts,
        attempt_count, failure_reason_code, failure_detail, next_attempt_at, wake_at, claim_id, claimed_at, created_at,
        updated_at)
    SELECT id, org_id, run_id, destination, callback_host, is_automatic, length(payload), max_attempts, attempt_count,
        failure_reason_code, failure_detail, next_attempt_at, wake_at, claim_id, claimed_at, created_at, updated_at
    FROM deliveries WHERE completed_at IS NULL;
-- PostgreSQL:
ALTER TABLE deliveries
    DROP COLUMN callback_host, DROP COLUMN destination, DROP COLUMN status_code, DROP COLUMN failure_reason_code,
    DROP COLUMN failure_detail, DROP COLUMN attempt_count, DROP COLUMN next_attempt_at, DROP COLUMN wake_at,
    DROP COLUMN claim_id, DROP COLUMN claimed_at, DROP COLUMN updated_at, DROP COLUMN completed_at,
    DROP CONSTRAINT IF EXISTS deliveries_org_id_run_id_fkey, DROP CONSTRAINT IF EXISTS deliveries_org_id_fkey;
ALTER TABLE deliveries
    RESET (fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_cost_delay);
ALTER TABLE attempts DROP CONSTRAINT IF EXISTS attempts_delivery_id_fkey;
-- SQLite:
CREATE TABLE accepted_deliveries (
    id uuid NOT NULL PRIMARY KEY,
    org_id uuid NOT NULL,
    run_id uuid NOT NULL,
    callback_url text NOT NULL,
    payload bytea NOT NULL,
    signing_secret_id uuid REFERENCES signing_secrets (id),
    is_automatic boolean NOT NULL,
    max_attempts integer NOT NULL,
    request_id text NOT NULL,
    created_at timestamptz NOT NULL,
    FOREIGN KEY (org_id, run_id) REFERENCES runs (org_id, id)
);
INSERT INTO accepted_deliveries
    SELECT id, org_id, run_id, callback_url, payload, signing_secret_id, is_automatic, max_attempts, request_id, created_at
    FROM deliveries;
CREATE TABLE kept_attempts (
    id uuid NOT NULL,
    delivery_id uuid NOT NULL REFERENCES accepted_deliveries (id),
    attempt_number integer NOT NULL,
    status_code integer,
    response_body text,
    response_time_ms bigint,
    failure_reason_code text,
    failure_detail text,
    created_at timestamptz NOT NULL,
    resolve_ms integer,
    connect_ms integer,
    tls_ms integer,
    send_ms integer,
    wait_ms integer,
    body_ms integer,
    remote_address text,
    content_type text,
    response_headers text,
    PRIMARY KEY (delivery_id, attempt_number),
    CONSTRAINT attempts_count_from_1 CHECK (attempt_number >= 1),
    CONSTRAINT failed_attempt_is_explained CHECK ((failure_reason_code IS NULL) = (failure_detail IS NULL)),
    CONSTRAINT attempt_has_an_outcome CHECK (status_code IS NOT NULL OR failure_reason_code IS NOT NULL),
    CONSTRAINT attempt_failure_reason_code CHECK (failure_reason_code IS NULL OR failure_reason_code IN
        ('http_error', 'timeout', 'connection_error', 'dns_error', 'tls_error', 'blocked_address', 'invalid_url',
         'signing_unavailable', 'outcome_unknown', 'superseded', 'gone', 'erased', 'withdrawn'))
);
INSERT INTO kept_attempts
    SELECT id, delivery_id, attempt_number, status_code, response_body, response_time_ms, failure_reason_code,
        failure_detail, created_at, resolve_ms, connect_ms, tls_ms, send_ms, wait_ms, body_ms, remote_address, content_type,
        response_headers
    FROM attempts;
DROP TABLE attempts;
DROP TABLE deliveries;
ALTER TABLE accepted_deliveries RENAME TO deliveries;
ALTER TABLE kept_attempts RENAME TO attempts;
CREATE UNIQUE INDEX one_automatic_delivery_per_run ON deliveries (org_id, run_id) WHERE is_automatic;
CREATE INDEX deliveries_of_run ON deliveries (org_id, run_id, created_at);
-- Both:
-- A delivery as it stands, for those who read it.
CREATE VIEW delivery_states AS
    SELECT d.id, d.org_id, d.run_id, d.callback_url, coalesce(o.callback_host, e.callback_host) AS callback_host,
        o.destination, d.payload, d.signing_secret_id, d.is_automatic,
        CASE WHEN o.id IS NULL THEN e.status_code WHEN o.claim_id IS NULL THEN 'pending' ELSE 'delivering' END
            AS status_code,
        coalesce(e.failure_reason_code, o.failure_reason_code) AS failure_reason_code,
        coalesce(e.failure_detail, o.failure_detail) AS failure_detail,
        coalesce(e.attempt_count, o.attempt_count) AS attempt_count, d.max_attempts, o.next_attempt_at, o.wake_at,
        o.claim_id, o.claimed_at, d.request_id, d.created_at, coalesce(e.completed_at, o.updated_at) AS updated_at,
        e.completed_at
    FROM deliveries d
    LEFT JOIN open_deliveries o ON o.id = d.id
    LEFT JOIN ended_deliveries e ON e.id = d.id;
