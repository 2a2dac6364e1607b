//! Certificates: loaded from PEM files, shown to clients, loaded again on demand.
//!
//! Promises that a mistake in a file is told with the file's name, that a reload that fails leaves the old certificates in use, and
//! that a session can be resumed on any connection of this process, until a certificate changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::Tls;

/// A certificate, key or CA file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read, or is not PEM.
    #[error("{}: {}", path.display(), describe(reason))]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: pem::Error,
    },
    /// A readable file without what it is for.
    #[error("{}: no {what} inside", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The key is not the one of the certificate.
    #[error("{}: this key does not belong to the certificate in {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate or key that TLS cannot work with.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: rustls::Error,
    },
    /// A CA file from which no verifier can be made.
    #[error("{}: {reason}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: VerifierBuilderError,
    },
}

fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The certificates of a listener. A cheap handle: whoever holds a clone may [`Certificates::reload`].
#[derive(Clone)]
pub struct Certificates(Arc<Inner>);

struct Inner {
    files: Tls,
    /// Held to look at it or replace it, never longer.
    current: RwLock<Current>,
}

/// The configuration in use. When a file has changed all of it is replaced, with its session tickets: a client that resumes a session is not
/// asked for its certificate again, so a ticket must not outlive the CA it was judged by.
struct Current {
    config: Arc<ServerConfig>,
    /// Of the files.
    contents: Vec<Vec<u8>>,
}

impl Certificates {
    /// Reads the files.
    pub fn load(files: &Tls) -> Result<Self, TlsError> {
        let current = RwLock::new(Current::read(files)?);
        Ok(Self(Arc::new(Inner { files: files.clone(), current })))
    }

    /// Reads the files again, for the connections to come. On an error the old certificates stay in use; where nothing has changed so do
    /// the sessions.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Current::read(&self.0.files)?;
        let mut current = self.0.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.contents != fresh.contents {
            *current = fresh;
        }
        Ok(())
    }

    /// Where they are read from.
    pub fn files(&self) -> Vec<PathBuf> {
        paths(&self.0.files).cloned().collect()
    }

    pub(super) fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner).config)
    }
}

impl Current {
    fn read(files: &Tls) -> Result<Self, TlsError> {
        // What cannot be read is told of below.
        let contents = paths(files).map(|path| std::fs::read(path).unwrap_or_default()).collect();
        Ok(Self { config: Arc::new(configure(files)?), contents })
    }
}

fn paths(Tls { cert, key, client_ca }: &Tls) -> impl Iterator<Item = &PathBuf> {
    [cert, key].into_iter().chain(client_ca)
}

fn configure(files: &Tls) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| file(&files.key, "private key", error))?;
    let unusable = |path: &Path| {
        let path = path.to_owned();
        move |reason| TlsError::Unusable { path, reason }
    };
    let builder =
        ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions().map_err(unusable(&files.cert))?;
    let builder = match &files.client_ca {
        Some(path) => builder.with_client_cert_verifier(verifier(path, &provider)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|reason| match reason {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch { cert: files.cert.clone(), key: files.key.clone() },
        rustls::Error::General(_) => TlsError::Unusable { path: files.key.clone(), reason },
        _ => TlsError::Unusable { path: files.cert.clone(), reason },
    })?;
    // In order of preference; see the top of listen.rs.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(unusable(&files.key))?;
    Ok(config)
}

/// Accepts clients without a certificate; whether one is needed is `access`'s decision.
fn verifier(path: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|reason| TlsError::Unusable { path: path.to_owned(), reason })?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .allow_unauthenticated()
        .build()
        .map_err(|reason| TlsError::ClientCa { path: path.to_owned(), reason })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let of_file = |error| file(path, "certificate", error);
    let chain: Vec<_> = CertificateDer::pem_file_iter(path).map_err(of_file)?.collect::<Result<_, _>>().map_err(of_file)?;
    if chain.is_empty() { Err(of_file(pem::Error::NoItemsFound)) } else { Ok(chain) }
}

fn file(path: &Path, what: &'static str, reason: pem::Error) -> TlsError {
    let path = path.to_owned();
    match reason {
        pem::Error::NoItemsFound => TlsError::Empty { path, what },
        reason => TlsError::File { path, reason },
    }
}
