use crate::support::client::{get, head, pull};
use crate::support::registry::{Image, Registry, Want};
use crate::support::scene::{REPO, Scene, assert_refused};

const TABLE: &str = "upstreams.\"docker.io\"";

#[tokio::test]
async fn what_is_denied_is_refused_at_once_also_when_it_is_held() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    let other = "team/app";
    let image = scene.hub.image(other, "latest", Image::layers([1000]).seed(9));
    for (key, list) in [("deny", r#"["library/*"]"#), ("allow", r#"["team/**"]"#)] {
        let builder = scene.mirror.settings().clone();
        let builder = builder.clone().set("cache", "dir", &format!("\"{}\"", builder.beside(key).display()));
        let mirror = builder.clone().start();
        pull(&mirror.url(), REPO, "held").await.unwrap();
        mirror.settled().await;
        mirror.stop().await;
        let mirror = builder.set(TABLE, key, list).start();
        let before = scene.hub.count(Want::any());
        let layer = held.layers[0].digest;
        let base = format!("{}/v2/{REPO}", mirror.url());
        for url in [
            format!("{base}/manifests/held"),
            format!("{base}/manifests/{}", held.digest),
            format!("{base}/blobs/{layer}"),
            format!("{base}/tags/list"),
            format!("{base}/referrers/{}", held.digest),
            format!("{}/v2/docker.io/{REPO}/manifests/held", mirror.url()),
            format!("{base}/manifests/held?ns=docker.io"),
        ] {
            let reply = get(&url).send().await;
            assert_refused(&reply, 403);
            assert_eq!(reply.json()["errors"][0]["code"], "DENIED", "{url}");
            assert!(reply.header("www-authenticate").is_none(), "a challenge would bring a password of somebody else");
            assert_eq!(head(&url).send().await.status, 403, "{url}");
        }
        assert_eq!(scene.hub.count(Want::any()), before, "{}", scene.hub.story());
        assert_eq!(pull(&mirror.url(), other, "latest").await.unwrap().digest, image.digest);
        mirror.stop().await;
    }
}

#[tokio::test]
async fn so_many_requests_at_once_and_the_rest_wait_their_turn() {
    let hub = Registry::plain().await;
    let scene = Scene::with(hub, |builder| builder.set(TABLE, "connections", "4"));
    let gate = crate::support::gate::Gate::closed();
    let blobs: Vec<_> = (1..=8).map(|seed| scene.push(seed, 200_000)).collect();
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    let want = crate::support::registry::Kind::Blob.get();
    scene.hub.on(want.clone(), crate::support::registry::Fault::stall(100_000, &gate).then_cut(100_000).times(2));
    let clients: Vec<_> = blobs.iter().map(|blob| tokio::spawn(scene.get(blob).fetch())).collect();
    gate.reached(2).await;
    // Blobs do not keep manifests waiting.
    assert_eq!(scene.manifest("latest").send().await.body, image.manifest);
    gate.open();
    // Those that are cut go on where they broke off, though others wait in line.
    for (client, blob) in clients.into_iter().zip(&blobs) {
        crate::support::scene::assert_whole(&client.await.unwrap(), blob);
    }
    assert!(scene.hub.peak(want) <= 2, "{}", scene.hub.story());
    scene.is_sound().await;
}
