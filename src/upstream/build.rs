//! Configuration to upstreams: the only moment at which this module reads files.
//!
//! Every mistake is found and told at once. Nothing is contacted.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Semaphore;
use tracing::{info, warn};
use url::Url;

use super::accounts::{Accounts, DEFAULT_ACCOUNT};
use super::auth::{Auth, AuthHost};
use super::budget::Limits;
use super::connect::Clients;
use super::endpoint::Endpoint;
use super::flow::Throttle;
use super::hops::{Hop, Hops};
use super::login::Login;
use super::pem::{Identity, Unusable, certificates};
use super::proxy::{Environment, Router, Via};
use super::redirect::host_of;
use super::resolve::Names;
use super::targets::Targets;
use super::wide::{Ahead, Habits};
use super::wire::Wire;
use super::{Config, Inner, Settings, Upstream, Upstreams, canonical};
use crate::observe::Metrics;
use crate::oci::Registry;

/// Why the upstreams cannot be set up: all that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildError {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

/// One thing that is wrong with the configuration of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mistake {
    /// A file cannot be used: certificates, a password, Docker's configuration.
    #[error("upstreams.\"{upstream}\".{key}: {}: {why}", path.display())]
    File {
        /// Whose.
        upstream: Registry,
        /// The key that names the file.
        key: String,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// There is no endpoint.
    #[error("upstreams.\"{upstream}\".endpoints: there is none")]
    NoEndpoint {
        /// Whose.
        upstream: Registry,
    },
    /// An endpoint is no base URL.
    #[error("upstreams.\"{upstream}\".endpoints: {host} is no http or https URL without user, query and fragment")]
    Endpoint {
        /// Whose.
        upstream: Registry,
        /// The host of the URL; the rest may hold a password.
        host: String,
    },
    /// A token host is no host.
    #[error("upstreams.\"{upstream}\".auth_hosts: {host:?} is no host name with an optional port")]
    AuthHost {
        /// Whose.
        upstream: Registry,
        /// As it was written.
        host: String,
    },
    /// The registry is configured under two of its names.
    #[error("upstreams.\"{alias}\": this is another name of {upstream}, which is configured too; join the two")]
    Twice {
        /// The name to use.
        upstream: Registry,
        /// The other name.
        alias: Registry,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, mistake) in self.mistakes.iter().enumerate() {
            write!(f, "{}{mistake}", if n > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for BuildError {}

impl Upstreams {
    /// Reads the files that the configuration names and makes the upstreams ready; contacts nobody.
    pub fn build(config: &Config, metrics: Metrics) -> Result<Self, BuildError> {
        Self::build_with(config, metrics, Limits::default())
    }

    /// The same with other limits, for tests.
    pub fn build_with(config: &Config, metrics: Metrics, limits: Limits) -> Result<Self, BuildError> {
        let ahead = Ahead::new(&limits.wide);
        let mut builder = Builder {
            limits: Arc::new(limits),
            environment: Arc::new(config.environment.clone()),
            names: Names::default(),
            metrics,
            ahead,
            hop: Hop::new(),
            plain: None,
            mistakes: Vec::new(),
        };
        let mut upstreams = BTreeMap::new();
        for (alias, settings) in &config.upstreams {
            let upstream = canonical(alias);
            if *alias != upstream && config.upstreams.contains_key(&upstream) || upstreams.contains_key(&upstream) {
                builder.mistakes.push(Mistake::Twice { upstream, alias: alias.clone() });
            } else if let Some(built) = builder.upstream(&upstream, settings) {
                let via = builder.hop.via(&Hops::default());
                upstreams.insert(upstream, Upstream(Arc::new(built), via));
            }
        }
        if builder.mistakes.is_empty() {
            Ok(Self(Arc::new(upstreams), builder.hop))
        } else {
            Err(BuildError { mistakes: builder.mistakes })
        }
    }

    /// Reads logins and client certificates again, as SIGHUP asks for. Where one cannot be read, the old one stays in use.
    pub fn reload(&self) -> Result<(), BuildError> {
        let mut mistakes = Vec::new();
        for upstream in self.0.values() {
            let registry = || upstream.registry().clone();
            for (account, login) in upstream.0.accounts.logins() {
                match login.reload() {
                    Ok(()) => info!(upstream = %upstream.registry(), account, "the login was read again"),
                    Err(why) => {
                        let key = key_of(account, login.key());
                        mistakes.push(Mistake::File { upstream: registry(), key, path: login.file().to_owned(), why });
                    }
                }
            }
            if let Some(Err(Unusable { key, path, why })) = upstream.0.identity.as_ref().map(|identity| identity.reload()) {
                mistakes.push(Mistake::File { upstream: registry(), key: key.to_owned(), path, why });
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(BuildError { mistakes }) }
    }
}

/// The key of an account's file, below its upstream.
fn key_of(account: &str, key: &str) -> String {
    if account == DEFAULT_ACCOUNT { key.to_owned() } else { format!("accounts.{account}.{key}") }
}

struct Builder {
    limits: Arc<Limits>,
    environment: Arc<Environment>,
    names: Names,
    metrics: Metrics,
    ahead: Ahead,
    hop: Hop,
    /// The pools of the upstreams that have nothing of their own: they share them, since loading roots takes time.
    plain: Option<Clients>,
    mistakes: Vec<Mistake>,
}

impl Builder {
    fn upstream(&mut self, registry: &Registry, settings: &Settings) -> Option<Inner> {
        let before = self.mistakes.len();
        self.check_endpoints(registry, settings);
        let auth_hosts = self.auth_hosts(registry, &settings.auth_hosts);
        let logins = self.logins(registry, settings);
        let identity = self.identity(registry, settings);
        let clients = self.clients(registry, settings, identity.as_ref());
        if self.mistakes.len() > before {
            return None;
        }
        if !logins.is_empty() && settings.endpoints.iter().any(|url| url.scheme() == "http") {
            warn!(upstream = %registry, "the password for {registry} is sent without TLS, because an endpoint is http; use https");
        }
        let wire = Arc::new(Wire {
            upstream: registry.as_str().into(),
            clients: clients?,
            metrics: self.metrics.clone(),
            limits: Arc::clone(&self.limits),
        });
        let (blobs, metadata) = lanes(settings.connections);
        Some(Inner {
            registry: registry.clone(),
            private: settings.private,
            endpoints: settings.endpoints.iter().map(|url| Endpoint::new(url, &wire)).collect(),
            accounts: Accounts::new(Arc::clone(&wire.upstream), self.metrics.clone(), logins, settings.anonymous),
            targets: Targets::default(),
            identity,
            repositories: settings.repositories.clone(),
            search: settings.search.clone(),
            searches: Arc::new(Semaphore::new(self.limits.searches)),
            auth: Auth::new(Arc::clone(&wire)),
            auth_hosts,
            blobs: Arc::new(Semaphore::new(blobs)),
            blobs_max: blobs,
            metadata: Arc::new(Semaphore::new(metadata)),
            throttle: settings.bandwidth.map(|rate| Arc::new(Throttle::new(rate))),
            parallel: settings.parallel,
            habits: Habits::default(),
            ahead: self.ahead.clone(),
            headless: AtomicBool::new(false),
            hop: self.hop.clone(),
            wire,
        })
    }

    /// The one login first, then the accounts by name.
    fn logins(&mut self, registry: &Registry, settings: &Settings) -> Vec<(String, Login)> {
        let one = settings.credentials.iter().map(|credentials| (DEFAULT_ACCOUNT, credentials));
        let more = settings.accounts.iter().map(|(name, credentials)| (name.as_str(), credentials));
        let mut logins = Vec::new();
        for (name, credentials) in one.chain(more) {
            match Login::read(registry, credentials, &self.limits) {
                Ok(login) => logins.push((name.to_owned(), login)),
                Err(why) => {
                    let (key, path) = (key_of(name, credentials.key()), credentials.file().to_owned());
                    self.mistakes.push(Mistake::File { upstream: registry.clone(), key, path, why });
                }
            }
        }
        logins
    }

    fn check_endpoints(&mut self, registry: &Registry, settings: &Settings) {
        if settings.endpoints.is_empty() {
            self.mistakes.push(Mistake::NoEndpoint { upstream: registry.clone() });
        }
        for url in &settings.endpoints {
            let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
            if !bare || !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
                self.mistakes.push(Mistake::Endpoint { upstream: registry.clone(), host: host_of(url) });
            }
        }
    }

    fn auth_hosts(&mut self, registry: &Registry, texts: &[String]) -> Vec<AuthHost> {
        let mut hosts = Vec::with_capacity(texts.len());
        for text in texts {
            match AuthHost::parse(text) {
                Some(host) => hosts.push(host),
                None => self.mistakes.push(Mistake::AuthHost { upstream: registry.clone(), host: text.clone() }),
            }
        }
        hosts
    }

    fn identity(&mut self, registry: &Registry, settings: &Settings) -> Option<Arc<Identity>> {
        let read = Identity::read(settings.client_certificate.as_ref()?);
        let mistake =
            |Unusable { key, path, why }| self.mistakes.push(Mistake::File { upstream: registry.clone(), key: key.to_owned(), path, why });
        read.map_err(mistake).map(Arc::new).ok()
    }

    fn clients(&mut self, registry: &Registry, settings: &Settings, identity: Option<&Arc<Identity>>) -> Option<Clients> {
        let router = Router::new(&settings.proxy, &self.environment);
        if settings.ca_file.is_none() && settings.client_certificate.is_none() && settings.proxy == Via::Environment {
            let plain = self.plain.get_or_insert_with(|| Clients::new(&[], &router, &self.names, &self.limits));
            return Some(plain.clone());
        }
        let extra = match settings.ca_file.as_deref().map(certificates).transpose() {
            Ok(extra) => extra.unwrap_or_default(),
            Err(why) => {
                let path = settings.ca_file.clone().unwrap_or_default();
                self.mistakes.push(Mistake::File { upstream: registry.clone(), key: "ca_file".to_owned(), path, why });
                return None;
            }
        };
        let clients = Clients::new(&extra, &router, &self.names, &self.limits);
        let Some(identity) = identity else { return Some(clients) };
        let hosts = settings.endpoints.iter().map(Url::origin).collect();
        let own = Arc::clone(identity) as Arc<dyn rustls::client::ResolvesClientCert>;
        Some(clients.with_certificate(&extra, own, hosts, &self.names, &self.limits))
    }
}

/// Of so many requests at once, those that deliver blobs and all others: a manifest does not wait for gigabytes, and a blob that
/// goes on where it broke off never waits for one that waits for it.
fn lanes(connections: usize) -> (usize, usize) {
    let metadata = (connections / 2).max(1);
    ((connections - metadata.min(connections)).max(1), metadata)
}

#[cfg(test)]
mod tests {
    use super::super::{ClientCertificate, Credentials, builtin};
    use super::*;

    #[test]
    fn connections_are_shared_out_to_the_last_one() {
        for connections in [2, 3, 7, 128] {
            let (blobs, metadata) = lanes(connections);
            assert!(blobs + metadata == connections && blobs >= metadata && metadata >= 1, "{connections}: {blobs} + {metadata}");
        }
    }

    #[test]
    fn the_built_in_table_can_be_built() {
        let upstreams = Upstreams::build(&builtin(), Metrics::new()).expect("built");
        let alias = Registry::parse("index.docker.io").expect("a registry");
        assert_eq!(upstreams.get(&alias).expect("configured").registry(), &Registry::docker_hub());
        assert!(upstreams.get(&Registry::parse("evil.test").expect("a registry")).is_none());
        assert_eq!(upstreams.registries().count(), builtin().upstreams.len());
    }

    #[test]
    fn all_mistakes_are_told_at_once_and_name_the_file() {
        let settings = |endpoint: &str| Settings {
            credentials: Some(Credentials::Password { username: "u".to_owned(), password_file: "/nowhere/password".into() }),
            auth_hosts: vec!["auth.test".to_owned(), "a/b".to_owned()],
            ca_file: Some("/nowhere/ca.pem".into()),
            client_certificate: Some(ClientCertificate { cert: "/nowhere/client.crt".into(), key: "/nowhere/client.key".into() }),
            ..Settings::of(vec![Url::parse(endpoint).expect("an URL")])
        };
        let mut config = Config::default();
        let registry = |text| Registry::parse(text).expect("a registry");
        config.upstreams.insert(registry("a.test"), settings("https://user:secret@a.test/"));
        config.upstreams.insert(registry("b.test"), Settings { endpoints: Vec::new(), ..settings("ftp://b.test") });
        config.upstreams.insert(registry("docker.io"), settings("https://registry-1.docker.io"));
        config.upstreams.insert(registry("index.docker.io"), settings("https://registry-1.docker.io"));
        let text = Upstreams::build(&config, Metrics::new()).err().expect("mistakes").to_string();
        for part in [
            "upstreams.\"a.test\".endpoints: a.test is no",
            "upstreams.\"a.test\".password_file: /nowhere/password: ",
            "upstreams.\"a.test\".ca_file: /nowhere/ca.pem: ",
            "upstreams.\"a.test\".client_cert: /nowhere/client.crt: ",
            "upstreams.\"a.test\".auth_hosts: \"a/b\" is no",
            "upstreams.\"b.test\".endpoints: there is none",
            "upstreams.\"index.docker.io\": this is another name of docker.io",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
}
