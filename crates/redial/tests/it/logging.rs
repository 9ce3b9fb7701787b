//! A log whose reader stalls or whose file is full.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use crate::cli::{Cli, Running};
use testkit::Signal;

/// Enough log lines to fill a pipe several times.
const REQUESTS: usize = 3_000;

fn talkative() -> Cli {
    Cli::new().with("REDIAL_LOG__FILTER", "info")
}

fn dev(cli: &Cli, stderr: Stdio) -> (Running, String) {
    let mut command = cli.command(&["dev", "--listen", "127.0.0.1:0", "--receiver", "127.0.0.1:0"]);
    let mut running = Running::start(command.stderr(stderr));
    let line = running.printed("API ");
    let address = line.trim().rsplit_once("http://").unwrap().1.to_owned();
    running.printed("callback-redeliveries"); // the last output of the start
    (running, address)
}

/// Sends requests; each one logs a line.
fn ask(address: &str) {
    let mut connection = TcpStream::connect(address).unwrap();
    for _ in 0..REQUESTS {
        connection.write_all(b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        while !answer.ends_with(b"}") {
            answer.copy_within(1.., 0);
            connection.read_exact(&mut answer[11..]).unwrap();
        }
    }
}

#[test]
fn a_stalled_log_reader_blocks_neither_requests_nor_the_exit() {
    let cli = talkative();
    let (mut running, address) = dev(&cli, Stdio::piped());
    let unread = running.0.stderr.take().unwrap();
    ask(&address);
    running.signal(Signal::TERM);
    let status = running.0.wait().unwrap();
    assert!(status.success(), "{status}");
    drop(unread);
}

#[test]
fn an_unwritable_log_blocks_neither_requests_nor_the_exit() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let cli = talkative();
    let (running, address) = dev(&cli, full.into());
    ask(&address);
    assert_eq!(running.stop(), 0);
}
