//! A PgBouncer per test.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use store::DatabaseUrl;
use tempfile::TempDir;

use crate::{Process, TestDatabase};

/// A PgBouncer in front of a database's server, with two server sessions in total.
pub struct Pooler {
    address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

impl Pooler {
    /// Starts one with a `pool_mode`, such as `transaction`, and waits until it listens.
    pub fn start(database: &TestDatabase, pool_mode: &str) -> Pooler {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = unused.local_addr().expect("a bound socket has an address");
        drop(unused);
        let (server, place) = (database.server(), directory.path().display());
        let config = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             auth_type = trust\nauth_file = {place}/users\nunix_socket_dir =\nlogfile = {place}/log\n\
             pool_mode = {pool_mode}\ndefault_pool_size = 2\n",
            server.ip(),
            server.port(),
            address.port()
        );
        let (user, password) = database.credentials();
        let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text);
        write("config", config).expect("the directory can be written");
        write("users", format!("\"{user}\" \"{password}\"\n")).expect("the directory can be written");
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777))
            .expect("the directory is ours");
        let mut command = Command::new("/usr/sbin/pgbouncer");
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "nobody"]); // it refuses to run as root
        }
        command.arg("--quiet").arg(directory.path().join("config"));
        let process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
            .expect("tests need Debian's package pgbouncer");
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "PgBouncer does not listen");
            std::thread::yield_now();
        }
        Pooler { address, _process: process, _directory: directory }
    }

    /// Returns the database's URL through the pooler, without `pgbouncer=true`.
    pub fn undeclared(&self, database: &TestDatabase) -> DatabaseUrl {
        database.url_through(self.address)
    }

    /// Returns the database's URL through the pooler, with `pgbouncer=true`.
    pub fn url(&self, database: &TestDatabase) -> DatabaseUrl {
        let DatabaseUrl::Postgres(url) = self.undeclared(database) else { panic!("a PostgreSQL URL") };
        let joint = if url.contains('?') { '&' } else { '?' };
        format!("{url}{joint}pgbouncer=true").parse().expect("a PostgreSQL URL")
    }
}
