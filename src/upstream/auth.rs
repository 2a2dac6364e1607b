//! Challenge to token: how millpond proves to a registry that it may pull.
//!
//! Owns [`Auth`], the tokens of one upstream. Promises: a password is sent to no token service but those that
//! [`check_realm`] lets through, where not even a connection is made to any other (CVE-2026-33540); any number of
//! waiting calls costs one token request, which goes on if the caller that began it leaves; a token's age is measured
//! from its receipt on the monotonic clock, whatever the server's date says. The scope is built here, from a parsed
//! name, and asks for `pull` only.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use hyper::Method;
use hyper::header::HeaderValue;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tracing::warn;
use url::Url;

use super::accounts::ANYBODY;
use super::budget::Deadline;
use super::connect::Reach;
use super::error::{Error, Flaw, Refusal, Why, is_passing};
use super::headers;
use super::health::Health;
use super::login::Secret;
use super::redirect::host_of;
use super::token::Token;
use super::wire::{Outgoing, Wire, read_whole, settle};
use crate::observe::Kind;
use crate::oci::Name;

/// The largest answer of a token service that is read, in bytes. Tokens of large groups have some 20 000.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Tokens that are kept, at most: one for each repository, for minutes.
const TOKENS_MAX: usize = 4096;

/// A token service that may be asked.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenService {
    realm: Url,
    service: Option<String>,
}

/// What a token is asked for.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) service: Arc<TokenService>,
    pub(super) scope: String,
    pub(super) secret: Option<Arc<Secret>>,
    pub(super) reach: Reach,
    /// The token service is not of this upstream: a redirect led there.
    pub(super) foreign: bool,
}

/// A token to send, and whether it was here already: one that was may have been revoked since.
pub(super) struct Granted {
    pub(super) header: HeaderValue,
    pub(super) cached: bool,
}

/// A host that may issue tokens: `auth.example` (at its scheme's own port) or `auth.example:5001`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AuthHost {
    host: String,
    port: Option<u16>,
}

impl AuthHost {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(&format!("https://{text}/")).ok()?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        // The port is read from the text: Url drops 443, which is not http's.
        let port = match text.rsplit_once(':') {
            Some((_, digits)) if !text.ends_with(']') => Some(digits.parse().ok()?),
            _ => None,
        };
        (bare && url.password().is_none()).then_some(Self { host: url.host_str()?.to_owned(), port })
    }

    fn is_of(&self, url: &Url) -> bool {
        let port = match self.port {
            Some(port) => url.port_or_known_default() == Some(port),
            None => url.port().is_none(),
        };
        port && url.host_str() == Some(&self.host)
    }
}

/// The token service that a challenge of `asker` names, if it may be asked: on the asker's own host and port or on one
/// of `auth_hosts`, with TLS unless the asker itself has none. The parsed URL is compared, not its text.
pub(super) fn check_realm(realm: &str, service: Option<String>, asker: &Url, auth_hosts: &[AuthHost]) -> Result<TokenService, Error> {
    let host = host_of(asker);
    let Ok(mut realm) = Url::parse(realm) else { return Err(Error::BadAnswer { host, flaw: Flaw::Challenge }) };
    let refuse = |why| Err(Error::RefusedTarget { host: host.clone(), target: host_of(&realm), why });
    match realm.scheme() {
        "https" => {}
        "http" if asker.scheme() == "http" => {}
        "http" => return refuse(Refusal::Plain),
        _ => return refuse(Refusal::Scheme),
    }
    let own = realm.host_str() == asker.host_str() && realm.port_or_known_default() == asker.port_or_known_default();
    if !own && !auth_hosts.iter().any(|host| host.is_of(&realm)) {
        return refuse(Refusal::Realm);
    }
    // What else a realm may carry is not for it to say: who we are, and what the token is for.
    let _ = realm.set_username("");
    let _ = realm.set_password(None);
    realm.set_fragment(None);
    let kept: Vec<_> = realm.query_pairs().into_owned().filter(|(name, _)| name != "scope" && name != "service").collect();
    realm.set_query(None);
    if !kept.is_empty() {
        realm.query_pairs_mut().extend_pairs(kept);
    }
    Ok(TokenService { realm, service })
}

/// The scope of a token that pulls from a repository.
pub(super) fn pull_scope(name: &Name) -> String {
    format!("repository:{name}:pull")
}

/// The tokens of one upstream. Cheap to clone.
#[derive(Clone)]
pub(super) struct Auth(Arc<Inner>);

struct Inner {
    wire: Arc<Wire>,
    // std: both are held for a look-up, never across an await.
    slots: Mutex<HashMap<Key, Slot>>,
    services: Mutex<HashMap<String, Arc<Health>>>,
    requests: Semaphore,
    /// The passwords that were refused, by id, of which that was logged. One entry a password that somebody got wrong.
    refused: Mutex<HashSet<u64>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    service: Arc<TokenService>,
    scope: String,
    secret: u64,
}

type Fetching = Shared<BoxFuture<'static, Result<Token, Error>>>;

enum Slot {
    Ready(Token),
    Fetching(Fetching),
}

impl Auth {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        let requests = Semaphore::new(wire.limits.tokens);
        Self(Arc::new(Inner { wire, slots: Mutex::default(), services: Mutex::default(), requests, refused: Mutex::default() }))
    }

    /// A token: the one that is here, or the one that is being fetched, or a new one.
    pub(super) async fn token(&self, wanted: &Wanted) -> Result<Granted, Error> {
        let key = Key::of(wanted);
        let fetching = {
            let mut slots = self.0.lock();
            match slots.get(&key) {
                Some(Slot::Ready(token)) if Instant::now() < token.fresh_until => {
                    return Ok(Granted { header: token.header.clone(), cached: true });
                }
                Some(Slot::Fetching(fetching)) => fetching.clone(),
                _ => {
                    make_room(&mut slots);
                    let fetching = self.start(wanted.clone(), key.clone());
                    slots.insert(key, Slot::Fetching(fetching.clone()));
                    fetching
                }
            }
        };
        fetching.await.map(|token| Granted { header: token.header, cached: false })
    }

    /// Drops a token that a registry refused, if it is still the one that is kept: of many calls that were refused with
    /// it only the first drops it, the others find its successor.
    pub(super) fn forget(&self, wanted: &Wanted, refused: &HeaderValue) {
        let mut slots = self.0.lock();
        let key = Key::of(wanted);
        if matches!(slots.get(&key), Some(Slot::Ready(token)) if token.header == refused) {
            slots.remove(&key);
        }
    }

    /// Fetches in a task of its own: it ends by its deadline, whoever waits or has left.
    fn start(&self, wanted: Wanted, key: Key) -> Fetching {
        let host = host_of(&wanted.service.realm);
        let tenancy = Tenancy { auth: self.clone(), key };
        let task = tokio::spawn(async move {
            let result = tenancy.auth.0.fetch(&wanted).await.map_err(Error::of_token);
            tenancy.end(result.as_ref().ok());
            result
        });
        let broken = Error::of_token(Error::Unavailable { host, why: Why::Cut });
        async move { task.await.unwrap_or(Err(broken)) }.boxed().shared()
    }
}

impl Key {
    fn of(wanted: &Wanted) -> Self {
        let secret = wanted.secret.as_ref().map_or(0, |secret| secret.id);
        Self { service: Arc::clone(&wanted.service), scope: wanted.scope.clone(), secret }
    }
}

/// Expired tokens go first; if all are fresh, all go, since asking again is cheap.
fn make_room(slots: &mut HashMap<Key, Slot>) {
    if slots.len() < TOKENS_MAX {
        return;
    }
    let now = Instant::now();
    slots.retain(|_, slot| !matches!(slot, Slot::Ready(token) if token.fresh_until <= now));
    if slots.len() >= TOKENS_MAX {
        slots.retain(|_, slot| matches!(slot, Slot::Fetching(_)));
    }
}

/// The slot of a token that is being fetched. Dropped without an end, as by a panic, it leaves the slot empty.
struct Tenancy {
    auth: Auth,
    key: Key,
}

impl Tenancy {
    fn end(self, token: Option<&Token>) {
        if let Some(token) = token {
            self.auth.0.lock().insert(self.key.clone(), Slot::Ready(token.clone()));
        }
    }
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let mut slots = self.auth.0.lock();
        if matches!(slots.get(&self.key), Some(Slot::Fetching(_))) {
            slots.remove(&self.key);
        }
    }
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fetch(&self, wanted: &Wanted) -> Result<Token, Error> {
        let limits = &self.wire.limits;
        let deadline = Deadline::after(limits.token);
        let host = host_of(&wanted.service.realm);
        let busy = || Error::Unavailable { host: host.clone(), why: Why::Busy };
        let _permit = deadline.run(self.requests.acquire()).await.ok_or_else(busy)?.map_err(|_| busy())?;
        let health = self.health(wanted);
        for repeated in 0.. {
            let error = match self.ask(wanted, health.as_deref(), deadline).await {
                Ok(token) => return Ok(token),
                Err(error) => error,
            };
            let pause = limits.pause_before(repeated);
            if !error.is_worth_repeating() || repeated + 1 >= limits.attempts || pause >= deadline.left() {
                return Err(error);
            }
            sleep(pause).await;
        }
        Err(busy())
    }

    async fn ask(&self, wanted: &Wanted, health: Option<&Health>, deadline: Deadline) -> Result<Token, Error> {
        let pass = health.map(|health| health.admit(Kind::Token, &[ANYBODY])).transpose()?;
        let host = host_of(&wanted.service.realm);
        let url = wanted.url();
        let out = Outgoing {
            method: &Method::GET,
            url: &url,
            accept: "application/json",
            authorization: wanted.secret.as_ref().map(|secret| &secret.basic),
            offset: 0,
            last: None,
            kind: Kind::Token,
            reach: wanted.reach,
            from: &host,
            via: None,
        };
        let sent = self.wire.send(&out, deadline).await;
        let received = Instant::now();
        let failure = match &sent {
            Ok(answer) if is_passing(answer.status().as_u16()) => {
                Some(Error::Unavailable { host: host.clone(), why: Why::Status(answer.status().as_u16()) })
            }
            Ok(_) => None,
            Err(error) => Some(error.clone()),
        };
        match (pass, &failure) {
            (Some(pass), Some(error)) => pass.failed(error),
            (Some(pass), None) => pass.answered(),
            (None, _) => {}
        }
        let answer = sent?;
        if let Some(error) = failure {
            settle(answer).await;
            return Err(error);
        }
        let (status, headers) = (answer.status().as_u16(), answer.headers());
        let refused = match status {
            200 if headers::is_encoded(headers) => Error::BadAnswer { host: host.clone(), flaw: Flaw::Encoded },
            200 => {
                if let Some(secret) = &wanted.secret {
                    self.refusals().remove(&secret.id);
                }
                let body = read_whole(&host, answer.into_body(), ANSWER_BYTES_MAX, deadline).await?;
                return Token::read(&body, received).ok_or(Error::BadAnswer { host, flaw: Flaw::Token });
            }
            403 if headers::is_page(headers) => Error::Unavailable { host: host.clone(), why: Why::Status(status) },
            401 | 403 => Error::Denied { host: host.clone(), authenticated: wanted.secret.is_some() },
            429 => {
                let wait = headers::retry_after(headers);
                let unknown = || Error::RateLimited { host: host.clone(), retry_after: self.wire.limits.wait(wait) };
                health.map_or_else(unknown, |health| health.limited(Kind::Token, (ANYBODY, "any"), wait))
            }
            500.. => Error::Unavailable { host: host.clone(), why: Why::Status(status) },
            _ => Error::BadAnswer { host: host.clone(), flaw: Flaw::Status(status) },
        };
        settle(answer).await;
        let is_news = |secret: &Arc<Secret>| self.refusals().insert(secret.id);
        if matches!(refused, Error::Denied { authenticated: true, .. }) && wanted.secret.as_ref().is_some_and(is_news) {
            warn!(upstream = %self.wire.upstream, host, "{refused}");
        }
        Err(refused)
    }

    // std: held for a few instructions.
    fn refusals(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the token service is doing. Only of hosts that the operator configured: those that a redirect leads to are
    /// the upstream's to choose, and there is no end to them.
    fn health(&self, wanted: &Wanted) -> Option<Arc<Health>> {
        if wanted.foreign {
            return None;
        }
        let realm = &wanted.service.realm;
        let origin = realm.origin().ascii_serialization();
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let health = services.entry(origin.clone()).or_insert_with(|| {
            Arc::new(Health::new(&self.wire.upstream, host_of(realm), Some(origin), &self.wire.metrics, &self.wire.limits))
        });
        Some(Arc::clone(health))
    }
}

impl TokenService {
    pub(super) fn host(&self) -> String {
        host_of(&self.realm)
    }
}

impl Wanted {
    fn url(&self) -> Url {
        let mut url = self.service.realm.clone();
        let mut query = url.query_pairs_mut();
        if let Some(service) = &self.service.service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", &self.scope);
        drop(query);
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn realm(realm: &str, asker: &str) -> Result<String, Refusal> {
        let hosts = ["auth.docker.io", "auth.test:5001"].map(|host| AuthHost::parse(host).expect("a host"));
        let asker = Url::parse(asker).expect("an URL");
        match check_realm(realm, None, &asker, &hosts) {
            Ok(service) => Ok(service.realm.into()),
            Err(Error::RefusedTarget { why, .. }) => Err(why),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_password_goes_to_the_endpoint_s_own_host_and_its_auth_hosts() {
        let hub = "https://registry-1.docker.io/";
        for good in [
            "https://auth.docker.io/token",
            "https://registry-1.docker.io/token",
            "https://registry-1.docker.io:443/token",
            "https://auth.test:5001/token?account=x",
        ] {
            assert!(realm(good, hub).is_ok(), "{good}");
        }
        assert_eq!(realm("https://AUTH.docker.io/token", hub), Ok("https://auth.docker.io/token".to_owned()));
        let kept = "https://user:password@auth.docker.io/token?a=b&scope=repository:x:push&service=y#z";
        assert_eq!(realm(kept, hub), Ok("https://auth.docker.io/token?a=b".to_owned()));
        for elsewhere in [
            "https://auth.docker.io.evil.test/token",
            "https://evil.test/auth.docker.io",
            "https://auth.docker.io@evil.test/",
            "https://auth.docker.io:8443/token",
            "https://registry-1.docker.io:5000/token",
            "https://xauth.docker.io/token",
            "https://docker.io/token",
            "https://auth.docker.io./token",
            "https://auth.test/token",
            "https://аuth.docker.io/token",
            "https://127.0.0.1/token",
        ] {
            assert_eq!(realm(elsewhere, hub), Err(Refusal::Realm), "{elsewhere}");
        }
        assert_eq!(realm("http://auth.docker.io/token", hub), Err(Refusal::Plain));
        assert_eq!(realm("javascript:alert(1)", hub), Err(Refusal::Scheme));
        assert!(realm("http://registry.lan:5000/token", "http://registry.lan:5000").is_ok());
        assert_eq!(realm("http://registry.lan:5001/token", "http://registry.lan:5000"), Err(Refusal::Realm));
    }

    #[test]
    fn hosts_that_are_none() {
        for bad in ["", "a/b", "https://a.test", "user@a.test", "a.test:", "a.test:x", "a.test?x", "a b"] {
            assert_eq!(AuthHost::parse(bad), None, "{bad}");
        }
    }
}
