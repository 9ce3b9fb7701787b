-- Oldest program: 8
--
-- Filled in by `fill_ended`, in batches: what the deliveries came to that have ended until now. The next migration adds the
-- others.
SELECT 1;
