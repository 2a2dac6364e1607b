//! Certificates for upstreams: whom to trust beside the system's authorities, and who millpond is.
//!
//! Owns [`Identity`], a client certificate that may be replaced while the program runs. Its key leaves this process by no way
//! but a signature.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::ClientCertificate;

/// A client certificate and its key.
pub(super) struct Identity {
    files: ClientCertificate,
    // std: held for a clone, never across an await.
    current: RwLock<Arc<CertifiedKey>>,
}

/// What is wrong, and in which of the two files.
#[derive(Debug)]
pub(super) struct Unusable {
    /// `client_cert` or `client_key`.
    pub(super) key: &'static str,
    pub(super) path: PathBuf,
    pub(super) why: String,
}

impl Identity {
    pub(super) fn read(files: &ClientCertificate) -> Result<Self, Unusable> {
        Ok(Self { files: files.clone(), current: RwLock::new(certified(files)?) })
    }

    /// Reads the files again, for the connections to come. What cannot be used leaves the old certificate in use.
    pub(super) fn reload(&self) -> Result<(), Unusable> {
        let fresh = certified(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.files.cert).finish()
    }
}

fn certified(files: &ClientCertificate) -> Result<Arc<CertifiedKey>, Unusable> {
    let wrong = |key, path: &Path| {
        let path = path.to_owned();
        move |why: String| Unusable { key, path, why }
    };
    let chain = chain(&files.cert).map_err(wrong("client_cert", &files.cert))?;
    let of_key = || wrong("client_key", &files.key);
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| format!("it holds no private key in PEM ({error})")).map_err(of_key())?;
    let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
    certified.map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => of_key()(format!("it is not the key of {}", files.cert.display())),
        rustls::Error::InvalidCertificate(why) => wrong("client_cert", &files.cert)(why.to_string()),
        other => of_key()(other.to_string()),
    })
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = chain(path)?;
    let mut roots = rustls::RootCertStore::empty();
    if roots.add_parsable_certificates(found.iter().cloned()).0 == 0 {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(found)
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| format!("it is not PEM ({error})"))?;
    if found.is_empty() { Err("it holds no certificate in PEM".to_owned()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("ca.pem");
        assert!(certificates(&file).is_err());
        std::fs::write(&file, "hello").expect("written");
        assert!(certificates(&file).is_err());
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).expect("made");
        std::fs::write(&file, made.cert.pem()).expect("written");
        assert_eq!(certificates(&file).expect("read").len(), 1);
    }

    #[test]
    fn a_certificate_and_its_key_belong_together_and_are_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = ClientCertificate { cert: dir.path().join("client.crt"), key: dir.path().join("client.key") };
        let made = || rcgen::generate_simple_self_signed(["millpond".to_owned()]).expect("made");
        let (one, other) = (made(), made());
        let write = |cert: String, key: String| {
            std::fs::write(&files.cert, cert).expect("written");
            std::fs::write(&files.key, key).expect("written");
        };
        assert_eq!(Identity::read(&files).expect_err("no file").key, "client_cert");
        write(one.cert.pem(), "hello".to_owned());
        assert_eq!(Identity::read(&files).expect_err("no key").key, "client_key");
        write(one.cert.pem(), other.signing_key.serialize_pem());
        let what = Identity::read(&files).expect_err("another's key");
        assert!(what.key == "client_key" && what.why.starts_with("it is not the key of"), "{what:?}");
        write(one.cert.pem(), one.signing_key.serialize_pem());
        let identity = Identity::read(&files).expect("read");
        let shown = || identity.resolve(&[], &[]).expect("a certificate").cert[0].clone();
        assert_eq!(shown(), *one.cert.der());
        write("hello".to_owned(), String::new());
        assert!(identity.reload().is_err());
        assert_eq!(shown(), *one.cert.der(), "the old certificate stays");
        write(other.cert.pem(), other.signing_key.serialize_pem());
        identity.reload().expect("read");
        assert_eq!(shown(), *other.cert.der());
    }
}
