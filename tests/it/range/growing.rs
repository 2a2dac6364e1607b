use futures_util::poll;

use super::{Means, Nothing, Part, Parts, REPO, Whole, assert_means, mirror_of, table};
use crate::support::client::{Stream, get};
use crate::support::gate::Gate;
use crate::support::mirror::Mirror;
use crate::support::registry::{Blob, Fault, Registry};
use crate::support::{KIB, MIB};

/// Bytes that have arrived when the upstream stops.
const HERE: u64 = 500 * KIB;

/// A blob of 1 MiB of which [`HERE`] bytes have arrived, for a client that has read them all.
struct Arriving {
    plain: Registry,
    mirror: Mirror,
    blob: Blob,
    bytes: bytes::Bytes,
    url: String,
    gate: Gate,
    first: Stream,
}

impl Arriving {
    async fn new(fault: Fault) -> Self {
        let plain = Registry::plain().await;
        let blob = Blob::seeded(1, MIB);
        plain.blob(REPO, &blob);
        let gate = Gate::closed();
        plain.on(plain.body_of(&blob.digest), fault.then_stall(HERE, &gate));
        let mirror = mirror_of(&plain);
        let url = mirror.blob(REPO, blob.digest);
        let mut first = get(&url).stream().await;
        let bytes = blob.content.to_bytes();
        let held_back = if first.header("content-length").is_none() { 64 * KIB } else { 0 };
        let here = usize::try_from(HERE - held_back).unwrap();
        assert!(first.at_least(here).await == bytes[..here]);
        Self { plain, mirror, blob, bytes, url, gate, first }
    }

    /// Opens the gate, and asserts that the first client got it all and that the upstream was asked once.
    async fn finish(self) {
        self.gate.open();
        let rest = self.first.rest().await;
        assert!(rest.is_whole() && self.bytes.ends_with(&rest.body));
        self.mirror.settled().await;
        assert_eq!((self.plain.gets_of(&self.blob.digest), self.plain.bytes_of(&self.blob.digest)), (1, MIB), "{}", self.plain.story());
        self.mirror.stop().await.audit().assert_sound().assert_temporary(0).assert_holds([&self.blob.digest]);
    }
}

fn is_here(means: &Means) -> bool {
    match means {
        Whole => false,
        Nothing => true,
        Part(part) => part.end <= HERE,
        Parts(parts) => parts.iter().all(|part| part.end <= HERE),
    }
}

#[tokio::test]
async fn what_is_here_comes_at_once_and_the_rest_when_it_is() {
    let arriving = Arriving::new(Fault::none()).await;
    let (here, later): (Vec<_>, Vec<_>) = table(MIB).into_iter().partition(|(_, means)| is_here(means));
    assert!(here.len() > 5 && later.len() > 5);
    for (range, means) in here {
        // While the gate is closed.
        let reply = get(&arriving.url).header("Range", &range).send().await;
        assert_means(&reply, &means, &arriving.bytes, &range);
    }
    let mut waiting = Vec::new();
    for (range, means) in later {
        // The head says already what will come.
        let stream = get(&arriving.url).header("Range", &range).stream().await;
        assert_eq!(stream.status, if means == Whole { 200 } else { 206 }, "{range}");
        waiting.push((stream, range, means));
    }
    arriving.gate.open();
    for (stream, range, means) in waiting {
        assert_means(&stream.rest().await, &means, &arriving.bytes, &range);
    }
    arriving.finish().await;
}

#[tokio::test]
async fn a_range_that_is_not_here_waits_for_its_bytes_and_not_a_byte_is_made_up() {
    let arriving = Arriving::new(Fault::none()).await;
    let mut beyond = get(&arriving.url).range(700 * KIB, 700 * KIB + 9).stream().await;
    let mut across = get(&arriving.url).range(HERE - 10, HERE + 9).stream().await;
    let mut open = get(&arriving.url).range(0, None).stream().await;
    assert_eq!((beyond.status, across.status, open.status), (206, 206, 206), "bytes=0- is 206 too");
    assert_eq!(across.at_least(10).await.len(), 10, "the half that is here");
    assert_eq!(open.at_least(usize::try_from(HERE).unwrap()).await.len() as u64, HERE);
    // Another range was answered meanwhile: time has passed.
    assert_eq!(get(&arriving.url).range(0, 9).send().await.status, 206);
    for stream in [&mut beyond, &mut across, &mut open] {
        assert!(poll!(std::pin::pin!(stream.chunk())).is_pending());
    }
    arriving.gate.open();
    let at = |from: u64, to: u64| &arriving.bytes[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
    assert!(beyond.rest().await.body == at(700 * KIB, 700 * KIB + 10));
    assert!(across.rest().await.body == at(HERE, HERE + 10));
    assert!(open.rest().await.body == at(HERE, MIB));
    arriving.finish().await;
}

#[tokio::test]
async fn conditions_hold_for_what_is_arriving() {
    let arriving = Arriving::new(Fault::none()).await;
    let etag = format!("\"{}\"", arriving.blob.digest);
    let right = get(&arriving.url).range(5, 14).header("If-Range", &etag).send().await;
    assert_means(&right, &Part(5..15), &arriving.bytes, "If-Range");
    let wrong = get(&arriving.url).range(5, 14).header("If-Range", "\"other\"").stream().await;
    assert_eq!(wrong.status, 200);
    assert_eq!(get(&arriving.url).header("If-None-Match", &etag).send().await.status, 304);
    arriving.gate.open();
    assert_means(&wrong.rest().await, &Whole, &arriving.bytes, "If-Range of another");
    arriving.finish().await;
}

#[tokio::test]
async fn a_range_of_an_unknown_size_waits_for_the_size() {
    let arriving = Arriving::new(Fault::chunked()).await;
    let asked = tokio::spawn(get(&arriving.url).range(0, 9).send());
    let suffix = tokio::spawn(get(&arriving.url).header("Range", "bytes=-10").send());
    // The HEAD of the same blob is answered; these wait.
    assert_eq!(get(format!("{}/v2/", arriving.mirror.url())).send().await.status, 200);
    assert!(!asked.is_finished() && !suffix.is_finished());
    arriving.gate.open();
    assert_means(&asked.await.unwrap(), &Part(0..10), &arriving.bytes, "bytes=0-9");
    assert_means(&suffix.await.unwrap(), &Part(MIB - 10..MIB), &arriving.bytes, "bytes=-10");
    arriving.finish().await;
}
