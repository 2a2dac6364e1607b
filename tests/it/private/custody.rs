use std::fs;
use std::path::PathBuf;

use super::{PUBLIC, SECRET, all_of, bob, is_invisible_in, is_visible, scene};
use crate::support::client::{Ask, get, head, pull, pull_with};
use crate::support::gate::Gate;
use crate::support::mirror::Builder;
use crate::support::registry::{self, Blob, Fault, Image, Kind, OCI_MANIFEST, Pushed, Registry, Want};
use crate::support::scene::{Scene, assert_refused, assert_whole};

/// Another registry's repository.
const ELSEWHERE: &str = "team/elsewhere";

/// A manifest that names whatever digests one has heard of.
fn naming<'a>(blobs: impl IntoIterator<Item = (&'a millpond::oci::Digest, u64)>) -> String {
    let descriptor = |(digest, size): (&millpond::oci::Digest, u64)| serde_json::json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest.to_string(), "size": size });
    let layers = blobs.into_iter().map(descriptor).collect::<Vec<_>>();
    let config = layers[0].clone();
    serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers }).to_string()
}

/// Every content of an image, its manifest included.
fn contents(image: &Pushed) -> Vec<(millpond::oci::Digest, u64)> {
    let manifest = (image.digest, image.manifest.len() as u64);
    image.blobs().map(|blob| (blob.digest, blob.len())).chain([manifest]).collect()
}

/// Whatever way a content is asked for in a repository of `base`, it is not given.
async fn is_not_given(scene: &Scene, base: &str, repository: &str, image: &Pushed, dress: impl Fn(Ask) -> Ask) {
    for (digest, size) in contents(image) {
        let url = format!("{base}/v2/{repository}/blobs/{digest}");
        for ask in [
            get(&url),
            head(&url),
            get(&url).range(0, 0),
            get(&url).range(size - 1, None),
            get(&url).header("If-None-Match", &format!("\"{digest}\"")),
        ] {
            let what = format!("{ask:?}");
            let reply = dress(ask).send().await;
            assert!([404, 502, 503].contains(&reply.status), "{what}: {reply:?}\n{}", scene.hub.story());
        }
    }
}

fn file(scene: &Scene, path: &str) -> PathBuf {
    scene.mirror.settings().data().join("repos").join(path)
}

fn mark(scene: &Scene, blob: &millpond::oci::Digest) -> PathBuf {
    file(scene, &format!("_withheld/{}/{}", blob.algorithm().as_str(), blob.hex()))
}

#[tokio::test]
async fn what_was_got_with_a_login_stays_private_when_the_login_is_gone() {
    let (scene, secret, public) = scene(|builder| builder).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    scene.is_sound().await;
    let scene = scene.restart(|builder| builder.no_login("docker.io")).await;
    is_invisible_in(&scene, SECRET, &secret).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    // Nor while nobody can be asked, nor without the index, nor when nobody is to be asked.
    scene.hub.down().await;
    is_invisible_in(&scene, SECRET, &secret).await;
    let scene = scene.restart(|builder| {
        fs::remove_dir_all(builder.data().join("index")).unwrap();
        builder
    });
    let scene = scene.await;
    is_invisible_in(&scene, SECRET, &secret).await;
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    let scene = scene.restart(Builder::offline).await;
    is_invisible_in(&scene, SECRET, &secret).await;
    assert_eq!(pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap().digest, public.digest);
    assert_eq!(pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap().digest, secret.digest);
    // The operator may say otherwise.
    let scene = scene.restart(|builder| builder.private_to_anyone("docker.io")).await;
    assert_eq!(pull(&scene.mirror.url(), SECRET, "latest").await.unwrap().digest, secret.digest);
}

#[tokio::test]
async fn what_was_got_with_a_login_is_everybodys_once_a_stranger_is_shown_it() {
    let (scene, secret, _) = scene(|builder| builder).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    scene.is_sound().await;
    let scene = scene.restart(|builder| builder.no_login("docker.io")).await;
    is_invisible_in(&scene, SECRET, &secret).await;
    scene.hub.public(SECRET);
    let scene = scene.restart(|builder| builder).await;
    scene.hub.forget();
    is_visible(&scene.mirror.url(), SECRET, &secret, |ask| ask).await;
    assert_eq!(scene.hub.count(Kind::Blob.get()), 0, "{}", scene.hub.story());
    let scene = scene.restart(Builder::offline).await;
    pull(&scene.mirror.url(), SECRET, "latest").await.unwrap();
}

#[tokio::test]
async fn what_was_shared_by_the_operator_is_private_when_that_is_taken_back() {
    let (scene, secret, _) = scene(|builder| builder.private_to_anyone("docker.io")).await;
    pull(&scene.mirror.url(), SECRET, "latest").await.unwrap();
    scene.is_sound().await;
    let back = |builder: Builder| builder.set("upstreams.\"docker.io\"", "private", "\"authenticated\"").no_login("docker.io");
    let scene = scene.restart(back).await;
    is_invisible_in(&scene, SECRET, &secret).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
}

#[tokio::test]
async fn it_is_on_the_disk_that_it_is_private_before_anybody_has_a_byte() {
    let (scene, secret, _) = scene(|builder| builder).await;
    assert_eq!(bob(get(scene.mirror.manifest(SECRET, "latest"))).send().await.status, 200);
    let visibility = file(&scene, &format!("docker.io/{SECRET}/_visibility"));
    assert_eq!(fs::read_to_string(&visibility).unwrap(), "\"private\"");
    assert_eq!(fs::read_to_string(mark(&scene, &secret.digest)).unwrap(), "[\"docker.io\"]");
    let (layer, gate) = (&secret.layers[0], Gate::closed());
    scene.hub.on(scene.hub.body_of(&layer.digest), Fault::stall(1, &gate));
    let mut stream = bob(get(scene.mirror.blob(SECRET, layer.digest))).stream().await;
    stream.at_least(1).await;
    assert_eq!(fs::read_to_string(mark(&scene, &layer.digest)).unwrap(), "[]", "nobody has delivered it yet");
    gate.open();
    assert!(stream.rest().await.is_whole());
    assert_eq!(fs::read_to_string(mark(&scene, &layer.digest)).unwrap(), "[\"docker.io\"]");
    scene.is_sound().await;
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_nothing_private_without_its_mark() {
    let (scene, secret, _) = scene(|builder| builder).await;
    let hub = scene.hub;
    let mut settings = scene.mirror.stop().await;
    // A pull is ten requests: killed at the arrival of each, and when its client has everything.
    for requests in 1..=11 {
        let _ = fs::remove_dir_all(settings.data());
        let program = settings.spawn().await;
        let url = program.url();
        hub.forget();
        let mut client = tokio::spawn(async move { drop(pull_with(&url, SECRET, "latest", bob).await) });
        if requests <= 10 {
            hub.asked(requests, Want::any()).await;
        } else {
            client.await.unwrap();
            client = tokio::spawn(async {});
        }
        settings = program.kill().await;
        client.await.unwrap();
        for blob in &settings.audit().assert_sound().blobs {
            let marked = settings.data().join("repos/_withheld").join(blob.algorithm().as_str()).join(blob.hex());
            assert!(marked.exists(), "{blob} after {requests} requests");
        }
        let without = settings.clone().no_login("docker.io").offline();
        for blob in settings.audit().assert_sound().blobs.clone() {
            let marked = settings.data().join("repos/_withheld").join(blob.algorithm().as_str()).join(blob.hex());
            assert!(marked.exists(), "{blob} after {requests} requests");
        }
        let program = without.spawn().await;
        for ask in all_of(&program.url(), SECRET, &secret) {
            let what = format!("{ask:?}");
            assert!([404, 503].contains(&ask.send().await.status), "{what} after {requests} requests");
        }
        program.terminate().await;
    }
}

#[tokio::test]
async fn that_something_does_not_exist_proves_nothing_of_the_repository() {
    let (scene, _, public) = scene(|builder| builder).await;
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    scene.is_sound().await;
    // Nothing is remembered: whether the repository is public is asked with what does not exist.
    let scene = scene.restart(|builder| builder).await;
    let nothing = registry::Tree::from(Image::layers([300_000]).seed(99)).build();
    for ask in all_of(&scene.mirror.url(), PUBLIC, &nothing).into_iter().filter(|ask| !format!("{ask:?}").contains("latest")) {
        assert!([200, 404].contains(&ask.send().await.status));
    }
    let scene = scene.restart(|builder| builder).await;
    assert_eq!(get(scene.mirror.manifest(PUBLIC, "absent")).send().await.status, 404);
    let scene = scene.restart(Builder::offline).await;
    assert_eq!(pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap().digest, public.digest);
}

#[tokio::test]
async fn a_name_in_a_manifest_gives_nothing_private() {
    let (scene, secret, _) = scene(|builder| builder).await;
    let named = contents(&secret);
    scene.hub.manifest(PUBLIC, "evil", OCI_MANIFEST, naming(named.iter().map(|(digest, size)| (digest, *size))));
    let base = scene.mirror.url();
    let evil = scene.mirror.manifest(PUBLIC, "evil");
    assert_eq!(get(&evil).send().await.status, 200);
    is_not_given(&scene, &base, PUBLIC, &secret, |ask| ask).await;
    // While it arrives, when it is held, after a restart, and when nobody can be asked.
    let (layer, gate) = (&secret.layers[0], Gate::closed());
    assert_eq!(bob(get(scene.mirror.manifest(SECRET, "latest"))).send().await.status, 200);
    scene.hub.on(scene.hub.body_of(&layer.digest), Fault::stall(200_000, &gate));
    let mut stream = bob(get(scene.mirror.blob(SECRET, layer.digest))).stream().await;
    stream.at_least(200_000).await;
    is_not_given(&scene, &base, PUBLIC, &secret, |ask| ask).await;
    gate.open();
    assert!(stream.rest().await.is_whole());
    pull_with(&base, SECRET, "latest", bob).await.unwrap();
    is_not_given(&scene, &base, PUBLIC, &secret, |ask| ask).await;
    is_not_given(&scene, &base, PUBLIC, &secret, bob).await;
    scene.is_sound().await;
    let scene = scene.restart(|builder| builder).await;
    let base = scene.mirror.url();
    assert_eq!(get(scene.mirror.manifest(PUBLIC, "evil")).send().await.status, 200);
    is_not_given(&scene, &base, PUBLIC, &secret, |ask| ask).await;
    scene.hub.down().await;
    is_not_given(&scene, &base, PUBLIC, &secret, |ask| ask).await;
    let scene = scene.restart(Builder::offline).await;
    let base = scene.mirror.url();
    is_not_given(&scene, &base, PUBLIC, &secret, |ask| ask).await;
    pull_with(&base, SECRET, "latest", bob).await.unwrap();
}

#[tokio::test]
async fn a_blob_that_the_registry_shows_there_too_is_shown_for_one_question() {
    let (scene, secret, _) = scene(|builder| builder).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    let layer = &secret.layers[0];
    scene.hub.blob(PUBLIC, layer);
    scene.hub.manifest(PUBLIC, "also", OCI_MANIFEST, naming([(&layer.digest, layer.len())]));
    assert_eq!(get(scene.mirror.manifest(PUBLIC, "also")).send().await.status, 200);
    for _ in 0..3 {
        assert_whole(&get(scene.mirror.blob(PUBLIC, layer.digest)).fetch().await, layer);
    }
    assert_eq!(scene.hub.count(Kind::Blob.head().of(layer.digest).within(PUBLIC)), 1, "{}", scene.hub.story());
    assert_eq!(scene.hub.gets_of(&layer.digest), 1, "{}", scene.hub.story());
    // What anybody may have there is no secret elsewhere; where it came from stays private all the same.
    assert!(!mark(&scene, &layer.digest).exists());
    assert_refused(&get(scene.mirror.blob(SECRET, layer.digest)).send().await, 404);
    scene.is_sound().await;
    let scene = scene.restart(Builder::offline).await;
    assert_whole(&get(scene.mirror.blob(PUBLIC, layer.digest)).fetch().await, layer);
    assert_refused(&get(scene.mirror.blob(SECRET, layer.digest)).send().await, 404);
}

/// The scene, and another registry that its operator configured too: `quay.io`, without a login.
async fn with_another() -> (Scene, Pushed, Registry, String) {
    let other = Registry::plain().await;
    let (scene, secret, _) = scene(|builder| builder.upstream("quay.io", &other)).await;
    let base = format!("{}/quay.io", scene.mirror.url());
    (scene, secret, other, base)
}

#[tokio::test]
async fn a_registry_gets_nothing_of_another_by_claiming_it() {
    let (scene, secret, evil, base) = with_another().await;
    let named = contents(&secret);
    evil.manifest(ELSEWHERE, "evil", OCI_MANIFEST, naming(named.iter().map(|(digest, size)| (digest, *size))));
    // It says yes to whatever it is asked, and sends something of the right size.
    for (digest, size) in &named {
        let noise = Blob::seeded(7, *size).content.to_bytes();
        evil.on(Kind::Blob.of(digest), Fault::status(200).header("Content-Type", "application/octet-stream").body(noise));
    }
    let evil_manifest = format!("{base}/v2/{ELSEWHERE}/manifests/evil");
    // It tries before anything is held, too: what it said then must not count later.
    assert_eq!(get(&evil_manifest).send().await.status, 200);
    for (digest, _) in &named {
        assert_eq!(head(format!("{base}/v2/{ELSEWHERE}/blobs/{digest}")).send().await.status, 200);
        assert!(!get(format!("{base}/v2/{ELSEWHERE}/blobs/{digest}")).send().await.is_whole());
    }
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    assert_eq!(get(&evil_manifest).send().await.status, 200);
    for round in 0..2 {
        for (digest, _) in &named {
            let url = format!("{base}/v2/{ELSEWHERE}/blobs/{digest}");
            for ask in [get(&url), get(&url).range(0, 9), bob(get(&url))] {
                let reply = ask.send().await;
                assert!([404, 502].contains(&reply.status), "round {round}: {reply:?}");
            }
        }
    }
    scene.is_sound().await;
    let scene = scene.restart(Builder::offline).await;
    is_not_given(&scene, &format!("{}/quay.io", scene.mirror.url()), ELSEWHERE, &secret, |ask| ask).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_has_it_too_shows_so_once() {
    let (scene, secret, other, base) = with_another().await;
    let layer = &secret.layers[0];
    other.blob(ELSEWHERE, layer);
    other.manifest(ELSEWHERE, "also", OCI_MANIFEST, naming([(&layer.digest, layer.len())]));
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    assert_eq!(get(format!("{base}/v2/{ELSEWHERE}/manifests/also")).send().await.status, 200);
    let url = format!("{base}/v2/{ELSEWHERE}/blobs/{}", layer.digest);
    let clients: Vec<_> = (0..4).map(|_| tokio::spawn(get(&url).fetch())).collect();
    for client in clients {
        assert_whole(&client.await.unwrap(), layer);
    }
    assert_whole(&get(&url).fetch().await, layer);
    assert_eq!(other.gets_of(&layer.digest), 1, "{}", other.story());
    scene.is_sound().await;
    let scene = scene.restart(Builder::offline).await;
    assert_whole(&get(format!("{}/quay.io/v2/{ELSEWHERE}/blobs/{}", scene.mirror.url(), layer.digest)).fetch().await, layer);
}

#[tokio::test]
async fn a_proof_that_breaks_off_is_no_proof() {
    let (scene, secret, other, base) = with_another().await;
    let layer = &secret.layers[0];
    other.blob(ELSEWHERE, layer);
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    let url = format!("{base}/v2/{ELSEWHERE}/blobs/{}", layer.digest);
    for fault in [Fault::cut(299_999), Fault::hang_up(), Fault::status(500), Fault::short(299_999), Fault::longer_by(1)] {
        other.on(Kind::Blob.get().of(layer.digest), fault.clone());
        let reply = get(&url).send().await;
        assert!([404, 502, 503].contains(&reply.status), "{fault:?}: {reply:?}");
        other.heal();
    }
    assert!(mark(&scene, &layer.digest).exists());
    assert_whole(&bob(get(scene.mirror.blob(SECRET, layer.digest))).fetch().await, layer);
}

#[tokio::test]
async fn what_anybody_may_have_is_shared_by_name_without_a_question() {
    let (scene, _, public) = scene(|builder| builder).await;
    let twin = "team/twin";
    scene.hub.manifest(twin, "latest", OCI_MANIFEST, public.manifest.clone());
    for blob in public.blobs() {
        scene.hub.blob(twin, blob);
    }
    // A client that proved who it is comes first: what the login fetched for it is everybody's all the same.
    pull_with(&scene.mirror.url(), PUBLIC, "latest", bob).await.unwrap();
    for blob in public.blobs() {
        assert!(!mark(&scene, &blob.digest).exists());
    }
    pull(&scene.mirror.url(), twin, "latest").await.unwrap();
    assert_eq!(scene.hub.count(Want::any().within(twin).method(hyper::Method::GET)), 1, "{}", scene.hub.story());
    assert_eq!(scene.hub.count(Kind::Blob.within(twin)), 0, "{}", scene.hub.story());
    scene.is_sound().await;
    let scene = scene.restart(|builder| {
        fs::remove_dir_all(builder.data().join("index")).unwrap();
        builder.offline()
    });
    pull(&scene.await.mirror.url(), twin, "latest").await.unwrap();
}

#[tokio::test]
async fn many_who_may_have_it_are_one_fetch_and_no_question_more() {
    let (scene, secret, _) = scene(|builder| builder).await;
    assert_eq!(bob(get(scene.mirror.manifest(SECRET, "latest"))).send().await.status, 200);
    let (layer, gate) = (&secret.layers[0], Gate::closed());
    scene.hub.on(scene.hub.body_of(&layer.digest), Fault::stall(100_000, &gate));
    let url = scene.mirror.blob(SECRET, layer.digest);
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = bob(get(&url)).stream().await;
        stream.at_least(100_000).await;
        streams.push(stream);
    }
    gate.open();
    for stream in streams {
        assert!(stream.rest().await.is_whole());
    }
    assert_eq!(scene.hub.gets_of(&layer.digest), 1, "{}", scene.hub.story());
    assert_eq!(scene.hub.count(Kind::Blob.head().of(layer.digest)), 0, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn what_becomes_private_is_so_within_a_minute() {
    let (scene, _, public) = scene(|builder| builder).await;
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    scene.is_sound().await;
    scene.hub.private(PUBLIC);
    // For how long a token is good is the registry's own affair.
    scene.hub.revoke_tokens();
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    tokio::time::resume();
    is_invisible_in(&scene, PUBLIC, &public).await;
    // Who proved who they are goes on.
    for ask in all_of(&scene.mirror.url(), PUBLIC, &public) {
        assert!([200, 206, 304].contains(&bob(ask).send().await.status));
    }
}
