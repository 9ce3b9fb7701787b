-- What is known of an attempt's HTTP exchange beside its outcome. Phases in milliseconds, NULL: did not happen, or did
-- not end.
ALTER TABLE attempts ADD COLUMN resolve_ms integer;
ALTER TABLE attempts ADD COLUMN connect_ms integer;
ALTER TABLE attempts ADD COLUMN tls_ms integer;
ALTER TABLE attempts ADD COLUMN send_ms integer;
ALTER TABLE attempts ADD COLUMN wait_ms integer;
ALTER TABLE attempts ADD COLUMN body_ms integer;
-- Address and port.
ALTER TABLE attempts ADD COLUMN remote_address text;
ALTER TABLE attempts ADD COLUMN content_type text;
-- Selected ones, as a JSON object; names in lower case.
ALTER TABLE attempts ADD COLUMN response_headers text;
