//! Real daemons pull real images through millpond, all on loopback.
//!
//! ```text
//! dockerd, ctr, skopeo, podman, buildah ─→ Tap ─→ millpond ─→ Tap ─→ Debian's docker-registry ─→ fixtures on disk
//! ```
//!
//! One module a client: [`dockerd`], [`containerd`], [`containers`] (skopeo and podman), [`buildah`], [`buildkit`], then [`accounts`] (logins and searches of all), [`hub`], with a scripted Docker Hub as the upstream, and [`manifests`] for what no client shows: the
//! exact bytes and headers; [`times`] measures, on request. [`chain`] puts the row above together; each [`tap`] writes down what passed, so that "the mirror served it" and "the
//! upstream was asked once" are assertions. [`fixtures`] makes the images once a machine. [`process`] starts programs and ends them.
//!
//! The clients cannot reach Docker Hub behind the mirror's back: their proxy is a closed port (`process::client`), and a control in
//! `dockerd_pulls_offline` shows that a pull fails once the mirror is gone.
//!
//! `MILLPOND_TEST_STAND_IN=docker-registry` puts Debian's docker-registry, as a pull-through proxy, in millpond's place, to compare the two;
//! `MILLPOND_TEST_PROGRAM=target/release/millpond` another build of millpond.
//! Half of the time is spent waiting for the disk: with `TMPDIR` on a tmpfs of 4 GB it is quicker.
//!
//! A missing tool is one line and a test that returns; with `CI=true` it is a panic. `.ci/install` installs what is needed.
#![allow(clippy::print_stderr, reason = "a skipped test says why, on the terminal")]
#![allow(clippy::unwrap_used, reason = "a broken harness should stop at once, where it broke")]

mod accounts;
mod buildah;
mod buildkit;
mod chain;
mod containerd;
mod containers;
mod dockerd;
mod fixtures;
mod http;
mod hub;
mod manifests;
mod mirror;
mod process;
mod registry;
mod tap;
mod times;

#[path = "../it/support"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the kit of tests/it, of which one test here uses a part")]
#[allow(clippy::needless_pass_by_value, clippy::format_push_string, clippy::format_collect, reason = "as in tests/it")]
mod support {
    pub mod gate;
    pub mod patience;
    pub mod registry;
    pub mod tls;
}
