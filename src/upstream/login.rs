//! Credentials and certificates: what is read from files that the configuration names.
//!
//! Owns [`Login`]. The password is read at start and again on SIGHUP, and is never shown: no Debug, no Display, and the
//! header made of it is marked so that no log prints it.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use hyper::header::HeaderValue;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::Credentials;

/// The largest password file that is read, in bytes: registry tokens have up to some four thousand.
const PASSWORD_BYTES_MAX: usize = 16 << 10;

/// A login whose password may change while the program runs.
pub(super) struct Login {
    credentials: Credentials,
    // std: held for a clone, never across an await.
    current: RwLock<Arc<Secret>>,
}

/// A user name and password as they are sent.
pub(super) struct Secret {
    /// Differs for each password, so that a token fetched with an old one is not used for the new.
    pub(super) id: u64,
    /// `Basic …`
    pub(super) basic: HeaderValue,
}

impl Login {
    pub(super) fn read(credentials: &Credentials) -> Result<Self, String> {
        let secret = Secret { id: 1, basic: basic(credentials)? };
        Ok(Self { credentials: credentials.clone(), current: RwLock::new(Arc::new(secret)) })
    }

    /// Reads the file again. What cannot be read leaves the old password in use.
    pub(super) fn reload(&self) -> Result<(), String> {
        let basic = basic(&self.credentials)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.basic != basic {
            *current = Arc::new(Secret { id: current.id + 1, basic });
        }
        Ok(())
    }

    pub(super) fn secret(&self) -> Arc<Secret> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn file(&self) -> &Path {
        &self.credentials.password_file
    }
}

fn basic(credentials: &Credentials) -> Result<HeaderValue, String> {
    let text = std::fs::read_to_string(&credentials.password_file).map_err(|error| error.to_string())?;
    let password = text.trim();
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX || password.contains(char::is_control) {
        return Err(format!("it should hold one password of at most {PASSWORD_BYTES_MAX} bytes and nothing else"));
    }
    let user = &credentials.username;
    if user.is_empty() || user.contains(':') || user.contains(char::is_control) {
        return Err("the user name beside it is empty, or has a colon or a control character".to_owned());
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| error.to_string())?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| format!("it is not PEM ({error})"))?;
    let mut roots = rustls::RootCertStore::empty();
    if roots.add_parsable_certificates(found.iter().cloned()).0 == 0 {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_read_trimmed_and_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("password");
        let credentials = Credentials { username: "user".to_owned(), password_file: file.clone() };
        assert!(Login::read(&credentials).is_err(), "there is no file");
        for bad in ["", " \n", "two\nlines"] {
            std::fs::write(&file, bad).expect("written");
            assert!(Login::read(&credentials).is_err(), "{bad:?}");
        }
        std::fs::write(&file, "pass\n").expect("written");
        let login = Login::read(&credentials).expect("read");
        let first = login.secret();
        assert_eq!(first.basic, "Basic dXNlcjpwYXNz");
        assert!(first.basic.is_sensitive());

        login.reload().expect("read");
        assert_eq!(login.secret().id, first.id, "the same password is the same credential");
        std::fs::write(&file, "other").expect("written");
        login.reload().expect("read");
        assert_ne!(login.secret().id, first.id);
        std::fs::remove_file(&file).expect("removed");
        let current = login.secret().id;
        assert!(login.reload().is_err());
        assert_eq!(login.secret().id, current, "the old password stays in use");
    }

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
}
