use crate::support::client::{get, pull};
use crate::support::gate::Gate;
use crate::support::registry::{Announced, Builder, Fault, Image, Kind, Port, Want};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole};

/// A repository for which no token is here yet.
const OTHER: &str = "library/alpine";

/// A scene with a held image, and another in a repository of its own. Then the registry has a fault.
async fn scene() -> (Scene, impl AsyncFn(&Scene)) {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    scene.hub.image(OTHER, "latest", Image::layers([1000]).seed(3));
    let serves = async move |scene: &Scene| {
        scene.serves_what_it_holds(&held, "held").await;
        scene.is_sound().await;
    };
    (scene, serves)
}

/// What the mirror answers to a GET of the other repository's manifest, and how many requests that cost.
async fn asks(scene: &Scene) -> (crate::support::client::Reply, usize) {
    let before = scene.hub.count(Want::any());
    let reply = get(scene.mirror.manifest(OTHER, "latest")).send().await;
    (reply, scene.hub.count(Want::any()) - before)
}

#[tokio::test]
async fn a_registry_that_challenges_for_ever_is_answered_once() {
    let (scene, serves) = scene().await;
    scene.hub.on(Kind::Manifest, Fault::challenge());
    scene.hub.on(Kind::Blob, Fault::challenge());
    let (reply, requests) = asks(&scene).await;
    assert_refused(&reply, 404);
    assert!(requests <= 4, "{}", scene.hub.story());
    let blob = scene.push(1, 1000);
    let before = scene.hub.count(Want::any());
    assert_refused(&scene.get(&blob).send().await, 404);
    assert!(scene.hub.count(Want::any()) - before <= 4, "{}", scene.hub.story());
    scene.hub.heal();
    serves(&scene).await;
}

#[tokio::test]
async fn a_token_service_that_is_down_is_an_outage() {
    let (scene, serves) = scene().await;
    scene.hub.down_at(Port::Auth).await;
    assert_refused(&asks(&scene).await.0, 503);
    serves(&scene).await;
    scene.hub.up_at(Port::Auth).await;
    pull(&scene.mirror.url(), OTHER, "latest").await.unwrap();
    scene.is_sound().await;
}

#[tokio::test]
async fn a_token_service_that_fails_once_is_asked_again() {
    for fault in [Fault::status(500), Fault::status(503), Fault::bad_gateway(), Fault::hang_up(), Fault::cut(10), Fault::reset(0)] {
        let (scene, _) = scene().await;
        scene.hub.on(Kind::Token, fault.once());
        pull(&scene.mirror.url(), OTHER, "latest").await.unwrap_or_else(|error| panic!("{error}\n{}", scene.hub.story()));
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn a_token_service_that_refuses_or_babbles_is_a_clear_refusal() {
    let long = format!(r#"{{"token":"{}"}}"#, "x".repeat(300_000));
    for (fault, statuses) in [
        (Fault::status(401), [404, 404]),
        (Fault::status(403), [404, 404]),
        (Fault::status(500), [503, 503]),
        (Fault::status(418), [502, 502]),
        (Fault::json("{}"), [502, 502]),
        (Fault::json(r#"{"token":""}"#), [502, 502]),
        (Fault::json(r#"{"token":7}"#), [502, 502]),
        (Fault::json("{\"token\":\"a\\r\\nX-Evil: 1\"}"), [502, 502]),
        (Fault::json("[1,2"), [502, 502]),
        (Fault::json(&long), [502, 502]),
        (Fault::html(), [502, 502]),
        (Fault::redirect_loop(307), [502, 503]),
        (Fault::raw("220 smtp.example ESMTP\r\n"), [502, 503]),
    ] {
        let (scene, serves) = scene().await;
        scene.hub.on(Kind::Token, fault.clone());
        let (reply, requests) = asks(&scene).await;
        assert!(statuses.contains(&reply.status), "{fault:?}: {reply:?}");
        assert!(requests <= 6, "{fault:?}:\n{}", scene.hub.story());
        serves(&scene).await;
    }
}

#[tokio::test]
async fn tokens_that_are_revoked_are_replaced_within_the_pull() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([1 << 20]));
    assert_eq!(scene.manifest("latest").send().await.status, 200);
    scene.hub.revoke_tokens();
    let (layer, gate) = (&image.layers[0], Gate::closed());
    scene.hub.on(scene.hub.body_of(&layer.digest), Fault::stall(500_000, &gate).then_cut(500_000).once());
    let client = tokio::spawn(scene.get(layer).fetch());
    gate.reached(1).await;
    scene.hub.revoke_tokens();
    gate.open();
    assert_whole(&client.await.unwrap(), layer);
    assert_eq!((scene.hub.count(Kind::Token), scene.hub.bytes_of(&layer.digest)), (3, layer.len()), "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_token_for_one_request_is_enough_for_a_pull() {
    let scene = Scene::with(Builder::hub().quirks(|quirks| quirks.token_uses = Some(1)).start().await, |builder| builder);
    scene.hub.image(REPO, "latest", Image::layers([1000, 2000, 3000]));
    pull(&scene.mirror.url(), REPO, "latest").await.unwrap_or_else(|error| panic!("{error}\n{}", scene.hub.story()));
    scene.is_sound().await;
}

#[tokio::test]
async fn a_token_of_any_announced_life_is_enough_for_a_pull() {
    for life in [Announced::Nothing, Announced::Seconds(0), Announced::Seconds(-1), Announced::Seconds(i64::MAX)] {
        let hub = Builder::hub().quirks(|quirks| quirks.expires_in = life).start().await;
        let scene = Scene::with(hub, |builder| builder);
        scene.hub.image(REPO, "latest", Image::layers([1000, 2000, 3000]));
        pull(&scene.mirror.url(), REPO, "latest").await.unwrap_or_else(|error| panic!("{error}\n{}", scene.hub.story()));
        // Whatever it said of its life, it is refused now; the pull does not notice.
        scene.hub.revoke_tokens();
        scene.hub.image(REPO, "next", Image::layers([4000]).seed(4));
        pull(&scene.mirror.url(), REPO, "next").await.unwrap_or_else(|error| panic!("{error}\n{}", scene.hub.story()));
        assert!(scene.hub.count(Kind::Token) <= 8, "{}", scene.hub.story());
        scene.is_sound().await;
    }
}

#[tokio::test]
async fn many_clients_of_many_blobs_need_one_token() {
    let scene = Scene::new().await;
    let gate = Gate::closed();
    scene.hub.on(Kind::Token, Fault::wait(&gate));
    let blobs: Vec<_> = (1..=16).map(|seed| scene.push(seed, 1000)).collect();
    let clients: Vec<_> = blobs.iter().map(|blob| tokio::spawn(scene.get(blob).fetch())).collect();
    gate.reached(1).await;
    scene.heard().await;
    gate.open();
    for (client, blob) in clients.into_iter().zip(&blobs) {
        assert_whole(&client.await.unwrap(), blob);
    }
    assert_eq!(scene.hub.count(Kind::Token), 1, "{}", scene.hub.story());
    scene.is_sound().await;
}
