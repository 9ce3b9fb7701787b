//! The behaviour that a path selects.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::body::SizedStream;
use actix_web::http::{StatusCode, header};
use actix_web::web::Bytes;
use futures_util::{future, stream};

/// Description of the paths, served by `GET /`.
pub const HELP: &str = "\
A scripted callback receiver. POST to:

  /ok                     200
  /status/{code}          that status
  /fail-first/{count}     503 to the first {count} requests of each webhook-id, then 200
  /retry-after/{seconds}  503 with Retry-After to the first request of each webhook-id, then 200
  /hang/{seconds}         200 after that long
  /at-once/{count}        200 after 50 ms, to so many requests at once; 429 with Retry-After: 1 to more
  /drip/{seconds}         200 at once, then a body that drips for that long
  /large/{bytes}          200 with a body that large
  /redirect               302 to /ok
  /gone                   410
  /reset                  closes the connection without an answer
  /mixed                  of ten requests six 200, one 503, one 200 after a second, one after thirty, one reset

Any query string is allowed. Everything else is answered 404.
";

const DRIPS_PER_SECOND: u64 = 10;
/// Response delay of `/at-once`, and the `Retry-After` of its 429 responses, in seconds.
const AT_ONCE_DELAY: Duration = Duration::from_millis(50);
const AT_ONCE_RETRY_AFTER: u64 = 1;
const CHUNK: &[u8] = &[b'x'; 64 * 1024];

/// A parsed path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    Ok,
    Status(StatusCode),
    FailFirst(u32),
    RetryAfter(u64),
    Hang(u64),
    AtOnce(usize),
    /// Response of `/at-once` to requests above its limit.
    TooMany,
    Drip(u64),
    Large(u64),
    Redirect,
    Gone,
    Reset,
    Mixed,
    /// A mistake in the caller's configuration, answered 404 so that it is noticed.
    Unknown,
}

impl Script {
    pub(crate) fn parse(path: &str) -> Self {
        Self::known(path).unwrap_or(Self::Unknown)
    }

    fn known(path: &str) -> Option<Self> {
        let path = path.strip_prefix('/')?;
        Some(match path.split_once('/') {
            None => match path {
                "ok" => Self::Ok,
                "redirect" => Self::Redirect,
                "gone" => Self::Gone,
                "reset" => Self::Reset,
                "mixed" => Self::Mixed,
                _ => return None,
            },
            Some((name, argument)) => match name {
                "status" => {
                    // 1xx are not final responses.
                    Self::Status(argument.parse().ok().filter(|code: &StatusCode| code.as_u16() >= 200)?)
                }
                "fail-first" => Self::FailFirst(argument.parse().ok()?),
                "retry-after" => Self::RetryAfter(argument.parse().ok()?),
                "hang" => Self::Hang(argument.parse().ok()?),
                "at-once" => Self::AtOnce(argument.parse().ok()?),
                "drip" => Self::Drip(argument.parse().ok()?),
                "large" => Self::Large(argument.parse().ok()?),
                _ => return None,
            },
        })
    }

    /// Replaces [`Script::Mixed`] by one of its scripts at random.
    pub(crate) fn drawn(self) -> Self {
        if self != Self::Mixed {
            return self;
        }
        match rand::random_range(0..10) {
            0..6 => Self::Ok,
            6 => Self::Status(StatusCode::SERVICE_UNAVAILABLE),
            7 => Self::Hang(1),
            8 => Self::Hang(30),
            _ => Self::Reset,
        }
    }

    /// Returns the status of the response; `None` closes the connection. `earlier` counts this request and
    /// returns the number of earlier ones with the same webhook-id; it is called only by scripts that depend
    /// on it.
    pub(crate) fn status(self, earlier: impl FnOnce() -> u32) -> Option<StatusCode> {
        Some(match self {
            Self::Ok | Self::Hang(_) | Self::AtOnce(_) | Self::Drip(_) | Self::Large(_) => StatusCode::OK,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Status(code) => code,
            Self::FailFirst(n) => up_after(n, earlier()),
            Self::RetryAfter(_) => up_after(1, earlier()),
            Self::Redirect => StatusCode::FOUND,
            Self::Gone => StatusCode::GONE,
            Self::Unknown => StatusCode::NOT_FOUND,
            Self::Reset => return None,
            // `drawn` replaces it by another script.
            Self::Mixed => StatusCode::OK,
        })
    }

    /// Returns the delay before the response.
    pub(crate) fn delay(self) -> Duration {
        match self {
            Self::Hang(seconds) => Duration::from_secs(seconds),
            Self::AtOnce(_) => AT_ONCE_DELAY,
            _ => Duration::ZERO,
        }
    }

    /// Sends the response. The server drops this future when the client disconnects or the server stops.
    pub(crate) async fn answer(self, status: Option<StatusCode>) -> HttpResponse {
        let Some(status) = status else {
            // A body that fails before its first byte: the server closes the connection without sending the
            // head.
            let broken = stream::once(future::ready(Err::<Bytes, _>(io::Error::other("scripted reset"))));
            return HttpResponse::Ok().streaming(broken);
        };
        let mut response = HttpResponse::build(status);
        tokio::time::sleep(self.delay()).await;
        match self {
            Self::Drip(seconds) => return response.streaming(drip(seconds)),
            Self::Large(bytes) => return response.body(SizedStream::new(bytes, large(bytes))),
            Self::Redirect => _ = response.insert_header((header::LOCATION, "/ok")),
            Self::RetryAfter(seconds) if status == StatusCode::SERVICE_UNAVAILABLE => {
                response.insert_header((header::RETRY_AFTER, seconds));
            }
            Self::TooMany => _ = response.insert_header((header::RETRY_AFTER, AT_ONCE_RETRY_AFTER)),
            _ => {}
        }
        if status.is_client_error() || status.is_server_error() {
            return response.body(format!("{status} (scripted)\n")); // for the record of the attempt
        }
        response.finish()
    }
}

fn up_after(failing: u32, earlier: u32) -> StatusCode {
    if earlier < failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

fn drip(seconds: u64) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(seconds.saturating_mul(DRIPS_PER_SECOND), |left| async move {
        let left = left.checked_sub(1)?;
        tokio::time::sleep(Duration::from_secs(1) / DRIPS_PER_SECOND as u32).await;
        Some((Ok(Bytes::from_static(b".")), left))
    })
}

fn large(bytes: u64) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold(bytes, |left| {
        let chunk = CHUNK.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let next = (chunk > 0).then(|| (Ok(Bytes::from_static(&CHUNK[..chunk])), left - chunk as u64));
        future::ready(next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_paths_are_parsed_and_others_are_unknown() {
        for (path, script) in [
            ("/ok", Script::Ok),
            ("/status/204", Script::Status(StatusCode::NO_CONTENT)),
            ("/fail-first/2", Script::FailFirst(2)),
            ("/hang/30", Script::Hang(30)),
            ("/at-once/20", Script::AtOnce(20)),
            ("/", Script::Unknown),
            ("/okay", Script::Unknown),
            ("/ok/", Script::Unknown),
            ("/status", Script::Unknown),
            ("/status/101", Script::Unknown),
            ("/status/20x", Script::Unknown),
            ("/hang/-1", Script::Unknown),
            ("/fail-first/2/3", Script::Unknown),
        ] {
            assert_eq!(Script::parse(path), script, "{path}");
        }
    }
}
