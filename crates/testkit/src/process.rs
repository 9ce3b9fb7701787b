//! Child processes of the real binary, what is measured of them, and ports for them.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::{Deref, DerefMut};
use std::process::{Child, Command};
use std::time::Duration;

use procfs::ProcResult;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// A child process, killed when dropped.
pub struct Process(Child);

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Memory {
    pub now: u64,
    pub peak: u64,
}

impl Process {
    /// Starts a command.
    pub fn start(command: &mut Command) -> io::Result<Process> {
        command.spawn().map(Process)
    }

    /// Sends a signal. Does nothing if the process has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match kill_process(Pid::from_child(&self.0), signal) {
            Err(rustix::io::Errno::SRCH) => Ok(()),
            sent => Ok(sent?),
        }
    }

    /// Whether a signal has stopped the process.
    pub fn is_stopped(&self) -> ProcResult<bool> {
        Ok(matches!(self.in_proc()?.stat()?.state, 'T' | 't'))
    }

    /// Returns the resident memory.
    pub fn memory(&self) -> ProcResult<Memory> {
        let status = self.in_proc()?.status()?;
        let bytes = |kib: Option<u64>| kib.unwrap_or_default() * 1024;
        Ok(Memory { now: bytes(status.vmrss), peak: bytes(status.vmhwm) })
    }

    /// Returns the number of open file descriptors.
    pub fn open_files(&self) -> ProcResult<usize> {
        self.in_proc()?.fd_count()
    }

    fn in_proc(&self) -> ProcResult<procfs::process::Process> {
        procfs::process::Process::new(self.0.id().cast_signed())
    }
}

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a percentile, or zero if `times` is empty. `share` is between 0 and 1.
pub fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let index = times.len().saturating_sub(1) as f64 * share;
    times.get(index as usize).copied().unwrap_or_default()
}

/// Returns a free port of 127.0.0.1. It is not reserved: another process may be given the same one.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}
