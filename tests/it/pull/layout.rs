use super::{REPO, error_of};
use crate::support::KIB;
use crate::support::client::get;
use crate::support::mirror::{Builder, Mirror};
use crate::support::registry::{Image, Pushed, Registry};

/// Docker Hub and GitHub, with another image under the same name in each.
async fn two() -> (Registry, Registry, [Pushed; 2], Mirror) {
    let (hub, other) = (Registry::hub().await, Registry::plain().await);
    let images = [hub.image("org/app", "v1", Image::layers([KIB]).seed(1)), other.image("org/app", "v1", Image::layers([KIB]).seed(2))];
    let mirror = Builder::new().upstream("docker.io", &hub).upstream("ghcr.io", &other).start();
    (hub, other, images, mirror)
}

#[tokio::test]
async fn every_layout_reaches_the_same_content() {
    let (_hub, _other, [docker, github], mirror) = two().await;
    for (prefix, query, pushed) in [
        ("/v2/org/app", "", &docker),
        ("/v2/org/app", "?ns=docker.io", &docker),
        ("/v2/org/app", "?ns=ghcr.io", &github),
        ("/v2/docker.io/org/app", "", &docker),
        ("/v2/ghcr.io/org/app", "", &github),
        ("/docker.io/v2/org/app", "", &docker),
        ("/ghcr.io/v2/org/app", "", &github),
        ("/ghcr.io/v2/org/app", "?ns=ghcr.io", &github),
        ("/v2/ghcr.io/org/app", "?ns=ghcr.io", &github),
    ] {
        let ask = |rest: String| get(format!("{}{prefix}/{rest}{query}", mirror.url())).send();
        let namespace = query.strip_prefix("?ns=");
        let layer = &pushed.layers[0].digest;
        for (rest, digest) in [
            ("manifests/v1".into(), &pushed.digest),
            (format!("manifests/{}", pushed.digest), &pushed.digest),
            (format!("blobs/{layer}"), layer),
        ] {
            let reply = ask(rest).await;
            assert!(reply.status == 200 && digest.is_of(&reply.body), "{prefix}{query}: {}", reply.status);
            assert_eq!(reply.header("oci-namespace"), namespace, "{prefix}{query}");
        }
        let absent = ask("manifests/absent".into()).await;
        assert_eq!((absent.status, absent.header("oci-namespace")), (404, namespace), "{prefix}{query}");
    }
    for ping in ["/v2/", "/v2", "/ghcr.io/v2/", "/docker.io/v2", "/v2/?ns=ghcr.io"] {
        assert_eq!(get(format!("{}{ping}", mirror.url())).send().await.status, 200, "{ping}");
    }
}

#[tokio::test]
async fn a_short_name_is_of_the_library() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([KIB]));
    let mirror = Builder::new().upstream("docker.io", &hub).start();
    for path in ["/v2/debian", "/v2/docker.io/debian", "/docker.io/v2/debian", "/v2/library/debian"] {
        let reply = get(format!("{}{path}/manifests/latest", mirror.url())).send().await;
        assert!(reply.status == 200 && image.digest.is_of(&reply.body), "{path}: {}", reply.text());
    }
    assert_eq!(hub.pulls(), 1, "{}", hub.story());
}

#[tokio::test]
async fn what_is_not_configured_is_not_contacted() {
    let (hub, other, _, mirror) = two().await;
    for (path, code) in [
        ("/v2/org/app/manifests/v1?ns=evil.test", (404, "NAME_UNKNOWN")),
        ("/v2/evil.test/org/app/manifests/v1", (404, "NAME_UNKNOWN")),
        ("/evil.test/v2/org/app/manifests/v1", (404, "NAME_UNKNOWN")),
        ("/evil.test/v2/", (404, "NAME_UNKNOWN")),
        ("/v2/ghcr.io/org/app/manifests/v1?ns=docker.io", (400, "NAME_INVALID")),
        ("/docker.io/v2/ghcr.io/org/app/manifests/v1", (400, "NAME_INVALID")),
    ] {
        let (status, code) = (code.0, code.1.to_owned());
        assert_eq!(error_of(&get(format!("{}{path}", mirror.url())).send().await), (status, code), "{path}");
    }
    assert_eq!((hub.connections(), other.connections()), (0, 0));
}

#[tokio::test]
async fn bytes_of_one_registry_are_not_shown_under_another() {
    let (_hub, other, [docker, github], mirror) = two().await;
    let url = |prefix: &str, pushed: &Pushed| format!("{}{prefix}/blobs/{}", mirror.url(), pushed.layers[0].digest);
    assert_eq!(get(url("/v2/docker.io/org/app", &docker)).send().await.status, 200);
    mirror.settled().await;
    // The bytes are here, but this registry does not have them.
    assert_eq!(get(url("/v2/ghcr.io/org/app", &docker)).send().await.status, 404);
    assert_eq!(get(url("/v2/ghcr.io/org/app", &github)).send().await.status, 200);
    assert_eq!(other.gets_of(&docker.layers[0].digest), 0, "{}", other.story());
}
