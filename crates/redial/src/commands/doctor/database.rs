//! Judges the database: the server or file, the schema, the clock and the stored secrets.

use store::{OpenedSecrets, PostgresFacts, SchemaFacts, SchemaState};

use super::report::Check;
use crate::keys;

/// The oldest version that tests run on.
const OLDEST_POSTGRES: i64 = 15;
/// Receivers may compare signatures' times with their own clock, commonly with a tolerance of minutes.
const MAX_OFFSET: f64 = 1.0;

/// The checks of a PostgreSQL server that depend on `database`.
pub(super) const OF_SERVER: [&str; 8] = [
    "database.writes",
    "database.fsync",
    "database.full_page_writes",
    "database.synchronous_commit",
    "database.autovacuum",
    "database.encoding",
    "database.connections",
    "database.sessions",
];

/// The connections that an installation may open.
pub(super) struct Demand {
    pub(super) processes: u16,
    /// Of all processes together.
    pub(super) connections: i64,
    /// Whether a pooler such as PgBouncer is between them and the server.
    pub(super) is_pooled: bool,
}

/// `place` is the database's URL without its password.
pub(super) fn server(facts: &PostgresFacts, place: &str, demand: &Demand) -> Vec<Check> {
    let found = format!("PostgreSQL {} at {place}", facts.version);
    let version = if facts.major_version < OLDEST_POSTGRES {
        let advice =
            format!("upgrade it: the oldest version that Redial is tested with is {OLDEST_POSTGRES}");
        Check::warning("database", found, advice)
    } else {
        Check::ok("database", found)
    };
    vec![
        version,
        writes(facts),
        switched_on(
            "database.fsync",
            facts.fsync,
            Check::problem,
            "set fsync = on: a crash of the host may lose accepted deliveries, or the database",
        ),
        switched_on(
            "database.full_page_writes",
            facts.full_page_writes,
            Check::warning,
            "set full_page_writes = on, unless the file system writes 8 KiB pages atomically: a crash of the host may \
             damage the database",
        ),
        synchronous_commit(&facts.synchronous_commit),
        switched_on(
            "database.autovacuum",
            facts.autovacuum,
            Check::warning,
            "set autovacuum = on: polls read every old row version that is left behind",
        ),
        encoding(&facts.encoding),
        connections(facts, demand),
        sessions(facts),
    ]
}

fn switched_on(
    check: &'static str,
    is_on: bool,
    otherwise: fn(&'static str, &'static str, &'static str) -> Check,
    advice: &'static str,
) -> Check {
    if is_on { Check::ok(check, "on") } else { otherwise(check, "off", advice) }
}

fn writes(facts: &PostgresFacts) -> Check {
    const CHECK: &str = "database.writes";
    if facts.is_standby {
        return Check::problem(CHECK, "it is a standby, which refuses writes", "give the primary's address");
    }
    if !facts.may_write {
        let found = "the role may not read and write all of Redial's tables";
        let advice = "give the role that owns them, or GRANT it SELECT, INSERT, UPDATE and DELETE on all tables of the schema";
        return Check::problem(CHECK, found, advice);
    }
    if facts.is_read_only {
        // Services begin their transactions READ WRITE.
        let advice = "reset it, or find out who marked the database read-only: services write nevertheless, but `redial \
                      migrate` is refused";
        return Check::warning(CHECK, "default_transaction_read_only is on", advice);
    }
    Check::ok(CHECK, "it is a primary, and the role may write")
}

fn synchronous_commit(configured: &str) -> Check {
    const CHECK: &str = "database.synchronous_commit";
    match configured {
        "on" | "remote_apply" => Check::ok(CHECK, configured),
        weaker => Check::warning(
            CHECK,
            weaker,
            "set it to on: Redial raises it in its own sessions, but what other programs commit here can be lost",
        ),
    }
}

fn encoding(encoding: &str) -> Check {
    const CHECK: &str = "database.encoding";
    match encoding {
        "UTF8" => Check::ok(CHECK, encoding),
        other => Check::problem(
            CHECK,
            format!("{other}, which can't hold every text"),
            "create the database anew, with ENCODING 'UTF8'",
        ),
    }
}

fn connections(facts: &PostgresFacts, demand: &Demand) -> Check {
    const CHECK: &str = "database.connections";
    let Demand { processes, connections: needed, is_pooled } = *demand;
    if is_pooled {
        let found = format!(
            "{processes} processes open up to {needed} connections to the pooler, whose limits apply"
        );
        return Check::ok(CHECK, found);
    }
    let of_server = facts.max_connections - facts.reserved_connections;
    let usable = facts.connection_limit.map_or(of_server, |limit| limit.min(of_server));
    let others = facts.sessions - facts.own_sessions;
    let found = format!(
        "{processes} processes need up to {needed} of {usable} connections; {} of Redial and {others} others are open now",
        facts.own_sessions
    );
    let advice = "raise max_connections or the limit of the role or database, or lower database.pool_size";
    if needed > usable {
        Check::problem(CHECK, found, advice)
    } else if needed + others > usable {
        Check::warning(CHECK, found, advice)
    } else {
        Check::ok(CHECK, found)
    }
}

fn sessions(facts: &PostgresFacts) -> Check {
    const CHECK: &str = "database.sessions";
    match facts.hidden_sessions {
        0 => Check::ok(CHECK, "this role sees when the transactions of Redial's sessions began"),
        hidden => Check::warning(
            CHECK,
            format!("this role can't see when the transactions of {hidden} of Redial's sessions began"),
            "GRANT pg_read_all_stats to the api's role, and set track_activities = on: until then lists in ascending order \
             omit rows younger than a minute",
        ),
    }
}

pub(super) fn schema(facts: SchemaFacts) -> Check {
    const CHECK: &str = "schema";
    let SchemaFacts { state, newest, known } = facts;
    match (state, newest) {
        (SchemaState::Fits, Some(newest)) if newest > known => {
            let found =
                format!("migration {newest}, newer than this program, which knows {known} and is admitted");
            Check::ok(CHECK, found)
        }
        (SchemaState::Fits, _) => {
            Check::ok(CHECK, format!("migration {known}, the newest that this program knows"))
        }
        (SchemaState::Older, None) => {
            Check::problem(CHECK, "the database has no tables of Redial yet", "run `redial migrate`")
        }
        (SchemaState::Older, Some(newest)) => Check::problem(
            CHECK,
            format!("older than this program: migrations up to {newest} are applied, of {known}"),
            "run `redial migrate`",
        ),
        (SchemaState::Newer(needed), _) => Check::problem(
            CHECK,
            format!(
                "newer than this program: it admits programs from schema {needed} on, this one knows {known}"
            ),
            "update redial",
        ),
    }
}

/// `ahead` is by how many seconds the database's clock is ahead of this host's.
pub(super) fn clock(ahead: f64) -> Check {
    const CHECK: &str = "clock";
    let direction = if ahead < 0.0 { "behind" } else { "ahead of" };
    let found = format!("the database's is {:.3} s {direction} this host's", ahead.abs());
    if ahead.abs() <= MAX_OFFSET {
        return Check::ok(CHECK, found);
    }
    let advice = "repair the time synchronization of this host, or of the database's: Redial follows the database's clock, so \
                  signatures and logs bear its time";
    Check::warning(CHECK, found, advice)
}

pub(super) fn secrets(opened: &OpenedSecrets) -> Check {
    const CHECK: &str = "keys";
    let OpenedSecrets { stored, tried, missing } = opened;
    if missing.is_empty() {
        let found = match (*stored, *tried as i64) {
            (0, _) => "no signing secret is stored yet".to_owned(),
            (stored, tried) if tried < stored => {
                format!("{tried} of {stored} signing secrets were tried, and all of them open")
            }
            (stored, _) => format!("every signing secret opens: {stored}"),
        };
        return Check::ok(CHECK, found);
    }
    let described: Vec<String> = missing.iter().map(keys::describe).collect();
    let found = format!("of {stored} signing secrets {tried} were tried: {}", described.join("; "));
    if missing.iter().any(|key| key.needed) {
        Check::problem(CHECK, found, keys::ADVICE)
    } else {
        Check::warning(CHECK, format!("{found}; all of these are deleted secrets"), keys::ADVICE)
    }
}

#[cfg(test)]
mod tests;
