//! The stop, and the ends of bodies.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_stop_lets_a_body_finish_and_closes_the_idle() {
    let (frames, body) = piecewise();
    let server = Server::start(Limits::default(), None, once(body));
    let (addr, stop) = (server.addr, server.stop.clone());
    let mut busy = server.connect().await;
    busy.write_all(GET).await.unwrap();
    let head = read_to(&mut busy, "\r\n\r\n").await;
    assert!(!head.to_lowercase().contains("content-length"), "{head}");
    let mut silent = server.connect().await;
    tokio::task::yield_now().await;

    stop.cancel();
    let start = Instant::now();
    assert_eq!(read_all(&mut silent).await, "");
    drop(silent);
    assert_took(start, Duration::ZERO);
    frames.send(Ok(Bytes::from_static(b"last"))).unwrap();
    assert_eq!(read_to(&mut busy, "last\r\n").await, "4\r\nlast\r\n");
    assert!(!server.done.is_finished());
    assert!(TcpStream::connect(addr).await.is_err(), "nobody is accepted any more");
    drop(frames);
    assert_eq!(read_all(&mut busy).await, "0\r\n\r\n", "whole, then closed");
    drop(busy);
    assert_eq!(server.done.await.unwrap(), Drained { finished: 2, cut: 0 });
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_between_requests_is_closed() {
    let server = Server::start(Limits::default(), None, echo);
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    read_to(&mut socket, "/v2/").await;
    let start = Instant::now();
    let (drained, rest) = tokio::join!(server.stop(), async {
        let rest = read_all(&mut socket).await;
        drop(socket);
        rest
    });
    assert_eq!((drained, rest.as_str()), (Drained { finished: 1, cut: 0 }, ""));
    assert_took(start, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_being_answered_gets_its_answer() {
    let (open, gate) = tokio::sync::watch::channel(false);
    let service = move |client, request| -> Answer {
        let mut gate = gate.clone();
        Box::pin(async move {
            gate.wait_for(|open| *open).await.unwrap();
            echo(client, request).await
        })
    };
    let server = Server::start(Limits::default(), None, service);
    let stop = server.stop.clone();
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    while open.receiver_count() < 3 {
        tokio::task::yield_now().await;
    }
    stop.cancel();
    tokio::task::yield_now().await;
    open.send(true).unwrap();
    let text = read_all(&mut socket).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("connection: close\r\n") && text.ends_with("/v2/"), "{text}");
    drop(socket);
    assert_eq!(server.done.await.unwrap().cut, 0);
}

#[tokio::test(start_paused = true)]
async fn the_drain_limit_cuts_what_is_left_and_counts_it() {
    let (frames, body) = piecewise();
    let server = Server::start(Limits { drain: Duration::from_secs(7), ..Limits::default() }, None, once(body));
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    read_to(&mut socket, "\r\n\r\n").await;
    let start = Instant::now();
    assert_eq!(server.stop().await, Drained { finished: 0, cut: 1 });
    assert_took(start, Duration::from_secs(7));
    assert!(frames.is_closed(), "the body went with the connection");
    assert_eq!(read_all(&mut socket).await, "", "broken off, not ended");
}

#[tokio::test(start_paused = true)]
async fn a_stop_while_accept_waits_for_a_seat() {
    let server = Server::start(Limits { connections: 1, ..Limits::default() }, None, echo);
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    read_to(&mut socket, "/v2/").await;
    tokio::task::yield_now().await;
    drop(socket);
    assert_eq!(server.stop().await.cut, 0);
}

#[tokio::test]
async fn a_body_that_fails_breaks_a_chunked_answer() {
    let (frames, body) = piecewise();
    let server = Server::start(Limits::default(), None, once(body));
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    frames.send(Ok(Bytes::from_static(b"half"))).unwrap();
    read_to(&mut socket, "half\r\n").await;
    frames.send(Err(io::Error::other("does not hash to its digest"))).unwrap();
    assert_eq!(read_all(&mut socket).await, "", "no last chunk");
}

#[tokio::test]
async fn a_body_that_fails_falls_short_of_its_length() {
    let (frames, body) = piecewise();
    let service = once(body);
    let service = move |client, request| -> Answer {
        let answer = service(client, request);
        Box::pin(async move {
            let mut answer = answer.await;
            answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("8"));
            answer
        })
    };
    let server = Server::start(Limits::default(), None, service);
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    frames.send(Ok(Bytes::from_static(b"half"))).unwrap();
    let text = read_to(&mut socket, "half").await;
    assert!(text.contains("content-length: 8\r\n"), "{text}");
    frames.send(Err(io::Error::other("cut"))).unwrap();
    assert_eq!(read_all(&mut socket).await, "");
}

/// The upload is refused while most of it is under way. To close with unread bytes would reset the connection, and a reset may overtake the answer.
#[tokio::test]
async fn a_refused_upload_is_not_reset() {
    let service = |_, _| -> Answer {
        Box::pin(async {
            let mut response = Response::new(full("no uploads here"));
            *response.status_mut() = hyper::StatusCode::METHOD_NOT_ALLOWED;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            response
        })
    };
    let server = Server::start(Limits::default(), None, service);
    let mut socket = server.connect().await;
    let (mut read, mut write) = socket.split();
    let upload = async {
        write.write_all(b"PUT /v2/x HTTP/1.1\r\nHost: a\r\nContent-Length: 8388608\r\n\r\n").await?;
        write.write_all(&vec![0; 8 << 20]).await?;
        write.shutdown().await
    };
    let mut text = String::new();
    let (answer, uploaded) = tokio::join!(read.read_to_string(&mut text), upload);
    assert!(text.starts_with("HTTP/1.1 405") && text.ends_with("no uploads here"), "{text:?}");
    answer.expect("ends without a reset");
    uploaded.expect("is taken, and thrown away");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_closes_lingers_a_second() {
    let server = Server::start(Limits::default(), None, echo);
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    read_to(&mut socket, "/v2/").await;
    let start = Instant::now();
    assert_eq!(server.stop().await, Drained { finished: 1, cut: 0 });
    assert_took(start, Duration::from_secs(1));
}
