//! A digest as text, without an allocation: it is made several times for every answer.

use super::Digest;

const HEX: &[u8; 16] = b"0123456789abcdef";

/// The longest digest: `sha512:` and 128 digits.
const DIGEST_BYTES_MAX: usize = 7 + 128;

/// A digest as it is spelled.
#[derive(Clone, Copy)]
pub struct DigestText {
    bytes: [u8; DIGEST_BYTES_MAX],
    colon: usize,
    len: usize,
}

impl Digest {
    /// As it is spelled: `sha256:` and its digits.
    pub fn text(&self) -> DigestText {
        let name = self.algorithm().as_str().as_bytes();
        let mut text = DigestText { bytes: [b':'; DIGEST_BYTES_MAX], colon: name.len(), len: name.len() + 1 + self.as_bytes().len() * 2 };
        text.bytes[..text.colon].copy_from_slice(name);
        let digits = &mut text.bytes[text.colon + 1..text.len];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.as_bytes()) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        text
    }

    /// The hash in hexadecimal, without the algorithm.
    pub fn hex(&self) -> String {
        self.text().hex().to_owned()
    }
}

impl DigestText {
    /// As text.
    pub fn as_str(&self) -> &str {
        // It is made of letters and digits: never the default.
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }

    /// Without the algorithm.
    pub fn hex(&self) -> &str {
        &self.as_str()[self.colon + 1..]
    }
}
