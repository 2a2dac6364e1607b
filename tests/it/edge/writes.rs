use super::{REPO, Target, assert_error_body, assert_tells_nothing};
use crate::support::client::{Close, Raw, get};

/// A body that nobody should wait for, in bytes.
const HUGE: u64 = 1 << 30;

#[tokio::test]
async fn a_push_is_refused_before_its_body_is_read() {
    let target = Target::new().await;
    let digest = target.image.digest;
    let writes = [
        ("PUT", format!("/v2/{REPO}/manifests/latest")),
        ("PUT", format!("/v2/{REPO}/manifests/{digest}")),
        ("POST", format!("/v2/{REPO}/blobs/uploads/")),
        ("POST", format!("/v2/{REPO}/blobs/uploads/?mount={digest}&from=library/other")),
        ("POST", format!("/v2/{REPO}/blobs/uploads/?digest={digest}")),
        ("PATCH", format!("/v2/{REPO}/blobs/uploads/1234")),
        ("PUT", format!("/v2/{REPO}/blobs/uploads/1234?digest={digest}")),
        ("DELETE", format!("/v2/{REPO}/manifests/latest")),
        ("DELETE", format!("/v2/{REPO}/blobs/{digest}")),
        ("PUT", format!("/v2/docker.io/{REPO}/manifests/latest")),
        ("PUT", format!("/docker.io/v2/{REPO}/manifests/latest")),
        ("PUT", format!("/v2/{REPO}/manifests/latest?ns=docker.io")),
        ("POST", "/v2/".into()),
        ("DELETE", "/v2/_catalog".into()),
    ];
    for (method, path) in writes {
        for framing in [format!("Content-Length: {HUGE}"), "Transfer-Encoding: chunked".into(), "Content-Length: 0".into()] {
            let what = format!("{method} {path} {framing}");
            // Not a byte of the body is sent: the answer must come all the same, and then the end.
            let answer = target.send(format!("{method} {path} HTTP/1.1\r\nHost: kit\r\n{framing}\r\n\r\n")).await.expect(&what);
            assert_eq!(answer.status, 405, "{what}: {}", answer.body);
            assert_error_body(&what, &answer);
            assert!(answer.body.contains("\"UNSUPPORTED\""), "{what}: {}", answer.body);
            assert!(answer.head.contains("\r\nallow: get, head") && answer.head.contains("connection: close"), "{what}: {}", answer.head);
            assert_tells_nothing(&what, &answer);
            assert_eq!(answer.close, Close::Fin, "{what}");
        }
    }
    target.assert_untouched();
}

#[tokio::test]
async fn a_client_that_sends_its_body_all_the_same_sees_the_answer() {
    let target = Target::new().await;
    let mut raw = Raw::connect(target.mirror.address()).await;
    raw.send(format!("PUT /v2/{REPO}/manifests/latest HTTP/1.1\r\nHost: kit\r\nContent-Length: {HUGE}\r\n\r\n")).await;
    // Some of it; a server that does not read must not reset before the answer is seen.
    let _ = raw.try_send(vec![0; 64 << 10]).await;
    assert!(raw.head().await.starts_with("HTTP/1.1 405"));
    drop(raw);
    target.assert_untouched();
}

#[tokio::test]
async fn what_follows_a_refused_push_is_no_request() {
    let target = Target::new().await;
    let inner = format!("GET /v2/{REPO}/manifests/latest HTTP/1.1\r\nHost: kit\r\n\r\n");
    let request = format!("POST /v2/{REPO}/blobs/uploads/ HTTP/1.1\r\nHost: kit\r\nContent-Length: {}\r\n\r\n{inner}{inner}", inner.len());
    let answer = target.send(request).await.unwrap();
    assert_eq!((answer.status, answer.body.matches("HTTP/1.").count()), (405, 0), "{}", answer.body);
    target.assert_untouched();
    assert_eq!(get(format!("{}/v2/", target.mirror.url())).send().await.status, 200);
}
