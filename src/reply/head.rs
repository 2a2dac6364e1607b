//! What the head of an answer says of a content. A head that was made is kept for the next answer like it: nearly all are hits.

use std::cell::RefCell;

use hyper::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, VARY, X_CONTENT_TYPE_OPTIONS,
};

use crate::observe::Outcome;
use crate::oci::{Digest, MediaType, Registry};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
pub(super) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// Headers of an answer, at the most that is usual: then their table is made once, of this size, and does not grow.
pub(super) const HEADERS: usize = 12;

/// Heads that each thread keeps: the contents of a busy hour. About 1.5 KiB each.
const KEPT: usize = 64;

/// What a content is answered as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum As {
    /// A manifest by its tag, which may move.
    Tag,
    /// A manifest by its digest.
    Manifest,
    /// A blob.
    Blob,
}

/// All that a head is made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Of {
    pub(super) digest: Digest,
    pub(super) answered: As,
    /// A manifest's, where it is known.
    pub(super) media_type: Option<MediaType>,
    pub(super) outcome: Outcome,
    /// Bytes of the body, where the head says so.
    pub(super) length: Option<u64>,
    /// The registry that `?ns=` chose (distribution-spec, "Registry Proxying").
    pub(super) namespace: Option<Registry>,
}

struct Kept {
    of: Of,
    head: HeaderMap,
}

thread_local! {
    static HEADS: RefCell<[Option<Box<Kept>>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
}

/// The head of an answer.
pub(super) fn of(of: Of) -> HeaderMap {
    HEADS.with_borrow_mut(|heads| {
        // A digest is as good as a hash of itself.
        let place = &mut heads[usize::from(of.digest.as_bytes()[0]) % KEPT];
        match place {
            Some(kept) if kept.of == of => kept.head.clone(),
            _ => {
                let head = made(&of);
                *place = Some(Box::new(Kept { of, head: head.clone() }));
                head
            }
        }
    })
}

fn made(of: &Of) -> HeaderMap {
    let mut head = HeaderMap::with_capacity(HEADERS);
    let text = of.digest.text();
    let etag = format!("\"{}\"", text.as_str());
    let media_type = match of.answered {
        As::Tag | As::Manifest => of.media_type.as_ref().map(MediaType::as_str),
        As::Blob => Some("application/octet-stream"),
    };
    let namespace = of.namespace.as_ref().map(Registry::as_str);
    let said = [(CONTENT_TYPE, media_type), (ETAG, Some(&etag)), (CONTENT_DIGEST, Some(text.as_str())), (OCI_NAMESPACE, namespace)];
    for (name, value) in said {
        // Digests, registries, and words that were read as media types: all of them fit into a header.
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            head.insert(name, value);
        }
    }
    head.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if of.answered == As::Tag {
        head.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        head.insert(VARY, HeaderValue::from_static("Accept"));
    } else {
        head.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
    }
    common(&mut head, of.outcome);
    if let Some(length) = of.length {
        head.insert(CONTENT_LENGTH, length.into());
    }
    head
}

/// What every answer says.
pub(super) fn common(head: &mut HeaderMap, outcome: Outcome) {
    head.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    head.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    head.insert(CACHE_STATUS, HeaderValue::from_static(outcome.cache_status()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_was_kept_is_that_of_another_in_nothing() {
        let digests = [b"1", b"2"].map(|content| Digest::sha256_of(content));
        let media_types = ["application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"];
        let media_types = media_types.map(|text| MediaType::parse(text).ok());
        // Each differs from the one before in one thing, and all of a digest have the same place.
        let mut all =
            vec![Of { digest: digests[0], answered: As::Tag, media_type: None, outcome: Outcome::Hit, length: None, namespace: None }];
        let mut differing = |change: &dyn Fn(&mut Of)| {
            let mut next = all[all.len() - 1].clone();
            change(&mut next);
            all.push(next);
        };
        differing(&|of| of.length = Some(1));
        differing(&|of| of.length = Some(2));
        differing(&|of| of.media_type.clone_from(&media_types[0]));
        differing(&|of| of.media_type.clone_from(&media_types[1]));
        differing(&|of| of.outcome = Outcome::Stale);
        differing(&|of| of.answered = As::Manifest);
        differing(&|of| of.answered = As::Blob);
        differing(&|of| of.namespace = Some(Registry::docker_hub()));
        differing(&|of| of.digest = digests[1]);
        for one in &all {
            let first = of(one.clone());
            assert_eq!(first, made(one));
            assert_eq!(of(one.clone()), first, "again");
        }
        assert!(all.windows(2).all(|pair| made(&pair[0]) != made(&pair[1])));
    }

    #[test]
    fn it_says_what_it_is_made_of() {
        let digest = Digest::sha256_of(b"x");
        let head = made(&Of { digest, answered: As::Tag, media_type: None, outcome: Outcome::Hit, length: Some(7), namespace: None });
        assert_eq!((&head[CONTENT_LENGTH], &head[VARY]), (&HeaderValue::from(7), &HeaderValue::from_static("Accept")));
        assert_eq!(head[CONTENT_DIGEST].to_str().ok(), Some(digest.to_string().as_str()));
        assert_eq!(head[ETAG].to_str().ok(), Some(format!("\"{digest}\"").as_str()));
        assert!(!head.contains_key(CONTENT_TYPE));
    }
}
