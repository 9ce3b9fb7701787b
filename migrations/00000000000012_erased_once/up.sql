-- Oldest program: 8
--
-- A part is erased once: of a run, of a delivery, of an attempt. NULLs are never equal, hence a key for each.
-- PostgreSQL:
CREATE UNIQUE INDEX CONCURRENTLY erased_parts_of_runs_once ON erased_parts (org_id, run_id, part)
    WHERE delivery_id IS NULL;
CREATE UNIQUE INDEX CONCURRENTLY erased_parts_of_deliveries_once ON erased_parts (delivery_id, part)
    WHERE delivery_id IS NOT NULL AND attempt_number IS NULL;
CREATE UNIQUE INDEX CONCURRENTLY erased_parts_of_attempts_once ON erased_parts (delivery_id, attempt_number, part)
    WHERE attempt_number IS NOT NULL;
-- SQLite:
CREATE UNIQUE INDEX erased_parts_of_runs_once ON erased_parts (org_id, run_id, part)
    WHERE delivery_id IS NULL;
CREATE UNIQUE INDEX erased_parts_of_deliveries_once ON erased_parts (delivery_id, part)
    WHERE delivery_id IS NOT NULL AND attempt_number IS NULL;
CREATE UNIQUE INDEX erased_parts_of_attempts_once ON erased_parts (delivery_id, attempt_number, part)
    WHERE attempt_number IS NOT NULL;
