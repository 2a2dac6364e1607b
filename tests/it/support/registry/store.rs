//! What a scripted registry holds: repositories with manifests and tags, and blobs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use millpond::oci::Digest;

use super::content::Content;
use super::image::{Blob, Pushed};

/// All repositories of a registry.
#[derive(Debug, Default)]
pub(super) struct Store {
    repositories: BTreeMap<String, Repository>,
    blobs: HashMap<Digest, Content>,
}

#[derive(Debug, Default)]
struct Repository {
    manifests: HashMap<Digest, Manifest>,
    // In order of arrival: how referrers are listed.
    arrivals: Vec<Digest>,
    tags: BTreeMap<String, Digest>,
    blobs: BTreeSet<Digest>,
    private: bool,
}

/// A manifest as it was pushed.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
    pub(super) subject: Option<(Digest, String)>,
}

impl Store {
    /// Takes a manifest with all that it names.
    pub(super) fn push(&mut self, repository: &str, pushed: &Pushed) {
        for child in &pushed.children {
            self.push(repository, child);
        }
        for blob in pushed.blobs() {
            self.push_blob(repository, blob);
        }
        let manifest = Manifest {
            digest: pushed.digest,
            media_type: pushed.media_type.clone(),
            bytes: pushed.manifest.clone(),
            subject: pushed.subject.clone(),
        };
        let repository = self.repositories.entry(repository.into()).or_default();
        if repository.manifests.insert(pushed.digest, manifest).is_none() {
            repository.arrivals.push(pushed.digest);
        }
    }

    pub(super) fn push_blob(&mut self, repository: &str, blob: &Blob) {
        self.repositories.entry(repository.into()).or_default().blobs.insert(blob.digest);
        self.blobs.insert(blob.digest, blob.content.clone());
    }

    pub(super) fn set_private(&mut self, repository: &str, private: bool) {
        self.repositories.entry(repository.into()).or_default().private = private;
    }

    pub(super) fn tag(&mut self, repository: &str, tag: &str, digest: Digest) {
        self.repositories.entry(repository.into()).or_default().tags.insert(tag.into(), digest);
    }

    pub(super) fn untag(&mut self, repository: &str, tag: &str) {
        let removed = self.repositories.get_mut(repository).and_then(|found| found.tags.remove(tag));
        assert!(removed.is_some(), "{repository} has no tag {tag}");
    }

    pub(super) fn remove_manifest(&mut self, repository: &str, digest: &Digest) {
        let found = self.repositories.get_mut(repository).expect("a repository");
        assert!(found.manifests.remove(digest).is_some(), "{repository} has no manifest {digest}");
        found.arrivals.retain(|arrived| arrived != digest);
        found.tags.retain(|_, tagged| tagged != digest);
    }

    pub(super) fn remove_blob(&mut self, repository: &str, digest: &Digest) {
        let found = self.repositories.get_mut(repository).expect("a repository");
        assert!(found.blobs.remove(digest), "{repository} has no blob {digest}");
    }

    /// The digest that a tag or digest means.
    pub(super) fn resolve(&self, repository: &str, reference: &str) -> Option<Digest> {
        Digest::parse(reference).ok().or_else(|| self.repositories.get(repository)?.tags.get(reference).copied())
    }

    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<&Manifest> {
        let digest = self.resolve(repository, reference)?;
        self.repositories.get(repository)?.manifests.get(&digest)
    }

    /// A blob, where the repository has it.
    pub(super) fn blob(&self, repository: &str, digest: &Digest) -> Option<Content> {
        self.repositories.get(repository)?.blobs.get(digest).and_then(|digest| self.content(digest))
    }

    /// A blob of any repository.
    pub(super) fn content(&self, digest: &Digest) -> Option<Content> {
        self.blobs.get(digest).cloned()
    }

    pub(super) fn has(&self, repository: &str) -> bool {
        self.repositories.contains_key(repository)
    }

    pub(super) fn is_private(&self, repository: &str) -> bool {
        self.repositories.get(repository).is_some_and(|found| found.private)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.repositories.keys().cloned().collect()
    }

    /// The tags in order, if there is such a repository.
    pub(super) fn tags(&self, repository: &str) -> Option<Vec<String>> {
        Some(self.repositories.get(repository)?.tags.keys().cloned().collect())
    }

    /// What refers to a manifest.
    pub(super) fn referrers(&self, repository: &str, subject: &Digest) -> Vec<Manifest> {
        let Some(found) = self.repositories.get(repository) else { return Vec::new() };
        let refers = |manifest: &&Manifest| manifest.subject.as_ref().is_some_and(|(digest, _)| digest == subject);
        found.arrivals.iter().filter_map(|digest| found.manifests.get(digest)).filter(refers).cloned().collect()
    }
}
