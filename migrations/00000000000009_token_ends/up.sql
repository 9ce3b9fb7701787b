-- Oldest program: 8 (which takes a token that has ended for a good one)
--
-- When a token ends by itself, and when somebody ended it. A row stays, so that a list tells what there was.
ALTER TABLE api_tokens ADD COLUMN expires_at timestamptz;
ALTER TABLE api_tokens ADD COLUMN revoked_at timestamptz;
