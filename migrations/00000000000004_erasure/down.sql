DROP TABLE erased_parts;
ALTER TABLE runs DROP COLUMN erased_at;
