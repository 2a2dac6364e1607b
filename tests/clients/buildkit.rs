//! `BuildKit`, in the dockerd that has it built in: `FROM` takes the base image through `registry-mirrors` by containerd's resolver, not by the
//! code that `docker pull` uses. The steps run nothing, so that no container is started.

use std::process::Command;

use crate::chain::Chain;
use crate::dockerd::{Dockerd, TOOLS};
use crate::fixtures;
use crate::process::{self, Scratch, attempt, run};

/// The first `docker` of this machine that can talk to `BuildKit`: until version 23 by itself, since then with its plugin.
pub(crate) fn builder() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("docker")).filter(|docker| docker.is_file());
    found.filter_map(|docker| docker.to_str().map(str::to_owned)).find(|docker| {
        let version = run(process::client(docker).arg("--version"));
        let major = version.split_whitespace().nth(2).and_then(|number| number.split('.').next()?.parse::<u32>().ok());
        major.is_some_and(|major| major < 23) || attempt(process::client(docker).args(["buildx", "version"])).is_ok()
    })
}

#[test]
fn buildkit_builds_upon_what_the_mirror_has() {
    if process::lacks(TOOLS) {
        return;
    }
    let Some(builder) = builder() else { return process::skip("no docker here can talk to BuildKit (see .ci/install)") };
    let Some(fixtures) = fixtures::get() else { return };
    let mut chain = Chain::start(fixtures);
    let dockerd = Dockerd::start(&format!("http://{}", chain.addr()));
    let multi = fixtures.image("library/debian", "multi");
    let native = fixtures.native(multi);
    let context = Scratch::new();
    context.write("hello", "from the context\n");

    let build = |tag: &str| -> Command {
        // One step that needs the base's files, and one that does not; no `RUN`.
        context.write("Dockerfile", &format!("FROM debian:multi\nLABEL built={tag}\nCOPY hello /hello-{tag}\n"));
        let mut command = dockerd.docker_by(&builder, &["build", "--no-cache", "--pull", "--tag", tag, &context.at("")]);
        command.env("DOCKER_BUILDKIT", "1");
        command
    };
    run(&mut build("first"));
    let label = run(&mut dockerd.docker(&["image", "inspect", "--format", "{{.Config.Labels.built}} {{len .RootFS.Layers}}", "first"]));
    assert_eq!(label.trim(), format!("first {}", native.blobs().len())); // the base's layers, and one more in place of its configuration
    chain.assert_served(native);
    chain.assert_fetched_once(native);
    let asked = chain.asked.seen();
    let of_the_image = |target: &str| target.starts_with("/v2/library/debian/") && target.contains("ns=docker.io");
    assert!(asked.iter().filter(|seen| seen.target != "/v2/").all(|seen| of_the_image(&seen.target)), "{asked:#?}");

    // `--pull` asks about the tag again: the mirror answers without its upstream.
    chain.stop_upstream();
    chain.asked.forget();
    run(&mut build("second"));
    assert!(chain.asked.count("HEAD", "/v2/library/debian/manifests/multi") > 0, "{:#?}", chain.asked.seen());

    // The control: with neither, there is nothing to build upon.
    chain.mirror.stop();
    attempt(&mut build("third")).expect_err("a build without a mirror cannot succeed here");
}
