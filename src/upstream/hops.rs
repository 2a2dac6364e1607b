//! Which mirrors did a request come through? So that one which stands in front of itself, by itself or behind others, says so
//! at once, and does not wait for its own answer until somebody's time is up.
//!
//! Each request to an endpoint says in `Via` (RFC 9110 section 7.6.3) that it comes from this process, and from which
//! mirrors before it. Promises: only the names of mirrors are passed on, so that no upstream learns what stands in
//! somebody's network; a redirect's target and a token service are told nothing.
//!
//! What `Via` changes at registries: nginx compresses nothing for a request that has it (`gzip_proxied`), and millpond asks
//! for `identity` anyway. Ranges and redirects do not depend on it.

use std::sync::Arc;

use hyper::header::{HeaderMap, HeaderValue, VIA};

/// What every mirror's name begins with.
const PREFIX: &str = "millpond-";

/// The hexadecimal digits after it.
const DIGITS: usize = 16;

/// Mirrors in a row: a branch office, a site, a region and the world are four. Whatever came through more goes in circles.
const HOPS_MAX: usize = 8;

/// This process, among mirrors: its name, and what it says for a request that came straight from a client.
#[derive(Debug, Clone)]
pub(super) struct Hop(Arc<str>, HeaderValue);

/// The mirrors that a request came through before this one.
#[derive(Debug, Clone, Default)]
pub struct Hops(Option<Arc<str>>);

/// A request came through this mirror before, or through more than anybody sets up on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request has come through this mirror before")]
pub struct Loop;

impl Hop {
    /// A name that no other process has.
    pub(super) fn new() -> Self {
        let name = format!("{PREFIX}{:016x}", fastrand::u64(..));
        let alone = via(&format!("1.1 {name}"));
        Self(name.into(), alone)
    }

    /// Reads a request's `Via`.
    pub(super) fn before(&self, headers: &HeaderMap) -> Result<Hops, Loop> {
        let mut before = Vec::new();
        for line in headers.get_all(VIA) {
            // What is no text names no mirror.
            for member in line.to_str().unwrap_or_default().split(',') {
                // protocol, who, and perhaps a comment
                let Some(name) = member.split_ascii_whitespace().nth(1).filter(|name| is_mirror(name)) else { continue };
                if name == &*self.0 || before.len() == HOPS_MAX {
                    return Err(Loop);
                }
                before.push(format!("1.1 {name}"));
            }
        }
        Ok(Hops((!before.is_empty()).then(|| before.join(", ").into())))
    }

    /// What to send on behalf of a request that came through those.
    pub(super) fn via(&self, hops: &Hops) -> HeaderValue {
        match &hops.0 {
            Some(before) => via(&format!("{before}, 1.1 {}", self.0)),
            None => self.1.clone(),
        }
    }
}

fn via(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("letters and digits")
}

fn is_mirror(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| rest.len() == DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (VIA, HeaderValue::from_str(line).expect("a value"))).collect()
    }

    #[test]
    fn only_mirrors_are_passed_on_and_one_is_never_passed_twice() {
        let (here, there) = (Hop::new(), Hop::new());
        assert_ne!(here.0, there.0);
        let alone = here.via(&Hops::default());
        assert_eq!(alone, format!("1.1 {}", here.0));

        let first = there
            .via(&here.before(&via(&["1.0 fred, 1.1 proxy.corp.example:8080 (squid)", "millpond-x", "1.1 millpond-1"])).expect("clean"));
        assert_eq!(first, format!("1.1 {}", there.0), "nobody else's business");
        let both = here.via(&here.before(&via(&[first.to_str().expect("text")])).expect("another"));
        assert_eq!(both, format!("1.1 {}, 1.1 {}", there.0, here.0));
        let both = both.to_str().expect("text");
        assert!(here.before(&via(&[both])).is_err() && there.before(&via(&["1.1 a", both])).is_err());
        assert!(here.before(&via(&[&format!("HTTP/2 {}  (here)", here.0)])).is_err());
        assert!(Hop::new().before(&via(&[both])).is_ok());
    }

    #[test]
    fn a_row_of_mirrors_has_an_end() {
        let row = |n: usize| (0..n).map(|n| format!("1.1 millpond-{n:016x}")).collect::<Vec<_>>().join(", ");
        assert!(Hop::new().before(&via(&[&row(HOPS_MAX)])).is_ok());
        assert!(Hop::new().before(&via(&[&row(HOPS_MAX + 1)])).is_err());
    }
}
