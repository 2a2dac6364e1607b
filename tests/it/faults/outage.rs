use std::time::Duration;

use super::{offsets, once};
use crate::support::client::{get, head, pull};
use crate::support::gate::Gate;
use crate::support::mirror;
use crate::support::registry::{Builder, Fault, Image, Kind, Port, Registry, Want};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole, quick};
use crate::support::tls::Certificate;

const LEN: u64 = 1 << 20;

#[tokio::test]
async fn an_upstream_that_is_down_is_a_quick_503_for_what_is_not_held() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let image = scene.hub.image(REPO, "latest", Image::layers([LEN]));
    scene.hub.down().await;
    let layer = &image.layers[0];
    for ask in [scene.manifest("latest"), scene.manifest(image.digest), scene.get(layer), scene.get(layer).range(0, 9)] {
        assert_refused(&ask.send().await, 503);
    }
    for url in [scene.mirror.manifest(REPO, "latest"), scene.mirror.manifest(REPO, image.digest), scene.url(layer)] {
        assert_eq!(head(url).send().await.status, 503);
    }
    scene.serves_what_it_holds(&held, "held").await;
    let listed = scene.tags().await;
    assert_eq!((listed.status, &listed.json()["tags"]), (200, &serde_json::json!(["held"])));
    scene.is_sound().await;
    scene.hub.up().await;
    pull(&scene.mirror.url(), REPO, "latest").await.unwrap();
    scene.is_sound().await;
}

#[tokio::test]
async fn a_hiccup_of_any_host_is_not_seen_by_clients() {
    let scene = Scene::new().await;
    scene.hold("held").await;
    let hiccups = [
        Fault::status(500),
        Fault::status(502),
        Fault::status(503),
        Fault::status(504),
        Fault::bad_gateway(),
        Fault::hang_up(),
        Fault::hang_up_reset(),
    ];
    for (seed, fault) in (1..).zip(hiccups) {
        let tag = format!("hiccup-{seed}");
        let image = scene.hub.image(REPO, &tag, Image::layers([1000]).seed(seed));
        for kind in [Kind::Manifest, Kind::Blob, Kind::Cdn] {
            scene.hub.on(kind, fault.clone().once());
        }
        pull(&scene.mirror.url(), REPO, &tag).await.unwrap_or_else(|error| panic!("{fault:?}: {error}\n{}", scene.hub.story()));
        assert_eq!(scene.hub.bytes_of(&image.layers[0].digest), 1000);
        scene.hub.heal();
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn an_upstream_that_goes_on_failing_is_asked_three_times_a_request() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let image = scene.hub.image(REPO, "latest", Image::layers([LEN]));
    for status in [500, 502, 503, 504] {
        scene.hub.on(Kind::Manifest, Fault::status(status));
        scene.hub.on(Kind::Blob, Fault::status(status));
        for ask in [scene.manifest("latest"), scene.manifest(image.digest), scene.get(&image.layers[0])] {
            let before = scene.hub.count(Want::any());
            assert_refused(&ask.send().await, 503);
            assert_eq!(scene.hub.count(Want::any()) - before, 3, "{}", scene.hub.story());
        }
        scene.serves_what_it_holds(&held, "held").await;
        scene.hub.heal();
    }
    scene.is_sound().await;
    pull(&scene.mirror.url(), REPO, "latest").await.unwrap();
}

#[tokio::test]
async fn an_upstream_that_failed_often_is_left_alone() {
    let breaker = |tuning: &mut millpond::serve::Tuning| {
        tuning.upstream.breaker_failures = 5;
        tuning.upstream.breaker_rest = Duration::from_secs(3600);
    };
    let scene = Scene::with(Registry::hub().await, |builder| builder.tune(breaker));
    let held = scene.hold("held").await;
    let up = async || scene.mirror.count("millpond_upstream_up", &[&format!("endpoint=\"{}\"", scene.hub.url())]).await;
    assert_eq!(up().await, 1);
    scene.hub.on(Kind::Blob, Fault::status(503));
    let before = scene.hub.count(Want::any());
    for seed in 1..10 {
        let blob = scene.push(seed, 1000);
        assert_refused(&scene.get(&blob).send().await, 503);
    }
    scene.serves_what_it_holds(&held, "held").await;
    assert_eq!((scene.hub.count(Want::any()) - before, up().await), (5, 0), "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_storage_that_refuses_is_signed_for_once_more() {
    let scene = Scene::new().await;
    scene.hold("held").await;
    for (seed, status) in (1..).zip([400, 401, 403]) {
        let blob = scene.push(seed, LEN);
        once(&scene, &blob, Fault::status(status));
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        assert_eq!((scene.hub.gets_of(&blob.digest), offsets(&scene, &blob)), (2, vec![0, 0]), "{}", scene.hub.story());
    }
    let blob = scene.push(9, LEN);
    scene.hub.on(Kind::Cdn, Fault::status(403));
    assert_refused(&scene.get(&blob).send().await, 503);
    assert!(offsets(&scene, &blob).len() <= 2, "{}", scene.hub.story());
    scene.hub.heal();
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    let gone = scene.push(10, LEN);
    once(&scene, &gone, Fault::status(404));
    assert_refused(&scene.get(&gone).send().await, 404);
    scene.is_sound().await;
}

#[tokio::test]
async fn one_of_two_storage_hosts_may_be_down() {
    for port in [Port::CdnA, Port::CdnB] {
        let scene = Scene::new().await;
        scene.hub.down_at(port).await;
        for seed in 1..=4 {
            let blob = scene.push(seed, 1000);
            assert_whole(&scene.get(&blob).fetch().await, &blob);
        }
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn another_endpoint_takes_over_in_the_middle_of_a_body() {
    let (first, second) = (Registry::plain().await, Registry::plain().await);
    let mirror = mirror::Builder::new().upstream("docker.io", &first).upstream("docker.io", &second).tune(quick).start();
    let scene = Scene { hub: first, mirror };
    let (blob, gate) = (scene.push(1, LEN), Gate::closed());
    second.blob(REPO, &blob);
    second.image(REPO, "latest", Image::layers([10]));
    once(&scene, &blob, Fault::stall(LEN / 2, &gate));
    let client = tokio::spawn(scene.get(&blob).fetch());
    gate.reached(1).await;
    scene.taken(LEN / 2).await;
    scene.hub.down().await;
    assert_whole(&client.await.unwrap(), &blob);
    assert_eq!((scene.hub.bytes_of(&blob.digest), second.bytes_of(&blob.digest)), (LEN / 2, LEN / 2), "{}", second.story());
    pull(&scene.mirror.url(), REPO, "latest").await.unwrap();
    scene.is_sound().await;
}

#[tokio::test]
async fn an_upstream_with_a_wrong_certificate_is_told_nothing() {
    for wrong in [Certificate::Expired, Certificate::WrongName, Certificate::UnknownAuthority] {
        let registry = Builder::plain().certificate(wrong).start().await;
        registry.image(REPO, "latest", Image::layers([10]));
        let scene = Scene::with(registry, |builder| builder.login("docker.io", "ann", "secret").private_to_anyone("docker.io"));
        assert_refused(&scene.manifest("latest").send().await, 503);
        assert_eq!(scene.hub.requests().len(), 0, "{wrong:?}");
        scene.is_sound().await;
    }
    let scene = Scene::with(Builder::hub().tls().start().await, |builder| builder);
    let held = scene.hold("held").await;
    scene.serves_what_it_holds(&held, "held").await;
}

#[tokio::test]
async fn an_upstream_that_takes_connections_and_says_nothing_is_given_up() {
    let short = |tuning: &mut millpond::serve::Tuning| tuning.upstream.head = Duration::from_secs(3);
    let scene = Scene::with(Registry::plain().await, |builder| builder.tune(short));
    let held = scene.hold("held").await;
    // What was connected before is gone, so that a new connection is needed.
    scene.hub.down().await;
    scene.hub.up().await;
    let never = Gate::closed();
    scene.hub.hold_connections(Port::Registry, &never);
    let asked = tokio::spawn(scene.manifest("latest").send());
    never.reached(1).await;
    scene.serves_what_it_holds(&held, "held").await;
    assert_refused(&asked.await.unwrap(), 504);
    never.open();
    scene.hub.image(REPO, "latest", Image::layers([10]));
    assert_eq!(scene.manifest("latest").send().await.status, 200);
}

#[tokio::test]
async fn what_is_not_http_is_refused() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    for (seed, bytes) in
        (1..).zip(["", "\r\n\r\n", "SSH-2.0-OpenSSH_9.6\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "HTTP/1.1 999999\r\n\r\n"])
    {
        let blob = scene.push(seed, 1000);
        scene.hub.on(Kind::Cdn, Fault::raw(bytes));
        let reply = scene.get(&blob).send().await;
        assert!([502, 503].contains(&reply.status), "{bytes:?}: {reply:?}");
        assert!(scene.hub.count(Kind::Cdn.of(blob.digest)) <= 3, "{}", scene.hub.story());
        scene.serves_what_it_holds(&held, "held").await;
        scene.hub.heal();
        assert_whole(&scene.get(&blob).fetch().await, &blob);
    }
    scene.is_sound().await;
    assert_eq!(get(format!("{}/v2/", scene.mirror.url())).send().await.status, 200);
}
