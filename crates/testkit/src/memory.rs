//! An in-memory database whose transactions can be made to fail, and which records what they changed.

use contracts::{ClaimId, DeliveryId, Destination, OrgId, Timestamp};
use diesel::connection::SimpleConnection;
use diesel::prelude::*;
use diesel::result::Error;
use store::{AnyConnection, DatabaseUrl};
use uuid::Uuid;

diesel::table! {
    changed_deliveries (rowid) {
        rowid -> BigInt,
        id -> Binary,
    }
}

diesel::table! {
    changed_destinations (rowid) {
        rowid -> BigInt,
    }
}

diesel::table! {
    destinations (destination) {
        destination -> BigInt,
        held_until -> BigInt,
        probing_until -> Nullable<BigInt>,
        probe_claim_id -> Nullable<Binary>,
    }
}

/// Triggers that record changes, and triggers that refuse writes as the database would for a broken row or
/// page.
const TRIGGERS: &str = "
    CREATE TEMP TABLE changed_deliveries (id);
    CREATE TEMP TRIGGER delivery_inserted AFTER INSERT ON main.deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.id); END;
    CREATE TEMP TRIGGER delivery_updated AFTER UPDATE ON main.deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.id); END;
    CREATE TEMP TRIGGER delivery_deleted AFTER DELETE ON main.deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (OLD.id); END;
    CREATE TEMP TRIGGER open_inserted AFTER INSERT ON main.open_deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.id); END;
    CREATE TEMP TRIGGER open_updated AFTER UPDATE ON main.open_deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.id); END;
    CREATE TEMP TRIGGER open_deleted AFTER DELETE ON main.open_deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (OLD.id); END;
    CREATE TEMP TRIGGER ended_inserted AFTER INSERT ON main.ended_deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.id); END;
    CREATE TEMP TRIGGER ended_updated AFTER UPDATE ON main.ended_deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.id); END;
    CREATE TEMP TRIGGER ended_deleted AFTER DELETE ON main.ended_deliveries
        BEGIN INSERT INTO changed_deliveries VALUES (OLD.id); END;
    CREATE TEMP TRIGGER attempt_inserted AFTER INSERT ON main.attempts
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.delivery_id); END;
    CREATE TEMP TRIGGER attempt_updated AFTER UPDATE ON main.attempts
        BEGIN INSERT INTO changed_deliveries VALUES (NEW.delivery_id); END;
    CREATE TEMP TRIGGER attempt_deleted AFTER DELETE ON main.attempts
        BEGIN INSERT INTO changed_deliveries VALUES (OLD.delivery_id); END;

    CREATE TEMP TABLE changed_destinations (destination);
    CREATE TEMP TRIGGER destination_inserted AFTER INSERT ON main.destinations
        BEGIN INSERT INTO changed_destinations VALUES (NEW.destination); END;
    CREATE TEMP TRIGGER destination_updated AFTER UPDATE ON main.destinations
        BEGIN INSERT INTO changed_destinations VALUES (NEW.destination); END;
    CREATE TEMP TRIGGER destination_deleted AFTER DELETE ON main.destinations
        BEGIN INSERT INTO changed_destinations VALUES (OLD.destination); END;

    CREATE TEMP TABLE refused_claims (id PRIMARY KEY);
    CREATE TEMP TRIGGER claim_refused BEFORE UPDATE OF claim_id ON main.open_deliveries
        WHEN NEW.claim_id IS NOT NULL AND NEW.id IN (SELECT id FROM refused_claims)
        BEGIN SELECT RAISE(ABORT, 'the row is broken'); END;
    CREATE TEMP TABLE refused_records (id PRIMARY KEY);
    CREATE TEMP TRIGGER record_refused BEFORE INSERT ON main.attempts
        WHEN NEW.delivery_id IN (SELECT id FROM refused_records)
        BEGIN SELECT RAISE(ABORT, 'the row is broken'); END";

/// Deletes everything except organizations.
const CLEAR: &str = "
    DELETE FROM erased_parts; DELETE FROM attempts; DELETE FROM open_deliveries; DELETE FROM ended_deliveries; DELETE FROM deliveries;
    DELETE FROM runs; DELETE FROM destinations;
    DELETE FROM changed_deliveries; DELETE FROM changed_destinations;
    DELETE FROM refused_claims; DELETE FROM refused_records";

/// A private, migrated SQLite database in memory.
pub struct MemoryDatabase(AnyConnection);

/// Changes made by transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Deliveries that were created or deleted, or of which a column or an attempt changed.
    pub deliveries: Vec<DeliveryId>,
    /// Whether a row of `destinations` changed.
    pub destinations: bool,
}

/// A row of `destinations`; a destination in the ordinary state has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct HoldRow {
    pub destination: Destination,
    pub held_until: Timestamp,
    /// Its probe: the end of the lease, and the claim.
    pub probe: Option<(Timestamp, ClaimId)>,
}

/// The writes of a delivery that the database refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Claims of its attempts.
    Claims,
    /// Records of its attempts.
    Records,
}

/// Why a transaction was not committed.
enum Undone<T, E> {
    RolledBack(T),
    Failed(E),
}

impl<T, E: From<Error>> From<Error> for Undone<T, E> {
    fn from(error: Error) -> Undone<T, E> {
        Undone::Failed(error.into())
    }
}

impl Default for MemoryDatabase {
    fn default() -> MemoryDatabase {
        let url = DatabaseUrl::Sqlite(":memory:".into());
        let mut conn = url.connect().expect("a database in memory can be opened");
        store::migrate(&mut conn).expect("the migrations apply");
        conn.batch_execute(TRIGGERS).expect("the triggers are valid");
        MemoryDatabase(conn)
    }
}

impl MemoryDatabase {
    /// Runs `work` in a transaction and returns its result. Without `commits`, or when `work` fails, its
    /// writes are rolled back.
    pub fn transaction<T, E: From<Error>>(
        &mut self,
        commits: bool,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let ended = self.0.transaction(|tx| match work(tx) {
            Ok(answer) if commits => Ok(answer),
            Ok(answer) => Err(Undone::RolledBack(answer)),
            Err(error) => Err(Undone::Failed(error)),
        });
        match ended {
            Ok(answer) | Err(Undone::RolledBack(answer)) => Ok(answer),
            Err(Undone::Failed(error)) => Err(error),
        }
    }

    /// Deletes everything except organizations, and creates organization `org` if it does not exist.
    pub fn clear(&mut self, org: OrgId) {
        self.execute(CLEAR);
        let id = org.0.simple();
        self.execute(&format!("INSERT OR IGNORE INTO organizations VALUES (x'{id}', 'in memory', 0)"));
    }

    /// Returns the changes since the last call.
    pub fn changes(&mut self) -> Changes {
        let conn = self.sqlite();
        let changed: Vec<Vec<u8>> = changed_deliveries::table
            .select(changed_deliveries::id)
            .order_by(changed_deliveries::rowid)
            .load(conn)
            .expect("the changes can be read");
        let mut deliveries: Vec<DeliveryId> = Vec::new();
        for id in changed.iter().filter_map(|id| Uuid::from_slice(id).ok()).map(DeliveryId) {
            if !deliveries.contains(&id) {
                deliveries.push(id);
            }
        }
        if !deliveries.is_empty() {
            diesel::delete(changed_deliveries::table).execute(conn).expect("the changes can be deleted");
        }
        let destinations = diesel::delete(changed_destinations::table).execute(conn);
        Changes { deliveries, destinations: destinations.expect("the changes can be read") > 0 }
    }

    /// Returns all rows of `destinations`, in order.
    pub fn holds(&mut self) -> Vec<HoldRow> {
        type Row = (i64, i64, Option<i64>, Option<Vec<u8>>);
        let rows: Vec<Row> = destinations::table
            .order_by(destinations::destination)
            .select(destinations::all_columns)
            .load(self.sqlite())
            .expect("destinations can be read");
        let hold = |(destination, held_until, probing_until, claim): Row| {
            let claim = claim.and_then(|id| Uuid::from_slice(&id).ok()).map(ClaimId);
            HoldRow {
                destination: destination.into(),
                held_until: Timestamp::from_micros(held_until),
                probe: probing_until.map(Timestamp::from_micros).zip(claim),
            }
        };
        rows.into_iter().map(hold).collect()
    }

    /// Refuses these writes of a delivery from now on.
    pub fn refuse(&mut self, what: Refused, delivery: DeliveryId) {
        let table = match what {
            Refused::Claims => "refused_claims",
            Refused::Records => "refused_records",
        };
        self.execute(&format!("INSERT OR IGNORE INTO {table} VALUES (x'{}')", delivery.0.simple()));
    }

    /// Refuses no writes any longer.
    pub fn refuse_nothing(&mut self) {
        self.execute("DELETE FROM refused_claims; DELETE FROM refused_records");
    }

    /// Runs SQL statements.
    pub fn execute(&mut self, statements: &str) {
        self.0.batch_execute(statements).expect("the statements are valid");
    }

    fn sqlite(&mut self) -> &mut SqliteConnection {
        match &mut self.0 {
            AnyConnection::Sqlite(conn) => conn,
            AnyConnection::Postgres(_) => unreachable!("it was opened as SQLite"),
        }
    }
}
