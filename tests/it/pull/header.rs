use hyper::Method;

use super::{REPO, mirror_of};
use crate::support::client::{Ask, Raw, get, head};
use crate::support::mirror::Builder;
use crate::support::registry::{Image, Kind, Registry};
use crate::support::{KIB, MIB};

const MISS: &str = "millpond; fwd=miss";
const HIT: &str = "millpond; hit";
const LOCAL: &str = "millpond; detail=local";
const PASSED: &str = "millpond; fwd=bypass";

#[tokio::test]
async fn every_answer_says_how_it_came_about() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([MIB, KIB]));
    let mirror = mirror_of(&hub);
    let base = mirror.url();
    let (large, small) = (mirror.blob(REPO, image.layers[0].digest), mirror.blob(REPO, image.layers[1].digest));
    let (tag, digest) = (mirror.manifest(REPO, "latest"), mirror.manifest(REPO, image.digest));
    let absent = mirror.manifest(REPO, "absent");
    let put = |url: &str| Ask::new(Method::PUT, url);
    let story = [
        (get(format!("{base}/v2/")), 200, LOCAL),
        (head(format!("{base}/v2/")), 200, LOCAL),
        (head(&tag), 200, PASSED),
        (get(&tag), 200, MISS),
        (get(&tag), 200, HIT),
        (get(&digest), 200, HIT),
        (head(&digest), 200, HIT),
        (head(&large), 200, PASSED),
        (get(&large), 200, MISS),
        (get(&large), 200, HIT),
        (get(&large).range(0, 9), 206, HIT),
        (get(&large).range(MIB, None), 416, HIT),
        (get(&small), 200, MISS),
        (get(&small).header("If-None-Match", "*"), 304, HIT),
        (get(format!("{base}/v2/{REPO}/tags/list")), 200, PASSED),
        (get(&absent), 404, MISS),
        (head(&absent), 404, MISS),
        (get(format!("{base}/")), 404, LOCAL),
        (get(format!("{base}/v2/{REPO}/blobs/sha256:x")), 400, LOCAL),
        (get(format!("{base}/v2/a/manifests/x?ns=evil.test")), 404, LOCAL),
        (put(&tag), 405, LOCAL),
    ];
    for (ask, status, cache_status) in story {
        let told = format!("{ask:?}");
        let reply = ask.send().await;
        mirror.settled().await;
        assert_eq!((reply.status, reply.header("cache-status")), (status, Some(cache_status)), "{told}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{told}");
        assert_eq!(reply.header("docker-distribution-api-version"), Some("registry/2.0"), "{told}");
        assert!(reply.header("date").is_some(), "{told}");
    }
    hub.down().await;
    let down = get(mirror.manifest(REPO, "another")).send().await;
    assert_eq!((down.status, down.header("cache-status")), (503, Some(MISS)));
}

#[tokio::test]
async fn offline_is_said_so() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([KIB]));
    let mirror = Builder::new().upstream("docker.io", &hub).offline().start();
    for url in [mirror.manifest(REPO, "latest"), mirror.manifest(REPO, image.digest), mirror.blob(REPO, image.layers[0].digest)] {
        let reply = get(&url).send().await;
        assert_eq!((reply.status, reply.header("cache-status")), (404, Some(MISS)), "{url}");
        assert!(reply.text().contains("cache.offline"), "{}", reply.text());
    }
    assert_eq!(hub.connections(), 0);
}

#[tokio::test]
async fn who_has_it_already_is_told_so() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([MIB]));
    let mirror = mirror_of(&hub);
    let contents = [
        (mirror.manifest(REPO, "latest"), image.digest),
        (mirror.manifest(REPO, image.digest), image.digest),
        (mirror.blob(REPO, image.layers[0].digest), image.layers[0].digest),
    ];
    for (url, digest) in &contents {
        get(url).send().await;
        mirror.settled().await;
        let has = [format!("\"{digest}\""), digest.to_string(), format!("W/\"{digest}\""), "*".into(), format!("\"x\", \"{digest}\"")];
        for tag in has {
            for ask in [get(url), head(url)] {
                let reply = ask.header("If-None-Match", &tag).send().await;
                assert_eq!((reply.status, reply.body.len(), reply.is_whole()), (304, 0, true), "{url} {tag}");
                assert_eq!(reply.header("docker-content-digest"), Some(&*digest.to_string()));
                assert_eq!(reply.header("etag"), Some(&*format!("\"{digest}\"")));
            }
        }
        for tag in ["\"sha256:other\"", "", "\"", &"x".repeat(8_000)] {
            assert_eq!(get(url).header("If-None-Match", tag).send().await.status, 200, "{url} {tag}");
        }
    }
    assert_eq!((hub.count(Kind::Cdn), hub.pulls()), (1, 1), "{}", hub.story());
}

/// Answers with and without bodies, one behind the other on one connection: a wrong length would shift all that follow.
#[tokio::test]
async fn answers_on_one_connection_are_told_apart() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([MIB, KIB, 0]));
    let mirror = mirror_of(&plain);
    crate::support::client::pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    let blob = |n: usize| format!("/v2/{REPO}/blobs/{}", image.layers[n].digest);
    let tag = format!("/v2/{REPO}/manifests/latest");
    let manifest = image.manifest.len();
    // Method, target, headers, status, and the length of the body; none is what Content-Length says.
    let story = [
        ("GET", blob(1), "", 200, Some(1024)),
        ("HEAD", blob(0), "", 200, Some(0)),
        ("GET", tag.clone(), "If-None-Match: *\r\n", 304, Some(0)),
        ("HEAD", tag.clone(), "", 200, Some(0)),
        ("GET", blob(2), "", 200, Some(0)),
        ("GET", blob(0), "Range: bytes=5-9\r\n", 206, Some(5)),
        ("GET", blob(0), "Range: bytes=5-9,1-2,-3\r\n", 206, None),
        ("HEAD", blob(0), "Range: bytes=5-9\r\n", 206, Some(0)),
        ("GET", blob(0), "Range: bytes=9999999-\r\n", 416, None),
        ("HEAD", blob(0), "Range: bytes=9999999-\r\n", 416, Some(0)),
        ("GET", format!("/v2/{REPO}/manifests/none"), "", 404, None),
        ("HEAD", format!("/v2/{REPO}/manifests/none"), "", 404, Some(0)),
        ("GET", "/v2/UPPER/manifests/x".into(), "", 400, None),
        ("HEAD", format!("/v2/{REPO}/tags/list"), "", 200, Some(0)),
        ("GET", format!("/v2/{REPO}/tags/list"), "", 200, None),
        ("GET", tag, "", 200, Some(manifest)),
        ("GET", "/v2/".into(), "", 200, Some(2)),
    ];
    let mut raw = Raw::connect(mirror.address()).await;
    let ask = |(method, target, headers, ..): &(&str, String, &str, u16, Option<usize>)| {
        format!("{method} {target} HTTP/1.1\r\nHost: kit\r\n{headers}\r\n")
    };
    raw.send(story.iter().map(ask).collect::<String>()).await;
    for (method, target, headers, status, length) in story {
        let head = raw.head().await.to_lowercase();
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{method} {target} {headers}: {head}");
        let told = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map(|length| length.parse().unwrap());
        assert!(status == 304 || told.is_some(), "{method} {target} {headers}: {head}");
        let body = raw.read(length.or(told).unwrap()).await;
        assert!(length.is_none() || method == "HEAD" || status == 304 || told == length, "{method} {target} {headers}: {head}");
        assert!(!body.starts_with(b"HTTP/1."), "{method} {target} {headers}");
    }
}
