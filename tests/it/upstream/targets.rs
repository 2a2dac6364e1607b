use std::time::Duration;

use crate::support::client::Reply;
use crate::support::mirror::Builder;
use crate::support::registry::{Fault, Kind, Port, Registry, Want};
use crate::support::scene::{Scene, assert_refused, assert_whole};

/// Longer than a host that failed is left alone.
const RESTED: Duration = Duration::from_secs(11);

async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// In front of a registry that sends to two hosts in turn; one that fails twice in a row is left alone.
fn impatient(builder: Builder) -> Builder {
    builder.tune(|tuning| tuning.upstream.breaker_failures = 2)
}

fn at(port: Port) -> Want {
    Want::from(Kind::Cdn).at(port)
}

#[tokio::test]
async fn a_storage_host_that_fails_is_left_alone_while_another_answers_and_asked_again_when_it_is_back() {
    for fault in [Fault::status(503), Fault::hang_up(), Fault::hang_up_reset()] {
        let scene = Scene::with(Registry::hub().await, impatient);
        scene.hub.on(at(Port::CdnA), fault.clone());
        for seed in 1..=12 {
            let blob = scene.push(seed, 1000);
            assert_whole(&scene.get(&blob).fetch().await, &blob);
            assert!(scene.hub.gets_of(&blob.digest) <= 3, "{fault:?}:\n{}", scene.hub.story());
        }
        // A connection that was in use before may be tried once more by the client itself.
        assert!(scene.hub.count(at(Port::CdnA)) <= 3, "{fault:?}:\n{}", scene.hub.story());
        scene.hub.heal();
        let before = scene.hub.count(at(Port::CdnA));
        later(RESTED).await;
        for seed in 21..=26 {
            let blob = scene.push(seed, 1000);
            assert_whole(&scene.get(&blob).fetch().await, &blob);
        }
        assert!(scene.hub.count(at(Port::CdnA)) >= before + 2, "{fault:?}: it is back\n{}", scene.hub.story());
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn where_all_of_them_fail_the_answer_is_quick_and_another_endpoint_takes_over() {
    let hub = Registry::hub().await;
    let plain = Registry::plain().await;
    let scene = Scene::with(hub, impatient);
    for seed in 1..=3 {
        scene.push(seed, 1000);
    }
    scene.hub.on(Kind::Cdn, Fault::status(503));
    for seed in 1..=3 {
        let reply: Reply = scene.get(&scene.push(seed, 1000)).send().await;
        assert_refused(&reply, 503);
    }
    let asked = scene.hub.count(Kind::Cdn);
    let blob = scene.push(4, 1000);
    assert_refused(&scene.get(&blob).send().await, 503);
    assert_eq!(scene.hub.count(Kind::Cdn), asked, "both are left alone:\n{}", scene.hub.story());

    let scene = scene.restart(|builder| builder.upstream("docker.io", &plain)).await;
    for seed in 11..=16 {
        let blob = scene.push(seed, 1000);
        plain.blob(crate::support::scene::REPO, &blob);
        assert_whole(&scene.get(&blob).fetch().await, &blob);
    }
    assert!(scene.hub.count(Kind::Cdn) <= asked + 5, "{}", scene.hub.story());
    scene.is_sound().await;
}
