use super::{Accept, CONTAINERD, CONTAINERD_2, CRANE, CRI_O, Client, DOCKERD, GO, REPO, mirror_of};
use crate::support::KIB;
use crate::support::client::{get, head};
use crate::support::registry::{DOCKER_LIST, DOCKER_MANIFEST, Image, Index, OCI_INDEX, OCI_MANIFEST, Registry, Want};

/// Every client in every layout that its settings can bring about.
const CLIENTS: &[Client] = &[
    DOCKERD,
    // `registry-mirrors` with a path.
    Client { prefix: "/docker.io/v2", ..DOCKERD },
    // dockerd with containerd's store: `ns`, and with a path in the mirror's URL both.
    Client { agent: "docker/29.0.0 go/go1.25.4 containerd-client/v2.1.5+unknown storage-driver/overlayfs", ..CONTAINERD_2 },
    Client { agent: "docker/29.0.0 go/go1.25.4 containerd-client/v2.1.5+unknown", prefix: "/docker.io/v2", ..CONTAINERD_2 },
    CONTAINERD_2,
    // `override_path = true`, and k3s with `rewrite`.
    Client { prefix: "/v2/docker.io", ..CONTAINERD_2 },
    Client { agent: "k3s/v1.34.1+k3s1 containerd/v2.1.4-k3s1", prefix: "/v2/docker.io", ..CONTAINERD_2 },
    Client { agent: "nerdctl/2.1.6 containerd/v2.1.4", namespace: Some("registry-1.docker.io"), ..CONTAINERD_2 },
    Client { agent: "buildkit/v0.25.1", namespace: Some("index.docker.io"), ..CONTAINERD_2 },
    Client { agent: "buildkit/v0.25.1", prefix: "/v2/docker.io", ..CONTAINERD_2 },
    CRI_O,
    Client { prefix: "/v2", ..CRI_O },
    Client { agent: "Buildah/1.41.0", prefix: "/docker.io/v2", ..CRI_O },
    CRANE,
    Client { prefix: "/v2/registry-1.docker.io", ..CRANE },
    Client { agent: "kaniko/1.24.0 go-containerregistry/v0.20.3", prefix: "/v2", resolves: false, ..CRANE },
    ORAS,
    Client { agent: "Helm/3.19.0", ..ORAS },
];

/// oras, notation and helm: oras-go, which pings only to learn how to log in, and lists all types for a tag.
const ORAS: Client = Client {
    agent: "oras/1.3.0",
    prefix: "/v2/docker.io",
    namespace: None,
    accept: Accept::Joined(&[DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, "application/vnd.oci.artifact.manifest.v1+json"]),
    encoding: GO,
    pings: false,
    resolves: true,
};

fn index(seed: u64) -> Index {
    Index::platforms(&Image::layers([100 * KIB, 100, 0]).seed(seed), &["linux/amd64", "linux/arm64"])
}

#[tokio::test]
async fn a_cold_pull_is_one_get_a_digest_for_every_client() {
    let hub = Registry::hub().await;
    let mirror = mirror_of(&hub);
    for (n, client) in (0..).zip(CLIENTS) {
        let repository = format!("library/image-{n}");
        let index = hub.index(&repository, "latest", index(n * 10));
        let pulls = hub.pulls();
        client.pull(&mirror, &repository, "latest", &index).await;
        let image = &index.children[0];
        // The empty layer is in every image.
        for digest in [index.digest, image.digest].iter().chain(image.blobs().filter(|blob| blob.len() > 0).map(|blob| &blob.digest)) {
            assert_eq!(hub.gets_of(digest), 1, "{client:?}: {digest}\n{}", hub.story());
        }
        assert_eq!((hub.pulls() - pulls, hub.violations()), (2, vec![]), "{client:?}\n{}", hub.story());
        hub.forget();
        client.pull(&mirror, &repository, "latest", &index).await;
        assert_eq!(hub.count(Want::any()), 0, "{client:?}\n{}", hub.story());
    }
}

#[tokio::test]
async fn what_one_client_brought_is_held_for_all_and_without_the_upstream() {
    let hub = Registry::hub().await;
    let index = hub.index(REPO, "latest", index(1));
    let mirror = mirror_of(&hub);
    CONTAINERD_2.pull(&mirror, REPO, "latest", &index).await;
    mirror.settled().await;
    hub.down().await;
    for client in CLIENTS {
        client.pull(&mirror, REPO, "latest", &index).await;
    }
}

/// A short name is the library's in every layout; with a registry that has no library it is what it says.
#[tokio::test]
async fn a_chart_is_found_by_its_versions_and_pulled() {
    let plain = Registry::plain().await;
    let chart = plain.image("charts/app", "1.2.3", Image::artifact("application/vnd.cncf.helm.chart", 4 * KIB));
    let mirror = crate::support::mirror::Builder::new().upstream("ghcr.io", &plain).start();
    let helm = Client { agent: "Helm/3.19.0", prefix: "/v2/ghcr.io", ..ORAS };
    let tags = helm.ask(&mirror, "charts/app", get, "tags/list").send().await;
    helm.assert_signed(&tags);
    assert_eq!((tags.status, &tags.json()["tags"][0]), (200, &"1.2.3".into()));
    helm.pull(&mirror, "charts/app", "1.2.3", &chart).await;
    // oras-go asks for the size of what it is about to fetch.
    for blob in chart.blobs() {
        let told = helm.ask(&mirror, "charts/app", head, &format!("blobs/{}", blob.digest)).send().await;
        assert_eq!((told.status, told.header("content-length")), (200, Some(&*blob.len().to_string())));
    }
    let gone = helm.ask_manifest(&mirror, "charts/app", head, "9.9.9").send().await;
    assert_eq!((gone.status, gone.body.len()), (404, 0));
}

/// Whoever names two registries, or one that is not served, gets an answer with which it can go on to the next host, at once.
#[tokio::test]
async fn who_asks_for_what_is_not_served_is_told_at_once() {
    let hub = Registry::hub().await;
    let mirror = mirror_of(&hub);
    for (prefix, namespace, expected) in [
        ("/v2", Some("evil.test"), (404, "NAME_UNKNOWN")),
        ("/v2/evil.test", None, (404, "NAME_UNKNOWN")),
        ("/evil.test/v2", None, (404, "NAME_UNKNOWN")),
        ("/evil.test/v2", Some("docker.io"), (404, "NAME_UNKNOWN")),
        ("/v2/ghcr.io", Some("docker.io"), (400, "NAME_INVALID")),
        ("/ghcr.io/v2", Some("index.docker.io"), (400, "NAME_INVALID")),
        ("/docker.io/v2/ghcr.io", None, (400, "NAME_INVALID")),
    ] {
        let client = Client { prefix, namespace, encoding: CONTAINERD, ..CONTAINERD_2 };
        let reply = client.ask_manifest(&mirror, REPO, get, "latest").send().await;
        let code = reply.json()["errors"][0]["code"].as_str().map(str::to_owned);
        assert_eq!((reply.status, code.as_deref()), (expected.0, Some(expected.1)), "{client:?}");
        let bare = client.ask_manifest(&mirror, REPO, head, "latest").send().await;
        assert_eq!((bare.status, bare.body.len()), (expected.0, 0), "{client:?}");
    }
    assert_eq!(hub.connections(), 0, "{}", hub.story());
}
