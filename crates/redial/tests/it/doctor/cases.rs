//! Installations that are broken in one place.

use testkit::TestDatabase;

use super::{COUNT, Installation, checks, findings, report, with_user};
use crate::cli::Cli;
use crate::system::shared_broker;

const OTHER_KEY: &str = "Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=";

/// An installation that is broken on purpose, and what must be found: one thing.
struct Case {
    name: &'static str,
    broken: fn(&Installation, Cli) -> Cli,
    check: &'static str,
    status: &'static str,
    says: &'static str,
}

fn alter(database: &TestDatabase, change: &str) {
    database.execute(&format!(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I {change}', current_database()); END $$"
    ));
}

const CASES: [Case; 21] = [
    Case {
        name: "nothing listens at the database's address",
        broken: |_, cli| cli.with("DATABASE_URL", "postgres://127.0.0.1:1/redial"),
        check: "database",
        status: "problem",
        says: "start it, or correct database.url",
    },
    Case {
        name: "the database's role does not exist",
        broken: |it, cli| {
            let url = format!("postgres://nobody_of_this_name:wrong@{}/postgres", it.database.server());
            cli.with("DATABASE_URL", &url)
        },
        check: "database",
        status: "problem",
        says: "nobody_of_this_name",
    },
    Case {
        name: "the database is marked read-only",
        broken: |it, cli| {
            alter(&it.database, "SET default_transaction_read_only = on");
            cli
        },
        check: "database.writes",
        status: "warning",
        says: "default_transaction_read_only is on",
    },
    Case {
        name: "commits don't wait for the disk",
        broken: |it, cli| {
            alter(&it.database, "SET synchronous_commit = off");
            cli
        },
        check: "database.synchronous_commit",
        status: "warning",
        says: "set it to on",
    },
    Case {
        name: "the pools are larger than the server allows",
        broken: |_, cli| cli.with("REDIAL_DATABASE__POOL_SIZE", "1000"),
        check: "database.connections",
        status: "problem",
        says: "2 processes need up to 2000 of ",
    },
    Case {
        name: "the database was never migrated",
        broken: |it, cli| {
            it.database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
            cli
        },
        check: "schema",
        status: "problem",
        says: "run `redial migrate`",
    },
    Case {
        name: "the schema is older than the program",
        broken: |it, cli| {
            it.database.execute("DELETE FROM __diesel_schema_migrations WHERE version > '00000000000012'");
            cli
        },
        check: "schema",
        status: "problem",
        says: "migrations up to 12 are applied",
    },
    Case {
        name: "the schema admits only newer programs",
        broken: |it, cli| {
            it.database.execute(
                "INSERT INTO __diesel_schema_migrations (version) VALUES ('00000000000101');
                 INSERT INTO schema_admits VALUES (101, 100)",
            );
            cli
        },
        check: "schema",
        status: "problem",
        says: "it admits programs from schema 100 on",
    },
    Case {
        name: "the database's clock is an hour ahead",
        broken: |it, cli| {
            it.database.execute(
                "CREATE SCHEMA ahead;
                 CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql
                     AS $$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$",
            );
            alter(&it.database, "SET search_path = ahead, public, pg_catalog");
            cli
        },
        check: "clock",
        status: "warning",
        says: " s ahead of this host's",
    },
    Case {
        name: "the key of the secrets is missing",
        broken: |_, cli| cli.with("REDIAL_SECRETS__KEYS", &format!("other:{OTHER_KEY}")),
        check: "keys",
        status: "problem",
        says: "1 signing secret(s) are sealed with key \"test\" and can't be opened",
    },
    Case {
        name: "one of two secrets is sealed with another key of the same name",
        broken: |it, cli| {
            let org = it.cli().ok(&["org", "create", "other"]);
            let other = it.cli().with("REDIAL_SECRETS__KEYS", &format!("test:{OTHER_KEY}"));
            other.ok(&["secret", "create", "--org", &org]);
            cli
        },
        check: "keys",
        status: "problem",
        says: "of 2 signing secrets 2 were tried: 1 signing secret(s)",
    },
    Case {
        name: "nothing listens at the broker's address",
        broken: |_, cli| cli.with("AMQP_URL", "amqp://127.0.0.1:1"),
        check: "broker",
        status: "problem",
        says: "start it, or correct broker.url",
    },
    Case {
        name: "the broker's password is wrong",
        broken: |_, cli| cli.with("AMQP_URL", &with_user(&shared_broker(), "guest", "wrong")),
        check: "broker",
        status: "problem",
        says: "correct the user or password",
    },
    Case {
        name: "the virtual host does not exist",
        broken: |_, cli| cli.with("AMQP_URL", &shared_broker().replace("/%2f", "/nowhere")),
        check: "broker",
        status: "problem",
        says: "create the virtual host",
    },
    Case {
        name: "the broker's address is the database's",
        broken: |it, cli| cli.with("AMQP_URL", &format!("amqp://{}", it.database.server())),
        check: "broker",
        status: "problem",
        says: "correct broker.url",
    },
    Case {
        name: "another program has the api's port",
        broken: |it, cli| cli.with("REDIAL_API__LISTEN", &it.taken.local_addr().unwrap().to_string()),
        check: "api.listen",
        status: "warning",
        says: "is taken by another program",
    },
    Case {
        name: "the api's address is another host's",
        broken: |_, cli| cli.with("REDIAL_API__LISTEN", "192.0.2.1:8080"),
        check: "api.listen",
        status: "problem",
        says: "give an address of this host",
    },
    Case {
        name: "the metrics' address is another host's",
        broken: |_, cli| cli.with("REDIAL_METRICS__LISTEN", "192.0.2.1:9464"),
        check: "metrics.listen",
        status: "problem",
        says: "give an address of this host, or a name that has one",
    },
    Case {
        name: "a dispatcher would listen twice on one port",
        broken: |_, cli| {
            cli.with("REDIAL_DISPATCHER__LISTEN", "0.0.0.0:18099")
                .with("REDIAL_METRICS__LISTEN", "127.0.0.1:18099")
        },
        check: "dispatcher.listen",
        status: "problem",
        says: "is also metrics.listen",
    },
    Case {
        name: "callbacks may call a private network",
        broken: |_, cli| cli.with("REDIAL_EGRESS__ALLOW", "10.1.2.0/24,93.184.216.0/24"),
        check: "egress",
        status: "warning",
        says: "callbacks may also call 10.1.2.0/24 (private network);",
    },
    Case {
        name: "a certificate file is missing",
        broken: |_, cli| cli.with("REDIAL_EGRESS__CA_FILE", "missing.pem"),
        check: "certificates",
        status: "problem",
        says: "egress.ca_file",
    },
];

#[test]
fn each_broken_installation_is_found_by_one_line_that_says_what_to_do() {
    for Case { name, broken, check, status, says } in CASES {
        let installation = Installation::new();
        let cli = broken(&installation, installation.cli());
        let report = report(&cli.run(&["doctor", "--json"]));
        let [found] = &findings(&report)[..] else { panic!("{name}: {report:#}") };
        assert_eq!((found.0, found.1), (check, status), "{name}: {found:?}");
        assert!(found.2.contains(says) && !found.2.ends_with("; "), "{name}: {found:?}");
        assert_eq!(checks(&report).count(), COUNT, "{name}: {report:#}");
    }
}
