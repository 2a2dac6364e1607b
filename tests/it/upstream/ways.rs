use crate::support::client::{get, pull};
use crate::support::registry::{
    Announced, Auth, Blobs, Builder, Challenge, Image, Kind, MultiRange, Port, Quirks, Redirect, Registry, TokenFields, Want,
};
use crate::support::scene::{REPO, Scene, assert_refused};

/// Registries as they are known to be, each by what it does unlike Docker Hub.
type Ways = fn(&mut Quirks);

const REGISTRIES: &[(&str, Ways)] = &[
    ("gcr.io", |q| {
        (q.challenge, q.token_post, q.multi) = (Challenge::Unquoted, Some(404), MultiRange::Refused);
        (q.blobs, q.url_once) = (Blobs::Redirect(Redirect::GCR), true);
    }),
    ("pkg.dev", |q| (q.challenge, q.blobs) = (Challenge::NoService, Blobs::Redirect(Redirect::GCR))),
    ("quay.io", |q| {
        (q.challenge, q.token_fields, q.expires_in) = (Challenge::BasicAndBearer, TokenFields::Token, Announced::Nothing);
        q.blobs = Blobs::Redirect(Redirect::QUAY);
    }),
    ("ghcr.io", |q| {
        (q.challenge, q.head_blob_direct, q.token_denied) = (Challenge::PlaceholderScope, true, Some(403));
    }),
    ("public.ecr.aws", |q| (q.challenge, q.token_fields) = (Challenge::NoScope, TokenFields::Token)),
    ("Aliyun ACR", |q| {
        (q.token_fields, q.expires_in) = (TokenFields::AccessToken, Announced::Nothing);
        q.blobs = Blobs::Redirect(Redirect { html: true, ..Redirect::HUB });
    }),
    ("two challenges on two lines", |q| q.challenge = Challenge::TwoLines),
    ("mcr.microsoft.com", |q| q.auth = Auth::None),
    ("a clock that is ten minutes ahead", |q| (q.issued_at_skew, q.expires_in) = (600, Announced::Seconds(10))),
];

#[tokio::test]
async fn an_image_is_pulled_from_every_kind_of_registry() {
    for (name, ways) in REGISTRIES {
        let scene = Scene::with(Builder::hub().quirks(ways).start().await, |builder| builder);
        let image = scene.hub.image(REPO, "latest", Image::layers([50_000, 70_000]));
        let pulled = pull(&scene.mirror.url(), REPO, "latest").await;
        let pulled = pulled.unwrap_or_else(|error| panic!("{name}: {error}\n{}", scene.hub.story()));
        assert_eq!(pulled.digest, image.digest);
        // As cheaply as can be: one refusal that teaches how to ask, one token, and each content once.
        assert!(scene.hub.count(Kind::Token) <= 1, "{name}: {}", scene.hub.story());
        for blob in image.blobs() {
            assert_eq!(scene.hub.gets_of(&blob.digest), 1, "{name}: {}", scene.hub.story());
        }
        // What does not exist is said to be so, whoever says it and however.
        assert_refused(&get(scene.mirror.manifest("library/absent", "latest")).send().await, 404);
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn storage_without_tls_gets_blobs_past_and_no_manifest() {
    // Aliyun: the registry and its tokens by https, the storage by http.
    let hub = Builder::hub().tls_at(&[Port::Registry, Port::Auth]).start().await;
    let scene = Scene::with(hub, |builder| builder);
    scene.hub.image(REPO, "latest", Image::layers([50_000]));
    pull(&scene.mirror.url(), REPO, "latest").await.unwrap_or_else(|error| panic!("{error}\n{}", scene.hub.story()));
    let other = Registry::plain().await;
    other.image(REPO, "other", Image::layers([1000]));
    scene.hub.quirks(|quirks| quirks.manifests_at = Some(other.url()));
    assert_refused(&get(scene.mirror.manifest(REPO, "other")).send().await, 502);
    assert_eq!(other.count(Want::any()), 0);
    scene.is_sound().await;
}

#[tokio::test]
async fn manifests_at_another_registry_get_no_token_of_a_third_host() {
    // registry.k8s.io asks for nothing and sends to pkg.dev. Where that one names a token service on another host, nobody
    // vouches for it.
    let other = Registry::hub().await;
    other.image(REPO, "latest", Image::layers([50_000]));
    let near = Registry::plain().await;
    near.quirks(|quirks| quirks.manifests_at = Some(other.url()));
    let scene = Scene::with(near, |builder| builder);
    assert_refused(&get(scene.mirror.manifest(REPO, "latest")).send().await, 502);
    assert_eq!((other.count(Kind::Token), other.violations()), (0, vec![]), "{}", other.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn several_ranges_are_never_asked_of_a_registry_that_refuses_them() {
    for multi in [MultiRange::Refused, MultiRange::First, MultiRange::Whole] {
        let hub = Builder::hub().quirks(|quirks| quirks.multi = multi).start().await;
        let scene = Scene::with(hub, |builder| builder);
        let blob = scene.push(1, 300_000);
        let reply = scene.get(&blob).header("Range", "bytes=0-9,200000-200009").send().await;
        assert!(matches!(reply.status, 200 | 206), "{reply:?}");
        let asked = scene.hub.matching(Kind::Cdn.of(blob.digest));
        assert!(asked.iter().all(|record| record.header("range").is_none_or(|range| !range.contains(','))), "{}", scene.hub.story());
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn a_token_service_that_refuses_a_private_repository_is_believed() {
    let hub = Builder::hub().quirks(|quirks| quirks.token_denied = Some(403)).start().await;
    hub.user("ann", "secret");
    hub.private("team/secret");
    let image = hub.image("team/secret", "latest", Image::layers([1000]));
    let scene = Scene::with(hub, |builder| builder);
    assert_refused(&get(scene.mirror.manifest("team/secret", "latest")).send().await, 404);
    let scene = scene.restart(|builder| builder.login("docker.io", "ann", "secret").private_to_anyone("docker.io")).await;
    assert_eq!(get(scene.mirror.manifest("team/secret", "latest")).send().await.body, image.manifest);
    scene.is_sound().await;
}
