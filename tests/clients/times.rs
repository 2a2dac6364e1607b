//! How long each client takes to pull one image, in each layout: a table, not a judgement, and so only on request:
//! `MILLPOND_TEST_PROGRAM=target/release/millpond cargo test --test clients -- --ignored --nocapture times`
//!
//! The image is the fixture's Debian. Cold: a mirror that holds nothing. Hot: the best of three after the client has removed the image. The
//! client's own work (its start, unpacking, its storage's fsyncs) is in every number; the rows without a mirror show how much that is.

use std::process::Command;
use std::time::Instant;

use crate::buildkit;
use crate::chain::Chain;
use crate::containerd::{self, Containerd};
use crate::containers::Settings;
use crate::dockerd::{self, Dockerd};
use crate::fixtures;
use crate::process::{self, Scratch, run};

/// Pulls that are measured with everything held.
const HOT: usize = 3;

/// Pulls once and then [`HOT`] times, each time after the client has forgotten the image: one row of the table.
fn row(what: &str, mut pull: impl FnMut(), mut forget: impl FnMut()) {
    let mut timed = || {
        let began = Instant::now();
        pull();
        let took = began.elapsed().as_secs_f64();
        forget();
        took
    };
    let cold = timed();
    let hot = (0..HOT).map(|_| timed()).fold(f64::INFINITY, f64::min);
    eprintln!("| {what} | {cold:.2} | {hot:.2} |");
}

/// How a program pulls, and how it forgets.
type Commands = [fn(&Settings, &str) -> Command; 2];

fn image_rows(what: &str, settings: &Settings, commands: Commands, reference: &str) {
    let [mut pull, mut forget] = commands.map(|command| command(settings, reference));
    row(what, || drop(run(&mut pull)), || drop(run(&mut forget)));
}

fn skopeo(settings: &Settings, reference: &str) -> Command {
    let copy = format!("dir:{}", settings.at("copy"));
    settings.skopeo(&["copy", "--quiet", "--src-tls-verify=false", &format!("docker://{reference}"), &copy])
}

fn forget_copy(settings: &Settings, _: &str) -> Command {
    let mut command = Command::new("rm");
    command.args(["-r", &settings.at("copy")]);
    command
}

fn podman(settings: &Settings, reference: &str) -> Command {
    settings.podman(&["pull", "--quiet", "--tls-verify=false", "--signature-policy", settings.policy(), reference])
}

fn forget_podman(settings: &Settings, reference: &str) -> Command {
    settings.podman(&["image", "rm", "--force", reference])
}

fn buildah(settings: &Settings, reference: &str) -> Command {
    settings.buildah(&["pull", "--quiet", "--tls-verify=false", "--signature-policy", settings.policy(), reference])
}

fn forget_buildah(settings: &Settings, reference: &str) -> Command {
    settings.buildah(&["rmi", "--force", reference])
}

/// podman's family, in its two forms of a mirror, by the mirror's own name, and without a mirror.
fn time_containers(fixtures: &fixtures::Fixtures, reference: &str) {
    let programs: [(&str, Commands); 3] =
        [("skopeo", [skopeo, forget_copy]), ("podman", [podman, forget_podman]), ("buildah", [buildah, forget_buildah])];
    for (program, commands) in programs {
        let chain = Chain::start(fixtures);
        image_rows(&format!("{program}, `/v2/…`"), &Settings::new(&chain.addr()), commands, &format!("docker.io/{reference}"));
        let chain = Chain::start(fixtures);
        let in_path = Settings::new(&format!("{}/docker.io", chain.addr()));
        image_rows(&format!("{program}, `/v2/docker.io/…`"), &in_path, commands, &format!("docker.io/{reference}"));
        let straight = format!("{}/{reference}", chain.upstream_addr());
        image_rows(&format!("{program}, no mirror"), &in_path, commands, &straight);
    }
}

fn time_containerd(fixtures: &fixtures::Fixtures, reference: &str) {
    let reference = format!("docker.io/{reference}");
    for (what, path, lines) in [
        ("ctr, `/v2/…?ns=`", "", ""),
        ("ctr, `/docker.io/v2/…?ns=`", "/docker.io", ""),
        ("ctr, `/v2/docker.io/…?ns=`", "/v2/docker.io", "override_path = true\n"),
    ] {
        let chain = Chain::start(fixtures);
        let daemon = Containerd::start(&format!("http://{}", chain.addr()));
        let hosts = daemon.hosts("timed", &format!("http://{}{path}", chain.addr()), lines);
        row(what, || drop(daemon.pull_by(&hosts, &reference, &[])), || daemon.remove(&reference));
    }
    let chain = Chain::start(fixtures);
    let daemon = Containerd::start(&format!("http://{}", chain.upstream_addr()));
    row("ctr, no mirror", || drop(daemon.pull(&reference, &[])), || daemon.remove(&reference));
}

fn time_dockerd(fixtures: &fixtures::Fixtures, reference: &str) {
    let straight = Chain::start(fixtures);
    let mirrored = Chain::start(fixtures);
    for (what, addr) in [("dockerd, `/v2/…`", mirrored.addr()), ("dockerd, no mirror", straight.upstream_addr())] {
        let daemon = Dockerd::start(&format!("http://{addr}"));
        row(
            what,
            || drop(run(&mut daemon.docker(&["pull", "--quiet", reference]))),
            || {
                run(&mut daemon.docker(&["image", "rm", "--force", reference]));
            },
        );
    }
    let Some(builder) = buildkit::builder() else { return };
    let context = Scratch::new();
    context.write("Dockerfile", &format!("FROM {reference}\nLABEL a=b\nCOPY Dockerfile /\n"));
    let built = Chain::start(fixtures);
    for (what, addr) in [("BuildKit, `/v2/…?ns=`", built.addr()), ("BuildKit, no mirror", straight.upstream_addr())] {
        let daemon = Dockerd::start(&format!("http://{addr}"));
        let build = || {
            let mut command = daemon.docker_by(&builder, &["build", "--no-cache", "--pull", "--tag", "built", &context.at("")]);
            run(command.env("DOCKER_BUILDKIT", "1"));
        };
        row(what, build, || {
            run(&mut daemon.docker(&["image", "rm", "--force", "built"]));
            run(&mut daemon.docker_by(&builder, &["builder", "prune", "--all", "--force"]));
        });
    }
}

#[test]
#[ignore = "a measurement"]
fn times_of_a_pull_by_every_client() {
    if [dockerd::TOOLS, containerd::TOOLS, &["skopeo", "podman", "buildah", "conmon", "unshare"]].iter().any(|tools| process::lacks(tools))
    {
        return;
    }
    let Some(fixtures) = fixtures::get() else { return };
    let reference = fixtures.image("library/debian", "multi").to_string();
    eprintln!("| client and layout | cold, s | hot, s |\n|---|---|---|");
    time_containers(fixtures, &reference);
    time_containerd(fixtures, &reference);
    time_dockerd(fixtures, reference.strip_prefix("library/").unwrap());
}
