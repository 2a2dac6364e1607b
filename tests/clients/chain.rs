//! Upstream, mirror and the taps before both, in a row: what every test starts with.

use crate::fixtures::{Fixtures, Image};
use crate::mirror::{Mirror, Settings, is_stand_in};
use crate::registry::{Registry, Role};
use crate::tap::Tap;

/// The row, each part on loopback, the mirror's cache empty.
pub(crate) struct Chain {
    /// Before the mirror: what clients ask.
    pub(crate) asked: Tap,
    /// Before the upstream: what the mirror asks.
    pub(crate) fetched: Tap,
    pub(crate) mirror: Mirror,
    upstream: Registry,
}

impl Chain {
    /// Starts a docker-registry over the fixtures and a mirror of it.
    pub(crate) fn start(fixtures: &Fixtures) -> Self {
        Self::start_with(fixtures, &Settings::default())
    }

    /// The same, with a mirror that is set up differently.
    pub(crate) fn start_with(fixtures: &Fixtures, settings: &Settings) -> Self {
        let upstream = Registry::start(&fixtures.storage(), Role::Upstream);
        let fetched = Tap::before(upstream.addr());
        let mirror = Mirror::start(&format!("http://{}", fetched.addr()), settings);
        let asked = Tap::before(mirror.addr());
        Self { asked, fetched, mirror, upstream }
    }

    /// `address:port` of the mirror, as clients see it.
    pub(crate) fn addr(&self) -> String {
        self.asked.addr().to_string()
    }

    /// Where the upstream itself can be asked, to compare.
    pub(crate) fn upstream_addr(&self) -> String {
        self.upstream.addr().to_string()
    }

    /// Ends the upstream: its port refuses connections from now on.
    pub(crate) fn stop_upstream(&mut self) {
        self.upstream.stop();
        self.fetched.close();
    }

    /// Starts the mirror again over its cache; clients keep its address.
    pub(crate) fn restart_mirror(&mut self, settings: &Settings) {
        self.mirror.restart(settings);
        self.asked.point_at(self.mirror.addr());
    }

    /// The client took the image from the mirror: the manifest and every blob of it were asked for here. `image` is one platform's.
    pub(crate) fn assert_served(&self, image: &Image) {
        for blob in image.blobs() {
            assert!(
                self.asked.count("GET", &format!("/blobs/{blob}")) > 0,
                "{image} came from elsewhere: nobody asked the mirror for {blob}"
            );
        }
        assert!(self.asked.count("GET", "/manifests/") > 0, "nobody asked the mirror for a manifest of {image}");
    }

    /// The upstream was asked for the manifest and for each blob of the image exactly once, however often it was pulled.
    pub(crate) fn assert_fetched_once(&self, image: &Image) {
        if is_stand_in() {
            return; // docker-registry asks more than once
        }
        self.assert_manifest_fetched_once(image);
        for digest in image.blobs() {
            assert_eq!(self.fetched.count("GET", &format!("/blobs/{digest}")), 1, "blob {digest} of {image}: {:#?}", self.fetched.seen());
        }
    }

    /// The upstream was asked for the manifest exactly once, by its tag or by its digest.
    pub(crate) fn assert_manifest_fetched_once(&self, image: &Image) {
        let by_digest = self.fetched.count("GET", &format!("{}/manifests/{}", image.repository, image.digest));
        let by_tag = image.tag.as_ref().map_or(0, |tag| self.fetched.count("GET", &format!("{}/manifests/{tag}", image.repository)));
        assert_eq!(by_digest + by_tag, 1, "manifest of {image}: {:#?}", self.fetched.seen());
    }
}
