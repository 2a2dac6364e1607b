use super::REPO;
use crate::support::client::{get, head, pull};
use crate::support::mirror::Builder;
use crate::support::registry::{Blob, Image, Index, Registry};
use crate::support::{KIB, MIB};

#[tokio::test]
async fn what_is_held_is_served_by_the_next_process_with_the_upstream_down() {
    let hub = Registry::hub().await;
    let index = hub.index(REPO, "latest", Index::platforms(&Image::layers([MIB, 100]), &["linux/amd64", "linux/arm64"]));
    let odd = hub.image("org/deep/er/app", "_odd.Tag-1", Image::layers([KIB]).sha512());
    let lone = Blob::seeded(5, 100 * KIB);
    hub.blob("org/lone", &lone);
    let mut settings = Builder::new().upstream("docker.io", &hub);
    let mirror = settings.start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    pull(&mirror.url(), "org/deep/er/app", "_odd.Tag-1").await.unwrap();
    assert_eq!(get(mirror.blob("org/lone", lone.digest)).send().await.status, 200);
    mirror.settled().await;
    settings = mirror.stop().await;
    hub.down().await;

    // Once as it was left; once without the index; once with tags that are old.
    for round in ["as it was left", "without index/", "with a tag_ttl that is over"] {
        match round {
            "without index/" => std::fs::remove_dir_all(settings.data().join("index")).unwrap(),
            "with a tag_ttl that is over" => settings = settings.tag_ttl("1ms"),
            _ => {}
        }
        let mirror = settings.start();
        assert_eq!(pull(&mirror.url(), REPO, "latest").await.map(|pulled| pulled.digest), Ok(index.digest), "{round}");
        assert_eq!(pull(&mirror.url(), "org/deep/er/app", "_odd.Tag-1").await.map(|pulled| pulled.digest), Ok(odd.digest), "{round}");
        let blob = get(mirror.blob("org/lone", lone.digest)).send().await;
        assert!(blob.status == 200 && lone.digest.is_of(&blob.body), "{round}");
        assert_eq!(head(mirror.manifest(REPO, index.digest)).send().await.status, 200, "{round}");
        let tags = get(format!("{}/v2/{REPO}/tags/list", mirror.url())).send().await;
        assert_eq!((tags.status, tags.json()["tags"].clone()), (200, serde_json::json!(["latest"])), "{round}");
        mirror.settled().await;
        settings = mirror.stop().await;
        settings.audit().assert_sound().assert_temporary(0);
    }
}
