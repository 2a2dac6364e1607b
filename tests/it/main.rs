//! The integration tests, one binary. The `mod` list below is the list of what millpond is tested for.

// Each test file uses a part of the kit; and in a binary "public" means "of the kit".
#![allow(dead_code, unused_imports, unreachable_pub)]
// What is short is read more easily; nothing here is fast or kept for long.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, clippy::format_push_string, clippy::format_collect)]

mod support; // the kit: a scripted registry, test clients, the mirror under test, an audit of its data folder

mod beside; // the benchmark's arithmetic: medians, ratios, which targets hold
mod config; // the configuration and the command line, as a script sees them
mod kit; // the kit does what it says: faults are visible, counts are right, gates order things

mod corpus; // the fuzz targets' seeds, replayed: what once broke a parser breaks none again
mod crowd; // thousands that dawdle, flood or leave: bounded, and nobody else notices
mod disk; // kill -9, full disks, lost indexes, rotten files; the size limit
mod doctor; // the doctor: what to write into which file, and what is wrong with a mirror that does not work
mod drain; // SIGTERM with bodies in flight; idle connections; the deadline
mod edge; // hostile requests: answered in the registry's words, nothing contacted, nothing told
mod faults; // upstreams that cut, stall, lie, refuse, redirect; what is held is served through all of it
mod find; // search and the catalog: what the registry finds and what is held, as one; nothing private for strangers
mod flight; // many clients, one fetch; leaving, slow and late ones; a dead leader strands nobody
mod leak; // passwords, tokens and secret paths: in no log line, at no level, in no metric and no answer
mod log; // every request is a line; who does not read them holds up nobody
mod login; // who is challenged, who is served; guesses; certificates and users that change
mod private; // who may see what only the mirror's own login can see
mod pull; // by tag, by digest, HEAD, index, every endpoint; the second pull costs no upstream request
mod range; // ranges of whole blobs and of blobs that are still arriving
mod replay; // clients that no test machine has: their requests in their order, and what they insist on
mod stale; // tags: believed, asked about once for all, served stale, gone
mod tidy; // the architecture: who may import whom, and that every promise names its test
mod upstream; // what an operator says of an upstream: proxies, logins, certificates, allow and deny; what registries do differently
