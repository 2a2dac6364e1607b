//! What is wrong wherever it is asked for, again and again, and clients that try again and again.

use std::time::Duration;

use futures_util::future::join_all;
use millpond::serve::Tuning;

use super::once;
use crate::support::MIB;
use crate::support::client::get;
use crate::support::patience::within;
use crate::support::registry::{Blob, Fault, Image, Kind, Registry};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole, quick};

const LEN: u64 = MIB;

/// Waits that no test outlasts.
fn long(tuning: &mut Tuning) {
    quick(tuning);
    tuning.fill.refuted = Duration::from_secs(3_600);
    tuning.fill.refuted_max = Duration::from_secs(3_600);
}

/// A crowd that tries again and again gets a wrong body never, and a quick refusal in the end.
async fn crowd(scene: &Scene, blob: &Blob) {
    for _ in 0..5 {
        for fetched in join_all((0..8).map(|_| scene.get(blob).fetch())).await {
            assert!(!fetched.is_whole() || fetched.status == 502, "{fetched:?}");
        }
    }
    let refused = scene.get(blob).send().await;
    assert_refused(&refused, 502);
    let wait: u64 = refused.header("retry-after").expect("it says when").parse().unwrap();
    assert!((1..=3_600).contains(&wait), "{wait}");
}

#[tokio::test]
async fn a_blob_that_is_always_wrong_costs_a_crowd_that_tries_again_two_transfers() {
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(long));
    let held = scene.hold("held").await;
    for (seed, len) in [(1, LEN), (2, 1000)] {
        let blob = scene.push(seed, len);
        scene.hub.on(scene.hub.body_of(&blob.digest), Fault::flip(5));
        crowd(&scene, &blob).await;
        assert_eq!(scene.hub.gets_of(&blob.digest), 2, "{}", scene.hub.story());
        assert!(scene.hub.bytes_of(&blob.digest) <= 2 * len);
        // It is that blob of that repository: nothing else is kept back.
        assert_whole(&scene.get(&scene.push(10 + seed, len)).fetch().await, &Blob::seeded(10 + seed, len));
        let elsewhere = get(scene.mirror.blob("library/other", blob.digest)).send().await;
        assert_refused(&elsewhere, 404);
    }
    scene.serves_what_it_holds(&held, "held").await;
    scene.is_sound().await;
}

#[tokio::test]
async fn a_blob_that_is_wrong_at_one_endpoint_while_the_other_is_down_costs_three() {
    let (first, second) = (Registry::plain().await, Registry::plain().await);
    let mirror = crate::support::mirror::Builder::new().upstream("docker.io", &first).upstream("docker.io", &second).tune(long).start();
    let scene = Scene { hub: first, mirror };
    let blob = scene.push(1, LEN);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::flip(5));
    second.down().await;
    crowd(&scene, &blob).await;
    assert_eq!(scene.hub.gets_of(&blob.digest), 3, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn what_is_mended_is_asked_for_again_and_then_as_good_as_any() {
    let brief = |tuning: &mut Tuning| tuning.fill.refuted = Duration::from_millis(50);
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(brief));
    let blob = scene.push(1, 1000);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::flip(5));
    while scene.get(&blob).send().await.header("retry-after").is_none() {}
    scene.hub.heal();
    within("the mended blob", async { while scene.get(&blob).fetch().await.status != 200 {} }).await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_manifest_that_is_always_wrong_is_asked_for_twice_by_tag_and_by_digest() {
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(long));
    let image = scene.hub.image(REPO, "wrong", Image::layers([10]).seed(1));
    scene.hub.on(Kind::Manifest.of(image.digest).get(), Fault::flip(3));
    for reference in ["wrong".to_owned(), image.digest.to_string()] {
        let before = scene.verify_failures().await;
        for turn in 0..6 {
            let reply = scene.manifest(&reference).send().await;
            assert_refused(&reply, 502);
            assert_eq!(reply.header("retry-after").is_some(), turn > 1, "{reply:?}");
        }
        assert_eq!(scene.verify_failures().await - before, 2, "{}", scene.hub.story());
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn one_wrong_body_is_an_accident() {
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(long));
    for seed in 1..4 {
        let blob = scene.push(seed, LEN);
        once(&scene, &blob, Fault::flip(5));
        assert!(!scene.get(&blob).fetch().await.is_whole());
        scene.is_sound().await;
        assert_whole(&scene.get(&blob).fetch().await, &blob);
    }
}
