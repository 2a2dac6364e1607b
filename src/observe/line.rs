//! The one line of a request in the log, and what is counted with it. Promises: it is told when the answer has ended, whichever way.

use std::fmt;
use std::net::SocketAddr;
use std::time::Instant;

use hyper::Method;

use super::{Metrics, Outcome};
use crate::log;
use crate::oci::{Reference, Repository};

/// What is told of one request, in one line, when its answer has ended.
pub struct Line {
    subject: Subject,
    status: u16,
    outcome: Outcome,
    client: SocketAddr,
    id: Id,
    started: Instant,
    metrics: Metrics,
    bytes: u64,
    end: End,
}

/// How a body ended.
#[derive(Clone, PartialEq, Eq)]
enum End {
    /// The client left, or the server cut it off.
    Cut,
    /// Every byte was handed over.
    Whole,
    /// millpond broke it off, and why.
    Failed(String),
}

/// The parts of a [`Line`] that are known from the request.
pub struct Subject {
    /// GET or HEAD.
    pub method: Method,
    /// Which repository of which upstream, where one is meant.
    pub repository: Option<Repository>,
    /// The tag or digest.
    pub reference: Option<Reference>,
}

/// A request's number, for a client that complains.
#[derive(Clone, Copy)]
pub struct Id([u8; 16]);

impl Id {
    /// One that no other request has, as far as chance goes.
    pub fn new() -> Self {
        let mut bits = fastrand::u64(..);
        Self(std::array::from_fn(|_| {
            bits = bits.rotate_left(4);
            b"0123456789abcdef"[usize::from(bits.to_le_bytes()[0] & 15)]
        }))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // It is made of digits: never the default.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Line {
    /// A line about an answer whose body has not begun; `id` is the request's, `started` when it was read.
    pub fn new(subject: Subject, status: u16, outcome: Outcome, client: SocketAddr, id: Id, started: Instant, metrics: Metrics) -> Self {
        Self { subject, status, outcome, client, id, started, metrics, bytes: 0, end: End::Cut }
    }

    /// So many more bytes were handed over.
    pub fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// All of them were.
    pub fn whole(&mut self) {
        if self.end == End::Cut {
            self.end = End::Whole;
        }
    }

    /// The body was broken off.
    pub fn failed(&mut self, error: &dyn std::error::Error) {
        self.end = End::Failed(error.to_string());
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.metrics.finished(self.bytes, took);
        let duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let (end, error) = match &self.end {
            End::Cut => ("cut", None),
            End::Whole => ("whole", None),
            End::Failed(error) => ("failed", Some(error.as_str())),
        };
        let Subject { method, repository, reference } = &self.subject;
        let upstream = repository.as_ref().map_or("", |repository| repository.registry.as_str());
        let repo = repository.as_ref().map_or("", |repository| repository.name.as_str());
        let digest;
        let reference = match reference {
            None => "",
            Some(Reference::Tag(tag)) => tag.as_str(),
            Some(Reference::Digest(of)) => {
                digest = of.text();
                digest.as_str()
            }
        };
        log::request(&log::Request {
            method: method.as_str(),
            upstream,
            repo,
            reference,
            status: self.status,
            outcome: self.outcome.as_str(),
            bytes: self.bytes,
            duration_ms,
            client: self.client,
            end,
            error,
            request: self.id.as_str(),
        });
    }
}
