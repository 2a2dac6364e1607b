use std::fs;

use super::{REPO, file_of};
use crate::support::MIB;
use crate::support::client::{get, pull};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{Image, Registry};

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
