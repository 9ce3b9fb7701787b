-- Oldest program: 16
--
-- The position in a trace of the request that created a delivery: attempts made hours later continue its trace.
ALTER TABLE deliveries ADD COLUMN traceparent text;
