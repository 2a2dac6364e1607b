use std::time::Duration;

use crate::support::client::{Reply, head};
use crate::support::mirror;
use crate::support::patience::within;
use crate::support::registry::{Blob, Fault, Image, Kind, Registry, Want};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole, quick};

/// A refusal that says when to come back, within reason.
fn assert_limited(reply: &Reply) {
    assert_refused(reply, 429);
    let seconds: u64 = reply.header("retry-after").expect("a client is told when to come back").parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(reply.json()["errors"][0]["code"], "TOOMANYREQUESTS");
}

#[tokio::test]
async fn nothing_more_is_asked_of_an_upstream_that_limits() {
    for fault in [Fault::too_many(Some(30)), Fault::too_many(Some(1_000_000)), Fault::too_many(None), Fault::hap429()] {
        let scene = Scene::new().await;
        let held = scene.hold("held").await;
        let image = scene.hub.image(REPO, "latest", Image::layers([10]));
        scene.hub.on(Kind::Manifest, fault.clone().once());
        scene.hub.forget();
        assert_limited(&scene.manifest("latest").send().await);
        assert_eq!(scene.hub.requests().len(), 1, "{fault:?}:\n{}", scene.hub.story());
        for _ in 0..3 {
            assert_limited(&scene.manifest("latest").send().await);
            assert_limited(&scene.manifest(image.digest).send().await);
            assert_eq!(head(scene.mirror.manifest(REPO, "latest")).send().await.status, 429);
            assert_eq!(scene.tags().await.status, 200, "the tags that are held");
        }
        assert_eq!(scene.hub.requests().len(), 1, "{fault:?}:\n{}", scene.hub.story());
        let pulled = crate::support::client::pull(&scene.mirror.url(), REPO, "held").await.unwrap();
        assert_eq!((pulled.digest, scene.hub.requests().len()), (held.digest, 1));
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn it_is_asked_again_when_the_time_is_over() {
    let short = |tuning: &mut millpond::serve::Tuning| {
        tuning.upstream.retry_after = (Duration::from_millis(500), Duration::from_secs(1));
    };
    let scene = Scene::with(crate::support::registry::Registry::hub().await, |builder| builder.tune(short));
    scene.hold("held").await;
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    scene.hub.on(Kind::Manifest, Fault::too_many(Some(0)).once());
    assert_limited(&scene.manifest("latest").send().await);
    let reply = within("the end of the limit", async {
        loop {
            let reply = scene.manifest("latest").send().await;
            if reply.status != 429 {
                return reply;
            }
        }
    })
    .await;
    assert_eq!((reply.status, reply.body), (200, image.manifest.clone()));
    assert_eq!(scene.hub.gets_of(&image.digest), 2, "one that was limited, one that was not:\n{}", scene.hub.story());
}

#[tokio::test]
async fn a_pull_that_has_begun_gets_its_blobs_when_the_budget_is_used_up() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([100_000, 200_000]));
    scene.hub.image(REPO, "next", Image::layers([10]));
    assert_eq!(scene.manifest("latest").send().await.status, 200);
    scene.hub.pulls_left(0);
    assert_limited(&scene.manifest("next").send().await);
    for blob in image.blobs() {
        assert_whole(&scene.get(blob).fetch().await, blob);
    }
    assert_eq!(scene.mirror.count("millpond_upstream_ratelimit_remaining", &[r#"upstream="docker.io""#]).await, 0);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_blob_that_is_limited_is_left_alone_too() {
    for kind in [Kind::Blob, Kind::Cdn] {
        let scene = Scene::new().await;
        let held = scene.hold("held").await;
        let blob = scene.push(1, 100_000);
        scene.hub.on(kind, Fault::too_many(Some(30)).once());
        assert_limited(&scene.get(&blob).send().await);
        scene.hub.forget();
        for _ in 0..3 {
            assert_limited(&scene.get(&blob).send().await);
            assert_eq!(head(scene.url(&blob)).send().await.status, 429);
        }
        assert_eq!(scene.hub.count(Want::any()), 0, "{}", scene.hub.story());
        let pulled = crate::support::client::pull(&scene.mirror.url(), REPO, "held").await.unwrap();
        assert_eq!(pulled.digest, held.digest);
        scene.is_sound().await;
    }
}

/// A scene, and a blob of which the first half comes before the upstream begins to limit.
async fn limited_in_the_middle(tune: impl Fn(&mut millpond::serve::Tuning) + Copy) -> (Scene, Blob) {
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(tune));
    scene.hold("held").await;
    let blob = scene.push(1, 1 << 20);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::cut(500_000).once());
    scene.hub.on(Kind::Blob.of(blob.digest), Fault::too_many(Some(30)).skip(1).once());
    (scene, blob)
}

#[tokio::test]
async fn a_limit_in_the_middle_of_a_body_is_waited_for_and_what_is_here_stays() {
    let short = |tuning: &mut millpond::serve::Tuning| {
        tuning.upstream.retry_after = (Duration::from_millis(500), Duration::from_secs(1));
        tuning.upstream.retry_after_max = Duration::from_secs(1);
    };
    let (scene, blob) = limited_in_the_middle(short).await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!(scene.hub.bytes_of(&blob.digest), blob.len(), "no byte twice:\n{}", scene.hub.story());
    assert_eq!(scene.hub.gets_of(&blob.digest), 3, "cut, limited, resumed:\n{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_limit_in_the_middle_of_a_body_is_not_waited_for_for_ever_and_ends_without_a_lie() {
    let (scene, blob) = limited_in_the_middle(|tuning| tuning.fill.limited = Duration::from_secs(29)).await;
    let fetched = scene.get(&blob).fetch().await;
    assert!(!fetched.is_whole() && fetched.len <= 500_000, "{fetched:?}");
    assert_limited(&scene.get(&blob).send().await);
    assert_eq!(scene.hub.gets_of(&blob.digest), 2, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_limit_of_one_endpoint_in_the_middle_of_a_body_sends_to_the_other() {
    let (first, second) = (Registry::plain().await, Registry::plain().await);
    let mirror = mirror::Builder::new().upstream("docker.io", &first).upstream("docker.io", &second).tune(quick).start();
    let scene = Scene { hub: first, mirror };
    let blob = scene.push(1, 1 << 20);
    second.blob(REPO, &blob);
    scene.hub.on(Kind::Blob.of(blob.digest), Fault::cut(500_000).once());
    scene.hub.on(Kind::Blob.of(blob.digest), Fault::too_many(Some(60)));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!((scene.hub.bytes_of(&blob.digest), second.bytes_of(&blob.digest)), (500_000, blob.len() - 500_000));
    scene.is_sound().await;
}

#[tokio::test]
async fn a_token_service_that_limits_is_left_alone() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    scene.hub.image("library/alpine", "latest", Image::layers([10]));
    scene.hub.on(Kind::Token, Fault::too_many(Some(30)));
    for _ in 0..3 {
        assert_limited(&crate::support::client::get(scene.mirror.manifest("library/alpine", "latest")).send().await);
    }
    assert_eq!(scene.hub.count(Kind::Token), 2, "that of the held image, and the one that was limited:\n{}", scene.hub.story());
    scene.serves_what_it_holds(&held, "held").await;
    scene.is_sound().await;
}
