//! What a repository holds: its tags and its links, one small file each, under `repos/<registry>/<name>/`.
//!
//! `_tags/<tag>` says which digest a tag pointed at, and when the upstream last confirmed it. `_manifests/<digest>` says
//! that a manifest belongs to the repository, and its media type: two repositories may give the same bytes two types.
//! `_blobs/<digest>` says that the upstream said yes when it was asked for the blob in this very repository. `_visibility`
//! says whether anybody may see the repository upstream. They are files so that tags and images survive the loss of the
//! index.
//!
//! `repos/_withheld/<digest>` is of no repository: it says that a content was got with a login, and which registries
//! delivered it (`withheld`).
//!
//! No registry and no component of a repository name starts with an underscore, so no name can reach these folders.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use tokio_util::sync::CancellationToken;

use super::folder::{Durability, Folder, create_dir, open_existing, sync_dir};
use super::space::Beside;
use crate::oci::{Algorithm, Digest, MediaType, Name, Registry, Repository, Tag};

/// A tag or link file is never larger, in bytes; what is larger is not ours.
const RECORD_BYTES_MAX: u64 = 4 << 10;

/// The repositories of a data folder.
#[derive(Clone)]
pub(crate) struct Repos {
    folder: Folder,
    beside: Beside,
    /// Held by many who write, or by the one who removes what leads to nothing: between its look and its removal nobody
    /// writes.
    writers: Arc<RwLock<()>>,
}

/// A file of a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Record {
    /// A tag.
    Tag(Tag),
    /// The link of a manifest.
    Manifest(Digest),
    /// The link of a blob.
    Blob(Digest),
    /// Whether anybody may see the repository.
    Visibility,
}

/// Where a tag pointed, and when that was last certain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// When the upstream last said so, by this machine's clock.
    pub checked: SystemTime,
}

/// Whether anybody may see a repository upstream, as far as was last known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Visibility {
    /// Anybody may: somebody without a login was shown something of it.
    Public,
    /// What is held of it was got with a login, and nobody without one was seen to get it.
    Private,
}

#[derive(Serialize, Deserialize)]
struct RawTag {
    digest: String,
    /// Seconds since 1970.
    checked: u64,
}

#[derive(Serialize, Deserialize)]
struct RawManifest {
    #[serde(rename = "mediaType")]
    media_type: String,
}

impl Repos {
    /// The repositories in this folder.
    pub(crate) fn new(folder: Folder, beside: Beside) -> Self {
        Self { folder, beside, writers: Arc::default() }
    }

    /// Where a tag pointed. A file that cannot be understood counts as none: the upstream is asked again.
    pub(crate) fn tag(&self, repository: &Repository, tag: &Tag) -> io::Result<Option<TagRecord>> {
        let Some(text) = read(&self.tags(repository).join(tag.as_str()))? else { return Ok(None) };
        let Ok(raw) = serde_json::from_slice::<RawTag>(&text) else { return Ok(None) };
        let Ok(digest) = Digest::parse(&raw.digest) else { return Ok(None) };
        Ok(Some(TagRecord { digest, checked: UNIX_EPOCH + Duration::from_secs(raw.checked.min(1 << 40)) }))
    }

    /// Notes where a tag points. A move is made durable; a mere confirmation is not, since its loss costs one question.
    pub(crate) fn set_tag(&self, repository: &Repository, tag: &Tag, record: &TagRecord, durability: Durability) -> io::Result<()> {
        let checked = record.checked.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let raw = RawTag { digest: record.digest.to_string(), checked };
        self.put(&self.tags(repository), tag.as_str(), &serde_json::to_vec(&raw)?, durability)
    }

    /// Forgets a tag that the upstream says is gone.
    pub(crate) fn remove_tag(&self, repository: &Repository, tag: &Tag) -> io::Result<()> {
        self.remove(&self.path(repository, &Record::Tag(tag.clone())))
    }

    /// The tags that are held, in lexical order.
    pub(crate) fn list_tags(&self, repository: &Repository) -> io::Result<Vec<Tag>> {
        let mut tags = names(&self.tags(repository))?.iter().filter_map(|name| Tag::parse(name).ok()).collect::<Vec<_>>();
        tags.sort();
        Ok(tags)
    }

    /// The media type of a manifest in this repository, if it belongs to it.
    pub(crate) fn manifest(&self, repository: &Repository, digest: &Digest) -> io::Result<Option<MediaType>> {
        let Some(text) = read(&self.link(repository, "_manifests", digest))? else { return Ok(None) };
        let raw = serde_json::from_slice::<RawManifest>(&text).ok();
        Ok(raw.and_then(|raw| MediaType::parse(&raw.media_type).ok()))
    }

    /// Notes that a manifest belongs to this repository.
    pub(crate) fn set_manifest(&self, repository: &Repository, digest: &Digest, media_type: &MediaType) -> io::Result<()> {
        let raw = RawManifest { media_type: media_type.to_string() };
        let path = self.link(repository, "_manifests", digest);
        self.put_path(&path, &serde_json::to_vec(&raw)?)
    }

    /// Every manifest that belongs to this repository.
    pub(crate) fn manifests(&self, repository: &Repository) -> io::Result<Vec<Digest>> {
        self.links(repository, "_manifests")
    }

    /// Every blob that was linked by itself.
    pub(crate) fn blobs(&self, repository: &Repository) -> io::Result<Vec<Digest>> {
        self.links(repository, "_blobs")
    }

    /// Links a blob to a repository in which the upstream showed it.
    pub(crate) fn set_blob(&self, repository: &Repository, digest: &Digest) -> io::Result<()> {
        self.put_path(&self.link(repository, "_blobs", digest), b"")
    }

    /// Whether the upstream showed a digest in this very repository; that another manifest names it is not enough.
    pub(crate) fn claims(&self, repository: &Repository, digest: &Digest) -> io::Result<bool> {
        let linked = |kind| Ok::<_, io::Error>(open_existing(&self.link(repository, kind, digest))?.is_some());
        Ok(linked("_blobs")? || linked("_manifests")?)
    }

    /// Whether anybody may see this repository upstream. What cannot be read or understood is nobody's.
    pub(crate) fn visibility(&self, repository: &Repository) -> io::Result<Option<Visibility>> {
        let Some(text) = read(&self.dir(repository).join("_visibility"))? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&text).unwrap_or(Visibility::Private)))
    }

    /// Notes whether anybody may see this repository upstream. That nobody may is durable when this returns; to forget that
    /// anybody may costs one question.
    pub(crate) fn set_visibility(&self, repository: &Repository, visibility: Visibility) -> io::Result<()> {
        let durability = if visibility == Visibility::Private { Durability::Synced } else { Durability::Renamed };
        self.put(&self.dir(repository), "_visibility", &serde_json::to_vec(&visibility)?, durability)
    }

    /// Whether anything was ever withheld in this folder.
    pub(crate) fn withholds(&self) -> bool {
        self.folder.root().join("repos/_withheld").is_dir()
    }

    /// The registries that delivered a content which is withheld. What cannot be understood was delivered by nobody.
    pub(crate) fn withheld(&self, digest: &Digest) -> io::Result<Option<BTreeSet<Registry>>> {
        let Some(text) = read(&self.mark(digest))? else { return Ok(None) };
        let names = serde_json::from_slice::<Vec<String>>(&text).unwrap_or_default();
        Ok(Some(names.iter().filter_map(|name| Registry::parse(name).ok()).collect()))
    }

    /// Withholds a content, delivered by these registries; durable when it returns.
    pub(crate) fn set_withheld(&self, digest: &Digest, owners: &BTreeSet<Registry>) -> io::Result<()> {
        let names = owners.iter().map(Registry::as_str).collect::<Vec<_>>();
        self.put_path(&self.mark(digest), &serde_json::to_vec(&names)?)
    }

    /// A content is withheld no more.
    pub(crate) fn remove_withheld(&self, digest: &Digest) -> io::Result<()> {
        self.remove(&self.mark(digest))
    }

    /// Every content that is withheld.
    pub(crate) fn marks(&self) -> io::Result<Vec<Digest>> {
        digests(&self.folder.root().join("repos/_withheld"))
    }

    /// How long ago a mark was written; nothing when it is not there, or has a time that is still to come.
    pub(crate) fn mark_age(&self, digest: &Digest) -> Option<Duration> {
        fs::symlink_metadata(self.mark(digest)).ok()?.modified().ok()?.elapsed().ok()
    }

    fn mark(&self, digest: &Digest) -> PathBuf {
        let mut path = self.folder.root().join("repos/_withheld");
        path.push(digest.algorithm().as_str());
        path.push(digest.hex());
        path
    }

    /// Finds every repository, and counts the files of all of them. A stop ends it.
    pub(crate) fn census(&self, stop: &CancellationToken) -> io::Result<Vec<Repository>> {
        let root = self.folder.root().join("repos");
        let (mut found, mut files, mut left) = (Vec::new(), 0, vec![root.clone()]);
        while let Some(dir) = left.pop() {
            if stop.is_cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let mut has_records = false;
            for (name, is_dir) in children(&dir)? {
                has_records |= name.starts_with('_');
                if is_dir {
                    left.push(dir.join(name));
                } else {
                    files += 1;
                }
            }
            if has_records && let Some(repository) = repository_of(&root, &dir) {
                found.push(repository);
            }
        }
        self.beside.records(files);
        Ok(found)
    }

    /// Every file of a repository. Those with names that are none of ours are passed over.
    pub(crate) fn records(&self, repository: &Repository) -> io::Result<Vec<Record>> {
        let mut records = self.list_tags(repository)?.into_iter().map(Record::Tag).collect::<Vec<_>>();
        records.extend(self.manifests(repository)?.into_iter().map(Record::Manifest));
        records.extend(self.blobs(repository)?.into_iter().map(Record::Blob));
        records.extend(self.visibility(repository)?.map(|_| Record::Visibility));
        Ok(records)
    }

    /// How long ago a record was written; nothing when it is not there, or has a time that is still to come.
    pub(crate) fn age(&self, repository: &Repository, record: &Record) -> Option<Duration> {
        fs::symlink_metadata(self.path(repository, record)).ok()?.modified().ok()?.elapsed().ok()
    }

    /// Nobody writes a record as long as this is held.
    pub(crate) fn still(&self) -> RwLockWriteGuard<'_, ()> {
        self.writers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody holds [`Repos::still`].
    #[cfg(test)]
    pub(crate) fn is_still(&self) -> bool {
        self.writers.try_read().is_err()
    }

    /// Removes a record. For the holder of [`Repos::still`], who has looked at it since.
    pub(crate) fn remove_still(&self, _still: &RwLockWriteGuard<'_, ()>, repository: &Repository, record: &Record) -> io::Result<()> {
        self.remove(&self.path(repository, record))
    }

    /// Removes the folders of a repository that have nothing in them.
    pub(crate) fn remove_empty_dirs(&self, repository: &Repository) {
        let dir = self.dir(repository);
        let mut dirs = vec![dir.join("_tags")];
        for kind in ["_manifests", "_blobs"] {
            dirs.extend(Algorithm::ALL.map(|algorithm| dir.join(kind).join(algorithm.as_str())));
            dirs.push(dir.join(kind));
        }
        let root = self.folder.root().join("repos");
        dirs.extend(dir.ancestors().take_while(|ancestor| *ancestor != root).map(Path::to_owned));
        // Whoever writes makes the folder first.
        let _still = self.still();
        for dir in dirs {
            // One that has something in it cannot be removed, which is as it should be.
            let _ = fs::remove_dir(dir);
        }
    }

    fn path(&self, repository: &Repository, record: &Record) -> PathBuf {
        match record {
            Record::Tag(tag) => self.tags(repository).join(tag.as_str()),
            Record::Manifest(digest) => self.link(repository, "_manifests", digest),
            Record::Blob(digest) => self.link(repository, "_blobs", digest),
            Record::Visibility => self.dir(repository).join("_visibility"),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Ok(()) => self.beside.record_removed(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The folder of a registry's repositories.
    pub(crate) fn of_registry(&self, registry: &Registry) -> PathBuf {
        let mut path = self.folder.root().join("repos");
        path.push(registry.as_str());
        path
    }

    /// The folder of a repository.
    pub(crate) fn dir(&self, repository: &Repository) -> PathBuf {
        let mut path = self.of_registry(&repository.registry);
        path.push(repository.name.as_str());
        path
    }

    fn tags(&self, repository: &Repository) -> PathBuf {
        self.dir(repository).join("_tags")
    }

    fn link(&self, repository: &Repository, kind: &str, digest: &Digest) -> PathBuf {
        let mut path = self.dir(repository).join(kind);
        path.push(digest.algorithm().as_str());
        path.push(digest.hex());
        path
    }

    fn links(&self, repository: &Repository, kind: &str) -> io::Result<Vec<Digest>> {
        digests(&self.dir(repository).join(kind))
    }

    fn put_path(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.put(dir, name, bytes, Durability::Synced)
    }

    fn put(&self, dir: &Path, name: &str, bytes: &[u8], durability: Durability) -> io::Result<()> {
        let _writing = self.writers.read().unwrap_or_else(PoisonError::into_inner);
        if !dir.is_dir() {
            create_dir(dir)?;
            // Every folder on the way may be new: each name must be durable for the file to be found.
            let root = self.folder.root();
            for ancestor in dir.ancestors().skip(1).take_while(|ancestor| ancestor.starts_with(root)) {
                sync_dir(ancestor)?;
            }
        }
        let path = dir.join(name);
        let is_new = !path.exists();
        self.folder.publish(&path, bytes, durability)?;
        if is_new {
            self.beside.record_added();
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = open_existing(path)? else { return Ok(None) };
    let mut text = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut text)?;
    Ok(Some(text))
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The names in a folder, and whether each is a folder; none where there is no folder.
fn children(dir: &Path) -> io::Result<Vec<(String, bool)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let child = |entry: io::Result<fs::DirEntry>| {
        let entry = entry?;
        Ok((entry.file_name().to_string_lossy().into_owned(), entry.file_type()?.is_dir()))
    };
    entries.map(child).collect()
}

/// Whose folder this is.
fn repository_of(root: &Path, dir: &Path) -> Option<Repository> {
    let (registry, name) = dir.strip_prefix(root).ok()?.to_str()?.split_once('/')?;
    Some(Repository { registry: Registry::parse(registry).ok()?, name: Name::parse(name).ok()? })
}

/// Those that the folders of the algorithms name.
fn digests(dir: &Path) -> io::Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in Algorithm::ALL {
        let names = names(&dir.join(algorithm.as_str()))?;
        digests.extend(names.iter().filter_map(|hex| Digest::parse(&format!("{}:{hex}", algorithm.as_str())).ok()));
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Metrics;

    fn repository(name: &str) -> Repository {
        Repository { registry: Registry::parse("registry.example:5000").expect("valid"), name: Name::parse(name).expect("valid") }
    }

    #[test]
    fn tags_and_links_are_found_again_and_only_in_their_repository() {
        let dir = tempfile::tempdir().expect("a folder");
        let repos = Repos::new(Folder::open(dir.path()).expect("opens"), Beside::new(Metrics::new()));
        let (outer, inner) = (repository("a"), repository("a/b"));
        let tag = Tag::parse("_x").expect("valid");
        let digest = Digest::sha256_of(b"manifest");
        let record = TagRecord { digest, checked: UNIX_EPOCH + Duration::from_secs(1_234) };
        assert_eq!(repos.tag(&outer, &tag).expect("looks"), None);
        repos.set_tag(&outer, &tag, &record, Durability::Synced).expect("writes");
        let media_type = MediaType::parse("application/vnd.example+json").expect("valid");
        repos.set_manifest(&outer, &digest, &media_type).expect("writes");
        repos.set_blob(&inner, &digest).expect("writes");
        assert_eq!(repos.tag(&outer, &tag).expect("looks"), Some(record));
        assert_eq!(repos.list_tags(&outer).expect("lists"), std::slice::from_ref(&tag));
        assert_eq!(repos.manifest(&outer, &digest).expect("looks"), Some(media_type));
        assert_eq!(repos.manifests(&outer).expect("lists"), [digest]);
        assert_eq!(repos.blobs(&inner).expect("lists"), [digest]);
        assert_eq!(repos.manifest(&inner, &digest).expect("looks"), None);
        repos.remove_tag(&outer, &tag).expect("removes");
        repos.remove_tag(&outer, &tag).expect("removes what is gone");
        assert_eq!(repos.tag(&outer, &tag).expect("looks"), None);
    }

    #[test]
    fn what_cannot_be_understood_is_private_and_delivered_by_nobody() {
        let dir = tempfile::tempdir().expect("a folder");
        let repos = Repos::new(Folder::open(dir.path()).expect("opens"), Beside::new(Metrics::new()));
        let (repository, digest) = (repository("a"), Digest::sha256_of(b"x"));
        assert_eq!(repos.visibility(&repository).expect("looks"), None);
        assert!(!repos.withholds());
        assert_eq!(repos.withheld(&digest).expect("looks"), None);
        for visibility in [Visibility::Public, Visibility::Private] {
            repos.set_visibility(&repository, visibility).expect("writes");
            assert_eq!(repos.visibility(&repository).expect("looks"), Some(visibility));
        }
        let owners = BTreeSet::from([repository.registry.clone(), Registry::docker_hub()]);
        repos.set_withheld(&digest, &owners).expect("writes");
        assert!(repos.withholds());
        assert_eq!(repos.withheld(&digest).expect("looks"), Some(owners));
        for noise in [&b""[..], b"{}", b"\xff", b"\"anyone\""] {
            fs::write(dir.path().join("repos/registry.example:5000/a/_visibility"), noise).expect("writes");
            assert_eq!(repos.visibility(&repository).expect("looks"), Some(Visibility::Private));
            fs::write(repos.mark(&digest), noise).expect("writes");
            assert_eq!(repos.withheld(&digest).expect("looks"), Some(BTreeSet::new()));
        }
        repos.remove_withheld(&digest).expect("removes");
        repos.remove_withheld(&digest).expect("removes what is gone");
        assert_eq!(repos.withheld(&digest).expect("looks"), None);
    }

    #[test]
    fn a_file_that_is_not_ours_counts_as_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let repos = Repos::new(Folder::open(dir.path()).expect("opens"), Beside::new(Metrics::new()));
        let (repository, tag) = (repository("a"), Tag::parse("x").expect("valid"));
        let record = TagRecord { digest: Digest::sha256_of(b""), checked: UNIX_EPOCH };
        repos.set_tag(&repository, &tag, &record, Durability::Renamed).expect("writes");
        for noise in [&b""[..], b"{}", b"\xff", br#"{"digest":"sha256:../..","checked":1}"#] {
            fs::write(dir.path().join("repos/registry.example:5000/a/_tags/x"), noise).expect("writes");
            assert_eq!(repos.tag(&repository, &tag).expect("looks"), None);
        }
    }
}
