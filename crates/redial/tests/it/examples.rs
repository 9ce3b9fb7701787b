//! The receivers of `examples/` and `redial listen`: which requests they accept as authentic, and which
//! secrets they refuse at startup.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contracts::{Signing, SigningSecret};

use crate::cli::{Cli, Ended, Running};

const EXAMPLES: [(&str, &str); 2] = [("python3", "verify_python.py"), ("node", "verify_node.mjs")];

/// Returns the command of an example, with that secret and a free port.
fn example((interpreter, file): (&str, &str), secret: &str) -> Command {
    let mut command = Command::new(interpreter);
    command.arg(format!("{}/../../examples/{file}", env!("CARGO_MANIFEST_DIR"))).arg("0");
    command.env("CALLBACK_SECRET", secret);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn a_receiver_that_cannot_verify_refuses_to_start_and_does_not_show_the_secret() {
    let material = STANDARD.encode([0xfb; 32]); // with characters that the URL-safe alphabet lacks
    let (shown, rest) = material.split_at(20);
    for (secret, reason) in [
        (String::new(), "begins with"),
        ("\n".to_owned(), "begins with"),
        (material.clone(), "begins with"),
        (format!("WHSEC_{material}"), "begins with"),
        (format!("\"whsec_{material}\""), "begins with"),
        ("whsec_".to_owned(), "16 bytes"),
        (format!("whsec_{}", STANDARD.encode([0xfb; 15])), "16 bytes"),
        (format!("whsec_{}", material.trim_end_matches('=')), "standard base64"),
        (format!("whsec_{material}="), "standard base64"),
        (format!("whsec_{}", material.replace('+', "-")), "standard base64"),
        (format!("whsec_{shown}\n{rest}"), "standard base64"),
        (format!("whsec_ {material}"), "standard base64"),
        (format!("whsec_{shown}!"), "standard base64"),
        (format!("whsec_{shown}é"), "standard base64"),
        (format!("whsec_{}t=", &material[..42]), "standard base64"), // with bits set beyond the last byte
    ] {
        let listen = Cli::new().run(&["listen", "127.0.0.1:0", "--secret", &secret]);
        let mut ended = vec![("redial listen", 2, listen)];
        for one in EXAMPLES {
            ended.push((one.1, 1, Ended::from(example(one, &secret).output().unwrap())));
        }
        for (receiver, code, Ended { code: found, stdout, stderr }) in ended {
            assert_eq!((found, stdout.as_str()), (code, ""), "{receiver}, {secret:?}: {stderr}");
            assert!(stderr.contains(reason), "{receiver}, {secret:?}: {stderr}");
            assert!(!stderr.contains(&material[..8]) && stderr.lines().count() == 1, "{receiver}: {stderr}");
        }
    }
}

#[test]
fn a_secret_from_a_file_with_a_newline_at_its_end_verifies() {
    let secret = SigningSecret::from_key(&[7; 32]);
    for one in EXAMPLES {
        let receiver = Receiver::start(one, &format!("  {}\r\n", secret.plain()));
        assert_eq!(receiver.post(&Request::signed(&secret, 0)), 204, "{}", one.1);
    }
}

type Change = fn(&mut Request);

/// Changes to an authentic request, and whether it is still authentic by `Runflow-Signature` and by
/// `webhook-signature`.
const CHANGES: &[(&str, bool, bool, Change)] = &[
    ("none", true, true, |_| ()),
    ("names in capitals", true, true, |request| {
        request.headers.iter_mut().for_each(|(name, _)| *name = name.to_uppercase());
    }),
    ("another body", false, false, |request| request.body.push(' ')),
    ("Runflow-Signature in capitals", false, true, |request| request.change(RUNFLOW, str::to_uppercase)),
    ("Runflow-Signature empty", false, true, |request| request.change(RUNFLOW, |_| String::new())),
    ("Runflow-Signature not ASCII", false, true, |request| request.change(RUNFLOW, |_| "é".to_owned())),
    ("Runflow-Signature missing", false, true, |request| request.remove(RUNFLOW)),
    ("Runflow-Signature twice", false, true, |request| request.repeat(RUNFLOW)),
    ("one of several signatures", true, true, |request| {
        request.change(WEBHOOK, |good| format!("v1,AAAA v1a,x {good} v1,BBBB"));
    }),
    ("a signature without its version", true, false, |request| {
        request.change(WEBHOOK, |good| good.replace("v1,", ""));
    }),
    ("a signature of another version", true, false, |request| {
        request.change(WEBHOOK, |good| good.replace("v1,", "v2,"));
    }),
    ("a version in capitals", true, false, |request| {
        request.change(WEBHOOK, |good| good.replace("v1,", "V1,"));
    }),
    ("a signature in capitals", true, false, |request| request.change(WEBHOOK, str::to_uppercase)),
    ("a signature without padding", true, false, |request| {
        request.change(WEBHOOK, |good| good.trim_end_matches('=').to_owned());
    }),
    ("webhook-signature empty", true, false, |request| request.change(WEBHOOK, |_| String::new())),
    ("webhook-signature without a value", true, false, |request| {
        request.change(WEBHOOK, |_| "v1,".to_owned());
    }),
    ("webhook-signature missing", true, false, |request| request.remove(WEBHOOK)),
    ("webhook-signature twice", true, false, |request| request.repeat(WEBHOOK)),
    ("webhook-id twice", true, false, |request| request.repeat(ID)),
    ("another webhook-id", true, false, |request| request.change(ID, |_| "id-2".to_owned())),
    ("another webhook-timestamp", true, false, |request| request.change(TIMESTAMP, |now| format!("{now}0"))),
    ("webhook-timestamp with a sign", true, false, |request| {
        request.change(TIMESTAMP, |now| format!("+{now}"));
    }),
    ("webhook-timestamp missing", true, false, |request| request.remove(TIMESTAMP)),
];

#[test]
fn the_examples_accept_authentic_requests_only() {
    let (secret, other) = (SigningSecret::from_key(&[7; 32]), SigningSecret::from_key(&[8; 32]));
    let [python, node] = EXAMPLES.map(|one| Receiver::start(one, secret.plain()));
    let answers = |request: &Request| [&python, &node].map(|receiver| receiver.post(request) == 204);
    for (change, by_runflow, by_webhook, apply) in CHANGES {
        let mut request = Request::signed(&secret, 0);
        apply(&mut request);
        assert_eq!(answers(&request), [*by_runflow, *by_webhook], "{change}");
    }
    for (age, is_recent) in [(240, true), (-240, true), (360, false), (-360, false)] {
        assert_eq!(answers(&Request::signed(&secret, age)), [true, is_recent], "{age} s old");
    }
    assert_eq!(answers(&Request::signed(&other, 0)), [false, false]);
    // During a rotation, a receiver may know only one of the two secrets.
    for webhook in [[&secret, &other], [&other, &secret]] {
        let signing = Signing { runflow: other.clone(), webhook: webhook.map(Clone::clone).into() };
        assert_eq!(answers(&Request::signed_with(&signing, 0)), [false, true]);
    }
}

const RUNFLOW: &str = "Runflow-Signature";
const ID: &str = "webhook-id";
const TIMESTAMP: &str = "webhook-timestamp";
const WEBHOOK: &str = "webhook-signature";

/// A POST request, sent exactly as given here.
struct Request {
    headers: Vec<(String, String)>,
    body: String,
}

impl Request {
    fn signed(secret: &SigningSecret, age: i64) -> Request {
        Request::signed_with(&Signing { runflow: secret.clone(), webhook: vec![secret.clone()] }, age)
    }

    /// Returns a request signed `age` seconds ago.
    fn signed_with(signing: &Signing, age: i64) -> Request {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64;
        let body = r#"{"event": "run.completed", "run_id": "1"}"#;
        let signed = signing.sign("id-1", now - age, body.as_bytes());
        let headers = [
            (ID, "id-1".to_owned()),
            (TIMESTAMP, (now - age).to_string()),
            (RUNFLOW, signed.runflow_signature),
            (WEBHOOK, signed.webhook_signature),
        ];
        Request {
            headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
            body: body.to_owned(),
        }
    }

    fn change(&mut self, name: &str, change: impl Fn(&str) -> String) {
        let (_, value) = self.headers.iter_mut().find(|(known, _)| known == name).unwrap();
        *value = change(value);
    }

    fn remove(&mut self, name: &str) {
        self.headers.retain(|(known, _)| known != name);
    }

    fn repeat(&mut self, name: &str) {
        let header = self.headers.iter().find(|(known, _)| known == name).unwrap().clone();
        self.headers.push(header);
    }
}

/// A running example.
struct Receiver {
    address: String,
    _process: Running,
}

impl Receiver {
    fn start(one: (&str, &str), secret: &str) -> Receiver {
        let mut process = Running::start(&mut example(one, secret));
        let line = process.printed("listening on http://");
        let address = line.trim().strip_prefix("listening on http://").unwrap().to_owned();
        Receiver { address, _process: process }
    }

    /// Sends the request and returns the response's status.
    fn post(&self, Request { headers, body }: &Request) -> u16 {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = body.len();
        write!(
            stream,
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }
}
