-- Oldest program: 8
--
-- What ended without an answer and without a reason can't be, nor a reason that nobody knows. A later program with another
-- reason widens these first.
-- PostgreSQL:
ALTER TABLE attempts ADD CONSTRAINT attempt_has_an_outcome
    CHECK (status_code IS NOT NULL OR failure_reason_code IS NOT NULL) NOT VALID;
ALTER TABLE attempts ADD CONSTRAINT attempt_failure_reason_code CHECK (failure_reason_code IS NULL OR failure_reason_code IN
    ('http_error', 'timeout', 'connection_error', 'dns_error', 'tls_error', 'blocked_address', 'invalid_url',
     'signing_unavailable', 'outcome_unknown', 'superseded', 'gone', 'erased', 'withdrawn')) NOT VALID;
ALTER TABLE deliveries ADD CONSTRAINT delivery_failure_reason_code CHECK (failure_reason_code IS NULL OR failure_reason_code IN
    ('http_error', 'timeout', 'connection_error', 'dns_error', 'tls_error', 'blocked_address', 'invalid_url',
     'signing_unavailable', 'outcome_unknown', 'superseded', 'gone', 'erased', 'withdrawn')) NOT VALID;
-- SQLite:
ALTER TABLE attempts ADD CONSTRAINT attempt_has_an_outcome
    CHECK (status_code IS NOT NULL OR failure_reason_code IS NOT NULL);
ALTER TABLE attempts ADD CONSTRAINT attempt_failure_reason_code CHECK (failure_reason_code IS NULL OR failure_reason_code IN
    ('http_error', 'timeout', 'connection_error', 'dns_error', 'tls_error', 'blocked_address', 'invalid_url',
     'signing_unavailable', 'outcome_unknown', 'superseded', 'gone', 'erased', 'withdrawn'));
ALTER TABLE deliveries ADD CONSTRAINT delivery_failure_reason_code CHECK (failure_reason_code IS NULL OR failure_reason_code IN
    ('http_error', 'timeout', 'connection_error', 'dns_error', 'tls_error', 'blocked_address', 'invalid_url',
     'signing_unavailable', 'outcome_unknown', 'superseded', 'gone', 'erased', 'withdrawn'));
