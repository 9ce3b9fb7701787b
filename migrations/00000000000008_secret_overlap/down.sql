DROP INDEX demoted_secrets;
ALTER TABLE signing_secrets DROP COLUMN demoted_at;
