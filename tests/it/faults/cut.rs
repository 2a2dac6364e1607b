use std::time::Duration;

use super::{offsets, once};
use crate::support::MIB;
use crate::support::gate::Gate;
use crate::support::registry::{Builder, Fault, Kind, Ranges, Registry};
use crate::support::scene::{Scene, assert_refused, assert_whole};

const LEN: u64 = MIB;
const HALF: u64 = LEN / 2;

#[tokio::test]
async fn a_cut_body_is_resumed_where_it_broke() {
    for registry in [Registry::hub().await, Registry::plain().await] {
        let scene = Scene::with(registry, |builder| builder);
        let held = scene.hold("held").await;
        for (seed, at) in (1..).zip([0, 1, HALF, LEN - 1]) {
            let blob = scene.push(seed, LEN);
            once(&scene, &blob, Fault::cut(at));
            assert_whole(&scene.get(&blob).fetch().await, &blob);
            assert_eq!(offsets(&scene, &blob), [0, at], "{}", scene.hub.story());
            assert_eq!(scene.hub.bytes_of(&blob.digest), LEN, "no byte twice");
        }
        scene.serves_what_it_holds(&held, "held").await;
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn a_reset_body_is_resumed_where_it_broke() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    for (seed, at) in (1..).zip([0, 1, HALF, LEN - 1]) {
        let (blob, gate, before) = (scene.push(seed, LEN), Gate::closed(), scene.bytes_taken().await);
        once(&scene, &blob, Fault::stall(at, &gate).then_reset(at));
        let client = tokio::spawn(scene.get(&blob).fetch());
        gate.reached(1).await;
        // A reset takes with it what was not read: with all of it read, every byte counts.
        scene.taken(before + at).await;
        gate.open();
        assert_whole(&client.await.unwrap(), &blob);
        assert_eq!(offsets(&scene, &blob), [0, at], "{}", scene.hub.story());
        assert_eq!(scene.hub.bytes_of(&blob.digest), LEN, "no byte twice");
    }
    scene.serves_what_it_holds(&held, "held").await;
    scene.is_sound().await;
}

#[tokio::test]
async fn a_body_that_breaks_again_and_again_arrives_all_the_same() {
    let scene = Scene::new().await;
    let blob = scene.push(1, LEN);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::cut(100_000));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!(offsets(&scene, &blob), (0..LEN).step_by(100_000).collect::<Vec<_>>(), "{}", scene.hub.story());
    assert_eq!(scene.hub.bytes_of(&blob.digest), LEN);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_body_that_never_comes_is_given_up_and_not_held_against_the_next() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    for (seed, at) in [(1, 0), (2, 100_000)] {
        let blob = scene.push(seed, LEN);
        once(&scene, &blob, Fault::cut(at));
        scene.hub.on(scene.hub.body_of(&blob.digest), Fault::cut(0));
        let fetched = scene.get(&blob).fetch().await;
        assert!(!fetched.is_whole() && fetched.len == at, "{fetched:?}");
        let tries = millpond::fill::Limits::default().tries as usize;
        assert!(offsets(&scene, &blob).len() <= tries + 2, "{}", scene.hub.story());
        scene.is_sound().await;
        scene.serves_what_it_holds(&held, "held").await;
        scene.hub.heal();
        assert_whole(&scene.get(&blob).fetch().await, &blob);
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_resume_is_read_again_up_to_where_it_broke() {
    for ranges in [Ranges::Ignored, Ranges::WrongContentRange, Ranges::Earlier(1000), Ranges::Refused] {
        let scene = Scene::new().await;
        let blob = scene.push(1, LEN);
        once(&scene, &blob, Fault::cut(HALF));
        scene.hub.on(scene.hub.body_of(&blob.digest).ranged(true), Fault::ranges(ranges));
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        assert_eq!(offsets(&scene, &blob)[..2], [0, HALF], "{ranges:?}:\n{}", scene.hub.story());
        assert!(scene.hub.bytes_of(&blob.digest) <= HALF + 2 * LEN, "{ranges:?}:\n{}", scene.hub.story());
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn an_upstream_that_sends_less_than_was_asked_for_is_asked_for_the_rest() {
    let scene = Scene::with(Builder::hub().quirks(|quirks| quirks.ranges = Ranges::Shorter(100_000)).start().await, |builder| builder);
    let blob = scene.push(1, LEN);
    once(&scene, &blob, Fault::cut(HALF));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!(scene.hub.bytes_of(&blob.digest), LEN, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_signed_url_that_expired_meanwhile_is_not_used_again() {
    for once_only in [false, true] {
        let scene = Scene::with(Builder::hub().quirks(|quirks| quirks.url_once = once_only).start().await, |builder| builder);
        scene.hold("held").await;
        let (blob, gate) = (scene.push(1, LEN), Gate::closed());
        once(&scene, &blob, Fault::stall(HALF, &gate).then_cut(HALF));
        let client = tokio::spawn(scene.get(&blob).fetch());
        gate.reached(1).await;
        scene.hub.expire_urls();
        scene.hub.revoke_tokens();
        gate.open();
        assert_whole(&client.await.unwrap(), &blob);
        assert_eq!(scene.hub.gets_of(&blob.digest), 2, "a fresh redirect:\n{}", scene.hub.story());
        assert_eq!((offsets(&scene, &blob), scene.hub.bytes_of(&blob.digest)), (vec![0, HALF], LEN), "{}", scene.hub.story());
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn a_silent_body_is_given_up_and_resumed() {
    let quiet = |tuning: &mut millpond::serve::Tuning| tuning.fill.silence = Duration::from_millis(500);
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(quiet));
    let held = scene.hold("held").await;
    for (seed, at) in (1..).zip([0, HALF, LEN - 1]) {
        let (blob, never) = (scene.push(seed, LEN), Gate::closed());
        once(&scene, &blob, Fault::stall(at, &never));
        let client = tokio::spawn(scene.get(&blob).fetch());
        never.reached(1).await;
        scene.serves_what_it_holds(&held, "held").await;
        assert_whole(&client.await.unwrap(), &blob);
        assert!(offsets(&scene, &blob)[1..].contains(&at), "{}", scene.hub.story());
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn a_slow_body_is_not_a_silent_one() {
    let quiet = |tuning: &mut millpond::serve::Tuning| tuning.fill.silence = Duration::from_secs(3);
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(quiet));
    let blob = scene.push(1, 300_000);
    once(&scene, &blob, Fault::trickle(70_000));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!(offsets(&scene, &blob), [0], "{}", scene.hub.story());
}

#[tokio::test]
async fn a_body_that_only_trickles_is_left_for_a_better_connection() {
    // What is a minute in earnest. The better connection has tens of thousands of times what is asked of it.
    let strict = |tuning: &mut millpond::serve::Tuning| {
        tuning.fill.rate = 2_000;
        tuning.fill.rate_over = Duration::from_millis(500);
    };
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(strict));
    let held = scene.hold("held").await;
    let blob = scene.push(1, LEN);
    once(&scene, &blob, Fault::trickle(50));
    let client = tokio::spawn(scene.get(&blob).fetch());
    scene.hub.asked(1, scene.hub.body_of(&blob.digest)).await;
    scene.serves_what_it_holds(&held, "held").await;
    assert_whole(&client.await.unwrap(), &blob);
    let offsets = offsets(&scene, &blob);
    assert!(offsets.len() >= 2 && offsets[1] > 0 && offsets[1] < 10_000, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_body_that_trickles_on_every_connection_ends() {
    let strict = |tuning: &mut millpond::serve::Tuning| {
        tuning.fill.rate = 2_000;
        tuning.fill.rate_over = Duration::from_millis(500);
    };
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(strict));
    let blob = scene.push(1, LEN);
    scene.hub.on(scene.hub.body_of(&blob.digest), Fault::trickle(50));
    let fetched = scene.get(&blob).fetch().await;
    assert!(!fetched.is_whole() && fetched.len < LEN, "{fetched:?}");
    assert_eq!(offsets(&scene, &blob).len(), 3, "{}", scene.hub.story());
    scene.is_sound().await;
    scene.hub.heal();
    assert_whole(&scene.get(&blob).fetch().await, &blob);
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_a_quick_refusal() {
    let quick = |tuning: &mut millpond::serve::Tuning| tuning.upstream.head = Duration::from_secs(3);
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(quick));
    let held = scene.hold("held").await;
    for kind in [Kind::Cdn, Kind::Blob] {
        let (blob, never) = (scene.push(1, LEN), Gate::closed());
        let stuck = scene.hub.on(kind.of(blob.digest), Fault::wait(&never).once());
        let client = tokio::spawn(scene.get(&blob).send());
        never.reached(1).await;
        scene.serves_what_it_holds(&held, "held").await;
        assert_refused(&client.await.unwrap(), 504);
        assert_eq!(stuck.struck(), 1);
        scene.is_sound().await;
    }
    let blob = scene.push(1, LEN);
    assert_whole(&scene.get(&blob).fetch().await, &blob);
}

#[tokio::test]
async fn a_resumption_that_is_not_answered_is_asked_for_again() {
    let quick = |tuning: &mut millpond::serve::Tuning| tuning.upstream.head = Duration::from_secs(3);
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(quick));
    let held = scene.hold("held").await;
    for (seed, kind) in [(1, Kind::Cdn), (2, Kind::Blob)] {
        let (blob, never) = (scene.push(seed, LEN), Gate::closed());
        once(&scene, &blob, Fault::cut(HALF));
        scene.hub.on(kind.of(blob.digest), Fault::wait(&never).skip(usize::from(kind == Kind::Blob)).once());
        let client = tokio::spawn(scene.get(&blob).fetch());
        never.reached(1).await;
        scene.serves_what_it_holds(&held, "held").await;
        assert_whole(&client.await.unwrap(), &blob);
        assert_eq!(scene.hub.bytes_of(&blob.digest), LEN, "no byte twice:\n{}", scene.hub.story());
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn a_body_without_a_length_is_whole_when_its_hash_is() {
    let scene = Scene::new().await;
    for (seed, fault, len) in
        [(1, Fault::chunked(), LEN), (2, Fault::until_close(), LEN), (3, Fault::chunked(), 1000), (4, Fault::until_close(), 1000)]
    {
        let blob = scene.push(seed, len);
        once(&scene, &blob, fault);
        let fetched = scene.get(&blob).fetch().await;
        assert_whole(&fetched, &blob);
        assert_eq!(offsets(&scene, &blob), [0]);
    }
    let blob = scene.push(5, LEN);
    once(&scene, &blob, Fault::chunked().then_cut(HALF));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!((offsets(&scene, &blob), scene.hub.bytes_of(&blob.digest)), (vec![0, HALF], LEN));
    scene.is_sound().await;
}

#[tokio::test]
async fn a_body_whose_end_cannot_be_told_from_a_cut_is_not_taken_for_whole() {
    let scene = Scene::new().await;
    let blob = scene.push(1, LEN);
    once(&scene, &blob, Fault::until_close().then_cut(HALF));
    let fetched = scene.get(&blob).fetch().await;
    assert!(!fetched.is_whole() && fetched.len < HALF, "{fetched:?}");
    scene.is_sound().await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
}
