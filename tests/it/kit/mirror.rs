use millpond::oci;
use millpond::upstream::Private;

use super::REPO;
use crate::support::MIB;
use crate::support::client::pull;
use crate::support::mirror::Builder;
use crate::support::registry::{self, Image, Port, Registry};

fn settings(builder: &Builder, name: &str) -> millpond::upstream::Settings {
    builder.config().upstreams.upstreams[&oci::Registry::parse(name).unwrap()].clone()
}

#[tokio::test]
async fn settings_are_what_the_program_reads() {
    let (hub, other) = (Registry::hub().await, registry::Builder::plain().tls().start().await);
    let builder = Builder::new().upstream("docker.io", &hub).upstream("ghcr.io", &other).endpoint("docker.io", "http://127.0.0.1:9/x");
    let docker = settings(&builder, "docker.io");
    let endpoints: Vec<&str> = docker.endpoints.iter().map(url::Url::as_str).collect();
    assert_eq!(endpoints, [&*format!("{}/", hub.url()), "http://127.0.0.1:9/x"]);
    assert_eq!(docker.auth_hosts, [hub.address(Port::Auth).to_string()]);
    assert!(settings(&builder, "ghcr.io").ca_file.is_some() && docker.ca_file.is_none());

    let config = builder.config();
    assert!(config.cache.dir.starts_with(builder.data()) && config.server.listen.port() == 0);
    for upstream in config.upstreams.upstreams.values() {
        assert!(upstream.endpoints.iter().all(|url| url.host_str() == Some("127.0.0.1")), "{:?}", upstream.endpoints);
    }
}

#[test]
fn every_setting_has_its_word() {
    let builder = Builder::new()
        .endpoint("docker.io", "http://127.0.0.1:9")
        .login("docker.io", "ann", "secret")
        .private_to_anyone("docker.io")
        .tag_ttl("10s")
        .max_stale("1d")
        .max_size("10MiB")
        .offline()
        .user("bob", "guess")
        .user("cid", "other")
        .secret_path("0123456789abcdef")
        .client_certificates()
        .set("access", "networks", "[\"127.0.0.0/8\"]");
    let config = builder.config();
    let docker = settings(&builder, "docker.io");
    let millpond::upstream::Credentials::Password { username, password_file } = docker.credentials.unwrap() else { panic!("a password") };
    assert_eq!((username.as_str(), std::fs::read_to_string(password_file).unwrap().as_str()), ("ann", "secret"));
    assert_eq!(docker.private, Private::Anyone);
    assert_eq!((config.pull.tag_ttl.as_secs(), config.pull.max_stale.as_secs(), config.pull.offline), (10, 86_400, true));
    assert_eq!(config.cache.max_size, millpond::cache::MaxSize::Bytes(10 << 20));
    assert_eq!(std::fs::read_to_string(config.access.htpasswd.unwrap()).unwrap().lines().count(), 2);
    assert_eq!((config.access.secret_paths.len(), config.access.networks.len()), (1, 1));
    assert!(config.server.tls.unwrap().client_ca.is_some());
    builder.audit().assert_sound().assert_temporary(0);
}

#[tokio::test]
async fn a_mirror_serves_stops_and_serves_again_from_its_folder() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([MIB, 100]));
    let mirror = Builder::new().upstream("docker.io", &hub).start();
    let pulled = pull(&mirror.url(), REPO, "latest").await.unwrap();
    assert_eq!(pulled.digest, image.digest);
    assert_eq!(hub.violations(), [""; 0]);
    for blob in image.blobs() {
        assert_eq!((hub.gets_of(&blob.digest), hub.bytes_of(&blob.digest)), (1, blob.len()), "{}", hub.story());
    }
    assert!(mirror.metric("millpond_requests_total", &[]).await >= 4.0);
    mirror.settled().await;
    let settings = mirror.stop().await;
    settings.audit().assert_sound().assert_temporary(0);

    hub.down().await;
    let again = settings.start();
    assert_eq!(pull(&again.url(), REPO, "latest").await.unwrap().digest, image.digest);
}

#[tokio::test]
async fn the_program_is_killed_ended_and_started_again() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([MIB, 100]));
    let program = Builder::new().upstream("docker.io", &plain).spawn().await;
    pull(&program.url(), REPO, "latest").await.unwrap();
    let settings = program.kill().await;
    // The last blobs may have been on their way to the disk still: they are fetched again, and nothing else is.
    let held = settings.audit().assert_sound().blobs.clone();
    let again = settings.spawn().await;
    pull(&again.url(), REPO, "latest").await.unwrap();
    for blob in image.blobs() {
        let gets = if held.contains(&blob.digest) { 1 } else { 2 };
        assert_eq!(plain.gets_of(&blob.digest), gets, "held: {held:?}\n{}", plain.story());
    }
    again.settled().await;
    let (status, settings) = again.terminate().await;
    assert_eq!(status.code(), Some(0));
    settings.audit().assert_sound().assert_temporary(0).assert_holds(image.blobs().map(|blob| &blob.digest).chain([&image.digest]));
}
