use std::fs::{self, OpenOptions};

use crate::support::client::{Reply, head};
use crate::support::registry::{Fault, Image, Kind};
use crate::support::scene::{REPO, Scene, assert_whole};

const LEN: u64 = 300_000;

/// What a HEAD says: its status, its length, and whether it came from what is held.
fn told(reply: &Reply) -> (u16, Option<u64>, bool) {
    let length = reply.header("content-length").map(|text| text.parse().unwrap());
    (reply.status, length, reply.header("cache-status") == Some("millpond; hit"))
}

#[tokio::test]
async fn a_file_that_changed_since_it_was_verified_tells_no_size() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([LEN]));
    let named = image.layers[0].clone();
    crate::support::client::pull(&scene.mirror.url(), REPO, "latest").await.unwrap();
    let unnamed = scene.push(99, LEN);
    assert_whole(&scene.get(&unnamed).fetch().await, &unnamed);
    for blob in [&named, &unnamed] {
        assert_eq!(told(&head(scene.url(blob)).send().await), (200, Some(LEN), true));
    }

    // The files are as they were, but nobody knows it any more; a manifest's word and the file agree.
    let scene = scene.restart(without_index).await;
    assert_eq!(told(&head(scene.url(&named)).send().await), (200, Some(LEN), true));
    assert_eq!(told(&head(scene.url(&unnamed)).send().await), (200, Some(LEN), false));

    for size in [LEN / 2, LEN + 1, 0, 100] {
        let scene = &scene;
        for blob in [&named, &unnamed] {
            let hex = blob.digest.hex();
            let file = scene.mirror.settings().data().join("blobs/sha256").join(&hex[..2]).join(hex);
            OpenOptions::new().write(true).open(file).unwrap().set_len(size).unwrap();
            assert_eq!(told(&head(scene.url(blob)).send().await), (200, Some(LEN), false), "{size}");
            scene.hub.down().await;
            assert_eq!(told(&head(scene.url(blob)).send().await).0, 503, "{size}: nobody knows");
            scene.hub.up().await;
            assert_whole(&scene.get(blob).fetch().await, blob);
            assert_eq!(told(&head(scene.url(blob)).send().await), (200, Some(LEN), true));
            scene.mirror.settled().await;
        }
    }
}

fn without_index(builder: crate::support::mirror::Builder) -> crate::support::mirror::Builder {
    fs::remove_dir_all(builder.data().join("index")).unwrap();
    builder
}

#[tokio::test]
async fn an_upstream_whose_head_lies_about_the_length_is_held_to_its_get() {
    let scene = Scene::new().await;
    for (seed, fault) in (1..).zip([Fault::none().header("Content-Length", "5"), Fault::chunked(), Fault::until_close()]) {
        let blob = scene.push(seed, LEN);
        for kind in [Kind::Blob, Kind::Cdn] {
            scene.hub.on(kind.of(blob.digest).head(), fault.clone());
        }
        assert_eq!(head(scene.url(&blob)).send().await.status, 200, "{fault:?}");
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        scene.mirror.settled().await;
        assert_eq!(told(&head(scene.url(&blob)).send().await), (200, Some(LEN), true), "{fault:?}");
    }
    scene.is_sound().await;
}
