//! Debian's `docker-registry`, as the upstream that holds the fixtures, as the place where they are made, and as a pull-through proxy to compare with.

use std::net::SocketAddr;
use std::path::Path;

use crate::process::{Daemon, Scratch};

/// A running docker-registry on a free port of loopback.
pub(crate) struct Registry {
    addr: SocketAddr,
    daemon: Daemon,
    _scratch: Scratch, // after the daemon: it reads its configuration from here
}

/// What a registry does with the folder it is given.
#[derive(Clone, Copy)]
pub(crate) enum Role<'a> {
    /// Serves it; writes are refused, so that no test can spoil the fixtures.
    Upstream,
    /// Takes pushes into it.
    Writable,
    /// Caches what it fetches from this URL in it.
    Proxy(&'a str),
}

impl Registry {
    /// Starts it with its storage in `folder`.
    pub(crate) fn start(folder: &Path, role: Role<'_>) -> Self {
        let scratch = Scratch::new();
        let read_only = matches!(role, Role::Upstream);
        let proxy = match role {
            Role::Proxy(url) => format!("proxy:\n  remoteurl: {url}\n"),
            Role::Upstream | Role::Writable => String::new(),
        };
        // `info` is the level at which it says which port it took.
        let config = scratch.write(
            "registry.yml",
            &format!(
                "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  maintenance:\n    uploadpurging:\n      \
                 enabled: false\n    readonly:\n      enabled: {read_only}\nhttp:\n  addr: 127.0.0.1:0\n{proxy}",
                folder.display()
            ),
        );
        let daemon = Daemon::start("docker-registry", |command| {
            command.args(["serve", &config]);
        });
        let addr = daemon.await_line(|line| line.split_once("listening on ")?.1.split('"').next()?.parse().ok());
        Self { addr, daemon, _scratch: scratch }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn stop(&mut self) {
        self.daemon.stop();
    }
}
