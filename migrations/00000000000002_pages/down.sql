DROP INDEX secrets_by_age;
DROP INDEX runs_by_status;
DROP INDEX deliveries_by_failure;
DROP INDEX deliveries_by_host;
DROP INDEX deliveries_by_status;
ALTER TABLE deliveries DROP COLUMN callback_host;
