use std::fs;

use super::{REPO, file_of};
use crate::support::MIB;
use crate::support::client::{get, pull};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{Blob, Image, Registry};

#[tokio::test]
async fn a_rotten_blob_is_found_before_anybody_asks_for_it_and_fetched_again() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([3 * MIB, MIB]));
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    let settings = mirror.stop().await;
    let (rotten, sound) = (&image.layers[0], &image.layers[1]);
    let file = file_of(&settings.data(), &rotten.digest);
    let mut bytes = fs::read(&file).unwrap();
    bytes[1_000_000] ^= 1;
    fs::write(&file, bytes).unwrap();

    let mirror = settings.patrol("1GiB").start();
    let in_its_first_round = async || mirror.count("millpond_patrol_rounds_total", &[]).await == 0;
    within("a round of the patrol", async { while in_its_first_round().await {} }).await;
    assert_eq!(mirror.count("millpond_patrol_findings_total", &[]).await, 1);
    assert_eq!(mirror.count("millpond_patrol_files_total", &[]).await, 4, "the manifest, the config, the layers");
    assert!(mirror.count("millpond_patrol_bytes_total", &[]).await > 4 * MIB);
    assert!(!file.exists());
    assert_eq!(plain.gets_of(&rotten.digest), 1, "nothing is fetched that nobody asks for: {}", plain.story());

    let reply = get(mirror.blob(REPO, rotten.digest)).fetch().await;
    assert!(reply.is_whole() && reply.digest == rotten.digest, "{reply:?}");
    get(mirror.blob(REPO, sound.digest)).fetch().await;
    mirror.settled().await;
    assert_eq!((plain.gets_of(&rotten.digest), plain.gets_of(&sound.digest)), (2, 1), "{}", plain.story());
    let audit = mirror.stop().await.audit();
    assert_eq!(audit.assert_sound().assert_temporary(0).quarantined.len(), 1);
}

#[tokio::test]
async fn after_a_power_cut_what_is_wrong_is_set_aside_at_once_and_unasked() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([3 * MIB, MIB]));
    let settings = Builder::new().upstream("docker.io", &plain);
    let program = settings.clone().spawn().await;
    pull(&program.url(), REPO, "latest").await.unwrap();
    program.settled().await;
    // It dies with its host, on whose disk a file that was evicted is back with the bytes of another.
    let settings = program.kill().await;
    fs::write(settings.data().join("BOOT"), "another").unwrap();
    let evicted = Blob::seeded(99, 2 * MIB);
    let file = file_of(&settings.data(), &evicted.digest);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, Blob::seeded(98, 2 * MIB).content.to_bytes()).unwrap();

    // At this rate the usual round would open a file in four days.
    let mirror = settings.patrol("1B").start();
    let left = async || {
        mirror.count("millpond_patrol_files_total", &[]).await < 5 || mirror.count("millpond_patrol_unverified_bytes", &[]).await > 0
    };
    within("the survey", async { while left().await {} }).await;
    assert_eq!(mirror.count("millpond_patrol_findings_total", &[]).await, 1);
    assert!(!file.exists());
    mirror.settings().audit().assert_sound();
    assert_eq!(pull(&mirror.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    assert_eq!(plain.gets_of(&image.layers[0].digest), 1, "what was found sound is held: {}", plain.story());

    // What was verified once is not read again, by a start that follows.
    let mirror = mirror.stop().await.start();
    get(mirror.url() + "/v2/").send().await;
    let read = mirror.count("millpond_patrol_files_total", &[]).await;
    assert_eq!((read, mirror.count("millpond_patrol_unverified_bytes", &[]).await), (0, 0));
    assert_eq!(mirror.stop().await.audit().assert_sound().quarantined.len(), 1);
}

#[tokio::test]
async fn a_patrol_at_full_speed_disturbs_no_pull() {
    let plain = Registry::plain().await;
    // Evicted all the time, while everything is read.
    let mirror = Builder::new().upstream("docker.io", &plain).max_size("6MiB").tag_ttl("1h").patrol("1GiB").start();
    for n in 0..12 {
        let tag = format!("t{n}");
        let image = plain.image(REPO, &tag, Image::layers([2 * MIB, MIB]).seed(n));
        assert_eq!(pull(&mirror.url(), REPO, &tag).await.map(|pulled| pulled.digest), Ok(image.digest), "{tag}");
    }
    mirror.settled().await;
    assert_eq!(mirror.count("millpond_patrol_findings_total", &[]).await, 0);
    let audit = mirror.stop().await.audit();
    assert!(audit.assert_sound().assert_temporary(0).bytes <= 6 * MIB);
    assert!(audit.quarantined.is_empty());
}
