-- Where a delivery goes as far as fairness is concerned: a hash of its organization and the origin of callback_url, fixed
-- when it is accepted. `migrate` fills it in for open rows that were there before.
ALTER TABLE deliveries ADD COLUMN destination bigint NOT NULL DEFAULT 0;

-- The relay walks the destinations that wait for something, and takes each one's oldest.
CREATE INDEX waiting_deliveries_by_destination ON deliveries (destination, wake_at)
    WHERE wake_at IS NOT NULL AND claim_id IS NULL;

-- Destinations that are not ordinary; all others have no row. While a row is here only the relay serves its destination:
-- nothing until held_until, then one attempt, the probe, whose answer removes the row or holds the destination again. A
-- pause by a person can become columns of its own beside these.
CREATE TABLE destinations (
    destination bigint NOT NULL PRIMARY KEY,
    org_id uuid NOT NULL REFERENCES organizations (id),
    held_until timestamptz NOT NULL,
    -- The end of the probe's lease, and the claim it is made under.
    probing_until timestamptz,
    probe_claim_id uuid,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT probe_has_a_claim CHECK ((probing_until IS NULL) = (probe_claim_id IS NULL))
);
