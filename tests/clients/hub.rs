//! dockerd behind a mirror of Docker Hub itself, as the scripted registry of `tests/it` plays it: tokens from one host, manifests from another, and
//! every blob by a redirect to a third, with signed URLs. The images are the real ones.

use std::collections::BTreeSet;

use hyper::Method;
use millpond::oci::Digest;
use tokio::runtime::Runtime;

use crate::dockerd::{self, Dockerd};
use crate::fixtures::{self, Fixtures};
use crate::http;
use crate::mirror::{self, Mirror, Settings};
use crate::process;
use crate::registry;
use crate::support::registry::{Blob, Content, Port, Registry};

/// A scripted Docker Hub with every fixture in it.
pub(crate) fn fill(runtime: &Runtime, fixtures: &Fixtures) -> Registry {
    let source = registry::Registry::start(&fixtures.storage(), registry::Role::Upstream);
    let hub = runtime.block_on(Registry::hub());
    let mut pushed = BTreeSet::new();
    for image in fixtures.images() {
        for digest in image.blobs() {
            if pushed.insert((image.repository.clone(), digest.clone())) {
                let bytes = http::ask(Method::GET, &format!("http://{}/v2/{}/blobs/{digest}", source.addr(), image.repository), &[]).body;
                hub.blob(&image.repository, &Blob { content: Content::Bytes(bytes), digest: parse(&digest) });
            }
        }
        let reference = image.tag.as_deref().unwrap_or("untagged");
        hub.manifest(&image.repository, reference, &image.media_type, image.body.clone());
    }
    hub
}

fn parse(digest: &str) -> Digest {
    Digest::parse(digest).expect("the fixtures' digests are digests")
}

#[test]
fn dockerd_pulls_from_docker_hub() {
    if process::lacks(dockerd::TOOLS) || mirror::lacks("follows any token server, but not these redirects") {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let hub = fill(&runtime, fixtures);
    let upstream = format!("auth_hosts = [\"{}\"]", hub.address(Port::Auth));
    let mut mirror = Mirror::start(&hub.url(), &Settings { upstream, ..Settings::default() });
    let docker = Dockerd::start(&format!("http://{}", mirror.addr()));

    dockerd::pull_run_and_remove(&docker, fixtures, fixtures.few_pulls());
    for image in [fixtures.image("library/debian", "latest"), fixtures.image("library/big", "latest")] {
        for digest in image.blobs() {
            assert_eq!(hub.gets_of(&parse(&digest)), 1, "{digest} of {image}\n{}", hub.story());
        }
        assert_eq!(hub.gets_of(&parse(&image.digest)), 1, "the manifest of {image}\n{}", hub.story());
    }
    assert_eq!(hub.violations(), [""; 0], "{}", hub.story());
    mirror.stop();
}
