//! What registries do, done by a tiny server on the loopback, and what millpond sends them.

use super::*;

mod bodies;
mod failures;
mod redirects;
mod server;
mod tls;
mod tokens;

use server::{Server, Setup, reply};

/// All calls may be made from tasks of their own.
#[allow(dead_code)]
fn calls_can_be_spawned(upstream: &Upstream, name: &crate::oci::Name, digest: &crate::oci::Digest, reference: &crate::oci::Reference) {
    fn is_send<T: Send>(_: T) {}
    is_send(upstream.head_manifest(name, reference));
    is_send(upstream.manifest(name, reference));
    is_send(upstream.blob(name, digest, 0));
    is_send(upstream.head_blob(name, digest));
    is_send(upstream.tags(name, None, None));
    is_send(upstream.referrers(name, digest, &[]));
    is_send(upstream.seen_by_anyone(name, What::Blob(digest)));
}
