//! buildah, which shares podman's libraries and not its code for images that are built upon: with the mirror in `registries.conf`, in both forms,
//! and with the mirror's own name in the image's.

use std::process::Command;

use crate::chain::Chain;
use crate::containers::Settings;
use crate::fixtures;
use crate::mirror;
use crate::process::{self, client, run};

const TOOLS: &[&str] = &["buildah", "unshare"];

impl Settings {
    /// buildah with its storage in the scratch folder, in a mount namespace of its own.
    pub(crate) fn buildah(&self, arguments: &[&str]) -> Command {
        let mut command = client("unshare");
        self.environ(&mut command);
        command.args(["--mount", "buildah", "--root", &self.at("root"), "--runroot", &self.at("run"), "--storage-driver=vfs"]);
        command.args(arguments);
        command
    }

    /// Pulls an image: the digest that buildah has noted for it.
    fn pull_by_buildah(&self, reference: &str) -> String {
        run(&mut self.buildah(&["pull", "--quiet", "--tls-verify=false", "--signature-policy", self.policy(), reference]));
        let digest = run(&mut self.buildah(&["images", "--noheading", "--format", "{{.Digest}}", reference]));
        digest.trim().to_owned()
    }

    fn remove_by_buildah(&self, reference: &str) {
        run(&mut self.buildah(&["rmi", "--force", reference]));
    }
}

/// Every request of a chain but the pings, in the layout that this prefix begins.
#[track_caller]
fn assert_all_within(chain: &Chain, prefix: &str) {
    let asked = chain.asked.seen();
    let strays: Vec<_> = asked.iter().filter(|seen| seen.target != "/v2/" && !seen.target.starts_with(prefix)).collect();
    assert!(asked.len() > 3 && strays.is_empty(), "{strays:#?}");
}

#[test]
fn buildah_pulls_and_builds_upon() {
    if process::lacks(TOOLS) {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let mut chain = Chain::start(fixtures);
    let settings = Settings::new(&chain.addr());
    // What buildah notes is the digest of what the tag names, of an index too.
    let multi = fixtures.image("library/debian", "multi");
    let reference = format!("docker.io/{multi}");
    assert_eq!(settings.pull_by_buildah(&reference), multi.digest);
    assert_all_within(&chain, "/v2/library/debian/");
    chain.assert_served(fixtures.native(multi));
    chain.assert_fetched_once(fixtures.native(multi));
    settings.remove_by_buildah(&reference);

    chain.stop_upstream();
    chain.asked.forget();
    // `from` pulls what it builds upon.
    let from = ["from", "--quiet", "--tls-verify=false", "--signature-policy", settings.policy(), "--name", "begun", &reference];
    assert_eq!(run(&mut settings.buildah(&from)).trim(), "begun");
    chain.assert_served(fixtures.native(multi));
    assert_eq!(run(&mut settings.buildah(&["inspect", "--format", "{{.FromImage}}", "begun"])).trim(), reference);
}

#[test]
fn buildah_pulls_with_the_registry_in_the_path_and_by_the_name_of_the_mirror() {
    if process::lacks(TOOLS) || mirror::lacks("knows no registry in the path") {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let chain = Chain::start(fixtures);
    let addr = chain.addr();
    let multi = fixtures.image("library/debian", "multi");
    let mirrored = Settings::new(&format!("{addr}/docker.io"));
    assert_eq!(mirrored.pull_by_buildah(&format!("docker.io/{multi}")), multi.digest);
    assert_all_within(&chain, "/v2/docker.io/library/debian/");
    chain.asked.forget();
    let named = Settings::new("127.0.0.1:1"); // a mirror that nobody needs
    assert_eq!(named.pull_by_buildah(&format!("{addr}/docker.io/{multi}")), multi.digest);
    assert_all_within(&chain, "/v2/docker.io/library/debian/");
    chain.assert_served(fixtures.native(multi));
    chain.assert_fetched_once(fixtures.native(multi));
}
