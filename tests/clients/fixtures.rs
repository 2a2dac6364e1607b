//! The images that are pulled, made once a machine and kept in `target/clients-fixtures`.
//!
//! Owns the folder: one process makes it, under a lock, beside its place, and renames it when it is whole; every later run only reads it. Inside is the
//! storage of a docker-registry, filled over its API, and what a test must know to judge an answer: every manifest to the byte, its media type and digest.
//!
//! | image | manifest | what is in it |
//! |---|---|---|
//! | `library/debian:latest` | Docker, schema 2 | one layer: a Debian root file system, by debootstrap |
//! | `library/debian:list` | Docker manifest list | the above, and a small fake of another architecture |
//! | `library/debian:multi` | OCI index | the same two as OCI images |
//! | `library/debian:sha256-…` | OCI index | the referrers of the OCI image: one artifact |
//! | `library/debian@…` | OCI artifact | a text, with a subject |
//! | `library/big:latest` | OCI | four layers, one of 300 MiB that does not compress |

mod images;
mod layers;
mod push;

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::process;

/// Raise it when what is made here changes: folders of other versions are removed.
const VERSION: &str = "v1";

/// What was made, and where.
pub(crate) struct Fixtures {
    folder: PathBuf,
    images: Vec<Image>,
    /// What `cat /etc/debian_version` prints in a container of `debian`.
    pub(crate) debian_version: String,
    /// What `sha256sum /big.bin` begins with in a container of `big`.
    pub(crate) big_sum: String,
}

/// One manifest, exactly as the upstream has it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(skip)]
    pub(crate) body: Vec<u8>,
}

/// What the folder's `made.json` says.
#[derive(Serialize, Deserialize)]
struct Made {
    images: Vec<Image>,
    debian_version: String,
    big_sum: String,
}

/// The fixtures of this machine, made now if there are none. `None`, with a line that says why, when this machine cannot make them.
pub(crate) fn get() -> Option<&'static Fixtures> {
    static FIXTURES: OnceLock<Result<Fixtures, String>> = OnceLock::new();
    FIXTURES.get_or_init(find_or_make).as_ref().map_err(|why| process::skip(why)).ok()
}

impl Fixtures {
    /// The image of a repository and a tag.
    pub(crate) fn image(&self, repository: &str, tag: &str) -> &Image {
        let found = self.images.iter().find(|image| image.repository == repository && image.tag.as_deref() == Some(tag));
        found.unwrap_or_else(|| panic!("no fixture {repository}:{tag}"))
    }

    /// The image of this machine's own platform that an index names.
    pub(crate) fn native(&self, index: &Image) -> &Image {
        let list: Value = serde_json::from_slice(&index.body).unwrap();
        let mut entries = list["manifests"].as_array().unwrap().iter();
        let entry =
            entries.find(|entry| entry["platform"]["architecture"] == images::native_architecture()).expect("an entry for this platform");
        self.images.iter().find(|image| entry["digest"] == image.digest.as_str()).expect("the manifest that the index names")
    }

    /// What a client pulls, and what it must then hold: each family and each kind of index, by tag or by digest, and the big one.
    pub(crate) fn pulls(&self) -> Vec<(String, &Image)> {
        let [latest, list] = ["latest", "list"].map(|tag| self.image("library/debian", tag));
        let by_digest = [latest, list].map(|image| (format!("{}@{}", image.repository, image.digest), image));
        self.few_pulls().into_iter().chain(by_digest).collect()
    }

    /// The same, shorter: a plain image, an index and the big one, by tag.
    pub(crate) fn few_pulls(&self) -> Vec<(String, &Image)> {
        let debian = ["latest", "multi"].map(|tag| self.image("library/debian", tag));
        debian.into_iter().chain([self.image("library/big", "latest")]).map(|image| (image.to_string(), image)).collect()
    }

    /// Every manifest there is.
    pub(crate) fn images(&self) -> &[Image] {
        &self.images
    }

    /// The docker-registry storage folder that holds them.
    pub(crate) fn storage(&self) -> PathBuf {
        self.folder.join("registry")
    }

    fn load(folder: PathBuf) -> Self {
        let made: Made = serde_json::from_slice(&fs::read(folder.join("made.json")).unwrap()).unwrap();
        let read = |image: Image| Image { body: fs::read(folder.join("manifests").join(&image.digest)).unwrap(), ..image };
        let images = made.images.into_iter().map(read).collect();
        Self { images, debian_version: made.debian_version, big_sum: made.big_sum, folder }
    }
}

impl Image {
    /// `body` as the manifest of a repository, under a tag or under its digest alone.
    fn new(repository: &str, tag: Option<&str>, media_type: &str, body: Vec<u8>) -> Self {
        let (repository, tag, media_type) = (repository.to_owned(), tag.map(str::to_owned), media_type.to_owned());
        Self { repository, tag, media_type, digest: digest(&body), body }
    }

    /// The digests of the configuration and of the layers; empty for an index.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let manifest: Value = serde_json::from_slice(&self.body).unwrap();
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let descriptors = manifest.get("config").into_iter().chain(layers);
        descriptors.map(|descriptor| descriptor["digest"].as_str().unwrap().to_owned()).collect()
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tag {
            Some(tag) => write!(f, "{}:{tag}", self.repository),
            None => write!(f, "{}@{}", self.repository, self.digest),
        }
    }
}

fn find_or_make() -> Result<Fixtures, String> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients-fixtures");
    let folder = root.join(VERSION);
    fs::create_dir_all(&root).unwrap();
    // Another checkout's `cargo test` may be at it too; the lock goes with the file.
    let lock = File::create(root.join("LOCK")).unwrap();
    lock.lock().unwrap();
    if !folder.join("made.json").is_file() {
        for left in fs::read_dir(&root).unwrap().flatten().filter(|left| left.path().is_dir()) {
            fs::remove_dir_all(left.path()).unwrap();
        }
        let building = tempfile::Builder::new().prefix("building-").tempdir_in(&root).unwrap();
        make(building.path())?;
        fs::rename(building.keep(), &folder).unwrap();
    }
    Ok(Fixtures::load(folder))
}

fn make(folder: &Path) -> Result<(), String> {
    let work = folder.join("work");
    fs::create_dir(&work).unwrap();
    let base = layers::debian(&work)?;
    let big = layers::big(&work);
    let small: Vec<_> = ["first", "last"].iter().map(|name| layers::text(&work, name)).collect();
    let fake = layers::text(&work, "foreign");

    let set = images::compose(&images::Layers { base: &base.layer, big: &big.layer, small: &small, fake: &fake });
    push::fill(&folder.join("registry"), &set);

    fs::create_dir(folder.join("manifests")).unwrap();
    for image in &set.images {
        fs::write(folder.join("manifests").join(&image.digest), &image.body).unwrap();
    }
    fs::remove_dir_all(&work).unwrap();
    let made = Made { images: set.images, debian_version: base.version, big_sum: big.sum };
    fs::write(folder.join("made.json"), serde_json::to_vec_pretty(&made).unwrap()).unwrap();
    Ok(())
}

/// The SHA-256 digest of these bytes, as registries write it.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
