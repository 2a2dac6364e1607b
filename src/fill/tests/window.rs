use tokio::time::Instant;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_taken_for_a_slow_upstream() {
    let world = World::new(1 << 20).await;
    let content = content(8 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 4 << 10)))]);
    let growing = world.start(&digest, &script).await;
    let mut reader = growing.reader(0, None).expect("reads");
    let began = Instant::now();
    // A little more than the least that a reader of a window must take, which is more than the least for an upstream: but
    // whatever it is, it is not the upstream that is measured.
    while let Some(bytes) = reader.next().await.expect("bytes") {
        tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / 5_000.0)).await;
    }
    assert!(began.elapsed() > Duration::from_secs(1_000), "{:?}", began.elapsed());
    assert_eq!(script.asked(), [0]);
}

#[tokio::test]
async fn what_does_not_fit_is_passed_through() {
    let world = World::new(1 << 20).await;
    let content = content(20 << 20);
    let digest = Digest::sha256_of(&content);
    for size in [size(&content), None] {
        let script = Script::new([Ok((size, 0, pieces(&content, 100_000)))]);
        let growing = world.start(&digest, &script).await;
        assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
        world.check().await;
        assert!(!world.held(&digest).await);
    }
}

#[tokio::test]
async fn a_blob_of_unknown_size_evicts_no_more_than_its_share_or_what_a_manifest_says() {
    let mib = 1 << 20;
    let large = content(12 * mib);
    let digest = Digest::sha256_of(&large);
    // A cache of 8 MiB that is full, and a blob larger than that whose size nobody says, or a manifest does; and one that
    // would fit. A little more is evicted than is needed, so that it is one blob more.
    for (len, expected, kept, stays) in [(12, false, false, 5), (12, true, false, 8), (3, true, true, 4), (1, false, true, 5)] {
        let world = World::new(8 * mib as u64).await;
        let small = (0..8_u8).map(|n| Bytes::from(vec![n; mib])).collect::<Vec<_>>();
        for content in &small {
            let script = Script::new([Ok((size(content), 0, pieces(content, 500_000)))]);
            world.start(&Digest::sha256_of(content), &script).await.whole().await.expect("whole");
            world.settle().await;
        }
        let content = large.slice(..len * mib);
        let digest = if content.len() == large.len() { digest } else { Digest::sha256_of(&content) };
        let mut script = Script::new([Ok((None, 0, pieces(&content, 100_000)))]);
        script.expected = size(&content).filter(|_| expected);
        let growing = world.start(&digest, &script).await;
        assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
        world.check().await;
        let mut held = 0;
        for content in &small {
            held += usize::from(world.held(&Digest::sha256_of(content)).await);
        }
        assert_eq!((held, world.held(&digest).await), (stays, kept), "{len} MiB, expected: {expected}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_delays_the_others_once() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let growing = world.start(&digest, &script).await;
    let mut stuck = growing.reader(0, None).expect("reads");
    let began = Instant::now();
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert!(began.elapsed() < world.context.limits.stall * 2, "{:?}", began.elapsed());
    assert!(matches!(stuck.next().await, Err(Failure::Behind)));
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_has_its_place_in_memory_or_waits_for_one() {
    let mut world = World::new(1 << 20).await;
    world.context.limits.windows = 16 << 20;
    world.context.windows = Windows::new(&world.context.limits);
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let piece = 100_000;
    let mut began = Vec::new();
    // Two places, and as much besides.
    for n in 0..3 {
        let digest = if n == 2 { digest } else { Digest::sha256_of(&[n]) };
        let script = Script::new([Ok((size(&content), 0, pieces(&content, piece)))]);
        let before = world.fetched();
        let growing = world.start(&digest, &script).await;
        let reader = growing.reader(0, None).expect("reads");
        tokio::time::sleep(Duration::from_secs(1)).await;
        began.push((growing, reader, world.fetched() - before));
    }
    let (_, third, nothing) = began.pop().expect("three");
    assert_eq!(nothing, 0, "it waits");
    assert!(began.iter().all(|(.., fetched)| *fetched > 0));
    assert!(world.fetched() <= 16 << 20, "{} bytes in memory", world.fetched());
    // The place is free when nobody reads from it any more.
    let (growing, reader, _) = began.remove(0);
    drop((growing, reader));
    assert!(read(third).await.expect("whole") == content);

    // But nobody waits for ever.
    for (n, gives_up) in [(3, false), (4, true)] {
        let script = Script::new([Ok((size(&content), 0, pieces(&content, piece)))]);
        let growing = world.start(&Digest::sha256_of(&[n]), &script).await;
        let opened = growing.opened().await;
        assert_eq!(matches!(opened, Err(Failure::Unavailable)), gives_up, "{opened:?}");
        let reader = growing.reader(0, None).expect("reads");
        began.push((growing, reader, 0));
    }
    drop(began);
    tokio::time::sleep(world.context.limits.stall * 2).await;
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_window_is_not_full_of_what_was_read() {
    let mut world = World::new(1 << 20).await;
    world.context.limits.windows = 0;
    world.context.windows = Windows::new(&world.context.limits);
    // Large reads, of which the last but one reaches into the tail: nobody may have its end, and the rest is still to come.
    for len in [1_420_000, 1_400_001, 2_100_000, 2_101_000] {
        let content = content(len);
        let digest = Digest::sha256_of(&content);
        let script = Script::new([Ok((size(&content), 0, vec![Act::Trickle(content.clone(), 700_000)]))]);
        let growing = world.start(&digest, &script).await;
        let began = Instant::now();
        assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
        assert!(began.elapsed() < world.context.limits.stall, "{:?}", began.elapsed());
        world.settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_reader_of_a_later_range_keeps_a_window_going() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let growing = world.start(&digest, &script).await;
    let mut first = growing.reader(0, None).expect("reads");
    first.next().await.expect("bytes");
    drop(first);
    tokio::time::sleep(world.context.limits.stall / 2).await;
    let range = growing.reader(20 << 20, Some(21 << 20)).expect("reads");
    assert!(read(range).await.expect("the range") == content.slice(20 << 20..21 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_window_that_nobody_can_join_any_more_does_not_linger() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = || Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let first = world.start(&digest, &script()).await;
    let mut reader = first.reader(0, None).expect("reads");
    let mut read = 0;
    while read < 10 << 20 {
        read += reader.next().await.expect("bytes").expect("some").len();
    }
    // A later range joins it; the start is another's business, and then nobody finds the first.
    assert!(matches!(world.context.cache.blob_from(&digest, 25 << 20).await, Found::Growing(found) if found.is(&first)));
    let permit = world.permit(&digest).await;
    drop(reader);
    let began = Instant::now();
    assert!(matches!(first.whole().await, Err(Failure::Abandoned)));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(permit);
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_window_that_nobody_reads_is_given_up() {
    let world = World::new(1 << 20).await;
    let content = content(30 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 100_000)))]);
    let growing = world.start(&digest, &script).await;
    assert!(matches!(growing.whole().await, Err(Failure::Abandoned)));
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_a_window_is_not_taken_for_a_silent_upstream() {
    let mut world = World::new(1 << 20).await;
    world.context.limits.silence = Duration::from_secs(2);
    let content = content(8 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, pieces(&content, 200_000)))]);
    let growing = world.start(&digest, &script).await;
    let mut reader = growing.reader(0, None).expect("reads");
    while let Some(_bytes) = reader.next().await.expect("bytes") {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(script.asked(), [0], "the upstream was asked again for what it was sending");
}
