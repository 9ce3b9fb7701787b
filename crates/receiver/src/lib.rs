//! A scripted callback receiver: the other end for `redial demo`, `dev` and `listen`, for
//! docker-compose and for tests. The called path says how it behaves ([`HELP`]); it verifies what it gets the
//! way a customer's receiver should.

mod received;
mod script;
mod server;
mod verdict;

pub use received::{Received, pretty};
pub use script::HELP;
pub use server::{Options, Receiver};
pub use verdict::Verdict;
