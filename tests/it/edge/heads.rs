use super::{REPO, Target, assert_tells_nothing};
use crate::support::client::get;

const HOST: &str = "Host: kit\r\n";

/// Requests that are wrong as HTTP, and the statuses that are right; 0 is no answer but the end of the connection.
fn wrong() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    const BAD: &[u16] = &[400, 0];
    let mut list: Vec<(&'static str, Vec<u8>, &'static [u16])> = Vec::new();
    let mut add = |what, request: String, statuses| list.push((what, request.into_bytes(), statuses));
    let with = |headers: &str| format!("GET /v2/ HTTP/1.1\r\n{HOST}Connection: close\r\n{headers}\r\n");
    let then = |headers: &str, rest: &str| format!("GET /v2/ HTTP/1.1\r\n{HOST}{headers}\r\n{rest}");
    let smuggled = format!("GET /v2/{REPO}/manifests/smuggled HTTP/1.1\r\n{HOST}\r\n");

    // Framing: whatever follows must never be taken for a request.
    for (what, headers) in [
        ("CL and TE", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        ("TE and CL", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n"),
        ("a list of lengths", "Content-Length: 5, 6\r\n"),
        ("a signed length", "Content-Length: +5\r\n"),
        ("a negative length", "Content-Length: -1\r\n"),
        ("a long length", "Content-Length: 99999999999999999999\r\n"),
        ("a hexadecimal length", "Content-Length: 0x5\r\n"),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n"),
        ("a coding after chunked", "Transfer-Encoding: chunked, identity\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
        ("a body of ten bytes", "Content-Length: 10\r\n"),
        ("an empty chunked body", "Transfer-Encoding: chunked\r\n"),
    ] {
        add(what, then(headers, &format!("0\r\n\r\n{smuggled}")), BAD);
    }
    add("a chunk size of 17 digits", then("Transfer-Encoding: chunked\r\n", "11111111111111111\r\nx\r\n0\r\n\r\n"), BAD);
    add("a bare line feed in a chunk size", then("Transfer-Encoding: chunked\r\n", "1\nx\r\n0\r\n\r\n"), BAD);
    add("a body on HEAD", format!("HEAD /v2/ HTTP/1.1\r\n{HOST}Content-Length: 3\r\n\r\nabc"), BAD);
    add("TE in HTTP/1.0", format!("GET /v2/ HTTP/1.0\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"), BAD);

    // Header lines.
    add("no colon", with("Nonsense\r\n"), BAD);
    add("a space before the colon", with("X : y\r\n"), BAD);
    add("a NUL in a value", with("X: a\0b\r\n"), BAD);
    add("a bare CR in a value", with("X: a\rb\r\n"), BAD);
    add("a folded line", with("X: a\r\n b\r\n"), BAD);
    add("an empty name", with(": x\r\n"), BAD);
    add("a line that begins with a space", format!("GET /v2/ HTTP/1.1\r\n X: y\r\n{HOST}\r\n"), BAD);
    add("101 lines", with(&"X: y\r\n".repeat(101)), &[431, 400]);
    add("a line of 200 KiB", with(&format!("X: {}\r\n", "y".repeat(200 << 10))), &[431, 400]);
    add("a Basic login of 1 MiB", with(&format!("Authorization: Basic {}\r\n", "YQ==".repeat(1 << 18))), &[431, 400]);
    add("a head of 90 KiB in short lines", with(&format!("X: {}\r\n", "y".repeat(1000)).repeat(90)), &[431, 400]);
    add(
        "a chunk with a name of 1 MiB",
        then("Transfer-Encoding: chunked\r\n", &format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(1 << 20))),
        BAD,
    );
    add("a bearer of 100 KiB", with(&format!("Authorization: Bearer {}\r\n", "y".repeat(100 << 10))), &[431, 400, 200]);

    // Hosts.
    add("no Host", "GET /v2/ HTTP/1.1\r\n\r\n".into(), BAD);
    add("two Hosts", with(HOST), BAD);
    for host in ["", "a b", "user@kit", "kit:99999", "kit:x", "kit/x", "kit#x", "[::1"] {
        add("a bad Host", format!("GET /v2/ HTTP/1.1\r\nHost: {host}\r\n\r\n"), BAD);
    }
    for target in ["http://169.254.169.254/", "http://kit/v2/", "https://registry-1.docker.io/v2/", "ftp://kit/"] {
        add("an absolute target", format!("GET {target} HTTP/1.1\r\n{HOST}\r\n"), &[400, 421]);
    }

    // The first line.
    add("HTTP/2.0", format!("GET /v2/ HTTP/2.0\r\n{HOST}\r\n"), BAD);
    add("HTTP/9.9", format!("GET /v2/ HTTP/9.9\r\n{HOST}\r\n"), BAD);
    add("no version", format!("GET /v2/\r\n{HOST}\r\n"), BAD);
    add("no target", format!("GET HTTP/1.1\r\n{HOST}\r\n"), BAD);
    add("two targets", format!("GET /v2/ /v2/ HTTP/1.1\r\n{HOST}\r\n"), BAD);
    add("a target without a slash", format!("GET v2 HTTP/1.1\r\n{HOST}\r\n"), &[400, 421]);
    add("a fragment", format!("GET /v2/#x HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"), &[200, 400, 404]);
    add("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), BAD);
    add("a TLS hello", "\x16\x03\x01\x02\0\x01\0\x01\u{7f}\x03\x03".into(), BAD);
    add("noise", "\u{1}\u{2}\u{3}\u{4}\r\n\r\n".into(), BAD);
    add("a target of 70 000 bytes", format!("GET /v2/{} HTTP/1.1\r\n{HOST}\r\n", "a".repeat(70_000)), &[414, 431]);

    // Methods.
    for method in ["CONNECT", "TRACE", "OPTIONS", "FOO", "get", "M-SEARCH", "PROPFIND"] {
        add("a method", format!("{method} /v2/ HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"), &[400, 405]);
    }
    add("OPTIONS *", format!("OPTIONS * HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"), &[400, 404, 405]);
    add("CONNECT to a host", format!("CONNECT 169.254.169.254:80 HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"), &[400, 404, 405, 421]);
    add("a method of 2 KiB", format!("{} /v2/ HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n", "A".repeat(2048)), &[400, 405]);
    list
}

#[tokio::test]
async fn what_is_no_proper_request_is_refused_and_ends_the_connection() {
    let target = Target::new().await;
    for (what, request, statuses) in wrong() {
        let answer = target.send(&request).await;
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        assert!(statuses.contains(&status), "{what}: {status} {}", answer.map(|answer| answer.head + &answer.body).unwrap_or_default());
        if let Some(answer) = answer {
            assert_tells_nothing(what, &answer);
            assert_eq!(answer.body.matches("HTTP/1.").count(), 0, "{what}: a second answer: {}", answer.body);
        }
    }
    target.assert_untouched();
    assert_eq!(get(format!("{}/v2/", target.mirror.url())).send().await.status, 200);
}

/// What is odd, but must be answered as if it were not there.
#[tokio::test]
async fn odd_headers_are_ignored() {
    let target = Target::new().await;
    let long = [
        format!("Accept: {}\r\n", vec!["application/vnd.example.of.some.length+json"; 380].join(", ")),
        format!("If-None-Match: \"{}\"\r\n", "y".repeat(8 << 10)),
        format!("Authorization: Basic {}\r\n", "YQ==".repeat(5 << 10)),
        format!("Range: bytes={}\r\n", (0..1000).map(|n| format!("{n}-{n}")).collect::<Vec<_>>().join(",")),
        format!("Range: bytes={}\r\n", vec!["0-"; 1000].join(",")),
    ];
    let layer = target.image.layers[0].digest;
    let path = format!("/v2/{REPO}/blobs/{layer}");
    for headers in [
        "X-HTTP-Method-Override: DELETE\r\n",
        "X-Original-URL: /v2/other/manifests/x\r\nX-Rewrite-URL: /admin\r\n",
        "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: gopher\r\nX-Forwarded-Host: evil.test\r\nForwarded: for=evil.test\r\n",
        "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        "Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Expect: 100-continue\r\n",
        "Expect: something\r\n",
        "Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n",
        "Accept:\r\n",
        "Authorization: Basic %%%\r\n",
        "Authorization: Bearer ../../x\r\n",
        "Authorization: Basic YTpi\r\nAuthorization: Basic YzpkCg==\r\n",
        "Cookie: a=b; c=d\r\nReferer: http://evil.test/\r\nOrigin: http://evil.test\r\n",
        "TE: trailers\r\nTrailer: X\r\n",
        "Content-Length: 0\r\n",
        "If-Modified-Since: yesterday\r\nIf-Match: \"x\"\r\nIf-Unmodified-Since: never\r\n",
        "If-None-Match: \"\r\n",
        "Range: bytes=abc\r\n",
        "Via: 1.1 mirror\r\nMax-Forwards: 0\r\nCache-Control: no-cache\r\nPragma: no-cache\r\n",
        "Accept: */*;q=0\r\n",
        "Accept: application/vnd.docker.distribution.manifest.v1+json\r\n",
        "If-None-Match: \"sha256:garbage\", W/\"x\r\n",
    ]
    .into_iter()
    .chain(long.iter().map(String::as_str))
    {
        let answer = target.send(format!("GET {path} HTTP/1.1\r\nHost: kit\r\nConnection: close\r\n{headers}\r\n")).await.unwrap();
        let other = match headers.get(..6) {
            Some("Expect") => 417,
            // A thousand parts, if they are asked for in so many words, and no more bytes than there are.
            Some("Range:") => 206,
            _ => 200,
        };
        let shown: String = headers.chars().take(80).collect();
        assert!(answer.status == 200 || answer.status == other, "{shown}: {}", answer.status);
        assert!(!answer.head.contains("content-encoding"), "{headers}: {}", answer.head);
        assert!(!answer.head.contains("evil.test") && !answer.head.contains("access-control"), "{headers}: {}", answer.head);
    }
    for request in target.plain.requests() {
        for name in ["x-forwarded-for", "x-forwarded-host", "forwarded", "cookie", "x-http-method-override", "x-original-url", "upgrade"] {
            assert!(request.header(name).is_none(), "{name}: {}", request.line());
        }
        assert!(!request.header("authorization").unwrap_or_default().contains("YTpi"), "{}", request.line());
        // Its own name, and none that a client made up.
        assert!(request.header("via").is_none_or(|via| via.starts_with("1.1 millpond-") && !via.contains("mirror")), "{}", request.line());
    }
    assert_eq!(target.plain.gets_of(&layer), 1, "{}", target.plain.story());
}

#[tokio::test]
async fn old_and_lone_ways_of_http_are_served() {
    let target = Target::new().await;
    for request in [
        "GET /v2/ HTTP/1.0\r\n\r\n",
        "GET /v2/ HTTP/1.0\r\nHost: kit\r\n\r\n",
        "\r\nGET /v2/ HTTP/1.1\r\nHost: kit\r\nConnection: close\r\n\r\n",
    ] {
        let answer = target.send(request).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, "{}"), "{request:?}");
    }
}
