use tokio::time::Instant;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_in_every_way_is_resumed_and_paid_once() {
    let world = World::new(1 << 30).await;
    let content = content(1 << 20);
    let digest = Digest::sha256_of(&content);
    let part = |from: usize, to: usize| pieces(&content.slice(from..to), 30_000);
    let script = Script::new([
        Ok((size(&content), 0, then(part(0, 100_000), Act::Lost))),
        Ok((size(&content), 100_000, then(part(100_000, 300_000), Act::Silent))),
        Err(Failure::Timeout),
        // Short, and ends as if it were whole.
        Ok((None, 300_000, part(300_000, 400_000))),
        // The whole again.
        Ok((size(&content), 0, part(0, 1 << 20))),
    ]);
    let growing = world.start(&digest, &script).await;
    let reader = growing.reader(0, None).expect("reads");
    assert!(read(reader).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 100_000, 300_000, 300_000, 400_000]);
    world.check().await;
    assert!(world.held(&digest).await);
}

#[tokio::test(start_paused = true)]
async fn no_progress_is_given_up_and_frees_the_digest() {
    let world = World::new(1 << 30).await;
    let content = content(200_000);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, then(pieces(&content.slice(..150_000), 50_000), Act::Lost)))]);
    let growing = world.start(&digest, &script).await;
    assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Unavailable)));
    assert_eq!(script.asked(), [0, 150_000, 150_000, 150_000]);
    world.check().await;
    assert!(!world.held(&digest).await);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_only_trickles_is_left_for_a_better_connection() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([
        Ok((size(&content), 0, then(pieces(&content.slice(..100_000), 50_000), Act::Trickle(content.slice(100_000..), 1_000)))),
        Ok((size(&content), 220_000, pieces(&content.slice(220_000..), 50_000))),
    ]);
    let began = Instant::now();
    let growing = world.start(&digest, &script).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    // The first minute had a good start.
    assert_eq!((script.asked(), began.elapsed().as_secs()), (vec![0, 220_000], 120));
    assert_eq!(*script.blamed.lock().expect("not poisoned"), [Blame::Stuck]);
    world.check().await;
    assert!(world.held(&digest).await);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_trickles_for_ever_is_given_up_in_minutes() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    for rate in [1, 1_000] {
        let trickle = |from: usize| Ok((size(&content), from as u64, vec![Act::Trickle(content.slice(from..), rate)]));
        let minute = usize::try_from(60 * rate).expect("small");
        let script = Script::new((0..4).map(|n| trickle(n * minute)));
        let began = Instant::now();
        let growing = world.start(&digest, &script).await;
        assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Timeout)));
        assert_eq!((script.asked().len(), began.elapsed().as_secs()), (3, 180));
        world.check().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_line_is_never_cut() {
    let world = World::new(1 << 30).await;
    let content = content(20 << 20);
    let digest = Digest::sha256_of(&content);
    let script = Script::new([Ok((size(&content), 0, vec![Act::Trickle(content.clone(), 10 << 10)]))]);
    let began = Instant::now();
    world.start(&digest, &script).await.whole().await.expect("whole");
    assert_eq!((script.asked(), began.elapsed().as_secs()), (vec![0], 2048));
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_in_the_middle_is_waited_for_and_what_is_here_stays() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let limited = |seconds| Err(Failure::RateLimited(Duration::from_secs(seconds)));
    let start = || Ok((size(&content), 0, then(pieces(&content.slice(..200_000), 50_000), Act::Lost)));
    let rest = || Ok((size(&content), 200_000, pieces(&content.slice(200_000..), 50_000)));
    let script = Script::new([start(), limited(60), limited(60), rest()]);
    let began = Instant::now();
    let growing = world.start(&digest, &script).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 200_000, 200_000, 200_000]);
    assert!((120..136).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    world.check().await;

    // But not for ever.
    let digest = Digest::sha256_of(b"another");
    let script = Script::new([start(), limited(60), limited(60), limited(60), rest()]);
    let growing = world.start(&digest, &script).await;
    assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::RateLimited(_))));
    assert_eq!(script.asked(), [0, 200_000, 200_000, 200_000]);
    world.check().await;
}

#[tokio::test(start_paused = true)]
async fn wrong_bytes_that_nobody_saw_are_asked_for_at_every_other_place() {
    let world = World::new(1 << 30).await;
    let (wrong, right) = (Bytes::from(vec![7; 10_000]), content(10_000));
    let digest = Digest::sha256_of(&right);
    let answer = |content: &Bytes| Ok((size(content), 0, pieces(content, 7_000)));
    for (elsewhere, asked) in [(false, 2), (true, 4)] {
        let mut script = Script::new([answer(&wrong), answer(&wrong), answer(&wrong), answer(&right)]);
        script.elsewhere = elsewhere;
        let growing = world.start(&digest, &script).await;
        let got = read(growing.reader(0, None).expect("reads")).await;
        assert_eq!((got.is_ok_and(|got| got == right), script.asked().len()), (elsewhere, asked));
        world.check().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_announced_length_that_is_too_long_is_found_out_by_the_hash() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    for last in [None, Some(Act::Lost), Some(Act::Silent)] {
        let mut acts = pieces(&content, 50_000);
        acts.extend(last);
        let script = Script::new([Ok((Some(500_001), 0, acts))]);
        let growing = world.start(&digest, &script).await;
        // Whoever was told so gets no clean end; whoever comes next gets the blob.
        assert!(matches!(read(growing.reader(0, Some(500_001)).expect("reads")).await, Err(Failure::Corrupt)));
        world.check().await;
        assert!(world.held(&digest).await, "it is the blob all the same");
        assert_eq!(script.asked(), [0]);
        fs::remove_file(world.path(&digest)).expect("removes");
        assert!(!world.held(&digest).await);
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_has_no_more_is_asked_twice_more_and_not_in_haste() {
    let mut world = World::new(1 << 30).await;
    world.context.limits.tries = 6;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    for last in [None, Some(Act::Lost)] {
        let start = then(pieces(&content.slice(..300_000), 50_000), Act::Lost);
        let nothing = |last: &Option<Act>| Ok((size(&content), 300_000, last.iter().map(|_| Act::Lost).collect()));
        let script = Script::new([Ok((size(&content), 0, start)), nothing(&last), nothing(&last), nothing(&last), nothing(&last)]);
        let began = Instant::now();
        let growing = world.start(&digest, &script).await;
        assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Unavailable)));
        assert_eq!(script.asked(), [0, 300_000, 300_000, 300_000]);
        assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
        world.check().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_breaks_off_after_every_byte_is_not_asked_for_ever() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let byte = |at: usize| Ok((size(&content), at as u64, vec![Act::Bytes(content.slice(at..=at)), Act::Lost]));
    let script = Script::new((0..100).map(byte));
    let growing = world.start(&digest, &script).await;
    assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Unavailable)));
    assert_eq!(script.asked(), [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_body_without_a_length_is_where_the_hash_or_a_manifest_says() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let part = |from: usize, to: usize| pieces(&content.slice(from..to), 50_000);
    // Cut twice, and nobody but a manifest knows; the second answer knows the whole size.
    let script = Script::new([
        Ok((None, 0, part(0, 200_000))),
        Ok((None, 200_000, part(200_000, 300_000))),
        Ok((size(&content), 300_000, part(300_000, 500_000))),
    ]);
    let growing = world.start(&digest, &script.clone().expecting(&content)).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 200_000, 300_000]);
    world.check().await;
    fs::remove_file(world.path(&digest)).expect("removes");

    // A manifest that is wrong spoils nothing, whichever way.
    for wrong in [499_999, 600_000] {
        let mut script = Script::new([Ok((None, 0, part(0, 500_000)))]);
        script.expected = Some(wrong);
        assert!(!world.held(&digest).await);
        let growing = world.start(&digest, &script).await;
        assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
        assert_eq!(script.asked(), [0]);
        world.check().await;
        fs::remove_file(world.path(&digest)).expect("removes");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_contradicts_the_manifest_is_asked_for_once_more_and_then_left_to_the_hash() {
    let world = World::new(1 << 30).await;
    let content = content(500_000);
    let digest = Digest::sha256_of(&content);
    let page = || Ok((Some(10), 0, vec![Act::Bytes(content.slice(5..15))]));
    let right = || Ok((size(&content), 0, pieces(&content, 50_000)));
    let script = Script::new([page(), right()]).expecting(&content);
    let growing = world.start(&digest, &script).await;
    assert_eq!(growing.opened().await.expect("opens"), size(&content));
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(*script.blamed.lock().expect("not poisoned"), [Blame::Wrong]);
    world.check().await;
    fs::remove_file(world.path(&digest)).expect("removes");

    // It is the manifest that is wrong: nobody is told a size that may be taken back.
    let mut script = Script::new([right(), Ok((size(&content), 0, vec![Act::Trickle(content.clone(), 250_000)]))]);
    script.expected = Some(7);
    let growing = world.start(&digest, &script).await;
    assert_eq!(growing.opened().await.expect("opens"), None);
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == content);
    assert_eq!(script.asked(), [0, 0]);
    world.check().await;
}

#[tokio::test]
async fn wrong_bytes_never_end_cleanly_and_are_not_kept() {
    let world = World::new(1 << 30).await;
    for sized in [true, false] {
        let digest = Digest::sha256_of(b"something else");
        let content = content(500_000);
        let script = Script::new([Ok((size(&content).filter(|_| sized), 0, pieces(&content, 70_000)))]);
        let growing = world.start(&digest, &script).await;
        assert!(matches!(read(growing.reader(0, None).expect("reads")).await, Err(Failure::Corrupt)));
        world.check().await;
        assert!(!world.held(&digest).await);
    }
}

#[tokio::test]
async fn small_wrong_bytes_are_asked_for_anew_and_leave_nothing_in_the_file() {
    let world = World::new(1 << 30).await;
    let (wrong, right) = (content(60_000), content(10_000));
    let digest = Digest::sha256_of(&right);
    // Nobody says a size: the wrong one is longer.
    let script = Script::new([Ok((None, 0, pieces(&wrong, 7_000))), Ok((None, 0, pieces(&right, 7_000)))]);
    let growing = world.start(&digest, &script).await;
    assert!(read(growing.reader(0, None).expect("reads")).await.expect("whole") == right);
    world.check().await;
    assert!(world.held(&digest).await);
}
