//! The two column types that PostgreSQL and SQLite store differently: ids and timestamps.

use contracts::Timestamp;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::query_builder::QueryId;
use diesel::serialize::{self, IsNull, Output, ToSql};
use diesel::sql_types::{BigInt, Binary, HasSqlType, SqlType};
use diesel::sqlite::{Sqlite, SqliteValue};
use uuid::Uuid;

use crate::connect::{MultiBackend, MultiRawValue};

/// SQL type: `uuid` on PostgreSQL, a 16-byte blob on SQLite.
#[derive(SqlType, QueryId, Clone, Copy, Debug, Default)]
#[diesel(postgres_type(oid = 2950, array_oid = 2951), sqlite_type(name = "Binary"))]
pub struct Id;

/// SQL type: `timestamptz` on PostgreSQL, microseconds since 1970 UTC as an integer on SQLite.
#[derive(SqlType, QueryId, Clone, Copy, Debug, Default)]
#[diesel(postgres_type(oid = 1184, array_oid = 1185), sqlite_type(name = "Long"))]
pub struct Moment;

/// An [`Id`] in Rust; converts from and to every id type of `contracts`.
#[derive(AsExpression, FromSqlRow, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[diesel(sql_type = Id)]
pub struct DbId(pub Uuid);

/// A [`Moment`] in Rust; converts from and to [`Timestamp`].
#[derive(AsExpression, FromSqlRow, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[diesel(sql_type = Moment)]
pub struct DbTime(i64);

impl DbTime {
    /// Earlier than every stored time.
    pub(crate) const MIN: DbTime = DbTime(-62_135_596_800_000_000);
    /// Later than every stored time.
    pub(crate) const MAX: DbTime = DbTime(253_402_300_799_999_999);
}

impl From<Timestamp> for DbTime {
    fn from(moment: Timestamp) -> DbTime {
        DbTime(moment.as_micros())
    }
}

impl From<DbTime> for Timestamp {
    fn from(time: DbTime) -> Timestamp {
        Timestamp::from_micros(time.0)
    }
}

macro_rules! keys {
    ($($id:ident),*) => {$(
        impl From<contracts::$id> for DbId {
            fn from(id: contracts::$id) -> DbId {
                DbId(id.0)
            }
        }

        impl From<DbId> for contracts::$id {
            fn from(key: DbId) -> contracts::$id {
                contracts::$id(key.0)
            }
        }
    )*};
}

keys!(OrgId, RunId, DeliveryId, AttemptId, SecretId, TokenId, ClaimId);

/// 2000-01-01, the epoch of PostgreSQL's timestamps, in microseconds since 1970.
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

impl ToSql<Id, Pg> for DbId {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        std::io::Write::write_all(out, self.0.as_bytes())?;
        Ok(IsNull::No)
    }
}

impl FromSql<Id, Pg> for DbId {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(DbId(Uuid::from_slice(value.as_bytes())?))
    }
}

impl ToSql<Id, Sqlite> for DbId {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        ToSql::<Binary, Sqlite>::to_sql(&self.0.as_bytes()[..], out)
    }
}

impl FromSql<Id, Sqlite> for DbId {
    fn from_sql(mut value: SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        Ok(DbId(Uuid::from_slice(value.read_blob())?))
    }
}

impl ToSql<Moment, Pg> for DbTime {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        ToSql::<BigInt, Pg>::to_sql(&(self.0 - POSTGRES_EPOCH), &mut out.reborrow())
    }
}

impl FromSql<Moment, Pg> for DbTime {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(DbTime(<i64 as FromSql<BigInt, Pg>>::from_sql(value)?.saturating_add(POSTGRES_EPOCH)))
    }
}

impl ToSql<Moment, Sqlite> for DbTime {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.0);
        Ok(IsNull::No)
    }
}

impl FromSql<Moment, Sqlite> for DbTime {
    fn from_sql(value: SqliteValue<'_, '_, '_>) -> deserialize::Result<Self> {
        Ok(DbTime(<i64 as FromSql<BigInt, Sqlite>>::from_sql(value)?))
    }
}

/// Implements a column type and its Rust type for the generated backend, which delegates to the actual
/// engine.
macro_rules! portable {
    ($($sql:ty => $rust:ty),* $(,)?) => {$(
        impl HasSqlType<$sql> for MultiBackend {
            fn metadata(lookup: &mut Self::MetadataLookup) -> Self::TypeMetadata {
                MultiBackend::lookup_sql_type::<$sql>(lookup)
            }
        }

        impl ToSql<$sql, MultiBackend> for $rust {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, MultiBackend>) -> serialize::Result {
                out.set_value((<$sql>::default(), self));
                Ok(IsNull::No)
            }
        }

        impl FromSql<$sql, MultiBackend> for $rust {
            fn from_sql(value: MultiRawValue<'_>) -> deserialize::Result<Self> {
                value.from_sql::<$rust, $sql>()
            }
        }
    )*};
}

portable!(Id => DbId, Moment => DbTime);
