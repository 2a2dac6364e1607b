//! Upstreams that cut, stall, lie, refuse and redirect. A client gets a whole and right answer or a clear refusal, never a
//! wrong byte as whole; an upstream gets no request and sends no byte in vain; and what is held is served through all of it.

mod cut; // bodies that break off, fall silent, or cannot be resumed
mod head; // sizes that nobody can vouch for
mod inject; // headers, types and words of an upstream that would act upon a client; lists without end
mod lie; // lengths, encodings and bytes that are not what they should be
mod limit; // 429
mod manifest; // manifests that cannot be used
mod outage; // down, refused, 5xx, hanging, bad certificates; one of several endpoints
mod reach; // names, handshakes and ways that lead nowhere, or back here
mod refuted; // what is wrong again and again
mod target; // realms and redirects that lead where nobody should go
mod token; // challenges and token services that fail
mod wide; // several connections for a blob that comes slowly

use std::time::Duration;

use millpond::serve::Tuning;

use crate::support::registry::{Blob, Fault};
use crate::support::scene::Scene;

/// The requests for the bytes of a blob, as the offsets at which they were to begin.
fn offsets(scene: &Scene, blob: &Blob) -> Vec<u64> {
    let offset = |range: &str| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    let requests = scene.hub.matching(scene.hub.body_of(&blob.digest).get());
    requests.iter().map(|record| record.header("range").map_or(0, offset)).collect()
}

/// A mirror that forgets at once what came wrong.
fn forgetful(tuning: &mut Tuning) {
    tuning.fill.refuted = Duration::ZERO;
}

/// Gives the next request for the bytes of a blob this fault.
fn once(scene: &Scene, blob: &Blob, fault: Fault) {
    scene.hub.on(scene.hub.body_of(&blob.digest).get(), fault.once());
}
