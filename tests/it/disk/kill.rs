use std::fs;
use std::time::Instant;

use super::REPO;
use crate::support::MIB;
use crate::support::client::{get, pull};
use crate::support::gate::Gate;
use crate::support::mirror::Builder;
use crate::support::registry::{Fault, Image, Record, Registry};
use crate::support::tally::Tally;

#[tokio::test]
async fn a_kill_in_the_middle_of_a_fill_leaves_nothing_half_done() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([2 * MIB, 100]));
    let gate = Gate::closed();
    plain.on(plain.body_of(&image.layers[0].digest), Fault::stall(MIB, &gate));
    let program = Builder::new().upstream("docker.io", &plain).spawn().await;
    assert_eq!(get(program.manifest(REPO, "latest")).send().await.status, 200);
    let mut stream = get(program.blob(REPO, image.layers[0].digest)).stream().await;
    assert_eq!(stream.at_least(1 << 20).await.len() as u64, MIB);
    let settings = program.kill().await;
    assert!(!settings.audit().assert_sound().temporary.is_empty(), "the half of a blob");
    assert!(!stream.rest().await.is_whole(), "a killed server ends no body cleanly");
    gate.open();

    let again = settings.spawn().await;
    again.settings().audit().assert_sound().assert_temporary(0);
    assert_eq!(pull(&again.url(), REPO, "latest").await.unwrap().digest, image.digest);
    again.settled().await;
    let (status, settings) = again.terminate().await;
    assert_eq!(status.code(), Some(0));
    settings.audit().assert_sound().assert_temporary(0).assert_holds(image.blobs().map(|blob| &blob.digest).chain([&image.digest]));
}

/// How many kills; `MILLPOND_KILLS` for a longer run.
fn kills() -> u64 {
    std::env::var("MILLPOND_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// While images are pulled, also beyond the limit so that others are evicted, the program is killed when the upstream has
/// sent a random number of their bytes; every fourth time when it has sent all of them, so that commits are under way.
#[tokio::test]
async fn kills_at_random_moments_leave_whole_blobs_and_a_mirror_that_starts() {
    let plain = Registry::plain().await;
    let random = std::env::var("MILLPOND_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("MILLPOND_SEED={random}");
    let mut rng = fastrand::Rng::with_seed(random);
    let mut settings = Builder::new().upstream("docker.io", &plain).max_size("10MiB");
    let size = |record: &Record| record.sent;
    let mut tally = Tally::of("kill -9 at a random moment under load");
    for round in 0..kills() {
        let sizes = [MIB, MIB / 2, 100_000, 60_000, 700];
        let (left, right) = (format!("left-{round}"), format!("right-{round}"));
        let images = [(&left, 1), (&right, 2)].map(|(tag, n)| plain.image(REPO, tag, Image::layers(sizes).seed(round * 10 + n)));
        let bytes: u64 = images
            .iter()
            .map(|image| image.manifest.len() as u64 + image.blobs().map(crate::support::registry::Blob::len).sum::<u64>())
            .sum();
        let moment = if rng.u8(..4) == 0 { bytes } else { rng.u64(..bytes) };

        let program = settings.spawn().await;
        plain.forget();
        let pulls: Vec<_> = [left.clone(), right.clone()]
            .map(|tag| {
                let url = program.url();
                tokio::spawn(async move { pull(&url, REPO, &tag).await })
            })
            .into();
        plain.wait_for("a moment to kill", |log| log.iter().map(size).sum::<u64>() >= moment).await;
        settings = program.kill().await;
        settings.audit().assert_sound();
        for pull in pulls {
            // Most are cut off; none has a wrong byte, which the client would have called so.
            if let Err(why) = pull.await.unwrap() {
                assert!(!why.contains("wrong bytes"), "{why}");
            }
        }

        let began = Instant::now();
        let program = settings.spawn().await;
        program.settings().audit().assert_sound().assert_temporary(0);
        for (tag, image) in [left, right].iter().zip(&images) {
            assert_eq!(
                pull(&program.url(), REPO, tag).await.map(|pulled| pulled.digest),
                Ok(image.digest),
                "round {round}, {moment} bytes"
            );
        }
        tally.again(began.elapsed());
        settings = program.kill().await;
        let audit = settings.audit();
        audit.assert_sound();
        assert!(audit.bytes <= 10 * MIB && audit.quarantined.is_empty(), "{audit:?}");
    }
    tally.note();
    assert!(fs::read_dir(settings.data().join("quarantine")).unwrap().next().is_none());
}
