//! What must hold of millpond's parsers for every input: one function a target, which takes any bytes and panics where a
//! promise is broken.
//!
//! Two readers: the fuzzer (`fuzz_targets/`), which makes up inputs, and the test `it::corpus`, which includes this file and
//! replays the inputs in `corpus/`. So nothing here may know of the fuzzer.
//!
//! The grammars are written a second time here, with other means than in `src/`: a parser that is held against itself is
//! always right.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Write as _};
use std::str::{FromStr, from_utf8};

use hyper::Method;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use millpond::config::{self, File, Sources};
use millpond::oci::{Digest, Manifest, MediaType, NAME_BYTES_MAX, Name, PAGE_MAX, Reference, Registry, TAG_BYTES_MAX, Tag};
use millpond::reply::{Wanted, parse_range};
use millpond::route::{Known, Route, Routed, TARGET_BYTES_MAX};
use millpond::upstream::challenge::{self, Challenge};
use millpond::upstream::headers::{self, ContentRange};

/// A target's name and what it asserts.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 7] = [
    ("route", route),
    ("reference", reference),
    ("range", range),
    ("challenge", challenge),
    ("link", link),
    ("manifest", manifest),
    ("config", config),
];

/// Registries that are configured, one with an alias, one with a port, one without a dot.
struct Table;

impl Known for Table {
    fn registry(&self, named: &Registry) -> Option<Registry> {
        match named.as_str() {
            "docker.io" | "index.docker.io" => Some(Registry::docker_hub()),
            "ghcr.io" | "registry.example:5000" | "team" | "localhost" => Some(named.clone()),
            _ => None,
        }
    }
}

/// The input is a request line's method and target: `GET /v2/a/tags/list?n=1`.
///
/// Whatever is routed obeys the grammar, and the target that is spelled from the route is routed to the same.
pub fn route(input: &[u8]) {
    let Some((method, target)) = from_utf8(input).ok().and_then(|text| text.split_once(' ')) else { return };
    let Ok(method) = Method::from_str(method) else { return };
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let Ok(routed) = millpond::route::route(&method, path, query, &Table) else { return };

    assert!(matches!(method, Method::GET | Method::HEAD), "{method} is no reading");
    for named in [&routed.namespace, &routed.prefix].into_iter().flatten() {
        assert!(Table.registry(named).is_some() || routed.route == Route::Ping, "{named} is not configured");
    }
    if let Some(repository) = routed.route.repository() {
        assert_eq!(Table.registry(&repository.registry).as_ref(), Some(&repository.registry), "a registry that is configured");
        is_name(repository.name.as_str());
        round_trip(&repository.name);
    }
    match &routed.route {
        Route::Manifest(_, reference) => is_reference(reference),
        Route::Blob(_, digest) | Route::Referrers { digest, .. } => is_digest(&digest.to_string()),
        Route::Tags { n, last, .. } => {
            assert!(n.is_none_or(|n| n <= PAGE_MAX), "a page of {n:?}");
            assert!(last.as_ref().is_none_or(|last| !last.is_empty() && !last.chars().any(char::is_control)), "{last:?}");
        }
        Route::Catalog { n, last, .. } => {
            assert!(*n <= PAGE_MAX, "a page of {n}");
            assert!(last.as_ref().is_none_or(|last| !last.is_empty() && !last.chars().any(char::is_control)), "{last:?}");
        }
        Route::Search { term, n, page } => {
            assert!((1..=256).contains(&term.len()) && !term.chars().any(char::is_control), "{term:?}");
            assert!((1..=100).contains(n) && (1..=100).contains(page), "page {page} of {n}");
        }
        Route::Ping | Route::SearchPing => {}
    }

    let (path, query) = spelled(&routed);
    if path.len() + query.len() <= TARGET_BYTES_MAX {
        let again = millpond::route::route(&Method::GET, &path, Some(&query), &Table);
        assert_eq!(again, Ok(routed), "{path}?{query}");
    }
}

/// The path and the query that ask for a route.
fn spelled(routed: &Routed) -> (String, String) {
    let base = routed.route.repository().map(|repository| routed.base(repository)).unwrap_or_default();
    let mut query = String::new();
    let mut pair = |key: &str, value: &dyn Display| {
        let _ = write!(query, "&{key}="); // a String takes everything
        for byte in value.to_string().bytes() {
            let _ = if byte.is_ascii_alphanumeric() { write!(query, "{}", char::from(byte)) } else { write!(query, "%{byte:02X}") };
        }
    };
    if let Some(namespace) = &routed.namespace {
        pair("ns", namespace);
    }
    let path = match &routed.route {
        Route::Ping => format!("{}/v2/", routed.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default()),
        Route::SearchPing => "/v1/_ping".to_owned(),
        Route::Search { term, n, page } => {
            pair("q", term);
            pair("n", n);
            pair("page", page);
            "/v1/search".to_owned()
        }
        Route::Catalog { n, last, .. } => {
            pair("n", n);
            if let Some(last) = last {
                pair("last", last);
            }
            format!("{}/v2/_catalog", routed.prefix.as_ref().map(|prefix| format!("/{prefix}")).unwrap_or_default())
        }
        Route::Manifest(_, reference) => format!("{base}/manifests/{reference}"),
        Route::Blob(_, digest) => format!("{base}/blobs/{digest}"),
        Route::Tags { n, last, .. } => {
            if let Some(n) = n {
                pair("n", n);
            }
            if let Some(last) = last {
                pair("last", last);
            }
            format!("{base}/tags/list")
        }
        Route::Referrers { digest, artifact_types, .. } => {
            for artifact_type in artifact_types {
                pair("artifactType", artifact_type);
            }
            format!("{base}/referrers/{digest}")
        }
    };
    (path, query)
}

/// The input is a text that may be any word of the vocabulary: what is taken obeys its grammar and reads as itself.
pub fn reference(input: &[u8]) {
    let Ok(text) = from_utf8(input) else { return };
    if let Ok(registry) = Registry::parse(text) {
        let bytes = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b':');
        assert!(registry.as_str().bytes().all(bytes) && !registry.as_str().contains(".."), "{registry:?}");
        assert_eq!(registry.as_str(), text.to_ascii_lowercase());
        round_trip(&registry);
    }
    if let Ok(name) = Name::parse(text) {
        is_name(text);
        assert_eq!(name.as_str(), text);
        round_trip(&name);
    }
    if let Ok(tag) = Tag::parse(text) {
        is_tag(text);
        assert_eq!(tag.as_str(), text);
        round_trip(&tag);
    }
    if let Ok(digest) = Digest::parse(text) {
        is_digest(text);
        assert_eq!(digest.to_string(), text);
        assert_eq!(digest.hex().len(), digest.as_bytes().len() * 2);
        is_tag(digest.referrers_tag().as_str());
    }
    if let Ok(reference) = Reference::parse(text) {
        is_reference(&reference);
        assert_eq!(reference.to_string(), text);
    }
    if let Ok(media_type) = MediaType::parse(text) {
        let token = |b: u8| b.is_ascii_graphic() && !b.is_ascii_uppercase() && !b"\"(),/:;<=>?@[\\]{}".contains(&b);
        let subtype = media_type.as_str().strip_prefix("application/");
        assert!(subtype.is_some_and(|subtype| !subtype.is_empty() && subtype.bytes().all(token)), "{media_type:?}");
        round_trip(&media_type);
    }
}

fn round_trip<T: FromStr<Err: Debug> + Display + Debug + PartialEq>(value: &T) {
    let again = value.to_string().parse::<T>();
    assert!(again.as_ref().is_ok_and(|again| again == value), "{value} is read as {again:?}");
}

fn is_name(text: &str) {
    assert!(text.len() <= NAME_BYTES_MAX, "{} bytes", text.len());
    for component in text.split('/') {
        assert!(component.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b)), "{text:?}");
        let edges = [component.bytes().next(), component.bytes().last()];
        assert!(edges.iter().all(|edge| edge.is_some_and(|b| b.is_ascii_alphanumeric())), "{text:?}");
        let mixed = ["..", "___", "._", "_.", ".-", "-.", "_-", "-_"];
        assert!(!mixed.iter().any(|mixed| component.contains(mixed)), "{text:?}");
    }
}

fn is_tag(text: &str) {
    assert!(!text.is_empty() && text.len() <= TAG_BYTES_MAX && !text.starts_with(['.', '-']), "{text:?}");
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{text:?}");
}

fn is_digest(text: &str) {
    let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    let hex = hex.or_else(|| text.strip_prefix("sha512:").filter(|hex| hex.len() == 128));
    assert!(hex.is_some_and(|hex| hex.bytes().all(|b| b"0123456789abcdef".contains(&b))), "{text:?}");
}

fn is_reference(reference: &Reference) {
    match reference {
        Reference::Tag(tag) => is_tag(tag.as_str()),
        Reference::Digest(digest) => is_digest(&digest.to_string()),
    }
}

/// The input is a size in decimal, a line break, and a `Range` header: every range that is wanted is within the size, and
/// all of them together are not longer than it.
pub fn range(input: &[u8]) {
    let Some((size, header)) = from_utf8(input).ok().and_then(|text| text.split_once('\n')) else { return };
    let Ok(size) = size.parse::<u64>() else { return };
    let wanted = parse_range(Some(header), size);
    let ranges = match &wanted {
        Wanted::Whole | Wanted::Nothing => return,
        Wanted::One(range) => std::slice::from_ref(range),
        Wanted::Many(ranges) => {
            assert!(ranges.len() > 1, "{wanted:?}");
            ranges
        }
    };
    assert!(ranges.iter().all(|range| range.start < range.end && range.end <= size), "{wanted:?} of {size}");
    let total: u128 = ranges.iter().map(|range| u128::from(range.end - range.start)).sum();
    assert!(total <= u128::from(size), "{wanted:?} of {size}");
    let again = ranges.iter().map(|range| format!("{}-{}", range.start, range.end - 1)).collect::<Vec<_>>().join(",");
    assert_eq!(parse_range(Some(&format!("bytes={again}")), size), wanted);
}

/// The input is the lines of `WWW-Authenticate`: no control character comes out, and what comes out, written properly, is
/// read as the same.
pub fn challenge(input: &[u8]) {
    let Ok(text) = from_utf8(input) else { return };
    let Some(Challenge::Bearer { realm, service }) = challenge::read(text.split('\n')) else { return };
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    for value in [Some(&realm), service.as_ref()].into_iter().flatten() {
        assert!(!value.chars().any(char::is_control), "{value:?}");
    }
    let service_line = service.as_ref().map(|service| format!(", service={}", quoted(service))).unwrap_or_default();
    let line = format!("Bearer realm={}{service_line}", quoted(&realm));
    // Escapes make it longer, and there is a limit to that.
    if line.len() <= text.len() {
        assert_eq!(challenge::read([line.as_str()]), Some(Challenge::Bearer { realm, service }), "{line}");
    }
}

/// The input is the header lines of an upstream's answer, `name: value`: what `Link`, `Content-Range` and `Retry-After` say of them.
pub fn link(input: &[u8]) {
    let mut map = HeaderMap::new();
    for line in input.split(|&b| b == b'\n') {
        let Some(colon) = line.iter().position(|&b| b == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()));
        if let (Ok(name), Ok(value)) = (name, value) {
            map.append(name, value);
        }
    }
    if let Some(query) = headers::next_page(&map) {
        // It goes into the target of the next request.
        assert!(query.bytes().all(|b| b.is_ascii_graphic() && b != b'#'), "{query:?}");
    }
    let content_range = map.get("content-range").and_then(|value| value.to_str().ok()).and_then(ContentRange::parse);
    if let Some(range) = content_range {
        assert!(range.first <= range.last && range.total.is_none_or(|total| range.last < total), "{range:?}");
        let total = range.total.map_or_else(|| "*".to_owned(), |total| total.to_string());
        assert_eq!(ContentRange::parse(&format!("bytes {}-{}/{total}", range.first, range.last)), Some(range));
    }
    if let Some(after) = headers::retry_after(&map) {
        let text = map.get("retry-after").and_then(|value| value.to_str().ok()).map(str::trim);
        let is_date = text.is_some_and(|text| text.contains(", ")) && map.contains_key("date");
        assert!(after.subsec_nanos() == 0 && (is_date || text.is_some_and(|text| text.bytes().all(|b| b.is_ascii_digit()))));
    }
}

/// The input is a `Content-Type` (empty: none), a line break, and a manifest. What is taken is one JSON text of one meaning,
/// and has the same meaning when it is read again under the type that was found.
pub fn manifest(input: &[u8]) {
    let Some(at) = input.iter().position(|&b| b == b'\n') else { return };
    let (content_type, bytes) = (from_utf8(&input[..at]).ok().filter(|text| !text.is_empty()), &input[at + 1..]);
    let Ok(manifest) = Manifest::parse(bytes, content_type) else { return };

    assert!(manifest.manifests.is_empty() || manifest.blobs.is_empty(), "{manifest:?}");
    round_trip(&manifest.media_type);
    let text = from_utf8(bytes).expect("JSON is UTF-8");
    assert!(text.trim_ascii_start().starts_with('{'), "an object");
    assert!(depth(text) <= 128, "{} deep", depth(text));
    let again = Manifest::parse(bytes, Some(manifest.media_type.as_str())).expect("it was taken before");
    assert_eq!(again.media_type, manifest.media_type);
    assert!(again.manifests == manifest.manifests && again.blobs == manifest.blobs);
}

/// How deep a JSON text nests.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_string,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The input is a configuration file. It is sound or there is at least one mistake, each on one line; and what `check` prints
/// of a sound one is a file that means the same.
pub fn config(input: &[u8]) {
    let Ok(text) = from_utf8(input) else { return };
    // Without a home, a file that does not say where the data shall be is a mistake: both are tried.
    for env in [BTreeMap::new(), BTreeMap::from([("HOME".to_owned(), "/nowhere".into())])] {
        let load = |text: &str| {
            let file = File { name: "mirror.toml".to_owned(), text: text.to_owned() };
            config::load(&Sources { file: Some(file), env: env.clone(), ..Sources::default() })
        };
        match load(text) {
            Err(mistakes) => {
                assert!(!mistakes.0.is_empty(), "refused without a word");
                let told = mistakes.to_string();
                assert_eq!(told.lines().count(), mistakes.0.len(), "one line each: {told}");
                assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told:?}");
            }
            Ok(loaded) => {
                let shown = loaded.effective();
                assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
                // A secret is not shown, so that one cannot be read again.
                if !shown.contains("***") {
                    let again = load(&shown).unwrap_or_else(|mistakes| panic!("{mistakes}{shown}"));
                    assert_eq!(values(&again.effective()), values(&shown));
                }
            }
        }
    }
}

/// What `check` prints, without the origins: the second time everything comes from the file.
fn values(effective: &str) -> Vec<&str> {
    effective.lines().map(|line| line.rsplit_once(" # ").map_or(line, |(value, _)| value).trim_end()).collect()
}
