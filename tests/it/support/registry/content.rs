//! What blobs are made of: bytes that any offset can be read of without holding them.
//!
//! A blob of a seed is the same on every machine and in every run, costs no memory whatever its size, and no two pages of
//! it are alike, so that a byte in the wrong place is always seen by the hash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use millpond::oci::{Algorithm, Digest, Hasher};

/// Content is hashed and checked in steps of so many bytes.
const STEP: usize = 1 << 20;
/// Every page of a seeded content starts with a stamp of its seed and number.
const PAGE: u64 = 4096;

/// Bytes that can be read at any offset.
#[derive(Clone, Debug)]
pub enum Content {
    /// In memory.
    Bytes(Bytes),
    /// Made on the fly.
    Seeded {
        /// What tells it from others.
        seed: u64,
        /// Bytes.
        len: u64,
    },
    /// Parts of others, one behind the other.
    Parts(Arc<[Part]>),
}

/// A part of a content, at its place in another.
#[derive(Clone, Debug)]
pub struct Part {
    at: u64,
    of: Content,
    from: u64,
    len: u64,
}

impl Content {
    /// Of a text or of bytes.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Bytes(bytes.into())
    }

    /// `len` bytes that depend on nothing but `seed`.
    pub fn seeded(seed: u64, len: u64) -> Self {
        Self::Seeded { seed, len }
    }

    /// One behind the other.
    pub fn joined(contents: impl IntoIterator<Item = Content>) -> Self {
        let mut at = 0;
        let place = |of: Content| {
            let part = Part { at, from: 0, len: of.len(), of };
            at += part.len;
            part
        };
        Self::Parts(contents.into_iter().map(place).collect())
    }

    /// A tar archive with one file, as a layer that real clients can unpack.
    pub fn tar(name: &str, file: Content) -> Self {
        let size = file.len();
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let padding = usize::try_from(size.next_multiple_of(512) - size).expect("less than a block");
        Self::joined([Self::bytes(header.to_vec()), file, Self::bytes(vec![0; padding + 1024])])
    }

    /// A part of it.
    pub fn slice(&self, from: u64, len: u64) -> Self {
        assert!(from + len <= self.len(), "a slice of {from}+{len} of {} bytes", self.len());
        Self::Parts([Part { at: 0, of: self.clone(), from, len }].into())
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Seeded { len, .. } => *len,
            Self::Parts(parts) => parts.last().map_or(0, |last| last.at + last.len),
        }
    }

    /// Fills `buf` with what stands at `offset`; the caller stays within [`Content::len`].
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) {
        match self {
            Self::Bytes(bytes) => {
                let at = usize::try_from(offset).expect("in memory");
                buf.copy_from_slice(&bytes[at..at + buf.len()]);
            }
            Self::Seeded { seed, .. } => fill_seeded(*seed, offset, buf),
            Self::Parts(parts) => {
                let end = offset + buf.len() as u64;
                for part in parts.iter().filter(|p| p.at < end && offset < p.at + p.len) {
                    let (start, stop) = (offset.max(part.at), end.min(part.at + part.len));
                    let place = |at: u64| usize::try_from(at - offset).expect("within the buffer");
                    part.of.read_at(part.from + start - part.at, &mut buf[place(start)..place(stop)]);
                }
            }
        }
    }

    /// All of it, in memory: for what is small.
    pub fn to_bytes(&self) -> Bytes {
        if let Self::Bytes(bytes) = self {
            return bytes.clone();
        }
        let mut all = vec![0; usize::try_from(self.len()).expect("fits in memory")];
        self.read_at(0, &mut all);
        all.into()
    }

    /// Its digest. That of a seeded content is computed once a process.
    pub fn digest(&self, algorithm: Algorithm) -> Digest {
        static KNOWN: Mutex<BTreeMap<(u64, u64, &str), Digest>> = Mutex::new(BTreeMap::new());
        let Self::Seeded { seed, len } = *self else { return self.hash(algorithm) };
        let key = (seed, len, algorithm.as_str());
        if let Some(known) = KNOWN.lock().unwrap().get(&key) {
            return *known;
        }
        let digest = self.hash(algorithm);
        KNOWN.lock().unwrap().insert(key, digest);
        digest
    }

    fn hash(&self, algorithm: Algorithm) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        let (mut buf, mut at) = (vec![0; STEP], 0);
        while at < self.len() {
            let n = usize::try_from(self.len() - at).map_or(STEP, |left| left.min(STEP));
            self.read_at(at, &mut buf[..n]);
            hasher.update(&buf[..n]);
            at += n as u64;
        }
        hasher.finish()
    }
}

/// Pages out of one pseudo-random block, each stamped: a copy, not a computation, so that a test build makes gigabytes.
fn fill_seeded(seed: u64, offset: u64, buf: &mut [u8]) {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    let pages = STEP as u64 / PAGE;
    let block = BLOCK.get_or_init(|| (0..STEP as u64 / 8).flat_map(|i| mix(i).to_le_bytes()).collect());
    let mut done = 0;
    while done < buf.len() {
        let at = offset + done as u64;
        let (page, within) = (at / PAGE, usize::try_from(at % PAGE).expect("less than a page"));
        let n = (buf.len() - done).min(usize::try_from(PAGE).expect("small") - within);
        let source = usize::try_from((page.wrapping_add(seed) % pages) * PAGE).expect("within the block");
        let target = &mut buf[done..done + n];
        target.copy_from_slice(&block[source + within..source + within + n]);
        let stamp = mix(mix(seed) ^ page).to_le_bytes();
        for (byte, stamped) in target.iter_mut().zip(stamp.iter().skip(within)) {
            *byte = *stamped;
        }
        done += n;
    }
}

/// Scatters the bits of a number (the finaliser of the splitmix64 generator).
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Bytes in the gzip format, of stored blocks: an encoding that any decoder undoes, and no compressor is needed for.
pub fn gzip(plain: &[u8]) -> Bytes {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let blocks = plain.len().div_ceil(usize::from(u16::MAX)).max(1);
    for i in 0..blocks {
        let start = i * usize::from(u16::MAX);
        let block = &plain[start..plain.len().min(start + usize::from(u16::MAX))];
        let len = u16::try_from(block.len()).expect("cut to fit");
        out.push(u8::from(i + 1 == blocks));
        out.extend(len.to_le_bytes());
        out.extend((!len).to_le_bytes());
        out.extend(block);
    }
    let crc = plain
        .iter()
        .fold(!0_u32, |crc, &b| (0..8).fold(crc ^ u32::from(b), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 }));
    out.extend((!crc).to_le_bytes());
    out.extend(u32::try_from(plain.len()).expect("small").to_le_bytes());
    out.into()
}
