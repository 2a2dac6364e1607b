use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{REPO, file_of};
use crate::support::client::{get, pull};
use crate::support::gate::Gate;
use crate::support::lack::lacking;
use crate::support::mirror::Builder;
use crate::support::registry::{Blob, Fault, Image, Registry};
use crate::support::{KIB, MIB};

/// A file system in memory, of so many MiB, over a data folder. Dropped, it is gone.
struct Small(PathBuf);

impl Small {
    /// Nothing where this user may not mount; that is told in one line, and on a build machine it is a failure.
    fn over(settings: &Builder, mib: u64) -> Option<Self> {
        Self::with(settings, &format!("size={mib}m,mode=0700"))
    }

    fn with(settings: &Builder, options: &str) -> Option<Self> {
        let dir = settings.data();
        fs::create_dir_all(&dir).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "millpond-test"]).arg(&dir).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            other => {
                let why = other.map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
                lacking("a full disk", &format!("a tmpfs cannot be mounted: {why}"));
                None
            }
        }
    }

    /// Fills what is free, as another program would, but for so many bytes.
    fn fill(&self, but: u64) {
        let file = fs::File::create(self.0.join("of-another-program")).unwrap();
        let page = vec![1; 4096];
        let mut at = 0;
        while file.write_all_at(&page, at).is_ok() {
            at += 4096;
        }
        file.set_len(at.saturating_sub(but)).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a test that failed may have files open still.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn is_held(data: &Path, blob: &Blob) -> bool {
    file_of(data, &blob.digest).exists()
}

#[tokio::test]
async fn an_image_larger_than_the_disk_is_pulled() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([40 * MIB, 9 * MIB, 9 * MIB, 9 * MIB, KIB]));
    let settings = Builder::new().upstream("docker.io", &plain);
    let Some(_small) = Small::over(&settings, 24) else { return };
    let program = settings.spawn().await;
    for _ in 0..2 {
        assert_eq!(pull(&program.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
        program.settled().await;
        program.settings().audit().assert_sound().assert_temporary(0);
    }
    assert!(!is_held(&program.settings().data(), &image.layers[0]));
    assert_eq!(program.terminate().await.0.code(), Some(0));
}

/// A blob whose size the upstream said has its place from the start; one without runs into the full disk.
#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_breaks_no_client() {
    for (fault, kept) in [(Fault::none(), true), (Fault::chunked(), false)] {
        let plain = Registry::plain().await;
        let image = plain.image(REPO, "latest", Image::layers([8 * MIB]));
        let gate = Gate::closed();
        plain.on(plain.body_of(&image.layers[0].digest), fault.then_stall(2 * MIB, &gate));
        let settings = Builder::new().upstream("docker.io", &plain);
        let Some(small) = Small::over(&settings, 32) else { return };
        let program = settings.spawn().await;
        assert_eq!(get(program.manifest(REPO, "latest")).send().await.status, 200);
        let mut early = get(program.blob(REPO, image.layers[0].digest)).stream().await;
        assert!(!early.at_least(1 << 20).await.is_empty());
        let late = get(program.blob(REPO, image.layers[0].digest)).stream().await;
        small.fill(0);
        gate.open();
        let (early, late) = tokio::join!(early.rest(), late.hash());
        assert!(early.is_whole(), "{kept}: {:?}", early.ended);
        assert!(late.is_whole() && late.digest == image.layers[0].digest, "{kept}: {late:?}");
        program.settled().await;
        let data = program.settings().data();
        assert_eq!(is_held(&data, &image.layers[0]), kept);
        program.settings().audit().assert_sound().assert_temporary(0);

        // The disk stays full: what is held is served, what is not is passed through.
        plain.heal();
        let other = plain.image(REPO, "other", Image::layers([3 * MIB, KIB]).seed(7));
        for (tag, image) in [("latest", &image), ("other", &other), ("other", &other)] {
            assert_eq!(pull(&program.url(), REPO, tag).await.map(|pulled| pulled.digest), Ok(image.digest), "{kept}, {tag}");
        }
        assert_eq!(get(program.admin("/readyz")).send().await.status, 200);
        // And when there is room again, it is kept again.
        fs::remove_file(data.join("of-another-program")).unwrap();
        assert_eq!(pull(&program.url(), REPO, "other").await.map(|pulled| pulled.digest), Ok(other.digest));
        program.settled().await;
        assert!(is_held(&data, &other.layers[0]), "{kept}");
        assert_eq!(program.terminate().await.0.code(), Some(0));
    }
}

#[tokio::test]
async fn a_mirror_starts_and_serves_on_a_full_disk() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([MIB, KIB]));
    let settings = Builder::new().upstream("docker.io", &plain);
    let Some(small) = Small::over(&settings, 16) else { return };
    let program = settings.spawn().await;
    pull(&program.url(), REPO, "latest").await.unwrap();
    program.settled().await;
    let settings = program.kill().await;
    small.fill(0);
    plain.forget();
    let program = settings.spawn().await;
    assert_eq!(pull(&program.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    assert_eq!(plain.count(crate::support::registry::Kind::Blob), 0, "{}", plain.story());
    let other = plain.image(REPO, "other", Image::layers([2 * MIB, KIB]).seed(3));
    assert_eq!(pull(&program.url(), REPO, "other").await.map(|pulled| pulled.digest), Ok(other.digest));
    assert_eq!(program.terminate().await.0.code(), Some(0));
}

/// Where no file can be made any more nothing is kept, and everything is served.
#[tokio::test]
async fn a_disk_without_inodes_breaks_no_client() {
    let plain = Registry::plain().await;
    let settings = Builder::new().upstream("docker.io", &plain);
    let Some(small) = Small::with(&settings, "size=64m,nr_inodes=700,mode=0700") else { return };
    let program = settings.spawn().await;
    let used_up = (0..700).find(|n| fs::File::create(small.0.join(format!("of-another-program-{n}"))).is_err());
    assert!(used_up.is_some());
    let image = plain.image(REPO, "latest", Image::layers([MIB, 10 * KIB, 0]));
    for _ in 0..2 {
        assert_eq!(pull(&program.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    }
    program.settled().await;
    (0..used_up.unwrap()).for_each(|n| fs::remove_file(small.0.join(format!("of-another-program-{n}"))).unwrap());
    assert_eq!(pull(&program.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    program.settled().await;
    assert!(is_held(&program.settings().data(), &image.layers[0]), "kept again");
    assert_eq!(program.terminate().await.0.code(), Some(0));
}
