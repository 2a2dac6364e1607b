use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{offsets, once};
use crate::support::client::{get, head, pull};
use crate::support::gate::Gate;
use crate::support::mirror::{self, Mirror};
use crate::support::registry::{Blob, Builder, Fault, Image, Kind, Port, Registry};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole, quick};

/// A name that no resolver asks anybody about: its first part is longer than a name's part may be.
fn no_name() -> String {
    format!("http://{}.test", "x".repeat(64))
}

#[tokio::test]
async fn a_name_without_an_address_is_an_outage_and_another_endpoint_takes_over() {
    let plain = Registry::plain().await;
    let scene = Scene::with(plain, |builder| builder);
    let held = scene.hold("held").await;
    let blob = scene.push(1, 1 << 20);
    let Scene { hub, mirror } = scene;
    let settings = mirror.stop().await;

    // The resolver fails for what was reached before: what is held is served, the rest is refused at once.
    let alone = settings.clone().endpoints("docker.io", &[&no_name()]).start();
    let scene = Scene { hub, mirror: alone };
    assert_refused(&scene.get(&blob).send().await, 503);
    assert_eq!(head(scene.url(&blob)).send().await.status, 503);
    scene.serves_what_it_holds(&held, "held").await;

    let Scene { hub, mirror } = scene;
    let url = hub.url();
    let both = mirror.stop().await.endpoints("docker.io", &[&no_name(), &url]).start();
    let scene = Scene { hub, mirror: both };
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_handshake_that_stands_still_is_given_up() {
    let short = |tuning: &mut millpond::serve::Tuning| tuning.upstream.connect = Duration::from_secs(3);
    let scene = Scene::with(Builder::plain().tls().start().await, |builder| builder.tune(short));
    let held = scene.hold("held").await;
    // What was connected before is gone, so that a new connection is needed.
    scene.hub.down().await;
    scene.hub.up().await;
    let never = Gate::closed();
    scene.hub.hold_connections(Port::Registry, &never);
    let blob = scene.push(1, 1000);
    let asked = tokio::spawn(scene.get(&blob).send());
    never.reached(1).await;
    scene.serves_what_it_holds(&held, "held").await;
    assert_refused(&asked.await.unwrap(), 504);
    never.open();
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_tls_connection_that_ends_without_saying_so_is_judged_by_the_hash() {
    let scene = Scene::with(Builder::hub().tls().start().await, |builder| builder);
    let len = 1 << 20;
    for (seed, fault) in (1..).zip([Fault::until_close().then_cut(len), Fault::until_close().then_reset(len), Fault::cut(len)]) {
        let blob = scene.push(seed, len);
        once(&scene, &blob, fault.clone());
        let fetched = scene.get(&blob).fetch().await;
        assert_whole(&fetched, &blob);
        assert!(scene.hub.bytes_of(&blob.digest) <= 2 * len, "{fault:?}:\n{}", scene.hub.story());
    }
    // Cut in the middle it is a cut.
    let blob = scene.push(9, len);
    once(&scene, &blob, Fault::until_close().then_cut(len / 2));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!((offsets(&scene, &blob), scene.hub.bytes_of(&blob.digest)), (vec![0, len / 2], len), "{}", scene.hub.story());
    scene.is_sound().await;
}

/// A way that leads to whatever mirror is told later, for who must name an address before there is anything at it.
struct Way {
    url: String,
    target: watch::Sender<Option<SocketAddr>>,
    task: JoinHandle<()>,
}

impl Way {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (target, told) = watch::channel(None);
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut told = told.clone();
                tokio::spawn(async move {
                    let target = told.wait_for(Option::is_some).await.unwrap().unwrap();
                    let mut far = TcpStream::connect(target).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Self { url, target, task }
    }

    fn leads_to(&self, mirror: &Mirror) {
        self.target.send_replace(Some(mirror.address()));
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Everything that can be asked for is refused, and nobody waits for it.
async fn says_that_it_is_a_loop(mirror: &Mirror) {
    let digest = Blob::seeded(1, 1000).digest;
    let (tag, manifest, blob) = (mirror.manifest(REPO, "latest"), mirror.manifest(REPO, digest), mirror.blob(REPO, digest));
    for url in [&tag, &manifest, &blob] {
        assert_refused(&get(url).send().await, 508);
        assert_eq!(head(url).send().await.status, 508);
    }
    assert_refused(&get(format!("{}/v2/{REPO}/tags/list", mirror.url())).send().await, 508);
    assert_eq!(mirror.metric("millpond_upstream_up", &[r#"upstream="docker.io""#]).await.to_string(), "1", "the endpoint is well");
}

#[tokio::test]
async fn a_mirror_in_front_of_itself_says_so_at_once() {
    let way = Way::new().await;
    let mirror = mirror::Builder::new().endpoint("docker.io", &way.url).start();
    way.leads_to(&mirror);
    says_that_it_is_a_loop(&mirror).await;
}

#[tokio::test]
async fn mirrors_in_a_circle_say_so_at_once() {
    let way = Way::new().await;
    let first = mirror::Builder::new().endpoint("docker.io", &way.url).start();
    let second = mirror::Builder::new().endpoint("docker.io", &first.url()).start();
    let third = mirror::Builder::new().endpoint("docker.io", &second.url()).start();
    way.leads_to(&third);
    says_that_it_is_a_loop(&first).await;
    says_that_it_is_a_loop(&second).await;
}

#[tokio::test]
async fn two_mirrors_that_ask_each_other_first_come_to_the_registry_all_the_same() {
    let hub = Registry::hub().await;
    let way = Way::new().await;
    let with = |url: &str| mirror::Builder::new().endpoint("docker.io", url).upstream("docker.io", &hub).tune(quick).start();
    let first = with(&way.url);
    let second = with(&first.url());
    way.leads_to(&second);
    let image = hub.image(REPO, "latest", Image::layers([100_000, 1_000]));
    for mirror in [&first, &second] {
        assert_eq!(pull(&mirror.url(), REPO, "latest").await.unwrap().digest, image.digest);
        assert_refused(&get(mirror.manifest(REPO, "absent")).send().await, 404);
    }
    for blob in image.blobs() {
        assert_eq!(hub.gets_of(&blob.digest), 1, "{}", hub.story());
    }
}

#[tokio::test]
async fn endpoints_are_told_who_asks_and_nobody_else_is() {
    let scene = Scene::new().await;
    let image = scene.hub.image(REPO, "latest", Image::layers([100_000]));
    let before = "1.1 proxy.corp.test, 1.1 millpond-00112233445566ff (x)";
    assert_eq!(scene.manifest("latest").header("Via", before).send().await.status, 200);
    assert_whole(&scene.get(&image.layers[0]).fetch().await, &image.layers[0]);
    let via = |kind: Kind| scene.hub.matching(kind).iter().map(|record| record.header("via").map(str::to_owned)).collect::<Vec<_>>();
    let own = |via: &str| via.strip_prefix("1.1 millpond-").is_some_and(|id| id.len() == 16);
    for said in via(Kind::Manifest) {
        let said = said.expect("it says who asks");
        assert!(said.strip_prefix("1.1 millpond-00112233445566ff, ").is_some_and(own), "{said}");
    }
    assert!(via(Kind::Blob).into_iter().all(|said| said.as_deref().is_some_and(own)));
    for kind in [Kind::Cdn, Kind::Token] {
        let said = via(kind);
        assert!(!said.is_empty() && said.iter().all(Option::is_none), "{kind:?}: {said:?}");
    }
}
