//! Runs through PgBouncer in transaction mode, which may run each transaction in a different server session.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ::store::{DatabaseUrl, Redelivery, Store, StoreError, redeliver};
use tempfile::TempDir;
use testkit::{Backend, TestDatabase};

use crate::stage::{POLICY, Stage};

/// The test's own PgBouncer, with two server sessions in total.
struct Pooler {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Pooler {
    fn start(database: &TestDatabase) -> Pooler {
        let directory = tempfile::tempdir().unwrap();
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let server = database.server();
        let place = directory.path().display();
        let config = format!(
            "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             auth_type = trust\nauth_file = {place}/users\nunix_socket_dir =\nlogfile = {place}/log\n\
             pool_mode = transaction\ndefault_pool_size = 2\n",
            server.ip(),
            server.port(),
            address.port()
        );
        std::fs::write(directory.path().join("config"), config).unwrap();
        let (user, password) = database.credentials();
        std::fs::write(directory.path().join("users"), format!("\"{user}\" \"{password}\"\n")).unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new("/usr/sbin/pgbouncer");
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "nobody"]); // it refuses to run as root
        }
        let process = command
            .arg("--quiet")
            .arg(directory.path().join("config"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests need Debian's package pgbouncer");
        let pooler = Pooler { process, address, _directory: directory };
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(std::time::Instant::now() < deadline, "PgBouncer does not listen");
            std::thread::yield_now();
        }
        pooler
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the URL through the pooler, with `pgbouncer=true`.
fn through(database: &TestDatabase, pooler: &Pooler) -> DatabaseUrl {
    let DatabaseUrl::Postgres(url) = database.url_through(pooler.address) else { panic!("a PostgreSQL URL") };
    let joint = if url.contains('?') { '&' } else { '?' };
    format!("{url}{joint}pgbouncer=true").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_many_connections_share_a_few_sessions() {
    let mut stage = Stage::new(Backend::Postgres);
    let pooler = Pooler::start(&stage.database);
    let stores = [
        Store::open(&through(&stage.database, &pooler), 8).await.unwrap(),
        Store::open(&through(&stage.database, &pooler), 8).await.unwrap(),
    ];
    let runs: Vec<_> = (0..200).map(|_| stage.run()).collect();
    let org = stage.org;
    // Twice as many at once as there are connections.
    for together in runs.chunks(32) {
        let asked = together.iter().enumerate().map(|(n, run)| {
            let (store, run) = (stores[n % 2].clone(), *run);
            tokio::spawn(async move {
                store.write(move |tx, now| redeliver(tx, now, &POLICY, org, run, "r".into())).await.unwrap()
            })
        });
        for answer in asked.collect::<Vec<_>>() {
            assert!(matches!(answer.await.unwrap(), Redelivery::Accepted(_)));
        }
    }
    for store in &stores {
        store.ping().await.unwrap();
        assert!(store.complete_until().await.unwrap().is_some());
        let counted = store.read(move |tx| ::store::count_deliveries(tx, org)).await.unwrap();
        assert_eq!(counted.values().sum::<i64>(), 200);
    }
}

/// It fails at connect, not at the first statement that was prepared in another session.
#[tokio::test]
async fn a_pooler_that_the_url_does_not_declare_is_refused_with_advice() {
    let database = TestDatabase::new(Backend::Postgres);
    let pooler = Pooler::start(&database);
    let refused = database.url_through(pooler.address).connect().map(drop).unwrap_err().to_string();
    assert!(refused.contains("add pgbouncer=true to the database's url"), "{refused}");
    let refused = Store::open(&database.url_through(pooler.address), 2).await.map(drop);
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
}
