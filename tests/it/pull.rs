//! Pulls, endpoint by endpoint: what a client gets, what it costs the upstream, and what is left when the upstream is gone.

mod content; // every kind of manifest and blob comes byte for byte, and HEAD says what GET says
mod cost; // one request a digest, one token a repository, nothing at all the second time
mod header; // what every answer carries, errors included; conditions
mod layout; // four ways to spell a repository
mod list; // tags and referrers, page by page
mod restart; // what is held is served by the next process, upstream or not, index or not

use hyper::HeaderMap;

use crate::support::client::{Reply, get, head};
use crate::support::mirror::{Builder, Mirror};
use crate::support::registry::Registry;

const REPO: &str = "library/debian";

/// A mirror in front of a registry that clients call docker.io.
fn mirror_of(registry: &Registry) -> Mirror {
    Builder::new().upstream("docker.io", registry).start()
}

/// What a registry's error says: its status and its code. The message is for a person, and there must be one.
#[track_caller]
fn error_of(reply: &Reply) -> (u16, String) {
    assert_eq!(reply.header("content-type"), Some("application/json"), "{reply:?}");
    let error = &reply.json()["errors"][0];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", reply.text());
    (reply.status, error["code"].as_str().unwrap().to_owned())
}

/// The headers but for these, and the date.
fn headers_without(headers: &HeaderMap, names: &[&str]) -> HeaderMap {
    let mut headers = headers.clone();
    for name in names.iter().chain(&["date"]) {
        headers.remove(*name);
    }
    headers
}

/// Asserts that HEAD of a held content has the headers of GET, all of them, and no body.
async fn assert_head_is_get(url: &str) {
    let (whole, bare) = (get(url).send().await, head(url).send().await);
    assert_eq!((bare.status, bare.body.len()), (whole.status, 0), "{url}");
    assert_eq!(headers_without(&bare.headers, &[]), headers_without(&whole.headers, &[]), "{url}");
}
