//! containerd with a `hosts.toml`: `ctr` resolves by HEAD, fetches by digest, and adds `?ns=docker.io` to every request.

use std::process::Command;

use crate::chain::Chain;
use crate::fixtures::{self, Image};
use crate::mirror::{self, Settings};
use crate::process::{self, Daemon, Scratch, attempt, client, run};

pub(crate) const TOOLS: &[&str] = &["containerd", "ctr", "runc", "unshare", "setpriv"];

/// A containerd of its own, with a folder of `hosts.toml` that names the mirror.
pub(crate) struct Containerd {
    address: String,
    hosts: String,
    _daemon: Daemon,
    scratch: Scratch, // after the daemon: it is ended before its folder goes
}

impl Containerd {
    pub(crate) fn start(mirror: &str) -> Self {
        let scratch = Scratch::new();
        let address = scratch.at("containerd.sock");
        // Without the plugins for Kubernetes, which want a network configuration of the machine's.
        let config = scratch.write(
            "config.toml",
            &format!(
                "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
                 [grpc]\naddress = \"{address}\"\n",
                scratch.at("root"),
                scratch.at("state")
            ),
        );
        let hosts = hosts(&scratch, "hosts", mirror, "");
        let daemon = Daemon::start_with_own_mounts("containerd", |command| {
            command.args(["--config", &config]);
        });
        daemon.await_line(|line| line.contains("containerd successfully booted").then_some(()));
        Self { address, hosts, _daemon: daemon, scratch }
    }

    fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = client("ctr");
        command.args(["--address", &self.address]).args(arguments);
        command
    }

    /// Pulls and gives back the digest that containerd has noted for the reference.
    pub(crate) fn pull(&self, reference: &str, platforms: &[&str]) -> String {
        self.pull_by(&self.hosts, reference, platforms)
    }

    /// The same by another folder of `hosts.toml`.
    pub(crate) fn pull_by(&self, hosts: &str, reference: &str, platforms: &[&str]) -> String {
        run(self.ctr(&["images", "pull", "--hosts-dir", hosts]).args(platforms).arg(reference));
        let list = run(&mut self.ctr(&["images", "list", &format!("name=={reference}")]));
        let digest = list.split_whitespace().find(|word| word.starts_with("sha256:"));
        digest.unwrap_or_else(|| panic!("{reference} is not listed: {list}")).to_owned()
    }

    /// Another folder of `hosts.toml`.
    pub(crate) fn hosts(&self, folder: &str, mirror: &str, lines: &str) -> String {
        hosts(&self.scratch, folder, mirror, lines)
    }

    /// Removes the image and waits until its content is collected.
    pub(crate) fn remove(&self, reference: &str) {
        run(&mut self.ctr(&["images", "remove", "--sync", reference]));
    }

    /// The bytes of a manifest as containerd keeps them.
    fn content(&self, digest: &str) -> String {
        run(&mut self.ctr(&["content", "get", digest]))
    }
}

/// A folder whose `hosts.toml` for Docker Hub names the mirror, with these lines besides; gives its path. `server` is where containerd goes
/// when the mirror fails: nowhere.
fn hosts(scratch: &Scratch, folder: &str, mirror: &str, lines: &str) -> String {
    scratch.write(
        &format!("{folder}/docker.io/hosts.toml"),
        &format!("server = \"http://127.0.0.1:1\"\n[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n{lines}"),
    );
    scratch.at(folder)
}

#[test]
fn containerd_pulls() {
    if process::lacks(TOOLS) {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let mut chain = Chain::start(fixtures);
    let containerd = Containerd::start(&format!("http://{}", chain.addr()));
    let pull_all = |pulls: Vec<(String, &Image)>| {
        for (reference, image) in pulls {
            let reference = format!("docker.io/{reference}");
            let platforms: &[&str] = if image.blobs().is_empty() { &["--all-platforms"] } else { &[] };
            assert_eq!(containerd.pull(&reference, platforms), image.digest, "{reference}");
            assert_eq!(containerd.content(&image.digest).as_bytes(), image.body, "{reference}");
            containerd.remove(&reference);
        }
    };

    pull_all(fixtures.pulls());
    let namespaced = chain.asked.count("GET", "ns=docker.io") + chain.asked.count("HEAD", "ns=docker.io");
    assert_eq!(namespaced, chain.asked.seen().len(), "{:#?}", chain.asked.seen());
    let images: [&Image; 2] = [fixtures.native(fixtures.image("library/debian", "multi")), fixtures.image("library/big", "latest")];
    for image in images {
        chain.assert_served(image);
        chain.assert_fetched_once(image);
    }

    chain.stop_upstream();
    chain.asked.forget();
    pull_all(fixtures.few_pulls());
    for image in images {
        chain.assert_served(image);
    }

    let reference = format!("docker.io/{}", fixtures.image("library/debian", "latest"));
    containerd.pull(&reference, &[]);
    let version = run(&mut containerd.ctr(&["run", "--rm", &reference, "once", "cat", "/etc/debian_version"]));
    assert_eq!(version, fixtures.debian_version);
}

/// A `[host]` with a path gets `/v2` behind it. (dockerd 20.10 refuses a mirror with a path; newer ones do the same as containerd.)
#[test]
fn containerd_pulls_by_a_secret_path() {
    if process::lacks(TOOLS) || mirror::lacks("knows no secret path") {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let secret = "a-path-that-nobody-guesses";
    let access = format!("secret_paths = [\"{secret}\"]");
    let chain = Chain::start_with(fixtures, &Settings { access, ..Settings::default() });
    let multi = fixtures.image("library/debian", "multi");
    let reference = format!("docker.io/{multi}");

    let containerd = Containerd::start(&format!("http://{}/{secret}", chain.addr()));
    assert_eq!(containerd.pull(&reference, &[]), multi.digest);
    chain.assert_served(fixtures.native(multi));
    let asked = chain.asked.seen();
    assert!(asked.iter().all(|seen| seen.target.starts_with(&format!("/{secret}/v2/"))), "{asked:#?}");

    let stranger = Containerd::start(&format!("http://{}", chain.addr()));
    let mut pull = stranger.ctr(&["images", "pull", "--hosts-dir", &stranger.hosts, &reference]);
    attempt(&mut pull).expect_err("the mirror serves whoever does not know the secret");
}

/// With the registry in the path: before `/v2`, which containerd then adds, and behind it with `override_path`. Each says `ns` as well.
#[test]
fn containerd_pulls_with_the_registry_in_the_path() {
    if process::lacks(TOOLS) || mirror::lacks("knows no registry in the path") {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let chain = Chain::start(fixtures);
    let url = format!("http://{}", chain.addr());
    let containerd = Containerd::start(&url);
    let multi = fixtures.image("library/debian", "multi");
    let reference = format!("docker.io/{multi}");
    for (folder, path, lines) in [("before", "/docker.io", ""), ("behind", "/v2/docker.io", "override_path = true\n")] {
        let hosts = containerd.hosts(folder, &format!("{url}{path}"), lines);
        chain.asked.forget();
        assert_eq!(containerd.pull_by(&hosts, &reference, &[]), multi.digest, "{path}");
        let wanted = if lines.is_empty() { "/docker.io/v2/library/debian/" } else { "/v2/docker.io/library/debian/" };
        let asked = chain.asked.seen();
        assert!(asked.iter().all(|seen| seen.target.starts_with(wanted) && seen.target.contains("ns=docker.io")), "{asked:#?}");
        chain.assert_served(fixtures.native(multi));
        containerd.remove(&reference);
    }
    chain.assert_fetched_once(fixtures.native(multi));
}
