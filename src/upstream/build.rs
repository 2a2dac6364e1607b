//! Configuration to upstreams: the only moment at which this module reads files.
//!
//! Every mistake is found and told at once. Nothing is contacted.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::auth::{Auth, AuthHost};
use super::budget::Limits;
use super::connect::Clients;
use super::endpoint::Endpoint;
use super::flow::Throttle;
use super::login::{Login, certificates};
use super::redirect::host_of;
use super::resolve::Names;
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
    /// The file of certificates cannot be used.
    #[error("upstreams.\"{upstream}\".ca_file: {}: {why}", path.display())]
    CaFile {
        /// Whose.
        upstream: Registry,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The password cannot be used.
    #[error("upstreams.\"{upstream}\".password_file: {}: {why}", path.display())]
    PasswordFile {
        /// Whose.
        upstream: Registry,
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
        let mut builder = Builder { limits: Arc::new(limits), names: Names::default(), metrics, ahead, plain: None, mistakes: Vec::new() };
        let mut upstreams = BTreeMap::new();
        for (alias, settings) in &config.upstreams {
            let upstream = canonical(alias);
            if *alias != upstream && config.upstreams.contains_key(&upstream) || upstreams.contains_key(&upstream) {
                builder.mistakes.push(Mistake::Twice { upstream, alias: alias.clone() });
            } else if let Some(built) = builder.upstream(&upstream, settings) {
                upstreams.insert(upstream, Upstream(Arc::new(built)));
            }
        }
        if builder.mistakes.is_empty() { Ok(Self(Arc::new(upstreams))) } else { Err(BuildError { mistakes: builder.mistakes }) }
    }

    /// Reads the password files again, as SIGHUP asks for. Where one cannot be read, the old password stays in use.
    pub fn reload(&self) -> Result<(), BuildError> {
        let mut mistakes = Vec::new();
        for upstream in self.0.values() {
            let Some(login) = &upstream.0.login else { continue };
            match login.reload() {
                Ok(()) => info!(upstream = %upstream.registry(), "the password was read again"),
                Err(why) => {
                    let path = login.file().to_owned();
                    mistakes.push(Mistake::PasswordFile { upstream: upstream.registry().clone(), path, why });
                }
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(BuildError { mistakes }) }
    }
}

struct Builder {
    limits: Arc<Limits>,
    names: Names,
    metrics: Metrics,
    ahead: Ahead,
    /// The pools of the upstreams that trust the system's roots only: they share them, since loading roots takes time.
    plain: Option<Clients>,
    mistakes: Vec<Mistake>,
}

impl Builder {
    fn upstream(&mut self, registry: &Registry, settings: &Settings) -> Option<Inner> {
        let before = self.mistakes.len();
        self.check_endpoints(registry, settings);
        let auth_hosts = self.auth_hosts(registry, &settings.auth_hosts);
        let login = settings.credentials.as_ref().and_then(|credentials| {
            let mistake = |why| Mistake::PasswordFile { upstream: registry.clone(), path: credentials.password_file.clone(), why };
            Login::read(credentials).map_err(|why| self.mistakes.push(mistake(why))).ok()
        });
        let clients = self.clients(registry, settings.ca_file.as_deref());
        if self.mistakes.len() > before {
            return None;
        }
        if login.is_some() && settings.endpoints.iter().any(|url| url.scheme() == "http") {
            warn!(upstream = %registry, "the password for {registry} is sent without TLS, because an endpoint is http; use https");
        }
        let wire = Arc::new(Wire {
            upstream: registry.as_str().into(),
            clients: clients?,
            metrics: self.metrics.clone(),
            limits: Arc::clone(&self.limits),
        });
        Some(Inner {
            registry: registry.clone(),
            private: settings.private,
            endpoints: settings.endpoints.iter().map(|url| Endpoint::new(url, &wire)).collect(),
            login,
            search: settings.search.clone(),
            searches: Arc::new(Semaphore::new(self.limits.searches)),
            auth: Auth::new(Arc::clone(&wire)),
            auth_hosts,
            blobs: Arc::new(Semaphore::new(self.limits.blobs)),
            metadata: Arc::new(Semaphore::new(self.limits.metadata)),
            throttle: settings.bandwidth.map(|rate| Arc::new(Throttle::new(rate))),
            parallel: settings.parallel,
            habits: Habits::default(),
            ahead: self.ahead.clone(),
            headless: AtomicBool::new(false),
            wire,
        })
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

    fn clients(&mut self, registry: &Registry, ca_file: Option<&Path>) -> Option<Clients> {
        let Some(path) = ca_file else {
            let plain = self.plain.get_or_insert_with(|| Clients::new(&[], &self.names, &self.limits));
            return Some(plain.clone());
        };
        match certificates(path) {
            Ok(extra) => Some(Clients::new(&extra, &self.names, &self.limits)),
            Err(why) => {
                self.mistakes.push(Mistake::CaFile { upstream: registry.clone(), path: path.to_owned(), why });
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::super::{Credentials, Private, builtin};
    use super::*;

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
            endpoints: vec![Url::parse(endpoint).expect("an URL")],
            credentials: Some(Credentials { username: "u".to_owned(), password_file: "/nowhere/password".into() }),
            private: Private::default(),
            auth_hosts: vec!["auth.test".to_owned(), "a/b".to_owned()],
            ca_file: Some("/nowhere/ca.pem".into()),
            parallel: 1,
            bandwidth: None,
            search: None,
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
            "upstreams.\"a.test\".auth_hosts: \"a/b\" is no",
            "upstreams.\"b.test\".endpoints: there is none",
            "upstreams.\"index.docker.io\": this is another name of docker.io",
        ] {
            assert!(text.contains(part), "{part} is missing from\n{text}");
        }
        assert!(!text.contains("secret"), "{text}");
    }
}
