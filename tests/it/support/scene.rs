//! The usual scene of a test: Docker Hub, and a mirror in front of it that does not pause for long.

use std::time::Duration;

use millpond::serve::Tuning;

use super::audit::Audit;
use super::client::{Ask, Fetched, Reply, get, pull};
use super::mirror::{self, Mirror};
use super::registry::{Blob, Image, Pushed, Registry};

/// The repository of every scene.
pub const REPO: &str = "library/debian";

/// A registry that clients call docker.io, and a mirror.
pub struct Scene {
    /// The registry.
    pub hub: Registry,
    /// The mirror.
    pub mirror: Mirror,
}

/// Pauses before repetitions that nobody notices, and an endpoint that is never left alone for its failures: what is
/// counted in a test is then what one request costs.
pub fn quick(tuning: &mut Tuning) {
    tuning.upstream.pause = Duration::from_millis(1);
    tuning.upstream.breaker_failures = 1000;
    tuning.fill.pause = Duration::from_millis(1);
}

impl Scene {
    /// With Docker Hub's ways.
    pub async fn new() -> Self {
        Self::with(Registry::hub().await, |builder| builder)
    }

    /// With a registry of any ways, and a mirror with these settings besides.
    pub fn with(hub: Registry, set: impl FnOnce(mirror::Builder) -> mirror::Builder) -> Self {
        let builder = mirror::Builder::new().upstream("docker.io", &hub).tune(quick);
        Self { mirror: set(builder).start(), hub }
    }

    /// Stops the mirror, and starts it again over its folder with these settings besides.
    pub async fn restart(self, set: impl FnOnce(mirror::Builder) -> mirror::Builder) -> Self {
        Self { mirror: set(self.mirror.stop().await).start(), hub: self.hub }
    }

    /// Pushes a blob that no manifest names.
    pub fn push(&self, seed: u64, len: u64) -> Blob {
        let blob = Blob::seeded(seed, len);
        self.hub.blob(REPO, &blob);
        blob
    }

    /// Where the mirror has a blob.
    pub fn url(&self, blob: &Blob) -> String {
        self.mirror.blob(REPO, blob.digest)
    }

    /// A GET of a blob.
    pub fn get(&self, blob: &Blob) -> Ask {
        get(self.url(blob))
    }

    /// A GET of a manifest.
    pub fn manifest(&self, reference: impl ToString) -> Ask {
        get(self.mirror.manifest(REPO, reference))
    }

    /// The tags of the repository, as the mirror lists them.
    pub async fn tags(&self) -> Reply {
        get(format!("{}/v2/{REPO}/tags/list", self.mirror.url())).send().await
    }

    /// Pushes an image and pulls it through the mirror: it is held from now on.
    pub async fn hold(&self, tag: &str) -> Pushed {
        let image = self.hub.image(REPO, tag, Image::layers([100_000, 200_000]).seed(77));
        pull(&self.mirror.url(), REPO, tag).await.unwrap();
        let file = self.mirror.settings().data().join("repos/docker.io").join(REPO).join("_tags").join(tag);
        self.until("the image and its tag are on disk", |audit| audit.blobs.contains(&image.digest) && file.exists()).await;
        self.mirror.settled().await;
        image
    }

    /// Whatever goes on upstream, a held image is served whole, and for its manifests and blobs nobody is asked.
    pub async fn serves_what_it_holds(&self, image: &Pushed, tag: &str) {
        let pulled = pull(&self.mirror.url(), REPO, tag).await.unwrap_or_else(|error| panic!("{error}\n{}", self.hub.story()));
        assert_eq!(pulled.digest, image.digest);
        for blob in image.blobs() {
            assert_eq!(self.hub.gets_of(&blob.digest), 1, "{}", self.hub.story());
        }
    }

    /// Waits until the mirror has read what was sent to it until now: it answers a few pings that were sent later.
    pub async fn heard(&self) {
        for _ in 0..4 {
            assert_eq!(get(format!("{}/v2/", self.mirror.url())).send().await.status, 200);
        }
    }

    /// How many bytes of bodies the mirror has taken from upstream since its start.
    pub async fn bytes_taken(&self) -> u64 {
        self.mirror.count("millpond_bytes_total", &[r#"direction="fetched""#]).await
    }

    /// Waits until it has taken so many.
    pub async fn taken(&self, bytes: u64) {
        super::patience::within("bytes from upstream", async { while self.bytes_taken().await < bytes {} }).await;
    }

    /// How often something that came did not hash to its digest.
    pub async fn verify_failures(&self) -> u64 {
        self.mirror.count("millpond_verify_failures_total", &[]).await
    }

    /// What holds after every test: nothing wrong is under `blobs/`, nothing is left in `tmp/`, and no request was one that
    /// no mirror should make.
    pub async fn is_sound(&self) {
        self.mirror.settled().await;
        // Manifests are written behind the answer.
        self.until("nothing is left in tmp/", |audit| audit.temporary.is_empty()).await;
        self.mirror.settings().audit().assert_sound();
        assert_eq!(self.hub.violations(), [""; 0], "{}", self.hub.story());
    }

    /// Waits until the data folder is as wished.
    pub async fn until(&self, what: &str, as_wished: impl Fn(&Audit) -> bool) {
        let look = || as_wished(&self.mirror.settings().audit());
        super::patience::within(what, async {
            while !look() {
                self.heard().await;
            }
        })
        .await;
    }
}

/// A refusal in the words of the specification, with this status.
pub fn assert_refused(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{:?}", reply.body);
    assert!(reply.is_whole() && reply.json()["errors"][0]["code"].is_string(), "{:?}", reply.body);
}

/// A client that got all of a blob, and the blob itself.
pub fn assert_whole(fetched: &Fetched, blob: &Blob) {
    assert_eq!((fetched.status, fetched.len, &fetched.ended), (200, blob.len(), &super::client::Ended::Clean));
    assert_eq!(fetched.digest, blob.digest, "wrong bytes");
}
