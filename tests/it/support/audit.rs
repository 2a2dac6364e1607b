//! Looks at a data folder as a stranger would: is every blob what its name says, and is nothing left lying about?

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use millpond::oci::{Algorithm, Digest};

/// What is in a data folder.
#[derive(Debug, Default)]
pub struct Audit {
    /// Blobs whose bytes are what their name says.
    pub blobs: Vec<Digest>,
    /// Files under `blobs/` that are not: a broken promise, and why.
    pub wrong: Vec<String>,
    /// What lies in `tmp/`.
    pub temporary: Vec<PathBuf>,
    /// What lies in `quarantine/`.
    pub quarantined: Vec<PathBuf>,
    /// Bytes of all blobs.
    pub bytes: u64,
}

/// Hashes every blob of a data folder.
pub fn audit(folder: &Path) -> Audit {
    let mut found = Audit { temporary: files(&folder.join("tmp")), quarantined: files(&folder.join("quarantine")), ..Audit::default() };
    for file in files(&folder.join("blobs")) {
        match check(&folder.join("blobs"), &file) {
            Ok((digest, bytes)) => {
                found.blobs.push(digest);
                found.bytes += bytes;
            }
            Err(why) => found.wrong.push(format!("{}: {why}", file.display())),
        }
    }
    found
}

impl Audit {
    /// Panics unless every blob is what its name says.
    pub fn assert_sound(&self) -> &Self {
        assert!(self.wrong.is_empty(), "wrong files under blobs/:\n{}", self.wrong.join("\n"));
        self
    }

    /// Panics unless `tmp/` holds so many files: 0 when nothing is being fetched.
    pub fn assert_temporary(&self, files: usize) -> &Self {
        assert_eq!(self.temporary.len(), files, "files in tmp/: {:?}", self.temporary);
        self
    }

    /// Panics unless these blobs are held, and no others.
    pub fn assert_holds<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> &Self {
        let mut wanted: Vec<Digest> = digests.into_iter().copied().collect();
        let mut held = self.blobs.clone();
        wanted.sort();
        wanted.dedup();
        held.sort();
        assert_eq!(held, wanted);
        self
    }
}

/// Whether a file is at `<algorithm>/<first two digits>/<digits>` and hashes to that.
fn check(blobs: &Path, file: &Path) -> Result<(Digest, u64), String> {
    let relative = file.strip_prefix(blobs).expect("found there").to_str().ok_or("not a name")?;
    let [algorithm, prefix, hex] = relative.split('/').collect::<Vec<_>>()[..] else { return Err("not at its place".into()) };
    if !Algorithm::ALL.iter().any(|known| known.as_str() == algorithm) || !hex.starts_with(prefix) || prefix.len() != 2 {
        return Err("not at its place".into());
    }
    let digest = Digest::parse(&format!("{algorithm}:{hex}")).map_err(|error| error.to_string())?;
    let mut reader = fs::File::open(file).map_err(|error| error.to_string())?;
    let (mut hasher, mut buf, mut bytes) = (digest.hasher(), vec![0; 1 << 20], 0);
    loop {
        let n = reader.read(&mut buf).map_err(|error| error.to_string())?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        bytes += n as u64;
    }
    let actual = hasher.finish();
    if actual == digest { Ok((digest, bytes)) } else { Err(format!("{bytes} bytes that hash to {actual}")) }
}

/// All files below a folder; none where there is no folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
