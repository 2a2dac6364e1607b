//! What millpond reads in a manifest: its type and what it refers to. The bytes themselves are never rewritten.

use serde::Deserialize;

use super::{Digest, MediaType};

/// The largest manifest that is taken, in bytes: what the specification asks registries to accept and what clients read.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

/// How many objects and lists may stand within each other. Honest manifests have five; clients give up at some depth, or
/// break.
const DEPTH_MAX: usize = 128;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A manifest that may be kept: JSON of version 2 that means one thing to every client.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// What it is, from the Content-Type header, else from the JSON.
    pub media_type: MediaType,
    /// Manifests it names: an index's children.
    pub manifests: Vec<Descriptor>,
    /// Blobs it names: the config and the layers.
    pub blobs: Vec<Descriptor>,
}

/// A reference from one content to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Which content.
    pub digest: Digest,
    /// Its size in bytes as the manifest says; old images are known to be wrong, so this decides nothing.
    pub size: u64,
}

/// Why a manifest is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Not a JSON object in UTF-8, or one that repeats a key or nests too deep.
    #[error("the manifest is not valid JSON of schema version 2")]
    Json,
    /// Both an index and an image, or a type in the header that the body contradicts (CVE-2021-41190).
    #[error("the manifest can be read as two different types")]
    Ambiguous,
    /// Neither the header nor the body says a type.
    #[error("the manifest has no media type")]
    Untyped,
}

impl Manifest {
    /// Reads what millpond needs and refuses what two clients could read differently (image-spec, CVE-2021-41190).
    /// `content_type` is the upstream's header, where it sent one.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        // Of what it skips, serde looks neither at the UTF-8 nor at the depth; and it would take a list for an object.
        let text = str::from_utf8(bytes).map_err(|_| ManifestError::Json)?;
        let raw: Raw = serde_json::from_str(text).map_err(|_| ManifestError::Json)?;
        if raw.schema_version != 2 || depth(text) > DEPTH_MAX || !text.trim_start().starts_with('{') {
            return Err(ManifestError::Json);
        }
        let is_index = raw.manifests.is_some();
        let is_image = raw.layers.is_some() || raw.config.is_some() || raw.blobs.is_some();
        if is_index && is_image || raw.fs_layers.is_some() {
            return Err(ManifestError::Ambiguous);
        }
        let media_type = media_type(&raw, content_type, is_index, is_image)?;
        let known_index = matches!(media_type.as_str(), OCI_INDEX | DOCKER_LIST);
        let known_image = matches!(media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST);
        if known_index && is_image || known_image && is_index {
            return Err(ManifestError::Ambiguous);
        }
        let descriptors = |raw: Vec<RawDescriptor>| raw.into_iter().filter_map(RawDescriptor::read).collect::<Vec<_>>();
        let mut blobs = descriptors(raw.config.into_iter().collect());
        blobs.extend(descriptors(raw.layers.unwrap_or_default()));
        blobs.extend(descriptors(raw.blobs.unwrap_or_default()));
        Ok(Self { media_type, manifests: descriptors(raw.manifests.unwrap_or_default()), blobs })
    }
}

/// How deep a valid JSON text nests.
fn depth(json: &str) -> usize {
    let (mut deepest, mut depth) = (0_usize, 0_usize);
    let mut bytes = json.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            // A string, up to the quote that no backslash stands before.
            b'"' => while bytes.next().is_some_and(|byte| byte != b'"' && (byte != b'\\' || bytes.next().is_some())) {},
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// The header's type, where it is one of a manifest; else the body's own word; else what its fields say.
fn media_type(raw: &Raw, header: Option<&str>, is_index: bool, is_image: bool) -> Result<MediaType, ManifestError> {
    // Some servers label every file so: it says nothing.
    let vague = |m: &MediaType| matches!(m.as_str(), "application/octet-stream" | "application/json");
    let header = header.and_then(|text| MediaType::parse(text).ok()).filter(|m| !vague(m));
    let body = match &raw.media_type {
        Some(text) => Some(MediaType::parse(text).map_err(|_| ManifestError::Untyped)?),
        None => None,
    };
    match (header, body) {
        (Some(header), Some(body)) if header != body => Err(ManifestError::Ambiguous),
        (Some(found), _) | (None, Some(found)) => Ok(found),
        (None, None) if is_index => Ok(MediaType::parse(OCI_INDEX).expect("a constant")),
        (None, None) if is_image => Ok(MediaType::parse(OCI_MANIFEST).expect("a constant")),
        (None, None) => Err(ManifestError::Untyped),
    }
}

// Serde refuses a key that stands twice in the object, which is the other way to say two things at once.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    blobs: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    digest: String,
    #[serde(default)]
    size: u64,
}

impl RawDescriptor {
    /// A descriptor of an algorithm that millpond cannot verify names nothing that it could hold.
    fn read(self) -> Option<Descriptor> {
        Some(Descriptor { digest: Digest::parse(&self.digest).ok()?, size: self.size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn an_index_names_its_children_and_an_image_its_blobs() {
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{DIGEST}","size":7}}]}}"#);
        let index = Manifest::parse(index.as_bytes(), None).expect("an index");
        assert_eq!(index.media_type.as_str(), OCI_INDEX);
        assert_eq!(index.manifests, [Descriptor { digest: Digest::parse(DIGEST).expect("valid"), size: 7 }]);

        let image = format!(r#"{{"schemaVersion":2,"config":{{"digest":"{DIGEST}","size":1}},"layers":[{{"digest":"{DIGEST}"}}]}}"#);
        let image = Manifest::parse(image.as_bytes(), Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"))
            .expect("an image");
        assert_eq!(image.media_type.as_str(), DOCKER_MANIFEST);
        assert_eq!(image.blobs.len(), 2);
    }

    #[test]
    fn what_two_clients_could_read_differently_is_refused() {
        let both = r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
        assert_eq!(Manifest::parse(both.as_bytes(), None).unwrap_err(), ManifestError::Ambiguous);
        let other = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","layers":[]}}"#);
        assert_eq!(Manifest::parse(other.as_bytes(), Some(OCI_INDEX)).unwrap_err(), ManifestError::Ambiguous);
        let typed = r#"{"schemaVersion":2,"layers":[]}"#;
        assert_eq!(Manifest::parse(typed.as_bytes(), Some(OCI_INDEX)).unwrap_err(), ManifestError::Ambiguous);
        for broken in [
            r#"{"schemaVersion":2,"layers":[],"layers":[]}"#,
            r#"{"schemaVersion":1,"layers":[]}"#,
            "<html>",
            "",
            "{}",
            r#"{"schemaVersion":2,"config":{"digest":"x","size":-1}}"#,
            "[2,null,null,null,[],null,null]",
        ] {
            assert_eq!(Manifest::parse(broken.as_bytes(), None).unwrap_err(), ManifestError::Json, "{broken}");
        }
    }

    #[test]
    fn what_is_skipped_is_json_too() {
        let with = |extra: &[u8]| [&br#"{"schemaVersion":2,"layers":[],"x":"#[..], extra, b"}"].concat();
        let nested = |depth| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(Manifest::parse(&with(nested(DEPTH_MAX - 1).as_bytes()), None).is_ok());
        assert!(Manifest::parse(&with(format!(r#""\"{}""#, "[".repeat(DEPTH_MAX)).as_bytes()), None).is_ok(), "in a string");
        for broken in [nested(DEPTH_MAX).as_bytes(), nested(100_000).as_bytes(), b"\"\xff\""] {
            assert_eq!(Manifest::parse(&with(broken), None).unwrap_err(), ManifestError::Json);
        }
    }

    #[test]
    fn an_artifact_keeps_its_own_type_and_a_vague_header_says_nothing() {
        let artifact = format!(r#"{{"schemaVersion":2,"mediaType":"application/vnd.example+json","blobs":[{{"digest":"{DIGEST}"}}]}}"#);
        let artifact = Manifest::parse(artifact.as_bytes(), Some("application/octet-stream")).expect("an artifact");
        assert_eq!(artifact.media_type.as_str(), "application/vnd.example+json");
        assert_eq!(artifact.blobs.len(), 1);
    }
}
