use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures_util::future::join_all;

use super::{REPO, file_of};
use crate::support::client::{Raw, get, pull};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{Image, Registry};
use crate::support::{KIB, MIB};

/// What may become of a file, how, and whether there is something bad to be set aside then.
type Damage = (&'static str, fn(&Path), bool);

const DAMAGES: [Damage; 7] = [
    ("truncated", |file| open(file).set_len(fs::metadata(file).unwrap().len() / 2).unwrap(), true),
    ("emptied", |file| open(file).set_len(0).unwrap(), true),
    ("grown", |file| open(file).set_len(fs::metadata(file).unwrap().len() + 1).unwrap(), true),
    ("flipped at the start", |file| flip(file, 0), true),
    ("flipped at the end", |file| flip(file, fs::metadata(file).unwrap().len() - 1), true),
    ("replaced", replace, true),
    ("removed", |file| fs::remove_file(file).unwrap(), false),
];

fn open(file: &Path) -> fs::File {
    OpenOptions::new().read(true).write(true).open(file).unwrap()
}

pub(super) fn flip(path: &Path, at: u64) {
    let (file, mut byte) = (open(path), [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// Removes a folder that somebody still writes to: as often as a file comes back into it, it is not empty.
fn remove(folder: &Path) {
    while let Err(e) = fs::remove_dir_all(folder) {
        match e.kind() {
            ErrorKind::NotFound if !folder.exists() => return,
            ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound => {}
            _ => panic!("{} cannot be removed: {e}", folder.display()),
        }
    }
}

fn replace(path: &Path) {
    let other = path.with_extension("new");
    fs::write(&other, vec![7; usize::try_from(fs::metadata(path).unwrap().len()).unwrap()]).unwrap();
    fs::rename(other, path).unwrap();
}

/// Every damage of a blob of so many bytes, to a mirror that runs or to one that is stopped meanwhile.
async fn damaged(len: u64, running: bool) {
    let plain = Registry::plain().await;
    let mut settings = Builder::new().upstream("docker.io", &plain);
    for (n, (what, damage, is_bad)) in (1..).zip(DAMAGES) {
        let image = plain.image(REPO, "latest", Image::layers([len]).seed(n));
        let layer = &image.layers[0];
        let mirror = settings.start();
        let url = mirror.blob(REPO, layer.digest);
        get(mirror.manifest(REPO, image.digest)).send().await;
        get(&url).fetch().await;
        mirror.settled().await;
        // The second time from the disk: its file is then open, or its bytes are in memory.
        assert_eq!(get(&url).fetch().await.digest, layer.digest);
        let file = file_of(&mirror.settings().data(), &layer.digest);
        let mirror = if running {
            damage(&file);
            mirror
        } else {
            let stopped = mirror.stop().await;
            damage(&file);
            stopped.start()
        };
        let reply = get(mirror.blob(REPO, layer.digest)).fetch().await;
        assert!(reply.status == 200 && reply.is_whole() && reply.digest == layer.digest, "{what}, running {running}: {reply:?}");
        mirror.settled().await;
        assert_eq!(plain.gets_of(&layer.digest), 2, "{what}, running {running}: {}", plain.story());
        settings = mirror.stop().await;
        let audit = settings.audit();
        audit.assert_sound().assert_temporary(0);
        assert!(file.exists(), "{what}");
        assert_eq!(audit.quarantined.len(), usize::from(is_bad), "{what}, running {running}: {:?}", audit.quarantined);
        for bad in audit.quarantined {
            assert!(bad.to_str().unwrap().contains(&layer.digest.hex()));
            fs::remove_file(bad).unwrap();
        }
    }
}

#[tokio::test]
async fn a_large_blob_that_changes_while_stopped_is_fetched_again() {
    damaged(MIB, false).await;
}

#[tokio::test]
async fn a_large_blob_that_changes_while_running_is_fetched_again() {
    damaged(MIB, true).await;
}

#[tokio::test]
async fn a_small_blob_that_changes_while_stopped_is_fetched_again() {
    damaged(10 * KIB, false).await;
}

#[tokio::test]
async fn what_is_in_memory_outlives_its_files() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([KIB, 10 * KIB]));
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    for _ in 0..2 {
        pull(&mirror.url(), REPO, "latest").await.unwrap();
        mirror.settled().await;
    }
    plain.forget();
    for digest in image.blobs().map(|blob| &blob.digest).chain([&image.digest]) {
        fs::remove_file(file_of(&mirror.settings().data(), digest)).unwrap();
    }
    assert_eq!(pull(&mirror.url(), REPO, "latest").await.unwrap().digest, image.digest);
    assert_eq!(plain.requests().len(), 0, "{}", plain.story());
}

#[tokio::test]
async fn a_manifest_that_changes_is_fetched_again() {
    let plain = Registry::plain().await;
    let mut settings = Builder::new().upstream("docker.io", &plain);
    for (n, (what, damage, is_bad)) in (1..).zip(DAMAGES) {
        let image = plain.image(REPO, "latest", Image::layers([KIB]).seed(n));
        let mirror = settings.tag_ttl("1ms").start();
        pull(&mirror.url(), REPO, "latest").await.unwrap();
        mirror.settled().await;
        settings = mirror.stop().await;
        damage(&file_of(&settings.data(), &image.digest));
        let mirror = settings.start();
        assert_eq!(pull(&mirror.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest), "{what}");
        mirror.settled().await;
        settings = mirror.stop().await;
        let audit = settings.audit();
        audit.assert_sound();
        assert!(file_of(&settings.data(), &image.digest).exists(), "{what}");
        assert_eq!(audit.quarantined.len(), usize::from(is_bad), "{what}");
        audit.quarantined.iter().for_each(|bad| fs::remove_file(bad).unwrap());
    }
}

#[tokio::test]
async fn a_folder_of_blobs_that_is_gone_is_made_again() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([MIB, KIB]));
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    let settings = mirror.stop().await;
    fs::remove_dir_all(settings.data().join("blobs")).unwrap();
    let mirror = settings.start();
    assert_eq!(pull(&mirror.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    mirror.settled().await;
    mirror.stop().await.audit().assert_sound().assert_holds(image.blobs().map(|blob| &blob.digest).chain([&image.digest]));
}

#[tokio::test]
async fn a_file_that_is_cut_under_its_reader_ends_as_a_broken_body() {
    // Anywhere, and within the page that is sent last: of that a mapping still shows the rest, as zeros.
    for len in [15 * MIB, 16 * MIB - 5000, 16 * MIB - 1] {
        cut_under_its_reader(len).await;
    }
}

async fn cut_under_its_reader(len: u64) {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([16 * MIB]));
    let layer = &image.layers[0];
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    // It takes a little, so that most of the file is still to be read.
    let mut slow = Raw::narrow(mirror.address(), 64 << 10).await;
    slow.get(&mirror.blob(REPO, layer.digest).replace(&mirror.url(), "")).await;
    assert!(slow.head().await.contains("content-length: 16777216"));
    slow.read(1000).await;
    open(&file_of(&mirror.settings().data(), &layer.digest)).set_len(len).unwrap();
    let (rest, _) = slow.drain().await;
    assert!((rest.len() as u64) < 16 * MIB - 1000, "{} bytes", rest.len());
    assert_eq!(get(mirror.blob(REPO, layer.digest)).fetch().await.digest, layer.digest);
    mirror.settled().await;
    mirror.stop().await.audit().assert_sound();
}

#[tokio::test]
async fn what_cannot_be_read_any_more_while_it_is_sent_is_named_in_the_log_and_the_next_client_is_served() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([16 * MIB]));
    let layer = &image.layers[0];
    let program = Builder::new().upstream("docker.io", &plain).quiet().spawn().await;
    let file = file_of(&program.settings().data(), &layer.digest);
    let is_mapped = || fs::read_to_string(format!("/proc/{}/maps", program.id())).unwrap().contains(file.to_str().unwrap());
    within("a mapping", async {
        while !is_mapped() {
            pull(&program.url(), REPO, "latest").await.unwrap();
        }
    })
    .await;
    let mut slow = Raw::narrow(program.address(), 64 << 10).await;
    slow.get(&program.blob(REPO, layer.digest).replace(&program.url(), "")).await;
    slow.head().await;
    slow.read(1000).await;
    // Pieces that were given are in nobody's memory: of a disk that fails they are as much gone as of a file that was emptied.
    open(&file).set_len(0).unwrap();
    let (rest, _) = slow.drain().await;
    assert!((rest.len() as u64) < 16 * MIB - 1000, "{} bytes", rest.len());
    let is_told = || program.log().lines().any(|line| line.contains("while it is sent") && line.contains(&layer.digest.to_string()));
    within("a line of the log", async {
        while !is_told() {
            get(program.admin("/healthz")).send().await;
        }
    })
    .await;
    let reply = get(program.blob(REPO, layer.digest)).fetch().await;
    assert!(reply.is_whole() && reply.digest == layer.digest, "{reply:?}");
}

#[tokio::test]
async fn what_the_kernel_has_not_in_memory_is_read_and_sent_once() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([8 * MIB; 6]));
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    mirror.settled().await;
    let stopped = mirror.stop().await;
    for layer in &image.layers {
        let file = open(&file_of(&stopped.data(), &layer.digest));
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let mirror = stopped.start();
    // While a part is read more of the file comes into memory, and could be sent from there.
    assert_eq!(pull(&mirror.url(), REPO, "latest").await.unwrap().digest, image.digest);
    assert!(image.layers.iter().all(|layer| plain.gets_of(&layer.digest) == 1), "{}", plain.story());
}

#[tokio::test]
async fn a_large_blob_is_sent_from_a_mapping_and_given_up_with_its_file() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([3 * MIB]));
    let layer = &image.layers[0];
    let mirror = Builder::new().upstream("docker.io", &plain).spawn().await;
    let file = file_of(&mirror.settings().data(), &layer.digest);
    let maps = || fs::read_to_string(format!("/proc/{}/maps", mirror.id())).unwrap();
    let is_mapped = |what: &str| maps().lines().any(|line| line.contains(file.to_str().unwrap()) && line.ends_with(what));
    let held = async {
        while !is_mapped(&layer.digest.hex()) {
            pull(&mirror.url(), REPO, "latest").await.unwrap();
        }
    };
    within("a mapping", held).await;
    fs::remove_file(&file).unwrap();
    let gone = async {
        // Who asks next sees that the file is not there any more.
        while is_mapped("(deleted)") {
            pull(&mirror.url(), REPO, "latest").await.unwrap();
        }
    };
    within("its end", gone).await;
}

#[tokio::test]
async fn many_who_meet_a_bad_file_are_served_by_one_fetch() {
    for running in [false, true] {
        let plain = Registry::plain().await;
        let image = plain.image(REPO, "latest", Image::layers([3 * MIB]));
        let layer = &image.layers[0];
        let mirror = Builder::new().upstream("docker.io", &plain).start();
        for _ in 0..2 {
            pull(&mirror.url(), REPO, "latest").await.unwrap();
            mirror.settled().await;
        }
        let file = file_of(&mirror.settings().data(), &layer.digest);
        let mirror = if running { mirror } else { mirror.stop().await.start() };
        flip(&file, MIB);
        for reply in join_all((0..8).map(|_| get(mirror.blob(REPO, layer.digest)).fetch())).await {
            assert!(reply.is_whole() && reply.digest == layer.digest, "running {running}: {reply:?}");
        }
        mirror.settled().await;
        assert_eq!(plain.gets_of(&layer.digest), 2, "running {running}: {}", plain.story());
        let audit = mirror.stop().await.audit();
        assert_eq!(audit.assert_sound().quarantined.len(), 1);
    }
}

/// Whatever is removed under a running mirror, its clients are served; and the next start is as the first.
#[tokio::test]
async fn folders_that_are_removed_under_a_running_mirror_break_no_pull() {
    let plain = Registry::plain().await;
    for (n, gone) in (1..).zip(["tmp", "repos", "blobs", "index", ""]) {
        let first = plain.image(REPO, "first", Image::layers([MIB, 10 * KIB]).seed(n));
        let mirror = Builder::new().upstream("docker.io", &plain).start();
        pull(&mirror.url(), REPO, "first").await.unwrap();
        mirror.settled().await;
        remove(&mirror.settings().data().join(gone));
        let second = plain.image(REPO, "second", Image::layers([MIB, 10 * KIB]).seed(100 + n));
        for (tag, image) in [("first", &first), ("second", &second), ("second", &second), ("first", &first)] {
            assert_eq!(pull(&mirror.url(), REPO, tag).await.map(|pulled| pulled.digest), Ok(image.digest), "{tag} without {gone}");
        }
        let again = mirror.stop().await.start();
        for (tag, image) in [("first", &first), ("second", &second)] {
            assert_eq!(pull(&again.url(), REPO, tag).await.map(|pulled| pulled.digest), Ok(image.digest), "{tag} after {gone}");
        }
        again.settled().await;
        again.stop().await.audit().assert_sound().assert_temporary(0);
    }
}
