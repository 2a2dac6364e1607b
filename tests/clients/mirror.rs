//! The mirror under test: millpond from its own binary, or the stand-in to compare it with.

use std::net::SocketAddr;

use crate::process::{self, Daemon, Scratch};
use crate::registry::{Registry, Role};

/// A running mirror of `docker.io` whose only endpoint is the given upstream.
pub(crate) struct Mirror {
    addr: SocketAddr,
    running: Running,
    upstream: String,
    scratch: Scratch, // last: the process is ended before its folder goes
}

enum Running {
    Millpond(Daemon),
    StandIn(Registry),
}

/// What a test wants to be different from the defaults: lines of `mirror.toml`.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    /// Of the table `[access]`.
    pub(crate) access: String,
    /// Of the table `[cache]`.
    pub(crate) cache: String,
    /// Of the table `[upstreams."docker.io"]`.
    pub(crate) upstream: String,
}

/// Whether Debian's docker-registry stands in for millpond: it does less, and the tests ask less of it.
pub(crate) fn is_stand_in() -> bool {
    match std::env::var("MILLPOND_TEST_STAND_IN").as_deref() {
        Ok("docker-registry") => true,
        Ok(other) => panic!("MILLPOND_TEST_STAND_IN={other}: only docker-registry can stand in"),
        Err(_) => false,
    }
}

/// Whether docker-registry stands in for millpond and falls short of the test: says in one line by what, and panics instead when `CI=true`.
pub(crate) fn lacks(why: &str) -> bool {
    let lacks = is_stand_in();
    if lacks {
        process::skip(&format!("docker-registry {why}"));
    }
    lacks
}

impl Mirror {
    /// Starts a mirror with an empty cache, and waits until it listens.
    pub(crate) fn start(upstream: &str, settings: &Settings) -> Self {
        let scratch = Scratch::new();
        let (addr, running) = launch(&scratch, upstream, settings);
        Self { addr, running, upstream: upstream.to_owned(), scratch }
    }

    /// Stops it and starts it again over the same cache, on another port.
    pub(crate) fn restart(&mut self, settings: &Settings) {
        self.stop();
        (self.addr, self.running) = launch(&self.scratch, &self.upstream, settings);
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// SIGTERM; the contract says that millpond drains and exits 0.
    pub(crate) fn stop(&mut self) {
        match &mut self.running {
            Running::Millpond(daemon) => assert_eq!(daemon.stop().code(), Some(0), "a drained millpond exits 0"),
            Running::StandIn(registry) => registry.stop(),
        }
    }
}

fn launch(scratch: &Scratch, upstream: &str, settings: &Settings) -> (SocketAddr, Running) {
    let cache = scratch.path().join("cache");
    if is_stand_in() {
        let registry = Registry::start(&cache, Role::Proxy(upstream));
        return (registry.addr(), Running::StandIn(registry));
    }
    // Nobody is to be asked for what a test looks for, unless it says who.
    let search = if settings.upstream.contains("search") { String::new() } else { "search = \"none\"\n".to_owned() };
    let config = scratch.write(
        "mirror.toml",
        &format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n\n[access]\n{}\n\n[cache]\ndir = \"{}\"\n{}\n\n\
             [upstreams.\"docker.io\"]\nendpoints = [\"{upstream}\"]\n{}\n",
            settings.access,
            cache.display(),
            settings.cache,
            search.clone() + &settings.upstream
        ),
    );
    let program = std::env::var("MILLPOND_TEST_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_millpond").to_owned());
    let daemon = Daemon::start(&program, |command| {
        // Its own way to the upstream is loopback too, and no setting of this machine may leak in.
        command.args(["serve", "--config", &config]).env_remove("MILLPOND_PROFILE");
    });
    let addr = daemon.await_line(registry_address);
    (addr, Running::Millpond(daemon))
}

/// The address in the line by which millpond says where the registry API is.
fn registry_address(line: &str) -> Option<SocketAddr> {
    let rest = line.split_once("registry API on http://")?.1;
    rest.split(|letter: char| !(letter.is_ascii_digit() || letter == '.' || letter == ':')).next()?.parse().ok()
}
