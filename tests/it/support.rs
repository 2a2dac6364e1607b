//! The test kit: everything a test needs to tell a story of clients, a mirror and the registries behind it.
//!
//! A test is a few lines: start a scripted [`registry::Registry`], push images, script its faults, start the mirror in front
//! of it, pull with the [`client`], and assert on what the client got and on what the registry was asked. Nothing sleeps:
//! order is made by [`gate::Gate`]s and by waiting for the registry's log.

pub mod audit;
pub mod client;
pub mod frames;
pub mod gate;
pub mod inject;
pub mod lack;
pub mod mirror;
pub mod patience;
pub mod proxy;
pub mod registry;
pub mod scene;
pub mod tally;
pub mod tls;
pub mod vitals;
pub mod volume;

/// Bytes in a KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
