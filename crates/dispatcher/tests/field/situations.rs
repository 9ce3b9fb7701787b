//! The receivers and the expected records.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::io::AsyncWriteExt;

use crate::receivers::{answering, answering_once, hang, read, read_request, receiver, reset};

/// A receiver and how to call it.
pub(crate) struct Situation {
    /// What the receiver does, to complete the sentence "the receiver …".
    pub(crate) name: &'static str,
    pub(crate) url: String,
    /// Approximate size of the payload, in bytes.
    pub(crate) payload: usize,
    pub(crate) expected: Expected,
}

/// The expected record.
pub(crate) enum Expected {
    /// This status, soon, and a body that contains the text. A 2xx has succeeded.
    Status(i32, &'static str),
    /// No success, and a message that contains these texts.
    Failed(&'static [&'static str]),
}

use Expected::{Failed, Status};

const UPLOAD: usize = 1_900_000;

fn ok_with(head: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\n{head}Content-Length: 4\r\n\r\ndone").into_bytes()
}

fn many_headers(count: usize) -> Vec<u8> {
    ok_with(&(0..count).map(|n| format!("X-{n}: {n}\r\n")).collect::<String>())
}

fn large_head(bytes: usize) -> Vec<u8> {
    ok_with(&format!("X-Large: {}\r\n", "x".repeat(bytes)))
}

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    let body = encoder.finish().unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.into_bytes(), body].concat()
}

/// Starts all receivers and returns them.
pub(crate) async fn situations() -> Vec<Situation> {
    let mut all = Situations::default();
    all.accepted().await;
    all.slow_bodies().await;
    all.refused().await;
    all.broken().await;
    all.uploads().await;
    all.situations
}

#[derive(Default)]
struct Situations {
    situations: Vec<Situation>,
}

impl Situations {
    fn add(&mut self, name: &'static str, url: String, expected: Expected) {
        self.with_payload(name, url, 0, expected);
    }

    fn with_payload(&mut self, name: &'static str, url: String, payload: usize, expected: Expected) {
        self.situations.push(Situation { name, url, payload, expected });
    }

    /// Odd responses with an unambiguous 2xx.
    async fn accepted(&mut self) {
        for (name, answer) in [
            ("sends 101 headers", many_headers(101)),
            ("sends 400 headers", many_headers(400)),
            ("sends a header line without a colon", ok_with("no colon here\r\n")),
            ("sends blanks before its first header", ok_with("  X-First: 1\r\n")),
            ("sends blanks before a colon", ok_with("X-Blank : 1\r\n")),
            ("sends DEL in a value", ok_with("X-Del: a\x7fb\r\n")),
            ("folds a header line", ok_with("X-Folded: a\r\n  b\r\n")),
            ("sends a header without a name", ok_with(": nameless\r\n")),
            ("sends a header name with a blank in it", ok_with("X Y: 1\r\n")),
            (
                "sends Latin-1 in a value",
                b"HTTP/1.1 200 OK\r\nX-L: \xe9\r\nContent-Length: 4\r\n\r\ndone".to_vec(),
            ),
            ("ends its lines with LF alone", b"HTTP/1.1 200 OK\nContent-Length: 4\n\ndone".to_vec()),
            ("gives no reason phrase", b"HTTP/1.1 200\r\nContent-Length: 4\r\n\r\ndone".to_vec()),
            (
                "gives a reason phrase in UTF-8",
                "HTTP/1.1 200 Très bien\r\nContent-Length: 4\r\n\r\ndone".into(),
            ),
            ("sends a head of 60 KiB", large_head(60 * 1024)),
            ("repeats its Content-Length", ok_with("Content-Length: 4\r\n")),
            (
                "sends 100 and 103 before its answer",
                [
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_vec(),
                    ok_with(""),
                ]
                .concat(),
            ),
            (
                "answers in chunks with trailers",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\ndone\r\n0\r\nX-T: 1\r\n\r\n"
                    .to_vec(),
            ),
        ] {
            self.add(name, answering(answer).await, Status(200, "done"));
        }
        let once = |answer: &'static str| answering_once(answer);
        let lengthless = "HTTP/1.1 200 OK\r\n\r\ndone";
        self.add("gives no length and closes", once(lengthless).await, Status(200, "done"));
        self.add("speaks HTTP/1.0", once("HTTP/1.0 200 OK\r\n\r\ndone").await, Status(200, "done"));
        let shorter = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\ndone";
        self.add("closes before its body's length", once(shorter).await, Status(200, "done"));
        let bad_chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ndone\r\nnonsense";
        self.add("breaks off its chunks", once(bad_chunk).await, Status(200, "done"));
        self.add("answers 204", answering("HTTP/1.1 204 No Content\r\n\r\n").await, Status(204, ""));
        let other = "HTTP/1.1 299 Whatever\r\nContent-Length: 0\r\n\r\n";
        self.add("answers 299", answering(other).await, Status(299, ""));
        let latin = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=ISO-8859-1\r\nContent-Length: 7\r\n\r\nzu gro\xdf";
        self.add("answers in Latin-1", answering(latin.to_vec()).await, Status(200, "zu groß"));
        self.add("compresses its body", answering(gzipped("no such run")).await, Status(200, "no such run"));
        let resets = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            let _ = connection.write_all(&ok_with("")).await;
            // Wait until the answer has been read: RST discards data in transit.
            tokio::time::sleep(Duration::from_millis(300)).await;
            reset(connection);
        });
        self.add("resets after its answer", resets.await, Status(200, "done"));
    }

    /// Responses with a slow or endless body; the head decides.
    async fn slow_bodies(&mut self) {
        let drips = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            let mut next = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n".as_slice();
            while connection.write_all(next).await.is_ok() {
                next = b"drip ";
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        self.add("drips its body for ever", drips.await, Status(200, "drip drip"));
        let stalls = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
            hang(connection).await;
        });
        self.add("stalls in its body", stalls.await, Status(200, "half"));
        let fast = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            let mut next = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            while connection.write_all(&next).await.is_ok() {
                next = [b"1000\r\n".as_slice(), &[b'y'; 0x1000], b"\r\n"].concat();
            }
        });
        self.add("never ends its body, at full speed", fast.await, Status(200, "yyyy"));
    }

    /// Responses other than 2xx, or no response within the timeout.
    async fn refused(&mut self) {
        let redirect = "HTTP/1.1 302 Found\r\nLocation: https://example.com/login?token=s3cret\r\nContent-Length: 0\r\n\r\n";
        let words =
            &["http_error: the receiver answered 302 Found", "https://example.com/login?…", "not followed"];
        self.add("redirects", answering(redirect).await, Failed(words));
        let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
        self.add("switches protocols", answering(switching).await, Failed(&["http_error", "101"]));
        let informs = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            while connection.write_all(b"HTTP/1.1 102 Processing\r\n\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        self.add("sends 102 for ever", informs.await, Failed(&["timeout: no complete response within 4 s"]));
        let hangs = receiver(hang);
        self.add("hangs", hangs.await, Failed(&["timeout: no complete response within 4 s"]));
        let half = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await;
            hang(connection).await;
        });
        self.add("stops in its head", half.await, Failed(&["timeout"]));
    }

    /// Unreadable responses and broken connections.
    async fn broken(&mut self) {
        let too_large: &[&str] = &["connection_error", "head", "large"];
        self.add("sends a head of 100 KiB", answering(large_head(100 * 1024)).await, Failed(too_large));
        self.add("sends 2,000 headers", answering(many_headers(2_000)).await, Failed(too_large));
        let endless = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            let mut next = b"HTTP/1.1 200 OK\r\n".to_vec();
            while connection.write_all(&next).await.is_ok() {
                next = b"X-More: and more and more and more\r\n".repeat(100);
            }
        });
        self.add("never ends its head", endless.await, Failed(too_large));
        // 2xx responses that hyper refuses with any settings.
        for (name, answer) in [
            ("sends NUL in a value", "HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 0\r\n\r\n"),
            ("gives a length that is no number", "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
            (
                "gives two different lengths",
                "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\ndone",
            ),
            ("speaks HTTP/1.0, in chunks", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ] {
            self.add(name, answering_once(answer).await, Failed(&["connection_error", "as HTTP: "]));
        }
        let ssh = "SSH-2.0-OpenSSH_9.2\r\n";
        self.add("speaks another protocol", answering(ssh).await, Failed(&["connection_error", "as HTTP"]));
        let closes = receiver(|mut connection| async move {
            read_request(&mut connection).await;
        });
        self.add(
            "closes without an answer",
            closes.await,
            Failed(&["connection_error", "before a complete response"]),
        );
        let cut = answering_once("HTTP/1.1 200 OK\r\nContent-Le");
        self.add(
            "closes in its head",
            cut.await,
            Failed(&["connection_error", "before a complete response"]),
        );
        let resets = receiver(|mut connection| async move {
            read_request(&mut connection).await;
            reset(connection);
        });
        self.add("resets without an answer", resets.await, Failed(&["connection_error", "reset"]));
        let nobody = receiver(hang).await;
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let refused = format!("http://127.0.0.1:{port}");
        self.add("is not there", refused, Failed(&["connection_error", "nothing listens there"]));
        let tls = nobody.replace("http:", "https:");
        self.add("says nothing to a TLS handshake", tls, Failed(&["timeout", "TLS"]));
        let plain = receiver(|mut connection| async move {
            read(&mut connection, 100).await;
            let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            hang(connection).await;
        });
        let plain = plain.await.replace("http:", "https:");
        self.add("speaks plain HTTP on an https port", plain, Failed(&["tls_error", "is not TLS"]));
    }

    /// Large payloads, and receivers that don't read them.
    async fn uploads(&mut self) {
        self.with_payload("takes 1.9 MB", answering(ok_with("")).await, UPLOAD, Status(200, "done"));
        let early = |answer: &'static str| {
            receiver(move |mut connection| async move {
                read(&mut connection, 100).await;
                let _ = connection.write_all(answer.as_bytes()).await;
                hang(connection).await;
            })
        };
        let too_large =
            "HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: 9\r\n\r\ntoo large";
        let url = early(too_large).await;
        self.with_payload("answers 413 before the body has come", url, UPLOAD, Status(413, "too large"));
        let done = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone";
        self.with_payload(
            "answers 200 before the body has come",
            early(done).await,
            UPLOAD,
            Status(200, "done"),
        );
        let stops = receiver(|mut connection| async move {
            read(&mut connection, 1_000).await;
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            drop(connection);
        });
        let words = &["timeout: no complete response within 4 s, ", " bytes were sent"];
        self.with_payload("stops reading", stops.await, 4 * UPLOAD, Failed(words));
        let hangs_up = receiver(|mut connection| async move {
            read(&mut connection, 1_000).await;
            reset(connection);
        });
        let words = &["connection_error", " bytes were sent"];
        self.with_payload("hangs up in the upload", hangs_up.await, 4 * UPLOAD, Failed(words));
    }
}
