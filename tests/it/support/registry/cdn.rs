//! The CDNs of a scripted registry: blobs at signed URLs that expire, and no patience with an Authorization header.

use std::collections::HashSet;

use millpond::oci::Digest;
use tokio::time::Instant;

use super::answer::Answer;
use super::listener::Port;
use super::log::Request;
use super::quirks::{Quirks, Redirect};
use super::range;
use super::serve::Shared;

/// What makes a signed URL good.
#[derive(Debug)]
pub(super) struct SignedUrls {
    started: Instant,
    // Part of every signature: with another, all URLs that were given out are bad.
    secret: u64,
    given: u64,
    used: HashSet<String>,
}

impl SignedUrls {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), secret: 0, given: 0, used: HashSet::new() }
    }

    /// Makes every URL bad that was given out.
    pub(super) fn expire_all(&mut self) {
        self.secret += 1;
    }

    fn now_ms(&self) -> u128 {
        self.started.elapsed().as_millis()
    }

    fn signature(&self, port: Port, path: &str, expires: &str, nonce: &str) -> String {
        let mut hex = Digest::sha256_of(format!("{}|{port:?}|{path}|{expires}|{nonce}", self.secret).as_bytes()).hex();
        hex.truncate(32);
        hex
    }
}

/// Sends the client to a CDN: to one and the other in turn, since a client cannot rely on coming back to the same.
pub(super) fn redirect(shared: &Shared, quirks: &Quirks, redirect: &Redirect, digest: &Digest) -> Answer {
    let mut urls = shared.urls.lock().unwrap();
    let nonce = urls.given.to_string();
    let port = match urls.given % 2 {
        _ if redirect.relative => Port::Registry,
        0 => Port::CdnA,
        _ => Port::CdnB,
    };
    urls.given += 1;
    let folder = if redirect.relative {
        "artifacts-downloads/namespaces/n/repositories/r/downloads"
    } else {
        "registry-v2/docker/registry/v2/blobs"
    };
    let hex = digest.hex();
    let path = format!("/{folder}/{}/{}/{hex}/data", digest.algorithm().as_str(), &hex[..2]);
    let expires = (urls.now_ms() + quirks.url_ttl.as_millis()).to_string();
    let signature = urls.signature(port, &path, &expires, &nonce);
    let query = match port {
        Port::CdnB => format!("Expires={expires}&Signature={signature}&Key-Pair-Id={nonce}"),
        _ => format!("verify={expires}-{nonce}-{signature}"),
    };
    let host = if redirect.relative { String::new() } else { shared.url(port) };
    let mut answer = Answer::new(redirect.status);
    if redirect.html {
        answer = Answer::html(redirect.status, "<!doctype html><title>Redirecting...</title><h1>Redirecting...</h1>");
    }
    if redirect.cacheable {
        answer = answer.header("Cache-Control", "max-age=31536000");
    }
    answer.header("Location", format!("{host}{path}?{query}"))
}

/// The blob that a path of a CDN names.
pub(super) fn digest_of(path: &str) -> Option<Digest> {
    let mut parts = path.strip_suffix("/data")?.rsplit('/');
    let (hex, _prefix, algorithm) = (parts.next()?, parts.next()?, parts.next()?);
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

/// The bytes, for a good URL and nothing else.
pub(super) fn answer(shared: &Shared, quirks: &Quirks, request: &Request) -> Answer {
    for name in ["authorization", "cookie", "proxy-authorization"] {
        // Behind a path of the registry's own host its token is welcome, as at gcr.io.
        let is_own = name == "authorization" && request.port == Port::Registry;
        if request.headers.contains_key(name) && !is_own {
            shared.violation(format!("{name} at {:?}: {}", request.port, request.path));
            return Answer::new(400).header("Content-Type", "application/xml").content(xml(
                "InvalidArgument",
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the \
                 Authorization header should be specified",
            ));
        }
    }
    if !is_good(shared, quirks, request) {
        return Answer::new(403).header("Content-Type", "application/xml").content(xml("AccessDenied", "Request has expired"));
    }
    let Some(digest) = request.digest else { return Answer::error_of(404) };
    let Some(content) = shared.store.lock().unwrap().content(&digest) else {
        return Answer::new(404).header("Content-Type", "application/xml").content(xml("NoSuchKey", "The specified key does not exist."));
    };
    // Not the digest, and not the same at the other CDN: as it is with real ones.
    let etag = Digest::sha256_of(format!("{:?}{digest}", request.port).as_bytes()).hex();
    range::answer(quirks, request, &content, &format!("\"{}\"", &etag[..32]))
        .header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        .header("Server", if request.port == Port::CdnB { "AmazonS3" } else { "cloudflare" })
        .header("Vary", "Accept-Encoding")
}

fn is_good(shared: &Shared, quirks: &Quirks, request: &Request) -> bool {
    let param = |name| request.params(name).pop().unwrap_or_default();
    let verify = param("verify");
    let mut parts = verify.split('-');
    let mut part = |name| if verify.is_empty() { param(name) } else { parts.next().unwrap_or_default().to_owned() };
    let (expires, nonce, signature) = (part("Expires"), part("Key-Pair-Id"), part("Signature"));
    let mut urls = shared.urls.lock().unwrap();
    if urls.signature(request.port, &request.path, &expires, &nonce) != signature {
        return false;
    }
    let in_time = expires.parse::<u128>().is_ok_and(|expires| urls.now_ms() < expires);
    let unused = urls.used.insert(signature);
    in_time && (unused || !quirks.url_once)
}

fn xml(code: &str, message: &str) -> super::content::Content {
    let text = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>");
    super::content::Content::bytes(text)
}
