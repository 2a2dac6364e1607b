//! Outages, limits, retries: what is asked again, what is left alone.

use std::time::Duration;

use super::super::{Error, Phase, Why};
use super::server::{Reply, cut, digest, name, pass, tag};
use super::*;

#[tokio::test]
async fn what_may_pass_is_tried_three_times() {
    for status in [408, 500, 502, 503, 504] {
        let server = Server::start(move |_, before| if before < 2 { reply(status, &[], "") } else { reply(200, &[], "{}") }).await;
        Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect("the third time");
        assert_eq!(server.count(), 3, "{status}");

        let server = Server::start(move |_, _| reply(status, &[], "")).await;
        let error = Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect_err("never");
        assert_eq!((error, server.count()), (Error::Unavailable { host: server.host(), why: Why::Status(status) }, 3));
    }
}

#[tokio::test]
async fn what_will_not_pass_is_asked_once() {
    for status in [400, 403, 404, 410, 416, 418, 501, 505] {
        let server = Server::start(move |_, _| reply(status, &[], "")).await;
        Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect_err("refused");
        assert_eq!(server.count(), 1, "{status}");
    }
}

#[tokio::test]
async fn five_failures_open_the_breaker() {
    let server = Server::start(|_, _| reply(503, &[], "")).await;
    let setup = Setup::new(&[&server]);
    let upstream = setup.upstream();
    let down = format!(r#"millpond_upstream_up{{upstream="up.test",endpoint="http://{}"}} 0"#, server.host());
    for _ in 0..2 {
        assert!(!setup.counted(&down));
        upstream.manifest(&name("a"), &tag("latest")).await.expect_err("down");
    }
    assert!(setup.counted(&down));
    let error = upstream.blob(&name("a"), &digest("x"), 0).await.expect_err("left alone");
    assert_eq!(error, Error::Unavailable { host: server.host(), why: Why::Resting });
    assert_eq!(server.count(), 5, "the sixth attempt was not made");
}

#[tokio::test]
async fn the_next_endpoint_is_asked_at_once() {
    let bad = Server::start(|_, _| reply(502, &[], "")).await;
    let good = Server::start(|_, _| reply(200, &[], "{}")).await;
    let upstream = Setup::new(&[&bad, &good]).limits(|limits| limits.pause = Duration::from_secs(3600)).upstream();
    upstream.manifest(&name("a"), &tag("latest")).await.expect("from the second");
    upstream.manifest(&name("a"), &tag("latest")).await.expect("from the second, first now");
    assert_eq!((bad.count(), good.count()), (1, 2));
}

#[tokio::test]
async fn an_endpoint_that_hangs_leaves_time_for_the_next() {
    let bad = Server::start(|_, _| Reply::Hang).await;
    let good = Server::start(|_, _| reply(200, &[], "{}")).await;
    let upstream = Setup::new(&[&bad, &good]).upstream();
    let (name, latest) = (name("a"), tag("latest"));
    let patience = async {
        bad.next().await;
        pass(Duration::from_secs(13)).await;
    };
    let begun = tokio::time::Instant::now();
    let (fetched, ()) = tokio::join!(upstream.manifest(&name, &latest), patience);
    fetched.expect("from the second, in the other half of 25 s");
    assert!(begun.elapsed() < Duration::from_secs(19), "it was given more than its share: {:?}", begun.elapsed());

    let upstream = Setup::new(&[&bad]).upstream();
    let patience = async {
        bad.next().await;
        pass(Duration::from_secs(21)).await;
    };
    let (fetched, ()) = tokio::join!(upstream.manifest(&name, &latest), patience);
    assert_eq!(fetched.expect_err("it hangs"), Error::Timeout { host: bad.host(), phase: Phase::Head });
    assert_eq!(bad.count(), 2, "a wait is not repeated");
}

#[tokio::test]
async fn an_outage_outranks_an_answer_of_another_endpoint() {
    let missing = Server::start(|_, _| reply(404, &[], "")).await;
    let down = Server::start(|_, _| reply(501, &[], "")).await;
    let denied = Server::start(|_, _| reply(403, &[], "")).await;
    let ask =
        async |endpoints: &[&Server]| Setup::new(endpoints).upstream().manifest(&name("a"), &tag("latest")).await.expect_err("nothing");
    assert_eq!(ask(&[&missing, &down]).await, Error::Unavailable { host: down.host(), why: Why::Status(501) });
    assert_eq!(ask(&[&missing, &denied]).await, Error::Denied { host: denied.host(), authenticated: false });
    assert_eq!(ask(&[&missing, &missing]).await, Error::NotFound { host: missing.host() });
    let whole = Server::start(|_, _| reply(200, &[], "{}")).await;
    for partial in [&missing, &denied] {
        Setup::new(&[partial, &whole]).upstream().manifest(&name("a"), &tag("latest")).await.expect("the second has it");
    }
}

#[tokio::test]
async fn a_limit_stops_what_is_limited() {
    let server = Server::start(|seen, _| match seen.path.strip_prefix("/v2/a/blobs/") {
        Some(_) => reply(200, &[], "x"),
        None => reply(429, &[("ratelimit-remaining", "0;w=21600")], "{}"),
    })
    .await;
    let setup = Setup::new(&[&server]);
    let upstream = setup.upstream();
    for _ in 0..3 {
        let error = upstream.manifest(&name("a"), &tag("latest")).await.expect_err("limited");
        let Error::RateLimited { host, retry_after } = error else { panic!("{error:?}") };
        assert!(host == server.host() && retry_after > Duration::from_secs(50) && retry_after <= Duration::from_secs(60));
    }
    upstream.head_manifest(&name("a"), &tag("latest")).await.expect_err("limited");
    upstream.tags(&name("a"), None, None).await.expect_err("limited");
    assert_eq!(server.count(), 1);
    assert!(setup.counted(r#"millpond_upstream_ratelimit_remaining{upstream="up.test"} 0"#));
    upstream.blob(&name("a"), &digest("x"), 0).await.expect("the blobs of a pull that has begun");

    let server = Server::start(|_, _| reply(429, &[("retry-after", "99999999")], "slow down")).await;
    let upstream = Setup::new(&[&server]).upstream();
    let error = upstream.manifest(&name("a"), &tag("latest")).await.expect_err("limited");
    assert_eq!(error, Error::RateLimited { host: server.host(), retry_after: Duration::from_secs(60) });
    upstream.blob(&name("a"), &digest("x"), 0).await.expect_err("limited too");
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn nobody_listens() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = closed.local_addr().expect("an address");
    drop(closed);
    let other = Server::start(|_, _| reply(200, &[], "")).await;
    let mut setup = Setup::new(&[&other]);
    setup.settings.endpoints = vec![Url::parse(&format!("http://{addr}")).expect("an URL")];
    let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("refused");
    assert_eq!(error, Error::Unavailable { host: addr.to_string(), why: Why::Connect("connection refused".to_owned()) });
    assert!(setup.counted(r#"millpond_upstream_requests_total{upstream="up.test",kind="manifest",status="0"} 3"#));

    // Too long for a name, so that no name server is asked.
    setup.settings.endpoints = vec![Url::parse(&format!("http://{}.invalid", "a".repeat(64))).expect("an URL")];
    let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("no such name");
    assert!(matches!(error, Error::Unavailable { why: Why::Dns(_), .. }), "{error:?}");
}

#[tokio::test]
async fn a_small_body_that_breaks_off_is_fetched_again() {
    let server = Server::start(|_, before| if before == 0 { cut(100, b"{") } else { reply(200, &[], "{}") }).await;
    let fetched = Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect("the second time");
    assert_eq!((fetched.bytes.as_ref(), server.count()), (&b"{}"[..], 2));
}

#[tokio::test]
async fn one_upstream_gets_so_many_connections_and_no_more() {
    let server = Server::start(|_, _| reply(200, &[], vec![0; 1 << 20])).await;
    let mut setup = Setup::new(&[&server]);
    setup.settings.connections = 2;
    let upstream = setup.upstream();
    let (name, digest) = (name("a"), digest("x"));
    let held = upstream.blob(&name, &digest, 0).await.expect("a blob");
    let (second, ()) = tokio::join!(upstream.blob(&name, &digest, 0), pass(Duration::from_secs(26)));
    assert_eq!(second.expect_err("one at a time"), Error::Unavailable { host: "up.test".to_owned(), why: Why::Busy });
    drop(held);
    upstream.blob(&name, &digest, 0).await.expect("its turn");
    assert_eq!(server.count(), 2);
}

/// Docker Hub's limit against abuse is written by a proxy that ends its lines with a line feed only.
#[tokio::test]
async fn a_limit_in_odd_lines_is_understood() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const LIMIT: &[u8] =
        b"HTTP/1.1 429 Too Many Requests\nConnection: close\nContent-Type: text/plain\nRetry-After: 30\n\nToo Many Requests (HAP429).\n";
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let _ = stream.read(&mut [0; 1024]).await;
        stream.write_all(LIMIT).await.expect("written");
    });
    let other = Server::start(|_, _| reply(200, &[], "")).await;
    let mut setup = Setup::new(&[&other]);
    setup.settings.endpoints = vec![Url::parse(&format!("http://{addr}")).expect("an URL")];
    let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("limited");
    assert_eq!(error, Error::RateLimited { host: addr.to_string(), retry_after: Duration::from_secs(30) });
}
