//! Routes that were found before: many machines ask for the same few things at a time, in the same words.

use std::cell::RefCell;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::FixedState;
use hyper::Method;

use super::{Known, NoRoute, Route, Routed, route};

/// Routes that each thread keeps, of so many bytes of path and query: 64 KiB at the most.
const KEPT: usize = 64;
const KEPT_BYTES_MAX: usize = 512;

thread_local! {
    static ROUTES: RefCell<[Option<Box<Kept>>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
}

struct Kept {
    of: u64,
    path: String,
    query: Option<String>,
    routed: Routed,
}

/// The memory of one configuration, which does not change: what is known to it once is known for ever.
pub struct Memo(u64);

impl Memo {
    /// An empty one.
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// What [`route`] finds, and always the same `known` finds.
    pub fn route(&self, method: &Method, path: &str, query: Option<&str>, known: &impl Known) -> Result<Routed, NoRoute> {
        let can_be_kept = path.len() + query.map_or(0, str::len) <= KEPT_BYTES_MAX;
        if !can_be_kept || (method != Method::GET && method != Method::HEAD) {
            return route(method, path, query, known);
        }
        // Who finds two that get in each other's way slows only them.
        let hash = FixedState::default().hash_one((path, query));
        ROUTES.with_borrow_mut(|routes| {
            let place = &mut routes[usize::from(hash.to_le_bytes()[0]) % KEPT];
            if let Some(kept) = place
                && (kept.of, kept.path.as_str(), kept.query.as_deref()) == (self.0, path, query)
            {
                return Ok(kept.routed.clone());
            }
            let mut routed = route(method, path, query, known)?;
            if let Route::Manifest(repository, _) | Route::Blob(repository, _) = &mut routed.route {
                repository.registry = repository.registry.apart();
                *place =
                    Some(Box::new(Kept { of: self.0, path: path.to_owned(), query: query.map(str::to_owned), routed: routed.clone() }));
            }
            Ok(routed)
        })
    }
}

impl Default for Memo {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::oci::Registry;

    /// Knows one registry, and counts how often it was asked.
    struct One(&'static str, Cell<usize>);

    impl Known for One {
        fn registry(&self, named: &Registry) -> Option<Registry> {
            self.1.set(self.1.get() + 1);
            (named.as_str() == self.0).then(|| named.clone())
        }
    }

    #[test]
    fn a_route_is_found_once_and_is_that_of_its_own_words_and_configuration() {
        let digest = crate::oci::Digest::sha256_of(b"");
        let targets = (0..1_000).flat_map(|n| {
            [
                format!("/v2/a{n}/manifests/latest?ns=ghcr.io"),
                format!("/v2/a{n}/manifests/latest?ns=docker.io"),
                format!("/v2/a{n}/manifests/latest"),
                format!("/v2/a{n}/blobs/{digest}?ns=ghcr.io"),
                format!("/v2/a{n}/tags/list?ns=ghcr.io"),
                format!("/v2/a{n}/nothing"),
            ]
        });
        let configurations = ["ghcr.io", "docker.io"].map(|registry| (Memo::new(), One(registry, Cell::new(0))));
        for target in targets {
            let (path, query) = target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
            for (memo, known) in configurations.iter().chain(&configurations) {
                for method in [Method::GET, Method::HEAD, Method::PUT] {
                    assert_eq!(memo.route(&method, path, query, known), route(&method, path, query, known), "{method} {target}");
                }
            }
        }
        let (memo, known) = &configurations[0];
        let find = || memo.route(&Method::GET, "/v2/a/manifests/latest", Some("ns=ghcr.io"), known);
        let (first, asked) = (find(), known.1.get());
        assert_eq!((find(), known.1.get()), (first, asked));
    }
}
