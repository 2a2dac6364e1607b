use super::{MEMORY_BUDGET, Pond, crowd, path, say};
use crate::support::frames::{Wire, field, flag, frame, get, get_fields, kind};
use crate::support::patience::within;

/// Streams a flood goes through: 100 000 with a crowd of 1000.
fn many() -> u32 {
    u32::try_from(crowd()).unwrap() * 100
}

/// The numbers that a client may give its streams.
fn streams(n: u32) -> impl Iterator<Item = u32> {
    (0..n).map(|n| n * 2 + 1)
}

/// Sends these frames to a program over TLS while a well-behaved client pulls.
async fn flood(what: &str, must_end: bool, frames: impl FnOnce(&Pond) -> Box<dyn Iterator<Item = Vec<u8>> + Send>) {
    let pond = Pond::tls().await;
    let wire = Wire::http2(pond.program.address(), 1 << 20, 65_535).await.unwrap();
    let frames = frames(&pond);
    // A task of its own: within this one it would be the test that keeps the client beside waiting.
    let pumping = tokio::spawn(wire.pump(frames));
    let beside = pond.bystander().await;
    let pumped = pumping.await.unwrap();
    let memory = pond.program.vitals().memory;
    say(&format!("{what}: {} pieces sent, closed meanwhile: {}", pumped.sent, pumped.closed));
    if must_end {
        pumped.ended().await;
    } else {
        drop(pumped);
    }
    let recovered = pond.recovers(0).await;
    pond.report(what, 1, memory, beside, recovered);
    assert!(memory <= MEMORY_BUDGET, "{what}: {memory} bytes");
    pond.ends_well().await;
}

/// CVE-2023-44487: each request is withdrawn at once, so that none counts as open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_withdrawn_at_once() {
    flood("rapid reset", false, |pond| {
        let path = path(&pond.large);
        let cancel = 8_u32.to_be_bytes();
        Box::new(streams(many()).map(move |stream| [get(stream, &path), frame(kind::RST_STREAM, 0, stream, &cancel)].concat()))
    })
    .await;
}

/// The same, by making the server reset them (CVE-2025-8671): a window that overflows is its cue.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_the_server_must_reset() {
    flood("made you reset", true, |pond| {
        let path = path(&pond.large);
        let overflow = 0x7fff_ffff_u32.to_be_bytes();
        Box::new(streams(many()).map(move |stream| {
            let window = frame(kind::WINDOW_UPDATE, 0, stream, &overflow);
            [get(stream, &path), window.clone(), window].concat()
        }))
    })
    .await;
}

/// CVE-2024-27316: a head that goes on and on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_of_endless_parts() {
    flood("CONTINUATION", true, |pond| {
        let first = frame(kind::HEADERS, 0, 1, &get_fields(&path(&pond.small)));
        let more = (0..many()).map(|n| frame(kind::CONTINUATION, 0, 1, &field(&format!("x-{n}"), "y")));
        Box::new(std::iter::once(first).chain(more))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_of_a_mebibyte() {
    flood("a head of 1 MiB", true, |pond| {
        let path = path(&pond.small);
        Box::new(streams(100).flat_map(move |stream| {
            let fields = [get_fields(&path), field("x", &"y".repeat(1 << 20))].concat();
            let mut parts: Vec<Vec<u8>> = Vec::new();
            for (n, chunk) in fields.chunks(16 << 10).enumerate() {
                let last = if (n + 1) * (16 << 10) >= fields.len() { flag::END_HEADERS } else { 0 };
                parts.push(frame(if n == 0 { kind::HEADERS } else { kind::CONTINUATION }, last, stream, chunk));
            }
            parts
        }))
    })
    .await;
}

/// Frames that carry nothing, for a request whose body does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_nothing() {
    flood("empty DATA", false, |pond| {
        let head = frame(kind::HEADERS, flag::END_HEADERS, 1, &get_fields(&path(&pond.small)));
        let empty = (0..many()).map(|_| frame(kind::DATA, 0, 1, &[]));
        Box::new(std::iter::once(head).chain(empty))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_and_settings() {
    flood("PING", false, |_| Box::new((0..many()).map(|n| frame(kind::PING, 0, 0, &u64::from(n).to_be_bytes())))).await;
    flood("SETTINGS", false, |_| {
        Box::new((0..many()).map(|n| frame(kind::SETTINGS, 0, 0, &[&[0, 4][..], &(n % 60_000).to_be_bytes()].concat())))
    })
    .await;
    flood("WINDOW_UPDATE", false, |_| Box::new((0..many()).map(|_| frame(kind::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())))).await;
}

/// Many requests on each of many connections, all at once, and nothing read: beyond what is served at once they wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_for_their_turn_get_it() {
    let pond = Pond::tls().await;
    let mut wires = Vec::new();
    for _ in 0..crowd().div_ceil(10) {
        let mut wire = Wire::http2(pond.program.address(), 64 << 10, 1 << 20).await.unwrap();
        for stream in streams(32) {
            wire.send(get(stream, "/v2/")).await.unwrap();
        }
        wires.push(wire);
    }
    for wire in &mut wires {
        for _ in 0..32 {
            wire.frame_of(kind::HEADERS).await.unwrap();
        }
    }
    drop(wires);
    pond.recovers(0).await;
    pond.ends_well().await;
}

/// What is wrong with one request is told on its stream, and the others of the connection go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_length_lies_harms_no_other() {
    let pond = Pond::tls().await;
    let mut wire = Wire::http2(pond.program.address(), 64 << 10, 1 << 20).await.unwrap();
    let lies = [get_fields(&path(&pond.small)), field("content-length", "5")].concat();
    let end = flag::END_HEADERS | flag::END_STREAM;
    for stream in [1, 3] {
        wire.send(frame(kind::HEADERS, end, stream, &lies)).await.unwrap();
        assert_eq!(wire.frame_of(kind::RST_STREAM).await.unwrap().stream, stream);
    }
    // Connection-specific fields, and the host said twice and differently.
    for (stream, more) in [(5, field("connection", "close")), (7, field("transfer-encoding", "chunked")), (9, field("host", "elsewhere"))] {
        let fields = [get_fields("/v2/"), more].concat();
        wire.send(frame(kind::HEADERS, end, stream, &fields)).await.unwrap();
        loop {
            let answer = within("an answer", wire.frame()).await.unwrap();
            // `:status: 200` is one byte of the static table.
            let refused = answer.kind == kind::RST_STREAM || answer.kind == kind::HEADERS && answer.payload[0] != 0x88;
            if answer.stream == stream && matches!(answer.kind, kind::RST_STREAM | kind::HEADERS) {
                assert!(refused, "{stream}: {answer:?}");
                break;
            }
        }
    }
    wire.send(get(11, "/v2/")).await.unwrap();
    let answer = wire.frame_of(kind::HEADERS).await.unwrap();
    assert_eq!((answer.stream, answer.payload[0]), (11, 0x88));
    drop(wire);
    pond.ends_well().await;
}
