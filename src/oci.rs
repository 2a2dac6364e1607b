//! The vocabulary of the OCI specifications: what a request may name and what a registry may answer.
//!
//! Owns the types that every other module speaks in. Each is parsed once, at the border, by its only constructor, and is
//! valid for ever after: a path on disk, an URL to an upstream or a header is only ever made from one of these.
//! Knows nothing of HTTP, the disk, the clock or the configuration.
//!
//! Grammar: OCI distribution-spec 1.1 "Pulling manifests" (name, tag), image-spec "Descriptor" (digest).

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use sha2::Digest as _;

mod manifest;
mod text;

pub use manifest::{Descriptor, MANIFEST_BYTES_MAX, Manifest, ManifestError};
pub use text::DigestText;

/// The longest repository name, in bytes. The specification asks clients to keep host and name within 255.
pub const NAME_BYTES_MAX: usize = 255;

/// The longest tag, in bytes (distribution-spec 1.1).
pub const TAG_BYTES_MAX: usize = 128;

/// The most tags that a page may have (the specification lets the server choose): more is cut down to it.
pub const PAGE_MAX: u32 = 1_000;

/// A text that is not what it should be, and why, in words for the person who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Not a repository name.
    #[error("a repository name is lower-case letters, digits and single separators, at most 255 bytes")]
    Name,
    /// Not a tag.
    #[error("a tag is 1 to 128 letters, digits, dots, dashes and underscores, and starts with none of . and -")]
    Tag,
    /// Not a digest that millpond verifies.
    #[error("a digest is sha256: and 64, or sha512: and 128, lower-case hexadecimal digits")]
    Digest,
    /// Not the name of a registry.
    #[error("a registry is a host name with an optional port, such as docker.io or registry.example:5000")]
    Registry,
    /// Not a media type.
    #[error("a media type is application/ and a name, without parameters")]
    MediaType,
}

/// What users call a registry: `docker.io`, `ghcr.io`, `registry.example:5000`. Lower case, never empty.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Registry(Arc<str>);

/// A repository within a registry: `library/debian`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// A tag: a name for a manifest that may move.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// The hash that names a content for ever. Only algorithms that millpond verifies can be spelled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// `sha256:` and 64 hexadecimal digits.
    Sha256([u8; 32]),
    /// `sha512:` and 128 hexadecimal digits.
    Sha512([u8; 64]),
}

/// A manifest is asked for by tag or by digest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// By a name that may move.
    Tag(Tag),
    /// By its content.
    Digest(Digest),
}

/// A repository of a registry: the scope in which tags, links and permissions hold.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Repository {
    /// Whose repository.
    pub registry: Registry,
    /// Which one.
    pub name: Name,
}

/// The media type of a manifest, kept as the upstream wrote it, without parameters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MediaType(Arc<str>);

impl Registry {
    /// Takes a host with an optional port; upper case is folded.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let label = |label: &str| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let port_ok = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|p| p > 0) && !port.starts_with('+'));
        if text.len() > NAME_BYTES_MAX || !port_ok || !host.split('.').all(label) {
            return Err(Invalid::Registry);
        }
        let is_lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        Ok(Self(if is_lower { text.into() } else { text.to_ascii_lowercase().into() }))
    }

    /// The same in memory of its own: threads that count their references to one place get in each other's way.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self(self.as_str().into())
    }

    /// Whether a path component is the name of a registry rather than the first part of a repository name: the rule
    /// that every client applies to an image reference (distribution/reference).
    pub fn is_spelled_by(component: &str) -> bool {
        component.contains(['.', ':']) || component == "localhost"
    }

    /// Docker Hub, the registry that is meant when none is named.
    pub fn docker_hub() -> Self {
        static HUB: LazyLock<Registry> = LazyLock::new(|| Registry("docker.io".into()));
        HUB.clone()
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As text that can be kept, without a copy.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl Name {
    /// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` components, joined by `/`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.len() > NAME_BYTES_MAX || !text.split('/').all(is_name_component) {
            return Err(Invalid::Name);
        }
        Ok(Self(text.into()))
    }

    /// Docker Hub keeps its official images under `library/`, which people leave out. It may make the name too long.
    pub fn in_library_of(self, registry: &Registry) -> Result<Self, Invalid> {
        if registry.as_str() == "docker.io" && !self.0.contains('/') {
            return Self::parse(&format!("library/{}", self.0));
        }
        Ok(self)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !alnum(first) || !alnum(last) {
        return false;
    }
    // Between two alphanumerics stands nothing, one dot, one or two underscores, or any number of dashes.
    bytes.split(|&b| alnum(b)).all(|separator| match separator {
        [] | [b'.' | b'_'] | [b'_', b'_'] => true,
        dashes => dashes.iter().all(|&b| b == b'-'),
    })
}

impl Tag {
    /// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let mut bytes = text.bytes();
        let first_ok = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        let rest_ok = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if text.len() > TAG_BYTES_MAX || !first_ok || !rest_ok {
            return Err(Invalid::Tag);
        }
        Ok(Self(text.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Digest {
    /// A digest of a registered algorithm, spelled in lower case.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        match text.split_once(':') {
            Some(("sha256", hex)) => Ok(Self::Sha256(unhex(hex)?)),
            Some(("sha512", hex)) => Ok(Self::Sha512(unhex(hex)?)),
            _ => Err(Invalid::Digest),
        }
    }

    /// The sha256 of some bytes: how millpond names a manifest that was asked for by tag.
    pub fn sha256_of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether the bytes are the content that this digest names.
    pub fn is_of(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }

    /// A hasher of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        Hasher::new(self.algorithm())
    }

    /// Which hash.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The bytes of the hash.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The tag under which referrers are listed by a registry without the referrers API (distribution-spec 1.1,
    /// "Referrers Tag Schema": the encoded part is cut at 64 characters).
    pub fn referrers_tag(&self) -> Tag {
        let mut hex = self.hex();
        hex.truncate(64);
        Tag(format!("{}-{hex}", self.algorithm().as_str()).into())
    }
}

fn unhex<const N: usize>(hex: &str) -> Result<[u8; N], Invalid> {
    let digits = hex.as_bytes();
    if digits.len() != N * 2 {
        return Err(Invalid::Digest);
    }
    let value = |b: u8| match b {
        b'0'..=b'9' => Ok(b - b'0'),
        b'a'..=b'f' => Ok(b - b'a' + 10),
        _ => Err(Invalid::Digest),
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Ok(bytes)
}

/// A hash that millpond can verify.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Algorithm {
    /// SHA-256, what everybody uses.
    Sha256,
    /// SHA-512, which the specification registers too.
    Sha512,
}

impl Algorithm {
    /// Every algorithm there is: the folders under `blobs/`.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// As it is spelled in a digest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }
}

/// A hash under way.
#[derive(Clone)]
pub enum Hasher {
    /// Of SHA-256.
    Sha256(sha2::Sha256),
    /// Of SHA-512.
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Starts with nothing.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

impl Reference {
    /// A text with a colon is meant as a digest, any other as a tag: no tag has a colon.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if text.contains(':') {
            return Digest::parse(text).map(Self::Digest);
        }
        Tag::parse(text).map(Self::Tag)
    }
}

/// The type of an OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl MediaType {
    /// Keeps the type and drops its parameters (distribution-spec: a manifest's Content-Type has none). Only
    /// `application/…` is let through, so that nothing a browser would run is ever served.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let subtype = essence.strip_prefix("application/").ok_or(Invalid::MediaType)?;
        let token = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-' | b'_' | b'!' | b'#' | b'$' | b'&' | b'^');
        if subtype.is_empty() || subtype.len() > 127 || !subtype.bytes().all(token) {
            return Err(Invalid::MediaType);
        }
        Ok(Self(essence.into()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is an OCI image index, the form in which referrers are listed.
    pub fn is_index(&self) -> bool {
        &*self.0 == OCI_INDEX
    }
}

macro_rules! text {
    ($($type:ident)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::parse(text)
            }
        }
    )*};
}
text!(Registry Name Tag MediaType);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<&Tag> for Reference {
    fn from(tag: &Tag) -> Self {
        Self::Tag(tag.clone())
    }
}

impl From<&Digest> for Reference {
    fn from(digest: &Digest) -> Self {
        Self::Digest(*digest)
    }
}

impl From<&Self> for Reference {
    fn from(reference: &Self) -> Self {
        reference.clone()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "library/debian", "a.b/c_d/e__f/g---h", "0/1", "manifests", "blobs/uploads"] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "a/", "/a", "a//b", "A", "a..b", "-a", "a-", "a___b", ".a", "a.", "a._b", "a:b", "a b", "é", "..", "a/../b"] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
        assert!(Name::parse(&"a".repeat(255)).is_ok());
        assert!(Name::parse(&"a".repeat(256)).is_err());

        let in_library = |bytes| Name::parse(&"a".repeat(bytes)).and_then(|name| name.in_library_of(&Registry::docker_hub()));
        assert_eq!(in_library(1).as_ref().map(Name::as_str), Ok("library/a"));
        assert!(in_library(NAME_BYTES_MAX - "library/".len()).is_ok());
        assert_eq!(in_library(NAME_BYTES_MAX), Err(Invalid::Name));
    }

    #[test]
    fn tags_follow_the_grammar() {
        for good in ["latest", "_", "1.0-rc_1", "A"] {
            assert!(Tag::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-x", "a b", "a/b", "a:b", "a%2e"] {
            assert!(Tag::parse(bad).is_err(), "{bad}");
        }
        assert!(Tag::parse(&"a".repeat(128)).is_ok());
        assert!(Tag::parse(&"a".repeat(129)).is_err());
    }

    #[test]
    fn digests_are_lower_case_and_of_full_length() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest = Digest::parse(empty).expect("the digest of nothing");
        assert_eq!(digest.to_string(), empty);
        assert_eq!(Digest::sha256_of(b""), digest);
        let hex = |n| "a".repeat(n);
        for bad in [
            format!("sha256:{}", hex(63)),
            format!("sha256:{}", hex(65)),
            format!("sha256:{}", hex(64).to_uppercase()),
            format!("sha256:{}", "z".repeat(64)),
            format!("sha512:{}", hex(64)),
            format!("md5:{}", hex(32)),
            format!("sha256+b64:{}", hex(64)),
            "sha256:../../../../etc/passwd".to_owned(),
            ":abc".to_owned(),
            format!("sha256::{}", hex(64)),
            String::new(),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad}");
        }
        assert!(Digest::parse(&format!("sha512:{}", hex(128))).is_ok());
    }

    #[test]
    fn sha512_is_verified_with_sha512() {
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"abc");
        let digest = hasher.finish();
        assert!(digest.to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        assert!(digest.is_of(b"abc"));
        assert!(!digest.is_of(b"abd"));
        assert_eq!(digest.referrers_tag().as_str().len(), "sha512-".len() + 64);
    }

    #[test]
    fn registries_are_hosts() {
        for good in ["docker.io", "localhost:5000", "GHCR.io", "127.0.0.1:80", "a-b.c"] {
            assert!(Registry::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ":5000", "a:b", "a:0", "a:+1", "a:99999", "docker.io@evil", "a/b", "..", ".a", "a..b", "-a.b", "[::1]", "a%00"] {
            assert!(Registry::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn media_types_lose_their_parameters_and_stay_harmless() {
        let parsed = MediaType::parse("application/vnd.oci.image.index.v1+json; charset=utf-8").expect("valid");
        assert_eq!(parsed.as_str(), "application/vnd.oci.image.index.v1+json");
        for bad in ["text/html", "application/", "application/a b", "application/a\r\nx: y", ""] {
            assert!(MediaType::parse(bad).is_err(), "{bad}");
        }
    }
}
