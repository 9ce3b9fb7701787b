//! Report of measurements, as text and as JSON.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use testkit::percentile;

use crate::cost::{Component, Cost};
use crate::load::Rate;
use crate::{Arguments, Mode};

/// Results of one run of this program.
#[derive(Serialize)]
pub(crate) struct Report {
    mode: Mode,
    payload: usize,
    clients: usize,
    dispatchers: usize,
    destinations: u32,
    history: usize,
    is_slow: bool,
    is_embedded: bool,
    /// Latency from request to arrival, one redelivery at a time.
    idle: Option<Latency>,
    phases: Vec<Phase>,
    /// Total cost in mode `idle`: CPU time in microseconds, bytes and transactions.
    at_rest: Option<AtRest>,
}

#[derive(Serialize)]
struct AtRest {
    seconds: u64,
    cost: Cost,
}

#[derive(Serialize)]
struct Phase {
    rate: Rate,
    deliveries: usize,
    accepted_per_second: f64,
    delivered_per_second: f64,
    answer: Latency,
    arrival: Latency,
    cost: Cost,
    /// Peak memory of each process, in bytes: the api, then the dispatchers.
    memory: Vec<u64>,
}

/// Measurements of a phase.
pub(crate) struct Measured {
    pub(crate) rate: Rate,
    pub(crate) count: usize,
    /// Time until all were accepted.
    pub(crate) accepted: Duration,
    /// Time until all were recorded.
    pub(crate) recorded: Duration,
    pub(crate) to_answer: Latency,
    pub(crate) to_arrival: Latency,
    pub(crate) cost: Cost,
    pub(crate) memory: Vec<u64>,
}

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Latency {
    /// Returns the percentiles of `times`, or zeros if it is empty.
    pub(crate) fn of(mut times: Vec<Duration>) -> Latency {
        let mut at = |share: f64| percentile(&mut times, share).as_secs_f64() * 1000.0;
        Latency { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p99, max } = self;
        write!(f, "p50 {p50:.1} ms, p99 {p99:.1} ms, at most {max:.1} ms")
    }
}

impl Report {
    pub(crate) fn new(arguments: &Arguments, phases: Vec<Measured>, idle: Option<Latency>) -> Report {
        let phases = phases.into_iter().map(|measured| Phase {
            rate: measured.rate,
            deliveries: measured.count,
            accepted_per_second: measured.count as f64 / measured.accepted.as_secs_f64(),
            delivered_per_second: measured.count as f64 / measured.recorded.as_secs_f64(),
            answer: measured.to_answer,
            arrival: measured.to_arrival,
            cost: measured.cost,
            memory: measured.memory,
        });
        Report {
            mode: arguments.mode,
            payload: arguments.payload,
            clients: arguments.clients,
            dispatchers: arguments.dispatchers,
            destinations: arguments.destinations,
            history: arguments.history,
            is_slow: arguments.slow,
            is_embedded: arguments.embedded,
            idle,
            phases: phases.collect(),
            at_rest: None,
        }
    }

    /// Adds the cost of mode `idle`.
    pub(crate) fn idle(self, seconds: u64, cost: Cost) -> Report {
        Report { at_rest: Some(AtRest { seconds, cost }), ..self }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { payload, clients, dispatchers, destinations, history, .. } = self;
        writeln!(
            f,
            "{payload} bytes, {clients} clients, {dispatchers} dispatcher(s), {destinations} destination(s), {history} deliveries of history"
        )?;
        if let Some(idle) = &self.idle {
            writeln!(f, "request to arrival, idle   {idle}")?;
        }
        for phase in &self.phases {
            if let Rate::Steady(rate) = phase.rate {
                writeln!(f, "\n{rate} a second")?;
            }
            writeln!(f, "deliveries                 {}", phase.deliveries)?;
            writeln!(f, "accepted                   {:.0} a second", phase.accepted_per_second)?;
            writeln!(f, "delivered and recorded     {:.0} a second", phase.delivered_per_second)?;
            writeln!(f, "request to answer          {}", phase.answer)?;
            writeln!(f, "request to arrival         {}", phase.arrival)?;
            for bytes in &phase.memory {
                writeln!(f, "memory at most             {:.1} MiB", *bytes as f64 / f64::from(1 << 20))?;
            }
            cost(f, &phase.cost, "a delivery")?;
        }
        if let Some(AtRest { seconds, cost: at_rest }) = &self.at_rest {
            writeln!(f, "idle for {seconds} s")?;
            cost(f, at_rest, "in all")?;
        }
        Ok(())
    }
}

fn cost(f: &mut fmt::Formatter<'_>, cost: &Cost, of: &str) -> fmt::Result {
    writeln!(f, "CPU time {of:<17} {:.0} µs without the client", cost.total)?;
    for (part, cpu) in &cost.cpu {
        let name = match part {
            Component::Client => "client",
            Component::Api => "api",
            Component::Dispatcher => "dispatchers",
            Component::RabbitMq => "RabbitMQ",
            Component::PostgreSql => "PostgreSQL",
            Component::Kernel => "kernel's threads",
        };
        writeln!(f, "  {name:<24} {:>6.0} µs, of it in the kernel {:.0}", cpu.all, cpu.kernel)?;
    }
    if let Some(wal) = cost.wal {
        writeln!(f, "write-ahead log            {wal:.0} bytes {of}")?;
    }
    if let Some(transactions) = cost.transactions {
        writeln!(f, "transactions               {transactions:.2} {of}")?;
    }
    Ok(())
}
