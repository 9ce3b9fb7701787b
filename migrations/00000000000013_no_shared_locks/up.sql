-- Oldest program: 8
--
-- To check a reference PostgreSQL locks the row referred to. These are rows that all transactions of an organization refer to
-- at once: each lock of several at a time is a multixact, which is written, vacuumed and can run out. Organizations and
-- secrets are never deleted.
-- PostgreSQL:
ALTER TABLE runs DROP CONSTRAINT IF EXISTS runs_org_id_fkey;
ALTER TABLE idempotency_keys DROP CONSTRAINT IF EXISTS idempotency_keys_org_id_fkey;
ALTER TABLE deliveries DROP CONSTRAINT IF EXISTS deliveries_signing_secret_id_fkey;
