use std::io;
use std::net::SocketAddr;

use super::{MEMORY_BUDGET, MEMORY_BUDGET_TLS, Pond, crowd, path};
use crate::support::MIB;
use crate::support::frames::{Wire, get, kind};
use crate::support::gate::Gate;
use crate::support::registry::{Blob, Fault};

/// Bytes that the kernel takes in for a client that does not read.
const ROOM: u32 = 4096;

/// Asserts that a crowd that does not read is cheap, hurts nobody, and leaves nothing behind.
async fn costs_little(pond: Pond, what: &str, wires: Vec<Wire>, more_files: usize) {
    let beside = pond.serves_others().await;
    // The client beside took some time, in which every buffer that fills up has done so.
    let memory = pond.program.vitals().memory;
    let clients = wires.len();
    drop(wires);
    let recovered = pond.recovers(more_files).await;
    pond.report(what, clients, memory, beside, recovered);
    let budget = if pond.program.url().starts_with("https") { MEMORY_BUDGET_TLS } else { MEMORY_BUDGET };
    assert!(memory <= budget, "{what}: {memory} bytes for {clients} clients");
    pond.ends_well().await;
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: kit\r\n\r\n")
}

/// So many clients, each of which connects in this way and has asked when the next one comes.
async fn gather<F: Future<Output = io::Result<Wire>>>(clients: usize, connect: impl Fn() -> F) -> Vec<Wire> {
    let mut wires = Vec::new();
    for _ in 0..clients {
        wires.push(Box::pin(connect()).await.unwrap());
    }
    wires
}

/// A client on HTTP/1 that asks on this connection and reads the head of its answer.
async fn asked(connecting: impl Future<Output = io::Result<Wire>>, request: &str, status: &str) -> io::Result<Wire> {
    let mut wire = connecting.await?;
    wire.send(request).await?;
    assert_eq!(wire.head().await?, format!("HTTP/1.1 {status}"));
    Ok(wire)
}

/// A client on HTTP/2 that asks on so many streams, each with room for so many bytes, and reads the first head of an answer.
async fn asked_http2(address: SocketAddr, path: &str, streams: u32, window: u32) -> io::Result<Wire> {
    let mut wire = Wire::http2(address, ROOM, window).await?;
    for stream in 0..streams {
        wire.send(get(stream * 2 + 1, path)).await?;
    }
    wire.frame_of(kind::HEADERS).await?;
    Ok(wire)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hot_blob() {
    let pond = Pond::plain().await;
    let (address, request) = (pond.program.address(), request(&path(&pond.large)));
    let wires = gather(crowd(), || asked(Wire::plain(address, ROOM), &request, "200 OK")).await;
    costs_little(pond, "no reading, hot", wires, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cold_blob() {
    let pond = Pond::plain().await;
    let cold = Blob::seeded(3, 16 * MIB);
    pond.hub.blob(super::REPO, &cold);
    let gate = Gate::closed();
    pond.hub.on(pond.hub.body_of(&cold.digest), Fault::stall(8 * MIB, &gate));
    let (address, request) = (pond.program.address(), request(&path(&cold)));
    let wires = gather(crowd(), || asked(Wire::plain(address, ROOM), &request, "200 OK")).await;
    gate.open();
    Box::pin(pond.program.settled()).await;
    // A crowd that takes long to gather may be longer than the patience with a silent upstream: then the rest is asked for, and no byte twice.
    assert_eq!(pond.hub.bytes_of(&cold.digest), cold.len(), "{}", pond.hub.story());
    costs_little(pond, "no reading, cold", wires, 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls() {
    let pond = Pond::tls().await;
    let (address, request) = (pond.program.address(), request(&path(&pond.large)));
    let wires = gather(crowd(), || asked(Wire::secure(address, ROOM, "http/1.1"), &request, "200 OK")).await;
    costs_little(pond, "no reading, TLS", wires, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2() {
    let pond = Pond::tls().await;
    let (address, path) = (pond.program.address(), path(&pond.large));
    let wires = gather(crowd(), || asked_http2(address, &path, 1, 1 << 20)).await;
    costs_little(pond, "no reading, HTTP/2", wires, 0).await;
}

/// A client may ask for a hundred things at once and take none: the dearest that one connection can be. How many of them are served at
/// once, and how many wait, is the server's business; that one is, is the client's right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2_with_a_hundred_streams_each() {
    let pond = Pond::tls().await;
    let (address, path) = (pond.program.address(), path(&pond.large));
    let wires = gather(crowd().div_ceil(10), || asked_http2(address, &path, 100, 1)).await;
    costs_little(pond, "window of 1 on 100 streams, HTTP/2", wires, 0).await;
}

/// A thousand parts in one answer are as many numbers until they are sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_ranges_each() {
    let pond = Pond::plain().await;
    let ranges: Vec<String> = (0..1000).map(|n| format!("{}-{}", n * 16_000, n * 16_000 + 15_000)).collect();
    let request = format!("GET {} HTTP/1.1\r\nHost: kit\r\nRange: bytes={}\r\n\r\n", path(&pond.large), ranges.join(","));
    let address = pond.program.address();
    let wires = gather(crowd(), || asked(Wire::plain(address, ROOM), &request, "206 Partial Content")).await;
    costs_little(pond, "no reading, a thousand ranges", wires, 0).await;
}

/// One byte a turn: each turn is long enough for the server to fill what it may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_take_a_byte_at_a_time() {
    let pond = Pond::plain().await;
    let (address, request) = (pond.program.address(), request(&path(&pond.large)));
    let mut wires = gather(crowd(), || asked(Wire::plain(address, ROOM), &request, "200 OK")).await;
    for _ in 0..20 {
        for wire in &mut wires {
            wire.take(1).await.unwrap();
        }
        pond.bystander().await;
    }
    costs_little(pond, "a byte at a time", wires, 0).await;
}
