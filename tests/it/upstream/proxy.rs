use std::net::SocketAddr;
use std::time::Duration;

use crate::support::client::{get, pull};
use crate::support::gate::Gate;
use crate::support::mirror::Builder;
use crate::support::proxy::{Mood, Proxy};
use crate::support::registry::{self, Fault, Image, Kind, Port, Registry};
use crate::support::scene::{REPO, assert_refused, quick};

/// Names that no resolver knows (RFC 6761): whoever reaches them was led there.
const NAME: &str = "registry.invalid";
const TABLE: &str = "upstreams.\"docker.io\"";

/// A registry without TLS, known to proxies by a name.
async fn plain() -> (Registry, (String, SocketAddr), Builder) {
    let registry = Registry::plain().await;
    registry.image(REPO, "latest", Image::layers([50_000, 70_000]));
    let name = format!("{NAME}:5000");
    let builder = Builder::new().endpoint("docker.io", &format!("http://{name}")).tune(quick);
    let address = registry.address(Port::Registry);
    (registry, (name, address), builder)
}

/// A Docker Hub over TLS with its own addresses, whose certificates are trusted.
async fn hub() -> (Registry, Builder) {
    let hub = registry::Builder::hub().tls().start().await;
    hub.image(REPO, "latest", Image::layers([50_000, 70_000]));
    let builder = Builder::new().upstream("docker.io", &hub).tune(quick);
    (hub, builder)
}

fn via(builder: Builder, proxy: &str) -> Builder {
    builder.set(TABLE, "proxy", &format!("\"{proxy}\""))
}

#[tokio::test]
async fn everything_of_an_upstream_goes_through_its_proxy() {
    let (hub, builder) = hub().await;
    let proxy = Proxy::with_login(&[], "ann", "s:ecret@").await;
    for scheme in ["http", "socks5", "socks5h"] {
        let before = proxy.asked().len();
        hub.forget();
        let mirror =
            via(builder.clone().set("cache", "dir", &dir(&builder, scheme)), &format!("{scheme}://ann:s:ecret%40@{}", proxy.host()))
                .start();
        let pulled = pull(&mirror.url(), REPO, "latest").await;
        pulled.unwrap_or_else(|error| panic!("{scheme}: {error}\n{:?}\n{}", proxy.asked(), hub.story()));
        let asked = proxy.asked().split_off(before);
        let verb = if scheme == "http" { "CONNECT" } else { "SOCKS" };
        for port in [Port::Registry, Port::Auth, Port::CdnA] {
            let way = format!("{verb} {}", hub.address(port));
            assert!(asked.contains(&way), "{way} is not among {asked:?}");
        }
        assert!(asked.iter().all(|way| way.starts_with(verb)), "{asked:?}");
        // One connection each: all that is open leads through the proxy.
        assert!(
            hub.requests().iter().all(|record| record.header("proxy-authorization").is_none()),
            "the proxy's login is not the registry's"
        );
        assert_eq!(hub.violations(), [""; 0]);
        mirror.stop().await;
    }
    assert_eq!(hub.connections(), u64::try_from(proxy.asked().len()).unwrap(), "{:?}", proxy.asked());
}

fn dir(builder: &Builder, name: &str) -> String {
    format!("\"{}\"", builder.beside(name).display())
}

#[tokio::test]
async fn plain_http_is_sent_to_the_proxy_with_the_whole_url() {
    let (registry, (name, address), builder) = plain().await;
    let proxy = Proxy::with_login(&[(&name, address)], "ann", "secret").await;
    let mirror = via(builder, &format!("http://ann:secret@{}", proxy.host())).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap_or_else(|error| panic!("{error}\n{:?}", proxy.asked()));
    let asked = proxy.asked();
    assert!(asked.iter().all(|way| way.contains(&format!(" http://{name}/v2/{REPO}/"))), "{asked:?}");
    assert_eq!(asked.len(), registry.requests().len());
    assert!(registry.requests().iter().all(|record| record.header("host") == Some(&name)), "{}", registry.story());
}

#[tokio::test]
async fn names_are_resolved_by_the_proxy_or_here_as_the_operator_says() {
    let (registry, (name, address), builder) = plain().await;
    let proxy = Proxy::open(&[(&name, address)]).await;
    let mirror = via(builder.clone(), &format!("socks5h://{}", proxy.host())).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    assert!(proxy.asked().iter().all(|way| *way == format!("SOCKS {name}")), "{:?}", proxy.asked());
    let before = (proxy.asked().len(), registry.connections());
    let local = format!("http://localhost:{}", address.port());
    let here = via(builder.clone(), &format!("socks5://{}", proxy.host())).endpoints("docker.io", &[&local]);
    let mirror = here.set("cache", "dir", &dir(&builder, "here")).start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    let asked = proxy.asked().split_off(before.0);
    assert!(!asked.is_empty() && asked.iter().all(|way| *way == format!("SOCKS {address}")), "{asked:?}");
}

#[tokio::test]
async fn a_proxy_that_fails_is_named_and_nobody_is_asked_another_way() {
    let (hub, builder) = hub().await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let proxy = Proxy::with_login(&[], "ann", "secret").await;
    let (right, wrong) = (format!("ann:secret@{}", proxy.host()), format!("ann:hunter2@{}", proxy.host()));
    let gate = Gate::closed();
    let cases = [
        (format!("http://{gone}"), Mood::Open, 503, "no connection to it"),
        (format!("http://{wrong}"), Mood::Open, 503, "does not accept the login"),
        (format!("socks5://{wrong}"), Mood::Open, 503, "does not accept the login"),
        (format!("socks5://{}", proxy.host()), Mood::Open, 503, "does not accept the login"),
        (format!("http://{right}"), Mood::Says("HTTP/1.1 502 Bad Gateway\r\n\r\n"), 503, "it answered 502"),
        (format!("http://{right}"), Mood::Says("HTTP/1.1 403 Forbidden\r\n\r\n<html>"), 503, "it answered 403"),
        (format!("http://{right}"), Mood::Says("HTTP/1.1 200 Conn"), 503, "closed the connection"),
        (format!("http://{right}"), Mood::Says("HTTP/1.1 200 OK\r\n\r\nand more"), 503, "not that of such a proxy"),
        (format!("http://{right}"), Mood::Says("SSH-2.0-x\r\n\r\n"), 503, "not that of such a proxy"),
        (format!("socks5h://{right}"), Mood::Replies(2), 503, "its rules do not allow it"),
        (format!("http://{right}"), Mood::Silent(gate.clone()), 503, "did not open the way in time"),
    ];
    for (url, mood, status, said) in cases {
        proxy.mood(mood);
        // The program as it is run, for what it logs; its own limit on a silent proxy is 8 s.
        let process = via(builder.clone().traced(), &url).spawn().await;
        assert_refused(&get(process.manifest(REPO, "latest")).send().await, status);
        let log = process.log();
        let label = format!("through proxy {}: ", url.replace("ann:secret@", "").replace("ann:hunter2@", ""));
        assert!(log.contains(&label) && log.contains(said), "{label}{said} is not in\n{log}");
        assert!(!log.contains("hunter2") && !log.contains("secret"), "{log}");
        process.kill().await;
    }
    assert_eq!(hub.connections(), 0, "{}", hub.story());
    // And when it is well again, nothing is left of that.
    proxy.mood(Mood::Open);
    let process = via(builder, &format!("http://{right}")).spawn().await;
    pull(&process.url(), REPO, "latest").await.unwrap();
}

#[tokio::test]
async fn a_head_that_never_ends_has_a_limit() {
    let (hub, builder) = hub().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let endless = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
            while stream.write_all(&[b'x'; 1000]).await.is_ok() {}
        }
    });
    let mirror = via(builder, &url).start();
    assert_refused(&get(mirror.manifest(REPO, "latest")).send().await, 503);
    assert_eq!(hub.connections(), 0);
    endless.abort();
}

#[tokio::test]
async fn plain_http_that_a_proxy_wants_a_login_for_is_an_outage_and_no_refusal() {
    let (registry, (name, address), builder) = plain().await;
    let proxy = Proxy::with_login(&[(&name, address)], "ann", "secret").await;
    let mirror = via(builder, &format!("http://{}", proxy.host())).start();
    assert_refused(&get(mirror.manifest(REPO, "latest")).send().await, 503);
    assert_eq!(registry.connections(), 0);
}

#[tokio::test]
async fn a_redirect_through_a_proxy_leads_to_no_address_of_the_private_network() {
    let (registry, (name, address), builder) = plain().await;
    let proxy = Proxy::open(&[(&name, address), ("cdn.invalid:80", address)]).await;
    for (seed, scheme) in [(1, "http"), (2, "socks5h")] {
        let mirror = via(builder.clone().set("cache", "dir", &dir(&builder, scheme)), &format!("{scheme}://{}", proxy.host())).start();
        let blob = registry::Blob::seeded(seed, 1000);
        registry.blob(REPO, &blob);
        for host in ["127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "2130706433", "localhost", "a.localhost", "localhost."] {
            registry.on(Kind::Blob.of(blob.digest), Fault::redirect(307, &format!("http://{host}/x")).once());
            let before = proxy.asked().len();
            assert_refused(&get(mirror.blob(REPO, blob.digest)).send().await, 502);
            let asked = proxy.asked().split_off(before);
            assert!(asked.iter().all(|way| way.contains(NAME)), "{host}: {asked:?}");
        }
        // A name is the proxy's to judge.
        registry
            .on(Kind::Blob.of(blob.digest), Fault::redirect(307, &format!("http://cdn.invalid/v2/{REPO}/blobs/{}", blob.digest)).once());
        assert_eq!(get(mirror.blob(REPO, blob.digest)).fetch().await.digest, blob.digest);
        mirror.stop().await;
    }
}

#[tokio::test]
async fn the_environment_names_the_proxy_and_what_goes_without_one() {
    let (registry, (name, address), builder) = plain().await;
    let proxy = Proxy::open(&[(&name, address)]).await;
    let url = format!("http://{}", proxy.host());
    let with = |variables: &[(&str, &str)]| {
        let variables: Vec<(String, String)> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let builder = builder.clone();
        async move {
            builder
                .spawn_with(|command| {
                    let _ = command.envs(variables);
                })
                .await
        }
    };
    // Each way that leads there is seen by the proxy; without it the name means nothing.
    for (variables, reached) in [
        (vec![("HTTP_PROXY", url.as_str())], true),
        (vec![("all_proxy", url.as_str())], true),
        (vec![("HTTPS_PROXY", url.as_str())], false),
        (vec![("HTTP_PROXY", url.as_str()), ("REQUEST_METHOD", "GET")], false),
        (vec![("HTTP_PROXY", url.as_str()), ("NO_PROXY", "other, .invalid")], false),
        (vec![("HTTP_PROXY", url.as_str()), ("no_proxy", "registry.invalid:443")], true),
        (vec![("HTTP_PROXY", url.as_str()), ("MILLPOND__UPSTREAMS__DOCKER_IO__PROXY", "none")], false),
        (vec![("MILLPOND__UPSTREAMS__DOCKER_IO__PROXY", url.as_str()), ("NO_PROXY", "*")], true),
    ] {
        let before = proxy.asked().len();
        let process = with(&variables).await;
        let status = get(process.manifest(REPO, "latest")).send().await.status;
        assert_eq!((status, proxy.asked().len() > before), (if reached { 200 } else { 503 }, reached), "{variables:?}");
        let _ = std::fs::remove_dir_all(process.kill().await.data());
    }
    // This machine itself is never looked for behind a proxy of the environment.
    let before = proxy.asked().len();
    let own = builder.clone().endpoints("docker.io", &[&registry.url()]);
    let process = own
        .spawn_with(|command| {
            let _ = command.env("ALL_PROXY", &url);
        })
        .await;
    assert_eq!(get(process.manifest(REPO, "latest")).send().await.status, 200);
    assert_eq!(proxy.asked().len(), before);
}

#[tokio::test]
async fn a_silent_proxy_is_given_up_by_a_limit_of_its_own() {
    let (hub, builder) = hub().await;
    let proxy = Proxy::open(&[]).await;
    let gate = Gate::closed();
    proxy.mood(Mood::Silent(gate.clone()));
    let mirror = via(builder, &format!("http://{}", proxy.host())).tune(|tuning| tuning.upstream.proxy = Duration::from_millis(50)).start();
    assert_refused(&get(mirror.manifest(REPO, "latest")).send().await, 503);
    assert_eq!((gate.arrivals(), hub.connections()), (1, 0), "what took long is not repeated");
}
