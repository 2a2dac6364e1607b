//! Who is asking, what may they see.
//!
//! Owns the one decision whether a client may pull, and whether it counts as authenticated: only those see what millpond's own credentials
//! can see ([`Private`](crate::upstream::Private)). Four things admit, and any one is enough: an address in `networks` (which proves
//! nothing, so it does not authenticate), a secret path, a client certificate that `client_ca` signed, a password of `htpasswd`.
//! Nothing of these configured: anyone is admitted. `client_ca` counts as configured: who sets it means to shut others out;
//! `networks = ["0.0.0.0/0", "::/0"]` beside it says that they may come in all the same.
//!
//! Refuses to know sockets, HTTP messages and registries. Passwords are neither kept nor logged.
//!
//! **The challenge, and classic dockerd.** dockerd answers a challenge of a mirror on its plain root path with the user's Docker Hub
//! password, and the request is the same as that of a `docker pull` that names the mirror and must be challenged to work. So nobody is
//! challenged unless the operator asked for passwords by naming an htpasswd file; without one, whoever is not admitted is refused. With
//! one, dockerd's address belongs into `networks`, or its mirror URL gets a secret path: then it is never challenged. What comes in
//! `Authorization` goes no further than this module.
//!
//! **Who is admitted by network and has a login as well** gets to see what is private only when the client sends the login, and clients
//! send it only when they are challenged. Two rules make that safe:
//!
//! 1. A client that is not classic dockerd sends a login to no host but the one that it is for (podman, skopeo, CRI-O, containerd, crane).
//!    It may be challenged ([`Access::may_challenge`]), and who has no login goes on without one, at `/v2/`.
//! 2. What comes to one of `login_hosts`, names of this mirror that stand in no daemon.json, is always challenged, whoever sends it:
//!    `docker login` such a name. To any other name classic dockerd gets what is public.

mod guesses;
mod htpasswd;
mod passwords;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ipnet::{IpNet, Ipv4Net};

pub use self::htpasswd::Mistake;
use self::passwords::{Checked, Passwords, Salt};

/// The `[access]` section.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Networks whose addresses may pull.
    pub networks: Vec<IpNet>,
    /// An htpasswd file of bcrypt entries, for Basic.
    pub htpasswd: Option<PathBuf>,
    /// First path segments that admit whoever knows them.
    pub secret_paths: Vec<Secret>,
    /// Names of this mirror, with or without a port, by which everybody is challenged.
    pub login_hosts: Vec<String>,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The htpasswd file cannot be read.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: std::io::Error,
    },
    /// Lines of the htpasswd file that are no users; all of them.
    #[error("{}", mistakes.iter().map(|mistake| format!("{}:{mistake}", path.display())).collect::<Vec<_>>().join("\n"))]
    Htpasswd {
        /// The file.
        path: PathBuf,
        /// In the order of the file.
        mistakes: Vec<Mistake>,
    },
    /// An entry of `secret_paths` that cannot be one, counted from 1. The entry itself is not told.
    #[error("access.secret_paths, entry {entry}: {what}")]
    SecretPath {
        /// Which one.
        entry: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// What is known of a client when it asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Where it connects from.
    pub ip: IpAddr,
    /// It showed a certificate that `client_ca` signed.
    pub certificate: bool,
    /// Its path began with a secret, as [`Access::strip_secret`] found.
    pub secret_path: bool,
    /// The value of its `Authorization` header.
    pub authorization: Option<&'a str>,
    /// What it calls this mirror: its `Host` header.
    pub host: Option<&'a str>,
    /// What it calls itself: its `User-Agent` header.
    pub agent: Option<&'a str>,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may pull.
    Admitted {
        /// And what is private as well.
        authenticated: bool,
    },
    /// 401 with `WWW-Authenticate: Basic`: a password would help.
    Challenge,
    /// 403 `DENIED`: nothing it can send would help.
    Refused,
    /// 503: too many passwords wait to be checked. One that was right before is not kept waiting.
    Busy,
    /// 429: too many wrong passwords came from that address; the next is looked at after so long.
    Limited(Duration),
}

/// Characters of a secret path, at least: eight of this alphabet are more than anyone can try over a network.
const MIN_SECRET: usize = 8;

/// Bytes of an `Authorization` header that are looked at. bcrypt reads 72 bytes of a password; user names are short.
const MAX_AUTHORIZATION: usize = 4096;

/// Who may pull. Shared by all requests.
pub struct Access {
    anyone: bool,
    networks: Vec<IpNet>,
    salt: Salt,
    /// Salted hashes of the secrets: who times the comparison learns of hashes that cannot be aimed at.
    secrets: Vec<[u8; 32]>,
    htpasswd: Option<Htpasswd>,
    login_hosts: Vec<String>,
}

struct Htpasswd {
    path: PathBuf,
    /// Held to clone or replace the Arc. What was found out about passwords is forgotten with the list that said so.
    passwords: RwLock<Arc<Passwords>>,
}

impl Access {
    /// Reads the htpasswd file and checks the rest. `client_ca` says whether `server.tls.client_ca` is set.
    pub fn build(config: &Config, client_ca: bool) -> Result<Self, AccessError> {
        let salt = Salt::new();
        for (index, secret) in config.secret_paths.iter().enumerate() {
            check_secret(&secret.0).map_err(|what| AccessError::SecretPath { entry: index + 1, what })?;
        }
        let htpasswd = config.htpasswd.clone().map(|path| {
            let passwords = RwLock::new(Arc::new(Passwords::new(htpasswd::read(&path)?)));
            Ok(Htpasswd { path, passwords })
        });
        Ok(Self {
            anyone: config.networks.is_empty() && config.htpasswd.is_none() && config.secret_paths.is_empty() && !client_ca,
            networks: config.networks.iter().copied().map(fold).collect(),
            secrets: config.secret_paths.iter().map(|secret| salt.hash(&[secret.0.as_bytes()])).collect(),
            salt,
            htpasswd: htpasswd.transpose()?,
            login_hosts: config.login_hosts.clone(),
        })
    }

    /// Reads the htpasswd file again. On an error the old list stays in use.
    pub fn reload(&self) -> Result<(), AccessError> {
        if let Some(htpasswd) = &self.htpasswd {
            let users = htpasswd::read(&htpasswd.path)?;
            let mut passwords = htpasswd.passwords.write().unwrap_or_else(PoisonError::into_inner);
            *passwords = Arc::new(passwords.renewed(users));
        }
        Ok(())
    }

    /// The file of users, if there is one.
    pub fn users_file(&self) -> Option<&Path> {
        self.htpasswd.as_ref().map(|htpasswd| htpasswd.path.as_path())
    }

    /// Splits a secret off the front of a path: `/<secret>/v2/x` is `(true, "/v2/x")`, any other path is `(false, path)`.
    ///
    /// Compares with all secrets in the same time. Comes before routing, and the secret before logging: only the rest may be told.
    pub fn strip_secret<'p>(&self, path: &'p str) -> (bool, &'p str) {
        if self.secrets.is_empty() {
            return (false, path);
        }
        let Some(segments) = path.strip_prefix('/') else { return (false, path) };
        let (first, rest) = segments.split_at(segments.find('/').unwrap_or(segments.len()));
        let hash = self.salt.hash(&[first.as_bytes()]);
        // Not `any`, which would stop at the first.
        let found = self.secrets.iter().filter(|secret| **secret == hash).count() > 0;
        match (found, rest) {
            (false, _) => (false, path),
            (true, "") => (true, "/"),
            (true, rest) => (true, rest),
        }
    }

    /// Decides. Waits only for a password that was not seen lately: a fraction of a second, more when many come at once.
    pub async fn judge(&self, asker: Asker<'_>) -> Verdict {
        if asker.certificate || asker.secret_path {
            return Verdict::Admitted { authenticated: true };
        }
        if let Some(htpasswd) = &self.htpasswd
            && let Some((user, password)) = asker.authorization.and_then(basic)
        {
            let passwords = Arc::clone(&htpasswd.passwords.read().unwrap_or_else(PoisonError::into_inner));
            match Box::pin(passwords.check(asker.ip, &user, &password)).await {
                Checked::Right => return Verdict::Admitted { authenticated: true },
                Checked::Busy => return Verdict::Busy,
                Checked::Limited(after) => return Verdict::Limited(after),
                Checked::Wrong => {}
            }
        }
        if self.htpasswd.is_some() && asker.host.is_some_and(|host| self.is_login_host(host)) {
            return Verdict::Challenge;
        }
        let ip = asker.ip.to_canonical();
        if self.anyone || self.networks.iter().any(|network| network.contains(&ip)) {
            return Verdict::Admitted { authenticated: false };
        }
        if self.htpasswd.is_some() { Verdict::Challenge } else { Verdict::Refused }
    }

    /// Whether one that is admitted without a password may be asked for one all the same, to see more: a password would help, and
    /// this client would send no other than that of this host.
    pub fn may_challenge(&self, agent: Option<&str>) -> bool {
        self.htpasswd.is_some() && agent.is_some_and(|agent| !is_classic_dockerd(agent))
    }

    fn is_login_host(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit())).map_or(host, |(name, _)| name);
        self.login_hosts.iter().any(|entry| entry.eq_ignore_ascii_case(host) || entry.eq_ignore_ascii_case(name))
    }
}

/// dockerd with the image store of its own. With containerd's it says so, and sends a login to the host that it is for.
fn is_classic_dockerd(agent: &str) -> bool {
    agent.starts_with("docker/") && !agent.contains("containerd-client/")
}

/// Whether a client never asks `/v2/` first, so that it learns only from the answer itself that a password would help: containerd and
/// what is made of it.
pub fn asks_no_ping(agent: &str) -> bool {
    ["containerd/", "containerd-client/", "buildkit/", "nerdctl/"].iter().any(|name| agent.contains(name))
}

/// The user and the password of a `Basic` header (RFC 7617); None for anything else, which is as good as no header.
fn basic(header: &str) -> Option<(String, Vec<u8>)> {
    if header.len() > MAX_AUTHORIZATION {
        return None;
    }
    let (scheme, encoded) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim_start()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = std::str::from_utf8(&decoded[..colon]).ok()?.to_owned();
    // What podman sends when it is challenged and has no login.
    if user.is_empty() && decoded.len() == 1 {
        return None;
    }
    Some((user, decoded[colon + 1..].to_vec()))
}

/// An IPv4 network written as an IPv6 one means the IPv4 addresses, as the addresses are folded too.
fn fold(network: IpNet) -> IpNet {
    if let IpNet::V6(v6) = network
        && let Some(prefix) = v6.prefix_len().checked_sub(96)
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Ok(folded) = Ipv4Net::new(Ipv4Addr::from_bits(v4.to_bits()), prefix)
    {
        return folded.into();
    }
    network
}

/// Only what no client escapes, so that it arrives as it was written; no dot, so that it is no registry.
fn check_secret(secret: &str) -> Result<(), &'static str> {
    if secret.len() < MIN_SECRET {
        return Err("too short: at least 8 characters, such as `openssl rand -hex 16` makes");
    }
    if !secret.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_~".contains(&byte)) {
        return Err("only letters, digits, '-', '_' and '~' may be in it");
    }
    Ok(())
}
