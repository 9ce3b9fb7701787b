//! A scripted callback receiver, for `redial demo`, `dev` and `listen`, for docker-compose and for tests. The
//! request path selects its behaviour ([`HELP`]). It verifies callbacks the way a customer's receiver should.

mod received;
mod script;
mod server;
mod verdict;

pub use received::{Received, pretty};
pub use script::HELP;
pub use server::{Options, Receiver};
pub use verdict::Verdict;
