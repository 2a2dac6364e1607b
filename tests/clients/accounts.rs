//! Logins and searches of the real docker, podman and skopeo: a mirror that admits everybody of this machine, has a user besides, and sees
//! with its own login what the upstream shows to nobody else.

use std::process::Command;

use tokio::runtime::Runtime;

use crate::containers;
use crate::dockerd::{self, Dockerd};
use crate::fixtures;
use crate::hub;
use crate::mirror::{self, Mirror, Settings};
use crate::process::{self, Scratch, attempt, run};
use crate::support::registry::{Port, Registry};

/// A Docker Hub whose debian is private, and a mirror of it. By the name `localhost` everybody is challenged.
struct Scene {
    mirror: Mirror,
    hub: Registry,
    _runtime: Runtime,
    _scratch: Scratch,
}

impl Scene {
    fn start(fixtures: &fixtures::Fixtures) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let hub = hub::fill(&runtime, fixtures);
        hub.user("ann", "secret");
        hub.private("library/debian");
        let scratch = Scratch::new();
        let users = scratch.write("htpasswd", &format!("bob:{}\n", bcrypt::hash("guess", 4).unwrap()));
        let password = scratch.write("password", "secret");
        let settings = Settings {
            access: format!("networks = [\"127.0.0.0/8\"]\nhtpasswd = \"{users}\"\nlogin_hosts = [\"localhost\"]"),
            upstream: format!(
                "auth_hosts = [\"{}\"]\nusername = \"ann\"\npassword_file = \"{password}\"\nsearch = \"{}\"",
                hub.address(Port::Auth),
                hub.url_of(Port::Search)
            ),
            ..Settings::default()
        };
        Self { mirror: Mirror::start(&hub.url(), &settings), hub, _runtime: runtime, _scratch: scratch }
    }

    fn at(&self, host: &str) -> String {
        format!("{host}:{}", self.mirror.addr().port())
    }
}

/// Whether this test can run; the images, if so.
fn ready(tools: &[&str]) -> Option<&'static fixtures::Fixtures> {
    if process::lacks(tools) {
        return None;
    }
    if mirror::is_stand_in() {
        process::skip("docker-registry has neither logins beside networks nor a search");
        return None;
    }
    fixtures::get()
}

/// A wrong password fails, the right one opens what is private, and logging out closes it again.
fn log_in_pull_and_out(login: impl Fn(&str) -> Command, pull: impl Fn() -> Command, mut logout: Command) {
    attempt(&mut pull()).expect_err("a stranger pulled what is private");
    attempt(&mut login("wrong")).expect_err("a wrong password was taken");
    run(&mut login("guess"));
    run(&mut pull());
    run(&mut logout);
    attempt(&mut pull()).expect_err("who logged out pulled what is private");
}

#[test]
fn docker_logs_in_searches_and_pulls_what_is_private() {
    let Some(fixtures) = ready(dockerd::TOOLS) else { return };
    let scene = Scene::start(fixtures);
    let docker = Dockerd::start(&format!("http://{}", scene.mirror.addr()));
    let host = scene.at("localhost");
    let image = format!("{host}/library/debian:latest");
    log_in_pull_and_out(
        |password| docker.docker(&["login", "--username", "bob", "--password", password, &host]),
        || docker.docker(&["pull", "--quiet", &image]),
        docker.docker(&["logout", &host]),
    );

    let search = |term: &str| {
        let term = format!("{}/{term}", scene.at("127.0.0.1"));
        run(&mut docker.docker(&["search", "--format", "{{.Name}}|{{.Description}}|{{.StarCount}}|{{.IsOfficial}}", &term]))
    };
    let found = search("debian");
    // It was pulled, by one who was logged in: a stranger is not told that it is held.
    assert!(found.contains("debian||1|") && !found.contains("[held here]"), "{found}");
    // The mirror that stands in daemon.json serves what is public, and nobody is asked for a password there.
    run(&mut docker.docker(&["pull", "--quiet", "big"]));
    assert!(search("big").starts_with("big|[held here]|1|"), "{}", search("big"));
    assert_eq!(scene.hub.violations(), [""; 0]);
}

#[test]
fn podman_logs_in_searches_and_pulls_what_is_private() {
    let Some(fixtures) = ready(&["podman", "unshare"]) else { return };
    let scene = Scene::start(fixtures);
    let host = scene.at("127.0.0.1");
    let settings = containers::Settings::new(&host);
    let authfile = settings.at("auth.json");
    let image = format!("{host}/library/debian:latest");
    let with = |words: &[&str]| {
        let mut command = settings.podman(words);
        command.env("REGISTRY_AUTH_FILE", &authfile);
        command
    };
    log_in_pull_and_out(
        |password| with(&["login", "--tls-verify=false", "--username", "bob", "--password", password, &host]),
        || with(&["pull", "--quiet", "--tls-verify=false", "--signature-policy", settings.policy(), &image]),
        with(&["logout", &host]),
    );
    let found = run(&mut with(&["search", "--tls-verify=false", "--format", "{{.Name}}|{{.Stars}}", &format!("{host}/debian")]));
    assert!(found.contains(&format!("{host}/debian|1")), "{found}");
}

#[test]
fn skopeo_logs_in_and_sees_what_is_private() {
    let Some(fixtures) = ready(&["skopeo"]) else { return };
    let scene = Scene::start(fixtures);
    let host = scene.at("127.0.0.1");
    let settings = containers::Settings::new(&host);
    let authfile = settings.at("auth.json");
    let image = format!("docker://{host}/library/debian:latest");
    log_in_pull_and_out(
        |password| {
            settings.skopeo(&["login", "--authfile", &authfile, "--tls-verify=false", "--username", "bob", "--password", password, &host])
        },
        || settings.skopeo(&["inspect", "--raw", "--authfile", &authfile, "--tls-verify=false", &image]),
        settings.skopeo(&["logout", "--authfile", &authfile, &host]),
    );
    // A stranger is challenged too, has no login, and gets what is public.
    let public = format!("docker://{host}/library/big:latest");
    run(&mut settings.skopeo(&["inspect", "--raw", "--authfile", &authfile, "--tls-verify=false", &public]));
}
