//! Who millpond is at an upstream: a password file, or what Docker's `config.json` says.
//!
//! Owns [`Login`]. What it reads is read again when it changed, on SIGHUP, and when the upstream refuses it; a mistake in what
//! changed leaves the old login in use and is told in one line. Nothing is ever shown: no Debug, no Display, and the header made
//! of it is marked so that no log prints it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use hyper::header::HeaderValue;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::Credentials;
use super::budget::Limits;
use super::docker::{self, Found, Helper};
use crate::oci::Registry;
use crate::version::Version;

/// The largest password that is taken, in bytes: registry tokens have up to some four thousand.
const PASSWORD_BYTES_MAX: usize = 16 << 10;

/// A disk that takes longer to show a small file is not waited for: the old login is used meanwhile.
const LOOK_TIME_MAX: Duration = Duration::from_secs(1);

/// The number of the next password: no two of one process have the same, whatever accounts they are of.
static SECRETS: AtomicU64 = AtomicU64::new(1);

/// A login that may change while the program runs. Cheap to clone.
#[derive(Clone)]
pub(super) struct Login(Arc<Inner>);

struct Inner {
    upstream: Registry,
    source: Credentials,
    limits: Arc<Limits>,
    // std: held for a look-up, never across an await.
    state: RwLock<State>,
    /// One look, and one helper, at a time.
    looking: tokio::sync::Mutex<()>,
}

struct State {
    secret: Option<Arc<Secret>>,
    version: Option<Version>,
    looked: Instant,
    helper: Option<Asked>,
}

/// A helper, and how it is doing.
struct Asked {
    helper: Helper,
    /// What it said is used until then; nothing was said yet, or no more.
    good_until: Option<Instant>,
    /// When a refused login was the reason to ask.
    refused_at: Option<Instant>,
    failed: bool,
}

/// A user name and password as they are sent.
pub(super) struct Secret {
    /// Differs for each password, so that a token fetched with an old one is not used for the new.
    pub(super) id: u64,
    /// `Basic …`
    pub(super) basic: HeaderValue,
}

impl Login {
    /// Reads the file. A helper is asked when the login is needed.
    pub(super) fn read(upstream: &Registry, source: &Credentials, limits: &Arc<Limits>) -> Result<Self, String> {
        let state = State { secret: None, version: Version::of(source.file()), looked: Instant::now(), helper: None };
        let (source, limits) = (source.clone(), Arc::clone(limits));
        let login = Self(Arc::new(Inner {
            upstream: upstream.clone(),
            state: RwLock::new(state),
            source,
            limits,
            looking: tokio::sync::Mutex::default(),
        }));
        login.0.take(login.0.found()?);
        Ok(login)
    }

    /// Reads the file again, and has the helper asked again. What cannot be read leaves the old login in use.
    pub(super) fn reload(&self) -> Result<(), String> {
        let version = Version::of(self.file());
        let found = self.0.found()?;
        self.0.write().version = version;
        self.0.take(found);
        if let Some(asked) = &mut self.0.write().helper {
            asked.good_until = None;
        }
        Ok(())
    }

    /// Who to be now; nothing is nobody in particular.
    pub(super) async fn secret(&self) -> Option<Arc<Secret>> {
        self.0.look(self.0.limits.look).await;
        self.0.ask().await;
        self.now()
    }

    /// The same, without a look at what it is made of.
    pub(super) fn now(&self) -> Option<Arc<Secret>> {
        self.0.read().secret.clone()
    }

    /// The upstream refused `refused`: whether there is another one by now.
    pub(super) async fn renewed(&self, refused: &Secret) -> bool {
        let another = || self.now().is_some_and(|now| now.id != refused.id);
        if another() {
            return true;
        }
        self.0.look(Duration::ZERO).await;
        if !another() {
            self.0.doubt();
            self.0.ask().await;
        }
        another()
    }

    pub(super) fn file(&self) -> &Path {
        self.0.source.file()
    }

    pub(super) fn key(&self) -> &'static str {
        self.0.source.key()
    }
}

impl Credentials {
    pub(super) fn file(&self) -> &Path {
        match self {
            Self::Password { password_file: file, .. } | Self::Docker { config: file } => file,
        }
    }

    /// The key that names the file.
    pub(super) fn key(&self) -> &'static str {
        match self {
            Self::Password { .. } => "password_file",
            Self::Docker { .. } => "docker_config",
        }
    }
}

impl Inner {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self) -> Result<Found, String> {
        match &self.source {
            Credentials::Password { username, password_file } => {
                let bytes = read_up_to(password_file, PASSWORD_BYTES_MAX as u64 + 1)?;
                let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
                basic(username, text.trim()).map(Found::Login)
            }
            Credentials::Docker { config } => docker::find(&read_up_to(config, docker::FILE_BYTES_MAX + 1)?, &self.upstream),
        }
    }

    fn take(&self, found: Found) {
        let mut state = self.write();
        match found {
            Found::Login(basic) => {
                state.helper = None;
                state.set(Some(basic));
            }
            Found::Nobody => {
                state.helper = None;
                state.set(None);
            }
            Found::Helper(helper) => {
                if state.helper.as_ref().is_none_or(|asked| asked.helper != helper) {
                    state.helper = Some(Asked { helper, good_until: None, refused_at: None, failed: false });
                }
            }
        }
    }

    /// Reads the file again if it changed, where the last look is `age` old.
    async fn look(self: &Arc<Self>, age: Duration) {
        if self.read().looked.elapsed() < age {
            return;
        }
        let Ok(_looking) = self.looking.try_lock() else { return };
        self.write().looked = Instant::now();
        let this = Arc::clone(self);
        // Where it takes too long it goes on, and what it finds is used later.
        let _ = timeout(LOOK_TIME_MAX, spawn_blocking(move || this.look_now())).await;
    }

    fn look_now(&self) {
        let version = Version::of(self.source.file());
        if std::mem::replace(&mut self.write().version, version) == version {
            return;
        }
        let (upstream, file) = (&self.upstream, self.source.file().display());
        match self.found() {
            Ok(found) => {
                self.take(found);
                info!(%upstream, %file, "the file of the login changed and was read again");
            }
            Err(why) => warn!(%upstream, %file, why, "the file of the login changed and cannot be used; the old login stays"),
        }
    }

    /// What the helper said was refused: it is asked again, but not for every refusal.
    fn doubt(&self) {
        let mut state = self.write();
        let Some(asked) = &mut state.helper else { return };
        if asked.refused_at.is_none_or(|at| at.elapsed() >= self.limits.helper_pause) {
            (asked.refused_at, asked.good_until) = (Some(Instant::now()), None);
        }
    }

    /// Asks the helper where it is time to. Who comes meanwhile waits: it would only be nobody.
    async fn ask(&self) {
        let due = || {
            let state = self.read();
            let asked = state.helper.as_ref()?;
            asked.good_until.is_none_or(|until| until <= Instant::now()).then(|| asked.helper.clone())
        };
        if due().is_none() {
            return;
        }
        let _looking = self.looking.lock().await;
        let Some(helper) = due() else { return };
        let answer = helper.ask(self.limits.helper).await;
        let mut state = self.write();
        let Some(asked) = state.helper.as_mut().filter(|asked| asked.helper == helper) else { return };
        let had_failed = std::mem::replace(&mut asked.failed, answer.is_err());
        // One that has nothing may have something soon: somebody logs in.
        let life = if matches!(answer, Ok(Some(_))) { self.limits.helper_life } else { self.limits.helper_pause };
        asked.good_until = Some(Instant::now() + life);
        match answer {
            Ok(basic) => state.set(basic),
            Err(why) if !had_failed => {
                let instead = if state.secret.is_some() { "the old login stays" } else { "it is asked as anybody" };
                drop(state);
                warn!(upstream = %self.upstream, why, "the credential helper gave no login; {instead}");
            }
            Err(_) => {}
        }
    }
}

impl State {
    fn set(&mut self, basic: Option<HeaderValue>) {
        if self.secret.as_ref().map(|secret| &secret.basic) != basic.as_ref() {
            let id = SECRETS.fetch_add(1, Ordering::Relaxed);
            self.secret = basic.map(|basic| Arc::new(Secret { id, basic }));
        }
    }
}

fn read_up_to(file: &Path, bytes: u64) -> Result<Vec<u8>, String> {
    let mut read = Vec::new();
    File::open(file).and_then(|file| file.take(bytes).read_to_end(&mut read)).map_err(|error| error.to_string())?;
    if read.len() as u64 >= bytes { Err("it is too large".to_owned()) } else { Ok(read) }
}

/// The header of a user name and a password.
pub(super) fn basic(user: &str, password: &str) -> Result<HeaderValue, String> {
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX || password.contains(char::is_control) {
        return Err(format!("it should hold one password of at most {PASSWORD_BYTES_MAX} bytes and nothing else"));
    }
    if user.is_empty() || user.contains(':') || user.contains(char::is_control) {
        return Err("the user name is empty, or has a colon or a control character".to_owned());
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).map_err(|error| error.to_string())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(source: &Credentials) -> Result<Login, String> {
        let limits = Limits { look: Duration::ZERO, ..Limits::default() };
        Login::read(&Registry::parse("r.test").expect("a registry"), source, &Arc::new(limits))
    }

    async fn sent(login: &Login) -> Option<String> {
        login.secret().await.map(|secret| secret.basic.to_str().expect("text").to_owned())
    }

    #[tokio::test]
    async fn a_password_is_read_trimmed_and_read_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("password");
        let source = Credentials::Password { username: "user".to_owned(), password_file: file.clone() };
        assert!(login(&source).is_err(), "there is no file");
        for bad in ["", " \n", "two\nlines"] {
            std::fs::write(&file, bad).expect("written");
            assert!(login(&source).is_err(), "{bad:?}");
        }
        std::fs::write(&file, "pass\n").expect("written");
        let login = login(&source).expect("read");
        let first = login.secret().await.expect("a login");
        assert_eq!(first.basic, "Basic dXNlcjpwYXNz");
        assert!(first.basic.is_sensitive());

        login.reload().expect("read");
        assert_eq!(login.now().expect("a login").id, first.id, "the same password is the same credential");
        assert!(!login.renewed(&first).await);
        std::fs::write(&file, "other").expect("written");
        login.reload().expect("read");
        let second = login.now().expect("a login");
        assert_ne!(second.id, first.id);
        std::fs::remove_file(&file).expect("removed");
        assert!(login.reload().is_err());
        assert_eq!(login.secret().await.expect("a login").id, second.id, "the old password stays in use");
        std::fs::write(&file, "third").expect("written");
        assert!(login.renewed(&second).await, "what is refused is looked at");
        assert_eq!(sent(&login).await.as_deref(), Some("Basic dXNlcjp0aGlyZA=="));
    }

    #[tokio::test]
    async fn a_file_of_docker_is_read_again_when_it_changed_and_a_mistake_in_it_changes_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("config.json");
        let write = |text: &str| std::fs::write(&file, text).expect("written");
        write("{");
        let source = Credentials::Docker { config: file.clone() };
        assert!(login(&source).is_err());
        write(r#"{"auths":{}}"#);
        let login = login(&source).expect("read");
        assert_eq!(sent(&login).await, None);
        write(r#"{"auths":{"r.test":{"auth":"dTpw"}}}"#);
        assert_eq!(sent(&login).await.as_deref(), Some("Basic dTpw"));
        write(r#"{"auths":{"r.test":{"au"#);
        assert_eq!(sent(&login).await.as_deref(), Some("Basic dTpw"));
        write(r#"{"auths":{"r.test":{"auth":"djpx"}}}"#);
        assert_eq!(sent(&login).await.as_deref(), Some("Basic djpx"));
        write("{}");
        assert_eq!(sent(&login).await, None, "logged out");
    }

    #[test]
    fn files_are_read_up_to_a_limit() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("password");
        std::fs::write(&file, "x".repeat(PASSWORD_BYTES_MAX + 1)).expect("written");
        let source = Credentials::Password { username: "user".to_owned(), password_file: file };
        assert_eq!(login(&source).err().as_deref(), Some("it is too large"));
    }
}
