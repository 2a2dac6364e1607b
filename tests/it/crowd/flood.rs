use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{MEMORY_BUDGET, Pace, Pond, crowd, path};
use crate::support::client::{Raw, get};
use crate::support::frames::Wire;

/// Runs a flood while the well-behaved client pulls beside it; then everything must be as before.
async fn is_weathered(pond: Pond, what: &str, clients: usize, flood: impl Future<Output = ()> + Send + 'static) {
    // A task of its own: within this one it would be the test that keeps the client beside waiting.
    let flood = tokio::spawn(flood);
    let beside = pond.bystander().await;
    flood.await.unwrap();
    finish(pond, what, clients, beside).await;
}

async fn finish(pond: Pond, what: &str, clients: usize, beside: Pace) {
    let memory = pond.program.vitals().memory;
    let recovered = pond.recovers(0).await;
    pond.report(what, clients, memory, beside, recovered);
    assert!(memory <= MEMORY_BUDGET, "{what}: {memory} bytes");
    pond.ends_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_connections() {
    let pond = Pond::plain().await;
    let address = pond.program.address();
    let flood = async move {
        for n in 0..crowd() * 20 {
            // From a machine whose ports are used up there is no flood.
            let Ok(mut socket) = TcpStream::connect(address).await else { continue };
            match n % 4 {
                0 => drop(socket),
                1 => socket.set_zero_linger().unwrap(),
                2 => drop(socket.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n").await),
                _ => drop(socket.write_all(b"\x16\x03\x01\x02\x00\x01\xff\xff\xff").await),
            }
        }
    };
    is_weathered(pond, "connections that come and go", crowd() * 20, flood).await;
}

/// One address may have 1024 connections: the others are closed at once, and who comes from elsewhere has a place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_connections_that_stay() {
    let pond = Pond::plain().await;
    let most = millpond::listen::MAX_PER_ADDRESS;
    let mut sockets = Vec::new();
    for _ in 0..most + 100 {
        sockets.push(TcpStream::connect(pond.program.address()).await.unwrap());
    }
    for socket in &mut sockets[most..] {
        // Not accepted: what is read is the end.
        let ended = crate::support::patience::within("the end of a connection too many", socket.readable()).await;
        ended.unwrap();
        assert!(matches!(socket.try_read(&mut [0; 1]), Ok(0) | Err(_)));
    }
    let beside = pond.serves_others().await;
    let vitals = pond.program.vitals();
    assert!(vitals.files >= most, "{vitals:?}");
    drop(sockets);
    finish(pond, "connections that stay", most + 100, beside).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_pipelined_requests() {
    let pond = Pond::plain().await;
    let (address, path) = (pond.program.address(), path(&pond.small));
    let mut wires = Vec::new();
    let flood = async {
        for _ in 0..crowd() {
            let mut wire = Wire::plain(address, 4096).await.unwrap();
            let requests = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(500);
            // The server stops reading when nobody reads its answers; what the kernel does not take is not sent.
            let mut sending = Box::pin(wire.send(requests));
            drop(futures_util::poll!(sending.as_mut()));
            drop(sending);
            assert_eq!(wire.head().await.unwrap(), "HTTP/1.1 200 OK");
            wires.push(wire);
        }
    };
    let (beside, ()) = tokio::join!(pond.bystander(), flood);
    let best = beside.best(pond.serves_others().await);
    let memory = pond.program.vitals().memory;
    drop(wires);
    assert!(memory <= MEMORY_BUDGET, "{memory}");
    finish(pond, "500 requests at once, no answer read", crowd(), best).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_heads_that_never_end() {
    for (what, head) in [
        ("half a head", "GET /v2/ HTTP/1.1\r\nHost: a\r\nX: ".to_owned()),
        ("31 KiB of a head", format!("GET /v2/ HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(31 << 10))),
        ("50 lines of a head", format!("GET /v2/ HTTP/1.1\r\n{}", "X: y\r\n".repeat(50))),
        ("one byte", "G".to_owned()),
    ] {
        let pond = Pond::plain().await;
        let mut wires = Vec::new();
        for _ in 0..crowd() {
            let mut wire = Wire::plain(pond.program.address(), 4096).await.unwrap();
            wire.send(&head).await.unwrap();
            wires.push(wire);
        }
        let beside = pond.serves_others().await;
        let memory = pond.program.vitals().memory;
        assert!(memory <= MEMORY_BUDGET, "{what}: {memory}");
        drop(wires);
        finish(pond, what, crowd(), beside).await;
    }
}

/// A client is gone after each byte of its request, and after each part of its answer: nothing of it is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_clients_that_leave_at_any_point() {
    let pond = Pond::plain().await;
    let request = format!("GET {} HTTP/1.1\r\nHost: kit\r\n\r\n", path(&pond.large));
    for at in 0..=request.len() {
        for rude in [false, true] {
            let mut raw = Raw::connect(pond.program.address()).await;
            raw.send(&request[..at]).await;
            if rude { raw.reset() } else { drop(raw) }
        }
    }
    for at in [0, 1, 1000, 8 << 10, 64 << 10, (64 << 10) + 1, 1 << 20, (16 << 20) - (64 << 10), (16 << 20) - 1, 16 << 20] {
        for rude in [false, true] {
            let mut raw = Raw::narrow(pond.program.address(), 64 << 10).await;
            raw.send(&request).await;
            raw.head().await;
            raw.read(at).await;
            if rude { raw.reset() } else { drop(raw) }
        }
    }
    let beside = pond.serves_others().await;
    finish(pond, "leaving at any point", request.len() * 2 + 22, beside).await;
}

/// Over TLS the handshake is one more place to leave, or to stay, in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_handshakes() {
    let pond = Pond::tls().await;
    let hello = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03][..], &[7; 200]].concat();
    let mut sockets: Vec<TcpStream> = Vec::new();
    let flood = async {
        for n in 0..crowd() * 2 {
            let mut socket = TcpStream::connect(pond.program.address()).await.unwrap();
            let sent: io::Result<()> = match n % 4 {
                // Half a hello; a hello in records of one byte; text; nothing.
                0 => socket.write_all(&hello).await,
                1 => {
                    let bytes: Vec<u8> = hello[5..].iter().flat_map(|byte| [0x16, 0x03, 0x01, 0, 1, *byte]).collect();
                    socket.write_all(&bytes).await
                }
                2 => socket.write_all(b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n").await,
                _ => Ok(()),
            };
            drop(sent);
            sockets.push(socket);
        }
    };
    let (beside, ()) = tokio::join!(pond.bystander(), flood);
    let best = beside.best(pond.serves_others().await);
    drop(sockets);
    finish(pond, "handshakes that never end", crowd() * 2, best).await;
}

/// A push that is refused goes on sending: it is read and thrown away for a moment, then cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_uploads() {
    let pond = Pond::plain().await;
    let address = pond.program.address();
    let flood = async move {
        let upload = || async move {
            let mut wire = Wire::plain(address, 64 << 10).await.unwrap();
            wire.send("PUT /v2/a/manifests/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n").await.unwrap();
            assert_eq!(wire.head().await.unwrap(), "HTTP/1.1 405 Method Not Allowed");
            // A gigabyte, of which the server shall see the end long before.
            wire.pump(std::iter::repeat_n(vec![0; 64 << 10], 1 << 14)).await.ended().await;
        };
        futures_util::future::join_all((0..crowd().div_ceil(10)).map(|_| upload())).await;
    };
    is_weathered(pond, "uploads of a gigabyte", crowd().div_ceil(10), flood).await;
}
