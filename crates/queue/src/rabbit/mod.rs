//! RabbitMQ behind them: sessions that are opened again and again, publishing with confirms, consuming.

pub(crate) mod backoff;
pub(crate) mod consume;
pub(crate) mod inspect;
pub(crate) mod publish;
pub(crate) mod session;
