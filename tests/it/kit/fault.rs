use std::time::Duration;

use millpond::oci::Digest;
use tokio::time::Instant;

use super::{REPO, one_layer};
use crate::support::client::{Close, Ended, Raw, address_of, get, head};
use crate::support::gate::Gate;
use crate::support::registry::{Content, End, Fault, Image, Kind, MultiRange, Ranges, Registry, Want, gzip};
use crate::support::{KIB, MIB};

const LEN: u64 = 100 * KIB;

/// A fault, and what a client must see of it: the status, how many bytes of the body, whether it ended well, and whether
/// the bytes were those of the blob as far as they went.
struct Case {
    fault: Fault,
    status: u16,
    bytes: u64,
    whole: bool,
    right: bool,
}

#[tokio::test]
async fn every_fault_of_a_body_is_visible() {
    let case = |fault, bytes, whole, right| Case { fault, status: 200, bytes, whole, right };
    let cases = [
        case(Fault::none(), LEN, true, true),
        case(Fault::cut(0), 0, false, true),
        case(Fault::cut(1000), 1000, false, true),
        case(Fault::cut(LEN - 1), LEN - 1, false, true),
        case(Fault::cut(1000).in_chunks(), 1000, false, true),
        case(Fault::until_close().then_cut(1000), 1000, true, true),
        case(Fault::short(1000), 1000, true, true),
        case(Fault::short(1000).in_chunks(), 1000, true, true),
        case(Fault::longer_by(10), LEN + 10, true, false),
        case(Fault::longer_by(10).in_chunks(), LEN + 10, true, false),
        case(Fault::chunked(), LEN, true, true),
        case(Fault::until_close(), LEN, true, true),
        case(Fault::announces(LEN + 1), LEN, false, true),
        case(Fault::announces(LEN - 1), LEN - 1, true, true),
        case(Fault::flip(5000), LEN, true, false),
        case(Fault::flip(0).then_cut(1), 1, false, false),
        case(Fault::other_bytes(), LEN, true, false),
        case(Fault::early_hints(), LEN, true, true),
        case(Fault::ranges(Ranges::Ignored), LEN, true, true),
    ];
    for Case { fault, status, bytes, whole, right } in cases {
        let (registry, image, url) = one_layer(LEN).await;
        let struck = registry.on(Kind::Blob, fault.clone());
        let reply = get(url).send().await;
        let expected = image.layers[0].content.to_bytes();
        let seen = reply.body.len().min(expected.len());
        assert_eq!(reply.status, status, "{fault:?}");
        // Of a body that breaks off, the client library may drop what it had not handed over yet.
        let len = reply.body.len() as u64;
        assert!(len == bytes || !whole && len < bytes, "{fault:?}: {len} bytes, {:?}", reply.ended);
        assert_eq!(reply.is_whole(), whole, "{fault:?}: {:?}", reply.ended);
        assert_eq!(reply.body == expected[..seen], right, "{fault:?}");
        assert_eq!(struck.struck(), 1);
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_and_an_end_is_an_end() {
    let (registry, _, url) = one_layer(LEN).await;
    let path = url.strip_prefix(&registry.url()).unwrap();
    for (fault, close, at_least) in [
        (Fault::hang_up(), Close::Fin, 0),
        (Fault::hang_up_reset(), Close::Reset, 0),
        (Fault::cut(10), Close::Fin, 10),
        (Fault::reset(10), Close::Reset, 0),
    ] {
        registry.on(Kind::Blob, fault.clone().once());
        let mut raw = Raw::connect(address_of(&url)).await;
        raw.get(path).await;
        let (bytes, closed) = raw.drain().await;
        assert_eq!(closed, close, "{fault:?}");
        assert!(bytes.len() >= at_least, "{fault:?}");
    }
    assert!(registry.requests().iter().all(|record| record.end == Some(End::Cut)), "{}", registry.story());
}

#[tokio::test]
async fn a_reset_behind_a_gate_loses_nothing_that_was_read() {
    let (registry, _, url) = one_layer(LEN).await;
    let gate = Gate::closed();
    registry.on(Kind::Blob, Fault::stall(1000, &gate).then_reset(1000));
    let mut stream = get(url).stream().await;
    assert_eq!(stream.at_least(1000).await.len(), 1000);
    gate.reached(1).await;
    gate.open();
    let Some(Err(error)) = stream.chunk().await else { panic!("a reset") };
    assert!(format!("{error:?}").contains("ConnectionReset"), "{error:?}");
}

#[tokio::test]
async fn a_head_waits_at_a_gate_and_a_body_at_another() {
    let (registry, image, url) = one_layer(LEN).await;
    let (head_gate, body_gate) = (Gate::closed(), Gate::closed());
    registry.on(Kind::Blob.of(image.layers[0].digest), Fault::stall(70_000, &body_gate).behind(&head_gate));
    let asked = tokio::spawn(get(url).stream());
    head_gate.reached(1).await;
    assert!(!asked.is_finished());
    assert_eq!((registry.requests()[0].status, registry.count(Kind::Blob)), (None, 1));
    head_gate.open();
    let mut stream = asked.await.unwrap();
    assert_eq!(stream.at_least(70_000).await.len(), 70_000);
    body_gate.reached(1).await;
    assert_eq!((registry.requests()[0].sent, registry.requests()[0].end), (70_000, None));
    body_gate.open();
    assert_eq!(stream.rest().await.body.len() as u64, LEN - 70_000);
    registry.idle().await;
    assert_eq!(registry.requests()[0].end, Some(End::Whole));
}

#[tokio::test]
async fn a_peer_that_leaves_is_noticed_at_a_gate() {
    let (registry, _, url) = one_layer(LEN).await;
    let gate = Gate::closed();
    registry.on(Kind::Blob, Fault::stall(10, &gate));
    let mut stream = get(url).stream().await;
    stream.at_least(10).await;
    drop(stream);
    registry.idle().await;
    assert_eq!(registry.requests()[0].end, Some(End::Left));
}

#[tokio::test]
async fn a_peer_that_does_not_read_holds_the_body_back() {
    let registry = crate::support::registry::Builder::plain().send_buffer(64 << 10).start().await;
    let image = registry.image(REPO, "latest", Image::layers([200 * MIB]));
    let url = format!("{}/v2/{REPO}/blobs/{}", registry.url(), image.layers[0].digest);
    let mut raw = Raw::narrow(address_of(&url), 64 << 10).await;
    raw.get(url.strip_prefix(&registry.url()).unwrap()).await;
    raw.head().await;
    raw.read(100_000).await;
    // What was made is what was read and what fits the two kernel buffers, with room for their bookkeeping.
    let sent = registry.requests()[0].sent;
    assert!(sent < 4 * MIB, "{sent}");
    raw.reset();
    registry.idle().await;
    assert_eq!(registry.requests()[0].end, Some(End::Left));
}

#[tokio::test(start_paused = true)]
async fn a_trickle_takes_its_time() {
    let (registry, image, url) = one_layer(100 * KIB).await;
    registry.quirks(|q| q.latency = Duration::from_secs(7));
    for (fault, seconds) in [(Fault::trickle(KIB), 107), (Fault::none(), 7)] {
        registry.on(Kind::Blob, fault.once());
        let start = Instant::now();
        let fetched = get(&url).fetch().await;
        assert_eq!((fetched.digest, start.elapsed().as_secs()), (image.layers[0].digest, seconds));
    }
}

#[tokio::test]
async fn faults_take_turns_and_are_used_up() {
    let (registry, image, url) = one_layer(LEN).await;
    registry.on(Kind::Blob, Fault::status(500).times(2));
    registry.on(Kind::Blob.of(image.layers[0].digest), Fault::status(429).once());
    registry.on(Kind::Manifest, Fault::status(403));
    let third = registry.on(Want::any().ranged(false).get().within(REPO), Fault::status(503).skip(1).once());
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(get(&url).send().await.status);
    }
    assert_eq!((statuses, third.struck()), (vec![500, 500, 429, 200, 503, 200], 1));
    let manifest = format!("{}/v2/{REPO}/manifests/latest", registry.url());
    assert_eq!(head(&manifest).send().await.status, 403);
    registry.heal();
    assert_eq!(head(&manifest).send().await.status, 200);
}

#[tokio::test]
async fn other_answers_come_in_place_of_the_right_one() {
    let (registry, image, url) = one_layer(LEN).await;
    let ask = async |fault: Fault| {
        registry.on(Kind::Blob, fault.once());
        get(&url).send().await
    };
    let html = ask(Fault::html()).await;
    assert_eq!((html.status, html.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(ask(Fault::bad_gateway()).await.status, 502);
    let limited = ask(Fault::too_many(Some(7))).await;
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("7")));
    assert_eq!(ask(Fault::too_many(None)).await.header("retry-after"), None);
    let abuse = ask(Fault::hap429()).await;
    assert_eq!((abuse.status, abuse.text()), (429, "Too Many Requests (HAP429).\n"));
    let redirect = ask(Fault::redirect(302, "/elsewhere").body("<html>").header("Cache-Control", "max-age=31536000")).await;
    assert_eq!((redirect.status, redirect.header("location"), redirect.text()), (302, Some("/elsewhere"), "<html>"));
    let again = ask(Fault::redirect_loop(307)).await;
    assert_eq!((again.status, again.header("location")), (307, Some(&*url)));
    let challenged = ask(Fault::challenge()).await;
    assert!(challenged.status == 401 && challenged.header("www-authenticate").is_some());
    let zipped = ask(Fault::gzipped()).await;
    assert_eq!((zipped.header("content-encoding"), zipped.body.clone()), (Some("gzip"), gzip(&image.layers[0].content.to_bytes())));
    let dressed = ask(Fault::none().header("X-Test", "1").without("Docker-Content-Digest")).await;
    assert_eq!((dressed.header("x-test"), dressed.header("docker-content-digest")), (Some("1"), None));
    assert_eq!(ask(Fault::json(r#"{"a":1}"#)).await.json()["a"], 1);
    let garbage = {
        registry.on(Kind::Blob, Fault::raw("SSH-2.0-OpenSSH_9.9\r\n").once());
        get(&url).try_send().await
    };
    assert!(garbage.is_err(), "{garbage:?}");
}

#[tokio::test]
async fn ranges_are_right_unless_told_otherwise() {
    let (registry, image, url) = one_layer(LEN).await;
    let all = image.layers[0].content.to_bytes();
    let ask = async |range: &str, fault: Fault| {
        registry.on(Kind::Blob, fault.once());
        get(&url).header("Range", range).send().await
    };
    for (range, first, last) in
        [("bytes=500-1499", 500, 1499), ("bytes=500-", 500, LEN - 1), ("bytes=-500", LEN - 500, LEN - 1), ("bytes=0-999999", 0, LEN - 1)]
    {
        let reply = ask(range, Fault::none()).await;
        assert_eq!((reply.status, reply.header("content-range")), (206, Some(&*format!("bytes {first}-{last}/{LEN}"))), "{range}");
        assert_eq!(reply.body, all.slice(usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()), "{range}");
    }
    let beyond = ask("bytes=999999-", Fault::none()).await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some(&*format!("bytes */{LEN}"))));
    assert_eq!(ask("lines=1-2", Fault::none()).await.status, 200);
    assert_eq!(get(&url).range(0, 9).header("If-Range", "\"other\"").send().await.status, 200);

    assert_eq!(ask("bytes=10-", Fault::ranges(Ranges::Ignored)).await.body.len() as u64, LEN);
    assert_eq!(ask("bytes=10-", Fault::ranges(Ranges::Refused)).await.status, 416);
    let wrong = ask("bytes=10-19", Fault::ranges(Ranges::WrongContentRange)).await;
    assert_eq!((wrong.header("content-range"), &wrong.body), (Some(&*format!("bytes 11-19/{LEN}")), &all.slice(10..20)));
    let earlier = ask("bytes=10-19", Fault::ranges(Ranges::Earlier(4))).await;
    assert_eq!((earlier.header("content-range"), &earlier.body), (Some(&*format!("bytes 6-19/{LEN}")), &all.slice(6..20)));
    let shorter = ask("bytes=10-", Fault::ranges(Ranges::Shorter(4))).await;
    assert_eq!((shorter.header("content-range"), &shorter.body), (Some(&*format!("bytes 10-13/{LEN}")), &all.slice(10..14)));
}

#[tokio::test]
async fn several_ranges_are_answered_in_four_ways() {
    let (registry, _, url) = one_layer(LEN).await;
    for (multi, status, bytes) in
        [(MultiRange::First, 206, 2), (MultiRange::Whole, 200, LEN), (MultiRange::Refused, 400, 0), (MultiRange::Multipart, 206, 0)]
    {
        registry.on(Kind::Blob, Fault::multi_range(multi).once());
        let reply = get(&url).header("Range", "bytes=0-1,4-5").send().await;
        assert_eq!(reply.status, status, "{multi:?}");
        assert!(bytes == 0 || reply.body.len() as u64 == bytes, "{multi:?}");
        let multipart = reply.header("content-type").is_some_and(|value| value.starts_with("multipart/byteranges; boundary="));
        assert_eq!(multipart, multi == MultiRange::Multipart);
        if multipart {
            assert_eq!(reply.body.windows(14).filter(|window| window == b"Content-Range:").count(), 2);
        }
    }
}

#[tokio::test]
async fn large_and_empty_blobs_are_served() {
    let registry = Registry::plain().await;
    let large = crate::support::registry::Blob::seeded(3, 300 * MIB);
    let empty = crate::support::registry::Blob::empty();
    let sha512 = crate::support::registry::Blob::sha512(Content::bytes("hello"));
    for blob in [&large, &empty, &sha512] {
        registry.blob(REPO, blob);
    }
    let url = |digest: Digest| format!("{}/v2/{REPO}/blobs/{digest}", registry.url());
    let fetched = get(url(large.digest)).fetch().await;
    assert_eq!((fetched.len, fetched.digest, fetched.ended), (300 * MIB, large.digest, Ended::Clean));
    let nothing = get(url(empty.digest)).send().await;
    assert_eq!((nothing.status, nothing.header("content-length")), (200, Some("0")));
    assert_eq!(get(url(empty.digest)).range(0, None).send().await.status, 416);
    assert_eq!(get(url(sha512.digest)).send().await.text(), "hello");
}
