//! The power fails under load. The data folder lies on an ext4 in a file on an XFS: a reflink copy of that file is what a disk
//! holds that lost its power at that moment, and mounting the copy replays the journal as the next boot does.

use std::path::Path;
use std::time::{Duration, Instant};

use super::REPO;
use crate::support::client::pull;
use crate::support::lack::{lacking, tool};
use crate::support::mirror::{Builder, Process};
use crate::support::registry::{Blob, Image, Pushed, Record, Registry};
use crate::support::tally::Tally;
use crate::support::volume::Volume;
use crate::support::{KIB, MIB};

/// How many cuts; `MILLPOND_CUTS` for a longer run.
fn cuts() -> u64 {
    std::env::var("MILLPOND_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

/// ext4 as it is by default, and without the help that it gives to programs which forget to sync; names then reach the disk within a
/// second, long before the bytes of their files. Not `data=writeback`: there ext4 gives the blocks of a removed file to
/// another one before the removal is on the disk, so that after a cut an evicted blob may be back with the bytes of the other.
const DISKS: [&str; 2] = ["", "noauto_da_alloc,commit=1"];

/// Two file systems, one in a file of the other. The inner one goes first.
struct Disk {
    _data: Volume,
    _host: Volume,
}

impl Disk {
    fn new(settings: &Builder, options: &str) -> Result<Self, String> {
        let host = settings.beside("host");
        let outer = Volume::make(&settings.beside("host.img"), 384, &["mkfs.xfs", "-q", "-m", "reflink=1"], &host, "")?;
        let inner = Volume::make(&host.join("disk.img"), 96, &["mkfs.ext4", "-q", "-F"], &settings.data(), options)?;
        Ok(Self { _data: inner, _host: outer })
    }
}

#[tokio::test]
async fn a_power_cut_at_any_moment_leaves_whole_blobs_and_a_mirror_that_starts() {
    let random = std::env::var("MILLPOND_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("MILLPOND_SEED={random}");
    let mut rng = fastrand::Rng::with_seed(random);
    let mut tally = Tally::of("power cut under load");
    let plain = Registry::plain().await;
    for (n, options) in (0..).zip(DISKS) {
        let settings = Builder::new().upstream("docker.io", &plain).max_size("12MiB");
        let _disk = match Disk::new(&settings, options) {
            Ok(disk) => disk,
            Err(why) => return lacking("a power cut", &why),
        };
        let program = settings.clone().spawn().await;
        for round in 0..cuts().div_ceil(2) {
            let cut = settings.beside("host/cut.img");
            let images = under_load(&plain, &program, n * 10_000 + round, &mut rng, &settings.beside("host/disk.img"), &cut).await;
            tally.again(boots(&plain, &cut, &images).await);
        }
        assert_eq!(program.terminate().await.0.code(), Some(0));
        settings.verify().await.unwrap();
    }
    tally.note();
}

/// Pulls two images and copies the disk when the upstream has sent a random number of their bytes, or, every other time, all of them:
/// then commits are under way. Whatever becomes of the copy, the pulls end well.
async fn under_load(plain: &Registry, program: &Process, seed: u64, rng: &mut fastrand::Rng, disk: &Path, cut: &Path) -> Vec<Pushed> {
    let sizes = [2 * MIB, MIB, 200 * KIB, 60 * KIB, 700];
    let images: Vec<_> = ["left", "right"]
        .into_iter()
        .zip([1, 2])
        .map(|(tag, n)| plain.image(REPO, tag, Image::layers(sizes).seed(seed * 10 + n)))
        .collect();
    // A tag that moves is asked about: the mirror knows those of the round before.
    let references: Vec<String> = images.iter().map(|image| image.digest.to_string()).collect();
    let bytes: u64 = images.iter().map(|image| image.manifest.len() as u64 + image.blobs().map(Blob::len).sum::<u64>()).sum();
    let moment = if rng.bool() { bytes } else { rng.u64(..bytes) };
    plain.forget();
    let pulls: Vec<_> = references
        .into_iter()
        .map(|reference| {
            let url = program.url();
            tokio::spawn(async move { pull(&url, REPO, &reference).await })
        })
        .collect();
    let sent = |record: &Record| record.sent;
    plain.wait_for("a moment for the power to fail", |log| log.iter().map(sent).sum::<u64>() >= moment).await;
    // The file system that holds the file makes the copy in one step, whatever is written meanwhile.
    tool("cp", &["--reflink=always", &disk.to_string_lossy(), &cut.to_string_lossy()]).unwrap();
    for (pull, image) in pulls.into_iter().zip(&images) {
        assert_eq!(pull.await.unwrap().map(|pulled| pulled.digest), Ok(image.digest));
    }
    images
}

/// The next boot: what is held is right, and all can be pulled again. Says how long the latter took, from the start on.
async fn boots(plain: &Registry, cut: &Path, images: &[Pushed]) -> Duration {
    let settings = Builder::new().upstream("docker.io", plain).max_size("12MiB");
    let disk = Volume::mount(cut, &settings.data(), "").unwrap();
    settings.audit().assert_sound();
    // The kernel of the next boot is another one.
    std::fs::write(settings.data().join("BOOT"), "another").unwrap();
    let began = Instant::now();
    let program = settings.clone().spawn().await;
    for image in images {
        let pulled = pull(&program.url(), REPO, &image.digest.to_string()).await;
        assert_eq!(pulled.map(|pulled| pulled.digest), Ok(image.digest));
    }
    let recovery = began.elapsed();
    // What is new waits until the index was held against the files.
    let next = plain.image(REPO, "next", Image::layers([100 * KIB]).seed(fastrand::u64(1 << 32..1 << 40)));
    assert_eq!(pull(&program.url(), REPO, "next").await.map(|pulled| pulled.digest), Ok(next.digest));
    assert_eq!(program.terminate().await.0.code(), Some(0));
    let audit = settings.audit();
    audit.assert_sound().assert_temporary(0);
    assert!(audit.quarantined.is_empty() && audit.bytes <= 12 * MIB, "{audit:?}");
    settings.verify().await.unwrap();
    disk.unmount().unwrap();
    recovery
}
