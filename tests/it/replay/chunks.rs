use futures_util::future::join_all;

use super::{CONTAINERD_2, CRI_O, Client, DOCKERD, REPO, mirror_of};
use crate::support::client::{get, head};
use crate::support::gate::Gate;
use crate::support::patience::within;
use crate::support::registry::{Blob, Fault, Image, Registry};
use crate::support::{KIB, MIB};

/// `concurrent_layer_fetch_buffer`, smaller than anybody sets it: the blob has more chunks than workers.
const CHUNK: u64 = 128 * KIB;

/// containerd 2.1 and later with `concurrent_layer_fetch_buffer`: the first request of everything, manifests included, asks for
/// `bytes=0-`; if the answer is a 206, workers ask for the rest from their chunk's start to the end, and hang up after their chunk.
#[tokio::test]
async fn parallel_chunks_of_a_cold_blob_are_one_fetch() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([MIB]));
    let blob = &image.layers[0];
    let bytes = blob.content.to_bytes();
    let gate = Gate::closed();
    hub.on(hub.body_of(&blob.digest), Fault::stall(MIB / 2, &gate));
    let mirror = mirror_of(&hub);

    let manifest = CONTAINERD_2.ask_manifest(&mirror, REPO, get, image.digest).range(0, None).send().await;
    let length = image.manifest.len();
    assert_eq!((manifest.status, &manifest.body), (206, &image.manifest));
    assert_eq!(manifest.header("content-range"), Some(&*format!("bytes 0-{}/{length}", length - 1)));
    assert_eq!(manifest.header("content-length"), Some(&*length.to_string()));

    let ask = |from: u64| CONTAINERD_2.ask(&mirror, REPO, get, &format!("blobs/{}", blob.digest)).range(from, None);
    let probe = ask(0).stream().await;
    assert_eq!((probe.status, probe.header("content-range")), (206, Some(&*format!("bytes 0-{}/{MIB}", MIB - 1))));
    assert_eq!(probe.header("content-length"), Some(&*MIB.to_string()));
    // Half of them ask for what is not here yet; all have their answer's head while the upstream is silent.
    let workers = (0..MIB / CHUNK).rev().map(async |n| {
        let worker = ask(n * CHUNK).stream().await;
        let range = format!("bytes {}-{}/{MIB}", n * CHUNK, MIB - 1);
        assert_eq!((worker.status, worker.header("content-range")), (206, Some(&*range)));
        assert_eq!(worker.header("oci-namespace"), Some("docker.io"));
        (n, worker)
    });
    let mut workers = within("the heads of all chunks", join_all(workers)).await;
    workers.sort_by_key(|(n, _)| *n);
    gate.open();
    let chunk = usize::try_from(CHUNK).unwrap();
    for ((n, mut worker), expected) in workers.into_iter().zip(bytes.chunks(chunk)) {
        assert!(worker.at_least(chunk).await[..chunk] == *expected, "chunk {n}");
        drop(worker); // which hangs up in the middle of the body
    }
    drop(probe);
    mirror.settled().await;
    assert_eq!((hub.gets_of(&blob.digest), hub.bytes_of(&blob.digest)), (1, MIB), "{}", hub.story());
    mirror.stop().await.audit().assert_sound().assert_temporary(0).assert_holds([&blob.digest, &image.digest]);
}

/// A download that broke off goes on where it was: dockerd and containers/image take nothing but a 206 that says how much is left
/// of how much, to the end.
#[tokio::test]
async fn a_resumed_download_gets_its_rest_and_nothing_else() {
    let plain = Registry::plain().await;
    let blob = Blob::seeded(3, MIB);
    plain.blob(REPO, &blob);
    let mirror = mirror_of(&plain);
    for client in [DOCKERD, CRI_O, CONTAINERD_2] {
        let ask = || client.ask(&mirror, REPO, get, &format!("blobs/{}", blob.digest));
        let mut broken = ask().stream().await;
        let had = broken.at_least(1000).await.len() as u64;
        drop(broken);
        let rest = ask().range(had, None).send().await;
        assert_eq!((rest.status, rest.headers.get_all("content-range").iter().count()), (206, 1), "{client:?}");
        assert_eq!(rest.header("content-range"), Some(&*format!("bytes {had}-{}/{MIB}", MIB - 1)), "{client:?}");
        assert!(rest.is_whole() && rest.body == blob.content.to_bytes()[usize::try_from(had).unwrap()..], "{client:?}");
        mirror.settled().await;
    }
    assert_eq!((plain.gets_of(&blob.digest), plain.bytes_of(&blob.digest)), (1, MIB), "{}", plain.story());
}

/// stargz-snapshotter and SOCI: two bytes to see that there are ranges, the size, then what a file needs, for as long as the
/// container runs.
#[tokio::test]
async fn a_lazy_pull_gets_two_bytes_the_size_and_its_ranges() {
    let hub = Registry::hub().await;
    let blob = Blob::seeded(4, MIB);
    hub.blob(REPO, &blob);
    let mirror = mirror_of(&hub);
    let bytes = blob.content.to_bytes();
    let lazy = Client { agent: "stargz-snapshotter/v0.17.0", encoding: Some("identity"), ..CONTAINERD_2 };
    let target = format!("blobs/{}", blob.digest);
    let probe = lazy.ask(&mirror, REPO, get, &target).range(0, 1).send().await;
    assert_eq!((probe.status, &probe.body[..]), (206, &bytes[..2]));
    let size = lazy.ask(&mirror, REPO, head, &target).send().await;
    assert_eq!((size.status, size.header("content-length")), (200, Some(&*MIB.to_string())));
    for n in [0, 9, 3, 15] {
        let (first, last) = (n * 64 * KIB, n * 64 * KIB + 9_999);
        let part = lazy.ask(&mirror, REPO, get, &target).range(first, last).send().await;
        assert_eq!((part.status, part.header("content-range")), (206, Some(&*format!("bytes {first}-{last}/{MIB}"))));
        assert!(part.body == bytes[usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()]);
    }
    let several = lazy.ask(&mirror, REPO, get, &target).header("Range", "bytes=0-9,500-509,1000-1009").send().await;
    assert_eq!(several.status, 206);
    assert!(several.header("content-type").unwrap().starts_with("multipart/byteranges"), "{:?}", several.headers);
    mirror.settled().await;
    assert_eq!((hub.gets_of(&blob.digest), hub.bytes_of(&blob.digest)), (1, MIB), "{}", hub.story());
}
