-- Each look of the relay reads only what it is after, however much else is open: what is due, by when, or the attempts
-- under way, by when their lease ends. A row is in one of the two; claim_iff_delivering ties claim_id to the state.
DROP INDEX open_deliveries_by_wake_at;
CREATE INDEX waiting_deliveries_by_wake_at ON deliveries (wake_at) WHERE wake_at IS NOT NULL AND claim_id IS NULL;
CREATE INDEX leases_by_wake_at ON deliveries (wake_at) WHERE claim_id IS NOT NULL;
