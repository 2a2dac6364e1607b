use millpond::oci::Digest;

use super::forgetful;
use crate::support::client::head;
use crate::support::registry::{DigestHeader, Fault, Image, Kind, OCI_INDEX, OCI_MANIFEST, Registry};
use crate::support::scene::{REPO, Scene, assert_refused};

/// The largest manifest there is.
const MAX: usize = 4 << 20;

/// A manifest that is refused, by tag and by digest, asked for anew each time, and of which nothing is kept.
async fn is_refused(scene: &Scene, digest: &Digest, tag: &str) {
    for reference in [tag.to_owned(), digest.to_string()] {
        for _ in 0..2 {
            assert_refused(&scene.manifest(&reference).send().await, 502);
        }
    }
    scene.is_sound().await;
    // What went well before may still be on its way to the disk; this one never is.
    let held = scene.mirror.settings().audit().blobs;
    assert!(!held.contains(digest), "{digest} is held");
}

#[tokio::test]
async fn a_manifest_of_other_bytes_is_refused() {
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(forgetful));
    let held = scene.hold("held").await;
    for (seed, fault) in (1..).zip([Fault::flip(3), Fault::other_bytes(), Fault::short(20), Fault::longer_by(1)]) {
        let tag = format!("wrong-{seed}");
        let image = scene.hub.image(REPO, &tag, Image::layers([10]).seed(seed));
        scene.hub.on(Kind::Manifest.of(image.digest).get(), fault);
        is_refused(&scene, &image.digest, &tag).await;
        assert_eq!(scene.verify_failures().await, 4 * seed);
        scene.serves_what_it_holds(&held, "held").await;
        scene.hub.heal();
        for reference in [tag, image.digest.to_string()] {
            let reply = scene.manifest(reference).send().await;
            assert_eq!((reply.status, reply.body), (200, image.manifest.clone()));
        }
    }
}

#[tokio::test]
async fn a_manifest_that_can_be_read_in_two_ways_is_refused() {
    let scene = Scene::new().await;
    let both = [
        ("both", OCI_MANIFEST, r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#),
        ("twice", OCI_MANIFEST, r#"{"schemaVersion":2,"layers":[],"layers":[]}"#),
        ("typed", OCI_MANIFEST, r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#),
        ("index", OCI_INDEX, r#"{"schemaVersion":2,"layers":[]}"#),
        ("one", OCI_MANIFEST, r#"{"schemaVersion":1,"layers":[]}"#),
        ("json", OCI_MANIFEST, "{"),
        ("list", OCI_MANIFEST, "[]"),
        ("none", OCI_MANIFEST, ""),
    ];
    for (tag, media_type, text) in both {
        let pushed = scene.hub.manifest(REPO, tag, media_type, text);
        is_refused(&scene, &pushed.digest, tag).await;
    }
}

#[tokio::test]
async fn a_page_in_place_of_a_manifest_is_refused() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    for fault in [Fault::html(), Fault::gzipped(), Fault::none().header("Content-Type", OCI_INDEX)] {
        scene.hub.on(Kind::Manifest.of(image.digest).get(), fault);
        is_refused(&scene, &image.digest, "latest").await;
        scene.hub.heal();
    }
    assert_eq!(scene.manifest("latest").send().await.body, image.manifest);
}

#[tokio::test]
async fn a_manifest_may_have_four_mebibytes_and_no_byte_more() {
    let scene = Scene::new().await;
    let largest = scene.hub.image(REPO, "largest", Image::layers([10]).padded_to(MAX));
    let reply = scene.manifest("largest").send().await;
    assert_eq!((reply.status, reply.body), (200, largest.manifest));
    for fault in [Fault::none(), Fault::chunked()] {
        let larger = scene.hub.image(REPO, "larger", Image::layers([10]).padded_to(MAX + 1));
        scene.hub.on(Kind::Manifest.of(larger.digest).get(), fault);
        is_refused(&scene, &larger.digest, "larger").await;
    }
}

#[tokio::test]
async fn a_digest_header_that_lies_is_held_against_the_bytes() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    scene.hub.quirks(|quirks| quirks.digest_header = DigestHeader::Wrong);
    assert_refused(&scene.manifest("latest").send().await, 502);
    scene.is_sound().await;
    scene.mirror.settings().audit().assert_holds([]);
    for garbage in ["sha256:abc", "", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
        scene.hub.on(Kind::Manifest.of("latest").get(), Fault::none().header("Docker-Content-Digest", garbage).once());
        assert_refused(&scene.manifest("latest").send().await, 502);
    }
    // By digest it is the bytes that answer, whatever the header says.
    assert_eq!(scene.manifest(image.digest).send().await.body, image.manifest);
    scene.hub.quirks(|quirks| quirks.digest_header = DigestHeader::Missing);
    let reply = scene.manifest("latest").send().await;
    assert_eq!((reply.header("docker-content-digest"), &reply.body), (Some(image.digest.to_string().as_str()), &image.manifest));
}

#[tokio::test]
async fn a_head_that_lies_makes_no_tag() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    let other = scene.hub.push_untagged(REPO, Image::layers([10]).seed(2));
    let said = other.digest.to_string();
    scene.hub.on(Kind::Manifest.of("latest").head(), Fault::none().header("Docker-Content-Digest", &said));
    assert_eq!(head(scene.mirror.manifest(REPO, "latest")).send().await.header("docker-content-digest"), Some(said.as_str()));
    scene.hub.on(Kind::Manifest.of(other.digest).get(), Fault::other_bytes());
    assert_refused(&scene.manifest("latest").send().await, 502);
    scene.is_sound().await;
    scene.mirror.settings().audit().assert_holds([]);
    assert_eq!(scene.manifest(image.digest).send().await.status, 200);
}

#[tokio::test]
async fn a_manifest_that_breaks_off_is_asked_for_again() {
    let scene = Scene::new().await;
    scene.hold("held").await;
    for (seed, fault) in (1..).zip([Fault::cut(0), Fault::cut(50), Fault::reset(50), Fault::hang_up(), Fault::cut(50).in_chunks()]) {
        let image = scene.hub.push_untagged(REPO, Image::layers([10]).seed(seed));
        scene.hub.on(Kind::Manifest.of(image.digest), fault.once());
        assert_eq!(scene.manifest(image.digest).send().await.body, image.manifest);
        assert_eq!(scene.hub.gets_of(&image.digest), 2, "{}", scene.hub.story());
    }
    scene.is_sound().await;
}
