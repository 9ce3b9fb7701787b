//! TLS to receivers: which certificates are trusted, and plain-word descriptions of certificate errors.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use contracts::Timestamp;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
};
use rustls_platform_verifier::Verifier;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Version};
use x509_parser::time::ASN1Time;

use crate::exchange::tls_sessions::ObservedSessions;
use crate::exchange::trace::Trace;
use crate::settings::{Certificates, DispatcherError};

/// Returns the TLS configuration for connections to receivers.
pub(crate) fn config(certificates: &Certificates) -> Result<ClientConfig, DispatcherError> {
    // Fails only if another part of the process has installed a provider, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let provider = CryptoProvider::get_default().cloned().expect("a provider was installed above");
    let added = certificates.ca_file.as_deref().map(read_trusted).transpose()?.unwrap_or_default();
    let verifier = ReceiverVerifier::new(added, provider)?;
    let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &certificates.client_cert {
        None => builder.with_no_client_auth(),
        Some(path) => {
            const KEY: &str = "egress.client_cert";
            let chain = read_certificates(KEY, path)?;
            let key = PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
                PemError::NoItemsFound => unusable(KEY, path, &"it holds no private key"),
                error => unusable(KEY, path, &error),
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unusable(KEY, path, &error))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::store(Arc::new(ObservedSessions::default()));
    Ok(config)
}

fn read_trusted(path: &Path) -> Result<Vec<CertificateDer<'static>>, DispatcherError> {
    const KEY: &str = "egress.ca_file";
    let found = read_certificates(KEY, path)?;
    for certificate in &found {
        RootCertStore::empty().add(certificate.clone()).map_err(|error| unusable(KEY, path, &error))?;
    }
    Ok(found)
}

fn read_certificates(
    key: &'static str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, DispatcherError> {
    let read: Result<Vec<_>, PemError> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match read {
        Ok(found) if found.is_empty() => Err(unusable(key, path, &"it holds no certificate")),
        Ok(found) => Ok(found),
        Err(error) => Err(unusable(key, path, &error)),
    }
}

fn unusable(key: &'static str, path: &Path, problem: &dyn ToString) -> DispatcherError {
    DispatcherError::Certificates { key, path: path.to_owned(), problem: problem.to_string() }
}

/// Trusts the system's authorities and the added certificates. Explains its refusals in the attempt's trace.
#[derive(Debug)]
struct ReceiverVerifier {
    authorities: Verifier,
    /// Trusted themselves, for the names they contain.
    added: Vec<CertificateDer<'static>>,
}

impl ReceiverVerifier {
    fn new(
        added: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Result<ReceiverVerifier, Error> {
        // A receiver's own certificate must not authenticate others.
        let roots: Vec<_> = added.iter().filter(|added| is_authority(added)).cloned().collect();
        let authorities = Verifier::new_with_extra_roots(roots, provider)?;
        Ok(ReceiverVerifier { authorities, added })
    }

    /// Whether the certificate itself was added and is valid now for `name`. WebPKI refuses receivers'
    /// certificates that are also authorities, as many self-signed ones are.
    fn is_added(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> bool {
        self.added.contains(certificate)
            && ParsedCertificate::try_from(certificate)
                .is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
            && X509Certificate::from_der(certificate).is_ok_and(|(_, parsed)| {
                let now = i64::try_from(now.as_secs()).map(ASN1Time::from_timestamp);
                now.is_ok_and(|now| now.is_ok_and(|now| parsed.validity().is_valid_at(now)))
            })
    }
}

impl ServerCertVerifier for ReceiverVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.is_added(end_entity, server_name, now) {
            return Ok(ServerCertVerified::assertion());
        }
        let verified =
            self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        if let (Err(Error::InvalidCertificate(fault)), Some(trace)) = (&verified, Trace::current()) {
            let is_added = self.added.contains(end_entity);
            let fault = certificate_fault(fault, is_added, server_name, end_entity, intermediates);
            trace.certificate_refused(fault);
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Whether the certificate may issue others. X.509 version 1 can't express that, so those certificates count
/// as authorities.
fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return true };
    let constraints = parsed.basic_constraints().ok().flatten();
    constraints.map_or(parsed.version() == X509Version::V1, |constraints| constraints.value.ca)
}

/// Describes what is wrong with a receiver's certificate. `is_added`: the certificate itself is trusted.
fn certificate_fault(
    fault: &CertificateError,
    is_added: bool,
    name: &ServerName<'_>,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> String {
    let parsed = X509Certificate::from_der(end_entity).ok().map(|(_, parsed)| parsed);
    let date = |at: &UnixTime| {
        let micros = i64::try_from(at.as_secs()).unwrap_or_default().saturating_mul(1_000_000);
        Timestamp::from_micros(micros).to_string()
    };
    match (fault, parsed) {
        (CertificateError::ExpiredContext { not_after, .. }, _) => {
            format!("the certificate has expired: it was valid until {}", date(not_after))
        }
        (CertificateError::NotValidYetContext { not_before, .. }, _) => {
            format!("the certificate is not valid yet: it will be from {}", date(not_before))
        }
        (fault, Some(parsed)) if is_about_name(fault, is_added) => {
            format!("the certificate is not for {}: {}", name.to_str(), valid_for(&parsed))
        }
        (CertificateError::UnknownIssuer | CertificateError::Other(_), Some(parsed))
            if parsed.issuer() == parsed.subject() =>
        {
            "the certificate is self-signed and not trusted".to_owned()
        }
        (CertificateError::UnknownIssuer, Some(parsed)) => {
            let hint = if intermediates.is_empty() {
                "; the receiver sent no intermediate certificate: one is missing, or its authority is private"
            } else {
                ""
            };
            format!("the certificate's issuer is not trusted: {}{hint}", parsed.issuer())
        }
        (CertificateError::Revoked, _) => "the certificate has been revoked".to_owned(),
        (CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }, _) => {
            "the certificate is not one for servers".to_owned()
        }
        (fault, _) => format!("the certificate is not acceptable: {fault}"),
    }
}

/// Whether the certificate would be acceptable for another name.
fn is_about_name(fault: &CertificateError, is_added: bool) -> bool {
    match fault {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => true,
        // An added certificate is trusted, and an expired one has another fault: only the name can be wrong.
        CertificateError::UnknownIssuer | CertificateError::Other(_) => is_added,
        _ => false,
    }
}

/// Maximum number of a certificate's names in a sentence.
const MAX_NAMES: usize = 5;

fn valid_for(certificate: &X509Certificate<'_>) -> String {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names: Vec<String> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
        .collect();
    match names.len() {
        0 => "it has no subject alternative name, and the common name does not count".to_owned(),
        1..=MAX_NAMES => format!("it is valid for {}", names.join(", ")),
        more => format!("it is valid for {} and {} more", names[..MAX_NAMES].join(", "), more - MAX_NAMES),
    }
}

/// Formats an address of four or sixteen bytes.
fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| v6()).map(|address| address.to_string()).ok()
}

/// Describes why there is no TLS session. `certificate_fault` is what the verifier found.
pub(crate) fn fault(error: &Error, certificate_fault: Option<String>) -> String {
    match error {
        Error::InvalidCertificate(fault) => {
            certificate_fault.unwrap_or_else(|| format!("the certificate is not acceptable: {fault}"))
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "the receiver asks for a client certificate".to_owned()
        }
        Error::AlertReceived(AlertDescription::UnrecognisedName) => {
            "the receiver has no certificate for this host".to_owned()
        }
        Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_) => {
            "the receiver supports no TLS version and ciphers that Redial does (TLS 1.2 and 1.3)".to_owned()
        }
        Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "the receiver refused the handshake: no common cipher suite, or it wants a client certificate"
                .to_owned()
        }
        Error::AlertReceived(alert) if is_about_client_certificate(*alert) => {
            "the receiver refused the client certificate of egress.client_cert".to_owned()
        }
        Error::AlertReceived(alert) => format!("the receiver refused the handshake with the alert {alert:?}"),
        Error::InvalidMessage(_) => "what the receiver says on this port is not TLS".to_owned(),
        other => other.to_string(),
    }
}

/// Whether a TLS error after the handshake is about it: receivers check the client certificate last.
pub(crate) fn ends_handshake(error: &Error) -> bool {
    let Error::AlertReceived(alert) = error else { return false };
    *alert == AlertDescription::CertificateRequired || is_about_client_certificate(*alert)
}

fn is_about_client_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRevoked, CertificateUnknown, UnknownCA,
        UnsupportedCertificate,
    };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRevoked
            | CertificateUnknown
            | UnknownCA
            | UnsupportedCertificate
    )
}
