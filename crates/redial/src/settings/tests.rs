//! Precedence of the layers, and the keys in error messages.

use std::time::Duration;

use api::Rate;
use egress::Rules;
use queue::Broker;

use super::*;

fn read(file: &str, variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Settings::read(Some(("redial.toml", file)), &variables)
}

fn refused(file: &str, variables: &[(&str, &str)]) -> String {
    read(file, variables).err().unwrap_or_else(|| panic!("accepted: {file} {variables:?}")).to_string()
}

#[test]
fn the_documented_defaults_apply_without_a_file_or_environment() {
    let settings = Settings::read(None, &Variables::new()).unwrap();
    assert_eq!(settings.api.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(settings.api.max_body, 2 * 1024 * 1024);
    assert_eq!(settings.limits().page_bytes, 8 << 20);
    assert!(settings.api.trusted_proxies.is_empty() && settings.api.drain_delay.is_zero());
    assert_eq!(settings.database.pool_size, None);
    let limits = settings.limits();
    assert_eq!((limits.requests, limits.auth_failures), (None, Some(rate(300, 60, 300))));
    assert_eq!(settings.broker.queue, Broker::DEFAULT_QUEUE);
    assert_eq!((settings.dispatcher.listen, settings.dispatcher.max_in_flight), (None, 256));
    let within = settings.dispatcher_settings().limits;
    assert_eq!((within.max_in_flight_bytes, within.max_in_flight_per_destination), (64 << 20, 32));
    assert_eq!(within.retry.hold_cap, Duration::from_secs(900));
    assert_eq!(settings.egress_rules(), Rules::default());
    let DeliverySettings { timeout, connect_timeout, schedule, jitter, max_attempts, lease, .. } =
        settings.delivery;
    assert_eq!((timeout.as_secs(), connect_timeout.as_secs(), lease.as_secs()), (10, 5, 60));
    assert_eq!(
        schedule.iter().map(Duration::as_secs).collect::<Vec<_>>(),
        [10, 60, 300, 1800, 7200, 18000, 36000]
    );
    assert_eq!((jitter, max_attempts), (0.1, 8));
    assert_eq!(
        (settings.delivery.payload_format, settings.delivery.stop_on_gone),
        (PayloadFormat::Python, false)
    );
    assert_eq!(settings.secrets.keys.len(), 0);
    assert_eq!(settings.secrets.overlap, Duration::from_secs(24 * 3600));
}

#[test]
fn the_environment_overrides_the_file_and_the_file_overrides_the_defaults() {
    let file = "[delivery]\ntimeout = \"7s\"\nmax_attempts = 3\n[egress]\nallow = [\"10.0.0.0/8\"]";
    let settings = read(file, &[("REDIAL_DELIVERY__TIMEOUT", "8s")]).unwrap();
    assert_eq!(settings.delivery.timeout, Duration::from_secs(8));
    assert_eq!(settings.delivery.max_attempts, 3);
    assert_eq!(settings.delivery.connect_timeout, Duration::from_secs(5));
    assert_eq!(settings.egress.allow, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn a_destination_gets_an_eighth_of_the_slots_by_default() {
    let limit = |file| read(file, &[]).unwrap().dispatcher_settings().limits.max_in_flight_per_destination;
    assert_eq!(limit("[dispatcher]\nmax_in_flight = 80"), 10);
    assert_eq!(limit("[dispatcher]\nmax_in_flight = 3"), 1);
    assert_eq!(limit("[delivery]\nmax_in_flight_per_destination = 200"), 200);
}

#[test]
fn database_url_and_amqp_url_apply_when_redials_own_keys_are_unset() {
    let general = [("DATABASE_URL", "postgres://general/a"), ("AMQP_URL", "amqp://general")];
    let settings = read("[database]\nurl = \"\"", &general).unwrap();
    assert_eq!(settings.database_url().unwrap().to_string(), "postgres://general/a");
    assert_eq!(settings.broker.url.as_deref(), Some("amqp://general"));

    let file = "[database]\nurl = \"postgres://own/a\"\n[broker]\nurl = \"amqp://own\"";
    let settings = read(file, &general).unwrap();
    assert_eq!(settings.database_url().unwrap().to_string(), "postgres://own/a");
    assert_eq!(settings.broker.url.as_deref(), Some("amqp://own"));
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let variables = [("REDIAL_DELIVERY__TIMEOUT", ""), ("REDIAL_EGRESS__ALLOW", ""), ("DATABASE_URL", "")];
    let settings = read("[egress]\nallow = [\"::1/128\"]", &variables).unwrap();
    assert_eq!(settings.delivery.timeout, Duration::from_secs(10));
    assert_eq!(settings.egress.allow.len(), 1);
    assert!(settings.database_url().unwrap_err().to_string().contains("not set"));
}

#[test]
fn lists_in_the_environment_are_separated_by_commas() {
    let settings = read(
        "",
        &[
            ("REDIAL_DELIVERY__SCHEDULE", "1s, 2m,3h"),
            ("REDIAL_EGRESS__ALLOW", "127.0.0.0/8,::1/128"),
            ("REDIAL_SECRETS__KEYS", "a:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
        ],
    )
    .unwrap();
    assert_eq!(settings.delivery.schedule.iter().map(Duration::as_secs).collect::<Vec<_>>(), [1, 120, 10800]);
    assert_eq!(settings.egress.allow.len(), 2);
    settings.keyring().unwrap();
}

#[test]
fn the_dispatcher_gets_the_body_timeout_and_the_certificates() {
    let file =
        "[delivery]\nbody_timeout = \"250ms\"\n[egress]\nca_file = \"ca.pem\"\nclient_cert = \"own.pem\"";
    let dispatcher = read(file, &[]).unwrap().dispatcher_settings();
    assert_eq!(dispatcher.body_timeout, Duration::from_millis(250));
    assert_eq!(dispatcher.certificates.ca_file, Some("ca.pem".into()));
    assert_eq!(dispatcher.certificates.client_cert, Some("own.pem".into()));
    let default = read("", &[]).unwrap().dispatcher_settings();
    assert_eq!(default.body_timeout, Duration::from_secs(1));
    assert_eq!(default.certificates, dispatcher::Certificates::default());
}

#[test]
fn egress_rules_apply_as_configured() {
    let file = r#"
        [egress]
        allow = ["10.0.0.0/8"]
        deny = ["10.9.0.0/16", "8.8.8.0/24"]
        ports = [443, "8000-8002"]
        https_only = true
        nat64 = ["2001:db8:64::/96"]
    "#;
    let environment = [
        ("REDIAL_EGRESS__ALLOW", "10.0.0.0/8"),
        ("REDIAL_EGRESS__DENY", "10.9.0.0/16, 8.8.8.0/24"),
        ("REDIAL_EGRESS__PORTS", "443,8000-8002"),
        ("REDIAL_EGRESS__HTTPS_ONLY", "true"),
        ("REDIAL_EGRESS__NAT64", "2001:db8:64::/96"),
    ];
    for policy in [read(file, &[]), read("", &environment)].map(|settings| settings.unwrap().egress_policy())
    {
        for (url, refused) in [
            ("https://10.0.0.1/", None),
            ("https://10.9.0.1/", Some("address 10.9.0.1 is refused: denied by this installation")),
            ("https://8.8.8.8/", Some("address 8.8.8.8 is refused: denied by this installation")),
            ("https://example.com:8001/", None),
            ("https://example.com:8003/", Some("port 8003 is refused")),
            ("http://example.com:8001/", Some("http is refused: only https may be called")),
            ("https://[2001:db8:64::10.0.0.1]/", None),
            ("https://[2001:db8:64::127.0.0.1]/", Some("address 2001:db8:64::7f00:1 is refused: loopback")),
        ] {
            let judged = policy.judge_url(&egress::TargetUrl::parse(url).unwrap());
            assert_eq!(judged.err().map(|refused| refused.to_string()).as_deref(), refused, "{url}");
        }
    }
}

#[test]
fn the_overlap_of_secrets_is_configurable_and_may_be_zero() {
    let overlap = |file| read(file, &[]).unwrap().dispatcher_settings().secret_overlap;
    assert_eq!(overlap("[secrets]\noverlap = \"2days\""), Duration::from_secs(2 * 24 * 3600));
    assert_eq!(overlap("[secrets]\noverlap = \"0s\""), Duration::ZERO);
}

#[test]
fn sizes_are_bytes_or_have_a_unit() {
    for (text, bytes) in [("2048", 2048), ("\"2048\"", 2048), ("\"64KiB\"", 65536), ("\"1 MiB\"", 1 << 20)] {
        assert_eq!(read(&format!("[api]\nmax_body = {text}"), &[]).unwrap().api.max_body, bytes);
    }
}

fn rate(count: u32, seconds: u64, burst: u32) -> Rate {
    Rate::new(count.try_into().unwrap(), Duration::from_secs(seconds), burst.try_into().unwrap())
}

#[test]
fn rates_are_limited_as_configured_and_unlimited_if_zero() {
    let limits = |file: &str| read(file, &[]).unwrap().limits();
    let limited = limits("[api]\nrate_limit = 50\nrate_limit_burst = 20\nauth_failure_limit = 0");
    assert_eq!((limited.requests, limited.auth_failures), (Some(rate(50, 1, 20)), None));
    assert_eq!(limits("[api]\nrate_limit = 7").requests, Some(rate(7, 1, 100)));
    assert_eq!(limited.connections_of_client, Some(1024));
    assert_eq!(limits("[api]\nmax_connections_per_client = 0").connections_of_client, None);
    for highest in ["rate_limit", "rate_limit_burst", "auth_failure_limit", "max_connections_per_client"] {
        limits(&format!("[api]\n{highest} = 1000000"));
    }
}

#[test]
fn every_bad_value_is_refused_with_the_name_of_its_key() {
    for (key, value) in [
        ("database.url", "mysql://db/redial"),
        ("database.url", "redial.db"),
        ("database.url", "postgres://db1,,db2/redial"),
        ("database.url", "postgres://db1:5432,db2:high/redial"),
        ("broker.url", "http://rabbit"),
        ("broker.url", "rabbit"),
        ("broker.url", "amqp://mq1,,mq2"),
        ("broker.url", "amqp://mq1:5672,mq2:high"),
        ("api.listen", "localhost"),
        ("api.listen", ""), // in a file; an empty variable is unset
        ("api.max_body", "2GB"),
        ("api.max_body", "1"),
        ("retention.deliveries", "59s"),
        ("retention.runs", "30d"),
        ("api.max_page_bytes", "1KiB"),
        ("api.max_page_bytes", "17MiB"),
        ("api.trusted_proxies", "load-balancer"),
        ("api.drain_delay", "61s"),
        ("database.pool_size", "3"),
        ("api.max_body", "99999999999999999999"),
        ("api.rate_limit", "-1"),
        ("api.rate_limit", "1.5"),
        ("api.rate_limit", "1000001"),
        ("api.rate_limit_burst", "0"),
        ("api.rate_limit_burst", "1000001"),
        ("api.auth_failure_limit", "many"),
        ("api.auth_failure_limit", "1000001"),
        ("api.max_connections_per_client", "-1"),
        ("dispatcher.listen", "8080"),
        ("metrics.listen", "9464"),
        ("metrics.listen", "localhost"),
        ("metrics.listen", ":9464"),
        ("metrics.listen", "localhost:metrics"),
        ("dispatcher.max_in_flight", "0"),
        ("dispatcher.max_in_flight", "10001"),
        ("dispatcher.max_in_flight", "many"),
        ("dispatcher.max_in_flight_bytes", "0"),
        ("dispatcher.max_in_flight_bytes", "lots"),
        ("delivery.max_in_flight_per_destination", "0"),
        ("delivery.max_in_flight_per_destination", "257"),
        ("delivery.hold_cap", "15"),
        ("delivery.timeout", "10"),
        ("delivery.timeout", "0s"),
        ("delivery.timeout", "-1s"),
        ("delivery.timeout", "1y"),
        ("delivery.timeout", "60s"), // the error names the lease, see below
        ("delivery.connect_timeout", "11s"),
        ("delivery.body_timeout", "1"),
        ("delivery.schedule", "10s,soon"),
        ("delivery.schedule", ","),
        ("delivery.jitter", "1.1"),
        ("delivery.jitter", "-0.1"),
        ("delivery.jitter", "nan"),
        ("delivery.max_attempts", "0"),
        ("delivery.max_attempts", "101"),
        ("delivery.max_attempts", "2.5"),
        ("delivery.lease", "10s"),
        ("delivery.payload_format", "yaml"),
        ("delivery.stop_on_gone", "yes"),
        ("egress.allow", "10.0.0.0/8,localhost"),
        ("egress.deny", "10.0.0.0/8,example.com"),
        ("egress.deny", "10.0.0.0/33"),
        ("egress.ports", "0"),
        ("egress.ports", "65536"),
        ("egress.ports", "443-80"),
        ("egress.ports", "https"),
        ("egress.ports", ","),
        ("egress.https_only", "yes"),
        ("egress.nat64", "2001:db8:64::/95"),
        ("egress.nat64", "2001:db8:0:0:100::/96"),
        ("egress.nat64", "10.0.0.0/32"),
        ("egress.nat64", "nat64"),
        ("secrets.overlap", "24"),
        ("secrets.overlap", "29days"),
        ("log.filter", "redial=loud"),
        ("log.format", "xml"),
    ] {
        let (section, name) = key.split_once('.').unwrap();
        let named = if (key, value) == ("delivery.timeout", "60s") { "delivery.lease" } else { key };
        let error = refused(&format!("[{section}]\n{name} = \"{value}\""), &[]);
        assert!(error.starts_with(named), "{key} = {value}, file: {error}");
        if !value.is_empty() {
            let variable = format!("REDIAL_{}__{}", section.to_uppercase(), name.to_uppercase());
            let error = refused("", &[(&variable, value)]);
            assert!(error.starts_with(named), "{variable}={value}: {error}");
        }
    }
}

#[test]
fn values_of_the_wrong_type_are_refused_with_the_name_of_their_key() {
    for (key, value) in [
        ("delivery.timeout", "10"),
        ("delivery.timeout", "[\"10s\"]"),
        ("delivery.max_attempts", "2.5"),
        ("delivery.max_attempts", "true"),
        ("delivery.schedule", "{ first = \"10s\" }"),
        ("delivery.schedule", "[]"),
        ("database.url", "{ host = \"db\" }"),
        ("secrets.keys", "[[\"a:secretmaterial\"]]"),
    ] {
        let (section, name) = key.split_once('.').unwrap();
        let error = refused(&format!("[{section}]\n{name} = {value}"), &[]);
        assert!(error.starts_with(key) && !error.contains("secretmaterial"), "{key} = {value}: {error}");
    }
}

#[test]
fn unknown_keys_are_named_in_the_file_and_in_the_environment() {
    assert_eq!(refused("[delivery]\ntimeot = \"1s\"", &[]), "unknown key delivery.timeot in redial.toml");
    assert_eq!(refused("[delivry]\n", &[]), "unknown key delivry in redial.toml");
    assert_eq!(refused("timeout = \"1s\"", &[]), "unknown key timeout in redial.toml");
    assert_eq!(
        refused("", &[("REDIAL_DELIVERY__TIMEOT", "1s")]),
        "unknown key delivery.timeot in the environment (REDIAL_DELIVERY__TIMEOT)"
    );
    assert!(refused("", &[("REDIAL_DELIVERY__TIMEOUT__X", "1s")]).contains("delivery.timeout.x"));
    assert!(refused("", &[("REDIAL___X", "1")]).contains("REDIAL___X"));
}

#[test]
fn a_variable_that_lacks_an_underscore_is_refused_and_other_programs_variables_are_ignored() {
    let error = refused("", &[("REDIAL_DELIVERY_MAX_ATTEMPTS", "1")]);
    assert!(error.starts_with("delivery.max_attempts: "), "{error}");
    read("", &[("REDIAL_PORT", "tcp://10.0.0.1:80"), ("REDIAL_API_SERVICE_HOST", "10.0.0.1")]).unwrap();
}

#[test]
fn a_broken_file_is_refused_with_its_line_number_but_not_its_text() {
    let error = refused("[secrets]\nkeys = [\"a:secretmaterial]\n", &[]);
    assert!(error.starts_with("redial.toml, line 2: ") && !error.contains("secretmaterial"), "{error}");
}

#[test]
fn urls_and_keys_are_checked_when_a_command_needs_them() {
    let settings = read("", &[("DATABASE_URL", "mysql://db/x"), ("AMQP_URL", "redis://mq")]).unwrap();
    assert!(settings.database_url().unwrap_err().to_string().starts_with("database.url (or DATABASE_URL): "));
    assert!(settings.broker().unwrap_err().to_string().starts_with("broker.url (or AMQP_URL): "));
    assert!(settings.keyring().unwrap_err().to_string().starts_with("secrets.keys"));

    let settings =
        read("", &[("DATABASE_URL", "sqlite:redial.db"), ("REDIAL_BROKER__QUEUE", "amq.mine")]).unwrap();
    settings.database_url().unwrap();
    assert!(settings.postgres_url().unwrap_err().to_string().starts_with("database.url (or DATABASE_URL): "));
    let settings = read("", &[("AMQP_URL", "amqp://mq"), ("REDIAL_BROKER__QUEUE", "amq.mine")]).unwrap();
    assert!(settings.broker().unwrap_err().to_string().starts_with("broker.queue: "));
}

#[test]
fn the_printed_configuration_parses_back_to_the_same() {
    let file = r#"
        [delivery]
        lease = "90s"
        [egress]
        allow = ["10.0.0.0/8"]
        ports = [80, "8000-8002"]
        nat64 = ["64:ff9b::/96"]
    "#;
    let settings = read(file, &[]).unwrap();
    let shown = toml::to_string(&settings).unwrap();
    assert_eq!(toml::to_string(&read(&shown, &[]).unwrap()).unwrap(), shown);
}
