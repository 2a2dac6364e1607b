//! Why an upstream gave nothing: an enum to branch on, with texts for a person at three in the morning.
//!
//! Owns [`Error`]. Promises that no text holds a query, a token, a password or more of an URL than its host: a signed
//! URL is a password too. Knows nothing of what the caller makes of it (serve stale, answer 404).

use std::time::Duration;

/// Why an upstream gave nothing. `host` is who failed: an endpoint, a token service or a storage host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The upstream says that there is no such content. Believe it.
    #[error("{host} does not have it")]
    NotFound {
        /// Who said so.
        host: String,
    },
    /// 401 or 403 after all that may be tried. Believe it.
    #[error("{host} {}", refusal(*.authenticated))]
    Denied {
        /// Who said so.
        host: String,
        /// Whether millpond's own credentials were used, and are not enough.
        authenticated: bool,
    },
    /// 429, now or a while ago: nothing was sent, or nothing more will be sent for so long.
    #[error("{host} limits the number of requests; it is left alone for {} s", retry_after.as_secs_f64().ceil())]
    RateLimited {
        /// Who said so.
        host: String,
        /// How long to wait, at least 1 s and at most 60 s.
        retry_after: Duration,
    },
    /// No answer, or one that says "not now".
    #[error("{host} is not available: {why}")]
    Unavailable {
        /// Who is not.
        host: String,
        /// In what way.
        why: Why,
    },
    /// Too slow.
    #[error("{host} did not {} in time", phase.as_str())]
    Timeout {
        /// Who was.
        host: String,
        /// At what.
        phase: Phase,
    },
    /// An answer that cannot be used, whatever it meant.
    #[error("{host} sent an answer that cannot be used: {flaw}")]
    BadAnswer {
        /// Who sent it.
        host: String,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// The upstream names a host that millpond does not go to. Nothing was sent there.
    #[error("{host} sends millpond to {target}, {why}; nothing was sent there")]
    RefusedTarget {
        /// Who named it.
        host: String,
        /// The host that was named.
        target: String,
        /// Why not.
        why: Refusal,
    },
}

/// In what way an upstream is not available.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// The name has no address.
    #[error("its name cannot be resolved ({0})")]
    Dns(String),
    /// No TCP connection.
    #[error("no connection ({0})")]
    Connect(String),
    /// TLS failed, not because of the certificate.
    #[error("no TLS connection ({0})")]
    Tls(String),
    /// The certificate is not trusted, or not this host's.
    #[error("its certificate is not trusted ({0}); for a private authority set ca_file")]
    Certificate(String),
    /// The proxy on the way did not lead there.
    #[error("through proxy {proxy}: {fault}")]
    Proxy {
        /// Which one; its login is not told.
        proxy: String,
        /// What it did.
        fault: ProxyFault,
    },
    /// The connection broke before the answer, or the body, was whole.
    #[error("the connection broke")]
    Cut,
    /// It asked this mirror itself, or stands in a row of mirrors that never ends.
    #[error("its requests lead back to this mirror (508); take it out of endpoints here, or this mirror out of its")]
    Loop,
    /// It said so: a 5xx or a 408.
    #[error("it answered {0}")]
    Status(u16),
    /// The storage that the registry redirected to refused, also after a second redirect.
    #[error("the storage it redirects to answered {0}, twice")]
    Storage(u16),
    /// It issues tokens, and gave none: that was tried again already.
    #[error("no token from it ({0})")]
    Token(Box<Why>),
    /// It failed several times in a row and is left alone for a few seconds; nothing was sent.
    #[error("it failed several times in a row and is left alone for a few seconds")]
    Resting,
    /// All the connections that millpond grants to one upstream are in use, and none became free in time.
    #[error("millpond has too many requests to it under way")]
    Busy,
}

/// What went wrong at a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProxyFault {
    /// It cannot be reached.
    #[error("no connection to it ({0})")]
    Unreachable(String),
    /// It wants a login, or another one.
    #[error("it does not accept the login; give it one as http://user:password@host:port")]
    Login,
    /// What it answered to CONNECT.
    #[error("it answered {0} when it was asked to connect")]
    Status(u16),
    /// What it answered by SOCKS5.
    #[error("it could not connect ({})", socks_reply(*.0))]
    Socks(u8),
    /// It did not answer.
    #[error("it did not open the way in time")]
    Silent,
    /// It closed the connection.
    #[error("it closed the connection before the way was open")]
    Cut,
    /// It does not speak the protocol that it is said to.
    #[error("its answer is not that of such a proxy")]
    Nonsense,
}

/// RFC 1928 section 6.
fn socks_reply(reply: u8) -> &'static str {
    match reply {
        2 => "its rules do not allow it",
        3 => "no way to that network",
        4 => "no way to that host, or its name is unknown",
        5 => "connection refused",
        6 => "the way is too long",
        7 | 8 => "it does not know how",
        _ => "it has a fault",
    }
}

/// At what an upstream was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// TCP and TLS.
    Connect,
    /// The head of the answer.
    Head,
    /// The whole of a small body.
    Body,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not HTTP.
    #[error("it is not HTTP/1.1")]
    Http,
    /// A status that means nothing here.
    #[error("status {0}")]
    Status(u16),
    /// 405 or 501 to a HEAD. Never leaves this module for a manifest or a blob.
    #[error("it does not know HEAD")]
    NoHead,
    /// Larger than such a body may be.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// Compressed though `identity` was asked for.
    #[error("it is compressed, which was not asked for")]
    Encoded,
    /// `Docker-Content-Digest` stands twice, or is no digest.
    #[error("its Docker-Content-Digest is not one digest")]
    DigestHeader,
    /// The blob cannot be resumed there: 416, or a `Content-Range` other than the one asked for. Begin again at 0.
    #[error("it does not continue where it was asked to")]
    Range,
    /// More redirects than are followed.
    #[error("too many redirects")]
    Redirects,
    /// A redirect that leads nowhere.
    #[error("its Location is missing or no URL")]
    Location,
    /// A 401 without a challenge that millpond understands.
    #[error("its WWW-Authenticate cannot be understood")]
    Challenge,
    /// What the token service sent is no token.
    #[error("it is no token")]
    Token,
    /// Not the JSON that it should be.
    #[error("it is not the JSON that was asked for")]
    Json,
}

/// Why a host is not gone to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not the endpoint's own host and none of its `auth_hosts`.
    #[error("which is not among its auth_hosts, for a token")]
    Realm,
    /// Unencrypted, from an encrypted host.
    #[error("without TLS")]
    Plain,
    /// Neither http nor https.
    #[error("by a scheme other than http and https")]
    Scheme,
    /// A user name or a password in the URL.
    #[error("with a user name in the URL")]
    Userinfo,
    /// A private, local or otherwise special address.
    #[error("an address that is not public")]
    Address,
}

impl Error {
    /// Whether the upstream may well answer in a while: a limit, an outage, a timeout. What is held may be served stale.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::RateLimited { .. } | Self::Unavailable { .. } | Self::Timeout { .. })
    }

    /// Whether the upstream answered the question, with no: such an answer is believed, and nothing is served stale.
    pub fn is_verdict(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Denied { .. })
    }

    /// The same, told of a token service: its requests have retries of their own.
    pub(super) fn of_token(self) -> Self {
        match self {
            Self::Unavailable { host, why } => Self::Unavailable { host, why: Why::Token(Box::new(why)) },
            other => other,
        }
    }

    /// Whether the same endpoint is worth asking again at once. What took long already, is limited or was answered is not.
    pub(super) fn is_worth_repeating(&self) -> bool {
        let Self::Unavailable { why, .. } = self else { return false };
        match why {
            Why::Dns(_) | Why::Connect(_) | Why::Tls(_) | Why::Cut => true,
            Why::Status(status) => is_passing(*status),
            Why::Proxy { fault, .. } => match fault {
                ProxyFault::Unreachable(_) | ProxyFault::Cut | ProxyFault::Socks(1 | 3..=6) => true,
                ProxyFault::Status(status) => is_passing(*status),
                ProxyFault::Login | ProxyFault::Socks(_) | ProxyFault::Silent | ProxyFault::Nonsense => false,
            },
            Why::Certificate(_) | Why::Storage(_) | Why::Token(_) | Why::Resting | Why::Busy | Why::Loop => false,
        }
    }

    /// Of the errors of several endpoints the one to report is the largest. An outage outranks an answer: the endpoint
    /// that is away might have had the content, so what is held may still be served stale. One that leads back here might
    /// not: it says nothing.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Unavailable { why: Why::Loop, .. } => 0,
            Self::NotFound { .. } => 1,
            Self::Denied { .. } => 2,
            Self::BadAnswer { .. } | Self::RefusedTarget { .. } => 3,
            Self::RateLimited { .. } | Self::Unavailable { .. } | Self::Timeout { .. } => 4,
        }
    }
}

/// Statuses that say "try again": the ones that gateways and overloaded servers send.
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 500 | 502 | 503 | 504)
}

fn refusal(authenticated: bool) -> &'static str {
    if authenticated {
        "refuses millpond's credentials, or they do not reach this repository; check username and password_file, or docker_config"
    } else {
        "refuses anonymous requests for it, or it does not exist"
    }
}

impl Phase {
    fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "accept a connection",
            Self::Head => "begin its answer",
            Self::Body => "send the whole of a small answer",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_the_host_and_what_happened() {
        let host = || "registry.example".to_owned();
        let limited = Error::RateLimited { host: host(), retry_after: Duration::from_millis(1500) };
        assert_eq!(limited.to_string(), "registry.example limits the number of requests; it is left alone for 2 s");
        let down = Error::Unavailable { host: host(), why: Why::Connect("connection refused".to_owned()) };
        assert_eq!(down.to_string(), "registry.example is not available: no connection (connection refused)");
        let denied = Error::Denied { host: host(), authenticated: true };
        assert!(denied.to_string().starts_with("registry.example refuses millpond's credentials"), "{denied}");
    }

    #[test]
    fn only_what_failed_quickly_is_repeated() {
        let unavailable = |why| Error::Unavailable { host: String::new(), why };
        assert!(unavailable(Why::Cut).is_worth_repeating());
        assert!(unavailable(Why::Status(503)).is_worth_repeating());
        assert!(!unavailable(Why::Status(501)).is_worth_repeating());
        assert!(!unavailable(Why::Resting).is_worth_repeating());
        assert!(!Error::Timeout { host: String::new(), phase: Phase::Head }.is_worth_repeating());
        assert!(!Error::RateLimited { host: String::new(), retry_after: Duration::ZERO }.is_worth_repeating());
    }
}
