use futures_util::future::join_all;

use super::{forgetful, offsets, once};
use crate::support::MIB;
use crate::support::gate::Gate;
use crate::support::mirror;
use crate::support::patience::within;
use crate::support::registry::{Blob, Fault, Image, Kind, Registry};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole, quick};

const LEN: u64 = MIB;
/// What is held back until the whole is verified.
const TAIL: u64 = 64 << 10;

/// Several clients of a blob that comes wrong once: none may take what it gets for whole, nothing is kept, and the next
/// client gets it anew.
async fn comes_wrong(scene: &Scene, blob: &Blob, fault: Fault) {
    let gate = Gate::closed();
    once(scene, blob, fault.clone().then_stall(1000, &gate));
    let streams = join_all((0..4).map(|_| scene.get(blob).stream())).await;
    gate.open();
    for stream in streams {
        let fetched = within("the end of a wrong body", stream.hash()).await;
        // Where no length was announced, the tail is that of what came.
        assert!(!fetched.is_whole() && fetched.len <= LEN + 10 - TAIL, "{fault:?}: {fetched:?}");
    }
    scene.is_sound().await;
    assert!(!scene.mirror.settings().audit().blobs.contains(&blob.digest), "{fault:?}");
    assert_whole(&scene.get(blob).fetch().await, blob);
}

#[tokio::test]
async fn a_wrong_byte_anywhere_is_never_handed_over_as_whole() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let faults = [Fault::flip(0), Fault::flip(LEN / 2), Fault::flip(LEN - 500), Fault::flip(LEN - 1), Fault::other_bytes()];
    for (seed, fault) in (1..).zip(faults) {
        let blob = scene.push(seed, LEN);
        comes_wrong(&scene, &blob, fault).await;
        assert_eq!(scene.hub.gets_of(&blob.digest), 2, "once wrong, once right:\n{}", scene.hub.story());
        assert_eq!(scene.verify_failures().await, seed);
        scene.serves_what_it_holds(&held, "held").await;
    }
}

#[tokio::test]
async fn a_length_that_lies_is_never_believed() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let faults = [
        Fault::short(LEN / 2),
        Fault::short(LEN - 1),
        Fault::announces(LEN - 1),
        Fault::longer_by(10),
        Fault::short(LEN - 1).in_chunks(),
        Fault::longer_by(10).in_chunks(),
    ];
    for (seed, fault) in (1..).zip(faults) {
        let blob = scene.push(seed, LEN);
        comes_wrong(&scene, &blob, fault).await;
        scene.serves_what_it_holds(&held, "held").await;
    }
}

#[tokio::test]
async fn a_length_that_promises_too_much_costs_its_client_the_end_and_nobody_a_second_fetch() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let blob = scene.push(1, LEN);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::announces(LEN + 1));
    let fetched = scene.get(&blob).fetch().await;
    assert!(!fetched.is_whole() && fetched.len <= LEN, "{fetched:?}");
    scene.is_sound().await;
    assert_eq!((offsets(&scene, &blob), scene.verify_failures().await), (vec![0], 0), "{}", scene.hub.story());
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!(scene.hub.gets_of(&blob.digest), 1, "what came was the blob");
    scene.serves_what_it_holds(&held, "held").await;
}

/// A scene with an image whose manifest was pulled, so that the sizes of its layers are known; and its first layer.
async fn scene_with_manifest(len: u64) -> (Scene, Blob) {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([len]).seed(5));
    assert_eq!(scene.manifest("latest").send().await.status, 200);
    (scene, image.layers[0].clone())
}

#[tokio::test]
async fn a_length_that_a_manifest_contradicts_is_seen_through() {
    let lies = [
        Fault::short(LEN / 2),
        Fault::announces(LEN - 1),
        Fault::announces(LEN + 1),
        Fault::short(LEN / 2).in_chunks(),
        Fault::until_close().then_cut(LEN / 2),
        Fault::html(),
    ];
    for len in [LEN, 1000] {
        for fault in lies.clone() {
            let (scene, blob) = scene_with_manifest(len).await;
            // As a proxy that stays broken for a while: for the whole body, and not for its parts.
            scene.hub.on(scene.hub.body_of(&blob.digest).ranged(false), fault.clone().times(1));
            let fetched = scene.get(&blob).fetch().await;
            assert_whole(&fetched, &blob);
            assert!(offsets(&scene, &blob).len() <= 3, "{fault:?}:\n{}", scene.hub.story());
            scene.is_sound().await;
            assert_whole(&scene.get(&blob).fetch().await, &blob);
        }
    }
}

/// Two endpoints with the same blob, of which the first sends something else for it, always.
async fn two_endpoints(len: u64) -> (Scene, Registry, Blob) {
    let (first, second) = (Registry::plain().await, Registry::plain().await);
    let mirror = mirror::Builder::new().upstream("docker.io", &first).upstream("docker.io", &second).tune(quick).start();
    let scene = Scene { hub: first, mirror };
    let blob = scene.push(1, len);
    second.blob(REPO, &blob);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::flip(5));
    (scene, second, blob)
}

#[tokio::test]
async fn a_small_blob_that_one_endpoint_has_wrong_comes_from_another_unseen() {
    let (scene, second, blob) = two_endpoints(1000).await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!((scene.hub.gets_of(&blob.digest), second.gets_of(&blob.digest), scene.verify_failures().await), (1, 1, 1));
    scene.is_sound().await;
}

#[tokio::test]
async fn a_large_blob_that_one_endpoint_has_wrong_comes_from_another_the_next_time() {
    let (scene, second, blob) = two_endpoints(LEN).await;
    let fetched = scene.get(&blob).fetch().await;
    assert!(!fetched.is_whole() && fetched.len <= LEN - TAIL, "{fetched:?}");
    scene.is_sound().await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!((scene.hub.gets_of(&blob.digest), second.gets_of(&blob.digest), scene.verify_failures().await), (1, 1, 1));
    let other = scene.push(2, 1000);
    second.blob(REPO, &other);
    assert_whole(&scene.get(&other).fetch().await, &other);
    assert_eq!(second.gets_of(&other.digest), 0, "for other blobs the first is as good as ever");
    scene.is_sound().await;
}

#[tokio::test]
async fn a_small_blob_that_comes_wrong_once_is_fetched_again_unseen() {
    let scene = Scene::new().await;
    for (seed, fault) in (1..).zip([Fault::flip(0), Fault::flip(999), Fault::short(999), Fault::html(), Fault::other_bytes().in_chunks()]) {
        let blob = scene.push(seed, 1000);
        once(&scene, &blob, fault.clone());
        let fetched = scene.get(&blob).fetch().await;
        // The length that was announced cannot be taken back: with another one the body can only be broken off.
        if fetched.is_whole() {
            assert_whole(&fetched, &blob);
        }
        assert!(fetched.is_whole() || fetched.len == 0, "{fault:?}: {fetched:?}");
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        assert_eq!(scene.hub.gets_of(&blob.digest), 2 + usize::from(!fetched.is_whole()), "{fault:?}:\n{}", scene.hub.story());
        assert_eq!(scene.verify_failures().await, seed);
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn a_blob_that_is_always_wrong_is_asked_for_twice_and_not_for_ever() {
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(forgetful));
    let held = scene.hold("held").await;
    for (seed, fault) in (1..).zip([Fault::flip(5), Fault::other_bytes(), Fault::html()]) {
        let blob = scene.push(seed, 1000);
        scene.hub.on(scene.hub.body_of(&blob.digest), fault.clone());
        let fetched = scene.get(&blob).fetch().await;
        assert!(!fetched.is_whole() && fetched.len == 0, "{fault:?}: {fetched:?}");
        assert!(offsets(&scene, &blob).len() <= 2, "{fault:?}:\n{}", scene.hub.story());
        scene.is_sound().await;
        scene.serves_what_it_holds(&held, "held").await;
        scene.hub.heal();
        assert_whole(&scene.get(&blob).fetch().await, &blob);
    }
}

#[tokio::test]
async fn an_encoded_body_is_refused() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let blob = scene.push(1, LEN);
    once(&scene, &blob, Fault::gzipped());
    assert_refused(&scene.get(&blob).send().await, 502);
    scene.is_sound().await;
    scene.serves_what_it_holds(&held, "held").await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    let accepted: Vec<_> = scene.hub.matching(Kind::Cdn).iter().map(|record| record.header("accept-encoding").map(str::to_owned)).collect();
    assert!(accepted.iter().all(|encodings| encodings.as_deref().is_none_or(|text| text == "identity")), "{accepted:?}");
}

#[tokio::test]
async fn a_resumed_body_of_other_bytes_is_never_whole() {
    let scene = Scene::new().await;
    let blob = scene.push(1, LEN);
    once(&scene, &blob, Fault::cut(LEN / 2));
    once(&scene, &blob, Fault::other_bytes());
    let fetched = scene.get(&blob).fetch().await;
    assert!(!fetched.is_whole() && fetched.len <= LEN - TAIL, "{fetched:?}");
    assert_eq!((offsets(&scene, &blob), scene.verify_failures().await), (vec![0, LEN / 2], 1));
    scene.is_sound().await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
}

#[tokio::test]
async fn the_blob_of_no_bytes_is_a_blob() {
    let scene = Scene::new().await;
    let empty = Blob::empty();
    scene.hub.blob(REPO, &empty);
    for _ in 0..2 {
        assert_whole(&scene.get(&empty).fetch().await, &empty);
    }
    scene.is_sound().await;
    assert_eq!(scene.hub.gets_of(&empty.digest), 1);
}
