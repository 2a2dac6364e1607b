//! Search at an upstream, by Docker's old protocol: `GET /v1/search?q=&n=&page=`.
//!
//! Promises: nobody but the host in the configuration is asked, without a login, and no redirect is followed; what comes back is bounded
//! and cannot steer a terminal.

use hyper::Method;
use serde::Deserialize;
use url::Url;

use super::Upstream;
use super::budget::Deadline;
use super::connect::Reach;
use super::error::{Error, Flaw, Why, is_passing};
use super::headers;
use super::redirect::host_of;
use super::wire::{Outgoing, read_whole, settle};
use crate::observe::Kind;
use crate::oci::Name;

/// The largest answer that is read, in bytes: a hundred results of Docker Hub are 30 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Letters of a description that are kept; Docker Hub's have a hundred at the most.
const DESCRIPTION_CHARS_MAX: usize = 256;

/// The most results of one page, as Docker Hub has it.
pub const RESULTS_MAX: u32 = 100;

/// A page of results.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Results {
    /// In the upstream's order; what has no valid name is left out.
    pub hits: Vec<Hit>,
    /// How many there are on all pages.
    pub total: u64,
}

/// A repository that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// As one pulls it from there, without `library/`.
    pub name: Name,
    /// One line of text.
    pub description: String,
    /// How many people like it.
    pub stars: u64,
    /// The registry itself vouches for it.
    pub official: bool,
}

#[derive(Deserialize)]
struct RawResults {
    #[serde(default)]
    num_results: Option<serde_json::Value>,
    results: Option<Vec<RawHit>>,
}

#[derive(Deserialize)]
struct RawHit {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    star_count: Option<u64>,
    #[serde(default)]
    is_official: Option<bool>,
}

impl Upstream {
    /// Whether there is somebody to ask.
    pub fn can_search(&self) -> bool {
        self.0.search.is_some()
    }

    /// A page of at most `n` results. Nothing is found where nobody can be asked.
    pub async fn search(&self, term: &str, n: u32, page: u32) -> Result<Results, Error> {
        let Some(base) = &self.0.search else { return Ok(Results::default()) };
        let (url, host) = (query(base, term, n.min(RESULTS_MAX), page), host_of(base));
        let deadline = Deadline::after(self.0.wire.limits.search);
        let _permit = self.permit(&self.0.searches, deadline).await?;
        let out = Outgoing {
            method: &Method::GET,
            url: &url,
            accept: "application/json",
            authorization: None,
            offset: 0,
            last: None,
            kind: Kind::Search,
            reach: Reach::Anywhere,
            from: &host,
            via: Some(&self.1),
        };
        let response = self.0.wire.send(&out, deadline).await?;
        let status = response.status().as_u16();
        if status != 200 {
            let retry_after = headers::retry_after(response.headers());
            settle(response).await;
            return Err(match status {
                429 => Error::RateLimited { host, retry_after: self.0.wire.limits.wait(retry_after) },
                _ if status >= 500 || is_passing(status) => Error::Unavailable { host, why: Why::Status(status) },
                _ => Error::BadAnswer { host, flaw: Flaw::Status(status) },
            });
        }
        let bytes = read_whole(&host, response.into_body(), ANSWER_BYTES_MAX, deadline).await?;
        read(&bytes, n.min(RESULTS_MAX)).ok_or(Error::BadAnswer { host, flaw: Flaw::Json })
    }
}

fn query(base: &Url, term: &str, n: u32, page: u32) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/v1/search", base.path().trim_end_matches('/')));
    url.query_pairs_mut().append_pair("q", term).append_pair("n", &n.to_string());
    if page > 1 {
        url.query_pairs_mut().append_pair("page", &page.to_string());
    }
    url
}

fn read(bytes: &[u8], n: u32) -> Option<Results> {
    let raw: RawResults = serde_json::from_slice(bytes).ok()?;
    let hits = raw.results.unwrap_or_default().into_iter().filter_map(hit).take(n as usize).collect::<Vec<_>>();
    // Some write a number as a text.
    let told = raw.num_results.and_then(|total| total.as_u64().or_else(|| total.as_str()?.parse().ok()));
    let total = told.unwrap_or_default().max(hits.len() as u64);
    Some(Results { hits, total })
}

fn hit(raw: RawHit) -> Option<Hit> {
    let name = Name::parse(raw.name.strip_prefix("library/").unwrap_or(&raw.name)).ok()?;
    let line = raw.description.unwrap_or_default();
    // It is printed on terminals, to which control characters are commands.
    let words = line.split(|letter: char| letter.is_whitespace() || letter.is_control()).filter(|word| !word.is_empty());
    let description = words.collect::<Vec<_>>().join(" ").chars().take(DESCRIPTION_CHARS_MAX).collect();
    Some(Hit { name, description, stars: raw.star_count.unwrap_or_default(), official: raw.is_official.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whatever_is_missing_and_cleaned() {
        let text = br#"{"num_results":"30925","results":[
            {"name":"mysql","description":"MySQL is\n\u001b[31ma\tdatabase","star_count":15800,"is_official":true,"pull_count":4294967295},
            {"name":"library/redis","description":null},{"name":"../../etc"},{"name":"UPPER"},{"name":"a/b","star_count":null}]}"#;
        let results = read(text, 100).expect("results");
        let names = results.hits.iter().map(|hit| hit.name.as_str()).collect::<Vec<_>>();
        assert_eq!((names, results.total), (vec!["mysql", "redis", "a/b"], 30_925));
        assert_eq!(results.hits[0].description, "MySQL is [31ma database");
        assert_eq!((results.hits[0].stars, results.hits[0].official, results.hits[1].official), (15_800, true, false));
        assert_eq!(read(text, 1).expect("results").hits.len(), 1);
        assert_eq!(read(b"{}", 9), Some(Results::default()));
        assert_eq!(read(b"<html>", 9), None);
    }

    #[test]
    fn what_is_asked_is_spelled_for_an_url() {
        let base = Url::parse("https://index.docker.io").expect("an URL");
        assert_eq!(query(&base, "a b&n=1#", 25, 1).as_str(), "https://index.docker.io/v1/search?q=a+b%26n%3D1%23&n=25");
        let base = Url::parse("https://host/prefix/").expect("an URL");
        assert_eq!(query(&base, "x", 1, 2).as_str(), "https://host/prefix/v1/search?q=x&n=1&page=2");
    }
}
