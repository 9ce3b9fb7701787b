ALTER TABLE signing_secrets DROP COLUMN demoted_at;
