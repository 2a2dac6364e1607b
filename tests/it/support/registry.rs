//! A scripted registry: holds what the test pushes, counts what it is asked, and misbehaves when told to.
//!
//! It runs on the test's own runtime, on 127.0.0.1, HTTP/1.1, with or without TLS. [`Registry::hub`] behaves as Docker Hub:
//! tokens from one host, manifests from another, blobs by a redirect to two more. [`Registry::plain`] behaves as
//! `docker-registry`. What real registries do differently are [`Quirks`]; what goes wrong with a request is a [`Fault`].
//!
//! ```ignore
//! let hub = Registry::hub().await;
//! let image = hub.image("library/debian", "latest", Image::layers([10 * MIB, 100]));
//! hub.on(Kind::Cdn.of(image.layers[0].digest), Fault::cut(1000).once());
//! // … pull through a mirror …
//! assert_eq!(hub.gets_of(&image.layers[0].digest), 2);
//! assert_eq!(hub.violations(), [""; 0]);
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hyper::Method;
use millpond::oci::Digest;

use super::gate::Gate;

mod answer;
mod api;
mod auth;
mod builder;
mod cdn;
mod content;
mod fault;
mod image;
mod listener;
mod log;
mod quirks;
mod range;
mod serve;
mod store;
mod wire;

pub use builder::Builder;
pub use content::{Content, gzip};
pub use fault::{Fault, Planned};
pub use image::{Blob, DOCKER_LIST, DOCKER_MANIFEST, Image, Index, OCI_INDEX, OCI_MANIFEST, Pushed, Tree};
pub use listener::Port;
pub use log::{End, Kind, Record, Request, Want};
pub use quirks::*;

use listener::Listener;
use serve::Shared;

/// A registry that runs until it is dropped.
pub struct Registry {
    shared: Arc<Shared>,
    listeners: tokio::sync::Mutex<Vec<Listener>>,
}

impl Registry {
    /// Docker Hub, over plain HTTP.
    pub async fn hub() -> Self {
        Builder::hub().start().await
    }

    /// `docker-registry`: no tokens, blobs from the registry itself.
    pub async fn plain() -> Self {
        Builder::plain().start().await
    }
}

/// What it holds.
impl Registry {
    /// Pushes an image and tags it.
    pub fn image(&self, repository: &str, tag: &str, image: Image) -> Pushed {
        self.push(repository, tag, image)
    }

    /// Pushes an index with its children and tags it.
    pub fn index(&self, repository: &str, tag: &str, index: Index) -> Pushed {
        self.push(repository, tag, index)
    }

    /// Pushes either and tags it.
    pub fn push(&self, repository: &str, tag: &str, tree: impl Into<Tree>) -> Pushed {
        let pushed = self.push_untagged(repository, tree);
        self.tag(repository, tag, &pushed.digest);
        pushed
    }

    /// Pushes either by digest alone.
    pub fn push_untagged(&self, repository: &str, tree: impl Into<Tree>) -> Pushed {
        let pushed = tree.into().build();
        self.shared.store.lock().unwrap().push(repository, &pushed);
        pushed
    }

    /// Pushes any bytes as a manifest of this type, and tags it.
    pub fn manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<bytes::Bytes>) -> Pushed {
        let pushed = Pushed::raw(media_type, bytes.into());
        self.shared.store.lock().unwrap().push(repository, &pushed);
        self.tag(repository, tag, &pushed.digest);
        pushed
    }

    /// Pushes a blob that no manifest names.
    pub fn blob(&self, repository: &str, blob: &Blob) -> Digest {
        self.shared.store.lock().unwrap().push_blob(repository, blob);
        blob.digest
    }

    /// Makes a tag, or moves it.
    pub fn tag(&self, repository: &str, tag: &str, digest: &Digest) {
        self.shared.store.lock().unwrap().tag(repository, tag, *digest);
    }

    /// Removes a tag.
    pub fn untag(&self, repository: &str, tag: &str) {
        self.shared.store.lock().unwrap().untag(repository, tag);
    }

    /// Removes a manifest and its tags.
    pub fn remove_manifest(&self, repository: &str, digest: &Digest) {
        self.shared.store.lock().unwrap().remove_manifest(repository, digest);
    }

    /// Removes a blob from a repository.
    pub fn remove_blob(&self, repository: &str, digest: &Digest) {
        self.shared.store.lock().unwrap().remove_blob(repository, digest);
    }

    /// Makes a repository private: only users of this registry get a token for it.
    pub fn private(&self, repository: &str) {
        self.shared.store.lock().unwrap().set_private(repository, true);
    }

    /// Makes a repository private to this user.
    pub fn private_to(&self, repository: &str, user: &str) {
        self.private(repository);
        self.shared.readers.lock().unwrap().entry(repository.into()).or_default().push(user.into());
    }

    /// Makes it public again.
    pub fn public(&self, repository: &str) {
        self.shared.store.lock().unwrap().set_private(repository, false);
    }

    /// Makes a user, or gives one a new password.
    pub fn user(&self, name: &str, password: &str) {
        self.shared.users.lock().unwrap().insert(name.into(), password.into());
    }
}

/// How it behaves.
impl Registry {
    /// Gives the requests that match a fault, until it is used up.
    pub fn on(&self, want: impl Into<Want>, fault: Fault) -> Planned {
        self.shared.faults.add(want.into(), fault)
    }

    /// Ends all faults. Those under way go on.
    pub fn heal(&self) {
        self.shared.faults.clear();
    }

    /// Changes its ways from now on.
    pub fn quirks(&self, change: impl FnOnce(&mut Quirks)) {
        change(&mut self.shared.quirks.lock().unwrap());
    }

    /// Makes every token bad that was issued until now.
    pub fn revoke_tokens(&self) {
        self.shared.tokens.lock().unwrap().revoke_all();
    }

    /// Makes every signed URL bad that was given out until now.
    pub fn expire_urls(&self) {
        self.shared.urls.lock().unwrap().expire_all();
    }

    /// Says how many pulls are left before 429, to everybody.
    pub fn pulls_left(&self, left: u64) {
        let users: Vec<_> = self.shared.users.lock().unwrap().keys().cloned().chain([String::new()]).collect();
        for user in &users {
            self.pulls_left_to(user, left);
        }
    }

    /// The same, to one user; nobody in particular has no name.
    pub fn pulls_left_to(&self, user: &str, left: u64) {
        let limit = self.shared.quirks().rate_limit.expect("a registry with a rate limit").limit;
        self.shared.pulls.lock().unwrap().insert(user.into(), limit - left);
    }

    /// Refuses connections at all listeners and closes those that are open.
    pub async fn down(&self) {
        for listener in self.listeners.lock().await.iter_mut() {
            listener.down().await;
        }
    }

    /// Listens again at all listeners.
    pub async fn up(&self) {
        for listener in self.listeners.lock().await.iter_mut() {
            listener.up(&self.shared);
        }
    }

    /// As [`Registry::down`], at one listener.
    pub async fn down_at(&self, port: Port) {
        let mut listeners = self.listeners.lock().await;
        listeners.iter_mut().find(|listener| listener.port() == port).expect("every port").down().await;
    }

    /// As [`Registry::up`], at one listener.
    pub async fn up_at(&self, port: Port) {
        let mut listeners = self.listeners.lock().await;
        listeners.iter_mut().find(|listener| listener.port() == port).expect("every port").up(&self.shared);
    }

    /// Accepts new connections at this listener, and then nothing, TLS included, until the gate opens.
    pub fn hold_connections(&self, port: Port, gate: &Gate) {
        self.shared.doors.lock().unwrap().push((port, gate.clone()));
    }
}

/// What it was asked.
impl Registry {
    /// Where a listener is.
    pub fn address(&self, port: Port) -> SocketAddr {
        self.shared.host(port).address
    }

    /// The base URL of the registry API, without a slash at the end.
    pub fn url(&self) -> String {
        self.url_of(Port::Registry) + &self.shared.quirks().prefix
    }

    /// The base URL of a listener, without a slash at the end.
    pub fn url_of(&self, port: Port) -> String {
        self.shared.url(port)
    }

    /// Every request since the start, or since [`Registry::forget`].
    pub fn requests(&self) -> Vec<Record> {
        self.shared.log.read(<[Record]>::to_vec)
    }

    /// The requests that match.
    pub fn matching(&self, want: impl Into<Want>) -> Vec<Record> {
        let want = want.into();
        self.shared.log.read(|records| records.iter().filter(|record| want.matches(record)).cloned().collect())
    }

    /// How many requests match.
    pub fn count(&self, want: impl Into<Want>) -> usize {
        let want = want.into();
        self.shared.log.read(|records| records.iter().filter(|record| want.matches(record)).count())
    }

    /// How many requests that match were under way at once, at most.
    pub fn peak(&self, want: impl Into<Want>) -> usize {
        let want = want.into();
        self.shared.log.read(|records| log::peak(records.iter().filter(|record| want.matches(record))))
    }

    /// The requests that are answered with the bytes of a blob: at the CDNs, or at the registry where it has none.
    pub fn body_of(&self, digest: &Digest) -> Want {
        match self.shared.quirks().blobs {
            Blobs::Redirect(_) => Kind::Cdn.of(digest),
            Blobs::Inline => Kind::Blob.of(digest),
        }
    }

    /// How often the registry API was asked for a content by GET; for a manifest also by tag. Its CDNs are not counted, nor
    /// the requests that it refused for want of a token.
    pub fn gets_of(&self, digest: &Digest) -> usize {
        let want = Want::any().of(digest).method(Method::GET);
        let counts =
            |record: &&Record| matches!(record.kind, Kind::Manifest | Kind::Blob) && record.status != Some(401) && want.matches(record);
        self.shared.log.read(|records| records.iter().filter(counts).count())
    }

    /// How many bytes of a content were sent, from wherever.
    pub fn bytes_of(&self, digest: &Digest) -> u64 {
        let asked = |record: &&Record| record.digest == Some(*digest) && matches!(record.status, Some(200 | 206));
        self.shared.log.read(|records| records.iter().filter(asked).map(|record| record.sent).sum())
    }

    /// How many connections were made, to any listener.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many pulls counted against the limit.
    pub fn pulls(&self) -> u64 {
        self.shared.pulls.lock().unwrap().values().sum()
    }

    /// How many of them in the name of a user.
    pub fn pulls_of(&self, user: &str) -> u64 {
        self.shared.pulls.lock().unwrap().get(user).copied().unwrap_or_default()
    }

    /// What no mirror should do, and this one did: a token sent to a CDN, `ns` sent to an upstream, a write, and so on.
    pub fn violations(&self) -> Vec<String> {
        self.shared.violations.lock().unwrap().clone()
    }

    /// Waits until the log is as wished.
    pub async fn wait_for(&self, what: &str, as_wished: impl FnMut(&[Record]) -> bool) {
        self.shared.log.wait_for(what, as_wished).await;
    }

    /// Waits until `n` requests that match have arrived.
    pub async fn asked(&self, n: usize, want: impl Into<Want>) {
        let want = want.into();
        self.wait_for(&format!("{n} times {want:?}"), |log| log.iter().filter(|record| want.matches(record)).count() >= n).await;
    }

    /// Waits until no answer is under way.
    pub async fn idle(&self) {
        self.wait_for("the end of all answers", |log| log.iter().all(|record| record.end.is_some())).await;
    }

    /// Forgets what it was asked until now.
    pub fn forget(&self) {
        self.shared.log.forget();
    }

    /// All requests as lines, for the message of a failed test.
    pub fn story(&self) -> String {
        let lines: Vec<String> = self.requests().iter().map(Record::line).collect();
        lines.join("\n")
    }
}
