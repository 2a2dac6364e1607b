use crate::support::client::{get, pull, pull_with};
use crate::support::mirror::Builder;
use crate::support::registry::{Image, Kind, Pushed, Registry};
use crate::support::scene::{REPO, Scene, assert_refused};

const TABLE: &str = "upstreams.\"docker.io\"";
const SECRET: &str = "team/secret";

/// Two users there, two accounts here.
async fn scene_with(set: impl FnOnce(Builder) -> Builder) -> Scene {
    let hub = Registry::hub().await;
    hub.user("ann", "pw-a");
    hub.user("bob", "pw-b");
    Scene::with(hub, |builder| set(builder.account("docker.io", "a", "ann", "pw-a").account("docker.io", "b", "bob", "pw-b")))
}

/// In front of public images only: nothing is asked about who may see them.
async fn scene() -> Scene {
    scene_with(|builder| builder.private_to_anyone("docker.io").set("access", "networks", "[\"127.0.0.0/8\"]")).await
}

impl Scene {
    /// Pushes an image and asks for it; it costs one pull.
    async fn fresh(&self, n: u64) -> (Pushed, u16) {
        let image = self.hub.image(REPO, &format!("t{n}"), Image::layers([10]).seed(n));
        let reply = self.manifest(format!("t{n}")).send().await;
        (image, reply.status)
    }

    fn limited(&self) -> usize {
        self.hub.requests().iter().filter(|record| record.status == Some(429)).count()
    }
}

#[tokio::test]
async fn the_one_with_the_most_pulls_left_is_used() {
    let scene = scene().await;
    scene.hub.pulls_left_to("ann", 30);
    scene.hub.pulls_left_to("bob", 90);
    for n in 0..20 {
        assert_eq!(scene.fresh(n).await.1, 200);
    }
    assert_eq!((scene.hub.pulls_of("ann") - 70, scene.hub.pulls_of("bob") - 10), (1, 19), "one to find out");
    let left = async |labels: &[&str]| scene.mirror.count("millpond_upstream_account_ratelimit_remaining", labels).await;
    assert_eq!((left(&[r#"account="a""#]).await, left(&[r#"account="b""#]).await), (29, 71));
    assert_eq!(scene.mirror.count("millpond_upstream_ratelimit_remaining", &[]).await, 100, "together");
    assert_eq!(scene.mirror.count("millpond_upstream_ratelimit_limit", &[]).await, 200);
    scene.is_sound().await;
}

#[tokio::test]
async fn one_that_is_limited_is_left_alone_and_the_other_asked() {
    let scene = scene().await;
    scene.hub.pulls_left_to("ann", 0);
    for n in 0..5 {
        assert_eq!(scene.fresh(n).await.1, 200);
    }
    assert_eq!((scene.limited(), scene.hub.pulls_of("bob")), (1, 5), "{}", scene.hub.story());
    scene.hub.pulls_left_to("bob", 0);
    for n in 5..8 {
        assert_eq!(scene.fresh(n).await.1, 429);
    }
    assert_eq!((scene.limited(), scene.hub.pulls_of("")), (2, 0), "the address's own budget is not for this:\n{}", scene.hub.story());
    assert_eq!(scene.manifest("t0").send().await.status, 200, "held");
    scene.is_sound().await;
}

#[tokio::test]
async fn the_budget_of_the_address_is_used_where_the_operator_says_so() {
    let hub = Registry::hub().await;
    hub.user("ann", "pw-a");
    let scene = Scene::with(hub, |builder| {
        let builder = builder.login("docker.io", "ann", "pw-a").private_to_anyone("docker.io");
        builder.set(TABLE, "anonymous", "true").set("access", "networks", "[\"127.0.0.0/8\"]")
    });
    scene.hub.pulls_left_to("ann", 0);
    for n in 0..3 {
        assert_eq!(scene.fresh(n).await.1, 200);
    }
    assert_eq!((scene.limited(), scene.hub.pulls_of("")), (1, 3), "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_repository_that_one_of_them_sees_is_found_and_remembered_and_stays_private() {
    let scene = scene_with(|builder| builder.user("carl", "guess").set("access", "networks", "[\"127.0.0.0/8\"]")).await;
    let secret = scene.hub.image(SECRET, "latest", Image::layers([500]).seed(7));
    let next = scene.hub.image(SECRET, "next", Image::layers([600]).seed(8));
    scene.hub.private_to(SECRET, "bob");
    let url = |what: &str| format!("{}/v2/{SECRET}/{what}", scene.mirror.url());
    let asked = || scene.hub.requests().len();
    let pulled = pull_with(&scene.mirror.url(), SECRET, "latest", |ask| ask.basic("carl", "guess")).await;
    assert_eq!(pulled.unwrap_or_else(|error| panic!("{error}\n{}", scene.hub.story())).digest, secret.digest);

    scene.hub.forget();
    let reply = get(url("manifests/next")).basic("carl", "guess").send().await;
    assert_eq!((reply.status, &reply.body), (200, &next.manifest));
    assert_eq!((asked(), scene.hub.count(Kind::Manifest.get())), (1, 1), "ann is not asked again:\n{}", scene.hub.story());
    let reply = get(url("manifests/absent")).basic("carl", "guess").send().await;
    assert_refused(&reply, 404);
    assert_eq!(asked(), 2, "who sees the rest is believed that this is not there:\n{}", scene.hub.story());

    // With whichever login it was got: strangers see nothing of it.
    for what in ["manifests/latest", "tags/list"] {
        assert_refused(&get(url(what)).send().await, 404);
    }
    assert_refused(&get(url(&format!("manifests/{}", secret.digest))).send().await, 404);
    for blob in secret.blobs() {
        assert_refused(&get(url(&format!("blobs/{}", blob.digest))).send().await, 404);
        assert_refused(&get(scene.mirror.blob(REPO, blob.digest)).send().await, 404);
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn what_none_of_them_sees_is_refused_after_each_was_asked_once() {
    let scene = scene().await;
    scene.hub.image(SECRET, "latest", Image::layers([500]).seed(7));
    scene.hub.private_to(SECRET, "dora");
    assert!(matches!(get(scene.mirror.manifest(SECRET, "latest")).send().await.status, 403 | 404));
    assert_eq!(scene.hub.count(Kind::Manifest.get()), 3, "the challenge, and one question each:\n{}", scene.hub.story());
}

#[tokio::test]
async fn one_whose_password_is_wrong_keeps_nobody_from_pulling() {
    let scene = scene().await;
    scene.hub.user("ann", "changed");
    let image = scene.hub.image(REPO, "latest", Image::layers([500]));
    assert_eq!(pull(&scene.mirror.url(), REPO, "latest").await.unwrap().digest, image.digest);
    assert_eq!((scene.hub.pulls_of("ann"), scene.hub.pulls_of("bob")), (0, 1), "{}", scene.hub.story());
    // A new password in the file is used as soon as the old one is refused.
    std::fs::write(scene.mirror.settings().beside("password-docker.io-a"), "changed").unwrap();
    scene.hub.pulls_left_to("bob", 0);
    assert_eq!(scene.fresh(1).await.1, 200);
    assert_eq!(scene.hub.pulls_of("ann"), 1, "{}", scene.hub.story());
    scene.is_sound().await;
}
