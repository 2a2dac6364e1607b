//! Answers to searches, and the list of what is held.

use bytes::Bytes;
use hyper::header::{self, HeaderName};

use super::{Body, Response, finish, set};
use crate::observe::Outcome;
use crate::oci::Registry;
use crate::pull::{Answer, Catalog, Found, Search};

/// Says to Docker's clients that this registry is no part of Docker Hub: they send it no token of that.
const STANDALONE: HeaderName = HeaderName::from_static("x-docker-registry-standalone");

/// What stands before the description of what is held.
const HELD: &str = "[held here]";

/// `/v1/_ping`.
pub fn search_ping() -> Response {
    let mut response = json(r#"{"standalone":true}"#.to_owned());
    set(&mut response, STANDALONE, "true");
    finish(response, Outcome::Local)
}

/// `/v1/search`, as Docker Hub answers it.
pub fn search(answer: &Answer<Search>, term: &str, n: u32, page: u32) -> Response {
    let Search { found, total } = &answer.content;
    let body = serde_json::json!({
        "num_pages": total.div_ceil(n.into()),
        "num_results": total,
        "page_size": n,
        "page": page,
        "query": term,
        "results": found.iter().map(result).collect::<Vec<_>>(),
    });
    finish(json(body.to_string()), answer.outcome)
}

fn result(found: &Found) -> serde_json::Value {
    let description = match (found.held, found.description.as_str()) {
        (false, text) => text.to_owned(),
        (true, "") => HELD.to_owned(),
        (true, text) => format!("{HELD} {text}"),
    };
    serde_json::json!({
        "name": found.name,
        "description": description,
        "star_count": found.stars,
        "is_official": found.official,
        "is_automated": false,
        "is_trusted": false,
    })
}

/// `/v2/_catalog`. `prefix` is what stands before `/v2` in the path, `namespace` the `ns`: the link repeats both.
pub fn catalog(answer: &Answer<Catalog>, n: u32, prefix: &str, namespace: Option<&Registry>) -> Response {
    let body = serde_json::json!({ "repositories": answer.content.names });
    let mut response = json(body.to_string());
    if let Some(last) = &answer.content.next {
        let last = percent_encoding::utf8_percent_encode(last, percent_encoding::NON_ALPHANUMERIC);
        let namespace = namespace.map(|namespace| format!("ns={namespace}&")).unwrap_or_default();
        set(&mut response, header::LINK, &format!("<{prefix}/v2/_catalog?{namespace}n={n}&last={last}>; rel=\"next\""));
    }
    finish(response, answer.outcome)
}

fn json(body: String) -> Response {
    let mut response = Response::new(Body::bytes(Bytes::from(body)));
    set(&mut response, header::CONTENT_TYPE, "application/json");
    // It changes as images come and go.
    set(&mut response, header::CACHE_CONTROL, "no-store");
    response
}
