//! Challenges and tokens.

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Semaphore;

use super::super::{Error, Flaw, Refusal, Sight, Upstream, What, Why};
use super::server::{BASIC, Reply, Seen, answer, challenge, digest, name, tag};
use super::*;

/// A registry that wants a token `t<n>`, the n-th that its own `/token` issued, and says nothing of who asks for it.
async fn registry_with_tokens() -> Server {
    Server::start_with(None, |addr| move |seen: &Seen, before| with_tokens(seen, before, &format!("http://{addr}/token"))).await
}

fn with_tokens(seen: &Seen, before: usize, realm: &str) -> Reply {
    match seen.header("authorization") {
        _ if seen.path == "/token" => reply(200, &[], format!(r#"{{"token":"t{before}","expires_in":300}}"#)),
        Some(header) if header.starts_with("Bearer t") => reply(200, &[("content-type", "application/json")], "{}"),
        _ => challenge(realm),
    }
}

#[tokio::test]
async fn the_dance_has_three_steps_and_the_second_repository_needs_two() {
    let server = registry_with_tokens().await;
    let setup = Setup::new(&[&server]);
    let upstream = setup.upstream();
    upstream.manifest(&name("library/a"), &tag("latest")).await.expect("a manifest");
    let first = ["GET /v2/library/a/manifests/latest", "GET /token", "GET /v2/library/a/manifests/latest"];
    assert_eq!(server.lines(), first);
    upstream.manifest(&name("library/b"), &tag("latest")).await.expect("a manifest");
    upstream.blob(&name("library/b"), &digest("x"), 0).await.expect("a blob");
    let blob = format!("GET /v2/library/b/blobs/{}", digest("x"));
    assert_eq!(server.lines()[3..], ["GET /token".to_owned(), "GET /v2/library/b/manifests/latest".to_owned(), blob]);
    assert_eq!(server.connections(), 1, "the bodies of refusals are read, so that the connection is kept");

    let seen = server.seen();
    assert_eq!(seen[1].query, "service=registry.test&scope=repository%3Alibrary%2Fa%3Apull");
    assert_eq!(seen[1].header("authorization"), None);
    assert_eq!(seen[2].header("authorization"), Some("Bearer t1"));
    assert!(setup.counted(r#"millpond_upstream_requests_total{upstream="up.test",kind="token",status="200"} 2"#));
    assert!(setup.counted(r#"millpond_upstream_requests_total{upstream="up.test",kind="manifest",status="401"} 1"#));
}

#[tokio::test]
async fn nothing_is_told_but_what_is_needed() {
    let server = registry_with_tokens().await;
    let upstream = Setup::new(&[&server]).with_login().upstream();
    upstream.manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    upstream.blob(&name("a"), &digest("x"), 5).await.expect("a blob");
    let allowed = ["accept", "accept-encoding", "authorization", "host", "range", "user-agent", "via"];
    for seen in server.seen() {
        assert_eq!(seen.header("via").is_some(), seen.path.starts_with("/v2/"), "{seen:?}");
        assert!(seen.headers.keys().all(|key| allowed.contains(&key.as_str())), "{seen:?}");
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
        assert_eq!(seen.header("user-agent"), Some(concat!("millpond/", env!("CARGO_PKG_VERSION"))));
        assert_eq!(seen.header("host"), Some(server.host().as_str()));
        assert!(!seen.query.contains("ns="), "{seen:?}");
    }
    let accept = server.seen()[0].header("accept").map(str::to_owned).expect("an Accept");
    assert!(accept.starts_with("application/vnd.oci.image.index.v1+json, ") && accept.ends_with(", */*"), "{accept}");
    assert!(!accept.contains("v1+prettyjws"), "{accept}");
}

#[tokio::test]
async fn credentials_buy_a_token_and_go_nowhere_else() {
    let server = registry_with_tokens().await;
    let setup = Setup::new(&[&server]).with_login();
    let upstreams = setup.upstreams();
    let upstream = upstreams.get(&server::registry()).expect("configured");
    upstream.manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    let sent: Vec<_> = server.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some(BASIC.to_owned()), Some("Bearer t1".to_owned())]);

    // A new password is a new token; an anonymous question has one of its own.
    setup.file("password", "other");
    upstreams.reload().expect("read");
    upstream.manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    assert_eq!(server.seen()[3].header("authorization"), Some("Basic dXNlcjpvdGhlcg=="));
    assert_eq!(upstream.seen_by_anyone(&name("a"), What::Manifest(&tag("latest"))).await.expect("an answer"), Sight::Shown);
    assert_eq!(server.seen()[5].path, "/token");
    assert_eq!(server.seen()[5].header("authorization"), None);
    assert_eq!(server.seen()[6].header("authorization"), Some("Bearer t5"));
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once() {
    // Of the tokens t1, t3, … the registry takes each for one request only.
    let server = Server::start_with(None, |addr| {
        move |seen: &Seen, before: usize| match seen.header("authorization") {
            None if seen.path == "/token" => with_tokens(seen, before, ""),
            Some(header) if header == format!("Bearer t{}", before - 1) => reply(200, &[], "{}"),
            _ => challenge(&format!("http://{addr}/token")),
        }
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    upstream.manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    upstream.manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    assert_eq!(server.count(), 3 + 3, "{:?}", server.lines());
}

#[tokio::test]
async fn a_token_that_does_not_reach_is_a_refusal() {
    let server = Server::start_with(None, |addr| {
        move |seen: &Seen, before| match seen.path.as_str() {
            "/token" => with_tokens(seen, before, ""),
            _ => challenge(&format!("http://{addr}/token")),
        }
    })
    .await;
    let setup = Setup::new(&[&server]);
    let anonymous = setup.upstream();
    let error = anonymous.manifest(&name("a"), &tag("latest")).await.expect_err("refused");
    assert_eq!(error, Error::Denied { host: server.host(), authenticated: false });
    assert_eq!(server.count(), 3, "{:?}", server.lines());
    anonymous.manifest(&name("b"), &tag("latest")).await.expect_err("refused");
    assert_eq!(server.count(), 3 + 2, "a fresh token is not replaced: {:?}", server.lines());
    let own = setup.with_login().upstream();
    let error = own.manifest(&name("a"), &tag("latest")).await.expect_err("refused");
    assert_eq!(error, Error::Denied { host: server.host(), authenticated: true });
    assert_eq!(own.seen_by_anyone(&name("a"), What::Blob(&digest("x"))).await.expect("an answer"), Sight::Refused);
    assert_eq!(own.seen_by_anyone(&name("a"), What::Tags).await.expect("an answer"), Sight::Refused);
}

#[tokio::test]
async fn any_number_of_callers_costs_one_token_and_the_first_may_leave() {
    let gate = std::sync::Arc::new(Semaphore::new(1));
    let at_gate = std::sync::Arc::clone(&gate);
    let server = Server::start_with(None, |addr| {
        move |seen: &Seen, before: usize| match seen.path.as_str() {
            "/token" => Reply::After(std::sync::Arc::clone(&at_gate), answer(200, &[], format!(r#"{{"token":"t{before}"}}"#))),
            _ => with_tokens(seen, before, &format!("http://{addr}/token")),
        }
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    // The first token passes the gate, and the endpoint is known to want one from then on.
    upstream.manifest(&name("warm"), &tag("latest")).await.expect("a manifest");
    assert_eq!(server.count(), 3);

    let (a, latest) = (name("a"), tag("latest"));
    let first = upstream.manifest(&a, &latest);
    assert!(Box::pin(first).now_or_never().is_none(), "it waits at the gate, and is dropped there");
    let mut calls: FuturesUnordered<_> = (0..20).map(|_| upstream.manifest(&a, &latest)).collect();
    assert!(calls.next().now_or_never().is_none(), "all wait at the gate");
    gate.add_permits(1);
    while let Some(result) = calls.next().await {
        result.expect("a manifest");
    }
    let tokens = server.seen().iter().filter(|seen| seen.path == "/token").count();
    assert_eq!(tokens, 1 + 1);
    assert_eq!(server.count(), 3 + 1 + 20);
}

#[tokio::test]
async fn a_realm_elsewhere_sees_no_connection() {
    let evil = Server::start(|_, _| reply(200, &[], r#"{"token":"x"}"#)).await;
    let port = evil.addr.port();
    for realm in [
        format!("http://127.0.0.1:{port}/token"),
        format!("http://localhost:{port}/auth.test"),
        format!("http://auth.test@127.0.0.1:{port}/"),
        format!("http://2130706433:{port}/token"),
        format!("https://auth.test.evil.test:{port}/token"),
        format!("http://auth.test:{port}/token"),
        "ftp://127.0.0.1/token".to_owned(),
    ] {
        let server = Server::start(move |_, _| challenge(&realm)).await;
        let mut setup = Setup::new(&[&server]).with_login();
        setup.settings.auth_hosts = vec!["auth.test".to_owned()];
        let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("refused");
        assert!(matches!(error, Error::RefusedTarget { why: Refusal::Realm | Refusal::Scheme, .. }), "{error:?}");
        assert_eq!(server.count(), 1, "nothing more is sent to the registry either");
    }
    assert_eq!(evil.connections(), 0);
}

#[tokio::test]
async fn a_realm_among_the_auth_hosts_gets_the_password() {
    let auth = Server::start(|seen, before| with_tokens(seen, before, "")).await;
    let realm = auth.url().join("/token").expect("an URL");
    let server = Server::start(move |seen, before| with_tokens(seen, before, realm.as_str())).await;
    let mut setup = Setup::new(&[&server]).with_login();
    setup.settings.auth_hosts = vec![auth.host()];
    setup.upstream().manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    assert_eq!(auth.seen()[0].header("authorization"), Some(BASIC));
    assert!(server.seen().iter().all(|seen| seen.header("authorization") != Some(BASIC)));
}

#[tokio::test]
async fn a_challenge_that_is_unclear_is_not_answered() {
    let headers = [
        (r#"Bearer realm="http://x"#, Flaw::Challenge),
        ("Bearer realm=\"http://127.0.0.1:1/a\", Bearer realm=\"http://127.0.0.1:1/b\"", Flaw::Challenge),
        (r#"Bearer realm="/token""#, Flaw::Challenge),
        ("Negotiate", Flaw::Challenge),
    ];
    for (header, flaw) in headers {
        let server = Server::start(move |_, _| reply(401, &[("www-authenticate", header)], "")).await;
        let error = Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect_err("refused");
        assert_eq!(error, Error::BadAnswer { host: server.host(), flaw }, "{header}");
    }
    let server = Server::start(|_, _| reply(401, &[], "")).await;
    let error = Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect_err("refused");
    assert_eq!(error, Error::Denied { host: server.host(), authenticated: false });
}

#[tokio::test]
async fn basic_goes_to_the_endpoint_when_there_is_a_login() {
    let server = Server::start(|seen, _| match seen.header("authorization") {
        Some(BASIC) => reply(200, &[], "{}"),
        _ => reply(401, &[("www-authenticate", r#"Basic realm="x""#)], ""),
    })
    .await;
    let setup = Setup::new(&[&server]);
    let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("refused");
    assert_eq!((error, server.count()), (Error::Denied { host: server.host(), authenticated: false }, 1));
    let upstream = setup.with_login().upstream();
    upstream.manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    upstream.manifest(&name("b"), &tag("latest")).await.expect("a manifest");
    assert_eq!(server.count(), 1 + 2 + 1, "it is remembered that the endpoint wants Basic");
}

#[tokio::test]
async fn what_a_token_service_may_do_wrong() {
    type Case = (fn(&Seen, usize) -> Reply, usize, fn(String) -> Error);
    let host = |addr: std::net::SocketAddr| addr.to_string();
    let cases: [Case; 9] = [
        (|_, _| reply(200, &[], "<html>"), 1, |host| Error::BadAnswer { host, flaw: Flaw::Token }),
        (|_, _| reply(200, &[], "{}"), 1, |host| Error::BadAnswer { host, flaw: Flaw::Token }),
        (|_, _| reply(200, &[], vec![b' '; (256 << 10) + 1]), 1, |host| Error::BadAnswer { host, flaw: Flaw::TooLarge(256 << 10) }),
        (|_, _| reply(302, &[("location", "http://127.0.0.1:1/")], ""), 1, |host| Error::BadAnswer { host, flaw: Flaw::Status(302) }),
        (|_, _| reply(401, &[], ""), 1, |host| Error::Denied { host, authenticated: false }),
        (|_, _| reply(403, &[], ""), 1, |host| Error::Denied { host, authenticated: false }),
        (|_, _| reply(404, &[], ""), 1, |host| Error::BadAnswer { host, flaw: Flaw::Status(404) }),
        (
            |_, _| reply(429, &[("retry-after", "7")], ""),
            1,
            |host| Error::RateLimited { host, retry_after: std::time::Duration::from_secs(7) },
        ),
        (|_, _| reply(503, &[], ""), 3, |host| Error::Unavailable { host, why: Why::Token(Box::new(Why::Status(503))) }),
    ];
    for (script, requests, expected) in cases {
        let auth = Server::start(script).await;
        let realm = auth.url().join("/token").expect("an URL");
        let server = Server::start(move |_, _| challenge(realm.as_str())).await;
        let mut setup = Setup::new(&[&server]);
        setup.settings.auth_hosts = vec![auth.host()];
        let upstream = setup.upstream();
        let error = upstream.manifest(&name("a"), &tag("latest")).await.expect_err("no token");
        assert_eq!((error, auth.count(), server.count()), (expected(host(auth.addr)), requests, 1));
    }
}

#[tokio::test]
async fn a_token_service_that_limits_is_left_alone() {
    let auth = Server::start(|_, _| reply(429, &[], "")).await;
    let realm = auth.url().join("/token").expect("an URL");
    let server = Server::start(move |_, _| challenge(realm.as_str())).await;
    let mut setup = Setup::new(&[&server]);
    setup.settings.auth_hosts = vec![auth.host()];
    let upstream: Upstream = setup.upstream();
    for _ in 0..3 {
        let error = upstream.manifest(&name("a"), &tag("latest")).await.expect_err("limited");
        assert!(matches!(error, Error::RateLimited { .. }), "{error:?}");
    }
    assert_eq!((auth.count(), server.count()), (1, 1));
}
