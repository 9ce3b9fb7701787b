//! TLS with good and bad receivers.

use std::io::Write as _;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn for_name(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A receiver's certificate with its chain and key.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Shown {
    fn issued(params: &CertificateParams, issuer: &Authority) -> Shown {
        let key = KeyPair::generate().unwrap();
        Shown { chain: vec![params.signed_by(&key, issuer).unwrap().der().clone()], key }
    }

    fn self_signed(params: &CertificateParams) -> Shown {
        let key = KeyPair::generate().unwrap();
        Shown { chain: vec![params.self_signed(&key).unwrap().der().clone()], key }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    /// Writes certificate and key to a PEM file.
    fn file(&self) -> NamedTempFile {
        file(&format!("{}{}", pem(&self.chain[0]), self.key.serialize_pem()))
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// Starts a receiver that answers 204 over TLS. With `clients`, it requires a client certificate issued by
/// that authority.
async fn receiver(shown: &Shown, clients: Option<&Authority>) -> u16 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der().clone()).unwrap();
            builder.with_client_cert_verifier(WebPkiClientVerifier::builder(roots.into()).build().unwrap())
        }
    };
    let config = builder.with_single_cert(shown.chain.clone(), shown.key()).unwrap();
    let (listener, acceptor) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TlsAcceptor::from(Arc::new(config)));
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = acceptor.accept(connection).await else { return };
                let mut request = [0; 4096];
                let _ = connection.read(&mut request).await;
                let _ = connection.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
                let _ = connection.shutdown().await;
            });
        }
    });
    port
}

async fn names() -> NameServer {
    NameServer::start(|_, _| Reply::Address([127, 0, 0, 1].into())).await
}

fn with(ca_file: Option<PathBuf>, client_cert: Option<PathBuf>) -> Settings {
    Settings { certificates: Certificates { ca_file, client_cert }, ..settings() }
}

/// Calls `receiver.example` at `port`.
async fn called(port: u16, settings: &Settings) -> Outcome {
    let sender = sender_with(settings, &names().await, usize::MAX);
    let (outcome, timing, _) = sender.traced(&format!("https://receiver.example:{port}/")).await;
    if matches!(outcome, Outcome::Answered(_)) {
        assert!(timing.resolve.is_some() && timing.connect.is_some() && timing.tls.is_some(), "{timing:?}");
        assert_eq!(timing.remote_address, Some(format!("127.0.0.1:{port}")));
    }
    outcome
}

fn assert_refused(outcome: &Outcome, words: &str) {
    let Outcome::Failed(Failure { reason: FailureReason::TlsError, detail }) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(detail, &format!("no TLS session: {words}"));
}

fn is_answered(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered(Response { status: 204, .. }))
}

#[tokio::test]
async fn certificate_errors_are_described_in_plain_words() {
    let trusted = authority("Private Root");
    let roots = file(&trusted.pem());
    let settings = with(Some(roots.path().to_owned()), None);

    let good = Shown::issued(&for_name("receiver.example"), &trusted);
    let outcome = called(receiver(&good, None).await, &settings).await;
    assert!(is_answered(&outcome), "{outcome:?}");

    let mut expired = for_name("receiver.example");
    (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 2, 3));
    let mut early = for_name("receiver.example");
    (early.not_before, early.not_after) = (date_time_ymd(2100, 1, 1), date_time_ymd(2101, 1, 1));
    let mut many = for_name("other.example");
    let more = ["a", "b", "c", "d", "e", "f"].map(|label| format!("{label}.example").try_into().unwrap());
    many.subject_alt_names.extend(more.map(rcgen::SanType::DnsName));
    let local = CertificateParams::new(["10.0.0.1".to_owned(), "::1".to_owned()]).unwrap();
    let mut middle = CertificateParams::new([]).unwrap();
    middle.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    middle.distinguished_name.push(DnType::CommonName, "Intermediate");
    let middle = CertifiedIssuer::signed_by(middle, KeyPair::generate().unwrap(), &trusted).unwrap();
    let stranger = authority("Stranger");
    let mut with_chain = Shown::issued(&for_name("receiver.example"), &stranger);
    with_chain.chain.push(stranger.der().clone());
    for (shown, words) in [
        (
            Shown::issued(&expired, &trusted),
            "the certificate has expired: it was valid until 2021-02-03T00:00:00Z",
        ),
        (
            Shown::issued(&early, &trusted),
            "the certificate is not valid yet: it will be from 2100-01-01T00:00:00Z",
        ),
        (
            Shown::issued(&for_name("other.example"), &trusted),
            "the certificate is not for receiver.example: it is valid for other.example",
        ),
        (
            Shown::issued(&many, &trusted),
            "the certificate is not for receiver.example: it is valid for other.example, a.example, b.example, \
             c.example, d.example and 2 more",
        ),
        (
            Shown::issued(&local, &trusted),
            "the certificate is not for receiver.example: it is valid for 10.0.0.1, ::1",
        ),
        (Shown::self_signed(&for_name("receiver.example")), "the certificate is self-signed and not trusted"),
        (
            Shown::issued(&for_name("receiver.example"), &middle),
            "the certificate's issuer is not trusted: CN=Intermediate; the receiver sent no intermediate certificate: \
             one is missing, or its authority is private",
        ),
        (with_chain, "the certificate's issuer is not trusted: CN=Stranger"),
    ] {
        assert_refused(&called(receiver(&shown, None).await, &settings).await, words);
    }
}

#[tokio::test]
async fn a_self_signed_certificate_in_the_file_is_accepted_for_its_names_while_it_is_valid() {
    for is_ca in [IsCa::NoCa, IsCa::Ca(BasicConstraints::Unconstrained)] {
        let mut params = for_name("receiver.example");
        params.is_ca = is_ca;
        let own = Shown::self_signed(&params);
        let trust = file(&pem(&own.chain[0]));
        let outcome = called(receiver(&own, None).await, &with(Some(trust.path().to_owned()), None)).await;
        assert!(is_answered(&outcome), "{outcome:?}");

        params.subject_alt_names = for_name("other.example").subject_alt_names;
        let other = Shown::self_signed(&params);
        let trust = file(&pem(&other.chain[0]));
        let outcome = called(receiver(&other, None).await, &with(Some(trust.path().to_owned()), None)).await;
        assert_refused(
            &outcome,
            "the certificate is not for receiver.example: it is valid for other.example",
        );

        let mut params = for_name("receiver.example");
        params.is_ca = is_ca;
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 2, 3));
        let old = Shown::self_signed(&params);
        let trust = file(&pem(&old.chain[0]));
        let outcome = called(receiver(&old, None).await, &with(Some(trust.path().to_owned()), None)).await;
        assert_refused(&outcome, "the certificate has expired: it was valid until 2021-02-03T00:00:00Z");
    }
}

#[tokio::test]
async fn the_client_certificate_is_sent_to_receivers_that_ask_for_one() {
    let trusted = authority("Private Root");
    let roots = file(&trusted.pem());
    let ca_file = Some(roots.path().to_owned());
    let port = receiver(&Shown::issued(&for_name("receiver.example"), &trusted), Some(&trusted)).await;
    let ours = Shown::issued(&for_name("redial.example"), &trusted).file();
    let outcome = called(port, &with(ca_file.clone(), Some(ours.path().to_owned()))).await;
    assert!(is_answered(&outcome), "{outcome:?}");
    assert_refused(&called(port, &with(ca_file, None)).await, "the receiver asks for a client certificate");
}

#[tokio::test]
async fn a_receiver_that_does_not_speak_tls_or_hangs_up_is_reported_as_such() {
    let http = Receiver::bind(([127, 0, 0, 1], 0).into(), receiver::Options::default()).unwrap();
    let outcome = called(http.addr().port(), &settings()).await;
    assert_refused(&outcome, "what the receiver says on this port is not TLS");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 4096]).await;
        }
    });
    let words = format!("https://receiver.example:{port} closed the connection during the handshake");
    assert_refused(&called(port, &settings()).await, &words);
}

#[test]
fn unusable_certificates_are_reported_with_their_setting_and_file() {
    let empty = file("no PEM");
    let path = empty.path().to_owned();
    let good = Shown::self_signed(&for_name("redial.example"));
    let keyless = file(&pem(&good.chain[0]));
    let broken = file(&pem(&CertificateDer::from(vec![0x30, 0x00])));
    let missing = PathBuf::from("/no/such/file.pem");
    for (certificates, words) in [
        (
            Certificates { ca_file: Some(path.clone()), client_cert: None },
            "egress.ca_file: {}: it holds no certificate",
        ),
        (
            Certificates { ca_file: None, client_cert: Some(path) },
            "egress.client_cert: {}: it holds no certificate",
        ),
        (
            Certificates { ca_file: None, client_cert: Some(keyless.path().to_owned()) },
            "egress.client_cert: {}: it holds no private key",
        ),
        (
            Certificates { ca_file: Some(broken.path().to_owned()), client_cert: None },
            "egress.ca_file: {}: invalid peer certificate",
        ),
        (Certificates { ca_file: Some(missing), client_cert: None }, "egress.ca_file: {}: "),
    ] {
        let file = certificates.ca_file.clone().or(certificates.client_cert.clone()).unwrap();
        let error = crate::exchange::tls::config(&certificates).unwrap_err().to_string();
        assert!(error.starts_with(&words.replace("{}", &file.display().to_string())), "{error}");
    }
}
