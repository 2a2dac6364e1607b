use futures_util::future::join_all;

use super::{REPO, file_of, used};
use crate::support::client::{Raw, Stream, get, pull};
use crate::support::gate::Gate;
use crate::support::mirror::{Builder, Mirror};
use crate::support::patience::within;
use crate::support::registry::{Blob, Fault, Image, Registry};
use crate::support::{KIB, MIB};

const NOT_STORED: &str = "millpond; fwd=miss; detail=not-stored";

fn mirror_of(registry: &Registry, max_size: &str) -> Mirror {
    Builder::new().upstream("docker.io", registry).max_size(max_size).start()
}

/// Fetches a blob that no manifest names, to its end and its commit; what Cache-Status says.
async fn fetch(mirror: &Mirror, blob: &Blob) -> String {
    let reply = get(mirror.blob(REPO, blob.digest)).fetch().await;
    assert!(reply.status == 200 && reply.is_whole() && reply.digest == blob.digest, "{reply:?}");
    mirror.settled().await;
    reply.header("cache-status").unwrap().to_owned()
}

fn blobs(registry: &Registry, seeds: std::ops::Range<u64>, len: u64) -> Vec<Blob> {
    let push = |seed| {
        let blob = Blob::seeded(seed, len);
        registry.blob(REPO, &blob);
        blob
    };
    seeds.map(push).collect()
}

#[tokio::test]
async fn ten_times_the_limit_goes_through_and_the_limit_holds_all_the_time() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain, "6MiB");
    let data = mirror.settings().data();
    for n in 0..20 {
        let tag = format!("t{n}");
        let image = plain.image(REPO, &tag, Image::layers([2 * MIB, MIB, 3 * KIB]).seed(n));
        let gate = Gate::closed();
        plain.on(plain.body_of(&image.layers[0].digest), Fault::stall(MIB, &gate).once());
        let (url, name) = (mirror.url(), tag.clone());
        let pulled = tokio::spawn(async move { pull(&url, REPO, &name).await });
        gate.reached(1).await;
        // Another is fetched while the first has half of its bytes.
        let other = get(mirror.blob(REPO, image.layers[1].digest)).fetch().await;
        assert_eq!(other.digest, image.layers[1].digest);
        assert!(used(&data) <= 6 * MIB, "{tag}, while filling: {}", used(&data));
        gate.open();
        assert_eq!(pulled.await.unwrap().map(|pulled| pulled.digest), Ok(image.digest));
        assert!(used(&data) <= 6 * MIB, "{tag}, pulled: {}", used(&data));
        mirror.settled().await;
        assert!(used(&data) <= 6 * MIB, "{tag}, settled: {}", used(&data));
    }
    assert!(mirror.metric("millpond_cache_evicted_bytes_total", &[]).await > (40 * MIB) as f64);
    let counted = mirror.metric("millpond_cache_bytes", &[]).await;
    let audit = mirror.stop().await.audit();
    audit.assert_sound().assert_temporary(0);
    assert_eq!(counted.to_string(), audit.bytes.to_string());
    assert!(audit.bytes >= 2 * MIB, "and it is not emptied for nothing: {}", audit.bytes);
}

#[tokio::test]
async fn the_least_recently_used_goes_first_also_after_a_restart() {
    let plain = Registry::plain().await;
    let [a, b, c, d] = &blobs(&plain, 1..5, 3 * MIB)[..] else { unreachable!() };
    let mirror = mirror_of(&plain, "10MiB");
    for blob in [a, b, c, a] {
        fetch(&mirror, blob).await;
    }
    assert_eq!(plain.gets_of(&a.digest), 1);
    fetch(&mirror, d).await;
    mirror.settings().audit().assert_sound().assert_holds([&a.digest, &c.digest, &d.digest]);
    fetch(&mirror, c).await;
    let again = mirror.stop().await.start();
    fetch(&again, b).await;
    again.settings().audit().assert_sound().assert_holds([&b.digest, &c.digest, &d.digest]);
}

#[tokio::test]
async fn what_is_larger_than_the_cache_streams_through_and_evicts_nothing() {
    let plain = Registry::plain().await;
    let small = blobs(&plain, 1..3, MIB);
    let mirror = mirror_of(&plain, "4MiB");
    for blob in &small {
        fetch(&mirror, blob).await;
    }
    let large = blobs(&plain, 9..10, 20 * MIB).remove(0);
    for gets in 1..3 {
        assert_eq!(fetch(&mirror, &large).await, NOT_STORED);
        assert_eq!(plain.gets_of(&large.digest), gets);
        assert!(used(&mirror.settings().data()) <= 4 * MIB);
    }
    mirror.settings().audit().assert_sound().assert_temporary(0).assert_holds(small.iter().map(|blob| &blob.digest));
}

#[tokio::test]
async fn many_share_what_streams_through() {
    let plain = Registry::plain().await;
    let large = blobs(&plain, 9..10, 20 * MIB).remove(0);
    let gate = Gate::closed();
    // Before the first byte: who comes later than the window reaches back starts a transfer of its own.
    plain.on(plain.body_of(&large.digest), Fault::stall(0, &gate));
    let mirror = mirror_of(&plain, "4MiB");
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(get(mirror.blob(REPO, large.digest)).stream().await);
    }
    gate.open();
    for reply in join_all(clients.into_iter().map(Stream::hash)).await {
        assert!(reply.is_whole() && reply.digest == large.digest, "{reply:?}");
    }
    assert_eq!(plain.gets_of(&large.digest), 1, "{}", plain.story());
}

#[tokio::test]
async fn a_blob_of_unknown_size_that_outgrows_the_cache_is_whole_for_its_client() {
    let plain = Registry::plain().await;
    let blob = blobs(&plain, 1..2, 30 * MIB).remove(0);
    plain.on(plain.body_of(&blob.digest), Fault::chunked());
    let mirror = mirror_of(&plain, "20MiB");
    fetch(&mirror, &blob).await;
    let data = mirror.settings().data();
    assert!(used(&data) <= 20 * MIB && !file_of(&data, &blob.digest).exists());
    mirror.settings().audit().assert_sound().assert_temporary(0).assert_holds([]);
}

#[tokio::test]
async fn a_blob_that_is_read_is_not_evicted_and_its_reader_gets_it_whole() {
    let plain = Registry::plain().await;
    let held = blobs(&plain, 1..2, 12 * MIB).remove(0);
    let mirror = mirror_of(&plain, "16MiB");
    fetch(&mirror, &held).await;
    // A client that takes a little and then nothing: most of it is still to be read.
    let mut slow = Raw::narrow(mirror.address(), 64 << 10).await;
    let path = mirror.blob(REPO, held.digest).replace(&mirror.url(), "");
    slow.send(format!("GET {path} HTTP/1.1\r\nHost: kit\r\nConnection: close\r\n\r\n")).await;
    assert!(slow.head().await.contains("cache-status: millpond; hit"));
    let mut bytes = slow.read(1000).await;

    let other = blobs(&plain, 2..3, 12 * MIB).remove(0);
    assert_eq!(fetch(&mirror, &other).await, NOT_STORED, "there is no room while the first is read");
    assert!(file_of(&mirror.settings().data(), &held.digest).exists());
    bytes.extend(slow.drain().await.0);
    assert!(held.digest.is_of(&bytes), "{} bytes", bytes.len());

    fetch(&mirror, &other).await;
    mirror.settings().audit().assert_sound().assert_holds([&other.digest]);
}

#[tokio::test]
async fn a_smaller_limit_after_a_restart_is_kept_at_the_next_blob() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain, "20MiB");
    for blob in &blobs(&plain, 1..6, 3 * MIB) {
        fetch(&mirror, blob).await;
    }
    let mirror = mirror.stop().await.max_size("7MiB").start();
    fetch(&mirror, &blobs(&plain, 7..8, MIB)[0]).await;
    assert!(used(&mirror.settings().data()) <= 7 * MIB, "{}", used(&mirror.settings().data()));
}

#[tokio::test]
async fn a_smaller_limit_after_a_restart_is_kept_before_any_blob_comes() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain, "20MiB");
    let blobs = blobs(&plain, 1..6, 3 * MIB);
    for blob in &blobs {
        fetch(&mirror, blob).await;
    }
    let mirror = mirror.stop().await.max_size("7MiB").start();
    let data = mirror.settings().data();
    let within_it = async {
        while used(&data) > 7 * MIB {
            mirror.settled().await;
        }
    };
    within("the limit", Box::pin(within_it)).await;
    mirror.settings().audit().assert_sound().assert_holds(blobs[3..].iter().map(|blob| &blob.digest));
}

#[tokio::test]
async fn a_crowd_that_wants_more_than_fits_is_served_and_the_limit_holds() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain, "6MiB");
    let data = mirror.settings().data();
    let crowd = (0..12).map(|n| {
        let tag = format!("t{n}");
        let image = plain.image(REPO, &tag, Image::layers([2 * MIB, MIB, 100 * KIB]).seed(n));
        let (url, data) = (mirror.url(), data.clone());
        async move {
            let pulled = pull(&url, REPO, &tag).await;
            assert_eq!(pulled.map(|pulled| pulled.digest), Ok(image.digest), "{tag}");
            assert!(used(&data) <= 6 * MIB, "{tag}: {}", used(&data));
        }
    });
    join_all(crowd).await;
    mirror.settled().await;
    let audit = mirror.stop().await.audit();
    assert!(audit.assert_sound().assert_temporary(0).bytes <= 6 * MIB);
}

#[tokio::test]
async fn ranges_of_what_streams_through_are_exact() {
    let plain = Registry::plain().await;
    let large = blobs(&plain, 9..10, 20 * MIB).remove(0);
    let mirror = mirror_of(&plain, "4MiB");
    let bytes = large.content.to_bytes();
    for (first, last) in [(0, 9), (1000, 1999), (10 * MIB, 10 * MIB + 99), (20 * MIB - 5, 20 * MIB - 1), (3 * MIB, 20 * MIB - 1)] {
        let part = get(mirror.blob(REPO, large.digest)).range(first, last).send().await;
        assert_eq!((part.status, part.header("cache-status")), (206, Some(NOT_STORED)));
        assert!(part.is_whole() && part.body == bytes[usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()], "{first}-{last}");
    }
}

#[tokio::test]
async fn late_ranges_of_what_streams_through_share_its_transfer() {
    let plain = Registry::plain().await;
    let large = blobs(&plain, 9..10, 20 * MIB).remove(0);
    let (mirror, gate, bytes) = (mirror_of(&plain, "4MiB"), Gate::closed(), large.content.to_bytes());
    plain.on(plain.body_of(&large.digest), Fault::stall(12 * MIB, &gate));
    let mut first = get(mirror.blob(REPO, large.digest)).stream().await;
    let half = first.at_least(12 << 20).await;
    // The window has moved on: what it had is gone, and what comes is for everybody.
    let ranges = (13..17).map(|at| get(mirror.blob(REPO, large.digest)).range(at * MIB, at * MIB + 999).stream());
    let ranges = join_all(ranges).await;
    gate.open();
    for (at, range) in (13..).zip(ranges) {
        let (status, rest) = (range.status, range.rest().await);
        assert!(status == 206 && rest.is_whole() && rest.body == bytes[at << 20..(at << 20) + 1000], "{at}");
    }
    let rest = first.rest().await;
    assert!(rest.is_whole() && large.digest.is_of(&[half, rest.body].concat()));
    assert_eq!(plain.gets_of(&large.digest), 1, "{}", plain.story());
}

#[tokio::test]
async fn a_cache_of_almost_nothing_serves_everything() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([MIB, KIB, 0]));
    let mirror = mirror_of(&plain, "100B");
    for _ in 0..2 {
        assert_eq!(pull(&mirror.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(image.digest));
    }
    mirror.settled().await;
    // The tag's own small file comes behind the answer, by way of tmp/.
    let small = async {
        while used(&mirror.settings().data()) > 100 {
            mirror.settled().await;
        }
    };
    within("nothing but what may be held", Box::pin(small)).await;
    mirror.stop().await.audit().assert_sound().assert_temporary(0);
}
