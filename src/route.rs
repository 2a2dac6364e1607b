//! (method, path, query) → what is asked for. Pure and total: every input has an answer, and none touches anything.
//!
//! Four layouts reach the same content, because that is how clients spell a mirror (DESIGN section 1):
//!
//! | layout | example | who |
//! |---|---|---|
//! | root with `ns` | `/v2/library/nginx/manifests/1?ns=docker.io` | containerd, k3s, `BuildKit`, dockerd with containerd's store |
//! | root without | `/v2/library/nginx/manifests/1` | classic dockerd; means Docker Hub |
//! | registry in the name | `/v2/ghcr.io/org/x/manifests/1` | podman, CRI-O, kaniko, `docker pull mirror/ghcr.io/org/x` |
//! | registry before `/v2` | `/ghcr.io/v2/org/x/manifests/1` | dockerd and hosts.toml with a path in the mirror's URL |
//!
//! The path is taken as it is: no dot segments, no doubled slashes are resolved; a percent-encoded byte is decoded once and
//! then has to satisfy the grammar. A repository name may contain words such as `blobs`, so the path is read from its end.

use std::borrow::Cow;

use hyper::Method;
use percent_encoding::percent_decode_str;

use crate::observe::Kind;
use crate::oci::{Digest, Invalid, Name, PAGE_MAX, Reference, Registry, Repository};

mod memo;

pub use self::memo::Memo;

/// The longest path and query that is looked at, in bytes: four times what the longest valid one needs.
pub const TARGET_BYTES_MAX: usize = 8 << 10;

/// Repositories of a page of the catalog unless another number is asked for, as Docker's own registry has it.
const CATALOG_DEFAULT: u32 = 100;

/// The longest term that is searched for, in bytes: that of a repository's name.
const TERM_BYTES_MAX: usize = 255;

/// Results of a page of a search: unless another number is asked for, and at the most, as Docker Hub has it.
const RESULTS_DEFAULT: u32 = 25;
const RESULTS_MAX: u32 = 100;

/// The last page of a search that may be asked for: nobody turns a hundred pages.
const PAGES_MAX: u32 = 100;

/// Filters that one referrers request may have.
const ARTIFACT_TYPES_MAX: usize = 16;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: is there a registry?
    Ping,
    /// A manifest (distribution-spec end-3).
    Manifest(Repository, Reference),
    /// A blob (end-2).
    Blob(Repository, Digest),
    /// The tags of a repository (end-8), at most `n` after `last`.
    Tags {
        /// Of which repository.
        repository: Repository,
        /// How many at the most.
        n: Option<u32>,
        /// After which tag.
        last: Option<String>,
    },
    /// What refers to a manifest (end-12).
    Referrers {
        /// In which repository.
        repository: Repository,
        /// To which manifest.
        digest: Digest,
        /// Only these types; none is all.
        artifact_types: Vec<String>,
    },
    /// `/v2/_catalog`: what is held, of all registries or of one.
    Catalog {
        /// Of which registry.
        registry: Option<Registry>,
        /// How many at the most.
        n: u32,
        /// After which repository.
        last: Option<String>,
    },
    /// `/v1/_ping`: is there a search?
    SearchPing,
    /// `/v1/search`.
    Search {
        /// For what.
        term: String,
        /// Results of a page.
        n: u32,
        /// Which page, from 1 on.
        page: u32,
    },
}

/// A route, and what of the request's spelling the answer repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// What is asked for.
    pub route: Route,
    /// The `ns` that chose the registry: the answer says so in `OCI-Namespace` (distribution-spec, "Registry Proxying").
    pub namespace: Option<Registry>,
    /// What stands before `/v2` in the path, to be repeated in links.
    pub prefix: Option<Registry>,
    /// The registry was spelled as the first part of the name, to be repeated in links.
    pub in_name: bool,
}

/// Why a request has no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// Neither GET nor HEAD.
    #[error("this is a read-only mirror: push to the registry itself")]
    Method,
    /// Nothing is there.
    #[error("there is nothing at this path; the registry API is under /v2/")]
    Path,
    /// Too long to be valid.
    #[error("the path and query are longer than 8 KiB")]
    TooLong,
    /// A part of the path breaks its grammar.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// `n` is not a number.
    #[error("n is a number of tags")]
    Page,
    /// `last` is not text, or there are too many filters.
    #[error("a query parameter is not valid")]
    Query,
    /// Not in the configuration.
    #[error("this registry is not among the upstreams of this mirror; an operator can add it to [upstreams] in mirror.toml")]
    Registry,
    /// Two parts of the request name two registries.
    #[error("the path and the ns parameter name two different registries")]
    Conflict,
}

/// What the router must know of the configuration.
pub trait Known {
    /// The registry that this name means, if it may be asked: aliases are resolved here.
    fn registry(&self, named: &Registry) -> Option<Registry>;
}

impl Routed {
    /// What the log and the metrics call it.
    pub fn kind(&self) -> Kind {
        match self.route {
            Route::Ping | Route::SearchPing => Kind::Ping,
            Route::Catalog { .. } => Kind::Catalog,
            Route::Search { .. } => Kind::Search,
            Route::Manifest(..) => Kind::Manifest,
            Route::Blob(..) => Kind::Blob,
            Route::Tags { .. } => Kind::Tags,
            Route::Referrers { .. } => Kind::Referrers,
        }
    }

    /// The repository's path as the client spelled it, up to its name: `/v2/docker.io/library/debian`. For links.
    pub fn base(&self, repository: &Repository) -> String {
        let prefix = self.prefix.as_ref().map(|registry| format!("/{registry}")).unwrap_or_default();
        let registry = if self.in_name { format!("{}/", repository.registry) } else { String::new() };
        format!("{prefix}/v2/{registry}{}", repository.name)
    }
}

impl Route {
    /// Whose content, if any.
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Ping | Self::Catalog { .. } | Self::SearchPing | Self::Search { .. } => None,
            Self::Manifest(repository, _)
            | Self::Blob(repository, _)
            | Self::Tags { repository, .. }
            | Self::Referrers { repository, .. } => Some(repository),
        }
    }
}

/// Finds what a request asks for.
pub fn route(method: &Method, path: &str, query: Option<&str>, known: &impl Known) -> Result<Routed, NoRoute> {
    if path.len() + query.map_or(0, str::len) > TARGET_BYTES_MAX {
        return Err(NoRoute::TooLong);
    }
    if let Some(rest) = path.strip_prefix("/v1/") {
        return search(method, rest, query);
    }
    let (prefix, rest) = split_prefix(path)?;
    if method != Method::GET && method != Method::HEAD {
        return Err(NoRoute::Method);
    }
    let query = Query::parse(query)?;
    let prefix = prefix.map(|named| known.registry(&named).map(|_| named).ok_or(NoRoute::Registry)).transpose()?;
    if rest.is_empty() || rest == "/" {
        return Ok(Routed { route: Route::Ping, namespace: None, prefix, in_name: false });
    }
    if rest == "/_catalog" {
        let resolve = |named: &Registry| known.registry(named).ok_or(NoRoute::Registry);
        let registry = match (prefix.as_ref().map(resolve).transpose()?, query.namespace.as_ref().map(resolve).transpose()?) {
            (Some(prefix), Some(namespace)) if prefix != namespace => return Err(NoRoute::Conflict),
            (prefix, namespace) => prefix.or(namespace),
        };
        let route = Route::Catalog { registry, n: query.n.unwrap_or(CATALOG_DEFAULT), last: query.last };
        return Ok(Routed { route, namespace: query.namespace, prefix, in_name: false });
    }
    let segments = rest.strip_prefix('/').ok_or(NoRoute::Path)?.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
    let (name, endpoint) = split_endpoint(&segments)?;
    let (repository, in_name) = repository(name, prefix.as_ref(), query.namespace.as_ref(), known)?;
    let route = endpoint.on(repository, query.n, query.last, query.artifact_types)?;
    Ok(Routed { route, namespace: query.namespace, prefix, in_name })
}

/// What is under `/v1/`: the search of Docker's first registry protocol, which its clients still use, and nothing else of it.
fn search(method: &Method, rest: &str, query: Option<&str>) -> Result<Routed, NoRoute> {
    if method != Method::GET && method != Method::HEAD {
        return Err(NoRoute::Method);
    }
    let query = Query::parse(query)?;
    let route = match rest {
        "_ping" => Route::SearchPing,
        "search" => {
            let term = query.term.filter(|term| term.len() <= TERM_BYTES_MAX).ok_or(NoRoute::Query)?;
            let n = query.n.unwrap_or(RESULTS_DEFAULT).clamp(1, RESULTS_MAX);
            Route::Search { term, n, page: query.page.unwrap_or(1).clamp(1, PAGES_MAX) }
        }
        _ => return Err(NoRoute::Path),
    };
    Ok(Routed { route, namespace: None, prefix: None, in_name: false })
}

/// Splits `[/<registry>]/v2<rest>`.
fn split_prefix(path: &str) -> Result<(Option<Registry>, &str), NoRoute> {
    let after_v2 = |path: &str| -> Option<usize> {
        let rest = path.strip_prefix("/v2")?;
        (rest.is_empty() || rest.starts_with('/')).then_some(path.len() - rest.len())
    };
    if let Some(at) = after_v2(path) {
        return Ok((None, &path[at..]));
    }
    let first = path.strip_prefix('/').and_then(|path| path.split('/').next()).ok_or(NoRoute::Path)?;
    let rest = &path[1 + first.len()..];
    let at = after_v2(rest).ok_or(NoRoute::Path)?;
    let registry = decode(first)?;
    Ok((Some(Registry::parse(&registry).map_err(|_| NoRoute::Path)?), &rest[at..]))
}

/// What the end of a path asks for.
enum Endpoint<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Referrers(&'a str),
    Tags,
}

impl Endpoint<'_> {
    fn on(self, repository: Repository, n: Option<u32>, last: Option<String>, artifact_types: Vec<String>) -> Result<Route, NoRoute> {
        Ok(match self {
            Self::Manifest(text) => Route::Manifest(repository, Reference::parse(text)?),
            Self::Blob(text) => Route::Blob(repository, Digest::parse(text)?),
            Self::Referrers(text) => Route::Referrers { repository, digest: Digest::parse(text)?, artifact_types },
            Self::Tags => Route::Tags { repository, n, last },
        })
    }
}

/// The last two segments decide: a repository may be called `library/blobs`.
fn split_endpoint<'a>(segments: &'a [Cow<'a, str>]) -> Result<(&'a [Cow<'a, str>], Endpoint<'a>), NoRoute> {
    let [name @ .., kind, last] = segments else { return Err(NoRoute::Path) };
    let endpoint = match (kind.as_ref(), last.as_ref()) {
        ("manifests", text) => Endpoint::Manifest(text),
        ("blobs", text) => Endpoint::Blob(text),
        ("referrers", text) => Endpoint::Referrers(text),
        ("tags", "list") => Endpoint::Tags,
        _ => return Err(NoRoute::Path),
    };
    if name.is_empty() {
        return Err(NoRoute::Invalid(Invalid::Name));
    }
    Ok((name, endpoint))
}

/// The path wins over `ns`, and `ns` over Docker Hub; where two of them name a registry they must agree.
fn repository(
    segments: &[Cow<'_, str>],
    prefix: Option<&Registry>,
    namespace: Option<&Registry>,
    known: &impl Known,
) -> Result<(Repository, bool), NoRoute> {
    let resolve = |named: &Registry| known.registry(named).ok_or(NoRoute::Registry);
    let outside = match (prefix.map(resolve).transpose()?, namespace.map(resolve).transpose()?) {
        (Some(prefix), Some(namespace)) if prefix != namespace => return Err(NoRoute::Conflict),
        (prefix, namespace) => prefix.or(namespace),
    };
    let spelled = segments.first().filter(|first| segments.len() > 1 && Registry::is_spelled_by(first));
    let inside = match spelled.map(|first| Registry::parse(first)) {
        // A name's first part may look like a host where the registry is given otherwise: `my.group/project`.
        Some(Ok(named)) => match (known.registry(&named), &outside) {
            (Some(inside), Some(outside)) if inside != *outside => return Err(NoRoute::Conflict),
            (None, None) => return Err(NoRoute::Registry),
            (inside, _) => inside,
        },
        Some(Err(_)) if outside.is_none() => return Err(NoRoute::Invalid(Invalid::Registry)),
        Some(Err(_)) | None => None,
    };
    let (in_name, name) = match &inside {
        Some(_) => (true, &segments[1..]),
        None => (false, segments),
    };
    let registry = inside.or(outside).map_or_else(|| resolve(&Registry::docker_hub()), Ok)?;
    let name = Name::parse(&name.join("/"))?.in_library_of(&registry)?;
    Ok((Repository { registry, name }, in_name))
}

/// Decodes a path segment once. What it decodes to must be text, and a decoded slash does not make two segments.
fn decode(segment: &str) -> Result<Cow<'_, str>, NoRoute> {
    // As nearly all are written.
    if !segment.contains('%') {
        return Ok(Cow::Borrowed(segment));
    }
    let decoded = percent_decode_str(segment).decode_utf8().map_err(|_| NoRoute::Invalid(Invalid::Name))?;
    if decoded.contains('/') {
        return Err(NoRoute::Invalid(Invalid::Name));
    }
    Ok(decoded)
}

/// Decodes the value of a parameter, in which a plus is a space.
fn spelled(value: &str) -> Result<Cow<'_, str>, NoRoute> {
    if !value.contains(['+', '%']) {
        return Ok(Cow::Borrowed(value));
    }
    let spaced = value.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| NoRoute::Query)?;
    Ok(Cow::Owned(decoded.into_owned()))
}

/// The parameters that mean something; others are harmless.
#[derive(Default)]
struct Query {
    namespace: Option<Registry>,
    n: Option<u32>,
    last: Option<String>,
    artifact_types: Vec<String>,
    term: Option<String>,
    page: Option<u32>,
}

impl Query {
    fn parse(text: Option<&str>) -> Result<Self, NoRoute> {
        let mut query = Self::default();
        for pair in text.unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = || {
                let value = spelled(value)?;
                if value.chars().any(char::is_control) { Err(NoRoute::Query) } else { Ok(value) }
            };
            match key {
                "ns" => {
                    let named = Registry::parse(&value()?)?;
                    if query.namespace.as_ref().is_some_and(|earlier| *earlier != named) {
                        return Err(NoRoute::Conflict);
                    }
                    query.namespace = Some(named);
                }
                "n" => query.n = Some(value()?.parse::<u32>().map_err(|_| NoRoute::Page)?.min(PAGE_MAX)),
                "page" => query.page = value()?.parse::<u32>().ok(),
                "q" => query.term = Some(value()?.trim().to_owned()).filter(|term| !term.is_empty()),
                "last" => query.last = Some(value()?.into_owned()).filter(|last| !last.is_empty()),
                "artifactType" if query.artifact_types.len() < ARTIFACT_TYPES_MAX => query.artifact_types.push(value()?.into_owned()),
                "artifactType" => return Err(NoRoute::Query),
                _ => {}
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Table;

    impl Known for Table {
        fn registry(&self, named: &Registry) -> Option<Registry> {
            match named.as_str() {
                "docker.io" | "index.docker.io" => Some(Registry::docker_hub()),
                "ghcr.io" | "registry.example:5000" => Some(named.clone()),
                _ => None,
            }
        }
    }

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn get(target: &str) -> Result<Routed, NoRoute> {
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        route(&Method::GET, path, query, &Table)
    }

    fn named(target: &str) -> String {
        get(target).expect(target).route.repository().expect("of a repository").to_string()
    }

    #[test]
    fn the_four_layouts_meet() {
        for target in [
            "/v2/library/nginx/manifests/1?ns=docker.io",
            "/v2/library/nginx/manifests/1",
            "/v2/nginx/manifests/1",
            "/v2/nginx/manifests/1?ns=index.docker.io",
            "/v2/docker.io/library/nginx/manifests/1",
            "/v2/docker.io/nginx/manifests/1",
            "/v2/docker.io/library/nginx/manifests/1?ns=docker.io",
            "/docker.io/v2/library/nginx/manifests/1",
            "/docker.io/v2/library/nginx/manifests/1?ns=docker.io",
            "/index.docker.io/v2/library/nginx/manifests/1?ns=docker.io",
        ] {
            assert_eq!(named(target), "docker.io/library/nginx", "{target}");
        }
        assert_eq!(named("/v2/registry.example:5000/a/b/tags/list"), "registry.example:5000/a/b");
        assert_eq!(named("/registry.example:5000/v2/a/tags/list"), "registry.example:5000/a");
        assert_eq!(named("/v2/my.group/project/tags/list?ns=ghcr.io"), "ghcr.io/my.group/project");
    }

    #[test]
    fn a_name_may_use_the_words_of_the_paths() {
        assert_eq!(named(&format!("/v2/blobs/uploads/blobs/{DIGEST}")), "docker.io/blobs/uploads");
        assert_eq!(named("/v2/manifests/manifests/manifests"), "docker.io/library/manifests");
        assert_eq!(named("/v2/tags/list/tags/list"), "docker.io/tags/list");
        assert_eq!(named(&format!("/v2/a/blobs/{}", DIGEST.replace(':', "%3A"))), "docker.io/library/a");
    }

    #[test]
    fn what_is_not_configured_is_refused() {
        assert_eq!(get("/v2/evil.test/a/manifests/1"), Err(NoRoute::Registry));
        assert_eq!(get("/evil.test/v2/a/manifests/1"), Err(NoRoute::Registry));
        assert_eq!(get("/v2/a/manifests/1?ns=evil.test"), Err(NoRoute::Registry));
        assert_eq!(get("/v2/a/manifests/1?ns=169.254.169.254"), Err(NoRoute::Registry));
        assert_eq!(get("/v2/ghcr.io/a/manifests/1?ns=docker.io"), Err(NoRoute::Conflict));
        assert_eq!(get("/ghcr.io/v2/a/manifests/1?ns=docker.io"), Err(NoRoute::Conflict));
        assert_eq!(get("/v2/a/manifests/1?ns=ghcr.io&ns=docker.io"), Err(NoRoute::Conflict));
        assert_eq!(get("/v2/a/manifests/1?ns=docker.io@evil"), Err(NoRoute::Invalid(Invalid::Registry)));
    }

    #[test]
    fn hostile_paths_have_no_route() {
        for target in [
            "/",
            "",
            "/v3/",
            "/V2/",
            "//v2/",
            "/./v2/",
            "/v2/../../../etc/passwd",
            "/%2F%2F%2F..%2F..%2Fetc%2Fpasswd",
            "/v2/..%2f..%2fetc/manifests/passwd",
            "/v2/%2e%2e/manifests/x",
            "/v2/%252e%252e/manifests/x",
            "//evil.test/v2/",
            "/v2//manifests/x",
            "/v2/manifests/x",
            "/v2/library//alpine/manifests/x",
            "/v2/a/manifests/x/",
            "/v2/a/manifests/",
            "/v2/a/manifests/..",
            "/v2/a/manifests/a%20b",
            "/v2/A/manifests/x",
            "/v2/a%00/manifests/x",
            "/v2/a%0d%0a/manifests/x",
            "/v2/a%ff/manifests/x",
            "/v2/a/blobs/",
            "/v2/a/blobs/sha256:../../../../etc/passwd",
            "/v2/a/blobs/sha256:abc",
            "/v2/a/blobs/uploads/",
            "/v2/%5fcatalog",
            "/v2/_catalog/",
            "/v2/_catalog?n=x",
            "/v2/_catalog?ns=evil.test",
            "/ghcr.io/v2/_catalog?ns=docker.io",
            "/v1/",
            "/v1/search",
            "/v1/search?q=",
            "/v1/search?q=%1b",
            "/v1/search?q=x&n=x",
            "/v1/users/",
            "/ghcr.io/v1/search?q=x",
            "/v2/a/foo/bar",
            "/v2/a/tags/list?n=x",
            "/v2/a/tags/list?n=-1",
            "/v2/a/tags/list?n=99999999999999999999",
            "/v2/a/tags/list?last=%00",
            "/v2/a/referrers/notadigest",
        ] {
            assert!(get(target).is_err(), "{target}: {:?}", get(target));
        }
    }

    #[test]
    fn ping_is_spelled_in_every_layout() {
        for target in ["/v2", "/v2/", "/ghcr.io/v2/", "/ghcr.io/v2", "/v2/?ns=docker.io"] {
            assert_eq!(get(target).map(|routed| routed.route), Ok(Route::Ping), "{target}");
        }
    }

    #[test]
    fn only_reading_is_routed() {
        for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::OPTIONS, Method::TRACE, Method::CONNECT] {
            assert_eq!(route(&method, "/v2/a/blobs/uploads/", None, &Table), Err(NoRoute::Method));
            assert_eq!(route(&method, "/elsewhere", None, &Table), Err(NoRoute::Path));
        }
    }

    #[test]
    fn pages_are_cut_down() {
        let Route::Tags { n, last, .. } = get("/v2/a/tags/list?n=2147483647&last=x%2By").expect("a page").route else { panic!("tags") };
        assert_eq!((n, last.as_deref()), (Some(PAGE_MAX), Some("x+y")));
        let Route::Tags { n, .. } = get("/v2/a/tags/list?n=0").expect("a page").route else { panic!("tags") };
        assert_eq!(n, Some(0));
    }

    #[test]
    fn the_catalog_is_of_all_or_of_one() {
        let catalog = |target: &str| match get(target).expect(target).route {
            Route::Catalog { registry, n, last } => (registry.map(|registry| registry.to_string()), n, last),
            other => panic!("{target}: {other:?}"),
        };
        assert_eq!(catalog("/v2/_catalog"), (None, CATALOG_DEFAULT, None));
        assert_eq!(catalog("/v2/_catalog?ns=index.docker.io&n=5&last=a%2Fb"), (Some("docker.io".into()), 5, Some("a/b".into())));
        assert_eq!(catalog("/ghcr.io/v2/_catalog?n=2147483647"), (Some("ghcr.io".into()), PAGE_MAX, None));
    }

    #[test]
    fn a_search_is_bounded() {
        let search = |target: &str| match get(target).expect(target).route {
            Route::Search { term, n, page } => (term, n, page),
            other => panic!("{target}: {other:?}"),
        };
        assert_eq!(get("/v1/_ping").expect("routed").route, Route::SearchPing);
        assert_eq!(search("/v1/search?q=my+sql&n=25"), ("my sql".into(), 25, 1));
        assert_eq!(search("/v1/search?q=a&n=0&page=0"), ("a".into(), 1, 1));
        assert_eq!(search("/v1/search?q=a&n=1000&page=1000"), ("a".into(), RESULTS_MAX, PAGES_MAX));
        assert_eq!(get(&format!("/v1/search?q={}", "x".repeat(256))), Err(NoRoute::Query));
    }

    #[test]
    fn links_are_spelled_as_the_client_did() {
        for base in ["/v2/library/a", "/v2/ghcr.io/org/a", "/ghcr.io/v2/org/a"] {
            let routed = get(&format!("{base}/tags/list")).expect("routed");
            assert_eq!(routed.base(routed.route.repository().expect("of a repository")), base);
        }
    }

    proptest! {
        #[test]
        fn every_input_has_an_answer(path in "\\PC{0,80}", query in proptest::option::of("\\PC{0,40}")) {
            let _ = route(&Method::GET, &path, query.as_deref(), &Table);
        }

        #[test]
        fn nothing_routed_leaves_the_grammar(path in "/(v2|ghcr.io/v2|docker.io)(/[a-zA-Z0-9._%:/-]{1,20}){0,4}/(manifests|blobs|tags|referrers)/[a-z0-9.:%-]{1,72}") {
            if let Ok(routed) = route(&Method::GET, &path, None, &Table) && let Some(repository) = routed.route.repository() {
                prop_assert_eq!(Name::parse(repository.name.as_str()), Ok(repository.name.clone()));
                prop_assert!(!repository.name.as_str().contains(".."));
            }
        }
    }
}
