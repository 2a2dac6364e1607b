use futures_util::future::join_all;

use super::{REPO, mirror_of};
use crate::support::client::{get, pull};
use crate::support::mirror::Builder;
use crate::support::registry::{Image, Index, Kind, Registry, Want};
use crate::support::{KIB, MIB};

fn index() -> Index {
    Index::platforms(&Image::layers([MIB, 100]), &["linux/amd64", "linux/arm64"])
}

#[tokio::test]
async fn a_cold_image_is_one_get_a_digest_and_the_second_pull_is_nothing() {
    let hub = Registry::hub().await;
    let index = hub.index(REPO, "latest", index());
    let mirror = mirror_of(&hub);
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    let image = &index.children[0];
    for digest in [index.digest, image.digest].iter().chain(image.blobs().map(|blob| &blob.digest)) {
        assert_eq!(hub.gets_of(digest), 1, "{digest}\n{}", hub.story());
    }
    for blob in image.blobs() {
        assert_eq!(hub.bytes_of(&blob.digest), blob.len());
    }
    assert_eq!((hub.count(Kind::Token), hub.count(Kind::Cdn), hub.pulls()), (1, 3, 2), "{}", hub.story());
    // The one request that is refused for want of a token, at the most.
    assert!(hub.matching(Want::any()).iter().filter(|record| record.status == Some(401)).count() <= 1, "{}", hub.story());

    hub.forget();
    let connections = hub.connections();
    for _ in 0..2 {
        pull(&mirror.url(), REPO, "latest").await.unwrap();
    }
    assert_eq!((hub.count(Want::any()), hub.connections()), (0, connections), "{}", hub.story());
    assert_eq!(hub.violations(), [""; 0]);
}

#[tokio::test]
async fn one_token_a_repository_however_many_ask_at_once() {
    let hub = Registry::hub().await;
    let repositories = ["library/one", "library/two"];
    let images: Vec<_> = repositories.map(|name| hub.image(name, "latest", Image::layers([10, 20, 30, 40, 50, 60]).seed(7))).into();
    let mirror = mirror_of(&hub);
    let urls = repositories.iter().zip(&images).flat_map(|(name, image)| {
        let manifest = mirror.manifest(name, image.digest);
        image.blobs().map(|blob| mirror.blob(name, blob.digest)).chain([manifest]).collect::<Vec<_>>()
    });
    for reply in join_all(urls.map(|url| get(url).send())).await {
        assert!(reply.status == 200 && reply.is_whole(), "{reply:?}");
    }
    for name in repositories {
        let tokens = hub.matching(Kind::Token).iter().filter(|token| token.params("scope").concat().contains(name)).count();
        assert_eq!(tokens, 1, "{}", hub.story());
    }
    assert_eq!((hub.count(Kind::Token), hub.violations()), (2, vec![]));
}

#[tokio::test]
async fn what_is_asked_upstream_is_plain_and_says_nothing_of_the_client() {
    let hub = Registry::hub().await;
    hub.quirks(|quirks| quirks.gzips = true);
    let image = hub.image(REPO, "latest", Image::layers([MIB]));
    let mirror = mirror_of(&hub);
    let ask = |url: String| get(url + "?ns=docker.io").header("Accept-Encoding", "zstd, gzip").header("X-Secret", "s").bearer("mine");
    for url in [mirror.manifest(REPO, "latest"), mirror.blob(REPO, image.layers[0].digest)] {
        let reply = ask(url).send().await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, None), "{}", reply.status);
        assert!(image.digest.is_of(&reply.body) || image.layers[0].digest.is_of(&reply.body));
    }
    for request in hub.requests() {
        if matches!(request.kind, Kind::Manifest | Kind::Blob | Kind::Cdn) {
            assert_eq!(request.header("accept-encoding"), Some("identity"), "{}", request.line());
        }
        assert!(!request.query.contains("ns=") && request.header("x-secret").is_none(), "{}", request.line());
        assert_ne!(request.header("authorization"), Some("Bearer mine"), "{}", request.line());
        assert!(request.header("x-forwarded-for").is_none() && request.header("forwarded").is_none());
    }
    assert_eq!(hub.violations(), [""; 0]);
}

#[tokio::test]
async fn a_login_from_a_file_opens_what_is_private() {
    let hub = Registry::hub().await;
    hub.user("ann", "secret");
    hub.private("corp/app");
    let image = hub.image("corp/app", "latest", Image::layers([KIB]));
    let stranger = mirror_of(&hub);
    assert_eq!(get(stranger.manifest("corp/app", "latest")).send().await.status, 404);
    assert_eq!(get(stranger.blob("corp/app", image.layers[0].digest)).send().await.status, 404);

    let mirror = Builder::new().upstream("docker.io", &hub).login("docker.io", "ann", "secret\n").private_to_anyone("docker.io").start();
    hub.forget();
    assert_eq!(pull(&mirror.url(), "corp/app", "latest").await.unwrap().digest, image.digest);
    let tokens = hub.matching(Kind::Token);
    assert!(tokens.iter().any(|token| token.header("authorization").is_some_and(|value| value.starts_with("Basic "))), "{}", hub.story());
    for request in hub.requests().iter().filter(|request| request.kind != Kind::Token) {
        assert!(!request.header("authorization").unwrap_or_default().starts_with("Basic"), "{}", request.line());
    }
    assert_eq!(hub.violations(), [""; 0]);
}
