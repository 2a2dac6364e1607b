//! Where a redirect leads, and what may be sent there.
//!
//! Owns [`Chain`], the state of one request that is being redirected. Pure: it is told a `Location` and says where to go
//! next, or why not. Promises that `Authorization` stays with the origin that it is for and never comes back
//! (CVE-2026-49349), and that only content which is verified by its digest travels without TLS.

use hyper::StatusCode;
use hyper::header::{HeaderMap, LOCATION};
use url::Url;

use super::error::{Error, Flaw, Refusal};

/// The longest `Location` that is followed, in bytes. Signed URLs have up to two thousand.
const LOCATION_BYTES_MAX: usize = 16 << 10;

/// One request on its way from a registry through its redirects.
#[derive(Debug)]
pub(super) struct Chain {
    url: Url,
    hops: u8,
    hops_max: u8,
    at_origin: bool,
    plain_allowed: bool,
}

impl Chain {
    /// Starts at the registry. `verified` content, a blob, may be sent on from https to http: Aliyun does that.
    pub(super) fn new(start: Url, hops_max: u8, verified: bool) -> Self {
        Self { url: start, hops: 0, hops_max, at_origin: true, plain_allowed: verified }
    }

    /// Where the request is now.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// Whether the request never left the registry's scheme, host and port: only then may it carry `Authorization`.
    pub(super) fn is_at_origin(&self) -> bool {
        self.at_origin
    }

    /// Goes where the answer points to.
    pub(super) fn follow(&mut self, headers: &HeaderMap) -> Result<(), Error> {
        let host = host_of(&self.url);
        let flaw = |flaw| Error::BadAnswer { host: host.clone(), flaw };
        if self.hops == self.hops_max {
            return Err(flaw(Flaw::Redirects));
        }
        let location = headers.get(LOCATION).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        let location = location.filter(|text| !text.is_empty() && text.len() <= LOCATION_BYTES_MAX).ok_or_else(|| flaw(Flaw::Location))?;
        let mut next = self.url.join(location).map_err(|_| flaw(Flaw::Location))?;
        let refuse = |why| Err(Error::RefusedTarget { host: host.clone(), target: host_of(&next), why });
        if !matches!(next.scheme(), "http" | "https") {
            return refuse(Refusal::Scheme);
        }
        if !next.username().is_empty() || next.password().is_some() {
            return refuse(Refusal::Userinfo);
        }
        if self.url.scheme() == "https" && next.scheme() == "http" && !self.plain_allowed {
            return refuse(Refusal::Plain);
        }
        next.set_fragment(None);
        self.at_origin &= self.url.origin() == next.origin();
        self.hops += 1;
        self.url = next;
        Ok(())
    }
}

/// The redirects that keep or may keep the method: all of them, for GET and HEAD.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// A host and, where it is not the scheme's own, a port: as much of an URL as may be told.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or("a nameless host");
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn location(text: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_str(text).expect("a header's value"));
        headers
    }

    fn chain(start: &str, verified: bool) -> Chain {
        Chain::new(Url::parse(start).expect("an URL"), 5, verified)
    }

    #[test]
    fn authorization_never_comes_back() {
        let mut at = chain("https://a.test/v2/x", true);
        at.follow(&location("/downloads/1?sig=2")).expect("relative");
        assert_eq!(at.url().as_str(), "https://a.test/downloads/1?sig=2");
        assert!(at.is_at_origin());
        at.follow(&location("https://A.test:443/y")).expect("the same origin in other words");
        assert!(at.is_at_origin());
        at.follow(&location("https://b.test/")).expect("elsewhere");
        assert!(!at.is_at_origin());
        at.follow(&location("/2")).expect("still there");
        assert!(!at.is_at_origin());
        at.follow(&location("https://a.test/")).expect("back");
        assert!(!at.is_at_origin());

        for other in ["https://a.test:8443/", "http://a.test/", "//b.test/", "https://a.test.evil/"] {
            let mut at = chain("https://a.test/", true);
            at.follow(&location(other)).expect("allowed");
            assert!(!at.is_at_origin(), "{other}");
        }
    }

    #[test]
    fn what_is_refused_and_why() {
        let refused = |start, verified, to: &str| match chain(start, verified).follow(&location(to)) {
            Err(Error::RefusedTarget { why, .. }) => Some(why),
            _ => None,
        };
        assert_eq!(refused("https://a.test/", false, "http://a.test/"), Some(Refusal::Plain));
        assert_eq!(refused("https://a.test/", true, "http://a.test/"), None);
        assert_eq!(refused("http://a.test/", false, "http://b.test/"), None);
        assert_eq!(refused("https://a.test/", true, "https://u:p@b.test/"), Some(Refusal::Userinfo));
        assert_eq!(refused("https://a.test/", true, "https://a.test@b.test/"), Some(Refusal::Userinfo));
        for scheme in ["file:///etc/passwd", "gopher://b.test/", "javascript:alert(1)", "data:,x"] {
            assert_eq!(refused("https://a.test/", true, scheme), Some(Refusal::Scheme), "{scheme}");
        }
    }

    #[test]
    fn loops_and_nonsense_end() {
        let mut at = chain("https://a.test/", true);
        for _ in 0..5 {
            at.follow(&location("https://a.test/")).expect("within the limit");
        }
        assert!(matches!(at.follow(&location("https://a.test/")), Err(Error::BadAnswer { flaw: Flaw::Redirects, .. })));

        let flaw = |headers| match chain("https://a.test/", true).follow(&headers) {
            Err(Error::BadAnswer { flaw, .. }) => flaw,
            other => panic!("{other:?}"),
        };
        assert_eq!(flaw(HeaderMap::new()), Flaw::Location);
        assert_eq!(flaw(location("https://[::1")), Flaw::Location);
        assert_eq!(flaw(location(&format!("/{}", "a".repeat(LOCATION_BYTES_MAX)))), Flaw::Location);
    }

    #[test]
    fn every_spelling_of_an_address_becomes_that_address() {
        for (spelling, host) in [
            ("http://2130706433/", "127.0.0.1"),
            ("http://0x7f.1/", "127.0.0.1"),
            ("http://0177.0.0.1/", "127.0.0.1"),
            ("//127.0.0.1/", "127.0.0.1"),
            ("http://[::ffff:127.0.0.1]/", "[::ffff:7f00:1]"),
            ("http://１２７.0.0.1/", "127.0.0.1"),
        ] {
            let mut at = chain("http://a.test/", true);
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_bytes(spelling.as_bytes()).expect("a header's value"));
            at.follow(&headers).expect("parsed");
            assert_eq!(at.url().host_str(), Some(host), "{spelling}");
        }
    }
}
