-- The host of callback_url, lower-case, without its port: a filter of the list. `migrate` fills it in for rows that
-- were there before.
ALTER TABLE deliveries ADD COLUMN callback_host text NOT NULL DEFAULT '';

-- Lists are read page by page in order of (created_at, id). Every combination of what a list can be filtered by is a
-- range of one of these: where a filter is absent, a range for each of its few values is read.
CREATE INDEX deliveries_by_status ON deliveries (org_id, status_code, is_automatic, created_at, id);
CREATE INDEX deliveries_by_host ON deliveries (org_id, callback_host, status_code, is_automatic, created_at, id);
CREATE INDEX deliveries_by_failure ON deliveries
    (org_id, failure_reason_code, status_code, is_automatic, created_at, id) WHERE failure_reason_code IS NOT NULL;
CREATE INDEX runs_by_status ON runs (org_id, status_code, created_at, id);
CREATE INDEX secrets_by_age ON signing_secrets (org_id, created_at, id);
