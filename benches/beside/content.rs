//! What the upstream holds: blobs of random bytes in files named by their digest, and one image's manifest that names them.

use std::fmt::Write as _;
use std::fs;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub const REPO: &str = "library/bench";
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

const MIB: usize = 1 << 20;

#[derive(Clone, Debug)]
pub struct Blob {
    pub hex: String,
    pub size: u64,
}

impl Blob {
    /// Where a registry has it.
    pub fn path(&self) -> String {
        format!("/v2/{REPO}/blobs/sha256:{}", self.hex)
    }
}

/// A folder of blobs and a manifest.
pub struct Content {
    pub dir: PathBuf,
    pub blobs: Vec<Blob>,
    pub manifest: Vec<u8>,
    pub manifest_hex: String,
}

impl Content {
    /// Makes a blob of each of these sizes.
    pub fn make(dir: &Path, sizes: &[u64]) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let blobs = sizes.iter().zip(1..).map(|(size, seed)| make_blob(dir, *size, seed)).collect::<io::Result<Vec<_>>>()?;
        let manifest = manifest(&blobs).into_bytes();
        let manifest_hex = hex(&Sha256::digest(&manifest));
        fs::write(dir.join("manifest"), &manifest)?;
        Ok(Self { dir: dir.to_owned(), blobs, manifest, manifest_hex })
    }

    pub fn blob(&self, size: u64) -> &Blob {
        self.blobs.iter().find(|blob| blob.size == size).expect("every size that a work names was made")
    }

    pub fn tag_path() -> String {
        format!("/v2/{REPO}/manifests/latest")
    }
}

fn make_blob(dir: &Path, size: u64, seed: u64) -> io::Result<Blob> {
    let (mut digest, mut random) = (Sha256::new(), Random(seed));
    let new = dir.join("new");
    let mut file = File::create(&new)?;
    let mut piece = vec![0; MIB];
    let mut left = size as usize;
    while left > 0 {
        let now = left.min(MIB);
        piece.chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&random.next().to_le_bytes()));
        digest.update(&piece[..now]);
        file.write_all(&piece[..now])?;
        left -= now;
    }
    let blob = Blob { hex: hex(&digest.finalize()), size };
    fs::rename(new, dir.join(&blob.hex))?;
    Ok(blob)
}

/// An image whose configuration is the smallest blob and whose layers are all the others.
fn manifest(blobs: &[Blob]) -> String {
    let entry = |blob: &Blob, kind: &str| {
        let Blob { hex, size } = blob;
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"sha256:{hex}","size":{size}}}"#)
    };
    let least = blobs.iter().min_by_key(|blob| blob.size).expect("there is a blob");
    let layers: Vec<String> = blobs.iter().map(|blob| entry(blob, "layer.v1.tar")).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST_TYPE}","config":{},"layers":[{}]}}"#,
        entry(least, "config.v1+json"),
        layers.join(",")
    )
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Numbers that are the same in every run (xorshift64*): everybody is asked for the same ranges of the same bytes.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
