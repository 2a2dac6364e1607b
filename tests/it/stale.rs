//! Tags: believed for a while, then asked about once for all; served stale when the upstream cannot answer, and not when it
//! has spoken.

use std::time::Duration;

use futures_util::future::join_all;

use crate::support::client::{Reply, head, pull};
use crate::support::gate::Gate;
use crate::support::patience::within;
use crate::support::registry::{Fault, Head, Image, Kind, Port, Pushed, Record, Registry};
use crate::support::scene::{REPO, Scene, assert_refused};

const HIT: &str = "millpond; hit";
const RENEWED: &str = "millpond; fwd=stale; fwd-status=200";
const STALE: &str = "millpond; fwd=stale; detail=served-stale";

/// Longer than a tag is believed (a minute).
const OLD: Duration = Duration::from_secs(61);
/// Longer than an upstream that failed is left alone.
const RESTED: Duration = Duration::from_secs(11);

/// Lets the clock of the mirror go on, all at once.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// A scene with a held image under the tag `latest`; the registry has forgotten how it came there.
async fn scene() -> (Scene, Pushed) {
    let scene = Scene::new().await;
    let image = scene.hold("latest").await;
    scene.hub.forget();
    (scene, image)
}

fn assert_is(reply: &Reply, image: &Pushed, status: &str) {
    assert_eq!((reply.status, reply.header("cache-status")), (200, Some(status)), "{:?}", reply.body);
    assert_eq!((reply.header("docker-content-digest"), &reply.body), (Some(image.digest.to_string().as_str()), &image.manifest));
}

impl Scene {
    async fn latest(&self) -> Reply {
        self.manifest("latest").send().await
    }

    /// How many manifests the registry was asked for, by HEAD and by GET.
    fn asked_for(&self) -> (usize, usize) {
        let count = |want| self.hub.matching(want).iter().filter(|record: &&Record| record.status != Some(401)).count();
        (count(Kind::Manifest.head()), count(Kind::Manifest.get()))
    }

    async fn served_stale(&self) -> u64 {
        self.mirror.count("millpond_stale_served_total", &[]).await
    }
}

#[tokio::test]
async fn a_young_tag_is_believed_without_asking() {
    let (scene, image) = scene().await;
    later(Duration::from_secs(50)).await;
    for _ in 0..3 {
        assert_is(&scene.latest().await, &image, HIT);
        assert_eq!(head(scene.mirror.manifest(REPO, "latest")).send().await.header("cache-status"), Some(HIT));
    }
    assert_eq!(scene.hub.requests().len(), 0, "{}", scene.hub.story());
}

#[tokio::test]
async fn an_old_tag_is_asked_about_once_for_all_who_wait() {
    let (scene, image) = scene().await;
    later(OLD).await;
    let gate = Gate::closed();
    scene.hub.on(Kind::Manifest, Fault::wait(&gate));
    let clients: Vec<_> = (0..32).map(|_| tokio::spawn(scene.manifest("latest").send())).collect();
    gate.reached(1).await;
    scene.heard().await;
    gate.open();
    let replies: Vec<Reply> = join_all(clients).await.into_iter().map(Result::unwrap).collect();
    for reply in &replies {
        assert_eq!((reply.status, &reply.body), (200, &image.manifest));
    }
    assert_is(&replies[0], &image, RENEWED);
    assert_eq!(scene.asked_for(), (1, 0), "{}", scene.hub.story());
    // An unchanged tag is as good as new.
    later(Duration::from_secs(50)).await;
    assert_is(&scene.latest().await, &image, HIT);
    assert_eq!(scene.asked_for(), (1, 0), "{}", scene.hub.story());
    assert_eq!(scene.served_stale().await, 0);
}

#[tokio::test]
async fn a_tag_that_moved_is_one_head_and_one_get() {
    let (scene, _) = scene().await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    later(OLD).await;
    let gate = Gate::closed();
    scene.hub.on(Kind::Manifest, Fault::wait(&gate));
    let clients: Vec<_> = (0..32).map(|_| tokio::spawn(scene.manifest("latest").send())).collect();
    gate.reached(1).await;
    scene.heard().await;
    gate.open();
    for reply in join_all(clients).await.into_iter().map(Result::unwrap) {
        assert_eq!((reply.status, &reply.body), (200, &new.manifest));
    }
    assert_eq!(scene.asked_for(), (1, 1), "{}", scene.hub.story());
    assert_is(&scene.latest().await, &new, HIT);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_head_of_a_tag_that_moved_says_so_and_fetches_nothing() {
    let (scene, _) = scene().await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    later(OLD).await;
    for _ in 0..3 {
        let reply = head(scene.mirror.manifest(REPO, "latest")).send().await;
        assert_eq!((reply.status, reply.header("docker-content-digest")), (200, Some(new.digest.to_string().as_str())));
    }
    assert_eq!(scene.asked_for(), (1, 0), "{}", scene.hub.story());
    assert_eq!(scene.manifest(new.digest).send().await.body, new.manifest);
    scene.until("the new manifest is on disk", |audit| audit.blobs.contains(&new.digest)).await;
    assert_eq!(scene.latest().await.body, new.manifest);
    assert_eq!(scene.asked_for(), (1, 1), "{}", scene.hub.story());
}

#[tokio::test]
async fn a_tag_that_moved_back_and_forth_costs_a_head_each_time() {
    let (scene, old) = scene().await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    later(OLD).await;
    assert_is(&scene.latest().await, &new, RENEWED);
    scene.hub.tag(REPO, "latest", &old.digest);
    scene.hub.forget();
    scene.until("the new manifest is on disk", |audit| audit.blobs.contains(&new.digest)).await;
    let scene = scene.restart(|builder| builder.tag_ttl("0s")).await;
    assert_is(&scene.latest().await, &old, RENEWED);
    assert_eq!(scene.asked_for(), (1, 0), "both are held:\n{}", scene.hub.story());
}

/// An upstream that cannot answer: the tag is served stale, the upstream is left alone, and asked again when it has rested.
async fn is_served_stale(scene: &Scene, image: &Pushed) {
    later(OLD).await;
    let stale = scene.served_stale().await;
    assert_is(&scene.latest().await, image, STALE);
    let asked = scene.asked_for();
    for _ in 0..3 {
        assert_is(&scene.latest().await, image, STALE);
        assert_eq!(head(scene.mirror.manifest(REPO, "latest")).send().await.header("cache-status"), Some(STALE));
    }
    assert_eq!(scene.asked_for(), asked, "it is left alone:\n{}", scene.hub.story());
    assert_eq!(scene.served_stale().await - stale, 7);
    assert_eq!(pull(&scene.mirror.url(), REPO, "latest").await.unwrap().digest, image.digest);
}

#[tokio::test]
async fn an_outage_serves_stale_and_its_end_renews() {
    let (scene, image) = scene().await;
    scene.hub.down().await;
    is_served_stale(&scene, &image).await;
    later(RESTED).await;
    assert_is(&scene.latest().await, &image, STALE);
    scene.hub.up().await;
    later(RESTED).await;
    assert_is(&scene.latest().await, &image, RENEWED);
    assert_is(&scene.latest().await, &image, HIT);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_failing_upstream_serves_stale_and_its_end_renews() {
    for fault in [
        Fault::status(500),
        Fault::status(502),
        Fault::status(503),
        Fault::status(504),
        Fault::bad_gateway(),
        Fault::html().without("Docker-Content-Digest"),
        Fault::hang_up(),
        Fault::hang_up_reset(),
        Fault::redirect_loop(307),
        Fault::status(418),
    ] {
        let (scene, image) = scene().await;
        scene.hub.on(Kind::Manifest, fault.clone());
        is_served_stale(&scene, &image).await;
        scene.hub.heal();
        later(RESTED).await;
        assert_is(&scene.latest().await, &image, RENEWED);
    }
}

#[tokio::test]
async fn a_rate_limit_serves_stale_until_it_is_over() {
    for fault in [Fault::too_many(Some(30)), Fault::too_many(None), Fault::hap429()] {
        let (scene, image) = scene().await;
        scene.hub.on(Kind::Manifest, fault.once());
        is_served_stale(&scene, &image).await;
        assert_eq!(scene.hub.requests().len(), 1, "{}", scene.hub.story());
        later(OLD).await;
        assert_is(&scene.latest().await, &image, RENEWED);
    }
}

#[tokio::test]
async fn an_upstream_without_a_working_token_service_serves_stale() {
    let (scene, image) = scene().await;
    scene.hub.down_at(Port::Auth).await;
    scene.hub.revoke_tokens();
    is_served_stale(&scene, &image).await;
    scene.hub.up_at(Port::Auth).await;
    later(RESTED).await;
    assert_is(&scene.latest().await, &image, RENEWED);
}

#[tokio::test]
async fn a_new_manifest_that_cannot_be_had_leaves_the_old_one() {
    let (scene, old) = scene().await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    scene.hub.on(Kind::Manifest.of(new.digest).get(), Fault::status(503));
    later(OLD).await;
    assert_is(&scene.latest().await, &old, STALE);
    let asked = scene.asked_for();
    assert_is(&scene.latest().await, &old, STALE);
    assert_eq!(scene.asked_for(), asked, "it is left alone:\n{}", scene.hub.story());
    scene.hub.heal();
    later(RESTED).await;
    assert_eq!(scene.latest().await.body, new.manifest, "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn a_new_manifest_that_is_wrong_leaves_the_old_one() {
    let (scene, old) = scene().await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    scene.hub.on(Kind::Manifest.of(new.digest).get(), Fault::flip(3));
    later(OLD).await;
    assert_is(&scene.latest().await, &old, STALE);
    assert_eq!(scene.verify_failures().await, 1);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_tag_that_is_gone_is_gone() {
    let (scene, image) = scene().await;
    scene.hub.untag(REPO, "latest");
    later(OLD).await;
    assert_refused(&scene.latest().await, 404);
    let asked = scene.asked_for();
    for _ in 0..3 {
        assert_refused(&scene.latest().await, 404);
        assert_eq!(head(scene.mirror.manifest(REPO, "latest")).send().await.status, 404);
    }
    assert_eq!(scene.asked_for(), asked, "it is remembered:\n{}", scene.hub.story());
    // Nor does it come back when the upstream goes away; but the manifest is still held.
    scene.hub.down().await;
    assert_refused(&scene.latest().await, 404);
    assert_eq!(scene.manifest(image.digest).send().await.status, 200);
    let scene = scene.restart(|builder| builder).await;
    assert_refused(&scene.latest().await, 503);
}

#[tokio::test]
async fn a_refusal_is_believed_and_not_answered_with_what_is_held() {
    for fault in [Fault::status(403), Fault::status(401), Fault::challenge(), Fault::status(404), Fault::status(410)] {
        let (scene, _) = scene().await;
        scene.hub.on(Kind::Manifest, fault.clone());
        later(OLD).await;
        let reply = scene.latest().await;
        assert!([403, 404].contains(&reply.status), "{fault:?}: {reply:?}");
        assert_eq!(scene.served_stale().await, 0);
        assert!(scene.hub.count(Kind::Manifest) <= 2, "{}", scene.hub.story());
    }
}

#[tokio::test]
async fn a_refusal_that_passes_costs_no_pull() {
    let (scene, image) = scene().await;
    scene.hub.on(Kind::Manifest, Fault::status(403).once());
    later(OLD).await;
    assert_refused(&scene.latest().await, 404);
    // The refusal is remembered for a moment; what was held is still there when it is over.
    later(RESTED).await;
    assert_is(&scene.latest().await, &image, RENEWED);
    assert_eq!(scene.asked_for().1, 0, "{}", scene.hub.story());
}

#[tokio::test]
async fn a_page_of_something_in_the_way_is_no_refusal() {
    let (scene, image) = scene().await;
    let page = Fault::status(403).header("content-type", "text/html; charset=utf-8").body("<html>not from your country</html>");
    scene.hub.on(Kind::Manifest, page.clone());
    later(OLD).await;
    assert_is(&scene.latest().await, &image, STALE);
    scene.hub.heal();
    scene.hub.on(Kind::Token, page);
    scene.hub.revoke_tokens();
    later(OLD).await;
    assert_is(&scene.latest().await, &image, STALE);
}

#[tokio::test]
async fn a_client_does_not_wait_for_an_upstream_that_hangs() {
    let (scene, image) = scene().await;
    later(OLD).await;
    let gate = Gate::closed();
    scene.hub.on(Kind::Manifest, Fault::wait(&gate));
    let client = tokio::spawn(scene.manifest("latest").send());
    gate.reached(1).await;
    scene.heard().await;
    assert!(!client.is_finished());
    later(Duration::from_secs(3)).await;
    assert_is(&client.await.unwrap(), &image, STALE);
    assert_is(&scene.latest().await, &image, STALE);
    assert_eq!(scene.asked_for(), (1, 0), "the question goes on:\n{}", scene.hub.story());
    gate.open();
    within("the answer behind the stale one", async {
        while scene.latest().await.header("cache-status") != Some(HIT) {
            scene.heard().await;
        }
    })
    .await;
    assert_eq!(scene.asked_for(), (1, 0), "{}", scene.hub.story());
}

#[tokio::test]
async fn a_client_does_not_wait_for_a_new_manifest_that_hangs() {
    let (scene, old) = scene().await;
    let new = scene.hub.image(REPO, "latest", Image::layers([10]).seed(2));
    let gate = Gate::closed();
    scene.hub.on(Kind::Manifest.of(new.digest).get(), Fault::wait(&gate));
    later(OLD).await;
    let client = tokio::spawn(scene.manifest("latest").send());
    gate.reached(1).await;
    later(Duration::from_secs(3)).await;
    assert_is(&client.await.unwrap(), &old, STALE);
    assert_is(&scene.latest().await, &old, STALE);
    gate.open();
    within("the new manifest behind the old one", async {
        while scene.latest().await.body != new.manifest {
            scene.heard().await;
        }
    })
    .await;
    assert_eq!(scene.asked_for(), (1, 1), "{}", scene.hub.story());
    scene.is_sound().await;
}

#[tokio::test]
async fn what_is_too_old_is_not_served_at_all() {
    let scene = Scene::with(Registry::hub().await, |builder| builder.max_stale("1h"));
    let image = scene.hold("latest").await;
    scene.hub.down().await;
    later(Duration::from_secs(3500)).await;
    assert_is(&scene.latest().await, &image, STALE);
    later(Duration::from_secs(200)).await;
    assert_refused(&scene.latest().await, 503);
    // By digest it is what it is for ever.
    assert_eq!(scene.manifest(image.digest).send().await.body, image.manifest);
    scene.hub.up().await;
    later(RESTED).await;
    assert_eq!(scene.latest().await.body, image.manifest);
}

#[tokio::test]
async fn a_restart_forgets_no_tag() {
    let (scene, image) = scene().await;
    scene.hub.down().await;
    let scene = scene.restart(|builder| builder).await;
    assert_is(&scene.latest().await, &image, HIT);
    let scene = scene.restart(|builder| builder.tag_ttl("0s")).await;
    assert_is(&scene.latest().await, &image, STALE);
    assert_eq!(pull(&scene.mirror.url(), REPO, "latest").await.unwrap().digest, image.digest);
    scene.is_sound().await;
}

#[tokio::test]
async fn offline_nobody_is_asked() {
    let (scene, image) = scene().await;
    let scene = scene.restart(|builder| builder.offline().tag_ttl("0s").max_stale("0s")).await;
    assert_eq!(pull(&scene.mirror.url(), REPO, "latest").await.unwrap().digest, image.digest);
    assert_is(&scene.latest().await, &image, STALE);
    assert_eq!(scene.tags().await.json()["tags"], serde_json::json!(["latest"]));
    let absent = scene.push(9, 10);
    for ask in [scene.manifest("other"), scene.manifest(absent.digest), scene.get(&absent)] {
        let reply = ask.send().await;
        assert_refused(&reply, 404);
        assert!(reply.text().contains("offline"), "{}", reply.text());
    }
    assert_eq!(head(scene.url(&absent)).send().await.status, 404);
    assert_eq!(scene.hub.requests().len(), 0, "{}", scene.hub.story());
}

#[tokio::test]
async fn a_head_and_a_get_by_digest_make_a_tag() {
    // What dockerd does: it never asks for the tag by GET.
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    assert_eq!(head(scene.mirror.manifest(REPO, "latest")).send().await.status, 200);
    assert_eq!(scene.manifest(image.digest).send().await.status, 200);
    scene.hub.down().await;
    let scene = scene.restart(|builder| builder).await;
    assert_is(&scene.latest().await, &image, HIT);
}

#[tokio::test]
async fn a_registry_without_head_is_asked_by_get() {
    for ways in [Head::Refused, Head::NoDigest, Head::NoLength, Head::WithBody] {
        let (scene, image) = scene().await;
        scene.hub.quirks(|quirks| quirks.head = ways);
        later(OLD).await;
        assert_is(&scene.latest().await, &image, RENEWED);
        assert!(scene.asked_for().1 <= 1, "{ways:?}:\n{}", scene.hub.story());
        scene.is_sound().await;
    }
}
