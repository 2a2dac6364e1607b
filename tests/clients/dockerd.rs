//! dockerd with `registry-mirrors`, the setting that the classic image store has: it pings `/v2/`, asks HEAD for a tag, then everything by digest,
//! and on any error it starts again at Docker Hub, which is out of reach here.

use std::process::Command;

use crate::chain::Chain;
use crate::fixtures::{self, Fixtures, Image};
use crate::mirror::{self, Settings};
use crate::process::{self, Daemon, Scratch, attempt, client, run};

pub(crate) const TOOLS: &[&str] = &["dockerd", "docker", "containerd", "runc", "unshare", "setpriv"];

/// A dockerd of its own: data, sockets and mounts in one scratch folder, no network device, no rule in the machine's firewall.
pub(crate) struct Dockerd {
    host: String,
    _daemon: Daemon,
    scratch: Scratch, // after the daemon: it is ended before its folder goes
}

impl Dockerd {
    pub(crate) fn start(mirror: &str) -> Self {
        let scratch = Scratch::new();
        // The mirror stands where users write it. Nothing else is set there: no insecure registry, no second mirror.
        let config = scratch.write("daemon.json", &format!("{{\"registry-mirrors\": [\"{mirror}\"]}}\n"));
        let host = format!("unix://{}", scratch.at("docker.sock"));
        let daemon = Daemon::start_with_own_mounts("dockerd", |command| {
            command.args(["--config-file", &config, "--host", &host, "--pidfile", &scratch.at("pid")]);
            // Absolute, or the containerd that dockerd starts takes its socket for a TCP address.
            command.args(["--data-root", &scratch.at("data"), "--exec-root", &scratch.at("exec")]);
            command.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
        });
        daemon.await_line(|line| line.contains("API listen on").then_some(()));
        Self { host, _daemon: daemon, scratch }
    }

    pub(crate) fn docker(&self, arguments: &[&str]) -> Command {
        self.docker_by("docker", arguments)
    }

    /// The same by another of this machine's `docker` commands.
    pub(crate) fn docker_by(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = client(program);
        // An empty configuration: no login of this machine's user, no context.
        command.args(["--host", &self.host, "--config", &self.scratch.at("client")]).args(arguments);
        command
    }

    /// Pulls and gives back the digest that dockerd has noted for what it pulled.
    fn pull(&self, reference: &str) -> String {
        run(&mut self.docker(&["pull", "--quiet", reference]));
        let digests = run(&mut self.docker(&["image", "inspect", "--format", "{{join .RepoDigests \" \"}}", reference]));
        let (_, digest) = digests.trim().split_once('@').unwrap_or_else(|| panic!("{reference} has no digest: {digests}"));
        digest.to_owned()
    }

    fn remove(&self, reference: &str) {
        run(&mut self.docker(&["image", "rm", "--force", reference]));
    }

    /// Runs a command in a container that has no network.
    fn run(&self, reference: &str, command: &[&str]) -> String {
        run(self.docker(&["run", "--rm", "--network=none", "--pull=never", reference]).args(command))
    }
}

/// Pulls, runs, and removes again; what was pulled has the upstream's digests.
pub(crate) fn pull_run_and_remove(docker: &Dockerd, fixtures: &Fixtures, pulls: Vec<(String, &Image)>) {
    for (reference, image) in pulls {
        let name = reference.strip_prefix("library/").unwrap(); // as users write it
        assert_eq!(docker.pull(name), image.digest, "{name}");
        if image.repository == "library/big" {
            assert!(docker.run(name, &["sha256sum", "/big.bin"]).starts_with(&fixtures.big_sum));
        } else {
            assert_eq!(docker.run(name, &["cat", "/etc/debian_version"]), fixtures.debian_version, "{name}");
        }
        docker.remove(name);
    }
}

#[test]
fn dockerd_pulls_and_runs() {
    if process::lacks(TOOLS) {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let chain = Chain::start(fixtures);
    let docker = Dockerd::start(&format!("http://{}", chain.addr()));
    pull_run_and_remove(&docker, fixtures, fixtures.pulls());

    let (debian, big) = (fixtures.image("library/debian", "latest"), fixtures.image("library/big", "latest"));
    for image in [debian, fixtures.native(fixtures.image("library/debian", "multi")), big] {
        chain.assert_served(image);
        chain.assert_fetched_once(image);
    }
}

#[test]
fn dockerd_pulls_offline() {
    if process::lacks(TOOLS) {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let mut chain = Chain::start(fixtures);
    let docker = Dockerd::start(&format!("http://{}", chain.addr()));
    pull_run_and_remove(&docker, fixtures, fixtures.few_pulls());

    // The mirror still believes its tags.
    chain.stop_upstream();
    chain.asked.forget();
    pull_run_and_remove(&docker, fixtures, fixtures.few_pulls());
    chain.assert_served(fixtures.image("library/debian", "latest"));
    chain.assert_served(fixtures.image("library/big", "latest"));

    // The mirror is started anew and has to ask about every tag, of an upstream that does not answer. (docker-registry does not even start then.)
    if !mirror::is_stand_in() {
        chain.restart_mirror(&Settings { cache: "tag_ttl = \"0s\"".to_owned(), ..Settings::default() });
        let debian = fixtures.image("library/debian", "latest");
        assert_eq!(docker.pull("debian"), debian.digest);
        assert_eq!(docker.run("debian", &["cat", "/etc/debian_version"]), fixtures.debian_version);
        docker.remove("debian");
    }

    // The control: without the mirror there is nothing to pull from, so all of the above came from it.
    chain.mirror.stop();
    let said = attempt(&mut docker.docker(&["pull", "debian"])).expect_err("a pull without a mirror cannot succeed here");
    assert!(said.contains("proxyconnect") || said.contains("refused"), "{said}");
}
