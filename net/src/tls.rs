//! Who is who: the cluster's certificate authority, node certificates, and the TLS configuration made of them.
//!
//! A cluster has one authority. A node's certificate carries its name as a DNS subject alternative name and may be
//! used by either end of a connection. Node names are lowercase DNS names, because TLS compares names as DNS does:
//! names that differ only in case would be one identity.
//!
//! TLS 1.3 only, with `ring` passed explicitly. Both ends must present a certificate of the cluster's authority.
//! Resumption and early data are off, so that every connection verifies both ends afresh.
//!
//! Keys are ECDSA P-256. Nothing here revokes: a key that leaks is answered by a new authority, so several
//! authorities may stand in one CA file while nodes move from one to the next.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

/// The application protocols, by their wire version, the newest first: both ends take the first that both name.
pub const PROTOCOLS: [(u8, &[u8]); 3] = [(3, b"godwit/3"), (2, b"godwit/2"), (1, b"godwit/1")];

/// The wire version of a connection; `None` if its ends settled on none of [`PROTOCOLS`].
pub(crate) fn wire_version(connection: &quinn::Connection) -> Option<u8> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    let agreed = data.protocol?;
    PROTOCOLS.iter().find(|(_, name)| *name == agreed).map(|(version, _)| *version)
}

fn alpn() -> Vec<Vec<u8>> {
    PROTOCOLS.iter().map(|(_, name)| name.to_vec()).collect()
}

/// Years for which an authority is valid.
pub const CA_VALIDITY_YEARS: i32 = 20;

/// Years for which a node's certificate is valid.
pub const NODE_VALIDITY_YEARS: i32 = 10;

/// Certificates start this long before they are made, for nodes whose clocks are behind.
const BACKDATE_SECONDS: u64 = 2 * 86_400;

/// Longest cluster name, in bytes: what an X.509 common name may hold, less the text around it.
const CLUSTER_NAME_BYTES_MAX: usize = 48;

/// Longest node name, in bytes: a DNS name.
const NODE_NAME_BYTES_MAX: usize = 253;

/// Most certificates in one PEM file: the authorities of a cluster, or the chain of a node.
const CERTIFICATES_MAX: usize = 16;

/// What can be wrong with names, keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The node name is not a lowercase DNS name.
    #[error("`{0}` is not a node name: it must be a lowercase DNS name")]
    NodeName(String),
    /// The cluster name is empty, too long, or holds control characters.
    #[error("a cluster name must have 1 to {CLUSTER_NAME_BYTES_MAX} printable bytes")]
    ClusterName,
    /// A certificate could not be made.
    #[error("making a certificate failed")]
    Issue(#[from] rcgen::Error),
    /// A PEM text could not be read.
    #[error("the {what} is not usable PEM: {reason}")]
    Pem {
        /// Which text.
        what: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The certificate is not one that may sign others.
    #[error("the CA certificate may not sign certificates")]
    NotAnAuthority,
    /// rustls refused the certificate, the key, or the two together.
    #[error("TLS refused the certificate or key")]
    Rustls(#[from] rustls::Error),
    /// The roots do not make a verifier.
    #[error("the CA certificates make no verifier: {0}")]
    Verifier(String),
    /// Peers will refuse the node's own certificate.
    #[error("the authorities trusted do not accept the node's own certificate: {0}")]
    OwnCertificate(rustls::Error),
    /// The certificate is not valid for the name.
    #[error("the certificate is not valid for the name `{0}`")]
    WrongName(String),
}

/// Why a private file was not written. The file, if it existed, is as it was.
#[derive(Debug, thiserror::Error)]
#[error("cannot create {}", path.display())]
pub struct WritePrivateError {
    /// The file.
    pub path: PathBuf,
    /// The reason; [`io::ErrorKind::AlreadyExists`] when there was such a file.
    pub source: io::Error,
}

/// The authority of a cluster: its certificate and its private key.
#[derive(Debug)]
pub struct CertificateAuthority {
    cert_pem: String,
    key: KeyPair,
}

/// A node's certificate and its private key.
#[derive(Clone)]
pub struct IssuedCertificate {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PKCS #8 PEM. Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedCertificate").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl CertificateAuthority {
    /// A new authority with a new key, valid for [`CA_VALIDITY_YEARS`].
    pub fn generate(cluster_name: &str) -> Result<Self, TlsError> {
        let length = cluster_name.len();
        if length == 0 || length > CLUSTER_NAME_BYTES_MAX || cluster_name.chars().any(char::is_control) {
            return Err(TlsError::ClusterName);
        }
        let key = KeyPair::generate()?;
        let mut params = dated(CertificateParams::default(), CA_VALIDITY_YEARS);
        params.distinguished_name = common_name(&format!("Godwit CA {cluster_name}"));
        // Signs node certificates, and no further authorities.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key)?.pem();
        Ok(Self { cert_pem, key })
    }

    /// An authority from the texts that [`Self::cert_pem`] and [`Self::key_pem`] gave.
    ///
    /// Refused if the key is not the certificate's or the certificate may not sign others.
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let certificates = certificates("CA certificate", cert_pem)?;
        // Fails when the two do not belong together.
        CertifiedKey::from_der(certificates.clone(), private_key(key_pem)?, &provider())?;
        let key = KeyPair::from_pem(key_pem)?;
        let issuer = Issuer::from_ca_cert_der(&certificates[0], &key)?;
        if !issuer.key_usages().contains(&KeyUsagePurpose::KeyCertSign) {
            return Err(TlsError::NotAnAuthority);
        }
        drop(issuer);
        Ok(Self { cert_pem: cert_pem.to_owned(), key })
    }

    /// The authority's certificate, PEM. Every node needs it.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's private key, PKCS #8 PEM. Secret: whoever has it can be any node.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A certificate with a new key for the node, valid for [`NODE_VALIDITY_YEARS`].
    pub fn issue(&self, node_name: &str) -> Result<IssuedCertificate, TlsError> {
        validate_node_name(node_name)?;
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(vec![node_name.to_owned()])?;
        let mut params = dated(params, NODE_VALIDITY_YEARS);
        // The name lives in the subject alternative name, where TLS looks; a common name would be cut at 64 bytes.
        params.distinguished_name = common_name("Godwit node");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_pem(&self.cert_pem, &self.key)?;
        let cert_pem = params.signed_by(&key, &issuer)?.pem();
        Ok(IssuedCertificate { cert_pem, key_pem: key.serialize_pem() })
    }
}

/// What a node needs to prove who it is and to verify others.
#[derive(Debug)]
pub struct TlsIdentity {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl TlsIdentity {
    /// Reads the authorities trusted, the node's certificate (chain, own first) and its private key.
    ///
    /// Refused if a text holds no such thing or the key is not the certificate's.
    pub fn load(ca_pem: &str, cert_pem: &str, key_pem: &str) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates("CA certificate", ca_pem)? {
            roots.add(root)?;
        }
        let chain = certificates("node certificate", cert_pem)?;
        let key = private_key(key_pem)?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())?;
        Ok(Self { roots: Arc::new(roots), chain, key })
    }

    /// A secret of this node for one purpose, the same at each start.
    pub(crate) fn derive_secret(&self, purpose: &'static str) -> [u8; 32] {
        blake3::derive_key(purpose, self.key.secret_der())
    }

    /// Checks that this identity's certificate is valid for the node name, now, by the authorities trusted.
    pub fn verify_own_name(&self, node_name: &str) -> Result<(), TlsError> {
        let wrong_name = || TlsError::WrongName(node_name.to_owned());
        let (own, intermediates) = self.chain.split_first().ok_or_else(wrong_name)?;
        if !is_valid_for(own, node_name) {
            return Err(wrong_name());
        }
        // What peers with the same authorities will say: better here, once, than at every link.
        let name = ServerName::try_from(node_name.to_owned()).map_err(|_| wrong_name())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|error| TlsError::Verifier(error.to_string()))?;
        verifier
            .verify_server_cert(own, intermediates, &name, &[], UnixTime::now())
            .map(drop)
            .map_err(TlsError::OwnCertificate)
    }

    /// The accepting end: presents this identity and requires a certificate of the same authorities.
    pub fn server_config(&self) -> Result<quinn::ServerConfig, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|error| TlsError::Verifier(error.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn();
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = QuicServerConfig::try_from(config).map_err(no_initial_suite)?;
        Ok(quinn::ServerConfig::with_crypto(Arc::new(config)))
    }

    /// The dialling end: presents this identity and verifies the server's certificate against the name dialled.
    pub fn client_config(&self) -> Result<quinn::ClientConfig, TlsError> {
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn();
        config.resumption = rustls::client::Resumption::disabled();
        let config = QuicClientConfig::try_from(config).map_err(no_initial_suite)?;
        Ok(quinn::ClientConfig::new(Arc::new(config)))
    }
}

/// Checks that a name can name a node: a lowercase DNS name of up to 253 bytes, not an IP address.
pub fn validate_node_name(name: &str) -> Result<(), TlsError> {
    let is_dns = matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_)));
    let is_lowercase = !name.bytes().any(|byte| byte.is_ascii_uppercase());
    if is_dns && is_lowercase && name.len() <= NODE_NAME_BYTES_MAX {
        Ok(())
    } else {
        Err(TlsError::NodeName(name.to_owned()))
    }
}

/// Creates a file that only its owner can read, with the text in it, durably. Never overwrites.
pub fn write_private(path: &Path, pem: &str) -> Result<(), WritePrivateError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || {
        let mut file = options.open(path)?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|source| WritePrivateError { path: path.to_owned(), source })
}

/// Whether a certificate, whose chain TLS has verified already, is valid for the node name.
pub(crate) fn is_valid_for(certificate: &CertificateDer<'_>, node_name: &str) -> bool {
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(certificate), ServerName::try_from(node_name))
    else {
        return false;
    };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn no_initial_suite(error: quinn::crypto::rustls::NoInitialCipherSuite) -> TlsError {
    TlsError::Verifier(error.to_string())
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refuse = |reason: String| TlsError::Pem { what, reason };
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
        .take(CERTIFICATES_MAX + 1)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refuse(error.to_string()))?;
    match certificates.len() {
        0 => Err(refuse("it holds no certificate".to_owned())),
        1..=CERTIFICATES_MAX => Ok(certificates),
        _ => Err(refuse(format!("it holds more than {CERTIFICATES_MAX} certificates"))),
    }
}

fn private_key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| TlsError::Pem { what: "private key", reason: error.to_string() })
}

fn common_name(name: &str) -> rcgen::DistinguishedName {
    let mut distinguished_name = rcgen::DistinguishedName::new();
    distinguished_name.push(DnType::CommonName, name);
    distinguished_name
}

fn dated(mut params: CertificateParams, years: i32) -> CertificateParams {
    // A clock before 1970 gives certificates from 1970.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (year, month, day) = civil_date(now.saturating_sub(BACKDATE_SECONDS) / 86_400);
    params.not_before = rcgen::date_time_ymd(year, month, day);
    params.not_after = rcgen::date_time_ymd(year + years, month, day);
    params
}

/// The date so many days after 1970-01-01, with the day at most 28, so that it exists in every year.
///
/// Hinnant's `civil_from_days`, for days that are not negative.
fn civil_date(days: u64) -> (i32, u8, u8) {
    // Beyond year 9000 dates are no longer expressible in a certificate; no clock says that in earnest.
    let shifted = days.min(2_560_000) + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year as i32, month as u8, day.min(28) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(59), (1970, 3, 1));
        assert_eq!(civil_date(11_016), (2000, 2, 28), "the 29th, kept at 28");
        assert_eq!(civil_date(20_000), (2024, 10, 4));
        assert_eq!(civil_date(u64::MAX).0, 8_979);
    }

    #[test]
    fn certificates_are_valid_for_their_name_only() {
        let ca = CertificateAuthority::generate("test").unwrap();
        let ca = CertificateAuthority::from_pem(ca.cert_pem(), &ca.key_pem()).unwrap();
        let issued = ca.issue("eu-1").unwrap();
        let identity = TlsIdentity::load(ca.cert_pem(), &issued.cert_pem, &issued.key_pem).unwrap();
        identity.verify_own_name("eu-1").unwrap();
        assert!(matches!(identity.verify_own_name("eu-2"), Err(TlsError::WrongName(_))));
        identity.server_config().unwrap();
        identity.client_config().unwrap();
    }

    #[test]
    fn a_certificate_that_the_own_authorities_do_not_accept_is_refused() {
        let (ours, theirs) =
            (CertificateAuthority::generate("a").unwrap(), CertificateAuthority::generate("b").unwrap());
        let issued = ours.issue("eu-1").unwrap();
        let load = |roots: &str| TlsIdentity::load(roots, &issued.cert_pem, &issued.key_pem).unwrap();
        assert!(matches!(load(theirs.cert_pem()).verify_own_name("eu-1"), Err(TlsError::OwnCertificate(_))));
        // While nodes move from one authority to the next, both are trusted.
        let both = format!("{}{}", theirs.cert_pem(), ours.cert_pem());
        load(&both).verify_own_name("eu-1").unwrap();
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let ca = CertificateAuthority::generate("test").unwrap();
        let (a, b) = (ca.issue("a").unwrap(), ca.issue("b").unwrap());
        TlsIdentity::load(ca.cert_pem(), &a.cert_pem, &b.key_pem).unwrap_err();
        TlsIdentity::load("", &a.cert_pem, &a.key_pem).unwrap_err();
        TlsIdentity::load(ca.cert_pem(), &a.cert_pem, "junk").unwrap_err();
        CertificateAuthority::from_pem(ca.cert_pem(), &a.key_pem).unwrap_err();
        let not_ca = CertificateAuthority::from_pem(&a.cert_pem, &a.key_pem);
        assert!(matches!(not_ca, Err(TlsError::NotAnAuthority)));
    }

    #[test]
    fn names_are_lowercase_dns() {
        for good in ["eu-1", "a", "node.eu.example", "x_1"] {
            validate_node_name(good).unwrap();
        }
        let long = "a".repeat(64);
        for bad in ["", "EU", "10.0.0.1", "::1", "a b", "-a", "*.eu", "é", long.as_str()] {
            validate_node_name(bad).unwrap_err();
        }
        CertificateAuthority::generate("").unwrap_err();
        CertificateAuthority::generate("a\nb").unwrap_err();
    }

    #[cfg(unix)]
    #[test]
    fn private_files_are_private_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        write_private(&path, "secret").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let error = write_private(&path, "other").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "secret");
    }
}
