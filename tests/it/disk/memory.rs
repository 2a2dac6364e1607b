//! A limit of memory that is smaller than what is pulled: a group of the kernel (version 1 or 2), as containers have one. It counts the
//! page cache of what is written too, so the kernel has to take it back all the time.

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::future::{join, join_all};

use super::REPO;
use crate::support::MIB;
use crate::support::client::get;
use crate::support::lack::lacking;
use crate::support::mirror::Builder;
use crate::support::registry::{Blob, Registry};
use crate::support::tally::Tally;

/// What the group may use: less than what is pulled, more than what may be in hand for one blob times their number.
const LIMIT: u64 = 112 * MIB;

/// Blobs that are pulled whole, each by one client, and what is taken of each by many more.
const BLOBS: u64 = 4;
const BLOB_BYTES: u64 = 40 * MIB;
const RANGES_A_BLOB: u64 = 25;
const RANGE_BYTES: u64 = 2 * MIB;

/// A group of its own. Dropped, it is gone, once nobody is in it.
struct Group {
    dir: PathBuf,
    is_first_version: bool,
}

impl Group {
    fn new(limit: u64) -> Result<Self, String> {
        let is_first_version = Path::new("/sys/fs/cgroup/memory").exists();
        let parent = if is_first_version { "/sys/fs/cgroup/memory" } else { "/sys/fs/cgroup" };
        let dir = Path::new(parent).join(format!("millpond-test-{:016x}", fastrand::u64(..)));
        let fail = |error: std::io::Error| format!("no group of memory can be made: {error}");
        fs::create_dir(&dir).map_err(fail)?;
        let group = Self { dir, is_first_version };
        let file = if is_first_version { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(group.dir.join(file), limit.to_string()).map_err(fail)?;
        Ok(group)
    }

    fn take(&self, process: u32) {
        fs::write(self.dir.join("cgroup.procs"), process.to_string()).unwrap();
    }

    /// How often it was at its limit.
    fn hits(&self) -> u64 {
        if self.is_first_version {
            return fs::read_to_string(self.dir.join("memory.failcnt")).unwrap().trim().parse().unwrap();
        }
        let events = fs::read_to_string(self.dir.join("memory.events")).unwrap();
        events.lines().find_map(|line| line.strip_prefix("max ")).unwrap().parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

#[tokio::test]
async fn clients_by_the_hundred_are_served_within_a_small_limit_of_memory() {
    let group = match Group::new(LIMIT) {
        Ok(group) => group,
        Err(why) => return lacking("a limit of memory", &why),
    };
    let plain = Registry::plain().await;
    // On a disk: what lies in memory could not be taken back.
    let program = Builder::new().upstream("docker.io", &plain).spawn().await;
    group.take(program.id());
    let blobs: Vec<Blob> = (0..BLOBS).map(|seed| Blob::seeded(seed, BLOB_BYTES)).collect();
    for blob in &blobs {
        plain.blob(REPO, blob);
    }
    for _ in 0..2 {
        let whole = blobs.iter().map(|blob| async {
            let fetched = get(program.blob(REPO, blob.digest)).fetch().await;
            assert!(fetched.status == 200 && fetched.is_whole() && fetched.digest == blob.digest, "{fetched:?}");
        });
        let ranges = blobs.iter().flat_map(|blob| (0..RANGES_A_BLOB).map(move |n| (blob, n))).map(|(blob, n)| {
            let first = (BLOB_BYTES - RANGE_BYTES) / RANGES_A_BLOB * n;
            let ask = get(program.blob(REPO, blob.digest)).range(first, first + RANGE_BYTES - 1);
            async {
                let fetched = ask.fetch().await;
                assert!(fetched.status == 206 && fetched.is_whole() && fetched.len == RANGE_BYTES, "{fetched:?}");
            }
        });
        join(join_all(whole), join_all(ranges)).await;
        program.settled().await;
    }
    for blob in &blobs {
        assert_eq!(plain.gets_of(&blob.digest), 1);
    }
    assert!(group.hits() > 0, "the limit was never reached");
    Tally { fault: "limit of memory".into(), times: group.hits(), ..Tally::default() }.note();
    let (status, settings) = program.terminate().await;
    assert_eq!(status.code(), Some(0), "it was not killed for its memory");
    settings.audit().assert_sound().assert_temporary(0);
}
