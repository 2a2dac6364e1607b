//! The questions that may be asked, and what a good answer to each is made of.

use std::future::ready;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use hyper::http::response::Parts;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::Upstream;
use super::ask::{Answer, Ask, Identity};
use super::budget::Deadline;
use super::error::{Error, Flaw, Why};
use super::flow::Flow;
use super::headers;
use super::spot::{self, Spot};
use super::wire::read_whole;
use crate::observe::Kind;
use crate::oci::{Digest, MANIFEST_BYTES_MAX, MediaType, Name, Reference, Tag};

/// Every type that is kept, in the order of preference, and whatever else there is. Always the same, whatever a client
/// asked for: what a tag names must not depend on who asked first. Schema 1 is not asked for, its digest is of
/// something else than its bytes.
const ACCEPT_MANIFEST: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

/// The largest page of tags or referrers that is read, in bytes (distribution-spec 1.1: a registry should page at 4 MiB).
const PAGE_BYTES_MAX: usize = 4 << 20;

/// What a HEAD says of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Which manifest it is, where the upstream says so. Not verified: only the bytes can be.
    pub digest: Option<Digest>,
    /// Its type.
    pub media_type: Option<MediaType>,
    /// Its size in bytes.
    pub size: Option<u64>,
}

/// A manifest as it came, not verified and not parsed.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// At most [`MANIFEST_BYTES_MAX`].
    pub bytes: Bytes,
    /// The header, as it was.
    pub content_type: Option<String>,
    /// The header, which is to be held against the bytes and never believed.
    pub digest: Option<Digest>,
}

/// A blob under way. The caller reads it as a body, watches over its idle time, and verifies it. It ends without an error
/// only where the upstream's framing says that it is whole.
#[derive(Debug)]
pub struct BlobBody {
    /// The size of the whole blob in bytes, where the upstream says it.
    pub size: Option<u64>,
    /// The offset at which the body begins: the one that was asked for, or 0 where the upstream ignores ranges.
    pub start: u64,
    pub(super) body: Flow,
    /// The endpoint that it was asked of, by its place in the list.
    pub endpoint: usize,
    /// Where more of it is.
    pub(super) spot: Spot,
}

/// The endpoints whose bytes are in a blob, the last one last. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Asked(Arc<Mutex<Vec<usize>>>);

impl Asked {
    /// One more has a part in it.
    pub fn add(&self, endpoint: usize) {
        let mut asked = self.lock();
        asked.retain(|&other| other != endpoint);
        asked.push(endpoint);
    }

    /// The one that was asked last.
    pub fn last(&self) -> Option<usize> {
        self.lock().last().copied()
    }

    /// All of them; none are left.
    pub fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.lock())
    }

    /// Nothing of what they sent counts any more.
    pub fn clear(&self) {
        self.lock().clear();
    }

    // std: held for a few instructions, never across an await.
    fn lock(&self) -> MutexGuard<'_, Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page of tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPage {
    /// In the upstream's order; what is no tag is left out.
    pub tags: Vec<String>,
    /// What to ask for next: the page's size, where the upstream repeats it, and the last tag.
    pub next: Option<(Option<u32>, String)>,
}

/// A page of referrers.
#[derive(Debug, Clone)]
pub struct ReferrersPage {
    /// An image index, at most 4 MiB, byte for byte.
    pub bytes: Bytes,
    /// The upstream filtered by artifact type.
    pub filters_applied: bool,
    /// The query of the next page, for [`Upstream::referrers_page`].
    pub next: Option<String>,
}

/// Something that may be visible.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// A manifest.
    Manifest(&'a Reference),
    /// A blob.
    Blob(&'a Digest),
    /// The list of tags.
    Tags,
}

/// What somebody without a login gets to see of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// It is shown to anybody.
    Shown,
    /// It is refused: a 401 or 403.
    Refused,
    /// It is said not to exist, or something else is shown in its place. That proves nothing of the repository: perhaps it
    /// does not exist.
    Absent,
}

impl Body for BlobBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }
}

impl Upstream {
    /// HEAD of a manifest: free on Docker Hub. An upstream that does not know HEAD is asked with GET.
    pub async fn head_manifest(&self, name: &Name, reference: &Reference) -> Result<Announced, Error> {
        self.announced(name, reference, Identity::Own).await
    }

    /// GET of a manifest.
    pub async fn manifest(&self, name: &Name, reference: &Reference) -> Result<Fetched, Error> {
        self.fetched(name, reference, Identity::Own).await
    }

    /// GET of a blob from `offset` on, until the head of the answer is in.
    ///
    /// [`Flaw::Range`] says that it cannot be continued there: ask again with 0.
    pub async fn blob(&self, name: &Name, digest: &Digest, offset: u64) -> Result<BlobBody, Error> {
        self.blob_as(name, digest, offset, Identity::Own, &[]).await
    }

    /// The same, of other endpoints than these if one of those has it.
    pub async fn blob_avoiding(&self, avoided: &[usize], name: &Name, digest: &Digest, offset: u64) -> Result<BlobBody, Error> {
        self.blob_as(name, digest, offset, Identity::Own, avoided).await
    }

    /// HEAD of a blob: its size in bytes, where the upstream says it.
    pub async fn head_blob(&self, name: &Name, digest: &Digest) -> Result<Option<u64>, Error> {
        self.size_of(name, digest, Identity::Own).await
    }

    /// A page of tags: at most `n`, those after `last`.
    pub async fn tags(&self, name: &Name, n: Option<u32>, last: Option<&str>) -> Result<TagPage, Error> {
        self.tags_as(name, n, last, Identity::Own).await
    }

    /// The first page of what refers to a manifest. [`Error::NotFound`] says that the upstream has no referrers API.
    pub async fn referrers(&self, name: &Name, digest: &Digest, artifact_types: &[String]) -> Result<ReferrersPage, Error> {
        let query = query_of(artifact_types.iter().map(|artifact_type| ("artifactType", artifact_type)));
        self.referrers_page(name, digest, &query).await
    }

    /// A page of referrers by the query that the page before named. `ns` is left out: it is for proxies.
    pub async fn referrers_page(&self, name: &Name, digest: &Digest, query: &str) -> Result<ReferrersPage, Error> {
        let pairs = url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key != "ns");
        let query = query_of(pairs);
        let ask = Ask {
            kind: Kind::Referrers,
            query: Some(query),
            accept: "application/vnd.oci.image.index.v1+json",
            ..Ask::get(name, format!("referrers/{digest}"), Identity::Own)
        };
        let (head, bytes, host) = self.whole(&ask, PAGE_BYTES_MAX).await?;
        if serde_json::from_slice::<Index>(&bytes).is_err() {
            return Err(Error::BadAnswer { host, flaw: Flaw::Json });
        }
        let applied = head.headers.get_all("oci-filters-applied").iter().filter_map(|value| value.to_str().ok());
        let filters_applied = applied.flat_map(|line| line.split(',')).any(|filter| filter.trim() == "artifactType");
        Ok(ReferrersPage { bytes, filters_applied, next: headers::next_page(&head.headers) })
    }

    /// HEAD of a blob as anybody could ask it.
    pub async fn head_blob_as_anyone(&self, name: &Name, digest: &Digest) -> Result<Option<u64>, Error> {
        self.size_of(name, digest, Identity::Anyone).await
    }

    /// What anybody gets to see of it: an anonymous HEAD.
    pub async fn seen_by_anyone(&self, name: &Name, what: What<'_>) -> Result<Sight, Error> {
        let seen = match what {
            // A page to log in with has no type of a manifest.
            What::Manifest(reference) => {
                self.announced(name, reference, Identity::Anyone).await.map(|announced| announced.media_type.is_some())
            }
            What::Blob(digest) => self.size_of(name, digest, Identity::Anyone).await.map(|_| true),
            What::Tags => self.tags_as(name, Some(1), None, Identity::Anyone).await.map(|_| true),
        };
        match seen {
            Ok(true) => Ok(Sight::Shown),
            Ok(false) | Err(Error::NotFound { .. }) => Ok(Sight::Absent),
            Err(Error::Denied { .. }) => Ok(Sight::Refused),
            Err(error) => Err(error),
        }
    }

    async fn tags_as(&self, name: &Name, n: Option<u32>, last: Option<&str>, identity: Identity) -> Result<TagPage, Error> {
        let n = n.map(|n| n.to_string());
        let query = query_of([("n", n.as_deref()), ("last", last)].into_iter().filter_map(|(key, value)| Some((key, value?))));
        let ask =
            Ask { kind: Kind::Tags, query: Some(query), accept: "application/json", ..Ask::get(name, "tags/list".to_owned(), identity) };
        let (head, bytes, host) = self.whole(&ask, PAGE_BYTES_MAX).await?;
        tag_page(&head.headers, &bytes, last).ok_or(Error::BadAnswer { host, flaw: Flaw::Json })
    }

    async fn announced(&self, name: &Name, reference: &Reference, identity: Identity) -> Result<Announced, Error> {
        if !self.0.headless.load(Ordering::Relaxed) {
            let ask = Ask { method: Method::HEAD, ..Ask::manifest(name, reference, identity) };
            let deadline = Deadline::after(self.0.wire.limits.call);
            let _permit = self.permit(&self.0.metadata, deadline).await?;
            let told = self.ask(&ask, deadline, |answer| ready(announced(&answer.head.headers, answer.host))).await;
            if !matches!(told, Err(Error::BadAnswer { flaw: Flaw::NoHead, .. })) {
                return told;
            }
            self.0.headless.store(true, Ordering::Relaxed);
        }
        let fetched = self.fetched(name, reference, identity).await?;
        let media_type = fetched.content_type.as_deref().and_then(|text| MediaType::parse(text).ok());
        let digest = fetched.digest.unwrap_or_else(|| Digest::sha256_of(&fetched.bytes));
        Ok(Announced { digest: Some(digest), media_type, size: Some(fetched.bytes.len() as u64) })
    }

    async fn fetched(&self, name: &Name, reference: &Reference, identity: Identity) -> Result<Fetched, Error> {
        let ask = Ask::manifest(name, reference, identity);
        let (head, bytes, host) = self.whole(&ask, MANIFEST_BYTES_MAX).await?;
        let digest = headers::content_digest(&head.headers).map_err(|()| Error::BadAnswer { host, flaw: Flaw::DigestHeader })?;
        Ok(Fetched { bytes, content_type: content_type(&head.headers), digest })
    }

    async fn blob_as(&self, name: &Name, digest: &Digest, offset: u64, identity: Identity, avoided: &[usize]) -> Result<BlobBody, Error> {
        let deadline = Deadline::after(self.0.wire.limits.call);
        let permit = self.permit(&self.0.blobs, deadline).await?;
        let ask = Ask { offset, ..Ask::blob(name, digest, identity, avoided) };
        let (answer, size, start) = self.ask(&ask, deadline, |answer| ready(begun(answer, offset))).await?;
        Ok(self.body(answer, size, start, permit))
    }

    /// The bytes `first..=last` of a blob, of any endpoint, these last. An upstream that answers with the whole is
    /// [`Flaw::Range`].
    pub(super) async fn blob_part(
        &self,
        (name, digest): (&Name, &Digest),
        (first, last): (u64, u64),
        avoided: &[usize],
        permit: OwnedSemaphorePermit,
    ) -> Result<BlobBody, Error> {
        let deadline = Deadline::after(self.0.wire.limits.call);
        let ask = Ask { offset: first, last: Some(last), ..Ask::blob(name, digest, Identity::Own, avoided) };
        let finish = |answer: Answer| {
            let flaw = || Error::BadAnswer { host: answer.host.clone(), flaw: Flaw::Range };
            let range = spot::part_of(answer.head.status, &answer.head.headers, (first, last)).ok_or_else(flaw);
            ready(range.map(|range| (answer, range.total)))
        };
        let (answer, total) = self.ask(&ask, deadline, finish).await?;
        Ok(self.body(answer, total, first, permit))
    }

    fn body(&self, answer: Answer, size: Option<u64>, start: u64, permit: OwnedSemaphorePermit) -> BlobBody {
        let body = Flow::new(answer.body, self.0.throttle.clone(), permit);
        BlobBody { size, start, body, endpoint: answer.endpoint, spot: answer.spot }
    }

    async fn size_of(&self, name: &Name, digest: &Digest, identity: Identity) -> Result<Option<u64>, Error> {
        let deadline = Deadline::after(self.0.wire.limits.call);
        let permit = self.permit(&self.0.metadata, deadline).await?;
        let ask = Ask { method: Method::HEAD, ..Ask::blob(name, digest, identity, &[]) };
        let told = self.ask(&ask, deadline, |answer| ready(Ok(headers::content_length(&answer.head.headers)))).await;
        drop(permit);
        match told {
            // The storage that the registry redirects to may have signed for GET only (ghcr.io): the head of a GET tells
            // the same, and its body is not read.
            Err(Error::BadAnswer { flaw: Flaw::NoHead, .. } | Error::Unavailable { why: Why::Storage(_), .. }) => {
                self.blob_as(name, digest, 0, identity, &[]).await.map(|blob| blob.size)
            }
            told => told,
        }
    }

    /// Asks for a body that is small enough to be read at once.
    async fn whole(&self, ask: &Ask<'_>, max: usize) -> Result<(Parts, Bytes, String), Error> {
        let limits = &self.0.wire.limits;
        let (deadline, whole) = (Deadline::after(limits.call), Deadline::after(limits.whole));
        let _permit = self.permit(&self.0.metadata, deadline).await?;
        let finish = move |answer: Answer| async move {
            let bytes = read_whole(&answer.host, answer.body, max, whole).await?;
            Ok((answer.head, bytes, answer.host))
        };
        self.ask(ask, deadline, finish).await
    }
}

impl<'a> Ask<'a> {
    fn get(name: &'a Name, what: String, identity: Identity) -> Self {
        let (method, kind, accept) = (Method::GET, Kind::Manifest, ACCEPT_MANIFEST);
        Self { method, kind, name, what, query: None, accept, offset: 0, last: None, identity, avoided: &[] }
    }

    fn blob(name: &'a Name, digest: &Digest, identity: Identity, avoided: &'a [usize]) -> Self {
        Self { kind: Kind::Blob, accept: "*/*", avoided, ..Self::get(name, format!("blobs/{digest}"), identity) }
    }

    fn manifest(name: &'a Name, reference: &Reference, identity: Identity) -> Self {
        Self::get(name, format!("manifests/{reference}"), identity)
    }
}

fn announced(headers: &HeaderMap, host: String) -> Result<Announced, Error> {
    let digest = headers::content_digest(headers).map_err(|()| Error::BadAnswer { host, flaw: Flaw::DigestHeader })?;
    let media_type = content_type(headers).and_then(|text| MediaType::parse(&text).ok());
    Ok(Announced { digest, media_type, size: headers::content_length(headers) })
}

fn query_of(pairs: impl Iterator<Item = (impl AsRef<str>, impl AsRef<str>)>) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(CONTENT_TYPE)?.to_str().ok()?.to_owned())
}

/// Where the body of a blob begins, and how large the blob is. A 206 must begin exactly where it was asked to (RFC 9110
/// section 15.3.7 lets a server choose); a 200 begins at 0.
fn begun(answer: Answer, offset: u64) -> Result<(Answer, Option<u64>, u64), Error> {
    if answer.head.status != hyper::StatusCode::PARTIAL_CONTENT {
        let length = headers::content_length(&answer.head.headers);
        return Ok((answer, length, 0));
    }
    match headers::content_range(&answer.head.headers).filter(|range| range.first == offset) {
        Some(range) => Ok((answer, range.total, offset)),
        None => Err(Error::BadAnswer { host: answer.host, flaw: Flaw::Range }),
    }
}

#[derive(Deserialize)]
struct Tags {
    // Some servers write null where there is none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(rename = "manifests")]
    _manifests: Vec<Named>,
}

/// What is no descriptor is nothing that a client should have to read: brackets a hundred thousand deep, say.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "digest")]
    _digest: String,
}

fn tag_page(headers: &HeaderMap, bytes: &[u8], last: Option<&str>) -> Option<TagPage> {
    let mut tags = serde_json::from_slice::<Tags>(bytes).ok()?.tags.unwrap_or_default();
    tags.retain(|tag| Tag::parse(tag).is_ok());
    let next = headers::next_page(headers).and_then(|query| {
        let of = |wanted: &str| url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == wanted).map(|(_, value)| value);
        // Where the upstream goes on by a cursor of its own (quay.io), the last tag does as well.
        let next_last = of("last").map(std::borrow::Cow::into_owned).or_else(|| tags.last().cloned())?;
        let n = of("n").and_then(|n| n.parse().ok());
        // A page that leads to itself would be read for ever.
        (Some(next_last.as_str()) != last).then_some((n, next_last))
    });
    Some(TagPage { tags, next })
}
