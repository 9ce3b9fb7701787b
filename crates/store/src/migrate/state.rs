//! How a database's schema fits this program.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};

use crate::connect::AnyConnection;
use crate::error::StoreError;
use crate::migrate::migrations::{MIGRATIONS, Migration, newest};
use crate::prepared::prepared;

/// The table of the applied migrations.
const HISTORY: &str = "__diesel_schema_migrations";

/// How a database's schema fits this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// It has all migrations of this program, and any newer ones admit this program.
    Fits,
    /// Migrations are missing; `redial migrate` applies them.
    Older,
    /// It has a migration that admits only programs from this number on; this program is older.
    Newer(i64),
}

impl SchemaState {
    /// Returns an error unless this program may use the schema.
    pub(crate) fn require(self) -> Result<(), StoreError> {
        match self {
            SchemaState::Fits => Ok(()),
            SchemaState::Older => Err(StoreError::Schema(
                "the database's schema is older than this program: run `redial migrate`".into(),
            )),
            SchemaState::Newer(needed) => Err(StoreError::Schema(format!(
                "the database's schema is newer than this program and admits programs from schema {needed} on, this one \
                 knows {}: update redial",
                newest(MIGRATIONS)
            ))),
        }
    }
}

/// How a database's schema fits this program, with the numbers behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaFacts {
    /// Whether this program may use it.
    pub state: SchemaState,
    /// The newest applied migration; `None` if there is none.
    pub newest: Option<i64>,
    /// The newest migration that this program knows.
    pub known: i64,
}

/// Compares the applied migrations with this program's, and names the newest of both.
pub fn schema_facts(conn: &mut AnyConnection) -> Result<SchemaFacts, StoreError> {
    let state = schema_state(conn)?;
    let applied = if has_table(conn, HISTORY)? { applied(conn)? } else { BTreeSet::new() };
    Ok(SchemaFacts { state, newest: applied.last().copied(), known: newest(MIGRATIONS) })
}

/// Compares the applied migrations with this program's.
pub(crate) fn schema_state(conn: &mut AnyConnection) -> Result<SchemaState, StoreError> {
    state(conn, MIGRATIONS)
}

pub(super) fn state(conn: &mut AnyConnection, known: &[Migration]) -> Result<SchemaState, StoreError> {
    if !has_table(conn, HISTORY)? {
        return Ok(SchemaState::Older);
    }
    let seen = applied(conn)?;
    let own = newest(known);
    let admits: BTreeMap<i64, i64> = match has_table(conn, "schema_admits")? {
        true => prepared::<(BigInt, BigInt), _>("SELECT number, oldest_program FROM schema_admits")
            .load(conn)?
            .into_iter()
            .collect(),
        false => BTreeMap::new(),
    };
    // A migration without a row in `schema_admits` needs a program that knows it.
    let needed =
        seen.iter().filter(|number| **number > own).map(|number| admits.get(number).unwrap_or(number));
    match needed.max() {
        Some(needed) if *needed > own => Ok(SchemaState::Newer(*needed)),
        _ if known.iter().all(|migration| seen.contains(&migration.number)) => Ok(SchemaState::Fits),
        _ => Ok(SchemaState::Older),
    }
}

/// Returns the numbers of the applied migrations.
pub(super) fn applied(conn: &mut AnyConnection) -> Result<BTreeSet<i64>, StoreError> {
    let versions: Vec<String> =
        prepared::<Text, _>("SELECT version FROM __diesel_schema_migrations").load(conn)?;
    let number = |version: String| {
        version
            .parse()
            .map_err(|_| StoreError::Schema(format!("the schema's version {version} is no number")))
    };
    versions.into_iter().map(number).collect()
}

fn has_table(conn: &mut AnyConnection, name: &str) -> Result<bool, StoreError> {
    let count = match conn {
        AnyConnection::Postgres(_) => "SELECT count(*) FROM pg_class WHERE oid = to_regclass(?)",
        AnyConnection::Sqlite(_) => "SELECT count(*) FROM sqlite_schema WHERE name = ?",
    };
    let count: i64 = prepared::<BigInt, _>(count).bind::<Text, _>(name.to_owned()).get_result(conn)?;
    Ok(count > 0)
}
