//! The distribution API of a scripted registry: `/v2/`, manifests, blobs, tags, referrers; and search beside it.

use hyper::Method;
use millpond::oci::Digest;
use serde_json::{Value, json};

use super::answer::Answer;
use super::cdn;
use super::image::{DOCKER_LIST, OCI_INDEX};
use super::listener::Port;
use super::log::{Kind, Request};
use super::quirks::{Accept, Blobs, ContentType, DigestHeader, Head, Quirks, Referrers};
use super::serve::Shared;
use super::store::Manifest;
use super::{auth, range};

const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// The answer of the registry, or of its guard.
pub(super) fn answer(shared: &Shared, quirks: &Quirks, request: &Request) -> Answer {
    if request.kind == Kind::Search {
        return search(shared, request);
    }
    if let Some(refusal) = auth::refuse(shared, quirks, request) {
        return refusal;
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        return Answer::error_of(405);
    }
    let name = request.repository.as_deref().unwrap_or_default();
    let answer = match request.kind {
        Kind::Ping => Answer::json(200, "{}"),
        Kind::Manifest => manifest(shared, quirks, request, name),
        Kind::Blob => blob(shared, quirks, request, name),
        Kind::Tags => tags(shared, quirks, request, name),
        Kind::Referrers => referrers(shared, quirks, request, name),
        _ => Answer::error_of(404),
    };
    answer.header("Docker-Distribution-Api-Version", "registry/2.0")
}

fn manifest(shared: &Shared, quirks: &Quirks, request: &Request, name: &str) -> Answer {
    if let Some(base) = &quirks.manifests_at {
        return Answer::new(307).header("Location", format!("{base}{}", request.path));
    }
    let is_get = request.method == Method::GET;
    if !is_get && quirks.head == Head::Refused {
        return Answer::error_of(405);
    }
    let reference = request.reference.as_deref().unwrap_or_default();
    let Some(found) = shared.store.lock().unwrap().manifest(name, reference).cloned() else {
        return Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown", format!("unknown tag={reference}"));
    };
    let found = match negotiate(shared, quirks, request, name, found) {
        Ok(found) => found,
        Err(refusal) => return *refusal,
    };
    let user = auth::asker(shared, request);
    let Some(limits) = take_from_limit(shared, quirks, &user, is_get) else {
        return with_limits(shared, quirks, &user, Answer::error_of(429));
    };
    let etag = format!("\"{}\"", found.digest);
    let asked = request.header("if-none-match");
    if asked.is_some_and(|tags| tags == "*" || tags.split(',').any(|tag| tag.trim().trim_matches('"') == found.digest.to_string())) {
        return limits(Answer::new(304).header("Docker-Content-Digest", found.digest).header("ETag", etag));
    }
    let mut answer = Answer::new(200).content(super::content::Content::Bytes(found.bytes.clone())).header("ETag", etag);
    answer = match quirks.content_type {
        ContentType::Right => answer.header("Content-Type", &found.media_type),
        ContentType::WithCharset => answer.header("Content-Type", format!("{}; charset=utf-8", found.media_type)),
        ContentType::Text => answer.header("Content-Type", "text/plain"),
        ContentType::Missing => answer,
    };
    answer = match quirks.digest_header {
        _ if !is_get && quirks.head == Head::NoDigest => answer,
        DigestHeader::Right => answer.header("Docker-Content-Digest", found.digest),
        DigestHeader::Wrong => answer.header("Docker-Content-Digest", Digest::sha256_of(b"something else")),
        DigestHeader::Missing => answer,
    };
    answer.untold_length = !is_get && quirks.head == Head::NoLength;
    answer.body_on_head = quirks.head == Head::WithBody;
    limits(answer)
}

/// What a client with this Accept header gets for a stored manifest.
fn negotiate(shared: &Shared, quirks: &Quirks, request: &Request, name: &str, found: Manifest) -> Result<Manifest, Box<Answer>> {
    let accept: Vec<&str> = request.headers.get_all("accept").iter().filter_map(|value| value.to_str().ok()).collect();
    let accept = accept.join(",");
    let listed = accept.split(',').any(|media| media.split(';').next().unwrap_or_default().trim() == found.media_type);
    let is_index = found.media_type == OCI_INDEX || found.media_type == DOCKER_LIST;
    let by_tag = request.reference.as_deref().is_some_and(|reference| Digest::parse(reference).is_err());
    match quirks.accept {
        Accept::Strict if !listed => {
            let what = if is_index { "index" } else { "manifest" };
            let message = format!("OCI {what} found, but accept header does not support OCI {what}s");
            Err(Box::new(Answer::error(404, "MANIFEST_UNKNOWN", &message, Value::Null)))
        }
        Accept::Child if !listed && is_index && by_tag => {
            let list: Value = serde_json::from_slice(&found.bytes).expect("pushed by the kit");
            let first = list["manifests"][0]["digest"].as_str().unwrap_or_default();
            let child = shared.store.lock().unwrap().manifest(name, first).cloned();
            child.ok_or_else(|| Box::new(Answer::error_of(404)))
        }
        Accept::Schema1 if !accept.contains("v2+json") && !accept.contains("oci.image") => {
            let bytes = json!({ "schemaVersion": 1, "name": name, "fsLayers": [], "history": [], "signatures": [] }).to_string();
            Ok(Manifest { digest: found.digest, media_type: SCHEMA1.into(), bytes: bytes.into(), subject: None })
        }
        _ => Ok(found),
    }
}

/// Counts a pull, and gives what adds the headers about it; nothing when there is none left.
fn take_from_limit<'a>(shared: &'a Shared, quirks: &'a Quirks, user: &'a str, is_get: bool) -> Option<impl Fn(Answer) -> Answer + 'a> {
    if let (Some(limit), true) = (quirks.rate_limit, is_get) {
        let mut pulls = shared.pulls.lock().unwrap();
        let pulls = pulls.entry(user.to_owned()).or_default();
        if *pulls >= limit.limit {
            return None;
        }
        *pulls += 1;
    }
    Some(move |answer| with_limits(shared, quirks, user, answer))
}

fn with_limits(shared: &Shared, quirks: &Quirks, user: &str, answer: Answer) -> Answer {
    let Some(limit) = quirks.rate_limit else { return answer };
    let taken = shared.pulls.lock().unwrap().get(user).copied().unwrap_or_default();
    let left = limit.limit - taken.min(limit.limit);
    let x = if limit.prefixed { "X-" } else { "" };
    answer
        .header(&format!("{x}RateLimit-Limit"), format!("{};w={}", limit.limit, limit.window))
        .header(&format!("{x}RateLimit-Remaining"), format!("{left};w={}", limit.window))
        .header("Docker-RateLimit-Source", "203.0.113.7")
}

fn blob(shared: &Shared, quirks: &Quirks, request: &Request, name: &str) -> Answer {
    let digest = request.reference.as_deref().and_then(|text| Digest::parse(text).ok());
    let Some(digest) = digest else { return Answer::error(400, "DIGEST_INVALID", "invalid digest", Value::Null) };
    let Some(content) = shared.store.lock().unwrap().blob(name, &digest) else {
        return Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry", digest.to_string());
    };
    match &quirks.blobs {
        Blobs::Redirect(redirect) if request.method == Method::GET || !quirks.head_blob_direct => {
            cdn::redirect(shared, quirks, redirect, &digest)
        }
        _ => range::answer(quirks, request, &content, &format!("\"{digest}\""))
            .header("Docker-Content-Digest", digest)
            .header("Cache-Control", "max-age=31536000"),
    }
}

fn tags(shared: &Shared, quirks: &Quirks, request: &Request, name: &str) -> Answer {
    let Some(all) = shared.store.lock().unwrap().tags(name) else {
        return Answer::error(404, "NAME_UNKNOWN", "repository name not known to registry", json!({ "name": name }));
    };
    let last = request.params("last").pop().unwrap_or_default();
    let asked: usize = match request.params("n").pop().map(|n| n.parse()) {
        None => usize::MAX,
        Some(Ok(n)) => n,
        Some(Err(_)) => return Answer::error(400, "PAGINATION_NUMBER_INVALID", "invalid number of results requested", Value::Null),
    };
    let n = asked.min(quirks.tags_page.unwrap_or(usize::MAX));
    let after: Vec<String> = all.into_iter().filter(|tag| *tag > last).collect();
    let page = &after[..after.len().min(n)];
    let listed = if page.is_empty() && quirks.null_tags { Value::Null } else { json!(page) };
    let answer = Answer::json(200, json!({ "name": name, "tags": listed }).to_string());
    match page.last() {
        Some(tag) if page.len() < after.len() => {
            let n = if asked == usize::MAX { String::new() } else { format!("n={asked}&") };
            link(shared, quirks, answer, &format!("{}?{n}last={tag}", request.path))
        }
        _ => answer,
    }
}

fn referrers(shared: &Shared, quirks: &Quirks, request: &Request, name: &str) -> Answer {
    let Some(subject) = request.reference.as_deref().and_then(|text| Digest::parse(text).ok()) else {
        return Answer::error(400, "DIGEST_INVALID", "invalid digest", Value::Null);
    };
    let (page, mut found) = match quirks.referrers {
        Referrers::Absent => {
            return Answer::new(404).header("Content-Type", "text/plain").content(super::content::Content::bytes("404 page not found\n"));
        }
        Referrers::Empty => (1, Vec::new()),
        Referrers::Listed { page } => (page, shared.store.lock().unwrap().referrers(name, &subject)),
    };
    let filters = request.params("artifactType");
    let type_of = |manifest: &Manifest| manifest.subject.as_ref().map(|(_, kind)| kind.clone()).unwrap_or_default();
    found.retain(|manifest| filters.is_empty() || filters.contains(&type_of(manifest)));
    let start = request.params("page").pop().and_then(|page| page.parse().ok()).unwrap_or(0) * page;
    let more = found.len() > start + page;
    let listed: Vec<Value> = (found.iter().skip(start).take(page))
        .map(|manifest| {
            json!({
                "mediaType": manifest.media_type, "digest": manifest.digest.to_string(), "size": manifest.bytes.len(),
                "artifactType": type_of(manifest),
            })
        })
        .collect();
    let body = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed }).to_string();
    let mut answer = Answer::json(200, body);
    answer.set("Content-Type", OCI_INDEX);
    if !filters.is_empty() {
        answer = answer.header("OCI-Filters-Applied", "artifactType");
    }
    if more {
        let filters: String =
            filters.iter().map(|filter| format!("artifactType={}&", filter.replace('+', "%2B").replace('/', "%2F"))).collect();
        answer = link(shared, quirks, answer, &format!("{}?{filters}page={}", request.path, start / page + 1));
    }
    answer
}

fn link(shared: &Shared, quirks: &Quirks, answer: Answer, path: &str) -> Answer {
    let host = if quirks.absolute_links { shared.url(Port::Registry) } else { String::new() };
    answer.header("Link", format!("<{host}{path}>; rel=\"next\""))
}

/// `index.docker.io` and `hub.docker.com`: what is held here, by name.
fn search(shared: &Shared, request: &Request) -> Answer {
    if request.path == "/v1/_ping" {
        return Answer::json(200, "true").header("X-Docker-Registry-Standalone", "true");
    }
    let term = request.params("q").pop().or_else(|| request.params("query").pop()).unwrap_or_default();
    let found: Vec<String> = shared.store.lock().unwrap().names().into_iter().filter(|name| name.contains(&term)).collect();
    if request.path.starts_with("/v2/") {
        let results: Vec<Value> =
            found.iter().map(|name| json!({ "repo_name": name, "short_description": null, "star_count": 1, "pull_count": "7" })).collect();
        return Answer::json(200, json!({ "count": found.len(), "next": "", "previous": "", "results": results }).to_string());
    }
    let result = |name: &String| {
        let short = name.strip_prefix("library/");
        json!({
            "name": short.unwrap_or(name), "description": "", "star_count": 1, "pull_count": 4_294_967_295_u64,
            "is_official": short.is_some(), "is_automated": false, "is_trusted": false,
        })
    };
    let results: Vec<Value> = found.iter().map(result).collect();
    let body = json!({ "query": term, "num_results": found.len(), "num_pages": 1, "page": 1, "page_size": 25, "results": results });
    Answer::json(200, body.to_string())
}
