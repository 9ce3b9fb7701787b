-- When a secret ceased to be the current one because another was promoted: for a while after that, requests are signed
-- with it, too.
ALTER TABLE signing_secrets ADD COLUMN demoted_at timestamptz;
