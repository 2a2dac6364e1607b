//! Requests that no honest client sends, over raw sockets.

use super::*;

/// What the server says to these bytes until it closes, or until it has said as many status lines as expected and waits for more.
async fn exchange(server: &Server, bytes: &[u8]) -> Vec<u16> {
    let mut socket = server.connect().await;
    let (mut read, mut write) = socket.split();
    // The client says that it is done, so a server that kept the connection open ends it too.
    let send = async {
        let _ = write.write_all(bytes).await;
        let _ = write.shutdown().await;
    };
    let (text, ()) = tokio::join!(read_all(&mut read), send);
    text.split("HTTP/1.").skip(1).filter_map(|answer| answer.get(2..5)?.parse().ok()).collect()
}

#[tokio::test]
async fn hostile_requests() {
    let server = Server::start(Limits::default(), None, echo);
    let many: String = "X: 1\r\n".repeat(101);
    let long = "a".repeat(200 * 1024);
    let target = "a".repeat(70_000);
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    for (what, bytes, expected) in [
        ("a good one", "GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n".into(), &[200][..]),
        ("two good ones", format!("GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n{next}"), &[200, 200]),
        ("a long target", format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n"), &[431]),
        ("too many headers", format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), &[431]),
        ("a huge header", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), &[431]),
        ("no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n".into(), &[400]),
        ("space before the colon", "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n".into(), &[400]),
        ("NUL", "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n".into(), &[400]),
        ("folded header", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n".into(), &[400]),
        (
            "length and chunks",
            format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{next}"),
            &[400],
        ),
        (
            "chunks and length",
            format!("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{next}"),
            &[400],
        ),
        ("two lengths", format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello{next}"), &[400]),
        ("signed length", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello".into(), &[400]),
        ("negative length", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n".into(), &[400]),
        ("a list of lengths", format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello{next}"), &[400]),
        ("length beyond 64 bits", "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n".into(), &[400]),
        ("unknown coding", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n".into(), &[400]),
        ("coding after chunked", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n".into(), &[400]),
        ("chunks in HTTP/1.0", "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(), &[400]),
        ("HTTP/1.0 without Host", format!("GET / HTTP/1.0\r\n\r\n{next}"), &[200]),
        ("HTTP/2.0 in text", "GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), &[400]),
        ("HTTP/9.9", "GET / HTTP/9.9\r\nHost: a\r\n\r\n".into(), &[400]),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), &[]),
        ("a body that hides a request", format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{next}{next}", next.len()), &[400]),
        ("no Host", format!("GET / HTTP/1.1\r\n\r\n{next}"), &[400]),
        ("two Hosts", format!("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n{next}"), &[400]),
        ("a user in Host", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n".into(), &[400]),
        ("a port that is none", "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n".into(), &[400]),
        ("absolute target", "GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".into(), &[421]),
        ("upgrade to h2c", format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n{next}"), &[200, 200]),
        ("binary", "\x16\x03\x01\x02\x00\x01".into(), &[400]),
        ("an unread expectation", "GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n".into(), &[200]),
        (
            "a chunk size beyond 64 bits",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n11111111111111111\r\n".into(),
            &[400],
        ),
    ] {
        assert_eq!(exchange(&server, bytes.as_bytes()).await, expected, "{what}");
    }
}
