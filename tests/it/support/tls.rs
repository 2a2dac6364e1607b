//! Certificates for tests: one authority a process, and leaves that are good or wrong in a known way.

use std::sync::{Arc, OnceLock};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The names of every loopback address that the kit uses.
const NAMES: [&str; 6] = ["localhost", "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"];

/// What is wrong with a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Certificate {
    /// Nothing.
    Good,
    /// Its time is over.
    Expired,
    /// It is for another host.
    WrongName,
    /// It is signed by itself.
    UnknownAuthority,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pem {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

/// The certificate of the authority that clients of the kit trust, in PEM.
pub fn authority_pem() -> String {
    authority().pem()
}

/// A certificate for every loopback address, or one that is wrong.
pub fn leaf(kind: Certificate) -> Pem {
    let names: &[&str] = if kind == Certificate::WrongName { &["registry.invalid"] } else { &NAMES };
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    if kind == Certificate::Expired {
        (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    }
    let key = KeyPair::generate().unwrap();
    let cert = match kind {
        Certificate::UnknownAuthority => params.self_signed(&key),
        _ => params.signed_by(&key, authority()),
    };
    Pem { cert: cert.unwrap().pem(), key: key.serialize_pem() }
}

/// For a server that shows such a certificate.
pub fn server(kind: Certificate) -> Arc<ServerConfig> {
    let (chain, key) = leaf(kind).parsed();
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())
}

/// For a server that asks its clients for a certificate of the authority, and takes those that show none too.
pub fn server_that_asks() -> Arc<ServerConfig> {
    let (chain, key) = leaf(Certificate::Good).parsed();
    let mut roots = RootCertStore::empty();
    roots.add(authority().der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).allow_unauthenticated().build().unwrap();
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap())
}

/// For a client that trusts the authority, and shows a certificate if it has one.
pub fn client(own: Option<&Pem>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(authority().der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    Arc::new(match own.map(Pem::parsed) {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    })
}

impl Pem {
    fn parsed(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.cert.as_bytes()).map(Result::unwrap).collect();
        (chain, PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap())
    }
}

fn authority() -> &'static CertifiedIssuer<'static, KeyPair> {
    static AUTHORITY: OnceLock<CertifiedIssuer<'static, KeyPair>> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    })
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
