//! skopeo and podman with a mirror in `registries.conf`, in both forms: the mirror alone (`host:port`), and the mirror with the registry in its
//! path (`host:port/docker.io`). Both ask for `/v2/` first (by TLS, before plain HTTP), take a tag by GET, and have no second chance for a blob.

use std::fs;
use std::process::Command;

use crate::chain::Chain;
use crate::fixtures::{self, Fixtures, Image};
use crate::mirror;
use crate::process::{self, Scratch, client, run};

/// Settings of skopeo and podman in a scratch folder: the mirror, a policy that asks for no signature, and a way to run that suits any machine.
pub(crate) struct Settings {
    scratch: Scratch,
    registries: String,
    policy: String,
    containers: String,
}

impl Settings {
    pub(crate) fn new(mirror: &str) -> Self {
        let scratch = Scratch::new();
        let registries = scratch.write(
            "registries.conf",
            &format!(
                "unqualified-search-registries = [\"docker.io\"]\n[[registry]]\nprefix = \"docker.io\"\nlocation = \"docker.io\"\n\
                 [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
            ),
        );
        let policy = scratch.write("policy.json", "{\"default\": [{\"type\": \"insecureAcceptAnything\"}]}\n");
        // Of its own as well: its locks, else one file for all of the machine. And limits within those of a root without CAP_SYS_RESOURCE.
        let containers = scratch.write(
            "containers.conf",
            &format!(
                "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\n\
                 events_logger = \"file\"\nlock_type = \"file\"\nruntime = \"runc\"\ntmp_dir = \"{}\"\n",
                scratch.at("tmp")
            ),
        );
        Self { scratch, registries, policy, containers }
    }

    /// A file in the scratch folder.
    pub(crate) fn at(&self, name: &str) -> String {
        self.scratch.at(name)
    }

    /// The policy's file.
    pub(crate) fn policy(&self) -> &str {
        &self.policy
    }

    pub(crate) fn skopeo(&self, arguments: &[&str]) -> Command {
        let mut command = client("skopeo");
        command.args(["--registries-conf", &self.registries, "--policy", &self.policy]).args(arguments);
        command
    }

    /// Tells podman and buildah where these settings are.
    pub(crate) fn environ(&self, command: &mut Command) {
        command.env("CONTAINERS_REGISTRIES_CONF", &self.registries).env("CONTAINERS_CONF", &self.containers);
    }

    /// podman with its storage in the scratch folder, in a mount namespace of its own: it leaves its storage mounted.
    pub(crate) fn podman(&self, arguments: &[&str]) -> Command {
        let mut command = client("unshare");
        self.environ(&mut command);
        let (root, run) = (self.scratch.at("root"), self.scratch.at("run"));
        command.args(["--mount", "podman", "--root", &root, "--runroot", &run, "--storage-driver=overlay"]).args(arguments);
        command
    }
}

/// Copies every image, by tag and by digest, with all its platforms, and looks at what was written.
fn skopeo_copies_all(settings: &Settings, pulls: &[(String, &Image)]) {
    for (reference, image) in pulls {
        let reference = format!("docker://docker.io/{reference}");
        // `dir:` writes the manifest as it came, and skopeo checks every blob's digest.
        let copy = settings.scratch.at("copy");
        run(&mut settings.skopeo(&["copy", "--quiet", "--all", "--preserve-digests", &reference, &format!("dir:{copy}")]));
        assert_eq!(fs::read(format!("{copy}/manifest.json")).unwrap(), image.body, "{reference}");
        fs::remove_dir_all(&copy).unwrap();
        let raw = run(&mut settings.skopeo(&["inspect", "--raw", &reference]));
        assert_eq!(raw.as_bytes(), image.body, "{reference}");
    }
}

fn podman_pulls_all(settings: &Settings, pulls: &[(String, &Image)]) {
    for (reference, image) in pulls {
        let reference = format!("docker.io/{reference}");
        run(&mut settings.podman(&["pull", "--quiet", "--signature-policy", &settings.policy, &reference]));
        let digests = run(&mut settings.podman(&["image", "inspect", "--format", "{{join .RepoDigests \" \"}}", &reference]));
        assert!(digests.contains(&image.digest), "{reference} was noted as {digests}");
        run(&mut settings.podman(&["image", "rm", "--force", &reference]));
    }
}

/// One client in front of a chain, online, then with the upstream gone.
fn online_then_offline(tools: &[&str], pull: fn(&Settings, &[(String, &Image)]), finish: fn(&Settings, &Fixtures)) {
    if process::lacks(tools) {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let mut chain = Chain::start(fixtures);
    let settings = Settings::new(&chain.addr());
    pull(&settings, &fixtures.pulls());
    let images = [fixtures.native(fixtures.image("library/debian", "multi")), fixtures.image("library/big", "latest")];
    for image in images {
        chain.assert_served(image);
        chain.assert_fetched_once(image);
    }
    chain.stop_upstream();
    chain.asked.forget();
    pull(&settings, &fixtures.few_pulls());
    for image in images {
        chain.assert_served(image);
    }
    finish(&settings, fixtures);
}

/// One client whose mirror is written with the registry in the path: every request says so.
fn with_registry_in_path(tools: &[&str], pull: fn(&Settings, &[(String, &Image)])) {
    if process::lacks(tools) || mirror::lacks("knows no registry in the path") {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let chain = Chain::start(fixtures);
    pull(&Settings::new(&format!("{}/docker.io", chain.addr())), &fixtures.few_pulls());
    let in_path = chain.asked.count("GET", "/v2/docker.io/library/");
    let pings = chain.asked.count("GET", "/v2/") - chain.asked.count("GET", "/v2/docker.io/");
    assert!(in_path > 0);
    assert_eq!(in_path + pings, chain.asked.seen().len(), "{:#?}", chain.asked.seen());
    chain.assert_served(fixtures.image("library/big", "latest"));
}

#[test]
fn skopeo_copies() {
    online_then_offline(&["skopeo"], skopeo_copies_all, |_, _| {});
}

#[test]
fn skopeo_copies_with_the_registry_in_the_path() {
    with_registry_in_path(&["skopeo"], skopeo_copies_all);
}

#[test]
fn podman_pulls() {
    online_then_offline(&["podman", "conmon", "runc", "unshare"], podman_pulls_all, |settings, fixtures| {
        let reference = format!("docker.io/{}", fixtures.image("library/debian", "latest"));
        run(&mut settings.podman(&["pull", "--quiet", "--signature-policy", &settings.policy, &reference]));
        let options = ["run", "--rm", "--network=none", "--pull=never", &reference];
        assert_eq!(run(settings.podman(&options).args(["cat", "/etc/debian_version"])), fixtures.debian_version);
    });
}

#[test]
fn podman_pulls_with_the_registry_in_the_path() {
    with_registry_in_path(&["podman", "unshare"], podman_pulls_all);
}
