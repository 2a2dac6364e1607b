//! Who may see what only the mirror's own login can see: clients that authenticated, and nobody else learns that it exists.

mod custody; // what was got with a login: by another name, at another registry, after the login is gone

use crate::support::client::{Ask, Reply, get, head, pull, pull_with};
use crate::support::gate::Gate;
use crate::support::mirror::Builder;
use crate::support::registry::{self, Blob, Fault, Image, Kind, Port, Pushed, Referrers, Registry};
use crate::support::scene::{Scene, assert_refused};

const SECRET: &str = "team/secret";
const PUBLIC: &str = "team/public";
const PATH: &str = "0123456789abcdef";

/// A registry with a private and a public repository, and a mirror that logs in there. Anybody of this machine may pull; bob
/// and whoever knows the path have proved who they are.
async fn scene(set: impl FnOnce(Builder) -> Builder) -> (Scene, Pushed, Pushed) {
    let ways = |quirks: &mut registry::Quirks| quirks.referrers = Referrers::Listed { page: 10 };
    let hub = registry::Builder::hub().own_addresses().quirks(ways).start().await;
    hub.user("ann", "secret");
    hub.private(SECRET);
    let secret = hub.image(SECRET, "latest", Image::layers([300_000]).seed(1));
    let public = hub.image(PUBLIC, "latest", Image::layers([200_000]).seed(2));
    let open = |builder: Builder| {
        let builder = builder.login("docker.io", "ann", "secret").user("bob", "guess").secret_path(PATH);
        set(builder.set("access", "networks", "[\"127.0.0.0/8\"]"))
    };
    (Scene::with(hub, open), secret, public)
}

fn bob(ask: Ask) -> Ask {
    ask.basic("bob", "guess")
}

/// Everything that can be asked of an image.
fn all_of(base: &str, name: &str, image: &Pushed) -> Vec<Ask> {
    let url = |kind: &str, what: String| format!("{base}/v2/{name}/{kind}/{what}");
    let layer = &image.layers[0];
    let tag = url("manifests", "latest".into());
    let digest = url("manifests", image.digest.to_string());
    let blob = url("blobs", layer.digest.to_string());
    vec![
        head(&tag),
        get(&tag),
        head(&digest),
        get(&digest),
        get(&digest).header("If-None-Match", &format!("\"{}\"", image.digest)),
        head(&blob),
        get(&blob),
        get(&blob).range(0, 9),
        get(&blob).header("If-None-Match", &format!("\"{}\"", layer.digest)),
        get(url("tags", "list".into())),
        get(url("referrers", image.digest.to_string())),
    ]
}

/// What of an answer a client can tell it by from another.
fn seen(reply: &Reply) -> (u16, Vec<(String, String)>, bytes::Bytes) {
    let of_its_own = ["date", "x-request-id"];
    let headers = reply.headers.iter().filter(|(name, _)| !of_its_own.contains(&name.as_str()));
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    (reply.status, headers, reply.body.clone())
}

/// To a stranger an image is as if it did not exist, in every word.
async fn is_invisible(scene: &Scene, name: &str, image: &Pushed) {
    let absent = registry_free_image();
    let base = scene.mirror.url();
    for (ask, nothing) in all_of(&base, name, image).into_iter().zip(all_of(&base, "team/absent", &absent)) {
        let what = format!("{ask:?}");
        let (reply, nothing) = (ask.send().await, nothing.send().await);
        assert_eq!(reply.status, 404, "{what}: {reply:?}\n{}", scene.hub.story());
        assert_eq!(seen(&reply), seen(&nothing), "{what}");
    }
}

/// An image that no registry has.
fn registry_free_image() -> Pushed {
    registry::Tree::from(Image::layers([300_000]).seed(99)).build()
}

async fn is_visible(base: &str, name: &str, image: &Pushed, dress: impl Fn(Ask) -> Ask) {
    for ask in all_of(base, name, image) {
        let what = format!("{ask:?}");
        let reply = dress(ask).send().await;
        assert!([200, 206, 304].contains(&reply.status), "{what}: {reply:?}");
    }
}

#[tokio::test]
async fn what_is_private_is_for_those_who_proved_who_they_are() {
    let (scene, secret, _) = scene(|builder| builder).await;
    is_visible(&scene.mirror.url(), SECRET, &secret, bob).await;
    is_visible(&format!("{}/{PATH}", scene.mirror.url()), SECRET, &secret, |ask| ask).await;
    scene.is_sound().await;
}

#[tokio::test]
async fn what_is_private_does_not_exist_for_strangers_before_it_is_held_and_after() {
    let (scene, secret, _) = scene(|builder| builder).await;
    is_invisible(&scene, SECRET, &secret).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    is_invisible(&scene, SECRET, &secret).await;
    for wrong in [("bob", "wrong"), ("ann", "secret"), ("", "")] {
        let reply = get(scene.mirror.manifest(SECRET, "latest")).basic(wrong.0, wrong.1).send().await;
        assert!([401, 404].contains(&reply.status), "{wrong:?}: {reply:?}");
    }
    let guessed = get(format!("{}/0123456789abcdeg/v2/{SECRET}/manifests/latest", scene.mirror.url())).send().await;
    assert_eq!(guessed.status, 404);
    scene.is_sound().await;
}

/// What a stranger's question costs, which is what it takes in time: the same for what is forbidden and for what is absent,
/// held or not.
#[tokio::test]
async fn what_is_forbidden_is_asked_about_like_what_is_absent() {
    let (mut scene, secret, _) = scene(|builder| builder).await;
    let absent = registry_free_image();
    for held in [false, true] {
        if held {
            pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
            scene.is_sound().await;
            // Without what was remembered of a moment ago, which is the same for both.
            scene = scene.restart(|builder| builder).await;
        }
        let base = scene.mirror.url();
        // How the registry wants to be asked is known from here on.
        get(scene.mirror.manifest("team/other", "latest")).send().await;
        for (ask, nothing) in all_of(&base, SECRET, &secret).into_iter().zip(all_of(&base, "team/absent", &absent)) {
            let what = format!("{ask:?}, held: {held}");
            let mut costs = Vec::new();
            for ask in [ask, nothing] {
                scene.hub.forget();
                assert_eq!(ask.send().await.status, 404, "{what}");
                let requests = scene.hub.requests();
                costs.push(requests.iter().map(|record| (record.kind, record.method.clone(), record.status)).collect::<Vec<_>>());
            }
            assert_eq!(costs[0], costs[1], "{what}");
        }
    }
}

#[tokio::test]
async fn what_is_private_stays_so_without_the_upstream() {
    let (scene, secret, public) = scene(|builder| builder).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    scene.is_sound().await;
    scene.hub.down().await;
    is_invisible_for_now(&scene, &secret).await;
    let scene = scene.restart(|builder| builder).await;
    is_invisible_for_now(&scene, &secret).await;
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    let scene = scene.restart(Builder::offline).await;
    is_invisible_for_now(&scene, &secret).await;
    assert_eq!(pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap().digest, public.digest);
    assert_eq!(pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap().digest, secret.digest);
}

/// While the upstream is away nothing private is given, and nothing of it told.
async fn is_invisible_for_now(scene: &Scene, secret: &Pushed) {
    for ask in all_of(&scene.mirror.url(), SECRET, secret) {
        let what = format!("{ask:?}");
        let reply = ask.send().await;
        assert_eq!(reply.status, 404, "{what}: {reply:?}");
        assert!(reply.header("docker-content-digest").is_none(), "{what}: {reply:?}");
    }
}

#[tokio::test]
async fn what_is_private_is_not_reached_by_another_name() {
    let (scene, secret, _) = scene(|builder| builder).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    let layer = &secret.layers[0];
    let config = secret.config.as_ref().unwrap();
    for dress in [(|ask| ask) as fn(Ask) -> Ask, bob] {
        for blob in [layer, config] {
            assert_refused(&dress(get(scene.mirror.blob(PUBLIC, blob.digest))).send().await, 404);
            assert_eq!(dress(head(scene.mirror.blob(PUBLIC, blob.digest))).send().await.status, 404);
        }
        // A manifest's bytes are a blob under blobs/ as well.
        assert_refused(&dress(get(scene.mirror.blob(PUBLIC, secret.digest))).send().await, 404);
        assert_refused(&dress(get(scene.mirror.manifest(PUBLIC, secret.digest))).send().await, 404);
        let url = format!("{}/v2/{PUBLIC}/blobs/{}?ns=ghcr.io", scene.mirror.url(), layer.digest);
        assert!([404, 503].contains(&dress(get(url)).send().await.status));
    }
    // The same bytes in a public repository are public there, and there only.
    scene.hub.blob(PUBLIC, config);
    let also = Blob::seeded(5, 1000);
    scene.hub.blob(SECRET, &also);
    scene.hub.blob(PUBLIC, &also);
    assert_eq!(bob(get(scene.mirror.blob(SECRET, also.digest))).send().await.status, 200);
    assert_eq!(get(scene.mirror.blob(PUBLIC, also.digest)).send().await.status, 200);
    assert_refused(&get(scene.mirror.blob(SECRET, also.digest)).send().await, 404);
    scene.is_sound().await;
}

#[tokio::test]
async fn what_is_private_is_not_joined_while_it_arrives() {
    let (scene, secret, _) = scene(|builder| builder).await;
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    let (layer, gate) = (&secret.layers[0], Gate::closed());
    scene.hub.on(scene.hub.body_of(&layer.digest), Fault::stall(100_000, &gate));
    let url = scene.mirror.blob(SECRET, layer.digest);
    let mut stream = bob(get(&url)).stream().await;
    stream.at_least(100_000).await;
    for url in [&url, &scene.mirror.blob(PUBLIC, layer.digest)] {
        assert_refused(&get(url).send().await, 404);
        assert_eq!(head(url).send().await.status, 404);
    }
    gate.open();
    assert!(stream.rest().await.is_whole());
    assert_eq!(scene.hub.gets_of(&layer.digest), 1, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn what_is_public_is_for_everybody() {
    let (scene, _, public) = scene(|builder| builder).await;
    is_visible(&scene.mirror.url(), PUBLIC, &public, |ask| ask).await;
    // Whether it is public is asked once, not each time.
    let asked = scene.hub.requests().len();
    for _ in 0..3 {
        pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    }
    let config = 2;
    assert!(scene.hub.requests().len() <= asked + config, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn what_becomes_private_is_private_after_a_restart() {
    let (scene, _, public) = scene(|builder| builder).await;
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    scene.is_sound().await;
    scene.hub.private(PUBLIC);
    let scene = scene.restart(|builder| builder).await;
    is_invisible(&scene, PUBLIC, &public).await;
    let scene = scene.restart(Builder::offline).await;
    is_invisible_in(&scene, PUBLIC, &public).await;
}

async fn is_invisible_in(scene: &Scene, name: &str, image: &Pushed) {
    for ask in all_of(&scene.mirror.url(), name, image) {
        assert_eq!(ask.send().await.status, 404);
    }
}

#[tokio::test]
async fn an_operator_may_share_what_is_private() {
    let (scene, secret, _) = scene(|builder| builder.private_to_anyone("docker.io")).await;
    is_visible(&scene.mirror.url(), SECRET, &secret, |ask| ask).await;
    scene.is_sound().await;
}

#[tokio::test]
async fn a_mirror_without_a_login_has_nothing_private() {
    let hub = Registry::hub().await;
    hub.private(SECRET);
    let image = hub.image(SECRET, "latest", Image::layers([1000]));
    let scene = Scene::with(hub, |builder| builder.user("bob", "guess").set("access", "networks", "[\"127.0.0.0/8\"]"));
    for ask in all_of(&scene.mirror.url(), SECRET, &image) {
        assert_eq!(bob(ask).send().await.status, 404);
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn a_login_that_is_refused_is_said_to_be() {
    let (scene, secret, _) = scene(|builder| builder.login("docker.io", "ann", "wrong")).await;
    let reply = bob(get(scene.mirror.manifest(SECRET, "latest"))).send().await;
    assert_refused(&reply, 403);
    assert_eq!(reply.json()["errors"][0]["code"], "DENIED");
    is_invisible_in(&scene, SECRET, &secret).await;
    scene.is_sound().await;
}

#[tokio::test]
async fn a_login_reaches_the_token_service_only_and_the_stranger_s_question_goes_without() {
    let (scene, _, _) = scene(|builder| builder).await;
    pull_with(&scene.mirror.url(), SECRET, "latest", bob).await.unwrap();
    pull(&scene.mirror.url(), PUBLIC, "latest").await.unwrap();
    let requests = scene.hub.requests();
    let basic = |record: &&registry::Record| record.header("authorization").is_some_and(|text| text.starts_with("Basic "));
    assert!(requests.iter().filter(basic).all(|record| record.port == Port::Auth), "{}", scene.hub.story());
    assert!(requests.iter().any(|record| basic(&record)));
    assert!(requests.iter().any(|record| record.kind == Kind::Token && !basic(&record)), "a token for anybody:\n{}", scene.hub.story());
    // Nor does what the clients proved to the mirror go on to the registry.
    let bobs = |record: &&registry::Record| record.header("authorization") == Some("Basic Ym9iOmd1ZXNz");
    assert_eq!(requests.iter().filter(bobs).count(), 0);
    scene.is_sound().await;
}
