//! What the index says of one blob, and how that is written: fixed numbers in little-endian order, by the bytes of the digest.

use super::super::folder::Stamp;
use crate::oci::Digest;

/// What the index knows of a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Entry {
    /// Bytes.
    pub(crate) size: u64,
    /// Last use, in milliseconds since 1970: only the order matters.
    pub(crate) used: u64,
    /// The state of the file when it was last verified; zero for one that was only seen.
    pub(crate) stamp: Stamp,
}

impl Entry {
    /// Whether the file was ever verified. No file has the inode number zero.
    pub(crate) fn is_vouched_for(&self) -> bool {
        self.stamp.inode != 0
    }
}

/// Bytes of an entry in the index.
const ENTRY_BYTES: usize = 40;

/// As it is written.
pub(super) fn encode(entry: &Entry) -> [u8; ENTRY_BYTES] {
    let mut bytes = [0; ENTRY_BYTES];
    bytes[0..8].copy_from_slice(&entry.size.to_le_bytes());
    bytes[8..16].copy_from_slice(&entry.used.to_le_bytes());
    bytes[16..24].copy_from_slice(&entry.stamp.inode.to_le_bytes());
    bytes[24..32].copy_from_slice(&entry.stamp.mtime.to_le_bytes());
    bytes[32..40].copy_from_slice(&entry.stamp.ctime.to_le_bytes());
    bytes
}

/// `None` for a value of another length: whatever it is, it is not ours.
pub(super) fn decode(bytes: &[u8]) -> Option<Entry> {
    let bytes: &[u8; ENTRY_BYTES] = bytes.try_into().ok()?;
    let word = |n: usize| <[u8; 8]>::try_from(&bytes[n * 8..n * 8 + 8]).ok();
    let size = u64::from_le_bytes(word(0)?);
    let stamp =
        Stamp { inode: u64::from_le_bytes(word(2)?), size, mtime: i64::from_le_bytes(word(3)?), ctime: i64::from_le_bytes(word(4)?) };
    Some(Entry { size, used: u64::from_le_bytes(word(1)?), stamp })
}

/// The bytes of the digest; their number tells the algorithm.
pub(super) fn key(digest: &Digest) -> &[u8] {
    digest.as_bytes()
}

/// The digest of those bytes; nothing for a key of another length.
pub(super) fn unkey(key: &[u8]) -> Option<Digest> {
    match key.len() {
        32 => key.try_into().ok().map(Digest::Sha256),
        64 => key.try_into().ok().map(Digest::Sha512),
        _ => None,
    }
}
