//! Creates a long history in the database: copies real deliveries many times, with new ids.

use anyhow::{Result, ensure};

use crate::Arguments;
use crate::arrivals::Arrivals;
use crate::installation::Installation;
use crate::load::{Load, Rate};

/// Number of real deliveries to copy.
const MADE: usize = 1_000;

/// Copies all rows of runs, deliveries and attempts `COPIES` times, each copy a second older than the
/// previous one. It works with other schemas than the current one, since it does not list columns. Columns of
/// type uuid are ids, except those that all rows share. An id gets the same new value in all places.
const COPY: &str = r#"
SET session_replication_role = replica;  -- keys between tables hold when all is copied
DO $$
DECLARE
    copied record;
    wanted text;
BEGIN
    FOR copied IN
        SELECT table_name, string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position) AS names,
            string_agg(CASE
                WHEN udt_name = 'uuid' AND column_name NOT IN ('org_id', 'signing_secret_id')
                    THEN format('overlay(md5(%1$I::text || n) placing left(%1$I::text, 14) from 1 for 12)::uuid', column_name)
                WHEN udt_name = 'timestamptz' THEN format('%I - n * interval ''1 second''', column_name)
                ELSE quote_ident(column_name) END, ', ' ORDER BY ordinal_position) AS changed
        FROM information_schema.columns
        WHERE table_schema = 'public' AND table_name IN ('runs', 'deliveries', 'ended_deliveries', 'attempts')
        GROUP BY table_name
    LOOP
        wanted := format('INSERT INTO %I (%s) SELECT %s FROM %I, generate_series(1, COPIES) AS n',
            copied.table_name, copied.names, copied.changed, copied.table_name);
        EXECUTE wanted;
    END LOOP;
END $$;
RESET session_replication_role;
"#;

/// Creates approximately `arguments.history` ended deliveries.
pub(crate) async fn make(
    installation: &mut Installation,
    load: &Load,
    arrivals: &mut Arrivals,
    arguments: &Arguments,
) -> Result<()> {
    let urls = arrivals.urls("/ok", arguments.destinations);
    let runs = installation.import(MADE, arguments.payload, &urls)?;
    load.redeliver_all(runs, Rate::Any).await?;
    load.settled().await?;
    installation.query(&COPY.replace("COPIES", &(arguments.history / MADE).to_string()))?;
    installation.query("VACUUM ANALYZE")?;
    let made: usize = installation.query("SELECT count(*) FROM deliveries")?.trim().parse()?;
    ensure!(made >= arguments.history, "only {made} deliveries were created");
    Ok(())
}
