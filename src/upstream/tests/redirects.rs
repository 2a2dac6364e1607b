//! Redirects: where they lead, and what goes along.

use super::super::redirect::host_of;
use super::super::{Error, Flaw, Refusal, Why};
use super::server::{BASIC, Seen, challenge, digest, name, read, tag};
use super::*;

/// A storage that delivers `content` to whoever does not log in, as S3 and Azure do.
async fn storage(content: &'static str) -> Server {
    Server::start(move |seen, _| match seen.header("authorization") {
        Some(_) => reply(400, &[], "Only one auth mechanism allowed"),
        None => reply(200, &[], content),
    })
    .await
}

/// A registry that wants Basic and then redirects.
async fn redirecting(status: u16, location: String) -> Server {
    Server::start(move |seen, _| match seen.header("authorization") {
        Some(BASIC) => reply(status, &[("location", &location)], "<html>moved</html>"),
        _ => reply(401, &[("www-authenticate", "Basic realm=x")], ""),
    })
    .await
}

#[tokio::test]
async fn the_storage_sees_the_range_and_no_authorization() {
    for status in [301, 302, 303, 307, 308] {
        let storage = storage("content").await;
        let server = redirecting(status, format!("{}data?sig=secret", storage.url())).await;
        let upstream = Setup::new(&[&server]).with_login().upstream();
        let blob = upstream.blob(&name("a"), &digest("content"), 3).await.expect("a blob");
        assert_eq!((blob.start, blob.size, host_of(&blob.spot.url)), (0, Some(7), storage.host()), "a 200 begins at 0");
        assert_eq!(read(blob).await, "content");
        let seen = storage.seen();
        assert_eq!((seen[0].path.as_str(), seen[0].query.as_str()), ("/data", "sig=secret"));
        assert_eq!((seen[0].header("authorization"), seen[0].header("range")), (None, Some("bytes=3-")));
        assert_eq!(server.connections(), 1, "the bodies of redirects are read, so that the connection is kept");
    }
}

#[tokio::test]
async fn authorization_stays_at_its_origin_and_never_comes_back() {
    // gcr: a relative Location, on the same host.
    let server = Server::start(|seen, _| match (seen.header("authorization"), seen.path.as_str()) {
        (None, _) => reply(401, &[("www-authenticate", "Basic realm=x")], ""),
        (Some(_), "/downloads/1") => reply(200, &[], "content"),
        (Some(_), _) => reply(302, &[("location", "/downloads/1")], ""),
    })
    .await;
    let upstream = Setup::new(&[&server]).with_login().upstream();
    upstream.blob(&name("a"), &digest("content"), 0).await.expect("a blob");
    assert_eq!(server.seen()[2].header("authorization"), Some(BASIC));

    // There, on there, and back to where it began.
    let start = std::sync::Arc::new(std::sync::OnceLock::<Url>::new());
    let back = std::sync::Arc::clone(&start);
    let there = Server::start(move |seen, _| match seen.path.as_str() {
        "/1" => reply(307, &[("location", "/2")], ""),
        _ => reply(307, &[("location", back.get().expect("known").as_str())], ""),
    })
    .await;
    let location = format!("{}1", there.url());
    let server = Server::start(move |seen, _| match (seen.header("authorization"), seen.path.as_str()) {
        (_, "/back") => reply(200, &[], "content"),
        (None, _) => reply(401, &[("www-authenticate", "Basic realm=x")], ""),
        (Some(_), _) => reply(307, &[("location", &location)], ""),
    })
    .await;
    start.set(server.url().join("/back").expect("an URL")).expect("once");
    let upstream = Setup::new(&[&server]).with_login().upstream();
    upstream.blob(&name("a"), &digest("content"), 0).await.expect("a blob");
    assert_eq!(there.lines(), ["GET /1", "GET /2"]);
    assert!(there.seen().iter().all(|seen| seen.header("authorization").is_none()), "{:?}", there.seen());
    assert_eq!((server.seen()[2].path.as_str(), server.seen()[2].header("authorization")), ("/back", None));
}

#[tokio::test]
async fn a_loop_ends_after_five_hops() {
    let server = Server::start(|seen, _| reply(307, &[("location", &format!("{}x", seen.path))], "")).await;
    let error = Setup::new(&[&server]).upstream().blob(&name("a"), &digest("x"), 0).await.expect_err("a loop");
    assert_eq!((error, server.count()), (Error::BadAnswer { host: server.host(), flaw: Flaw::Redirects }, 6));
}

#[tokio::test]
async fn where_no_redirect_may_lead() {
    let target = storage("content").await;
    for (location, why) in [
        (format!("http://user:password@{}/", target.host()), Refusal::Userinfo),
        (format!("gopher://{}/", target.host()), Refusal::Scheme),
        ("file:///etc/passwd".to_owned(), Refusal::Scheme),
    ] {
        let server = Server::start(move |_, _| reply(307, &[("location", &location)], "")).await;
        let error = Setup::new(&[&server]).upstream().blob(&name("a"), &digest("x"), 0).await.expect_err("refused");
        assert!(matches!(&error, Error::RefusedTarget { why: w, .. } if *w == why), "{error:?}");
        assert!(!error.to_string().contains("password"), "{error}");
    }
    let server = Server::start(|_, _| reply(307, &[], "")).await;
    let error = Setup::new(&[&server]).upstream().blob(&name("a"), &digest("x"), 0).await.expect_err("refused");
    assert_eq!(error, Error::BadAnswer { host: server.host(), flaw: Flaw::Location });
    assert_eq!(target.connections(), 0);
}

/// 127.0.0.2 plays the private network here, 127.0.0.1 the public internet.
#[tokio::test]
async fn only_a_registry_of_the_private_network_redirects_into_it() {
    let content = |_| |_: &Seen, _: usize| reply(200, &[], "content");
    let private = Server::start_at("127.0.0.2", None, content).await;
    let public = Server::start_at("127.0.0.1", None, content).await;
    let ask = async |registry: &str, target: &str| {
        let location = target.to_owned();
        let server = Server::start_at(registry, None, |_| move |_: &Seen, _| reply(307, &[("location", &location)], "")).await;
        let setup = Setup::new(&[&server]).limits(|limits| limits.is_public = |ip| ip != std::net::IpAddr::from([127, 0, 0, 2]));
        setup.upstream().blob(&name("a"), &digest("content"), 0).await.map(read)
    };
    let port = private.addr.port();
    for spelling in ["127.0.0.2", "127.2", "0x7f000002", "2130706434", "0177.0.0.2"] {
        let error = ask("127.0.0.1", &format!("http://{spelling}:{port}/")).await.map(|_| ()).expect_err("refused");
        assert!(matches!(&error, Error::RefusedTarget { target, why: Refusal::Address, .. } if *target == private.host()), "{error:?}");
    }
    assert_eq!(private.connections(), 0);
    ask("127.0.0.1", public.url().as_str()).await.map(|_| ()).expect("from public to public");
    ask("127.0.0.2", private.url().as_str()).await.map(|_| ()).expect("from private to private");
}

#[tokio::test]
async fn a_redirect_to_a_configured_endpoint_is_followed_wherever_it_is() {
    let private = Server::start_at("127.0.0.2", None, |_| |_: &Seen, _: usize| reply(200, &[], "{}")).await;
    let location = private.url().to_string();
    let server = Server::start(move |_, _| reply(307, &[("location", &location)], "")).await;
    let setup = Setup::new(&[&server, &private]).limits(|limits| limits.is_public = |ip| ip != std::net::IpAddr::from([127, 0, 0, 2]));
    setup.upstream().manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    assert_eq!(private.lines(), ["GET /"]);
}

/// registry.k8s.io sends manifests to pkg.dev, which wants a token of its own.
#[tokio::test]
async fn another_registry_gets_an_anonymous_token_of_its_own() {
    let other = Server::start_with(None, |addr| {
        move |seen: &Seen, _| match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", None) => reply(200, &[], r#"{"token":"other"}"#),
            (_, Some("Bearer other")) => reply(200, &[], "{}"),
            _ => challenge(&format!("http://{addr}/token")),
        }
    })
    .await;
    let location = format!("{}v2/k8s/images/pause/manifests/3.9", other.url());
    let server = redirecting(307, location).await;
    let upstream = Setup::new(&[&server]).with_login().upstream();
    upstream.manifest(&name("pause"), &tag("3.9")).await.expect("a manifest");
    let path = "GET /v2/k8s/images/pause/manifests/3.9";
    assert_eq!(other.lines(), [path, "GET /token", path]);
    assert_eq!(other.seen()[1].query, "service=registry.test&scope=repository%3Ak8s%2Fimages%2Fpause%3Apull");
    assert_eq!(other.seen()[2].header("authorization"), Some("Bearer other"));

    let evil = Server::start(|_, _| reply(200, &[], r#"{"token":"x"}"#)).await;
    let realm = evil.url().join("/token").expect("an URL");
    let other = Server::start(move |_, _| challenge(realm.as_str())).await;
    let server = redirecting(307, format!("{}v2/a/manifests/3.9", other.url())).await;
    let error = Setup::new(&[&server]).with_login().upstream().manifest(&name("a"), &tag("3.9")).await.expect_err("refused");
    assert!(matches!(error, Error::RefusedTarget { why: Refusal::Realm, .. }), "{error:?}");
    assert_eq!(evil.connections(), 0);
}

#[tokio::test]
async fn a_storage_that_refuses_is_asked_once_more_with_a_fresh_redirect() {
    for status in [400, 401, 403, 410] {
        let storage =
            Server::start(move |_, before| if before == 0 { reply(status, &[], "expired") } else { reply(200, &[], "content") }).await;
        let location = storage.url().to_string();
        let server = Server::start(move |_, _| reply(307, &[("location", &location)], "")).await;
        let blob = Setup::new(&[&server]).upstream().blob(&name("a"), &digest("content"), 0).await.expect("a blob");
        assert_eq!(read(blob).await, "content");
        assert_eq!((server.count(), storage.count()), (2, 2));
    }
    let storage = Server::start(|_, _| reply(403, &[], "no")).await;
    let location = storage.url().to_string();
    let server = Server::start(move |_, _| reply(307, &[("location", &location)], "")).await;
    let upstream = Setup::new(&[&server]).upstream();
    let error = upstream.blob(&name("a"), &digest("x"), 0).await.expect_err("refused twice");
    assert_eq!(error, Error::Unavailable { host: storage.host(), why: Why::Storage(403) });
    assert_eq!((server.count(), storage.count()), (2, 2));
}

#[tokio::test]
async fn a_storage_that_signs_for_get_only_still_tells_the_size() {
    let storage = Server::start(|seen, _| if seen.method == "HEAD" { reply(403, &[], "") } else { reply(200, &[], "content") }).await;
    let location = storage.url().to_string();
    let server = Server::start(move |_, _| reply(307, &[("location", &location)], "")).await;
    let size = Setup::new(&[&server]).upstream().head_blob(&name("a"), &digest("content")).await.expect("it is there");
    assert_eq!(size, Some(7));
}

#[tokio::test]
async fn a_storage_that_is_down_is_not_the_registry_s_fault() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let location = format!("http://{}/", closed.local_addr().expect("an address"));
    drop(closed);
    let server = Server::start(move |seen, _| match seen.path.strip_prefix("/v2/a/blobs/") {
        Some(_) => reply(307, &[("location", &location)], ""),
        None => reply(200, &[], "{}"),
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    let down = async || upstream.blob(&name("a"), &digest("x"), 0).await.expect_err("down");
    let error = down().await;
    assert!(matches!(error, Error::Unavailable { why: Why::Connect(_), .. }), "{error:?}");
    assert_eq!(server.count(), 3, "each attempt asks for a fresh redirect");
    // The fifth failure in a row: from now on it is left alone.
    down().await;
    let before = server.count();
    let error = down().await;
    assert!(matches!(error, Error::Unavailable { why: Why::Resting, .. }), "{error:?}");
    assert_eq!(server.count() - before, 2, "perhaps there is another host, and once is enough to find out");
    upstream.manifest(&name("a"), &tag("latest")).await.expect("the registry is well");
}

#[tokio::test]
async fn an_endpoint_keeps_its_path_prefix() {
    let server = Server::start(|_, _| reply(200, &[], "{}")).await;
    let mut setup = Setup::new(&[&server]);
    setup.settings.endpoints[0].set_path("/mirror/hub/");
    setup.upstream().manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    assert_eq!(server.lines(), ["GET /mirror/hub/v2/a/manifests/latest"]);
}

#[tokio::test]
async fn no_log_line_and_no_error_holds_a_secret() {
    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    // With a second subscriber about, a call site that another test reaches first is not taken for one that nobody hears.
    let _second = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(std::io::sink).finish());
    let guard = tracing::subscriber::set_default(subscriber);

    let storage = Server::start(|_, _| reply(403, &[], "expired")).await;
    let location = format!("{}downloads/hush-path?sig=hush-query", storage.url());
    let server = Server::start_with(None, |addr| {
        move |seen: &Seen, _| match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", _) => reply(200, &[], r#"{"token":"hush-token"}"#),
            (_, Some("Bearer hush-token")) => reply(307, &[("location", &location)], ""),
            _ => challenge(&format!("http://{addr}/token")),
        }
    })
    .await;
    let setup = Setup::new(&[&server]).with_login();
    setup.file("password", "hush-password");
    let error = setup.upstream().blob(&name("a"), &digest("x"), 0).await.expect_err("expired");
    drop(guard);
    let lines = String::from_utf8(lines.0.lock().expect("not poisoned").clone()).expect("text");
    assert!(lines.contains("asked") && lines.contains("fresh redirect"), "{lines}");
    for text in [lines, format!("{error} {error:?}")] {
        assert!(!text.contains("hush") && !text.contains("Basic "), "{text}");
    }
}
