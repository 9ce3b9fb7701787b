//! The real binary, run as a person or an orchestrator would run it.

mod cli;
mod commands;
mod distributed;
mod signatures;
mod starting;
mod system;
