-- Oldest program: 8
--
-- Reads the tables; nobody waits for it. By itself, as what the last migration locked must not wait for it either.
-- PostgreSQL:
ALTER TABLE attempts VALIDATE CONSTRAINT attempt_has_an_outcome;
ALTER TABLE attempts VALIDATE CONSTRAINT attempt_failure_reason_code;
ALTER TABLE deliveries VALIDATE CONSTRAINT delivery_failure_reason_code;
