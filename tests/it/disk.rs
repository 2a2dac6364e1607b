//! The disk: killed processes, lost indexes, rotten files, the size limit, a full disk, a start that cannot be.

mod cap; // what is held and what is arriving never pass max_size; what does not fit streams through
mod clock; // the time of day jumps under the running program
mod files; // no file descriptor is left
mod full; // a full disk breaks no pull
mod hang; // every call hanging: served from the upstream in time, and the next at once
mod index; // removed, noise, half written: the mirror starts and serves
mod kill; // kill -9 at any moment leaves whole blobs and nothing else
mod memory; // a limit of memory that is smaller than what is pulled
mod patrol; // what rots is found before anybody asks for it
mod power; // the power fails under load: snapshots of the disk are booted
mod readonly; // the file system turns read-only
mod refuse; // every call refused with every error: no client is broken
mod rot; // a file that changed is seen, set aside and fetched again
mod start; // a start that fails says why in one line and leaves nothing running
mod step; // killed before each single step that changes the disk
mod sweep; // tags and links that lead to nothing go, and no others

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use millpond::oci::Digest;
use tokio::process::Command;

use crate::support::mirror::Builder;
use crate::support::patience::within;

const REPO: &str = "library/debian";

/// Where a blob lies.
fn file_of(data: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    data.join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(&hex)
}

/// Bytes of all files in `blobs/` and `tmp/`: what was written, or what is allocated already, whichever is more.
fn used(data: &Path) -> u64 {
    // By inode: a file that moves into place while we look is one file.
    fn walk(dir: &Path, sizes: &mut HashMap<u64, u64>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for path in entries.map(|entry| entry.unwrap().path()) {
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => walk(&path, sizes),
                // A file takes whole blocks: the part of the last one that is empty is not counted.
                Ok(meta) => drop(sizes.insert(meta.ino(), meta.len().max((meta.blocks() * 512).saturating_sub(4095)))),
                // Evicted, or moved, while we look.
                Err(_) => {}
            }
        }
    }
    let mut sizes = HashMap::new();
    walk(&data.join("tmp"), &mut sizes);
    walk(&data.join("blobs"), &mut sizes);
    sizes.values().sum()
}

/// Runs the program to its own end: a start that is to fail.
async fn run(settings: &Builder) -> Output {
    let home = settings.data().parent().unwrap().to_owned();
    let file = home.join("refused.toml");
    fs::write(&file, settings.toml()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_millpond"));
    command.arg("serve").arg("--config").arg(&file).current_dir(&home).env_clear().env("HOME", &home);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    within("the end of a program that cannot start", command.output()).await.unwrap()
}
