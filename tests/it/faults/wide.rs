//! Large blobs over connections that are each slow: several together, in order, and whatever happens to some of them.

use std::time::Duration;

use millpond::serve::Tuning;

use super::once;
use crate::support::MIB;
use crate::support::gate::Gate;
use crate::support::mirror;
use crate::support::patience::{PATIENCE, within};
use crate::support::registry::{Blob, Fault, Kind, Planned, Ranges, Record, Registry};
use crate::support::scene::{REPO, Scene, assert_whole, quick};

const LEN: u64 = 4 * MIB;

/// Bytes a second of one connection: what is asked for over it is under way for long enough to be joined.
const RATE: u64 = MIB;

const PART: u64 = 256 << 10;

/// Everything that is not small counts as large, and every connection as slow; help is never judged, and nothing is silent.
fn eager(tuning: &mut Tuning) {
    quick(tuning);
    let wide = &mut tuning.upstream.wide;
    (wide.worth, wide.enough, wide.part) = (512 << 10, 1 << 40, (64 << 10, PART));
    (wide.look, wide.look_again) = (Duration::from_millis(200), Duration::from_millis(200));
    (wide.judge, wide.silence) = (PATIENCE * 2, PATIENCE * 2);
}

fn slow(hub: Registry, set: impl FnOnce(mirror::Builder) -> mirror::Builder) -> Scene {
    hub.quirks(|quirks| quirks.rate = Some(RATE));
    Scene::with(hub, |builder| set(builder.tune(eager)))
}

/// The requests for the bytes of a blob.
fn asked(scene: &Scene, blob: &Blob) -> Vec<Record> {
    scene.hub.matching(scene.hub.body_of(&blob.digest).get())
}

/// Those for parts of it: with a first and a last byte.
fn parts(scene: &Scene, blob: &Blob) -> Vec<(u64, u64)> {
    let range = |record: &Record| {
        let (first, last) = record.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    asked(scene, blob).iter().filter_map(range).collect()
}

/// Gives the requests for parts of a blob this fault.
fn at_parts(scene: &Scene, blob: &Blob, fault: Fault) -> Planned {
    scene.hub.on(scene.hub.body_of(&blob.digest).get().ranged(true), fault)
}

#[tokio::test]
async fn several_connections_bring_what_one_would_bring_slowly() {
    for hub in [Registry::hub().await, Registry::plain().await] {
        let scene = slow(hub, |builder| builder);
        let blob = scene.push(1, LEN);
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        let hub = &scene.hub;
        assert_eq!(hub.peak(hub.body_of(&blob.digest).get()), 4, "{}", hub.story());
        assert_eq!(scene.bytes_taken().await, LEN);
        let parts = parts(&scene, &blob);
        assert!(parts.windows(2).all(|pair| pair[0].1 < pair[1].0), "no byte twice: {parts:?}");
        assert_eq!(parts.last().map(|part| part.1), Some(LEN - 1));
        // The registry itself was asked once where it sends elsewhere: what it named is good for all parts.
        let sends_elsewhere = hub.count(Kind::Cdn.of(blob.digest)) > 0;
        assert_eq!(hub.gets_of(&blob.digest), if sends_elsewhere { 1 } else { asked(&scene, &blob).len() });
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn whoever_joins_gets_the_same_bytes_and_costs_nothing() {
    let scene = slow(Registry::hub().await, |builder| builder);
    let blob = scene.push(1, LEN);
    let clients: Vec<_> = (0..8).map(|_| tokio::spawn(scene.get(&blob).fetch())).collect();
    for client in clients {
        assert_whole(&client.await.unwrap(), &blob);
    }
    let range = scene.get(&blob).header("range", "bytes=1000000-3000000").fetch().await;
    assert_eq!((range.status, range.len), (206, 2_000_001));
    assert_eq!(scene.bytes_taken().await, LEN);
    scene.is_sound().await;
}

#[tokio::test]
async fn an_operator_who_wants_one_connection_has_one() {
    let scene = slow(Registry::hub().await, |builder| builder.set("upstreams.\"docker.io\"", "parallel", "1"));
    let blob = scene.push(1, LEN / 4);
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!(asked(&scene, &blob).len(), 1, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn help_that_does_not_help_is_not_asked_for_again() {
    let never = |tuning: &mut Tuning| {
        let wide = &mut tuning.upstream.wide;
        (wide.judge, wide.gain_percent) = (Duration::from_millis(100), 1 << 20);
    };
    let scene = slow(Registry::hub().await, |builder| builder.tune(never));
    let (first, second) = (scene.push(1, LEN), scene.push(2, LEN / 2));
    assert_whole(&scene.get(&first).fetch().await, &first);
    assert!(!parts(&scene, &first).is_empty());
    assert_whole(&scene.get(&second).fetch().await, &second);
    assert_eq!(parts(&scene, &second), [], "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn an_upstream_without_ranges_costs_nothing_but_a_question() {
    for ranges in [Ranges::Ignored, Ranges::WrongContentRange, Ranges::Earlier(10), Ranges::Shorter(10)] {
        let scene = slow(Registry::hub().await, |builder| builder);
        scene.hub.quirks(|quirks| quirks.ranges = ranges);
        let (first, second) = (scene.push(1, LEN / 2), scene.push(2, LEN / 2));
        assert_whole(&scene.get(&first).fetch().await, &first);
        let plain = asked(&scene, &first).iter().filter(|record| record.header("range").is_none()).count();
        assert_eq!(plain, 1, "{ranges:?}: the first connection goes on\n{}", scene.hub.story());
        assert_whole(&scene.get(&second).fetch().await, &second);
        assert_eq!(asked(&scene, &second).len(), 1, "{ranges:?}: it is known now\n{}", scene.hub.story());
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn parts_that_break_off_are_resumed_where_they_broke() {
    for fault in [Fault::cut(100_000), Fault::reset(100_000), Fault::hang_up(), Fault::cut(0)] {
        let scene = slow(Registry::hub().await, |builder| builder);
        let blob = scene.push(1, LEN);
        at_parts(&scene, &blob, fault.clone().times(5));
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        let whole = asked(&scene, &blob).iter().filter(|record| record.header("range").is_none()).count();
        assert_eq!(whole, 1, "{fault:?}: nothing begins anew\n{}", scene.hub.story());
        assert_eq!(scene.bytes_taken().await, LEN);
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn a_first_connection_that_breaks_off_is_replaced_by_a_part() {
    let scene = slow(Registry::hub().await, |builder| builder);
    let (blob, gate) = (scene.push(1, LEN), Gate::closed());
    once(&scene, &blob, Fault::stall(400_000, &gate).then_cut(400_000));
    let client = tokio::spawn(scene.get(&blob).fetch());
    gate.reached(1).await;
    within("parts that have begun", async {
        while parts(&scene, &blob).len() < 3 {
            scene.heard().await;
        }
    })
    .await;
    within("bytes of all of them", async {
        while scene.hub.bytes_of(&blob.digest) < 400_000 + 3 * 1000 {
            scene.heard().await;
        }
    })
    .await;
    gate.open();
    assert_whole(&client.await.unwrap(), &blob);
    let open_ended = asked(&scene, &blob).iter().filter(|record| record.header("range").is_some_and(|range| range.ends_with('-'))).count();
    assert_eq!(open_ended, 0, "what was ahead is used\n{}", scene.hub.story());
    assert_eq!(scene.bytes_taken().await, LEN);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_part_that_falls_silent_is_asked_for_again() {
    let quickly = |tuning: &mut Tuning| tuning.upstream.wide.silence = Duration::from_millis(500);
    let scene = slow(Registry::hub().await, |builder| builder.tune(quickly));
    let (blob, never) = (scene.push(1, LEN), Gate::closed());
    at_parts(&scene, &blob, Fault::stall(1000, &never).once());
    at_parts(&scene, &blob, Fault::wait(&never).once());
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    never.reached(2).await;
    scene.is_sound().await;
}

#[tokio::test]
async fn a_signature_that_is_over_is_renewed() {
    let scene = slow(Registry::hub().await, |builder| builder);
    let (blob, gate) = (scene.push(1, LEN), Gate::closed());
    at_parts(&scene, &blob, Fault::wait(&gate).once());
    let client = tokio::spawn(scene.get(&blob).fetch());
    gate.reached(1).await;
    scene.hub.expire_urls();
    gate.open();
    assert_whole(&client.await.unwrap(), &blob);
    let redirects = scene.hub.count(Kind::Blob.of(blob.digest).get());
    assert!((2..=5).contains(&redirects), "{redirects} questions to the registry\n{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn an_endpoint_that_dies_in_the_middle_is_replaced_by_another() {
    let other = Registry::plain().await;
    other.quirks(|quirks| quirks.rate = Some(RATE));
    let scene = slow(Registry::plain().await, |builder| builder.upstream("docker.io", &other));
    let blob = scene.push(1, LEN);
    other.blob(REPO, &blob);
    let client = tokio::spawn(scene.get(&blob).fetch());
    within("a third of it", async { while scene.bytes_taken().await < LEN / 3 {} }).await;
    scene.hub.down().await;
    assert_whole(&client.await.unwrap(), &blob);
    assert_eq!(scene.bytes_taken().await, LEN);
    scene.mirror.settled().await;
    scene.mirror.settings().audit().assert_sound();
}

#[tokio::test]
async fn a_faster_endpoint_is_found_and_then_preferred() {
    let fast = Registry::plain().await;
    let scene = slow(Registry::plain().await, |builder| builder.upstream("docker.io", &fast));
    // So slow that a busy machine does not make the other look like it.
    scene.hub.quirks(|quirks| quirks.rate = Some(RATE / 8));
    let (first, second) = (scene.push(1, LEN / 4), scene.push(2, LEN / 4));
    for blob in [&first, &second] {
        fast.blob(REPO, blob);
    }
    let gate = Gate::closed();
    once(&scene, &first, Fault::stall(RATE / 16, &gate));
    let client = tokio::spawn(scene.get(&first).fetch());
    let part = fast.body_of(&first.digest).get();
    within("a part of it from the other", async {
        while !fast.matching(part.clone()).iter().any(|record| record.end.is_some()) {
            scene.heard().await;
        }
    })
    .await;
    gate.open();
    assert_whole(&client.await.unwrap(), &first);
    assert_whole(&scene.get(&second).fetch().await, &second);
    assert_eq!(scene.hub.gets_of(&second.digest), 0, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_wrong_part_is_never_handed_over_as_whole() {
    let scene = slow(Registry::hub().await, |builder| builder);
    let blob = scene.push(1, LEN);
    // Whatever follows the first connection is wrong.
    once(&scene, &blob, Fault::cut(400_000));
    at_parts(&scene, &blob, Fault::flip(5));
    let fetched = scene.get(&blob).fetch().await;
    assert!(!fetched.is_whole() && fetched.len < LEN, "{fetched:?}");
    assert_eq!(scene.verify_failures().await, 1);
    scene.hub.heal();
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_stop_ends_all_connections() {
    let scene = slow(Registry::hub().await, |builder| builder.set("server", "drain", "\"0s\""));
    let (blob, never) = (scene.push(1, LEN), Gate::closed());
    at_parts(&scene, &blob, Fault::stall(1000, &never));
    let client = tokio::spawn(scene.get(&blob).fetch());
    never.reached(3).await;
    let Scene { hub, mirror } = scene;
    mirror.stop().await;
    assert!(!client.await.unwrap().is_whole());
    within("the end of all requests", async {
        while hub.matching(hub.body_of(&blob.digest)).iter().any(|record| record.end.is_none()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(hub.count(Kind::Cdn.of(blob.digest)) >= 4, "{}", hub.story());
}

#[tokio::test]
async fn all_blobs_of_an_upstream_share_the_bandwidth_that_it_is_granted() {
    const BANDWIDTH: u64 = 1 << 20;
    let scene = Scene::with(Registry::hub().await, |builder| builder.set("upstreams.\"docker.io\"", "bandwidth", "\"1MiB\""));
    let blobs = [scene.push(1, BANDWIDTH), scene.push(2, BANDWIDTH / 2)];
    let began = std::time::Instant::now();
    let clients: Vec<_> = blobs.iter().map(|blob| tokio::spawn(scene.get(blob).fetch())).collect();
    for (client, blob) in clients.into_iter().zip(&blobs) {
        assert_whole(&client.await.unwrap(), blob);
    }
    // A machine can be slower than that, but never faster.
    assert!(began.elapsed() > Duration::from_millis(1_300), "1.5 seconds' worth came in {:?}", began.elapsed());
    scene.is_sound().await;
}
