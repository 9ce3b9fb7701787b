DROP INDEX leases_by_wake_at;
DROP INDEX waiting_deliveries_by_wake_at;
CREATE INDEX open_deliveries_by_wake_at ON deliveries (wake_at) WHERE wake_at IS NOT NULL;
