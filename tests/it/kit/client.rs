use millpond::oci::Digest;

use super::one_layer;
use crate::support::audit::audit;
use crate::support::client::{Close, Connection, Raw, address_of, get};
use crate::support::gate::Gate;
use crate::support::registry::{Fault, Kind, Want};
use crate::support::{KIB, MIB};

#[tokio::test]
async fn a_connection_takes_one_request_after_the_other() {
    let (registry, image, url) = one_layer(10 * KIB).await;
    let mut connection = Connection::open(&get(&url)).await.unwrap();
    for _ in 0..3 {
        let reply = connection.ask(get(&url)).await.unwrap().rest().await;
        assert_eq!(Digest::sha256_of(&reply.body), image.layers[0].digest);
    }
    get(&url).send().await;
    assert_eq!(registry.peak(Kind::Blob), 1);
    let connections: Vec<u64> = registry.requests().iter().map(|record| record.connection).collect();
    assert_eq!(connections, [1, 1, 1, 2]);
}

#[tokio::test]
async fn a_raw_client_sends_and_reads_what_it_likes() {
    let (registry, image, url) = one_layer(MIB).await;
    let path = url.strip_prefix(&registry.url()).unwrap().to_owned();
    let mut raw = Raw::connect(address_of(&url)).await;
    raw.send(format!("GET {path} HTTP/1.1\r\nhost: kit\r\nX-")).await;
    raw.send("Odd: 1\r\nConnection: close\r\n\r\n").await;
    assert!(raw.head().await.starts_with("HTTP/1.1 200 OK\r\n"));
    let first = raw.read(10).await;
    let (rest, close) = raw.drain().await;
    assert_eq!((Digest::sha256_of(&[first, rest].concat()), close), (image.layers[0].digest, Close::Fin));
    assert_eq!(registry.requests()[0].header("x-odd"), Some("1"));
    registry.forget();
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn the_log_is_waited_for() {
    let (registry, image, url) = one_layer(MIB).await;
    let gate = Gate::closed();
    registry.on(Kind::Blob, Fault::stall(500 * KIB, &gate));
    let clients: Vec<_> = (0..5).map(|_| tokio::spawn(get(&url).fetch())).collect();
    registry.asked(5, Kind::Blob.of(image.layers[0].digest).get()).await;
    gate.reached(5).await;
    assert_eq!(registry.peak(registry.body_of(&image.layers[0].digest)), 5);
    assert_eq!(registry.bytes_of(&image.layers[0].digest), 5 * 500 * KIB);
    gate.open();
    for client in clients {
        assert_eq!(client.await.unwrap().digest, image.layers[0].digest);
    }
    registry.idle().await;
    assert_eq!(registry.count(Want::any()), 5);
    assert_eq!((registry.bytes_of(&image.layers[0].digest), registry.gets_of(&image.layers[0].digest)), (5 * MIB, 5));
}

#[test]
fn the_audit_finds_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let put = |path: &str, bytes: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    audit(folder.path()).assert_sound().assert_temporary(0).assert_holds([]);
    let good = Digest::sha256_of(b"good");
    put(&format!("blobs/sha256/{}/{}", &good.hex()[..2], good.hex()), "good");
    audit(folder.path()).assert_sound().assert_holds([&good]);
    let other = Digest::sha256_of(b"other");
    put(&format!("blobs/sha256/{}/{}", &other.hex()[..2], other.hex()), "othe");
    put(&format!("blobs/sha256/00/{}", good.hex()), "good");
    put("blobs/sha256/stray", "");
    put("tmp/half", "ha");
    put("quarantine/bad", "");
    let found = audit(folder.path());
    assert_eq!((found.wrong.len(), found.temporary.len(), found.quarantined.len(), found.bytes), (3, 1, 1, 4), "{found:?}");
    assert!(std::panic::catch_unwind(|| found.assert_sound().bytes).is_err());
}
