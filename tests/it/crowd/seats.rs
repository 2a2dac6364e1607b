use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::{crowd, say};
use crate::support::MIB;
use crate::support::client::get;
use crate::support::frames::{Wire, flag, frame, get as get_frame, get_fields, head as head_frame, kind};
use crate::support::patience::within;
use crate::support::registry::Registry;
use crate::support::scene::{REPO, Scene, assert_whole};

/// The limit of each kind of idling here, instead of half a minute or one.
const LIMIT: Duration = Duration::from_secs(3);

/// How a client stays without being served.
#[derive(Clone, Copy, Debug)]
enum Idle {
    Silent,
    HalfHead,
    BetweenRequests,
    NoReading,
    HalfHello,
    NoWindow,
    HeadWithoutEnd,
    AnswersPingsOnly,
    AsksBesideWhatItDoesNotTake,
}

const PLAIN: [Idle; 4] = [Idle::Silent, Idle::HalfHead, Idle::BetweenRequests, Idle::NoReading];
const TLS: [Idle; 7] = [
    Idle::Silent,
    Idle::HalfHello,
    Idle::NoReading,
    Idle::NoWindow,
    Idle::HeadWithoutEnd,
    Idle::AnswersPingsOnly,
    Idle::AsksBesideWhatItDoesNotTake,
];

/// Connects, idles, and is done when the server has closed.
async fn idle(address: SocketAddr, path: String, how: Idle, tls: bool, connected: Arc<Semaphore>) {
    let path = path.as_str();
    let request = format!("GET {path} HTTP/1.1\r\nHost: kit\r\n\r\n");
    let mut wire = match how {
        Idle::NoWindow | Idle::HeadWithoutEnd | Idle::AnswersPingsOnly | Idle::AsksBesideWhatItDoesNotTake => {
            Wire::http2(address, 4096, 1).await.unwrap()
        }
        Idle::NoReading if tls => Wire::secure(address, 4096, "http/1.1").await.unwrap(),
        _ => Wire::plain(address, 4096).await.unwrap(),
    };
    connected.add_permits(1);
    match how {
        Idle::Silent => {}
        Idle::HalfHead => wire.send("GET /v2/ HTTP/1.1\r\nHost").await.unwrap(),
        Idle::HalfHello => wire.send([0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap(),
        Idle::BetweenRequests => {
            wire.send("GET /v2/ HTTP/1.1\r\nHost: kit\r\n\r\n").await.unwrap();
            wire.head().await.unwrap();
        }
        Idle::NoReading => {
            wire.send(request).await.unwrap();
            wire.head().await.unwrap();
            // It would not see its end: others are served in its place.
            return std::future::pending().await;
        }
        Idle::NoWindow => {
            for stream in 0..10 {
                wire.send(get_frame(stream * 2 + 1, path)).await.unwrap();
            }
        }
        Idle::HeadWithoutEnd => wire.send(frame(kind::HEADERS, 0, 1, &get_fields(path))).await.unwrap(),
        Idle::AnswersPingsOnly | Idle::AsksBesideWhatItDoesNotTake => {
            let asks = matches!(how, Idle::AsksBesideWhatItDoesNotTake);
            let mut stream = 1;
            if asks {
                wire.send(get_frame(stream, path)).await.unwrap();
            }
            while let Ok(got) = wire.frame().await {
                // The ping that tells a client to go is not answered: a client that never hears it would never go.
                let farewell = got.payload == [0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];
                if got.kind == kind::PING && got.flags & flag::ACK == 0 && !farewell {
                    let _ = wire.send(frame(kind::PING, flag::ACK, 0, &got.payload)).await;
                }
                if asks && got.kind == kind::HEADERS {
                    stream += 2;
                    let _ = wire.send(head_frame(stream, "/v2/")).await;
                }
            }
            return;
        }
    }
    wire.closed().await;
}

async fn scene(tls: bool, seats: usize) -> Scene {
    Scene::with(Registry::plain().await, |builder| {
        let builder = builder.tune(|tuning| {
            let listen = &mut tuning.listen;
            (listen.handshake, listen.header, listen.stall) = (LIMIT, LIMIT, LIMIT);
            listen.connections = seats;
        });
        if tls { builder.tls() } else { builder }
    })
}

/// All seats are taken by clients of one kind; those that want something wait for theirs, and all get one.
async fn are_given_back(tls: bool, kinds: &[Idle]) {
    for &how in kinds {
        let seats = crowd().min(200) / 5;
        let scene = scene(tls, seats).await;
        let blob = scene.push(1, 16 * MIB);
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        let path = format!("/v2/{REPO}/blobs/{}", blob.digest);
        let start = Instant::now();
        let connected = Arc::new(Semaphore::new(0));
        let idler = || tokio::spawn(idle(scene.mirror.address(), path.clone(), how, tls, connected.clone()));
        let idlers: Vec<_> = (0..seats).map(|_| idler()).collect();
        // Whoever connects now stands behind them.
        let all = connected.acquire_many(u32::try_from(seats).unwrap());
        drop(within("seats to be taken", all).await.unwrap());
        let want = get(format!("{}/v2/", scene.mirror.url()));
        let streams = join_all((0..seats).map(|_| want.clone().send())).await;
        assert!(streams.iter().all(|reply| reply.status == 200), "{how:?}");
        let took = start.elapsed();
        assert_whole(&scene.get(&blob).fetch().await, &blob);
        let tls = if tls { " over TLS" } else { "" };
        say(&format!("seats of {how:?}{tls}: {seats} back after {} ms, the limit is {} ms", took.as_millis(), LIMIT.as_millis()));
        for idler in &idlers {
            idler.abort();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_given_back_in_time() {
    are_given_back(false, &PLAIN).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn are_given_back_in_time_over_tls() {
    are_given_back(true, &TLS).await;
}
