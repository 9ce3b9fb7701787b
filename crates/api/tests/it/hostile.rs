//! Malicious and incapable clients: they get an error and are disconnected.

use std::time::{Duration, Instant};

use api::Limits;
use serde_json::Value;
use testkit::Backend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::harness::{RUN, TestApi, send};

/// Longer than anything here takes; only a failing test waits that long.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Production limits with timeouts short enough for tests.
fn short() -> Limits {
    let second = Duration::from_secs(1);
    // actix checks its clock only every half second, so the timeout of heads can't be shorter.
    Limits { head_time: second, body_time: second / 2, answer_time: second / 2, ..Limits::default() }
}

async fn start() -> TestApi {
    TestApi::limited(Backend::Sqlite, short()).await
}

async fn connected(api: &TestApi) -> TcpStream {
    TcpStream::connect(api.addr).await.unwrap()
}

/// Reads until the server closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match timeout(TIMEOUT, stream.read(&mut buffer)).await.expect("the connection is closed") {
            Ok(0) => break,
            Ok(len) => answer.extend_from_slice(&buffer[..len]),
            // Closed while data of ours was in transit.
            Err(_) => break,
        }
    }
    String::from_utf8(answer).unwrap()
}

/// Returns status and code of the only response, after checking the requirements on every error.
fn error(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(&str, &str)> = lines.map(|line| line.split_once(": ").unwrap()).collect();
    let header = |name: &str| {
        let mut found = headers.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        let (_, value) = found.next().unwrap_or_else(|| panic!("no {name}: {head}"));
        assert!(found.next().is_none(), "{head}");
        *value
    };
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("connection"), "close");
    assert!(uuid::Uuid::parse_str(header("x-request-id")).is_ok());
    assert_eq!(header("content-length"), body.len().to_string());
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(body["errors"], Value::Null);
    (status, body["code"].as_str().unwrap().to_owned())
}

const HEALTH: &str = "GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n";

/// Returns a kept-alive connection on which a request has been answered.
async fn kept_alive(api: &TestApi) -> TcpStream {
    let mut stream = connected(api).await;
    stream.write_all(HEALTH.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(br#"{"status":"ok"}"#) {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
    }
    stream
}

#[tokio::test]
async fn input_that_is_not_a_request_gets_the_error_envelope() {
    let api = start().await;
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n", "x".repeat(140_000));
    let rather_long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n", "x".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "X: x\r\n".repeat(100));
    let (bad, large) = ((400, "VALIDATION_ERROR".to_owned()), (431, "PAYLOAD_TOO_LARGE".to_owned()));
    for (request, expected) in [
        ("nonsense\r\n\r\n", &bad),
        ("GET / HTTP/1.1\r\n\r\n", &bad), // no Host
        ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", &bad),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", &bad),
        ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", &bad),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\r\n", &bad), // TLS
        (&long, &large),
        (&rather_long, &large),
        (&many, &large),
    ] {
        for mut stream in [connected(&api).await, kept_alive(&api).await] {
            let _ = stream.write_all(request.as_bytes()).await; // the server may not read all of it
            assert_eq!(&error(&rest(&mut stream).await), expected, "{:.80}", request);
        }
    }
    assert_eq!(api.get("/v1/health").await.status, 200);
}

#[tokio::test]
async fn a_head_that_does_not_arrive_in_time_is_answered_408_on_every_connection() {
    let api = start().await;
    for mut stream in [connected(&api).await, kept_alive(&api).await] {
        let began = Instant::now();
        stream.write_all(b"GET /v1/health HTTP/1.1\r\nHo").await.unwrap();
        assert_eq!(error(&rest(&mut stream).await), (408, "VALIDATION_ERROR".into()));
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

/// A byte that arrives must not restart the timeout.
#[tokio::test]
async fn a_dripping_head_is_cut_off() {
    let api = start().await;
    for stream in [connected(&api).await, kept_alive(&api).await] {
        let (mut read, mut write) = stream.into_split();
        let began = Instant::now();
        let dripping = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            write.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: ").await?;
            loop {
                ticks.tick().await;
                write.write_all(b"x").await?;
            }
        };
        let closed = async {
            let mut answer = Vec::new();
            while read.read_buf(&mut answer).await.is_ok_and(|len| len > 0) {}
        };
        let cut = async {
            tokio::select! {
                _ = closed => {}
                failed = dripping => { let _: std::io::Result<()> = failed; }
            }
        };
        timeout(TIMEOUT, cut).await.expect("the connection is closed");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let idle_time = Duration::from_secs(1);
    let api = TestApi::limited(Backend::Sqlite, Limits { idle_time, ..Limits::default() }).await;
    let mut stream = kept_alive(&api).await;
    let began = Instant::now();
    assert_eq!(rest(&mut stream).await, "");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

fn put(api: &TestApi, framing: &str) -> String {
    format!(
        "PUT /v1/runs/{RUN} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
        Content-Type: application/json\r\n{framing}\r\n\r\n",
        api.token
    )
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_answered_and_the_connection_closed() {
    let api = start().await;
    for (framing, begun) in [("Content-Length: 1000", "{"), ("Transfer-Encoding: chunked", "1\r\n{\r\n")] {
        let mut stream = connected(&api).await;
        stream.write_all((put(&api, framing) + begun).as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 422 ") && answer.contains("body_incomplete"), "{answer}");
    }
}

/// Whatever the response, an unwanted body is not read to an end that never comes.
#[tokio::test]
async fn an_endless_body_is_not_read_after_an_early_response() {
    let api = start().await;
    let bare = |method: &str, path: &str, framing: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n")
    };
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(0x1000));
    for framing in ["Transfer-Encoding: chunked", "Content-Length: 1000000000000"] {
        for (head, status) in [
            (bare("PUT", &format!("/v1/runs/{RUN}"), framing), 401),
            (put(&api, framing), 413),
            (bare("POST", "/nowhere", framing), 404),
            (bare("POST", "/v1/health", framing), 405),
            (bare("GET", "/v1/health", framing), 200),
        ] {
            let (mut read, mut write) = connected(&api).await.into_split();
            write.write_all(head.as_bytes()).await.unwrap();
            let flood = async { while write.write_all(chunk.as_bytes()).await.is_ok() {} };
            let answer = async {
                let mut answer = Vec::new();
                while read.read_buf(&mut answer).await.is_ok_and(|len| len > 0) {}
                String::from_utf8(answer).unwrap()
            };
            // Both end: the answer is read, and the flood is stopped by the closed connection.
            let both = timeout(TIMEOUT, async { tokio::join!(answer, flood) });
            let (answer, ()) = both.await.unwrap_or_else(|_| panic!("still read: {head}"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{answer}");
            assert!(answer.contains("connection: close"), "{answer}");
        }
    }
}

/// A chunked body that is read to its end is no reason to close the connection.
#[tokio::test]
async fn a_connection_is_reused_after_a_chunked_body() {
    let api = start().await;
    let mut stream = connected(&api).await;
    let body = r#"{"status_code": "queued"}"#;
    for status in ["201 Created", "200 OK"] {
        let request =
            format!("{}{:x}\r\n{body}\r\n0\r\n\r\n", put(&api, "Transfer-Encoding: chunked"), body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "closed");
        }
        assert!(answer.starts_with(format!("HTTP/1.1 {status}").as_bytes()));
    }
}

/// Records a run whose response is about 60 KB, and returns the request for it.
async fn long_run(api: &TestApi) -> String {
    let body = format!(r#"{{"status_code": "running", "output": "{}"}}"#, "x".repeat(60_000));
    assert_eq!(crate::harness::send(api.put(&format!("/v1/runs/{RUN}"), body)).await.status, 201);
    format!("GET /v1/runs/{RUN} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\r\n", api.token)
}

/// The server stops reading its requests, so the client causes no endless work.
#[tokio::test]
async fn a_client_that_does_not_read_its_responses_is_cut_off() {
    let api = start().await;
    let get = long_run(&api).await;
    let mut stream = connected(&api).await;
    let flood = async {
        let mut asked = 0;
        while stream.write_all(get.as_bytes()).await.is_ok() {
            asked += 1;
        }
        asked
    };
    let asked = timeout(TIMEOUT, flood).await.expect("the connection is closed");
    // As many as fit into the buffers of both kernels.
    assert!(asked < 100_000, "{asked} requests were taken");
    assert_eq!(api.get("/v1/health").await.status, 200);
}

/// A few bytes now and then are not enough.
#[tokio::test]
async fn a_client_that_reads_its_responses_too_slowly_is_cut_off() {
    const ASKED: usize = 400; // more than the buffers of both kernels hold
    let api = start().await;
    let requests = long_run(&api).await.repeat(ASKED);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let (mut read, mut write) = socket.connect(api.addr).await.unwrap().into_split();
    let ask = tokio::spawn(async move { write.write_all(requests.as_bytes()).await });
    let mut answers = Vec::new();
    let mut sips = tokio::time::interval(Duration::from_millis(50));
    for _ in 0..60 {
        sips.tick().await;
        let mut sip = [0; 512];
        match read.read(&mut sip).await {
            Ok(len) if len > 0 => answers.extend_from_slice(&sip[..len]),
            _ => break,
        }
    }
    let drain = async { while read.read_buf(&mut answers).await.is_ok_and(|len| len > 0) {} };
    timeout(TIMEOUT, drain).await.expect("the connection is closed");
    let _ = ask.await.unwrap();
    let answered = String::from_utf8_lossy(&answers).matches("HTTP/1.1 200 OK").count();
    assert!(answered < ASKED, "{answered} answers came");
}

/// A steady reader gets the whole response in order, however long it is. It is too slow to empty all buffers
/// within `answer_time`, but meets the required rate.
#[tokio::test]
async fn a_client_that_reads_slowly_but_steadily_gets_its_whole_response() {
    const RUNS: usize = 80;
    let api = start().await;
    for _ in 0..RUNS {
        let output = "x".repeat(60_000);
        let body = format!(r#"{{"status_code": "succeeded", "output": ["{}"]}}"#, output);
        let run = format!("/v1/runs/{}", uuid::Uuid::new_v4());
        assert_eq!(crate::harness::send(api.put(&run, body)).await.status, 201);
    }
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    let mut stream = socket.connect(api.addr).await.unwrap();
    let head =
        format!("GET /v1/runs?limit=500 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n", api.token);
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).await.unwrap();
    // 800 kB/s; the limit requires 128 kB/s.
    let (mut ticks, mut answer) = (tokio::time::interval(Duration::from_millis(20)), Vec::new());
    loop {
        ticks.tick().await;
        let mut piece = [0; 16_000];
        match timeout(TIMEOUT, stream.read(&mut piece)).await.unwrap().expect("the client was cut off") {
            0 => break,
            len => answer.extend_from_slice(&piece[..len]),
        }
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.len() > RUNS * 60_000 && answer.trim_end().ends_with(['0', '}']),
        "{} bytes",
        answer.len()
    );
    assert_eq!(answer.matches(r#""status_code":"succeeded""#).count(), RUNS);
}

#[tokio::test]
async fn pipelined_requests_are_all_answered_if_the_client_reads() {
    const ASKED: usize = 200;
    let api = start().await;
    let requests = long_run(&api).await.repeat(ASKED - 1) + HEALTH;
    let (mut read, mut write) = connected(&api).await.into_split();
    let read = async {
        let mut answers = Vec::new();
        while !answers.ends_with(br#"{"status":"ok"}"#) {
            assert_ne!(read.read_buf(&mut answers).await.unwrap(), 0, "closed after {} bytes", answers.len());
        }
        String::from_utf8(answers).unwrap()
    };
    let both = async { tokio::join!(read, write.write_all(requests.as_bytes())) };
    let (answers, written) = timeout(TIMEOUT, both).await.unwrap();
    written.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), ASKED);
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_until_others_end() {
    let api = TestApi::limited(Backend::Sqlite, Limits { connections: 1, ..short() }).await;
    let full = [kept_alive(&api).await, kept_alive(&api).await]; // one for each of the two workers
    let mut waiting = connected(&api).await;
    waiting.write_all(HEALTH.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let early = timeout(Duration::from_millis(200), waiting.read_buf(&mut answer)).await;
    assert!(early.is_err(), "{early:?}");
    drop(full);
    let answered = timeout(TIMEOUT, waiting.read_buf(&mut answer)).await.expect("an answer");
    assert_ne!(answered.unwrap(), 0);
}

/// Many slow heads and bodies are all cut off, while other clients are served.
#[tokio::test]
async fn good_clients_are_served_while_others_drip() {
    let api = start().await;
    let drip = async |text: String| {
        let mut stream = connected(&api).await;
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        loop {
            tokio::select! {
                read = stream.read_buf(&mut answer) => if !read.is_ok_and(|len| len > 0) { break },
                _ = ticks.tick() => { let _ = stream.try_write(b"x"); }
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    };
    let heads = (0..200).map(|_| drip("GET /v1/health HTTP/1.1\r\nX: ".into()));
    let bodies = (0..50).map(|_| drip(put(&api, "Content-Length: 10000")));
    let attackers = futures_util::future::join_all(
        heads.map(futures_util::future::Either::Left).chain(bodies.map(futures_util::future::Either::Right)),
    );
    let good = async {
        for _ in 0..100 {
            assert_eq!(api.get("/v1/health").await.status, 200);
            assert_eq!(api.get(&format!("/v1/runs/{RUN}")).await.status, 404);
        }
    };
    let (answers, ()) =
        timeout(TIMEOUT, async { tokio::join!(attackers, good) }).await.expect("all are cut off");
    for answer in answers {
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408 ") || answer.starts_with("HTTP/1.1 422 "),
            "{answer}"
        );
    }
}

/// Connects from another address of this host that is not a trusted proxy.
async fn connected_as(api: &TestApi, client: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{client}:0").parse().unwrap()).unwrap();
    socket.connect(api.addr).await.unwrap()
}

/// Sends a request and reads until the response ends with `end`.
async fn exchange(stream: &mut TcpStream, request: &str, end: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        let read = timeout(TIMEOUT, stream.read_buf(&mut answer)).await.expect("an answer");
        assert_ne!(read.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap()
}

fn two_each() -> Limits {
    Limits { connections_of_client: Some(2), ..Limits::default() }
}

#[tokio::test]
async fn a_connection_over_its_clients_limit_is_refused() {
    let api = TestApi::limited(Backend::Sqlite, two_each()).await;
    let mut kept = [connected_as(&api, "127.0.0.8").await, connected_as(&api, "127.0.0.8").await];
    for stream in &mut kept {
        exchange(stream, HEALTH, r#"{"status":"ok"}"#).await;
    }
    let mut refused = connected_as(&api, "127.0.0.8").await;
    let answer = rest(&mut refused).await;
    assert!(answer.starts_with("HTTP/1.1 429 ") && answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
    assert!(answer.ends_with(
        r#"{"code":"RATE_LIMITED","message":"too many connections from this address","errors":null}"#
    ));
    let mut other = connected_as(&api, "127.0.0.9").await;
    exchange(&mut other, HEALTH, r#"{"status":"ok"}"#).await;
    drop(kept);
    let began = Instant::now();
    loop {
        let mut next = connected_as(&api, "127.0.0.8").await;
        next.write_all(HEALTH.as_bytes()).await.unwrap();
        next.shutdown().await.unwrap();
        if rest(&mut next).await.starts_with("HTTP/1.1 200 ") {
            break;
        }
        assert!(began.elapsed() < TIMEOUT, "closed connections are still counted");
    }
}

/// Behind a proxy, connections can't be attributed to clients.
#[tokio::test]
async fn requests_in_flight_are_limited_per_client_behind_a_trusted_proxy() {
    let api = TestApi::limited(Backend::Sqlite, two_each()).await;
    let waiting = put(&api, "Content-Length: 2\r\nExpect: 100-continue\r\nX-Forwarded-For: 203.0.113.7");
    let mut kept = [connected(&api).await, connected(&api).await];
    for stream in &mut kept {
        exchange(stream, &waiting, "HTTP/1.1 100 Continue\r\n\r\n").await;
    }
    let get = async |client: &str| {
        let path = format!("/v1/runs/{RUN}");
        let request = api.request(reqwest::Method::GET, &path).header("x-forwarded-for", client);
        send(request).await
    };
    let refused = get("203.0.113.7").await;
    assert_eq!((refused.error(), refused.header("retry-after")), ((429, "RATE_LIMITED".into()), "1"));
    assert_eq!(get("203.0.113.8").await.status, 404);
    for stream in &mut kept {
        let answer = exchange(stream, "{}", "}").await;
        assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
    }
    assert_eq!(get("203.0.113.7").await.status, 404);
}
