//! Many clients, one fetch: who comes first, late, slowly, or leaves, changes nothing for the others.

use futures_util::future::join_all;
use millpond::oci::Digest;

use crate::support::MIB;
use crate::support::client::{Ask, Raw, Stream, get, head};
use crate::support::gate::Gate;
use crate::support::patience::within;
use crate::support::registry::{Blob, End, Fault, Image, Kind};
use crate::support::scene::{REPO, Scene, assert_whole};

const CLIENTS: usize = 32;
const LEN: u64 = 4 * MIB;
const HALF: usize = 2 << 20;
const ALL: usize = 2 * HALF;

/// A scene with one cold blob, of which the registry sends so many bytes before it waits at the gate.
async fn stalled(bytes: usize) -> (Scene, Blob, Gate) {
    let (scene, gate) = (Scene::new().await, Gate::closed());
    let blob = scene.push(1, LEN);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::stall(bytes as u64, &gate));
    (scene, blob, gate)
}

/// Reads a body to its end, and compares it with the blob.
async fn finishes(stream: Stream, already: &[u8], blob: &Blob) {
    let rest = within("the rest of a body", stream.rest()).await;
    assert!(rest.is_whole(), "{:?} after {} bytes", rest.ended, already.len() + rest.body.len());
    assert_eq!(Digest::sha256_of(&[already, &rest.body].concat()), blob.digest);
}

fn assert_fetched_once(scene: &Scene, blob: &Blob) {
    let story = scene.hub.story();
    assert_eq!((scene.hub.gets_of(&blob.digest), scene.hub.count(scene.hub.body_of(&blob.digest).get())), (1, 1), "{story}");
    assert_eq!(scene.hub.bytes_of(&blob.digest), blob.len(), "{story}");
}

async fn is_kept(scene: &Scene, blob: &Blob) {
    scene.is_sound().await;
    scene.mirror.settings().audit().assert_holds([&blob.digest]);
    scene.hub.down().await;
    assert_whole(&scene.get(blob).fetch().await, blob);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_of_a_cold_blob_are_one_fetch() {
    let scene = Scene::new().await;
    let blob = scene.push(1, LEN);
    let clients = (0..CLIENTS).map(|_| tokio::spawn(scene.get(&blob).fetch()));
    for fetched in join_all(clients).await {
        assert_whole(&fetched.unwrap(), &blob);
    }
    assert_fetched_once(&scene, &blob);
    is_kept(&scene, &blob).await;
}

#[tokio::test]
async fn every_client_has_what_is_here_while_the_upstream_stalls() {
    let (scene, blob, gate) = stalled(100_000).await;
    let mut streams = join_all((0..CLIENTS).map(|_| scene.get(&blob).stream())).await;
    let outcomes: Vec<_> = streams.iter().map(|stream| stream.header("cache-status").unwrap().to_owned()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "millpond; fwd=miss").count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "millpond; fwd=miss; collapsed").count(), CLIENTS - 1);
    let mut starts = Vec::new();
    for stream in &mut streams {
        starts.push(stream.at_least(100_000).await);
    }
    gate.open();
    for (stream, start) in streams.into_iter().zip(starts) {
        finishes(stream, &start, &blob).await;
    }
    assert_fetched_once(&scene, &blob);
    is_kept(&scene, &blob).await;
}

#[tokio::test]
async fn the_first_byte_does_not_wait_for_the_second() {
    let (scene, blob, gate) = stalled(1).await;
    let mut stream = scene.get(&blob).stream().await;
    let first = stream.at_least(1).await;
    assert_eq!(&first[..], &blob.content.to_bytes()[..1]);
    gate.open();
    finishes(stream, &first, &blob).await;
}

#[tokio::test]
async fn clients_that_come_before_the_upstream_answers_share_its_answer() {
    let (scene, gate) = (Scene::new().await, Gate::closed());
    let blob = scene.push(1, LEN);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::wait(&gate));
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(scene.get(&blob).fetch())).collect();
    gate.reached(1).await;
    scene.heard().await;
    gate.open();
    for client in clients {
        assert_whole(&client.await.unwrap(), &blob);
    }
    assert_fetched_once(&scene, &blob);
}

#[tokio::test]
async fn a_client_that_comes_half_way_has_the_half_at_once() {
    let (scene, blob, gate) = stalled(HALF).await;
    let mut first = scene.get(&blob).stream().await;
    let first_half = first.at_least(HALF).await;
    let mut late = scene.get(&blob).stream().await;
    assert_eq!(late.header("content-length"), Some(LEN.to_string().as_str()));
    let late_half = late.at_least(HALF).await;
    assert_eq!(first_half, late_half);
    gate.open();
    finishes(late, &late_half, &blob).await;
    finishes(first, &first_half, &blob).await;
    assert_fetched_once(&scene, &blob);
}

#[tokio::test]
async fn a_leader_that_leaves_takes_nothing_with_it() {
    for bytes in [0, ALL / 100, HALF] {
        let (scene, blob, gate) = stalled(bytes).await;
        let mut leader = scene.get(&blob).stream().await;
        let mut follower = scene.get(&blob).stream().await;
        leader.at_least(bytes).await;
        gate.reached(1).await;
        drop(leader);
        scene.heard().await;
        let start = follower.at_least(bytes).await;
        gate.open();
        finishes(follower, &start, &blob).await;
        assert_fetched_once(&scene, &blob);
        is_kept(&scene, &blob).await;
    }
}

#[tokio::test]
async fn what_everybody_left_is_fetched_to_its_end_and_kept() {
    for bytes in [0, ALL / 100, HALF] {
        let (scene, blob, gate) = stalled(bytes).await;
        let mut streams = join_all((0..3).map(|_| scene.get(&blob).stream())).await;
        for stream in &mut streams {
            stream.at_least(bytes).await;
        }
        drop(streams);
        let mut rude = Raw::connect(scene.mirror.address()).await;
        rude.get(&format!("/v2/{REPO}/blobs/{}", blob.digest)).await;
        rude.head().await;
        rude.reset();
        gate.reached(1).await;
        scene.heard().await;
        gate.open();
        scene.mirror.settled().await;
        assert_fetched_once(&scene, &blob);
        is_kept(&scene, &blob).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_leaves_a_fetch_behind() {
    let (scene, gate) = (Scene::new().await, Gate::closed());
    let blob = scene.push(1, LEN);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::wait(&gate));
    let mut leader = Raw::connect(scene.mirror.address()).await;
    leader.get(&format!("/v2/{REPO}/blobs/{}", blob.digest)).await;
    gate.reached(1).await;
    leader.reset();
    scene.heard().await;
    gate.open();
    scene.mirror.settled().await;
    assert_fetched_once(&scene, &blob);
    is_kept(&scene, &blob).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_slows_only_itself() {
    let scene = Scene::new().await;
    let blob = scene.push(1, 16 * MIB);
    let mut sleeper = Raw::narrow(scene.mirror.address(), 4096).await;
    sleeper.get(&format!("/v2/{REPO}/blobs/{}", blob.digest)).await;
    assert!(sleeper.head().await.starts_with("HTTP/1.1 200 "));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_fetched_once(&scene, &blob);
    is_kept(&scene, &blob).await;
    // And it gets its bytes when it wakes up, of a fetch that was over long ago.
    assert_eq!(Digest::sha256_of(&sleeper.read(16 << 20).await), blob.digest);
}

#[tokio::test]
async fn two_repositories_share_a_fetch_and_not_a_right() {
    let (scene, blob, gate) = stalled(HALF).await;
    scene.hub.blob("team/other", &blob);
    scene.hub.image("team/third", "latest", Image::layers([10]));
    let mut first = scene.get(&blob).stream().await;
    let start = first.at_least(HALF).await;
    let mut second = get(scene.mirror.blob("team/other", blob.digest)).stream().await;
    assert_eq!(second.status, 200);
    let second_start = second.at_least(HALF).await;
    let stranger = get(scene.mirror.blob("team/third", blob.digest)).send().await;
    assert_eq!((stranger.status, stranger.json()["errors"][0]["code"].as_str()), (404, Some("BLOB_UNKNOWN")));
    gate.open();
    finishes(first, &start, &blob).await;
    finishes(second, &second_start, &blob).await;
    assert_fetched_once(&scene, &blob);
    for name in ["team/other", "team/third"] {
        let asked = scene.hub.matching(Kind::Blob.of(blob.digest).within(name).head());
        assert_eq!(asked.iter().filter(|record| record.status != Some(401)).count(), 1, "{name}:\n{}", scene.hub.story());
    }
}

/// Sends all at once; the registry does not answer any before the mirror has heard them all.
async fn at_once(scene: &Scene, ask: Ask) -> Vec<crate::support::client::Reply> {
    let gate = Gate::closed();
    scene.hub.on(Kind::Manifest, Fault::wait(&gate));
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(ask.clone().send())).collect();
    gate.reached(1).await;
    scene.heard().await;
    gate.open();
    let replies = join_all(clients).await.into_iter().map(Result::unwrap).collect();
    scene.hub.heal();
    replies
}

#[tokio::test]
async fn many_clients_of_a_cold_tag_are_one_get() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    for reply in at_once(&scene, scene.manifest("latest")).await {
        assert_eq!((reply.status, &reply.body), (200, &image.manifest));
        assert_eq!(reply.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
    }
    assert_eq!((scene.hub.gets_of(&image.digest), scene.hub.pulls()), (1, 1), "{}", scene.hub.story());
    assert_eq!(scene.hub.count(Kind::Manifest.head()), 0, "{}", scene.hub.story());
}

#[tokio::test]
async fn many_clients_of_a_cold_manifest_are_one_get() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    for reply in at_once(&scene, scene.manifest(image.digest)).await {
        assert_eq!((reply.status, &reply.body), (200, &image.manifest));
    }
    assert_eq!((scene.hub.gets_of(&image.digest), scene.hub.pulls()), (1, 1), "{}", scene.hub.story());
}

#[tokio::test]
async fn many_heads_are_one_head_and_never_a_fetch() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([LEN]));
    for reply in at_once(&scene, head(scene.mirror.manifest(REPO, "latest"))).await {
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
        assert_eq!(reply.header("content-length"), Some(image.manifest.len().to_string().as_str()));
    }
    let answered = scene.hub.matching(Kind::Manifest.head()).iter().filter(|record| record.status == Some(200)).count();
    assert_eq!((answered, scene.hub.pulls()), (1, 0), "{}", scene.hub.story());

    let layer = &image.layers[0];
    let reply = head(scene.url(layer)).send().await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some(LEN.to_string().as_str())));
    assert_eq!(head(scene.mirror.manifest(REPO, image.digest)).send().await.status, 200);
    scene.is_sound().await;
    assert_eq!(scene.hub.gets_of(&layer.digest) + scene.hub.gets_of(&image.digest), 0, "{}", scene.hub.story());
    scene.mirror.settings().audit().assert_holds([]);
}

#[tokio::test]
async fn what_does_not_exist_is_asked_for_once_and_answered_to_all() {
    let scene = Scene::new().await;
    scene.hub.image(REPO, "latest", Image::layers([10]));
    // The token is here before, so that every request counts.
    scene.get(&Blob::seeded(9, 100)).send().await;
    let (absent, gate) = (Blob::seeded(10, 100), Gate::closed());
    scene.hub.on(Kind::Blob, Fault::none().behind(&gate));
    let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::spawn(scene.get(&absent).send())).collect();
    gate.reached(1).await;
    scene.heard().await;
    gate.open();
    for reply in join_all(clients).await.into_iter().map(Result::unwrap) {
        assert_eq!((reply.status, reply.json()["errors"][0]["code"].as_str()), (404, Some("BLOB_UNKNOWN")));
    }
    assert_eq!(scene.hub.gets_of(&absent.digest), 1, "{}", scene.hub.story());
    assert_eq!(scene.get(&absent).send().await.status, 404);
    assert_eq!(head(scene.url(&absent)).send().await.status, 404);
    assert_eq!(scene.hub.count(Kind::Blob.of(absent.digest)), 1, "{}", scene.hub.story());
}

#[tokio::test]
async fn a_leader_whose_fetch_dies_strands_nobody() {
    let (scene, gate) = (Scene::new().await, Gate::closed());
    let blob = scene.push(1, LEN);
    // As many as one request is worth; whoever waited asks again, one for all.
    let dies = scene.hub.on(Kind::Blob.of(blob.digest).get(), Fault::status(503).behind(&gate).times(3));
    let leader = tokio::spawn(scene.get(&blob).fetch());
    gate.reached(1).await;
    let followers: Vec<_> = (1..CLIENTS).map(|_| tokio::spawn(scene.get(&blob).fetch())).collect();
    scene.heard().await;
    gate.open();
    assert_eq!(leader.await.unwrap().status, 503);
    for follower in followers {
        assert_whole(&follower.await.unwrap(), &blob);
    }
    assert_eq!(dies.struck(), 3, "{}", scene.hub.story());
    assert_eq!(scene.hub.bytes_of(&blob.digest), LEN, "{}", scene.hub.story());
    is_kept(&scene, &blob).await;
}

#[tokio::test]
async fn a_range_of_a_growing_blob_comes_as_soon_as_its_bytes_are_here() {
    let (scene, blob, gate) = stalled(HALF).await;
    let content = blob.content.to_bytes();
    let mut leader = scene.get(&blob).stream().await;
    let start = leader.at_least(HALF).await;
    let early = scene.get(&blob).range(1000, 1999).send().await;
    assert_eq!((early.status, early.header("content-range")), (206, Some(format!("bytes 1000-1999/{LEN}").as_str())));
    assert_eq!(early.body, content[1000..2000]);

    // Across the watermark: what is here comes at once, the rest when it comes.
    let mut across = scene.get(&blob).range(HALF as u64 - 500, HALF as u64 + 499).stream().await;
    let before = across.at_least(500).await;
    assert_eq!(before, content[HALF - 500..HALF]);
    let tail = tokio::spawn(scene.get(&blob).header("Range", "bytes=-100").send());
    scene.heard().await;
    assert!(!tail.is_finished(), "the tail is not here, and not verified");
    gate.open();
    assert_eq!(across.rest().await.body, content[HALF..HALF + 500]);
    assert_eq!(tail.await.unwrap().body, content[content.len() - 100..]);
    finishes(leader, &start, &blob).await;
    assert_fetched_once(&scene, &blob);
}

#[tokio::test]
async fn the_last_bytes_wait_until_the_whole_is_verified() {
    let (scene, blob, gate) = stalled(ALL - 1).await;
    let mut stream = scene.get(&blob).stream().await;
    let released = ALL - (64 << 10);
    let start = stream.at_least(released).await;
    scene.taken(LEN - 1).await;
    assert_eq!(start.len(), released, "no byte of the tail before the last one has come");
    gate.open();
    finishes(stream, &start, &blob).await;
}

#[tokio::test]
async fn different_blobs_do_not_wait_for_each_other() {
    let (scene, blob, gate) = stalled(HALF).await;
    let stuck = scene.get(&blob).stream().await;
    let others: Vec<Blob> = (10..20).map(|seed| scene.push(seed, MIB)).collect();
    for (fetched, other) in join_all(others.iter().map(|other| scene.get(other).fetch())).await.iter().zip(&others) {
        assert_whole(fetched, other);
        assert_fetched_once(&scene, other);
    }
    gate.open();
    finishes(stuck, &[], &blob).await;
    assert!(scene.hub.requests().iter().all(|record| record.end == Some(End::Whole)), "{}", scene.hub.story());
}
