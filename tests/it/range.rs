//! Ranges: of whole blobs, of blobs that are still arriving, of manifests.

mod growing; // while the blob arrives: what is there comes at once, what is not is waited for

use std::ops::Range;

use millpond::oci::Digest;

use crate::support::client::{Reply, get, head};
use crate::support::mirror::{Builder, Mirror};
use crate::support::registry::{Blob, Image, Registry};
use crate::support::{KIB, MIB};

const REPO: &str = "library/debian";

/// What a Range header means for a content.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Means {
    Whole,
    Part(Range<u64>),
    Parts(Vec<Range<u64>>),
    Nothing,
}

use Means::{Nothing, Part, Parts, Whole};

/// The table: that of the conformance suite, and the odd ones, for a content of 2048 bytes or more.
fn table(size: u64) -> Vec<(String, Means)> {
    let text = |text: &str, means| (text.to_owned(), means);
    vec![
        text("bytes=500-1499", Part(500..1500)),
        text("bytes=0-0", Part(0..1)),
        text("bytes=0-", Part(0..size)),
        text("bytes=500-", Part(500..size)),
        text("bytes=-500", Part(size - 500..size)),
        text("bytes=-1", Part(size - 1..size)),
        (format!("bytes=-{}", size + 10), Part(0..size)),
        (format!("bytes={}-{}", size - 48, size + 5000), Part(size - 48..size)),
        text("bytes=1000-18446744073709551616", Part(1000..size)),
        text("bytes=1000-99999999999999999999999999999999999999", Part(1000..size)),
        (format!("bytes={size}-"), Nothing),
        (format!("bytes={}-{}", size + 5000, size + 6000), Nothing),
        text("bytes=500-0", Nothing),
        text("bytes=-0", Nothing),
        text("bytes=18446744073709551616-", Nothing),
        text("bytes=abc", Whole),
        text("bytes=", Whole),
        text("bytes=1-x", Whole),
        text("bytes=--5", Whole),
        text("lines=1-2", Whole),
        text("bytes", Whole),
        text("bytes=0-99,200-299", Parts(vec![0..100, 200..300])),
        text("bytes=200-299,0-99", Parts(vec![200..300, 0..100])),
        (format!("bytes=5-5, -7 , {}-,1-2", size - 3), Parts(vec![5..6, size - 7..size, size - 3..size, 1..3])),
        (format!("bytes=0-9,{size}-"), Part(0..10)),
        text("bytes=0-,0-", Whole),
    ]
}

/// Asserts that a reply is what a range means for these bytes.
#[track_caller]
fn assert_means(reply: &Reply, means: &Means, bytes: &[u8], range: &str) {
    let size = bytes.len() as u64;
    let at = |range: &Range<u64>| &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
    let place = |range: &Range<u64>| format!("bytes {}-{}/{size}", range.start, range.end - 1);
    assert!(reply.is_whole(), "{range}: {:?}", reply.ended);
    match means {
        Whole => {
            assert!(reply.status == 200 && reply.body == bytes && reply.header("content-range").is_none(), "{range}: {}", reply.status);
        }
        Part(part) => {
            assert_eq!((reply.status, reply.header("content-range")), (206, Some(&*place(part))), "{range}");
            assert_eq!(reply.header("content-length"), Some(&*(part.end - part.start).to_string()), "{range}");
            assert!(reply.body == at(part), "{range}");
        }
        Parts(parts) => {
            assert_eq!((reply.status, reply.header("content-range")), (206, None), "{range}");
            assert_eq!(reply.header("content-length"), Some(&*reply.body.len().to_string()), "{range}");
            let found = multipart(reply);
            assert_eq!(found.iter().map(|(place, _)| place.clone()).collect::<Vec<_>>(), parts.iter().map(place).collect::<Vec<_>>());
            assert!(found.iter().zip(parts).all(|((_, bytes), part)| bytes == at(part)), "{range}");
        }
        Nothing => assert_eq!((reply.status, reply.header("content-range")), (416, Some(&*format!("bytes */{size}"))), "{range}"),
    }
}

/// The parts of a multipart answer: where each lies, and its bytes (RFC 9110 section 14.6).
fn multipart(reply: &Reply) -> Vec<(String, Vec<u8>)> {
    let boundary = reply.header("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    let delimiter = format!("\r\n--{boundary}");
    let mut body = [b"\r\n", &reply.body[..]].concat();
    // The first delimiter may stand at the very start.
    if body.starts_with(b"\r\n\r\n") {
        body.drain(..2);
    }
    let find = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).position(|window| window == text);
    let mut parts = Vec::new();
    let mut rest = &body[find(&body, delimiter.as_bytes()).expect("a delimiter") + delimiter.len()..];
    while !rest.starts_with(b"--") {
        let end = find(rest, delimiter.as_bytes()).expect("a delimiter behind each part");
        let head = find(rest, b"\r\n\r\n").unwrap();
        let lines = std::str::from_utf8(&rest[..head]).unwrap();
        let place = lines.lines().find_map(|line| line.strip_prefix("Content-Range: ")).expect("a place").to_owned();
        parts.push((place, rest[head + 4..end].to_vec()));
        rest = &rest[end + delimiter.len()..];
    }
    assert_eq!(rest, b"--\r\n");
    parts
}

/// Asks every range of the table, and each under a condition that holds and under one that does not.
async fn assert_table(url: &str, digest: &Digest, bytes: &[u8]) {
    for (range, means) in table(bytes.len() as u64) {
        let ask = || get(url).header("Range", &range);
        assert_means(&ask().send().await, &means, bytes, &range);
        assert_means(&ask().header("If-Range", &format!("\"{digest}\"")).send().await, &means, bytes, &range);
        assert_means(&ask().header("If-Range", "\"sha256:another\"").send().await, &Whole, bytes, &range);
        let bare = head(url).header("Range", &range).send().await;
        let allowed: &[u16] = match means {
            Whole => &[200],
            Part(_) => &[206],
            Parts(_) => &[200, 206],
            Nothing => &[416],
        };
        assert!(allowed.contains(&bare.status) && bare.body.is_empty(), "HEAD {range}: {}", bare.status);
    }
}

fn mirror_of(registry: &Registry) -> Mirror {
    Builder::new().upstream("docker.io", registry).start()
}

#[tokio::test]
async fn the_table_holds_in_memory_and_on_disk() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain);
    for blob in [Blob::seeded(1, 2048), Blob::seeded(2, 64 * KIB), Blob::seeded(3, 300 * KIB + 7)] {
        plain.blob(REPO, &blob);
        let url = mirror.blob(REPO, blob.digest);
        get(&url).fetch().await;
        mirror.settled().await;
        assert_table(&url, &blob.digest, &blob.content.to_bytes()).await;
        assert_eq!(plain.gets_of(&blob.digest), 1);
    }
}

#[tokio::test]
async fn the_first_request_may_be_any_of_the_table() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain);
    for (n, (range, means)) in table(2048).into_iter().enumerate() {
        let blob = Blob::seeded(n as u64, 2048);
        plain.blob(REPO, &blob);
        let reply = get(mirror.blob(REPO, blob.digest)).header("Range", &range).send().await;
        assert_means(&reply, &means, &blob.content.to_bytes(), &range);
        assert_eq!(plain.gets_of(&blob.digest), 1, "{range}");
    }
    mirror.settled().await;
    assert_eq!(mirror.stop().await.audit().assert_sound().blobs.len(), table(2048).len(), "a range fetches, and keeps, the whole");
}

#[tokio::test]
async fn an_empty_blob_has_no_ranges() {
    let plain = Registry::plain().await;
    plain.blob(REPO, &Blob::empty());
    let mirror = mirror_of(&plain);
    let url = mirror.blob(REPO, Blob::empty().digest);
    for _ in 0..2 {
        assert_means(&get(&url).send().await, &Whole, b"", "none");
        for range in ["bytes=0-", "bytes=0-0", "bytes=-1"] {
            assert_means(&get(&url).header("Range", range).send().await, &Nothing, b"", range);
        }
        mirror.settled().await;
    }
}

#[tokio::test]
async fn manifests_have_ranges_too() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([KIB]).padded_to(4096));
    let mirror = mirror_of(&plain);
    for reference in ["latest".to_owned(), image.digest.to_string()] {
        let url = mirror.manifest(REPO, reference);
        assert_table(&url, &image.digest, &image.manifest).await;
        let part = get(&url).range(0, 9).send().await;
        assert_eq!(part.header("content-type"), Some(&*image.media_type));
    }
}

#[tokio::test]
async fn a_thousand_ranges_are_bounded_work() {
    let plain = Registry::plain().await;
    let blob = Blob::seeded(4, MIB);
    plain.blob(REPO, &blob);
    let mirror = mirror_of(&plain);
    let url = mirror.blob(REPO, blob.digest);
    let bytes = blob.content.to_bytes();
    let ranges = |n: u64| (0..n).map(|n| format!("{}-{}", n * 10, n * 10 + 4)).collect::<Vec<_>>().join(",");
    let parts = |n: u64| Parts((0..n).map(|n| n * 10..n * 10 + 5).collect());
    for (n, means) in [(64, parts(64)), (1000, parts(1000)), (1100, Whole)] {
        let range = format!("bytes={}", ranges(n));
        assert_means(&get(&url).header("Range", &range).send().await, &means, &bytes, &n.to_string());
    }
    let overlapping = format!("bytes={}", vec!["0-"; 500].join(","));
    assert_means(&get(&url).header("Range", &overlapping).send().await, &Whole, &bytes, "overlapping");
}

#[tokio::test]
async fn a_blob_that_has_to_be_verified_again_has_its_ranges_too() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain);
    let blobs: Vec<Blob> = (1..).take(table(70 * KIB).len()).map(|seed| Blob::seeded(seed, 70 * KIB)).collect();
    for blob in &blobs {
        plain.blob(REPO, blob);
        get(mirror.blob(REPO, blob.digest)).fetch().await;
    }
    mirror.settled().await;
    let settings = mirror.stop().await;
    plain.down().await;
    std::fs::remove_dir_all(settings.data().join("index")).unwrap();
    let mirror = settings.start();
    for (blob, (range, means)) in blobs.iter().zip(table(70 * KIB)) {
        let url = mirror.blob(REPO, blob.digest);
        let bare = head(&url).send().await;
        assert_eq!((bare.status, bare.header("content-length")), (200, Some("71680")), "{range}");
        let reply = get(&url).header("Range", &range).send().await;
        assert_means(&reply, &means, &blob.content.to_bytes(), &range);
        assert_eq!(reply.header("cache-status"), Some("millpond; hit"), "{range}");
    }
}
