//! A host that went down under a running mirror: the power failed, or the kernel died.
//!
//! Promises: after that nothing that the index says of a file's state is believed, so every blob is verified before it is
//! served again. What was synced is on the disk, but a file that was removed may be back with the bytes of another one, in
//! the very state that the index knows: not every file system orders the two. The death of the process alone loses nothing.

use std::fs;
use std::io;
use std::path::Path;

use super::folder::{Durability, Folder};

/// The start of the kernel under which the folder was used last.
const BOOT: &str = "BOOT";

/// Where Linux names its start.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This start of the kernel, where it has a name.
pub(super) fn this() -> Option<String> {
    fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned())
}

/// Throws the index away when it is of another start of the kernel than `this` and was not closed: it is rebuilt from the
/// files while they are served. Notes the start.
pub(super) fn forget_what_a_dead_host_knew(folder: &Folder, index: &Path, closed: bool, this: Option<String>) {
    let note = folder.root().join(BOOT);
    let last = fs::read_to_string(&note).ok();
    // A kernel that does not name its starts, as under some sandboxes, tells nothing.
    let Some(this) = this.filter(|this| last.as_ref() != Some(this)) else { return };
    if !closed && !is_empty(index) {
        tracing::warn!("the host went down while millpond ran: every blob is verified before it is served again");
        if let Err(error) = fs::remove_dir_all(index).and_then(|()| super::folder::create_dir(index)) {
            tracing::error!(%error, path = %index.display(), "the index of before cannot be removed; remove it by hand before the next start");
            return;
        }
    }
    // Only now: whoever dies before it does all of this again.
    if let Err(error) = folder.publish(&note, this.as_bytes(), Durability::Synced) {
        tracing::warn!(%error, "the start of the host cannot be noted; the next start may verify every blob once more");
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |mut entries| entries.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_index_that_its_host_went_down_with_is_forgotten() {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(dir.path()).expect("opens");
        let index = dir.path().join("index");
        let known = index.join("known");
        for (this, closed, forgets) in [
            // Of a version that did not note it.
            (Some("one"), false, true),
            (Some("one"), false, false),
            (Some("two"), true, false),
            (None, false, false),
            (Some("two"), false, false),
            (Some("three"), false, true),
        ] {
            fs::write(&known, "").expect("writes");
            forget_what_a_dead_host_knew(&folder, &index, closed, this.map(str::to_owned));
            assert_eq!(known.exists(), !forgets, "{this:?} {closed}");
            assert!(index.exists());
        }
    }
}
