//! The only maker of responses: headers, ranges, and the one table that says how each problem is answered.
//!
//! 4xx explain what the client can do; 5xx say a code and the request's id, which is in the log too. No answer names a path
//! on this machine, a secret or an upstream's own words. Headers are made here from typed values: none of an upstream's is
//! ever passed on.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Version};

use crate::listen;
use crate::observe::{Id, Kind, Outcome};
use crate::oci::{Digest, Invalid, OCI_INDEX, Registry};
use crate::pull::{self, Answer, BlobAnswer, ManifestAnswer, Referrers, Tags};
use crate::route::NoRoute;

mod body;
mod head;
mod range;
mod search;

use self::head::{As, HEADERS, OCI_NAMESPACE, Of};
pub use body::{Again, Body, BodyError, Content};
pub use range::{Wanted, parse as parse_range};
pub use search::{catalog, search, search_ping};

/// A response, ready to be sent.
pub type Response = hyper::Response<Body>;

const OCI_FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What of a request decides how a content is answered.
#[derive(Debug, Default)]
pub struct Asked {
    /// HEAD: the headers of GET, and no body.
    pub head: bool,
    /// HTTP/1.0: a body without a length ends with the connection, so that one that broke off looks whole.
    unframed: bool,
    range: Option<String>,
    if_range: Option<String>,
    if_none_match: Vec<String>,
    namespace: Option<Registry>,
}

impl Asked {
    /// Reads the conditional headers (RFC 9110 sections 13 and 14).
    pub fn new(method: &Method, version: Version, headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let if_none_match = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        Self {
            head: method == Method::HEAD,
            unframed: version < Version::HTTP_11,
            range: text(header::RANGE),
            if_range: text(header::IF_RANGE),
            if_none_match: if_none_match.flat_map(|line| line.split(',')).map(|tag| tag.trim().to_owned()).collect(),
            namespace: None,
        }
    }

    /// The same where `?ns=` chose a registry.
    #[must_use]
    pub fn in_namespace(self, namespace: Option<&Registry>) -> Self {
        Self { namespace: namespace.cloned(), ..self }
    }

    /// The client has this content already. Quotes are optional, as Docker's own registry takes it.
    fn has(&self, digest: &Digest) -> bool {
        // Hardly anybody asks like this: no text is made for the others.
        if self.if_none_match.is_empty() {
            return false;
        }
        let digest = digest.to_string();
        self.if_none_match.iter().any(|tag| tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == digest)
    }

    /// Which part is wanted; a range under a condition that does not hold is no range.
    fn wanted(&self, digest: &Digest, size: u64) -> Wanted {
        let holds = self.if_range.as_ref().is_none_or(|tag| *tag == format!("\"{digest}\""));
        if holds { parse_range(self.range.as_deref(), size) } else { Wanted::Whole }
    }

    /// The first byte that can be wanted, whatever the size turns out to be.
    pub fn from(&self) -> u64 {
        let range = self.range.as_deref().filter(|_| self.if_range.is_none() && !self.unframed);
        range.and_then(range::first_byte).unwrap_or(0)
    }

    /// Whether the answer can only begin when the size is known.
    fn needs_size(&self) -> bool {
        self.range.is_some() || self.unframed
    }
}

/// `/v2/`.
pub fn ping() -> Response {
    let mut response = new(Body::bytes(Bytes::from_static(b"{}")));
    fix(&mut response, header::CONTENT_TYPE, "application/json");
    finish(response, Outcome::Local)
}

/// A manifest.
pub fn manifest(answer: Answer<ManifestAnswer>, by_tag: bool, asked: &Asked) -> Response {
    let Answer { content: ManifestAnswer { digest, media_type, size, bytes }, outcome } = answer;
    let response = match bytes {
        _ if asked.has(&digest) => status(StatusCode::NOT_MODIFIED),
        Some(bytes) => {
            let size = bytes.len() as u64;
            part(Content::Memory(bytes), size, &digest, asked)
        }
        None => {
            let mut response = hyper::Response::new(Body::empty());
            if let Some(size) = size {
                response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
            }
            response
        }
    };
    let answered = if by_tag { As::Tag } else { As::Manifest };
    describe(response, Of { digest, answered, media_type, outcome, length: None, namespace: asked.namespace.clone() })
}

/// A blob. Waits for the size of one that is arriving, where a range or an old client needs it.
pub async fn blob(answer: Answer<BlobAnswer>, digest: &Digest, asked: &Asked) -> Result<Response, pull::Error> {
    let Answer { content, outcome } = answer;
    let response = match content {
        _ if asked.has(digest) => status(StatusCode::NOT_MODIFIED),
        BlobAnswer::Memory(bytes) => {
            let size = bytes.len() as u64;
            part(Content::Memory(bytes), size, digest, asked)
        }
        BlobAnswer::Whole(blob) => {
            let size = blob.size();
            part(Content::Whole(blob), size, digest, asked)
        }
        BlobAnswer::Growing(growing) => {
            let size = match growing.progress().size {
                Some(size) => Some(size),
                None if asked.needs_size() => Some(growing.sized().await.map_err(|failure| pull::Error::of_fill(&failure))?),
                None => None,
            };
            match size {
                Some(size) => part(Content::Growing(growing), size, digest, asked),
                None => hyper::Response::new(Body::whole(Content::Growing(growing), None)),
            }
        }
        BlobAnswer::Size(size) => sized(size, digest, asked),
    };
    let namespace = asked.namespace.clone();
    Ok(describe(response, Of { digest: *digest, answered: As::Blob, media_type: None, outcome, length: None, namespace }))
}

/// HEAD of a blob whose bytes are not at hand.
fn sized(size: Option<u64>, digest: &Digest, asked: &Asked) -> Response {
    let mut response = hyper::Response::new(Body::empty());
    let Some(size) = size else { return response };
    let length = match asked.wanted(digest, size) {
        Wanted::One(range) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
            range.end - range.start
        }
        Wanted::Nothing => return unsatisfiable(size),
        // HEAD says what GET without ranges would.
        Wanted::Whole | Wanted::Many(_) => size,
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    response
}

/// The wanted part of a content of known size (RFC 9110 section 15.3.7).
fn part(content: Content, size: u64, digest: &Digest, asked: &Asked) -> Response {
    match asked.wanted(digest, size) {
        Wanted::Whole => hyper::Response::new(Body::whole(content, Some(size))),
        Wanted::One(range) => {
            let mut response = hyper::Response::new(Body::range(content, &range));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{size}", range.start, range.end - 1));
            response
        }
        Wanted::Many(ranges) => {
            let boundary = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
            let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
            let of_multipart = format!("multipart/byteranges; boundary={boundary}");
            let head = move |range: &std::ops::Range<u64>| {
                let place = format!("Content-Range: bytes {}-{}/{size}", range.start, range.end - 1);
                Bytes::from(format!("\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n{place}\r\n\r\n"))
            };
            let mut response = hyper::Response::new(Body::ranges(content, ranges, Box::new(head), end));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            set(&mut response, header::CONTENT_TYPE, &of_multipart);
            response
        }
        Wanted::Nothing => unsatisfiable(size),
    }
}

fn unsatisfiable(size: u64) -> Response {
    let mut response = json_error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "the range lies outside of the content");
    set(&mut response, header::CONTENT_RANGE, &format!("bytes */{size}"));
    response
}

/// A page of tags. `base` is the repository's path as the client spelled it, `namespace` its `ns`: without it the link would
/// lead to another registry.
pub fn tags(answer: &Answer<Tags>, name: &str, base: &str, namespace: Option<&Registry>) -> Response {
    let body = serde_json::json!({ "name": name, "tags": answer.content.tags });
    let mut response = new(Body::bytes(Bytes::from(body.to_string())));
    fix(&mut response, header::CONTENT_TYPE, "application/json");
    if let Some((n, last)) = &answer.content.next {
        let last = percent_encoding::utf8_percent_encode(last, percent_encoding::NON_ALPHANUMERIC);
        let n = n.map(|n| format!("n={n}&")).unwrap_or_default();
        let namespace = namespace.map(|namespace| format!("ns={namespace}&")).unwrap_or_default();
        set(&mut response, header::LINK, &format!("<{base}/tags/list?{namespace}{n}last={last}>; rel=\"next\""));
    }
    finish(response, answer.outcome)
}

/// A page of referrers.
pub fn referrers(answer: Answer<Referrers>) -> Response {
    let mut response = new(Body::bytes(answer.content.bytes));
    fix(&mut response, header::CONTENT_TYPE, OCI_INDEX);
    if answer.content.filtered {
        fix(&mut response, OCI_FILTERS, "artifactType");
    }
    finish(response, answer.outcome)
}

/// Everything that is answered with an error.
#[derive(Debug)]
pub enum Problem {
    /// The path or the method.
    Route(NoRoute),
    /// The pull.
    Pull(pull::Error),
    /// The request is not one that HTTP allows here.
    Request(listen::Refusal),
    /// Nobody has said yet who they are.
    Challenge,
    /// They may not pull here.
    Refused,
    /// Too many passwords wait to be checked.
    Busy,
    /// Too many wrong passwords came from there; the next is looked at after so long.
    Limited(Duration),
    /// A fault of millpond's own.
    Internal,
}

/// What a problem is called on the wire.
struct Verdict {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// Answers a problem. `id` is the request's, for the operator to find it in the log.
pub fn problem(problem: &Problem, id: Id) -> Response {
    let Verdict { status, code, mut message } = verdict(problem);
    if status.is_server_error() {
        let _ = write!(message, " (request {id})");
    }
    let mut response = json_error(status, code, &message);
    set(&mut response, REQUEST_ID, id.as_str());
    fix(&mut response, header::CACHE_CONTROL, "no-store");
    match problem {
        Problem::Route(NoRoute::Method) => {
            fix(&mut response, header::ALLOW, "GET, HEAD");
            // The body of a push is not read: it may be gigabytes.
            fix(&mut response, header::CONNECTION, "close");
        }
        Problem::Request(_) => fix(&mut response, header::CONNECTION, "close"),
        Problem::Challenge => fix(&mut response, header::WWW_AUTHENTICATE, "Basic realm=\"millpond\", charset=\"UTF-8\""),
        Problem::Limited(after) | Problem::Pull(pull::Error::RateLimited(after) | pull::Error::Refuted(after)) => {
            set(&mut response, header::RETRY_AFTER, &retry_after(*after));
        }
        _ => {}
    }
    let outcome = match problem {
        Problem::Pull(pull::Error::NotServed) => Outcome::Local,
        Problem::Pull(pull::Error::NotFound(_) | pull::Error::NotShown(_) | pull::Error::Offline(_) | pull::Error::Denied) => Outcome::Miss,
        Problem::Pull(_) => Outcome::Failed,
        _ => Outcome::Local,
    };
    finish(response, outcome)
}

/// The table. No arm catches all: a new problem has to be given its answer here.
fn verdict(problem: &Problem) -> Verdict {
    let (status, code, message) = match problem {
        Problem::Route(no_route) => return no_route_verdict(*no_route),
        Problem::Pull(error) => return pull_verdict(error),
        Problem::Request(refusal) => return Verdict { status: refusal.status(), code: "UNSUPPORTED", message: refusal.to_string() },
        Problem::Challenge => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required"),
        Problem::Refused => (StatusCode::FORBIDDEN, "DENIED", "this mirror does not serve your address; ask its operator"),
        Problem::Busy => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "too many logins are being checked; try again"),
        Problem::Limited(_) => {
            (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many wrong passwords from your address; try again later")
        }
        Problem::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "millpond has a fault"),
    };
    Verdict { status, code, message: message.to_owned() }
}

fn no_route_verdict(no_route: NoRoute) -> Verdict {
    let (status, code) = match no_route {
        NoRoute::Method => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
        NoRoute::Path => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
        NoRoute::TooLong => (StatusCode::URI_TOO_LONG, "NAME_INVALID"),
        NoRoute::Invalid(Invalid::Name | Invalid::Registry) | NoRoute::Query | NoRoute::Conflict => {
            (StatusCode::BAD_REQUEST, "NAME_INVALID")
        }
        NoRoute::Invalid(Invalid::Tag) => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
        NoRoute::Invalid(Invalid::Digest) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        NoRoute::Invalid(Invalid::MediaType) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        NoRoute::Page => (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID"),
        NoRoute::Registry => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
    };
    Verdict { status, code, message: no_route.to_string() }
}

fn pull_verdict(error: &pull::Error) -> Verdict {
    let unknown = |kind: &Kind| match kind {
        // NAME_UNKNOWN for referrers would mean that there is no such repository: oras and helm then give up, and do not look for the
        // tag that stands for the API.
        Kind::Manifest | Kind::Referrers => "MANIFEST_UNKNOWN",
        Kind::Blob => "BLOB_UNKNOWN",
        Kind::Tags | Kind::Token | Kind::Search | Kind::Catalog | Kind::Ping | Kind::Other => "NAME_UNKNOWN",
    };
    let (status, code, message) = match error {
        pull::Error::NotFound(kind) | pull::Error::NotShown(kind) => {
            (StatusCode::NOT_FOUND, unknown(kind), "the registry does not have it, or does not show it to everybody")
        }
        pull::Error::Offline(kind) => {
            (StatusCode::NOT_FOUND, unknown(kind), "it is not held here, and this mirror is set to ask no registry (cache.offline)")
        }
        // Docker and containerd go on to their next host, podman shows the text.
        pull::Error::NotServed => (
            StatusCode::FORBIDDEN,
            "DENIED",
            "this mirror does not serve this repository (allow and deny of its upstream); ask its operator",
        ),
        pull::Error::Denied => (StatusCode::FORBIDDEN, "DENIED", "the registry refuses it to this mirror's login"),
        pull::Error::RateLimited(_) => {
            (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "the registry limits this mirror's requests; try again later")
        }
        pull::Error::Unavailable => {
            (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "the registry cannot be reached, and it is not held here")
        }
        pull::Error::Loop => {
            (StatusCode::LOOP_DETECTED, "UNAVAILABLE", "an endpoint of this mirror leads back to it: its operator has to take that out")
        }
        pull::Error::Timeout => {
            (StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", "the registry did not answer in time, and it is not held here")
        }
        pull::Error::BadUpstream => (StatusCode::BAD_GATEWAY, "MANIFEST_INVALID", "the registry sent something that cannot be used"),
        pull::Error::Refuted(_) => (
            StatusCode::BAD_GATEWAY,
            "MANIFEST_INVALID",
            "what the registry sends for it is wrong again and again; it is asked again in a while",
        ),
        pull::Error::Abandoned => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "this mirror gave the request up; try again"),
    };
    Verdict { status, code, message: message.to_owned() }
}

/// Seconds, rounded up: a client that comes a moment early is refused again.
fn retry_after(after: Duration) -> String {
    after.as_millis().div_ceil(1_000).max(1).to_string()
}

fn json_error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    let mut response = new(Body::bytes(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    fix(&mut response, header::CONTENT_TYPE, "application/json");
    response
}

fn status(status: StatusCode) -> Response {
    let mut response = new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Says which content it is, and what every answer says. What the answer says already of its part of the content stays.
fn describe(mut response: Response, of: Of) -> Response {
    let status = response.status();
    // Set here and not left to hyper: HEAD has it too.
    let length = response.body().len().filter(|_| status != StatusCode::NOT_MODIFIED);
    let outcome = of.outcome;
    // Those of parts are all different, and are not kept.
    let whole = response.headers().is_empty();
    let mut head = head::of(Of { length: length.filter(|_| whole), ..of });
    if !whole {
        if let Some(length) = length {
            head.insert(header::CONTENT_LENGTH, length.into());
        }
        head.extend(response.headers_mut().drain());
    }
    *response.headers_mut() = head;
    response.body_mut().outcome = Some(outcome);
    response
}

/// What every answer carries.
fn finish(mut response: Response, outcome: Outcome) -> Response {
    head::common(response.headers_mut(), outcome);
    if let Some(length) = response.body().len()
        && !response.headers().contains_key(header::CONTENT_LENGTH)
    {
        // Set here and not left to hyper: HEAD has it too.
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response.body_mut().outcome = Some(outcome);
    response
}

/// The registry that `?ns=` chose (distribution-spec, "Registry Proxying").
pub fn in_namespace(response: &mut Response, namespace: &Registry) {
    if !response.headers().contains_key(OCI_NAMESPACE) {
        set(response, OCI_NAMESPACE, namespace.as_str());
    }
}

/// An answer with this body, and without headers.
fn new(body: Body) -> Response {
    let mut response = hyper::Response::new(body);
    response.headers_mut().reserve(HEADERS);
    response
}

/// A header that is always the same.
fn fix(response: &mut Response, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
}

/// Values are made of digests, numbers, names and constants: all of them fit into a header.
fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn asked(headers: &[(&str, &str)]) -> Asked {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).expect("a name"), HeaderValue::from_str(value).expect("a value"));
        }
        Asked::new(&Method::GET, Version::HTTP_11, &map)
    }

    #[tokio::test]
    async fn an_old_client_waits_for_the_size_of_a_blob_that_is_arriving() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = crate::cache::Config {
            dir: dir.path().to_owned(),
            max_size: crate::cache::MaxSize::Bytes(1 << 20),
            memory: 0,
            patrol: 0,
            disk_patience: std::time::Duration::from_secs(10),
            tag_life: Duration::ZERO,
        };
        let cache = crate::cache::Cache::open(
            &config,
            crate::observe::Metrics::new(),
            tokio_util::task::TaskTracker::new(),
            tokio_util::sync::CancellationToken::new(),
        );
        let digest = Digest::sha256_of(b"");
        let crate::cache::Found::Missing(permit) = cache.expect("opens").blob(&digest).await else { panic!("it is held") };
        permit.writer().open(None, None);
        let answer = || Answer { content: BlobAnswer::Growing(permit.growing()), outcome: Outcome::Miss };
        let asked = |version| Asked::new(&Method::GET, version, &HeaderMap::new());
        let chunked = blob(answer(), &digest, &asked(Version::HTTP_11)).await.expect("begins at once");
        assert_eq!(chunked.body().len(), None);
        // There a body that breaks off would look whole.
        let old = asked(Version::HTTP_10);
        let mut waiting = std::pin::pin!(blob(answer(), &digest, &old));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        permit.writer().finish(0);
        assert_eq!(waiting.await.expect("is whole").body().len(), Some(0));
    }

    fn memory(text: &'static str) -> Answer<BlobAnswer> {
        Answer { content: BlobAnswer::Memory(Bytes::from_static(text.as_bytes())), outcome: Outcome::Hit }
    }

    async fn get(text: &'static str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Bytes) {
        let response = blob(memory(text), &Digest::sha256_of(text.as_bytes()), &asked(headers)).await.expect("answered");
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.expect("whole").to_bytes())
    }

    #[tokio::test]
    async fn a_blob_is_described_and_a_range_is_exact() {
        let (status, headers, body) = get("0123456789", &[]).await;
        assert_eq!((status, body.as_ref()), (StatusCode::OK, b"0123456789".as_slice()));
        for (name, value) in [
            ("content-length", "10"),
            ("content-type", "application/octet-stream"),
            ("accept-ranges", "bytes"),
            ("cache-status", "millpond; hit"),
            ("x-content-type-options", "nosniff"),
            ("docker-content-digest", "sha256:84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        let (status, headers, body) = get("0123456789", &[("range", "bytes=2-4")]).await;
        assert_eq!((status, body.as_ref()), (StatusCode::PARTIAL_CONTENT, b"234".as_slice()));
        assert_eq!(headers["content-range"], "bytes 2-4/10");
        let (status, headers, _) = get("0123456789", &[("range", "bytes=10-")]).await;
        assert_eq!((status, &headers["content-range"]), (StatusCode::RANGE_NOT_SATISFIABLE, &HeaderValue::from_static("bytes */10")));
    }

    #[tokio::test]
    async fn several_ranges_come_in_their_order() {
        let (status, headers, body) = get("0123456789", &[("range", "bytes=8-9,0-1")]).await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        let boundary = headers["content-type"].to_str().expect("text").split_once("boundary=").expect("a boundary").1.to_owned();
        let text = String::from_utf8(body.to_vec()).expect("text");
        let parts = text.split(&format!("--{boundary}")).collect::<Vec<_>>();
        assert!(parts[1].contains("Content-Range: bytes 8-9/10\r\n\r\n89\r\n"), "{text}");
        assert!(parts[2].contains("Content-Range: bytes 0-1/10\r\n\r\n01\r\n"), "{text}");
        assert_eq!(headers["content-length"], body.len().to_string());
    }

    #[tokio::test]
    async fn conditions_are_kept() {
        let digest = Digest::sha256_of(b"0123456789").to_string();
        for tag in [format!("\"{digest}\""), digest.clone(), "*".to_owned(), format!("\"x\", W/\"{digest}\"")] {
            let (status, headers, body) = get("0123456789", &[("if-none-match", &tag)]).await;
            assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{tag}");
            assert!(!headers.contains_key("content-length"));
        }
        assert_eq!(get("0123456789", &[("if-none-match", "\"sha256:no\"")]).await.0, StatusCode::OK);
        assert_eq!(get("0123456789", &[("range", "bytes=0-1"), ("if-range", "\"no\"")]).await.0, StatusCode::OK);
        assert_eq!(
            get("0123456789", &[("range", "bytes=0-1"), ("if-range", &format!("\"{digest}\""))]).await.0,
            StatusCode::PARTIAL_CONTENT
        );
    }

    #[tokio::test]
    async fn a_problem_is_told_in_the_registrys_words_and_a_fault_only_by_its_number() {
        let response = problem(&Problem::Pull(pull::Error::NotFound(Kind::Blob)), Id::new());
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(json["errors"][0]["code"], "BLOB_UNKNOWN");
        let id = Id::new();
        let response = problem(&Problem::Internal, id);
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = response.into_body().collect().await.expect("whole").to_bytes();
        assert!(String::from_utf8_lossy(&body).contains(&id.to_string()));
        let response = problem(&Problem::Pull(pull::Error::RateLimited(Duration::from_millis(1_500))), id);
        assert_eq!(
            (response.status(), &response.headers()["retry-after"]),
            (StatusCode::TOO_MANY_REQUESTS, &HeaderValue::from_static("2"))
        );
    }
}
