//! A database per test, on PostgreSQL or SQLite.

use std::net::{SocketAddr, ToSocketAddrs};

use diesel::connection::SimpleConnection;
use diesel::sql_types::BigInt;
use diesel::{Connection, PgConnection, RunQueryDsl};
use store::{AnyConnection, Clock, DatabaseUrl, Store};
use uuid::Uuid;

/// The database that a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Backend {
    Postgres,
    Sqlite,
}

/// A database that is removed when dropped.
pub struct TestDatabase {
    url: DatabaseUrl,
    place: Place,
}

/// Locks rows until dropped.
pub struct RowLock(AnyConnection);

impl Drop for RowLock {
    fn drop(&mut self) {
        // Closing the connection alone would release the locks only some time later.
        let _ = self.0.batch_execute("ROLLBACK");
    }
}

enum Place {
    Postgres { server: String, name: String },
    Sqlite { _directory: tempfile::TempDir },
}

impl TestDatabase {
    /// Creates a migrated database.
    pub fn new(backend: Backend) -> TestDatabase {
        let database = Self::empty(backend);
        store::migrate(&mut database.url.connect().expect("the new database can be opened"))
            .expect("the migrations apply");
        database
    }

    /// Creates a database without tables.
    pub fn empty(backend: Backend) -> TestDatabase {
        match backend {
            Backend::Postgres => {
                let server = std::env::var("DATABASE_URL")
                    .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".into());
                let name = format!("redial_test_{}", Uuid::new_v4().simple());
                administer(&server, &format!("CREATE DATABASE {name}"));
                let url = with_database(&server, &name).parse().expect("a PostgreSQL URL");
                TestDatabase { url, place: Place::Postgres { server, name } }
            }
            Backend::Sqlite => {
                let directory = tempfile::tempdir().expect("a temporary directory");
                let path = directory.path().join("redial.db");
                let url = DatabaseUrl::Sqlite(path.to_str().expect("a path in UTF-8").to_owned());
                TestDatabase { url, place: Place::Sqlite { _directory: directory } }
            }
        }
    }

    /// Returns the database's URL.
    pub fn url(&self) -> &DatabaseUrl {
        &self.url
    }

    /// Returns the PostgreSQL server's address, for a [`crate::Proxy`] in front of it.
    pub fn server(&self) -> SocketAddr {
        let DatabaseUrl::Postgres(url) = &self.url else { panic!("a file has no address") };
        let authority = authority(url);
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:5432") };
        let resolved = host.to_socket_addrs().ok().and_then(|mut addresses| addresses.next());
        resolved.expect("DATABASE_URL names a host")
    }

    /// Returns the user's name and password; empty if not set.
    pub fn credentials(&self) -> (String, String) {
        let DatabaseUrl::Postgres(url) = &self.url else { panic!("a file has no user") };
        let user = authority(url).rsplit_once('@').map_or("", |(user, _)| user);
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        (name.to_owned(), password.to_owned())
    }

    /// Returns the database's URL with `addr` in place of the server's address.
    pub fn url_through(&self, addr: SocketAddr) -> DatabaseUrl {
        let DatabaseUrl::Postgres(url) = &self.url else { panic!("a file has no address") };
        let authority = authority(url);
        let through = match authority.rsplit_once('@') {
            Some((user, _)) => format!("{user}@{addr}"),
            None => addr.to_string(),
        };
        url.replacen(authority, &through, 1).parse().expect("a PostgreSQL URL")
    }

    /// Runs SQL statements.
    pub fn execute(&self, statements: &str) {
        let mut conn = self.url.connect().expect("the database can be opened");
        conn.batch_execute(statements).expect("the statements are valid");
    }

    /// Runs a query that returns a single number.
    pub fn number(&self, query: &str) -> i64 {
        let mut conn = self.url.connect().expect("the database can be opened");
        diesel::dsl::sql::<BigInt>(query).get_result(&mut conn).expect("the query is valid")
    }

    /// Locks rows in another session. `rows` is a table and a condition: `deliveries WHERE id = …`.
    /// PostgreSQL only.
    pub fn lock(&self, rows: &str) -> RowLock {
        let mut conn = self.url.connect().expect("the database can be opened");
        let begin = "SET idle_in_transaction_session_timeout = 0; BEGIN";
        conn.batch_execute(&format!("{begin}; SELECT 1 FROM {rows} FOR UPDATE"))
            .expect("the statement is valid");
        RowLock(conn)
    }

    /// Opens a store with the system's clock.
    pub async fn store(&self) -> Store {
        Store::open(&self.url, 8).await.expect("the database can be opened")
    }

    /// Opens a store with a clock that the test controls.
    pub async fn store_with_clock(&self, clock: Clock) -> Store {
        Store::open_with_clock(&self.url, 8, clock).await.expect("the database can be opened")
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Place::Postgres { server, name } = &self.place {
            administer(server, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

fn administer(server: &str, statement: &str) {
    let mut conn = PgConnection::establish(server).unwrap_or_else(|error| {
        panic!("tests need PostgreSQL at {server} (or set DATABASE_URL): {error}");
    });
    conn.batch_execute(statement).expect("the test user may create databases");
}

/// Returns the URL of another database on the same server.
fn with_database(server: &str, name: &str) -> String {
    let (base, query) = server.split_once('?').map_or((server, None), |(base, query)| (base, Some(query)));
    let (scheme, _) = base.split_once("://").expect("DATABASE_URL is a postgres:// URL");
    let authority = authority(base);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{scheme}://{authority}/{name}{query}")
}

/// Returns the part of a URL with user, password, host and port.
fn authority(url: &str) -> &str {
    let (_, rest) = url.split_once("://").expect("DATABASE_URL is a postgres:// URL");
    rest.split(['/', '?']).next().unwrap_or(rest)
}
