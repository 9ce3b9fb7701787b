//! `redial doctor`: checks an installation without changing it. This file gathers facts; the others judge them.

mod broker;
mod database;
mod host;
mod network;
mod probe;
mod report;

use std::io::{self, Write};
use std::iter::once;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use dispatcher::{check_certificates, query_name_servers};
use queue::Broker;
use store::{
    AnyConnection, DatabaseFacts, DatabaseUrl, Keyring, SchemaState, StoreError, clock_offset,
    database_facts, open_secrets, schema_facts,
};

use self::database::Demand;
use self::host::Load;
use self::network::Listener;
use self::report::{Check, Report};
use crate::commands::{api, dispatcher as dispatcher_command};
use crate::keys;
use crate::open_files;
use crate::settings::{self, Settings, SettingsError};
use crate::traces::Traces;

/// Check this installation: database, broker, keys and host. Changes nothing.
///
/// Prints one line per check. The exit status is 1 if one found a problem.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON document instead.
    #[arg(long)]
    json: bool,
    /// How many apis and dispatchers share the database: half of them apis, rounded up.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    processes: u16,
}

/// Timeout of each thing that is asked. Longer than connecting takes at most.
const TIMEOUT: Duration = Duration::from_secs(12);
/// Stored secrets that are opened, in a fraction of a second.
const MOST_SECRETS: u32 = 10_000;

pub(crate) async fn run(settings: &Settings, config_file: Option<&Path>, args: Args) -> anyhow::Result<()> {
    let url = settings.database_url()?;
    let broker = match &url {
        DatabaseUrl::Postgres(_) => Some(settings.broker()?),
        DatabaseUrl::Sqlite(_) => None,
    };
    let keyring = keys::keyring_of(&url, settings);
    // Unlike bad settings, an unreadable key file is a finding.
    if keyring.as_ref().is_err_and(|error| error.is::<SettingsError>()) {
        return keyring.map(drop);
    }
    // Fails for an endpoint that no service would start with.
    Traces::start("redial-doctor", settings)?.stop().await;
    let (of_database, of_broker, of_host) = tokio::join!(
        check_database(&url, keyring, demand(&url, settings, args.processes)),
        check_broker(broker.as_ref()),
        check_host(settings, broker.is_some()),
    );
    let checks = [vec![check_settings(config_file)], of_database, of_broker, of_host];
    let report = Report::new(checks.into_iter().flatten().collect());
    let mut out = io::stdout().lock();
    match args.json {
        true => writeln!(out, "{}", serde_json::to_string(&report)?)?,
        false => report.write_lines(&mut out)?,
    }
    match report.problems() {
        0 => Ok(()),
        problems => bail!("{problems} problem(s) found"),
    }
}

/// The settings have been read; bad ones have ended the program as they end every command.
fn check_settings(config_file: Option<&Path>) -> Check {
    let file = config_file.unwrap_or(Path::new(settings::FILE));
    Check::ok(
        "settings",
        match file.exists() {
            true => format!("{} and the environment are valid", file.display()),
            false => "the environment is valid".to_owned(),
        },
    )
}

/// Returns the connections that `processes` open.
fn demand(url: &DatabaseUrl, settings: &Settings, processes: u16) -> Demand {
    let (apis, dispatchers) = (processes.div_ceil(2), processes / 2);
    let of = |count: u16, default: u32| {
        i64::from(count) * i64::from(settings.database.pool_size.unwrap_or(default))
    };
    let connections = of(apis, api::CONNECTIONS) + of(dispatchers, dispatcher_command::CONNECTIONS);
    Demand { processes, connections, is_pooled: url.is_pooled() }
}

async fn check_database(url: &DatabaseUrl, keyring: anyhow::Result<Keyring>, demand: Demand) -> Vec<Check> {
    let (place, facts) = (url.to_string(), url.inspect(TIMEOUT, database_facts).await);
    let mut checks = match facts {
        Ok(DatabaseFacts::Postgres(facts)) => database::server(&facts, &place, &demand),
        Ok(DatabaseFacts::Sqlite { file, journal_mode }) => match probe::file(Path::new(&file)) {
            Ok(facts) => host::sqlite_file(&file, &facts, &journal_mode),
            Err(error) => return unreachable(url, &error.to_string()),
        },
        Err(error) => return unreachable(url, &error.to_string()),
    };
    let schema = url.inspect(TIMEOUT, schema_facts).await;
    let fits = schema.as_ref().is_ok_and(|schema| schema.state == SchemaState::Fits);
    checks.push(judged("schema", schema, database::schema));
    checks.push(judged("clock", url.inspect(TIMEOUT, clock_offset).await, database::clock));
    checks.push(match keyring {
        Err(error) => Check::problem("keys", format!("{error:#}"), "restore the key file"),
        Ok(_) if !fits => Check::not_checked("keys", "the schema does not fit this program"),
        Ok(keyring) => {
            let open = move |conn: &mut AnyConnection| open_secrets(conn, &keyring, MOST_SECRETS);
            judged("keys", url.inspect(TIMEOUT, open).await, |opened| database::secrets(&opened))
        }
    });
    checks
}

fn judged<T>(check: &'static str, facts: Result<T, StoreError>, judge: impl FnOnce(T) -> Check) -> Check {
    match facts {
        Ok(facts) => judge(facts),
        Err(error) => {
            Check::problem(check, error.to_string(), "see the database's log, and the role's rights")
        }
    }
}

fn unreachable(url: &DatabaseUrl, why: &str) -> Vec<Check> {
    let (dependents, advice): (&[&str], &str) = match url {
        DatabaseUrl::Sqlite(_) => (&[], "correct database.url, or start `redial dev`, which makes the file"),
        DatabaseUrl::Postgres(_) if url.is_pooled() => (
            &database::OF_SERVER,
            "start PgBouncer and the server, with pool_mode transaction or session, or correct database.url",
        ),
        DatabaseUrl::Postgres(_) => (&database::OF_SERVER, "start it, or correct database.url"),
    };
    let not_checked = |check: &&'static str| Check::not_checked(check, "the database is not reachable");
    let mut checks = vec![Check::problem("database", format!("{url}: {why}"), advice)];
    checks.extend(dependents.iter().chain(&["schema", "clock", "keys"]).map(not_checked));
    checks
}

async fn check_broker(broker: Option<&Broker>) -> Vec<Check> {
    let Some(broker) = broker else {
        return vec![Check::ok("broker", "none: on SQLite the queue is inside the process")];
    };
    let dependents =
        |because: &str| broker::OF_SESSION.map(|check| Check::not_checked(check, because)).into_iter();
    let greeting = match broker.greeting().await {
        Ok(greeting) => greeting,
        Err(lost) => {
            let first = broker::unreachable(broker, &lost);
            return once(first).chain(dependents("the broker is not reachable")).collect();
        }
    };
    let Some(product) = greeting else {
        return once(broker::not_amqp(broker)).chain(dependents("it is no broker")).collect();
    };
    match broker.inspect().await {
        Ok(facts) => once(broker::reached(broker, &product)).chain(broker::session(&facts)).collect(),
        Err(lost) => {
            let first = broker::refused(broker, &product, &lost);
            once(first).chain(dependents("the broker refuses the connection")).collect()
        }
    }
}

async fn check_host(settings: &Settings, has_services: bool) -> Vec<Check> {
    let load = Load {
        max_in_flight: settings.dispatcher.max_in_flight.into(),
        workers: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        connections: settings.limits().connections,
    };
    let dispatcher = settings.dispatcher_settings();
    let name_servers = query_name_servers(dispatcher.connect_timeout.min(TIMEOUT)).await;
    let mut checks = vec![
        host::open_files(open_files::hard_limit(), &load),
        host::egress(&settings.egress_policy()),
        host::certificates(check_certificates(&dispatcher.certificates)),
        host::name_servers(name_servers.map_err(|error| error.to_string())),
    ];
    if has_services {
        checks.extend(check_listeners(settings).await);
    }
    checks
}

/// Checks the addresses of services. `redial dev` takes its own from the command line.
async fn check_listeners(settings: &Settings) -> [Check; 3] {
    const HEALTH: (&str, &str) = ("/v1/health", r#""status":"ok""#);
    const METRICS: (&str, &str) = ("/metrics", "redial_");
    let listener = |setting, address| Listener { setting, address };
    let api = listener("api.listen", Some(settings.api.listen));
    let dispatcher = listener("dispatcher.listen", settings.dispatcher.listen);
    let (metrics, unresolved) = match &settings.metrics.listen {
        Some(address) => match probe::local(address).await {
            Ok(own) => (Some(own), None),
            Err(error) => (None, Some(network::unresolved("metrics.listen", address, &error))),
        },
        None => (None, None),
    };
    let metrics = listener("metrics.listen", metrics);
    let port = async |listener: &Listener, (path, mark): (&str, &str)| match listener.address {
        Some(address) => Some(probe::port(address, path, mark).await),
        None => None,
    };
    let (of_api, of_dispatcher, of_metrics) =
        tokio::join!(port(&api, HEALTH), port(&dispatcher, HEALTH), port(&metrics, METRICS));
    let metrics = [metrics];
    [
        network::listener(&api, of_api.as_ref(), &metrics),
        network::listener(&dispatcher, of_dispatcher.as_ref(), &metrics),
        unresolved.unwrap_or_else(|| network::listener(&metrics[0], of_metrics.as_ref(), &[])),
    ]
}
