//! A database in memory, for tests that make their own transactions fail.

use diesel::Connection;
use diesel::connection::SimpleConnection;
use diesel::result::Error;
use store::{AnyConnection, DatabaseUrl};

/// A migrated SQLite database that nobody else sees and nothing survives.
pub struct MemoryDatabase(AnyConnection);

/// What becomes of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It commits, and its caller learns so.
    Committed,
    /// The database goes away before it commits.
    RolledBack,
    /// It commits, and the connection is lost before its caller learns so.
    AnswerLost,
}

impl Default for MemoryDatabase {
    fn default() -> MemoryDatabase {
        let url = DatabaseUrl::Sqlite(":memory:".into());
        let mut conn = url.connect().expect("a database in memory can be opened");
        store::migrate(&mut conn).expect("the migrations apply");
        MemoryDatabase(conn)
    }
}

impl MemoryDatabase {
    /// Runs `work` in a transaction of that fate, and returns what its caller learns. An error of `work` itself rolls it
    /// back.
    pub fn transaction<T, E: From<Error>>(
        &mut self,
        fate: Fate,
        work: impl FnOnce(&mut AnyConnection) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let mut refused = None;
        let ended = self.0.transaction(|tx| match work(tx) {
            Ok(_) if fate == Fate::RolledBack => Err(Error::RollbackTransaction),
            Ok(answer) => Ok(answer),
            Err(error) => {
                refused = Some(error);
                Err(Error::RollbackTransaction)
            }
        });
        match (ended, refused) {
            (_, Some(error)) => Err(error),
            (Ok(answer), None) => Ok(Some(answer).filter(|_| fate == Fate::Committed)),
            (Err(Error::RollbackTransaction), None) => Ok(None),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// Runs statements.
    pub fn execute(&mut self, statements: &str) {
        self.0.batch_execute(statements).expect("the statements are good");
    }
}
