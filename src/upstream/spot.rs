//! Where a blob's bytes are, once every redirect was followed: more of them are asked for there, without asking the registry
//! again.
//!
//! Such a place is signed for some minutes and forgotten when it refuses. What may be sent there is what was sent there before.

use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use super::Upstream;
use super::budget::Deadline;
use super::connect::Reach;
use super::error::{Error, Flaw};
use super::flow::Flow;
use super::headers::{self, ContentRange};
use super::redirect::host_of;
use super::wire::{Outgoing, settle};
use crate::observe::Kind;

/// The place of one blob.
#[derive(Clone)]
pub(super) struct Spot {
    pub(super) url: Url,
    pub(super) reach: Reach,
    /// The host that named it.
    pub(super) from: String,
    pub(super) authorization: Option<HeaderValue>,
}

impl std::fmt::Debug for Spot {
    // A signed URL is a password, and the header is one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spot").field("host", &host_of(&self.url)).finish_non_exhaustive()
    }
}

impl Upstream {
    /// The bytes `first..=last` from a known place. Whatever is not exactly these is [`Flaw::Range`].
    pub(super) async fn part_at(&self, spot: &Spot, (first, last): (u64, u64), permit: OwnedSemaphorePermit) -> Result<Flow, Error> {
        let wire = &self.0.wire;
        let out = Outgoing {
            method: &Method::GET,
            url: &spot.url,
            accept: "*/*",
            authorization: spot.authorization.as_ref(),
            offset: first,
            last: Some(last),
            kind: Kind::Blob,
            reach: spot.reach,
            from: &spot.from,
            // Who loops was found out when the blob was asked for.
            via: None,
        };
        let response = self.send_to(&out, Deadline::after(wire.limits.wide.silence)).await?;
        if headers::is_encoded(response.headers()) || part_of(response.status(), response.headers(), (first, last)).is_none() {
            settle(response).await;
            return Err(Error::BadAnswer { host: host_of(&spot.url), flaw: Flaw::Range });
        }
        Ok(Flow::new(response.into_body(), self.0.throttle.clone(), permit))
    }
}

/// What an answer that is exactly these bytes says of itself.
pub(super) fn part_of(status: StatusCode, headers: &HeaderMap, (first, last): (u64, u64)) -> Option<ContentRange> {
    let range = headers::content_range(headers).filter(|range| (range.first, range.last) == (first, last));
    range.filter(|_| status == StatusCode::PARTIAL_CONTENT)
}

#[cfg(test)]
mod tests {
    use hyper::header::CONTENT_RANGE;

    use super::*;

    #[test]
    fn only_exactly_what_was_asked_for_is_a_part() {
        let part = |status: u16, range: &str, length: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, HeaderValue::from_str(range).expect("a header's value"));
            headers.insert("content-length", HeaderValue::from_str(length).expect("a header's value"));
            part_of(StatusCode::from_u16(status).expect("a status"), &headers, (5, 9))
        };
        assert_eq!(part(206, "bytes 5-9/10", "5").and_then(|range| range.total), Some(10));
        assert!(part(206, "bytes 5-9/*", "5").is_some_and(|range| range.total.is_none()));
        for (status, range, length) in [
            (200, "bytes 5-9/10", "5"),
            (206, "bytes 0-9/10", "10"),
            (206, "bytes 5-8/10", "4"),
            (206, "bytes 5-9/10", "6"),
            (206, "x", "5"),
        ] {
            assert_eq!(part(status, range, length), None, "{status} {range} {length}");
        }
    }
}
