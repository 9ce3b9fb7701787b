-- When a secret ceased to be the current one because another was promoted: for a while after that, requests are signed
-- with it, too. NULL once it is current again or disabled, and for all but the newest few.
ALTER TABLE signing_secrets ADD COLUMN demoted_at timestamptz;

CREATE INDEX demoted_secrets ON signing_secrets (org_id, demoted_at) WHERE demoted_at IS NOT NULL;
