//! Judges RabbitMQ: the connection, the queue, the user's rights.

use queue::{Broker, BrokerFacts, Lost, Publishing, QueueState, Refused};

use super::report::Check;

/// The oldest version that tests run on.
const OLDEST_RABBITMQ: (u32, u32) = (3, 10);

/// The checks that depend on `broker`.
pub(super) const OF_SESSION: [&str; 4] =
    ["broker.queue", "broker.rights", "broker.publishing", "broker.parked"];

const CHECK: &str = "broker";

/// It accepts connections. `product` is what it states, such as `RabbitMQ 3.10.8`.
pub(super) fn reached(broker: &Broker, product: &str) -> Check {
    let found = format!("{product} at {broker}");
    match version(product) {
        Some(version) if version < OLDEST_RABBITMQ => {
            let (major, minor) = OLDEST_RABBITMQ;
            let oldest = format!("the oldest version that Redial is tested with is RabbitMQ {major}.{minor}");
            Check::warning(CHECK, found, format!("upgrade it: {oldest}"))
        }
        _ => Check::ok(CHECK, found),
    }
}

/// It was reached but did not accept the connection.
pub(super) fn refused(broker: &Broker, product: &str, lost: &Lost) -> Check {
    let advice = match lost.refused() {
        Some(Refused::Credentials) => "correct the user or password in broker.url",
        Some(Refused::VirtualHost) => {
            "create the virtual host, give the user permissions in it, or correct broker.url"
        }
        None => "see the broker's log",
    };
    Check::problem(CHECK, format!("{product} at {broker}: {lost}"), advice)
}

pub(super) fn unreachable(broker: &Broker, lost: &Lost) -> Check {
    let advice = "start it, or correct broker.url: meanwhile deliveries are served from the database, two seconds later";
    Check::problem(CHECK, format!("{broker}: {lost}"), advice)
}

pub(super) fn not_amqp(broker: &Broker) -> Check {
    let found = format!("{broker}: it does not speak AMQP 0-9-1");
    Check::problem(CHECK, found, "give RabbitMQ's address and its AMQP port in broker.url")
}

/// Returns the major and minor version of a `PRODUCT VERSION`.
fn version(greeting: &str) -> Option<(u32, u32)> {
    let mut parts = greeting.rsplit(' ').next()?.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn session(facts: &BrokerFacts) -> Vec<Check> {
    vec![queue(facts), rights(facts), publishing(&facts.publishing), parked(facts.parked)]
}

fn queue(facts: &BrokerFacts) -> Check {
    const CHECK: &str = "broker.queue";
    match &facts.queue {
        QueueState::AsDeclared => Check::ok(CHECK, "a quorum queue with the expected arguments"),
        QueueState::Missing if facts.may_configure => {
            Check::ok(CHECK, "it does not exist yet; the first api or dispatcher declares it")
        }
        QueueState::Missing => Check::problem(
            CHECK,
            "it does not exist, and the user may not declare it",
            "give the user the rights to configure and read it and to write to amq.default, or declare it, as a quorum queue",
        ),
        QueueState::Unknown => Check::ok(
            CHECK,
            "it exists and is used as it is; without the right to configure it its arguments can't be compared",
        ),
        QueueState::Different(difference) => Check::warning(
            CHECK,
            format!("it exists with other arguments and is used as it is: {difference}"),
            "delete it, and it is declared anew when a service reconnects, or name another one in broker.queue; doorbells in \
             it are no lost work",
        ),
        QueueState::Unusable(reason) => {
            Check::problem(CHECK, reason, "delete it, or name another one in broker.queue")
        }
    }
}

fn rights(facts: &BrokerFacts) -> Check {
    const CHECK: &str = "broker.rights";
    let may_write = facts.publishing != Publishing::Refused;
    let missing: Vec<&str> = [
        (facts.may_read, "read the queue (to consume)"),
        (may_write, "write to amq.default (the default exchange, to publish)"),
    ]
    .into_iter()
    .filter_map(|(may, what)| (!may).then_some(what))
    .collect();
    if missing.is_empty() {
        let configure = if facts.may_configure { "may" } else { "may not" };
        return Check::ok(
            CHECK,
            format!("the user may publish and consume, and {configure} declare the queue"),
        );
    }
    let found = format!("the user may not {}", missing.join(" nor "));
    Check::problem(CHECK, found, "extend the user's permissions with `rabbitmqctl set_permissions`")
}

fn publishing(publishing: &Publishing) -> Check {
    const CHECK: &str = "broker.publishing";
    match publishing {
        Publishing::Accepted => Check::ok(CHECK, "no alarm blocks publishers"),
        Publishing::Refused => Check::not_checked(CHECK, "the user may not publish"),
        Publishing::Blocked(reason) => Check::problem(
            CHECK,
            format!("the broker blocks publishers: {reason}"),
            "give it memory or disk space: meanwhile doorbells are dropped, and deliveries are served two seconds later",
        ),
    }
}

fn parked(parked: Option<u32>) -> Check {
    const CHECK: &str = "broker.parked";
    match parked {
        None => Check::ok(CHECK, "there is no parked queue"),
        Some(0) => Check::ok(CHECK, "no messages are parked"),
        Some(count) => Check::warning(
            CHECK,
            format!("{count} messages were delivered too often and are parked"),
            "look for crashes in the dispatchers' logs, then purge the parked queue; they are no lost work",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::report::Status;

    fn sound() -> BrokerFacts {
        BrokerFacts {
            queue: QueueState::AsDeclared,
            parked: Some(0),
            may_configure: true,
            may_read: true,
            publishing: Publishing::Accepted,
        }
    }

    #[test]
    fn what_services_can_work_with_is_no_problem_and_what_they_can_not_is_one() {
        use Status::{Problem, Warning};
        let blocked = Publishing::Blocked("low on disk".into());
        let different = QueueState::Different("inequivalent arg".into());
        let locked = QueueState::Unusable("RESOURCE_LOCKED".into());
        let readable = BrokerFacts { may_configure: false, ..sound() };
        for (facts, found) in [
            (sound(), vec![]),
            (BrokerFacts { queue: QueueState::Unknown, parked: None, ..readable.clone() }, vec![]),
            (BrokerFacts { queue: QueueState::Missing, ..sound() }, vec![]),
            (BrokerFacts { queue: QueueState::Missing, ..readable }, vec![("broker.queue", Problem)]),
            (BrokerFacts { queue: different, ..sound() }, vec![("broker.queue", Warning)]),
            (BrokerFacts { queue: locked, ..sound() }, vec![("broker.queue", Problem)]),
            (BrokerFacts { may_read: false, ..sound() }, vec![("broker.rights", Problem)]),
            (
                BrokerFacts { publishing: Publishing::Refused, ..sound() },
                vec![("broker.rights", Problem), ("broker.publishing", Status::NotChecked)],
            ),
            (BrokerFacts { publishing: blocked, ..sound() }, vec![("broker.publishing", Problem)]),
            (BrokerFacts { parked: Some(7), ..sound() }, vec![("broker.parked", Warning)]),
        ] {
            let checks = session(&facts);
            assert_eq!(checks.len(), OF_SESSION.len());
            let judged = checks.into_iter().map(|check| (check.check, check.status));
            assert_eq!(judged.filter(|(_, status)| *status != Status::Ok).collect::<Vec<_>>(), found);
        }
    }

    #[test]
    fn versions_older_than_the_tested_ones_are_a_warning() {
        let broker = Broker::parse("amqp://localhost", "q").unwrap();
        for (product, status) in [
            ("RabbitMQ 3.10.8", Status::Ok),
            ("RabbitMQ 4.0.3", Status::Ok),
            ("RabbitMQ 3.9.29", Status::Warning),
            ("Another", Status::Ok),
        ] {
            assert_eq!(reached(&broker, product).status, status, "{product}");
        }
    }
}
