//! Holds a data folder against itself: every file against its name, links and tags against the blobs, the index against
//! the files. What `millpond verify` runs, also beside a running server.
//!
//! Beside a server only the files are looked at: the index belongs to whoever holds `LOCK`. What the server commits or
//! evicts meanwhile is no finding: a file that is gone when it is opened was evicted, and nothing is judged by a walk that
//! is over.
//!
//! A tag or a link whose manifest was evicted is no fault either: the upstream is asked again. Repairing removes it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::folder::FolderError;
use super::index::Index;
use crate::oci::{Algorithm, Digest};

/// Bytes read at a time.
const STEP: usize = 1 << 20;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A file that does not hash to its name.
    #[error("{0} does not hash to its name")]
    Rotten(Digest),
    /// A file that cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(Digest, io::ErrorKind),
    /// A file under `blobs/` or `repos/` that nothing of millpond's put there.
    #[error("{} is no file of millpond's", .0.display())]
    Stray(PathBuf),
    /// A temporary file although nobody writes.
    #[error("{} was left by a run that was killed", .0.display())]
    Leftover(PathBuf),
    /// A tag or link file that cannot be understood.
    #[error("{} cannot be understood", .0.display())]
    Garbled(PathBuf),
    /// A blob that the index does not know: it is not counted, and never evicted.
    #[error("{0} is not in the index")]
    Unindexed(Digest),
    /// A blob that only the index knows.
    #[error("{0} is in the index and not on disk")]
    Vanished(Digest),
    /// A blob of another size than the index says.
    #[error("{digest} has {found} bytes, the index says {indexed}")]
    Resized {
        /// Which.
        digest: Digest,
        /// Of the file.
        found: u64,
        /// In the index.
        indexed: u64,
    },
}

/// What an audit saw.
#[derive(Debug, Default)]
pub struct Audit {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Blobs that hash to their names.
    pub sound: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Tags and links whose manifest is not held (any more).
    pub dangling: u64,
    /// Whether the index was looked at: not beside a running server.
    pub index: bool,
    /// Findings that were mended.
    pub repaired: u64,
}

/// Audits the data folder at `root`; with `repair` mends what it finds. Reads every byte of it.
pub fn audit(root: &Path, repair: bool) -> Result<Audit, FolderError> {
    let mut walk = Walk { root: root.to_owned(), repair, audit: Audit::default(), sizes: HashMap::new() };
    let fail = |source| FolderError::Io { action: "read", path: root.to_owned(), source };
    // Whoever gets the lock has the index to itself, and nobody writes meanwhile.
    let lock = File::open(root.join("LOCK")).map_err(fail)?;
    let alone = lock.try_lock().is_ok();
    for algorithm in Algorithm::ALL {
        walk.blobs(algorithm).map_err(fail)?;
    }
    walk.repos(&root.join("repos")).map_err(fail)?;
    if alone {
        walk.leftovers().map_err(fail)?;
        walk.index();
    }
    Ok(walk.audit)
}

struct Walk {
    root: PathBuf,
    repair: bool,
    audit: Audit,
    /// Every sound blob.
    sizes: HashMap<Digest, u64>,
}

impl Walk {
    fn blobs(&mut self, algorithm: Algorithm) -> io::Result<()> {
        for shard in entries(&self.root.join("blobs").join(algorithm.as_str()))? {
            if !shard.is_dir() {
                self.stray(&shard);
                continue;
            }
            for path in entries(&shard)? {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let in_place = shard.file_name().is_some_and(|shard| name.starts_with(&*shard.to_string_lossy()));
                match Digest::parse(&format!("{}:{name}", algorithm.as_str())) {
                    Ok(digest) if in_place => self.blob(&path, digest),
                    _ => self.stray(&path),
                }
            }
        }
        Ok(())
    }

    fn blob(&mut self, path: &Path, digest: Digest) {
        match hash(path, digest) {
            // Evicted since the folder was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.found(Finding::Unreadable(digest, error.kind()), |walk| walk.quarantine(path, &digest)),
            Ok((true, size)) => {
                self.audit.sound += 1;
                self.audit.bytes += size;
                self.sizes.insert(digest, size);
            }
            Ok((false, _)) => self.found(Finding::Rotten(digest), |walk| walk.quarantine(path, &digest)),
        }
    }

    /// Tags and links, in the folders whose names begin with an underscore.
    fn repos(&mut self, dir: &Path) -> io::Result<()> {
        for path in entries(dir)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            match name.as_str() {
                "_tags" => self.records(&path, |text| {
                    let digest = serde_json::from_slice::<serde_json::Value>(text).ok()?.get("digest")?.as_str()?.to_owned();
                    Digest::parse(&digest).ok()
                })?,
                "_manifests" => {
                    for algorithm in Algorithm::ALL {
                        self.links(&path.join(algorithm.as_str()), algorithm)?;
                    }
                }
                "_blobs" | "_visibility" | "_withheld" => {}
                _ if path.is_dir() => self.repos(&path)?,
                _ => self.stray(&path),
            }
        }
        Ok(())
    }

    fn records(&mut self, dir: &Path, digest: impl Fn(&[u8]) -> Option<Digest>) -> io::Result<()> {
        for path in entries(dir)? {
            let mut text = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(4 << 10).read_to_end(&mut text));
            if read.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                continue;
            }
            match digest(&text) {
                Some(digest) => self.points_to(&path, &digest),
                None => self.found(Finding::Garbled(path.clone()), |_| fs::remove_file(&path)),
            }
        }
        Ok(())
    }

    fn links(&mut self, dir: &Path, algorithm: Algorithm) -> io::Result<()> {
        for path in entries(dir)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            match Digest::parse(&format!("{}:{name}", algorithm.as_str())) {
                Ok(digest) => self.points_to(&path, &digest),
                Err(_) => self.stray(&path),
            }
        }
        Ok(())
    }

    fn points_to(&mut self, path: &Path, digest: &Digest) {
        if self.sizes.contains_key(digest) {
            return;
        }
        self.audit.dangling += 1;
        // It may have been committed since the blobs were walked.
        let hex = digest.hex();
        let blob = self.root.join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(&hex);
        if self.repair && !blob.exists() {
            let _ = fs::remove_file(path);
        }
    }

    fn leftovers(&mut self) -> io::Result<()> {
        for path in entries(&self.root.join("tmp"))? {
            self.found(Finding::Leftover(path.clone()), |_| fs::remove_file(&path));
        }
        Ok(())
    }

    /// The index against the files, both ways. Only for whoever holds the lock.
    fn index(&mut self) {
        let Some(index) = Index::open_as_it_is(&self.root.join("index")) else { return };
        self.audit.index = true;
        let mut indexed = HashSet::new();
        let mut wrong = Vec::new();
        index.each(|digest, entry| {
            indexed.insert(digest);
            match self.sizes.get(&digest) {
                None => wrong.push((digest, Finding::Vanished(digest))),
                Some(&found) if found != entry.size => wrong.push((digest, Finding::Resized { digest, found, indexed: entry.size })),
                Some(_) => {}
            }
        });
        for (digest, finding) in wrong {
            self.found(finding, |_| {
                index.remove(&digest);
                Ok(())
            });
        }
        let missing = self.sizes.iter().filter(|(digest, _)| !indexed.contains(digest)).map(|(digest, size)| (*digest, *size));
        for (digest, size) in missing.collect::<Vec<_>>() {
            self.found(Finding::Unindexed(digest), |_| {
                index.put_new(&digest, super::index::Entry { size, ..Default::default() });
                Ok(())
            });
        }
        index.flush();
    }

    fn stray(&mut self, path: &Path) {
        let target = self.root.join("quarantine").join(format!("stray-{:016x}", fastrand::u64(..)));
        self.found(Finding::Stray(path.to_owned()), |_| fs::rename(path, target));
    }

    fn quarantine(&self, path: &Path, digest: &Digest) -> io::Result<()> {
        let name = format!("{}-{}-{:08x}", digest.algorithm().as_str(), digest.hex(), fastrand::u32(..));
        fs::rename(path, self.root.join("quarantine").join(name))
    }

    fn found(&mut self, finding: Finding, mend: impl FnOnce(&mut Self) -> io::Result<()>) {
        self.audit.findings.push(finding);
        if self.repair && mend(self).is_ok() {
            self.audit.repaired += 1;
        }
    }
}

/// Whether a file hashes to its name, and its size.
fn hash(path: &Path, digest: Digest) -> io::Result<(bool, u64)> {
    let file = super::folder::open_existing(path)?.ok_or(io::ErrorKind::NotFound)?;
    let mut hasher = digest.hasher();
    let mut buffer = vec![0; STEP];
    let mut offset = 0;
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return Ok((hasher.finish() == digest, offset)),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What is in a folder; nothing, when there is none.
fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::blobs::Blobs;
    use crate::cache::folder::{Durability, Folder};
    use crate::oci::{Name, Registry, Repository, Tag};

    /// A folder with one blob, one tag that points at it, and an index that knows both.
    fn sound() -> (tempfile::TempDir, Digest) {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(dir.path()).expect("opens");
        let digest = Digest::sha256_of(b"hello");
        let temp = folder.temp().expect("creates");
        temp.file().write_all_at(b"hello", 0).expect("writes");
        let stamp = Blobs::new(folder.clone()).commit(temp, &digest).expect("commits");
        let repos = super::super::repos::Repos::new(folder.clone(), crate::cache::space::Beside::new(crate::observe::Metrics::new()));
        let repository = Repository { registry: Registry::docker_hub(), name: Name::parse("library/a").expect("valid") };
        let record = super::super::repos::TagRecord { digest, checked: std::time::SystemTime::now() };
        repos.set_tag(&repository, &Tag::parse("x").expect("valid"), &record, Durability::Synced).expect("writes");
        let index = Index::open(&dir.path().join("index"));
        index.put(&digest, super::super::index::Entry { size: 5, used: 1, stamp });
        index.flush();
        (dir, digest)
    }

    #[test]
    fn a_sound_folder_has_no_findings() {
        let (dir, _) = sound();
        let audit = audit(dir.path(), false).expect("audited");
        assert_eq!((audit.findings, audit.sound, audit.bytes, audit.dangling, audit.index), (vec![], 1, 5, 0, true));
    }

    #[test]
    fn each_fault_is_found_and_mended() {
        let (dir, digest) = sound();
        let root = dir.path().canonicalize().expect("there");
        let hex = digest.hex();
        let blob = root.join("blobs/sha256").join(&hex[..2]).join(&hex);
        let other = Digest::sha256_of(b"other");
        let unindexed = root.join("blobs/sha256").join(&other.hex()[..2]).join(other.hex());
        fs::write(&blob, "rotten").expect("writes");
        fs::write(&unindexed, "other").expect("writes");
        let (stray, left, garbled) =
            (root.join("blobs/sha256/00/readme"), root.join("tmp/x.part"), root.join("repos/docker.io/library/a/_tags/y"));
        for path in [&stray, &left, &garbled] {
            fs::write(path, "?").expect("writes");
        }
        let found = audit(&root, true).expect("audited");
        for finding in [
            Finding::Rotten(digest),
            Finding::Stray(stray),
            Finding::Leftover(left),
            Finding::Garbled(garbled),
            Finding::Vanished(digest),
            Finding::Unindexed(other),
        ] {
            assert!(found.findings.contains(&finding), "{finding} is missing from {:?}", found.findings);
        }
        assert_eq!(found.repaired, 6);
        assert_eq!(found.dangling, 1, "the tag points at what was rotten");
        let again = audit(&root, false).expect("audited");
        assert_eq!((again.findings, again.sound, again.dangling), (vec![], 1, 0));
    }

    #[test]
    fn beside_a_server_the_index_is_left_alone() {
        let (dir, _) = sound();
        let _server = Folder::open(dir.path()).expect("opens");
        fs::write(dir.path().join("tmp/x.part"), "arriving").expect("writes");
        let audit = audit(dir.path(), true).expect("audited");
        assert_eq!((audit.findings, audit.index), (vec![], false));
        assert!(dir.path().join("tmp/x.part").exists());
    }
}
