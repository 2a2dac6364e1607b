//! Each limit in time and number, and that it spares who keeps it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_slow_head_is_cut_at_its_time() {
    let server = Server::start(Limits::default(), None, echo);
    let mut socket = server.connect().await;
    let start = Instant::now();
    let (mut read, mut write) = socket.split();
    let drip = async {
        // One byte every five seconds would take minutes.
        for byte in GET {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = drip => {}
        text = read_all(&mut read) => assert_eq!(text, ""),
    }
    assert_took(start, HEADER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn silence_is_cut_at_its_time() {
    let server = Server::start(Limits::default(), None, echo);
    let mut socket = server.connect().await;
    let start = Instant::now();
    assert_eq!(read_all(&mut socket).await, "");
    assert_took(start, HEADER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_busy_one_kept() {
    let server = Server::start(Limits::default(), None, echo);
    let mut socket = server.connect().await;
    let mut idle = Instant::now();
    for _ in 0..5 {
        socket.write_all(GET).await.unwrap();
        assert!(read_to(&mut socket, "\r\n\r\n/v2/").await.starts_with("HTTP/1.1 200"));
        idle = Instant::now();
        tokio::time::sleep(HEADER_TIMEOUT.mul_f32(0.9)).await;
    }
    assert_eq!(read_all(&mut socket).await, "");
    assert_took(idle, HEADER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_is_not_the_clients_fault() {
    let (frames, body) = piecewise();
    let server = Server::start(Limits::default(), None, once(body));
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    read_to(&mut socket, "\r\n\r\n").await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    frames.send(Ok(Bytes::from_static(b"late"))).unwrap();
    drop(frames);
    assert_eq!(read_to(&mut socket, "0\r\n\r\n").await, "4\r\nlate\r\n0\r\n\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_is_cut_at_its_time() {
    let (mut end, body) = endless();
    let server = Server::start(Limits::default(), None, once(body));
    let mut socket = server.connect().await;
    let start = Instant::now();
    socket.write_all(GET).await.unwrap();
    assert!(end.recv().await.is_none());
    assert_stalled(start);
    assert!(!read_all(&mut socket).await.ends_with("0\r\n\r\n"), "the body must not look whole");
}

/// The kernel's buffers hold megabytes, and epoll reports room a third of them at a time: that must not look like a stall.
#[tokio::test(start_paused = true)]
async fn a_reader_that_is_slow_but_honest_is_kept() {
    let (mut end, body) = endless();
    let server = Server::start(Limits::default(), None, once(body));
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    let mut buffer = vec![0; 512 * 1024];
    for second in 0..600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // 20 KiB a second, five times the least.
        if second % 20 == 0 {
            socket.read_exact(&mut buffer[..400 * 1024]).await.unwrap();
            refilled(&socket).await;
        }
        assert!(end.try_recv() != Err(mpsc::error::TryRecvError::Disconnected), "cut after {second} s");
    }
}

/// Waits in real time until nothing more comes that could come at once. The paused clock stands still meanwhile: it runs ahead only when
/// there is nothing to do, and would leave a kernel that is busy elsewhere behind.
async fn refilled(socket: &TcpStream) {
    let queued = || rustix::io::ioctl_fionread(socket).unwrap();
    let (mut most, mut since) = (queued(), std::time::Instant::now());
    while since.elapsed() < Duration::from_millis(20) {
        tokio::task::yield_now().await;
        if queued() > most {
            (most, since) = (queued(), std::time::Instant::now());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_drips_is_cut() {
    let (mut end, body) = endless();
    let server = Server::start(Limits::default(), None, once(body));
    let mut socket = server.connect().await;
    let start = Instant::now();
    socket.write_all(GET).await.unwrap();
    let drip = async {
        while socket.read_u8().await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        ended = end.recv() => assert!(ended.is_none()),
        () = drip => panic!("the body outlives the connection"),
    }
    assert_stalled(start);
}

/// Buffers that still filled in the first window may have granted a second.
#[track_caller]
fn assert_stalled(start: Instant) {
    let took = start.elapsed();
    assert!(took >= STALL_TIMEOUT && took <= 2 * STALL_TIMEOUT + Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn an_address_may_not_take_every_seat() {
    let server = Server::start(Limits { per_address: 2, ..Limits::default() }, None, echo);
    let mut first = server.connect().await;
    let mut second = server.connect().await;
    for socket in [&mut first, &mut second] {
        socket.write_all(GET).await.unwrap();
        read_to(socket, "/v2/").await;
    }
    assert_eq!(read_all(&mut server.connect().await).await, "", "closed at once");
    first.shutdown().await.unwrap();
    read_all(&mut first).await;
    // The seat is free a moment after the client saw the end.
    loop {
        let mut third = server.connect().await;
        let _ = third.write_all(GET).await;
        if read_all_or(&mut third, "/v2/").await {
            break;
        }
    }
}

#[tokio::test]
async fn beyond_the_seats_clients_wait_their_turn() {
    let server = Server::start(Limits { connections: 1, ..Limits::default() }, None, echo);
    let mut first = server.connect().await;
    first.write_all(GET).await.unwrap();
    read_to(&mut first, "/v2/").await;
    let mut second = server.connect().await;
    second.write_all(GET).await.unwrap();
    let waits = tokio::time::timeout(Duration::from_millis(50), second.read_u8()).await;
    assert!(waits.is_err(), "in the backlog there is no answer");
    drop(first);
    read_to(&mut second, "/v2/").await;
}

/// Whether the text comes before the end.
async fn read_all_or(socket: &mut TcpStream, end: &str) -> bool {
    let mut text = Vec::new();
    while let Ok(byte) = socket.read_u8().await {
        text.push(byte);
        if text.ends_with(end.as_bytes()) {
            return true;
        }
    }
    false
}

#[tokio::test]
async fn a_panic_ends_one_connection() {
    let service = |client, request: Request<Incoming>| match request.uri().path() {
        "/panic" => Box::pin(async { panic!("as the test wants") }),
        "/now" => panic!("as the test wants"),
        _ => echo(client, request),
    };
    let server = Server::start(Limits::default(), None, service);
    for path in ["/panic", "/now"] {
        let mut socket = server.connect().await;
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(read_all(&mut socket).await, "");
    }
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    read_to(&mut socket, "/v2/").await;
}
