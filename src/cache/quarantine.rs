//! `quarantine/`: bad files, kept for a person to look at.
//!
//! Promises: a few files and a small part of `max_size`, counted as held; the oldest go first, so that a failing disk
//! cannot fill itself.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::space::Beside;

/// Files kept at most: what one looks at of them is that they are there, and one or two.
const FILES_MAX: usize = 16;

/// Bytes kept at most, as a part of `max_size`.
const BYTES_PART: u64 = 16;

/// The quarantine of a data folder.
pub(crate) struct Quarantine {
    dir: PathBuf,
    bytes_max: u64,
    beside: Beside,
}

impl Quarantine {
    /// The one in this folder, of a cache that may hold `max` bytes.
    pub(crate) fn new(dir: PathBuf, max: u64, beside: Beside) -> Self {
        Self { dir, bytes_max: max / BYTES_PART, beside }
    }

    /// Removes what is too much, the longest there first, and counts what stays. `millpond verify` brings files too.
    pub(crate) fn trim(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // A rename sets the change time and nothing else: since then it is here.
            let meta = entry.metadata()?;
            files.push((meta.ctime(), meta.ctime_nsec(), meta.len(), entry.path()));
        }
        files.sort();
        let (mut kept, mut bytes) = (0, 0_u64);
        for (_, _, len, path) in files.iter().rev() {
            if kept < FILES_MAX && bytes + len <= self.bytes_max {
                kept += 1;
                bytes += len;
                continue;
            }
            tracing::debug!(path = %path.display(), bytes = len, "a bad file is removed from quarantine/: there is no room for it");
            // Nothing of ours puts a folder here, but a person may have left one in place of a blob.
            if let Err(error) = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path)) {
                tracing::error!(%error, path = %path.display(), "a bad file cannot be removed from quarantine/");
                bytes += len;
            }
        }
        self.beside.quarantined(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Metrics;

    fn names(dir: &std::path::Path) -> Vec<String> {
        let mut names = fs::read_dir(dir)
            .expect("reads")
            .map(|entry| entry.expect("reads").file_name().into_string().expect("text"))
            .collect::<Vec<_>>();
        names.sort();
        names
    }

    /// A quarantine of files that came one after the other, whatever their content's age.
    fn filled(sizes: &[usize], max: u64) -> (tempfile::TempDir, Beside) {
        let dir = tempfile::tempdir().expect("a folder");
        let beside = Beside::new(Metrics::new());
        let mut last = (0, 0);
        for (n, size) in sizes.iter().enumerate() {
            let path = dir.path().join(format!("{n:02}"));
            // The file system's clock is coarse: until it has moved on the file has not come later.
            loop {
                fs::write(&path, vec![7; *size]).expect("writes");
                let meta = fs::metadata(&path).expect("is there");
                if (meta.ctime(), meta.ctime_nsec()) > last {
                    last = (meta.ctime(), meta.ctime_nsec());
                    break;
                }
            }
        }
        Quarantine::new(dir.path().to_owned(), max, beside.clone()).trim().expect("trims");
        (dir, beside)
    }

    #[test]
    fn a_few_files_stay_and_the_oldest_go_first() {
        let (dir, beside) = filled(&[10; FILES_MAX + 3], 1 << 30);
        let names = names(dir.path());
        assert_eq!((names.len(), names[0].as_str()), (FILES_MAX, "03"));
        assert_eq!(beside.bytes(), FILES_MAX as u64 * 10);
    }

    #[test]
    fn a_part_of_the_limit_is_not_passed() {
        let (dir, beside) = filled(&[60, 30, 200, 50], 100 * BYTES_PART);
        // What is too large by itself takes nothing from the others.
        assert_eq!((names(dir.path()), beside.bytes()), (vec!["01".to_owned(), "03".to_owned()], 80));
    }

    #[test]
    fn what_is_no_file_goes_too() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("folder/in a folder")).expect("creates");
        Quarantine::new(dir.path().to_owned(), 0, Beside::new(Metrics::new())).trim().expect("trims");
        assert!(names(dir.path()).is_empty());
    }
}
