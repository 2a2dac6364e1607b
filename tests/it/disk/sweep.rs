use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{REPO, file_of};
use crate::support::KIB;
use crate::support::client::{get, pull};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{Image, Registry};

/// Everything in this folder was written, and every tag confirmed, a hundred days ago.
fn age(dir: &Path) {
    let then = SystemTime::now() - Duration::from_secs(100 * 24 * 60 * 60);
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            age(&path);
            continue;
        }
        if dir.ends_with("_tags") {
            let mut tag: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            tag["checked"] = then.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().into();
            fs::write(&path, tag.to_string()).unwrap();
        }
        fs::File::open(&path).unwrap().set_modified(then).unwrap();
    }
}

#[tokio::test]
async fn a_tag_whose_manifest_was_evicted_goes_and_one_that_can_be_served_stays_whatever_its_age() {
    let plain = Registry::plain().await;
    let [held, lost] = ["held", "lost"]
        .map(|tag| plain.image(REPO, tag, Image::layers([100 * KIB]).seed(tag.len() as u64 + u64::from(tag.as_bytes()[0]))));
    let mirror = Builder::new().upstream("docker.io", &plain).start();
    for tag in ["held", "lost"] {
        pull(&mirror.url(), REPO, tag).await.unwrap();
    }
    mirror.settled().await;
    let settings = mirror.stop().await;
    let (data, tags) = (settings.data(), settings.data().join("repos/docker.io").join(REPO).join("_tags"));
    fs::remove_file(file_of(&data, &lost.digest)).unwrap();
    fs::remove_dir_all(data.join("index")).unwrap();
    age(&data.join("repos"));

    let mirror = settings.start();
    let removed = async || mirror.count("millpond_patrol_records_removed_total", &[]).await;
    within("the sweep", async { while removed().await < 2 {} }).await;
    assert!(tags.join("held").exists() && !tags.join("lost").exists());
    let settings = mirror.stop().await;

    let offline = settings.clone().offline().start();
    let reply = get(offline.manifest(REPO, "held")).send().await;
    assert_eq!((reply.status, reply.header("cache-status")), (200, Some("millpond; fwd=stale; detail=served-stale")));
    assert_eq!(pull(&offline.url(), REPO, "held").await.map(|pulled| pulled.digest), Ok(held.digest), "its links are there");
    offline.stop().await;

    let mirror = settings.start();
    assert_eq!(pull(&mirror.url(), REPO, "lost").await.map(|pulled| pulled.digest), Ok(lost.digest));
    mirror.settled().await;
    let settings = mirror.stop().await;
    settings.audit().assert_sound();
    assert!(tags.join("lost").exists());
}
