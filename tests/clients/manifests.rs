//! What no client shows: that manifests pass to the byte, with their media type and digest, whatever a request says it accepts.

use hyper::Method;

use crate::chain::Chain;
use crate::fixtures::{self, Image};
use crate::http::{self, Answer};
use crate::mirror;
use crate::process;

const ALL_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What requests say that they accept; each part is a header line of its own. A digest names bytes, so none of them may change the answer.
const ACCEPTS: &[&[&str]] = &[
    &[ALL_TYPES, "*/*"],
    &[],
    &["*/*"],
    &["application/json"],
    &["text/html"],
    &["application/vnd.oci.image.index.v1+json"],
    &["application/vnd.oci.image.manifest.v1+json"],
    &["application/vnd.docker.distribution.manifest.list.v2+json"],
    &["application/vnd.docker.distribution.manifest.v2+json"],
    &["application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.docker.distribution.manifest.v1+json"],
    &["application/vnd.docker.distribution.manifest.v2+json;q=0.1", "application/vnd.oci.image.manifest.v1+json;q=0"],
];

fn ask(method: &Method, url: &str, accept: &[&str]) -> Answer {
    let headers: Vec<_> = accept.iter().map(|types| ("Accept", *types)).collect();
    http::ask(method.clone(), url, &headers)
}

/// Asks for the manifest by HEAD and by GET, and checks both against what was pushed.
fn assert_exact(url: &str, accept: &[&str], image: &Image) {
    for method in [Method::HEAD, Method::GET, Method::HEAD] {
        let answer = ask(&method, url, accept);
        let told = |name| answer.header(name);
        assert_eq!(answer.status, 200, "{method} {url}, Accept: {accept:?}");
        assert_eq!(told("Docker-Content-Digest"), image.digest, "{method} {url}, Accept: {accept:?}");
        assert_eq!(told("Content-Type"), image.media_type, "{method} {url}, Accept: {accept:?}");
        assert_eq!(told("Content-Length"), image.body.len().to_string(), "{method} {url}, Accept: {accept:?}");
        let body: &[u8] = if method == Method::HEAD { b"" } else { &image.body };
        assert_eq!(answer.body, body, "{method} {url}, Accept: {accept:?}");
    }
}

#[test]
fn manifests_are_byte_exact() {
    if process::lacks(&["docker-registry", "setpriv"]) {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let chain = Chain::start(fixtures);
    let accepts = if mirror::is_stand_in() { &ACCEPTS[..1] } else { ACCEPTS }; // docker-registry does choose by Accept
    for image in fixtures.images() {
        let path = format!("{}/manifests/{}", image.repository, image.digest);
        for accept in accepts {
            assert_exact(&format!("http://{}/v2/{path}", chain.addr()), accept, image);
        }
        if let Some(tag) = &image.tag {
            assert_exact(&format!("http://{}/v2/{}/manifests/{tag}", chain.addr(), image.repository), ACCEPTS[0], image);
        }
        // What was pushed is what the upstream has.
        assert_exact(&format!("http://{}/v2/{path}", chain.upstream_addr()), ACCEPTS[0], image);
    }
}

#[test]
fn every_layout_names_the_same_manifest() {
    if process::lacks(&["docker-registry", "setpriv"]) || mirror::lacks("knows one layout") {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let chain = Chain::start(fixtures);
    let base = format!("http://{}", chain.addr());
    for image in fixtures.images() {
        for reference in image.tag.iter().chain([&image.digest]) {
            let path = format!("{}/manifests/{reference}", image.repository);
            for url in [
                format!("{base}/v2/{path}"),
                format!("{base}/v2/{path}?ns=docker.io"),
                format!("{base}/v2/docker.io/{path}"),
                format!("{base}/docker.io/v2/{path}"),
            ] {
                assert_exact(&url, ACCEPTS[0], image);
            }
        }
        chain.assert_manifest_fetched_once(image);
    }
}

#[test]
fn blobs_are_byte_exact() {
    if process::lacks(&["docker-registry", "setpriv"]) || mirror::lacks("answers 500 to the HEAD of a blob that it is still storing") {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let chain = Chain::start(fixtures);
    let image = fixtures.image("library/big", "latest");
    for blob in image.blobs() {
        let path = format!("v2/{}/blobs/{blob}", image.repository);
        let whole = ask(&Method::GET, &format!("http://{}/{path}", chain.addr()), &[]);
        let head = ask(&Method::HEAD, &format!("http://{}/{path}", chain.addr()), &[]);
        assert_eq!((whole.status, head.status), (200, 200), "{blob}");
        assert_eq!(fixtures::digest(&whole.body), blob);
        for name in ["Content-Length", "Content-Type", "Docker-Content-Digest"] {
            assert_eq!(whole.header(name), head.header(name), "{name} of {blob}");
        }
        assert_eq!(head.header("Content-Length"), whole.body.len().to_string());
        assert_eq!(head.header("Docker-Content-Digest"), blob);
    }
}
