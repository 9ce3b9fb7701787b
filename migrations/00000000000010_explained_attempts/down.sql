ALTER TABLE attempts DROP CONSTRAINT attempt_has_an_outcome;
ALTER TABLE attempts DROP CONSTRAINT attempt_failure_reason_code;
ALTER TABLE deliveries DROP CONSTRAINT delivery_failure_reason_code;
