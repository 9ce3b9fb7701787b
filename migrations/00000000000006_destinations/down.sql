DROP TABLE destinations;
DROP INDEX waiting_deliveries_by_destination;
ALTER TABLE deliveries DROP COLUMN destination;
