//! What is pushed into a scripted registry: images, indexes and artifacts, described in a line and built the same every time.

use bytes::Bytes;
use millpond::oci::{Algorithm, Digest};
use serde_json::{Map, Value, json};

use super::content::Content;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A content and the digest that names it.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it is made of.
    pub content: Content,
    /// Its name.
    pub digest: Digest,
}

/// An image to be: layers, and a config that is made from them.
#[derive(Clone, Debug)]
pub struct Image {
    layers: Vec<Content>,
    seed: u64,
    platform: String,
    docker: bool,
    tar: bool,
    algorithm: Algorithm,
    padded_to: Option<usize>,
    subject: Option<(Digest, usize)>,
    artifact_type: Option<String>,
    foreign: Option<String>,
}

/// An index to be: images, artifacts or other indexes under one name.
#[derive(Clone, Debug)]
pub struct Index {
    children: Vec<Tree>,
    docker: bool,
    algorithm: Algorithm,
}

/// Whatever has a manifest.
#[derive(Clone, Debug)]
pub enum Tree {
    /// One image.
    Image(Image),
    /// Several.
    Index(Index),
}

/// What was built and pushed: the names to ask for, and the bytes to expect.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's type.
    pub media_type: String,
    /// The manifest's bytes.
    pub manifest: Bytes,
    /// The config, of an image.
    pub config: Option<Blob>,
    /// The layers, of an image; without the foreign one.
    pub layers: Vec<Blob>,
    /// The children, of an index.
    pub children: Vec<Pushed>,
    /// What it refers to, and the type under which referrers are listed.
    pub subject: Option<(Digest, String)>,
    platform: Option<String>,
}

impl Blob {
    /// A content under its sha256.
    pub fn new(content: Content) -> Self {
        Self::hashed(content, Algorithm::Sha256)
    }

    /// A content under its sha512.
    pub fn sha512(content: Content) -> Self {
        Self::hashed(content, Algorithm::Sha512)
    }

    /// `len` bytes that depend on nothing but `seed`.
    pub fn seeded(seed: u64, len: u64) -> Self {
        Self::new(Content::seeded(seed, len))
    }

    /// The blob of no bytes.
    pub fn empty() -> Self {
        Self::new(Content::bytes(""))
    }

    /// How many bytes.
    pub fn len(&self) -> u64 {
        self.content.len()
    }

    fn hashed(content: Content, algorithm: Algorithm) -> Self {
        Self { digest: content.digest(algorithm), content }
    }
}

impl Image {
    /// An OCI image for linux/amd64 with layers of so many bytes. Two images with the same sizes are the same image,
    /// unless they differ by [`Image::seed`].
    pub fn layers(sizes: impl IntoIterator<Item = u64>) -> Self {
        let mut image = Self {
            layers: Vec::new(),
            seed: 0,
            platform: "linux/amd64".into(),
            docker: false,
            tar: false,
            algorithm: Algorithm::Sha256,
            padded_to: None,
            subject: None,
            artifact_type: None,
            foreign: None,
        };
        image.layers = sizes.into_iter().map(|len| Content::seeded(0, len)).collect();
        image
    }

    /// An artifact of this type with one blob: an SBOM, a signature.
    pub fn artifact(artifact_type: &str, len: u64) -> Self {
        Self { artifact_type: Some(artifact_type.into()), ..Self::layers([len]) }
    }

    /// Makes all its contents differ from those of another seed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// For another platform than linux/amd64.
    pub fn platform(mut self, platform: &str) -> Self {
        self.platform = platform.into();
        self
    }

    /// With Docker's media types instead of those of the OCI.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// With layers that are tar archives, which real clients can unpack.
    pub fn tar(mut self) -> Self {
        self.tar = true;
        self
    }

    /// With every digest a sha512.
    pub fn sha512(mut self) -> Self {
        self.algorithm = Algorithm::Sha512;
        self
    }

    /// With a manifest of exactly so many bytes.
    pub fn padded_to(mut self, bytes: usize) -> Self {
        self.padded_to = Some(bytes);
        self
    }

    /// Refers to another manifest, which then lists it among its referrers.
    pub fn subject(mut self, of: &Pushed) -> Self {
        self.subject = Some((of.digest, of.manifest.len()));
        self
    }

    /// With one more layer that the registry does not have, as the base of a Windows image.
    pub fn foreign_layer(mut self, url: &str) -> Self {
        self.foreign = Some(url.into());
        self
    }

    fn build(&self) -> Pushed {
        let layers: Vec<Blob> = self.layers.iter().zip(1..).map(|(layer, n)| self.layer(layer, n)).collect();
        let config = Blob::hashed(Content::bytes(self.config_json(&layers).to_string()), self.algorithm);
        let kinds = if self.docker {
            (DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar")
        } else if self.artifact_type.is_some() {
            (OCI_MANIFEST, "application/vnd.oci.empty.v1+json", "application/octet-stream")
        } else {
            (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar")
        };
        let (media_type, config_type, layer_type) = kinds;
        let mut listed: Vec<Value> = layers.iter().map(|layer| descriptor(layer_type, &layer.digest, layer.len())).collect();
        if let Some(url) = &self.foreign {
            let absent = Blob::seeded(u64::MAX, 1000);
            let mut foreign = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", &absent.digest, 1000);
            foreign["urls"] = json!([url]);
            listed.push(foreign);
        }
        let mut manifest = Map::new();
        manifest.insert("schemaVersion".into(), 2.into());
        manifest.insert("mediaType".into(), media_type.into());
        if let Some(artifact_type) = &self.artifact_type {
            manifest.insert("artifactType".into(), artifact_type.as_str().into());
        }
        manifest.insert("config".into(), descriptor(config_type, &config.digest, config.len()));
        manifest.insert("layers".into(), listed.into());
        if let Some((digest, len)) = &self.subject {
            manifest.insert("subject".into(), descriptor(OCI_MANIFEST, digest, *len as u64));
        }
        let manifest = self.pad(manifest);
        let kind = self.artifact_type.clone().unwrap_or_else(|| config_type.into());
        Pushed {
            digest: Content::Bytes(manifest.clone()).digest(self.algorithm),
            media_type: media_type.into(),
            manifest,
            config: Some(config),
            layers,
            children: Vec::new(),
            subject: self.subject.map(|(digest, _)| (digest, kind)),
            platform: self.artifact_type.is_none().then(|| self.platform.clone()),
        }
    }

    fn layer(&self, layer: &Content, n: u64) -> Blob {
        let content = Content::seeded(self.seed * 1000 + n, layer.len());
        Blob::hashed(if self.tar { Content::tar(&format!("layer-{n}"), content) } else { content }, self.algorithm)
    }

    fn config_json(&self, layers: &[Blob]) -> Value {
        if self.artifact_type.is_some() {
            return json!({});
        }
        let (os, architecture) = self.platform.split_once('/').expect("a platform is os/architecture");
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        json!({
            "architecture": architecture, "os": os,
            "config": { "Cmd": ["/true"], "Labels": { "seed": self.seed.to_string() } },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        })
    }

    fn pad(&self, mut manifest: Map<String, Value>) -> Bytes {
        if let Some(bytes) = self.padded_to {
            manifest.insert("annotations".into(), json!({ "padding": "" }));
            let bare = Value::from(manifest.clone()).to_string().len();
            let padding = "x".repeat(bytes.checked_sub(bare).expect("the manifest is larger without padding"));
            manifest.insert("annotations".into(), json!({ "padding": padding }));
        }
        Value::from(manifest).to_string().into()
    }
}

impl Index {
    /// An OCI index over these.
    pub fn of<T: Into<Tree>>(children: impl IntoIterator<Item = T>) -> Self {
        Self { children: children.into_iter().map(Into::into).collect(), docker: false, algorithm: Algorithm::Sha256 }
    }

    /// An index over the same image for several platforms.
    pub fn platforms(image: &Image, platforms: &[&str]) -> Self {
        let variant = |(n, platform): (u64, &&str)| image.clone().seed(image.seed * 100 + n).platform(platform);
        Self::of((1..).zip(platforms).map(variant))
    }

    /// A Docker manifest list instead of an OCI index.
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Named by its sha512.
    pub fn sha512(mut self) -> Self {
        self.algorithm = Algorithm::Sha512;
        self
    }

    fn build(&self) -> Pushed {
        let children: Vec<Pushed> = self.children.iter().map(Tree::build).collect();
        let listed: Vec<Value> = children.iter().map(Pushed::descriptor).collect();
        let media_type = if self.docker { DOCKER_LIST } else { OCI_INDEX };
        let manifest: Bytes = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": listed }).to_string().into();
        Pushed {
            digest: Content::Bytes(manifest.clone()).digest(self.algorithm),
            media_type: media_type.into(),
            manifest,
            config: None,
            layers: Vec::new(),
            children,
            subject: None,
            platform: None,
        }
    }
}

impl Tree {
    /// Makes its contents and names.
    pub fn build(&self) -> Pushed {
        match self {
            Self::Image(image) => image.build(),
            Self::Index(index) => index.build(),
        }
    }
}

impl From<Image> for Tree {
    fn from(image: Image) -> Self {
        Self::Image(image)
    }
}

impl From<Index> for Tree {
    fn from(index: Index) -> Self {
        Self::Index(index)
    }
}

impl Pushed {
    /// Any bytes as a manifest.
    pub(super) fn raw(media_type: &str, manifest: Bytes) -> Self {
        Self {
            digest: Digest::sha256_of(&manifest),
            media_type: media_type.into(),
            manifest,
            config: None,
            layers: Vec::new(),
            children: Vec::new(),
            subject: None,
            platform: None,
        }
    }

    /// The blobs of an image: the config and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.config.iter().chain(&self.layers)
    }

    fn descriptor(&self) -> Value {
        let mut descriptor = descriptor(&self.media_type, &self.digest, self.manifest.len() as u64);
        if let Some((os, architecture)) = self.platform.as_deref().and_then(|platform| platform.split_once('/')) {
            descriptor["platform"] = json!({ "architecture": architecture, "os": os });
        }
        descriptor
    }
}

fn descriptor(media_type: &str, digest: &Digest, len: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": len })
}
