use std::time::Duration;

use crate::support::client::{get, head};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{Fault, Image, Kind, Pushed, RateLimit, Record, Registry, Want};
use crate::support::scene::{REPO, Scene, assert_refused};

const STALE: &str = "millpond; fwd=stale; detail=served-stale";
/// Longer than a tag is believed.
const OLD: Duration = Duration::from_secs(61);

/// Lets the clock of the mirror go on, all at once.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// How many manifests the registry was asked for, by HEAD and by GET.
fn asked_for(scene: &Scene) -> (usize, usize) {
    let count = |want| scene.hub.matching(want).iter().filter(|record: &&Record| record.status != Some(401)).count();
    (count(Kind::Manifest.head()), count(Kind::Manifest.get()))
}

async fn shown(scene: &Scene, name: &str) -> u64 {
    scene.mirror.count(&format!("millpond_upstream_ratelimit_{name}"), &[r#"upstream="docker.io""#]).await
}

/// A held image, of which the mirror is told at the next question that so few pulls are left.
async fn scene_with(left: u64) -> (Scene, Pushed) {
    let scene = Scene::new().await;
    let image = scene.hold("latest").await;
    scene.hub.pulls_left(left);
    later(OLD).await;
    assert_eq!(scene.manifest("latest").send().await.body, image.manifest);
    assert_eq!(shown(&scene, "remaining").await, left);
    scene.hub.forget();
    (scene, image)
}

#[tokio::test]
async fn a_thousand_pulls_of_a_cached_tag_in_ten_minutes_cost_no_pull_and_ten_heads() {
    let scene = Scene::new().await;
    let image = scene.hold("latest").await;
    scene.hub.forget();
    let spent = scene.hub.pulls();
    for _ in 0..10 {
        later(OLD).await;
        for _ in 0..100 {
            assert_eq!(scene.manifest("latest").send().await.body, image.manifest);
        }
    }
    assert_eq!((asked_for(&scene), scene.hub.pulls() - spent), ((10, 0), 0), "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn what_an_upstream_says_of_it_is_shown() {
    for prefixed in [false, true] {
        let scene = Scene::new().await;
        scene.hub.quirks(|quirks| quirks.rate_limit = Some(RateLimit { limit: 200, window: 3600, prefixed }));
        scene.hold("latest").await;
        let told = (shown(&scene, "remaining").await, shown(&scene, "limit").await, shown(&scene, "window_seconds").await);
        assert_eq!(told, (200 - scene.hub.pulls(), 200, 3600));
        // One account is no choice.
        assert_eq!(scene.mirror.count("millpond_upstream_account_ratelimit_remaining", &[]).await, 0);
    }
}

#[tokio::test]
async fn the_log_says_when_it_runs_low_and_not_at_every_request() {
    let hub = Registry::hub().await;
    hub.quirks(|quirks| quirks.rate_limit = Some(RateLimit { limit: 40, window: 21_600, prefixed: false }));
    let mirror = Builder::new().upstream("docker.io", &hub).traced().spawn().await;
    for n in 0..41 {
        hub.image(REPO, &format!("t{n}"), Image::layers([10]).seed(n));
        let status = get(mirror.manifest(REPO, format!("t{n}"))).send().await.status;
        assert_eq!(status, if n < 40 { 200 } else { 429 });
    }
    let lines = |log: &str, what: &str| log.lines().filter(|line| line.contains(what)).count();
    let told = |log: &str| {
        let what = ["less than half of the pulls are left", "few pulls are left", "no pull is left", "there are pulls enough again"];
        what.map(|what| lines(log, what))
    };
    within("the log", async {
        while lines(&mirror.log(), "it is left alone for 60 s") == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let log = mirror.log();
    assert_eq!(told(&log), [1, 1, 1, 0], "{log}");
    assert_eq!(lines(&log, "203.0.113.7"), 3, "whom it is counted of");
    let page = get(mirror.admin("/metrics")).send().await;
    assert!(!page.text().contains("203.0.113.7"), "that is nobody's business");
}

#[tokio::test]
async fn with_few_pulls_left_a_tag_that_moved_is_believed_for_longer_and_new_images_are_had() {
    let (scene, old) = scene_with(5).await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    for _ in 0..3 {
        later(OLD).await;
        let reply = scene.manifest("latest").send().await;
        assert_eq!((&reply.body, reply.header("cache-status")), (&old.manifest, Some(STALE)));
        let reply = head(scene.mirror.manifest(REPO, "latest")).send().await;
        assert_eq!(reply.header("docker-content-digest"), Some(old.digest.to_string().as_str()), "it would be asked for");
    }
    assert_eq!(asked_for(&scene), (3, 0), "{}", scene.hub.story());
    let other = scene.hub.image(REPO, "other", Image::layers([10]).seed(3));
    assert_eq!(scene.manifest("other").send().await.body, other.manifest);
    assert_eq!(scene.manifest(new.digest).send().await.body, new.manifest, "whoever asks for it gets it");
    assert_eq!(asked_for(&scene), (3, 2), "{}", scene.hub.story());
    scene.until("the new manifest is on disk", |audit| audit.blobs.contains(&new.digest)).await;
    later(OLD).await;
    assert_eq!(scene.manifest("latest").send().await.body, new.manifest, "what is held costs nothing");
    assert_eq!(asked_for(&scene).1, 2, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_tag_that_moved_is_not_believed_for_ever() {
    let (scene, old) = scene_with(5).await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    later(Duration::from_secs(5 * 3600)).await;
    assert_eq!(scene.manifest("latest").send().await.body, old.manifest);
    later(Duration::from_secs(3600 + 61)).await;
    // The word on the budget is of a window that is over, but the question brings a new one.
    assert_eq!(scene.manifest("latest").send().await.body, new.manifest, "six hours are over");
    assert_eq!(asked_for(&scene), (2, 1), "{}", scene.hub.story());
}

#[tokio::test]
async fn a_budget_that_is_back_is_found_out_by_the_next_head() {
    let (scene, old) = scene_with(0).await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    later(OLD).await;
    assert_eq!(scene.manifest("latest").send().await.body, old.manifest);
    assert_eq!(asked_for(&scene), (1, 0), "nothing is asked for that would be refused:\n{}", scene.hub.story());
    scene.hub.pulls_left(100);
    later(OLD).await;
    assert_eq!(scene.manifest("latest").send().await.body, new.manifest);
    assert_eq!(asked_for(&scene), (2, 1), "{}", scene.hub.story());
}

#[tokio::test]
async fn a_limit_is_left_alone_until_it_said_and_no_head_is_sent() {
    let scene = Scene::new().await;
    let held = scene.hold("latest").await;
    scene.hub.image(REPO, "other", Image::layers([10]).seed(3));
    scene.hub.forget();
    scene.hub.on(Kind::Manifest, Fault::too_many(Some(600)).once());
    assert_refused(&scene.manifest("other").send().await, 429);
    for _ in 0..9 {
        later(OLD).await;
        assert_eq!(scene.manifest("latest").send().await.body, held.manifest);
        assert_eq!(head(scene.mirror.manifest(REPO, "latest")).send().await.status, 200);
        assert_refused(&scene.manifest("other").send().await, 429);
    }
    assert_eq!(scene.hub.count(Want::any()), 1, "{}", scene.hub.story());
    later(OLD).await;
    assert_eq!(scene.manifest("other").send().await.status, 200);
    scene.is_sound().await;
}
