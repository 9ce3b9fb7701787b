//! Outcomes of requests without a response, each with a sentence that says what to do.

use std::error::Error;
use std::io;
use std::time::Duration;

use contracts::FailureReason;
use egress::TargetUrl;
use engine::{LocalFailure, Outcome};
use url::Host;

use crate::dns::resolver::ResolveError;
use crate::exchange::request_body::TooLate;
use crate::exchange::response::HEAD_TOO_LARGE;
use crate::exchange::tls;
use crate::exchange::trace::Trace;
use crate::shortage::{has_route, shortage};

/// Returns the outcome for an error of the HTTP client. The error's own text is not used: it contains the
/// URL, whose query may carry secrets.
pub(crate) fn failed(error: &reqwest::Error, target: &TargetUrl, trace: &Trace) -> Outcome {
    let mut last = None;
    for cause in causes(error) {
        if let Some(resolve) = cause.downcast_ref::<ResolveError>() {
            return resolve.outcome();
        }
        if let Some(fault) = tls_error(cause)
            && (error.is_connect() || tls::ends_handshake(fault))
        {
            let detail = format!("no TLS session: {}", tls::fault(fault, trace.certificate_fault()));
            return Outcome::failed(FailureReason::TlsError, detail);
        }
        if cause.is::<TooLate>() {
            return Outcome::NotSent(LocalFailure::LeaseTooShort);
        }
        // After connecting, part of the request may have been sent.
        if error.is_connect()
            && let Some(failure) = cause.downcast_ref().and_then(shortage)
            && (failure != LocalFailure::NoLocalPort || is_routable(target))
        {
            tracing::debug!(%cause, origin = target.origin(), "no connection");
            return Outcome::NotSent(failure);
        }
        last = Some(cause);
    }
    let origin = target.origin();
    if error.is_timeout() && error.is_connect() {
        let detail = if trace.is_in_handshake() {
            format!("no TLS session with {origin} in time: the handshake did not finish")
        } else {
            format!("no connection to {origin} in time")
        };
        return Outcome::failed(FailureReason::Timeout, detail);
    }
    if error.is_connect() && trace.is_in_handshake() {
        let detail = format!("no TLS session: {origin} closed the connection during the handshake");
        return Outcome::failed(FailureReason::TlsError, detail);
    }
    if let Some(fault) = causes(error).find_map(response_fault) {
        return Outcome::failed(FailureReason::ConnectionError, fault);
    }
    let cause = last.map_or_else(|| "unknown cause".to_owned(), plain);
    let detail = if error.is_connect() {
        format!("no connection to {origin}: {cause}")
    } else {
        format!("the connection to {origin} failed before a complete response{}: {cause}", upload(trace))
    };
    Outcome::failed(FailureReason::ConnectionError, detail)
}

/// Returns the outcome of an attempt that timed out before a complete response.
pub(crate) fn timed_out(timeout: Duration, trace: &Trace) -> Outcome {
    let detail = format!("no complete response within {} s{}", timeout.as_secs_f64(), upload(trace));
    Outcome::failed(FailureReason::Timeout, detail)
}

/// Describes how far the upload got. Empty if it did not start or was complete.
fn upload(trace: &Trace) -> String {
    match trace.progress() {
        (sent, size) if 0 < sent && sent < size => format!(", {sent} of {size} bytes were sent"),
        _ => String::new(),
    }
}

/// Describes what is wrong with a response that can't be parsed.
fn response_fault(cause: &(dyn Error + 'static)) -> Option<String> {
    let error = cause.downcast_ref::<hyper::Error>().filter(|error| error.is_parse())?;
    let said = error.to_string();
    // hyper has a method for this, but only in builds with its server.
    let is_too_large = said.contains("too large");
    Some(if is_too_large {
        HEAD_TOO_LARGE.to_owned()
    } else {
        format!("the response can't be read as HTTP: {said}")
    })
}

/// Describes a connection error in plain words.
fn plain(cause: &(dyn Error + 'static)) -> String {
    let text = cause.to_string();
    let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
    let words = match kind {
        Some(io::ErrorKind::ConnectionRefused) => "nothing listens there",
        Some(io::ErrorKind::ConnectionReset) => "the receiver reset it",
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted) => "the receiver closed it",
        // TLS closed without close_notify.
        Some(io::ErrorKind::UnexpectedEof) => return "the receiver closed it".to_owned(),
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            "the network has no way there"
        }
        _ => return text,
    };
    format!("{words} ({text})")
}

fn causes<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause: &&'e (dyn Error + 'static)| {
        let cause: &'e (dyn Error + 'static) = *cause;
        cause.source()
    })
}

/// Whether the receiver closed the connection instead of responding.
pub(crate) fn was_closed(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| {
        let is_io = |error: &io::Error| {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        };
        cause.downcast_ref().is_some_and(hyper::Error::is_incomplete_message)
            || cause.downcast_ref().is_some_and(is_io)
    })
}

/// Whether this host has a route to the target. True for names: the resolver returns only addresses with a
/// route.
fn is_routable(target: &TargetUrl) -> bool {
    match target.host() {
        Host::Ipv6(address) => has_route(address.into()),
        Host::Ipv4(_) | Host::Domain(_) => true,
    }
}

/// Finds rustls' error, which is wrapped in one or more `io::Error`s and not among their sources.
fn tls_error<'e>(cause: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    cause.downcast_ref().or_else(|| tls_error(cause.downcast_ref::<io::Error>()?.get_ref()?))
}
