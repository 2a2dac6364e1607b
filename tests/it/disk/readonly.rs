//! A file system that the kernel makes read-only under the running mirror, as it does at the first error of a disk.

use std::fs;
use std::time::Instant;

use super::{REPO, file_of};
use crate::support::client::pull;
use crate::support::lack::{lacking, tool};
use crate::support::mirror::Builder;
use crate::support::registry::{Image, Kind, Registry};
use crate::support::tally::Tally;
use crate::support::volume::Volume;
use crate::support::{KIB, MIB};

#[tokio::test]
async fn a_disk_that_turns_read_only_breaks_no_client() {
    let plain = Registry::plain().await;
    let settings = Builder::new().upstream("docker.io", &plain);
    let image = settings.beside("disk.img");
    let disk = match Volume::make(&image, 64, &["mkfs.ext4", "-q", "-F"], &settings.data(), "errors=remount-ro") {
        Ok(disk) => disk,
        Err(why) => return lacking("a disk that turns read-only", &why),
    };
    let program = settings.spawn().await;
    let held = plain.image(REPO, "held", Image::layers([2 * MIB, 10 * KIB]));
    pull(&program.url(), REPO, "held").await.unwrap();
    program.settled().await;
    let new = plain.image(REPO, "new", Image::layers([2 * MIB, 10 * KIB]).seed(2));
    let settings = program.settings().clone();

    fs::write(format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device().unwrap()), "on purpose").unwrap();
    assert!(fs::write(settings.data().join("x"), "").is_err(), "it is read-only now");
    plain.forget();
    assert_eq!(pull(&program.url(), REPO, "held").await.map(|pulled| pulled.digest), Ok(held.digest));
    assert_eq!(plain.count(Kind::Blob), 0, "{}", plain.story());
    for _ in 0..2 {
        assert_eq!(pull(&program.url(), REPO, "new").await.map(|pulled| pulled.digest), Ok(new.digest));
    }
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "an index that cannot be closed is no reason to fail");

    // A start on such a disk serves what is held, and passes on what is not.
    plain.forget();
    let program = settings.spawn().await;
    for (tag, image) in [("held", &held), ("new", &new), ("new", &new)] {
        assert_eq!(pull(&program.url(), REPO, tag).await.map(|pulled| pulled.digest), Ok(image.digest));
    }
    assert_eq!(plain.gets_of(&held.layers[0].digest), 0, "{}", plain.story());
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0));

    // What an operator does to such a disk.
    let image = disk.unmount().unwrap();
    // Exit code 1: errors were corrected.
    let _ = tool("e2fsck", &["-fy", &image.to_string_lossy()]);
    let disk = Volume::mount(&image, &settings.data(), "").unwrap();
    settings.audit().assert_sound();
    plain.forget();
    let began = Instant::now();
    let program = settings.spawn().await;
    for (tag, image) in [("held", &held), ("new", &new)] {
        assert_eq!(pull(&program.url(), REPO, tag).await.map(|pulled| pulled.digest), Ok(image.digest));
    }
    let mut tally = Tally::of("file system turns read-only");
    tally.again(began.elapsed());
    assert_eq!(plain.gets_of(&held.layers[0].digest), 0, "{}", plain.story());
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0));
    assert!(file_of(&settings.data(), &new.layers[0].digest).exists(), "kept again");
    settings.audit().assert_sound().assert_temporary(0);
    settings.verify().await.unwrap();
    disk.unmount().unwrap();
    tally.note();
}
