use std::collections::BTreeSet;

use crate::support::client::{Reply, get, head};
use crate::support::mirror::Builder;
use crate::support::registry::{DOCKER_MANIFEST, Fault, Image, Kind, OCI_MANIFEST, Registry};
use crate::support::scene::{REPO, Scene, assert_refused};

/// Every header that an answer may have.
const KNOWN: &[&str] = &[
    "accept-ranges",
    "cache-control",
    "cache-status",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "docker-content-digest",
    "docker-distribution-api-version",
    "etag",
    "link",
    "oci-filters-applied",
    "oci-namespace",
    "retry-after",
    "server",
    "vary",
    "warning",
    "x-content-type-options",
    "x-request-id",
    "connection",
    "content-security-policy",
    "transfer-encoding",
];

/// Nothing in the head of an answer is an upstream's.
fn assert_own(reply: &Reply, what: &str) {
    let names: BTreeSet<&str> = reply.headers.keys().map(hyper::header::HeaderName::as_str).collect();
    let foreign: Vec<_> = names.iter().filter(|name| !KNOWN.contains(name)).collect();
    assert!(foreign.is_empty(), "{what}: {foreign:?}");
    for (name, value) in &reply.headers {
        assert!(value.to_str().is_ok_and(|text| !text.contains("evil")), "{what}: {name}: {value:?}");
    }
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{what}");
    let page = reply.header("content-type").is_some_and(|kind| kind.starts_with("text/") || kind.contains("html") || kind.contains("xml"));
    assert!(!page, "{what}: {reply:?}");
}

/// A fault that adds whatever a browser, a proxy or a client would act upon.
fn evil(fault: Fault) -> Fault {
    [
        ("Set-Cookie", "evil=1"),
        ("Location", "http://evil.test/"),
        ("Refresh", "0; url=http://evil.test/"),
        ("Access-Control-Allow-Origin", "https://evil.test"),
        ("Content-Security-Policy", "default-src evil.test"),
        ("Content-Disposition", "attachment; filename=evil.exe"),
        ("Strict-Transport-Security", "max-age=31536000; evil"),
        ("Alt-Svc", "h3=\"evil.test:443\""),
        ("Via", "1.1 evil"),
        ("X-Request-Id", "evil"),
        ("Cache-Status", "evil; hit"),
        ("Warning", "299 evil"),
        ("WWW-Authenticate", "Basic realm=\"evil\""),
        ("Oci-Namespace", "evil.test"),
        ("Docker-Distribution-Api-Version", "evil"),
        ("Trailer", "X-Evil"),
    ]
    .into_iter()
    .fold(fault, |fault, (name, value)| fault.header(name, value))
}

#[tokio::test]
async fn no_header_of_an_upstream_comes_through() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([100_000]));
    let layer = &image.layers[0];
    for kind in [Kind::Manifest, Kind::Blob, Kind::Cdn, Kind::Tags, Kind::Referrers, Kind::Token] {
        scene.hub.on(kind, evil(Fault::none()));
    }
    for ask in [
        head(scene.mirror.manifest(REPO, "latest")),
        get(scene.mirror.manifest(REPO, "latest")),
        get(scene.mirror.manifest(REPO, image.digest)),
        head(scene.mirror.blob(REPO, layer.digest)),
        get(scene.mirror.blob(REPO, layer.digest)),
        get(scene.mirror.blob(REPO, layer.digest)).range(0, 9),
        get(format!("{}/v2/{REPO}/tags/list", scene.mirror.url())),
        get(format!("{}/v2/{REPO}/referrers/{}", scene.mirror.url(), image.digest)),
        get(scene.mirror.manifest(REPO, "absent")),
    ] {
        let what = format!("{ask:?}");
        let reply = ask.send().await;
        assert!([200, 206, 404, 502].contains(&reply.status), "{what}: {reply:?}\n{}", scene.hub.story());
        assert_own(&reply, &what);
    }
}

#[tokio::test]
async fn no_word_of_an_upstreams_error_comes_through() {
    let scene = Scene::new().await;
    let page = "<html><script>evil()</script></html>";
    let words = r#"{"errors":[{"code":"evil","message":"evil\r\nSet-Cookie: evil","detail":"evil"}]}"#;
    for status in [400, 401, 403, 404, 405, 410, 418, 429, 451, 500, 502, 503, 599, 203, 204, 206, 299] {
        for fault in [Fault::status(status).header("Content-Type", "text/html").body(page), Fault::status(status).body(words)] {
            scene.hub.on(Kind::Manifest, evil(fault).header("Retry-After", "1"));
            let tag = format!("tag-{status}");
            for ask in [get(scene.mirror.manifest(REPO, &tag)), head(scene.mirror.manifest(REPO, &tag))] {
                let reply = ask.send().await;
                assert!(reply.status >= 400, "{status}: {reply:?}");
                assert_own(&reply, &format!("{status}"));
                assert!(!String::from_utf8_lossy(&reply.body).contains("evil"), "{status}: {reply:?}");
            }
            scene.hub.heal();
        }
    }
}

#[tokio::test]
async fn types_that_a_browser_would_run_are_not_passed_on() {
    for kind in [
        "text/html",
        "text/html; charset=utf-8",
        "application/xhtml+xml",
        "image/svg+xml",
        "application/javascript",
        "text/xml",
        "*/*",
        "application/json\t",
        "application/json, text/html",
        "",
        "application/vnd.oci.image.manifest.v1+json\u{7f}",
    ] {
        let scene = Scene::new().await;
        let image = scene.hub.image(REPO, "latest", Image::layers([1000]));
        scene.hub.on(Kind::Manifest, Fault::none().header("Content-Type", kind));
        scene.hub.on(Kind::Cdn, Fault::none().header("Content-Type", kind));
        let reply = get(scene.mirror.manifest(REPO, "latest")).send().await;
        if reply.status == 200 {
            assert_eq!((reply.header("content-type"), &reply.body), (Some(OCI_MANIFEST), &image.manifest), "{kind}");
        } else {
            assert_refused(&reply, 502);
        }
        assert_own(&reply, kind);
        let reply = get(scene.mirror.blob(REPO, image.layers[0].digest)).send().await;
        // A head that is not HTTP is nobody's answer.
        if kind.contains('\u{7f}') {
            assert_refused(&reply, 502);
        } else {
            assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/octet-stream")), "{kind}");
        }
        assert_own(&reply, kind);
    }
}

/// The same bytes, which two registries give two types: each is what its own registry says.
#[tokio::test]
async fn a_registry_types_no_manifest_of_another() {
    let (hub, other) = (Registry::plain().await, Registry::plain().await);
    let untyped = r#"{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
    let pushed = hub.manifest("team/app", "latest", OCI_MANIFEST, untyped);
    other.manifest("team/app", "latest", DOCKER_MANIFEST, untyped);
    let mirror = Builder::new().upstream("docker.io", &hub).upstream("ghcr.io", &other).start();
    for _ in 0..2 {
        for (prefix, kind) in [("ghcr.io/", DOCKER_MANIFEST), ("", OCI_MANIFEST), ("ghcr.io/", DOCKER_MANIFEST)] {
            for reference in ["latest".to_owned(), pushed.digest.to_string()] {
                let reply = get(format!("{}/v2/{prefix}team/app/manifests/{reference}", mirror.url())).send().await;
                assert_eq!((reply.status, reply.header("content-type")), (200, Some(kind)), "{prefix} {reference}");
            }
        }
    }
}

#[tokio::test]
async fn lists_that_are_too_large_or_too_deep_are_refused() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let many = format!(r#"{{"name":"x","tags":["{}"]}}"#, vec!["tag"; 1 << 20].join("\",\""));
    let deep = format!(r#"{{"name":"x","manifests":{}{},"tags":[]}}"#, "[".repeat(200_000), "]".repeat(200_000));
    let endless = format!(r#"{{"schemaVersion":2,"manifests":[],"x":"{}"}}"#, "x".repeat(5 << 20));
    for (kind, body) in [(Kind::Tags, &many), (Kind::Tags, &deep), (Kind::Referrers, &deep), (Kind::Referrers, &endless)] {
        for fault in [Fault::json(body), Fault::json(body).in_chunks()] {
            scene.hub.on(kind, fault);
            let path = if kind == Kind::Tags { "tags/list".to_owned() } else { format!("referrers/{}", held.digest) };
            let reply = get(format!("{}/v2/{REPO}/{path}", scene.mirror.url())).send().await;
            // What is held is listed in its place; of referrers there is none.
            assert!(reply.body.len() < 10_000 && [200, 404, 502, 503].contains(&reply.status), "{kind:?}: {}", reply.status);
            scene.hub.heal();
        }
    }
    scene.serves_what_it_holds(&held, "held").await;
    scene.is_sound().await;
}
