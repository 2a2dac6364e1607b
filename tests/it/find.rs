//! Search and the list of what is held: the registry's finds and what is held as one, nothing private for strangers, and an end to
//! every wait.

use std::time::Duration;

use crate::support::client::{Ask, Reply, get, pull, pull_with};
use crate::support::gate::Gate;
use crate::support::mirror::Builder;
use crate::support::registry::{self, Fault, Image, Kind, Port, Registry};
use crate::support::scene::{REPO, Scene};

/// A Docker Hub that finds things, and a mirror of it.
async fn scene(set: impl FnOnce(Builder) -> Builder) -> Scene {
    scene_of(Registry::hub().await, set)
}

fn scene_of(hub: Registry, set: impl FnOnce(Builder) -> Builder) -> Scene {
    for name in ["library/debian", "library/redis", "org/debian-tools"] {
        hub.image(name, "latest", Image::layers([1000]).seed(name.len() as u64));
    }
    let search = format!("\"{}\"", hub.url_of(Port::Search));
    Scene::with(hub, |builder| set(builder.set("upstreams.\"docker.io\"", "search", &search)))
}

/// As dockerd asks.
fn docker_search(scene: &Scene, term: &str) -> Ask {
    let url = format!("{}/v1/search?q={term}&n=25", scene.mirror.url());
    get(url)
        .header("User-Agent", "docker/28.5.2 go/go1.25.3 UpstreamClient(Docker-Client/28.5.2 \\(linux\\))")
        .header("X-Docker-Token", "true")
}

/// Name, description and stars of each result.
fn results(reply: &Reply) -> Vec<(String, String, u64)> {
    assert_eq!(reply.status, 200, "{reply:?}");
    let json = reply.json();
    let result = |result: &serde_json::Value| {
        let text = |key: &str| result[key].as_str().unwrap().to_owned();
        (text("name"), text("description"), result["star_count"].as_u64().unwrap())
    };
    json["results"].as_array().unwrap().iter().map(result).collect()
}

fn names(reply: &Reply) -> Vec<String> {
    results(reply).into_iter().map(|(name, ..)| name).collect()
}

fn catalog(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{reply:?}");
    serde_json::from_value(reply.json()["repositories"].clone()).unwrap()
}

#[tokio::test]
async fn docker_search_finds_at_docker_hub_and_here() {
    let scene = scene(|builder| builder).await;
    let ping = get(format!("{}/v1/_ping", scene.mirror.url())).send().await;
    assert_eq!((ping.status, ping.header("x-docker-registry-standalone")), (200, Some("true")));
    assert_eq!(ping.json()["standalone"], true);

    let reply = docker_search(&scene, "debian").send().await;
    assert_eq!(results(&reply), [("debian".into(), String::new(), 1), ("org/debian-tools".into(), String::new(), 1)]);
    let json = reply.json();
    assert_eq!((&json["query"], &json["num_results"]), (&"debian".into(), &2.into()));
    assert_eq!((&json["results"][0]["is_official"], &json["results"][1]["is_official"]), (&true.into(), &false.into()));

    // What is held is marked and comes first, with what the registry says of it.
    pull(&scene.mirror.url(), "org/debian-tools", "latest").await.unwrap();
    scene.hold("bookworm").await;
    scene.mirror.settled().await;
    let reply = docker_search(&scene, "debian").send().await;
    assert_eq!(results(&reply), [("debian".into(), "[held here]".into(), 1), ("org/debian-tools".into(), "[held here]".into(), 1)]);
    let redis = docker_search(&scene, "redis").send().await;
    assert_eq!(results(&redis), [("redis".into(), String::new(), 1)]);
    assert_eq!(scene.hub.count(Kind::Search), 2, "an answer is given again for a while\n{}", scene.hub.story());
    assert_eq!(scene.hub.violations(), [""; 0]);
}

#[tokio::test]
async fn without_the_registry_what_is_held_is_found() {
    let scene = scene(|builder| builder).await;
    scene.hold("bookworm").await;
    scene.hub.down_at(Port::Search).await;
    for _ in 0..3 {
        let reply = docker_search(&scene, "DEB").send().await;
        assert_eq!(results(&reply), [("debian".into(), "[held here]".into(), 0)]);
        assert_eq!(reply.json()["results"][0]["is_official"], true);
    }
    assert_eq!(names(&docker_search(&scene, "redis").send().await), [""; 0]);
    scene.hub.up_at(Port::Search).await;
    let scene = scene.restart(Builder::offline).await;
    let before = scene.hub.count(Kind::Search);
    assert_eq!(names(&docker_search(&scene, "debian").send().await), ["debian"]);
    assert_eq!(scene.hub.count(Kind::Search), before, "offline asks nobody");
}

#[tokio::test]
async fn whatever_the_registry_s_search_does_a_search_is_answered() {
    let (hub, gate) = (Registry::hub().await, Gate::closed());
    hub.image(REPO, "latest", Image::layers([10]));
    let large = format!("{{\"results\":[{{\"name\":\"debian\"}}],\"x\":\"{}\"}}", "x".repeat(1 << 20));
    let faults = [
        Fault::status(503),
        Fault::too_many(Some(1)),
        Fault::html(),
        Fault::hang_up(),
        Fault::redirect(302, &format!("{}/v1/search?q=debian", hub.url_of(Port::Search))),
        Fault::json("[]"),
        Fault::json(&large),
        Fault::wait(&gate),
    ];
    for fault in faults {
        let what = format!("{fault:?}").chars().take(100).collect::<String>();
        let planned = hub.on(Kind::Search, fault.once());
        let search = format!("\"{}\"", hub.url_of(Port::Search));
        let mirror = Builder::new().upstream("docker.io", &hub).set("upstreams.\"docker.io\"", "search", &search);
        let mirror = mirror.tune(|tuning| tuning.upstream.search = Duration::from_secs(2)).start();
        let url = format!("{}/v1/search?q=debian&n=25", mirror.url());
        for _ in 0..2 {
            assert_eq!(names(&get(&url).send().await), [""; 0], "{what}");
        }
        assert_eq!(planned.struck(), 1, "{what}: who failed is left alone for a while");
    }
    gate.open();
}

#[tokio::test]
async fn what_is_private_is_found_by_those_who_may_pull_it() {
    let hub = registry::Builder::hub().own_addresses().start().await;
    hub.user("ann", "secret");
    hub.private("team/secret");
    hub.image("team/secret", "latest", Image::layers([500]).seed(7));
    hub.image("team/public", "latest", Image::layers([500]).seed(8));
    let open =
        |builder: Builder| builder.login("docker.io", "ann", "secret").user("bob", "guess").set("access", "networks", "[\"127.0.0.0/8\"]");
    let scene = Scene::with(hub, open);
    let base = scene.mirror.url();
    pull_with(&base, "team/secret", "latest", |ask| ask.basic("bob", "guess")).await.unwrap();
    pull(&base, "team/public", "latest").await.unwrap();
    scene.mirror.settled().await;
    let list = || get(format!("{base}/v2/_catalog"));
    let tags = scene.mirror.settings().data().join("repos/docker.io/team/secret/_tags/latest");
    scene.until("the tag is on disk", |_| tags.exists()).await;
    assert_eq!(catalog(&list().basic("bob", "guess").send().await), ["team/public", "team/secret"]);
    assert_eq!(catalog(&list().send().await), ["team/public"]);
    assert_eq!(names(&docker_search(&scene, "team").basic("bob", "guess").send().await), ["team/public", "team/secret"]);
    assert_eq!(names(&docker_search(&scene, "team").send().await), ["team/public"]);
    assert_eq!(names(&docker_search(&scene, "secret").send().await), [""; 0]);
}

#[tokio::test]
async fn who_may_not_pull_finds_nothing() {
    let scene = scene(|builder| builder.user("bob", "guess")).await;
    for path in ["/v1/_ping", "/v1/search?q=debian", "/v2/_catalog"] {
        let url = format!("{}{path}", scene.mirror.url());
        assert_eq!(get(&url).send().await.status, 401, "{path}");
        assert_eq!(get(&url).basic("bob", "guess").send().await.status, 200, "{path}");
    }
    assert_eq!(scene.hub.count(Kind::Search), 1, "nobody is asked for a stranger");
}

#[tokio::test]
async fn the_catalog_turns_pages_in_every_layout() {
    let (hub, other) = (Registry::hub().await, Registry::plain().await);
    for name in ["library/a", "org/b", "org/b/c"] {
        hub.image(name, "latest", Image::layers([10]).seed(1));
    }
    other.image("team/x", "latest", Image::layers([10]).seed(2));
    let path = "0123456789abcdef";
    let networks = |builder: Builder| builder.upstream("ghcr.io", &other).secret_path(path).set("access", "networks", "[\"127.0.0.0/8\"]");
    let scene = Scene::with(hub, networks);
    let base = scene.mirror.url();
    for name in ["library/a", "org/b", "org/b/c", "ghcr.io/team/x"] {
        pull(&base, name, "latest").await.unwrap();
    }
    scene.mirror.settled().await;
    let repos = scene.mirror.settings().data().join("repos");
    for name in ["docker.io/library/a", "docker.io/org/b", "docker.io/org/b/c", "ghcr.io/team/x"] {
        let tag = repos.join(name).join("_tags/latest");
        scene.until("the tag is on disk", |_| tag.exists()).await;
    }
    let all = ["library/a", "org/b", "org/b/c", "ghcr.io/team/x"];
    for (start, expected) in [
        ("/v2/_catalog", &all[..]),
        ("/v2/_catalog?n=3", &all),
        ("/v2/_catalog?n=1", &all),
        ("/0123456789abcdef/v2/_catalog?n=1", &all),
        ("/v2/_catalog?n=1&ns=docker.io", &all[..3]),
        ("/docker.io/v2/_catalog?n=2", &all[..3]),
        ("/ghcr.io/v2/_catalog", &["team/x"]),
        ("/v2/_catalog?ns=quay.io", &[]),
        ("/v2/_catalog?n=0", &[]),
    ] {
        let (mut seen, mut next) = (Vec::new(), Some(start.to_owned()));
        while let Some(target) = next {
            let reply = get(format!("{base}{target}")).send().await;
            seen.extend(catalog(&reply));
            next = reply.header("link").map(|link| link.strip_prefix('<').unwrap().split_once(">; rel=\"next\"").unwrap().0.to_owned());
        }
        assert_eq!(seen, expected, "{start}");
    }
    for target in ["/v2/_catalog?n=-1", "/v2/_catalog?n=abc", "/v2/_catalog?n=99999999999999999999"] {
        let reply = get(format!("{base}{target}")).send().await;
        assert_eq!((reply.status, reply.json()["errors"][0]["code"].as_str()), (400, Some("PAGINATION_NUMBER_INVALID")), "{target}");
    }
}
