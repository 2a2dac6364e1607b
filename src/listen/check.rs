//! What hyper lets through and no handler should see: the checks of a request that concern the protocol, not the registry.

use std::borrow::Cow;

use http_body::Body;
use hyper::header::HOST;
use hyper::http::uri::Authority;
use hyper::{Method, Request, StatusCode, Version};

/// A request that is not to be looked at further. The answer to each must carry `Connection: close`: what follows on the connection cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not exactly one `Host`, or one that is no host (RFC 9112 section 3.2).
    #[error("the request needs exactly one valid Host header")]
    Host,
    /// `GET http://elsewhere/`: asks for a forward proxy, or hides another target from a front end.
    #[error("this is a registry mirror, not a forward proxy")]
    Target,
    /// A GET or HEAD with a body: the body would be read as the next request by somebody (CVE-2025-4366).
    #[error("a GET or HEAD request must not have a body")]
    Body,
}

impl Refusal {
    /// What it is answered with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Body => StatusCode::BAD_REQUEST,
            Self::Target => StatusCode::MISDIRECTED_REQUEST,
        }
    }
}

/// Whether the request may go on. The first thing a service does.
pub fn check<B: Body>(request: &Request<B>) -> Result<(), Refusal> {
    if matches!(*request.method(), Method::GET | Method::HEAD) && !request.body().is_end_stream() {
        return Err(Refusal::Body);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::Host);
    }
    let host = host.map(|host| host.to_str().map_err(|_| Refusal::Host)).transpose()?;
    let target = request.uri().authority();
    if request.version() == Version::HTTP_2 {
        // `:authority` stands in the target; a Host beside it must say the same (RFC 9113 section 8.3.1).
        return match (target.map(Authority::as_str), host) {
            (Some(target), Some(host)) if !target.eq_ignore_ascii_case(host) => Err(Refusal::Host),
            (Some(one), _) | (None, Some(one)) if is_host(one) => Ok(()),
            _ => Err(Refusal::Host),
        };
    }
    // The target of CONNECT is an authority by its nature; the method is refused by whoever knows the methods.
    if target.is_some() && request.method() != Method::CONNECT {
        return Err(Refusal::Target);
    }
    match host {
        Some(host) if is_host(host) => Ok(()),
        None if request.version() < Version::HTTP_11 => Ok(()),
        _ => Err(Refusal::Host),
    }
}

/// `uri-host [ ":" port ]`, with no user before it and a port that exists.
fn is_host(text: &str) -> bool {
    // As nearly all are written: a name or an IPv4 address, perhaps with a port.
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_plain = |text: &str, of: fn(u8) -> bool| !text.is_empty() && text.bytes().all(of);
    if is_plain(host, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'))
        && is_plain(port, |byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok()
    {
        return true;
    }
    // The http crate wants a digit after the colon, the RFC does not.
    let text = text.strip_suffix(':').map_or(Cow::Borrowed(text), |host| Cow::Owned(format!("{host}:0")));
    let Ok(authority) = text.parse::<Authority>() else { return false };
    let after = text.strip_prefix(authority.host()).unwrap_or("?");
    let port_is_sound = after.is_empty() || (after.starts_with(':') && authority.port_u16().is_some());
    !authority.host().is_empty() && port_is_sound
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Empty, Full};
    use hyper::body::Bytes;

    fn request(version: Version, target: &str, hosts: &[&str]) -> Request<Empty<Bytes>> {
        let mut builder = Request::builder().version(version).uri(target);
        for host in hosts {
            builder = builder.header(HOST, *host);
        }
        builder.body(Empty::new()).unwrap()
    }

    #[test]
    fn exactly_one_host() {
        for host in ["mirror", "mirror:5000", "10.0.0.1:5000", "[::1]", "[::1]:5000", "Mirror.Example.", "mirror:", "a_b"] {
            assert_eq!(check(&request(Version::HTTP_11, "/v2/", &[host])), Ok(()), "{host}");
        }
        for hosts in [
            &[][..],
            &["a", "a"],
            &[""],
            &["a b"],
            &["user@a"],
            &["a:99999"],
            &["a:b"],
            &[":80"],
            &["a/b"],
            &["a:1:2"],
            &["::1"],
            &["[::1"],
            &["a?b"],
            &["a#b"],
        ] {
            let result = check(&request(Version::HTTP_11, "/v2/", hosts));
            assert_eq!(result, Err(Refusal::Host), "{hosts:?}");
        }
        assert_eq!(check(&request(Version::HTTP_10, "/v2/", &[])), Ok(()), "HTTP/1.0 knows no Host");
        assert_eq!(check(&request(Version::HTTP_10, "/v2/", &["a", "b"])), Err(Refusal::Host));
    }

    #[test]
    fn http2_names_its_host_in_the_target() {
        assert_eq!(check(&request(Version::HTTP_2, "https://mirror/v2/", &[])), Ok(()));
        assert_eq!(check(&request(Version::HTTP_2, "https://mirror/v2/", &["MIRROR"])), Ok(()));
        assert_eq!(check(&request(Version::HTTP_2, "/v2/", &["mirror"])), Ok(()));
        assert_eq!(check(&request(Version::HTTP_2, "https://mirror/v2/", &["other"])), Err(Refusal::Host));
        assert_eq!(check(&request(Version::HTTP_2, "/v2/", &[])), Err(Refusal::Host));
    }

    #[test]
    fn not_a_forward_proxy() {
        let result = check(&request(Version::HTTP_11, "http://169.254.169.254/", &["169.254.169.254"]));
        assert_eq!(result, Err(Refusal::Target));
        assert_eq!(Refusal::Target.status(), 421);
    }

    #[test]
    fn no_body_on_a_pull() {
        let with_body = |method, body: &'static str| {
            let request = Request::builder().method(method).uri("/v2/").header(HOST, "a").body(Full::<Bytes>::from(body));
            check(&request.unwrap())
        };
        assert_eq!(with_body(Method::GET, "x"), Err(Refusal::Body));
        assert_eq!(with_body(Method::HEAD, "x"), Err(Refusal::Body));
        assert_eq!(with_body(Method::GET, ""), Ok(()));
        assert_eq!(with_body(Method::PUT, "x"), Ok(()), "whether it may write is not for here");
    }
}
