use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::{offsets, once};
use crate::support::client::head;
use crate::support::gate::Gate;
use crate::support::mirror;
use crate::support::registry::{Builder, Fault, Image, Kind, Port, Registry};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole, quick};

/// A name that no resolver asks anybody about: its first part is longer than a name's part may be.
fn no_name() -> String {
    format!("http://{}.test", "x".repeat(64))
}

#[tokio::test]
async fn a_name_without_an_address_is_an_outage_and_another_endpoint_takes_over() {
    let plain = Registry::plain().await;
    let scene = Scene::with(plain, |builder| builder);
    let held = scene.hold("held").await;
    let blob = scene.push(1, 1 << 20);
    let Scene { hub, mirror } = scene;
    let settings = mirror.stop().await;

    // The resolver fails for what was reached before: what is held is served, the rest is refused at once.
    let alone = settings.clone().endpoints("docker.io", &[&no_name()]).start();
    let scene = Scene { hub, mirror: alone };
    assert_refused(&scene.get(&blob).send().await, 503);
    assert_eq!(head(scene.url(&blob)).send().await.status, 503);
    scene.serves_what_it_holds(&held, "held").await;

    let Scene { hub, mirror } = scene;
    let url = hub.url();
    let both = mirror.stop().await.endpoints("docker.io", &[&no_name(), &url]).start();
    let scene = Scene { hub, mirror: both };
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_handshake_that_stands_still_is_given_up() {
    let short = |tuning: &mut millpond::serve::Tuning| tuning.upstream.connect = Duration::from_secs(3);
    let scene = Scene::with(Builder::plain().tls().start().await, |builder| builder.tune(short));
    let held = scene.hold("held").await;
    // What was connected before is gone, so that a new connection is needed.
    scene.hub.down().await;
    scene.hub.up().await;
    let never = Gate::closed();
    scene.hub.hold_connections(Port::Registry, &never);
    let blob = scene.push(1, 1000);
    let asked = tokio::spawn(scene.get(&blob).send());
    never.reached(1).await;
    scene.serves_what_it_holds(&held, "held").await;
    assert_refused(&asked.await.unwrap(), 504);
    never.open();
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_tls_connection_that_ends_without_saying_so_is_judged_by_the_hash() {
    let scene = Scene::with(Builder::hub().tls().start().await, |builder| builder);
    let len = 1 << 20;
    for (seed, fault) in (1..).zip([Fault::until_close().then_cut(len), Fault::until_close().then_reset(len), Fault::cut(len)]) {
        let blob = scene.push(seed, len);
        once(&scene, &blob, fault.clone());
        let fetched = scene.get(&blob).fetch().await;
        assert_whole(&fetched, &blob);
        assert!(scene.hub.bytes_of(&blob.digest) <= 2 * len, "{fault:?}:\n{}", scene.hub.story());
    }
    // Cut in the middle it is a cut.
    let blob = scene.push(9, len);
    once(&scene, &blob, Fault::until_close().then_cut(len / 2));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!((offsets(&scene, &blob), scene.hub.bytes_of(&blob.digest)), (vec![0, len / 2], len), "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_mirror_in_front_of_itself_refuses_what_it_does_not_hold() {
    let way_back = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", way_back.local_addr().unwrap());
    let short = |tuning: &mut millpond::serve::Tuning| {
        quick(tuning);
        tuning.upstream.head = Duration::from_secs(1);
    };
    let mirror = mirror::Builder::new().endpoint("docker.io", &url).tune(short).start();
    let target = mirror.address();
    let forwarder = tokio::spawn(async move {
        while let Ok((mut near, _)) = way_back.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(target).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let scene = Scene { hub: Registry::plain().await, mirror };
    let image = scene.hub.push_untagged(REPO, Image::layers([10]));
    let blob = scene.push(1, 1000);
    for ask in [scene.manifest("latest"), scene.manifest(image.digest), scene.get(&blob)] {
        let reply = ask.send().await;
        assert!([502, 503, 504].contains(&reply.status), "{reply:?}");
    }
    assert!([502, 503, 504].contains(&head(scene.url(&blob)).send().await.status));
    assert_eq!(scene.hub.count(Kind::Manifest), 0);
    forwarder.abort();
}
