use std::time::Duration;

use futures_util::future::join_all;

use super::{CONTAINERD_2, CRANE, CRI_O, Client, REPO, mirror_of};
use crate::support::KIB;
use crate::support::client::{get, head};
use crate::support::gate::Gate;
use crate::support::mirror::Mirror;
use crate::support::registry::{Fault, Image, Index, Kind, OCI_INDEX, Pushed, Referrers, Registry, Want};
use crate::support::scene::Scene;

/// What cosign puts beside an image, by its digest.
const SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];

/// Longer than it is remembered that something is not there (10 s).
const FORGOTTEN: Duration = Duration::from_secs(11);

const COSIGN: Client = Client { agent: "cosign/v2.6.1 (linux; amd64)", pings: false, ..CRANE };
/// policy-controller and kyverno, which name the mirror as their registry; containerd behind them asks with `ns`.
const VERIFIERS: [Client; 4] = [COSIGN, Client { prefix: "/v2", ..COSIGN }, CRI_O, CONTAINERD_2];

fn tag_of(image: &Pushed, suffix: &str) -> String {
    format!("{}.{suffix}", image.digest.to_string().replace(':', "-"))
}

/// Lets the clock of the mirror go on, all at once.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn image_and_mirror(registry: &Registry) -> (Pushed, Mirror) {
    let image = registry.image(REPO, "latest", Image::layers([KIB]));
    let mirror = mirror_of(registry);
    CONTAINERD_2.pull(&mirror, REPO, "latest", &image).await;
    mirror.settled().await;
    registry.forget();
    (image, mirror)
}

/// A verifier asks for every signature of every image it sees, and most have none.
#[tokio::test]
async fn a_signature_that_is_not_there_is_asked_for_once_in_a_while() {
    let hub = Registry::hub().await;
    let (image, mirror) = image_and_mirror(&hub).await;
    for round in 1..=2 {
        for suffix in SUFFIXES {
            for client in VERIFIERS {
                client.assert_unknown(&client.ask_manifest(&mirror, REPO, get, tag_of(&image, suffix)).send().await);
                let bare = client.ask_manifest(&mirror, REPO, head, tag_of(&image, suffix)).send().await;
                assert_eq!((bare.status, bare.body.len()), (404, 0), "{client:?}");
            }
            let asked = hub.matching(Kind::Manifest.of(tag_of(&image, suffix)));
            assert_eq!(asked.iter().filter(|record| record.status == Some(404)).count(), round, "{}", hub.story());
        }
        later(FORGOTTEN).await;
    }
    assert_eq!((hub.pulls(), hub.violations()), (1, vec![]), "{}", hub.story());
}

#[tokio::test]
async fn many_who_ask_for_a_missing_signature_at_once_are_one_request() {
    let scene = Scene::new().await;
    let image = scene.hold("latest").await;
    scene.hub.forget();
    let gate = Gate::closed();
    let tag = tag_of(&image, "sig");
    scene.hub.on(Kind::Manifest.of(&tag), Fault::wait(&gate));
    let asks = (0..32).map(|_| tokio::spawn(COSIGN.ask_manifest(&scene.mirror, REPO, get, &tag).send())).collect::<Vec<_>>();
    gate.reached(1).await;
    scene.heard().await;
    gate.open();
    for reply in join_all(asks).await {
        COSIGN.assert_unknown(&reply.unwrap());
    }
    assert_eq!(scene.hub.count(Kind::Manifest.of(&tag)), 1, "{}", scene.hub.story());
}

/// A signature comes after the image: whoever looked too early sees it a moment later; once seen it outlives the upstream.
#[tokio::test]
async fn a_signature_is_pulled_kept_and_seen_soon_after_it_was_made() {
    let hub = Registry::hub().await;
    let (image, mirror) = image_and_mirror(&hub).await;
    let tags = SUFFIXES.map(|suffix| tag_of(&image, suffix));
    for tag in &tags {
        COSIGN.assert_unknown(&COSIGN.ask_manifest(&mirror, REPO, get, tag).send().await);
    }
    let sign =
        |(n, tag): (u64, &String)| hub.image(REPO, tag, Image::artifact("application/vnd.dev.cosign.artifact.sig.v1+json", 300).seed(n));
    let signatures: Vec<_> = (0..).zip(&tags).map(sign).collect();
    later(FORGOTTEN).await;
    for (tag, signature) in tags.iter().zip(&signatures) {
        for client in VERIFIERS {
            client.pull(&mirror, REPO, tag, signature).await;
        }
        assert_eq!(hub.gets_of(&signature.digest), 1, "{}", hub.story());
    }
    mirror.settled().await;
    hub.down().await;
    for (tag, signature) in tags.iter().zip(&signatures) {
        COSIGN.pull(&mirror, REPO, tag, signature).await;
    }
}

/// docker 29 and containerd ask what refers to an image's attestation, and without the API for the tag that stands for it.
#[tokio::test]
async fn an_image_that_nothing_refers_to_costs_two_requests_whoever_asks() {
    for referrers in [Referrers::Absent, Referrers::Empty] {
        let hub = Registry::hub().await;
        hub.quirks(|quirks| quirks.referrers = referrers);
        let (image, mirror) = image_and_mirror(&hub).await;
        let fallback = image.digest.to_string().replace(':', "-");
        for round in 1..=3 {
            for client in VERIFIERS {
                for filter in ["", "?artifactType=application/vnd.dev.sigstore.bundle.v0.3%2Bjson"] {
                    let reply = client.ask(&mirror, REPO, get, &format!("referrers/{}{filter}", image.digest)).send().await;
                    if referrers == Referrers::Absent {
                        client.assert_unknown(&reply);
                    } else {
                        client.assert_signed(&reply);
                        assert_eq!((reply.status, reply.header("content-type")), (200, Some(OCI_INDEX)), "{client:?}");
                        assert_eq!(reply.json()["manifests"], serde_json::json!([]), "{client:?}");
                    }
                }
                client.assert_unknown(&client.ask_manifest(&mirror, REPO, get, &fallback).send().await);
            }
            let fallbacks = hub.matching(Kind::Manifest.of(&fallback));
            assert_eq!(fallbacks.iter().filter(|record| record.status == Some(404)).count(), 1, "round {round}: {}", hub.story());
            if referrers == Referrers::Absent {
                let asked = hub.matching(Kind::Referrers);
                assert_eq!(asked.iter().filter(|record| record.status == Some(404)).count(), 1, "round {round}: {}", hub.story());
            }
        }
        assert_eq!((hub.pulls(), hub.violations()), (1, vec![]), "{}", hub.story());
    }
}

/// The tag that stands for the API where there is none is found through both doors, and costs one request.
#[tokio::test]
async fn the_referrers_tag_is_found_by_the_api_and_by_name() {
    let hub = Registry::hub().await;
    let (image, mirror) = image_and_mirror(&hub).await;
    let fallback = image.digest.to_string().replace(':', "-");
    let list = hub.index(REPO, &fallback, Index::of([Image::artifact("application/x.sbom", 10).subject(&image)]));
    for client in VERIFIERS {
        let reply = client.ask(&mirror, REPO, get, &format!("referrers/{}", image.digest)).send().await;
        client.assert_signed(&reply);
        assert_eq!((reply.status, &reply.body), (200, &list.manifest), "{client:?}");
        client.pull(&mirror, REPO, &fallback, &list).await;
    }
    assert_eq!(hub.gets_of(&list.digest), 1, "{}", hub.story());
    assert_eq!(hub.matching(Want::any()).iter().filter(|record| record.kind == Kind::Referrers && record.status == Some(404)).count(), 1);
}

/// gitlab.com takes the tag for the digest that it is made of: an index would be listed as what refers to itself, by its platforms.
#[tokio::test]
async fn what_is_no_list_of_referrers_is_not_shown_as_one() {
    let hub = Registry::hub().await;
    let mirror = mirror_of(&hub);
    let index = hub.index(REPO, "multi", Index::platforms(&Image::layers([KIB]), &["linux/amd64"]));
    let image = hub.image(REPO, "single", Image::layers([KIB]).seed(5));
    let other = hub.image(REPO, "other", Image::layers([KIB]).seed(6));
    for (subject, answered) in [(&index, &index), (&image, &image), (&other, &image)] {
        let fallback = subject.digest.to_string().replace(':', "-");
        hub.tag(REPO, &fallback, &answered.digest);
        let reply = CONTAINERD_2.ask(&mirror, REPO, get, &format!("referrers/{}", subject.digest)).send().await;
        CONTAINERD_2.assert_unknown(&reply);
        // By its name it is what it is.
        CONTAINERD_2.pull(&mirror, REPO, &fallback, answered).await;
    }
}
