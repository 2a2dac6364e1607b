use std::io::ErrorKind;

use super::{REPO, one_layer, token};
use crate::support::client::{Ended, Raw, Unanswered, address_of, get};
use crate::support::gate::Gate;
use crate::support::registry::{Builder, End, Fault, Image, Kind, Port, Registry};
use crate::support::tls::Certificate;
use crate::support::{KIB, MIB};

#[tokio::test]
async fn down_refuses_and_up_is_at_the_same_place() {
    let (registry, _, url) = one_layer(KIB).await;
    for _ in 0..3 {
        assert_eq!(get(&url).send().await.status, 200);
        registry.down().await;
        let Err(Unanswered::Connect(refused)) = get(&url).try_send().await else { panic!("there is nobody") };
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        registry.up().await;
    }
    assert_eq!((registry.count(Kind::Blob), registry.connections()), (3, 3));
}

#[tokio::test]
async fn down_cuts_what_is_under_way() {
    let (registry, _, url) = one_layer(MIB).await;
    let gate = Gate::closed();
    registry.on(Kind::Blob, Fault::stall(1000, &gate));
    let mut stream = get(&url).stream().await;
    stream.at_least(1000).await;
    registry.down().await;
    let Ended::Cut(_) = stream.rest().await.ended else { panic!("a cut") };
    assert_eq!(registry.requests()[0].end, Some(End::Cut));
}

#[tokio::test]
async fn one_host_may_be_down_alone() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([KIB]));
    let token = token(&hub).await;
    let locate = async || {
        let redirect = get(format!("{}/v2/{REPO}/blobs/{}", hub.url(), image.layers[0].digest)).bearer(&token).send().await;
        redirect.header("location").unwrap().to_owned()
    };
    hub.down_at(Port::CdnA).await;
    let (a, b) = (locate().await, locate().await);
    assert!(get(&a).try_send().await.is_err());
    assert_eq!(get(&b).send().await.status, 200);
    hub.up_at(Port::CdnA).await;
    assert_eq!(get(&a).send().await.status, 200);
}

#[tokio::test]
async fn a_connection_may_be_taken_and_left_without_a_word() {
    let (registry, _, url) = one_layer(KIB).await;
    let gate = Gate::closed();
    registry.hold_connections(Port::Registry, &gate);
    let asked = tokio::spawn(get(url).send());
    gate.reached(1).await;
    assert!(!asked.is_finished() && registry.requests().is_empty());
    gate.open();
    assert_eq!(asked.await.unwrap().status, 200);
}

#[tokio::test]
async fn https_is_good_or_wrong_as_told() {
    let good = Builder::hub().tls().start().await;
    let image = good.image(REPO, "latest", Image::layers([KIB]));
    let redirect = get(format!("{}/v2/{REPO}/blobs/{}", good.url(), image.layers[0].digest)).bearer(&token(&good).await).send().await;
    let location = redirect.header("location").unwrap();
    assert!(good.url().starts_with("https://") && location.starts_with("https://"));
    assert_eq!(get(location).send().await.body.len() as u64, KIB);

    for wrong in [Certificate::Expired, Certificate::WrongName, Certificate::UnknownAuthority] {
        let registry = Builder::plain().certificate(wrong).start().await;
        let Err(Unanswered::Connect(error)) = get(format!("{}/v2/", registry.url())).try_send().await else { panic!("{wrong:?}") };
        assert!(error.to_string().contains("certificate"), "{wrong:?}: {error}");
    }
}

#[tokio::test]
async fn a_tls_handshake_may_stall_and_a_body_be_cut_without_a_farewell() {
    let registry = Builder::plain().tls().start().await;
    let image = registry.image(REPO, "latest", Image::layers([KIB]));
    let url = format!("{}/v2/{REPO}/blobs/{}", registry.url(), image.layers[0].digest);
    for (fault, whole) in [(Fault::cut(10), false), (Fault::reset(10), false), (Fault::until_close(), true), (Fault::chunked(), true)] {
        registry.on(Kind::Blob, fault.clone().once());
        // A reset may overtake even the head.
        assert_eq!(get(&url).try_send().await.is_ok_and(|reply| reply.is_whole()), whole, "{fault:?}");
    }
    // Over TLS even a body that ends with the connection is told from one that was cut: close_notify is missing.
    registry.on(Kind::Blob, Fault::until_close().then_cut(10).once());
    assert!(!get(&url).send().await.is_whole());

    let gate = Gate::closed();
    registry.hold_connections(Port::Registry, &gate);
    let asked = tokio::spawn(get(url).send());
    gate.reached(1).await;
    assert!(!asked.is_finished());
    gate.open();
    assert_eq!(asked.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_registry_over_https_may_have_its_blobs_over_http() {
    let registry = Builder::hub().tls_at(&[Port::Registry, Port::Auth]).start().await;
    let image = registry.image(REPO, "latest", Image::layers([KIB]));
    let redirect =
        get(format!("{}/v2/{REPO}/blobs/{}", registry.url(), image.layers[0].digest)).bearer(&token(&registry).await).send().await;
    assert!(redirect.header("location").unwrap().starts_with("http://127.0.0.1"));
}

#[tokio::test]
async fn hosts_may_have_addresses_of_their_own() {
    let hub = Builder::hub().own_addresses().start().await;
    let mut addresses: Vec<_> = Port::ALL.iter().map(|port| hub.address(*port).ip()).collect();
    addresses.dedup();
    assert_eq!(addresses.len(), 5);
    hub.image(REPO, "latest", Image::layers([KIB]));
    assert!(!token(&hub).await.is_empty());
}

#[tokio::test]
async fn a_dropped_registry_is_gone() {
    let (registry, _, url) = one_layer(KIB).await;
    let mut raw = Raw::connect(address_of(&url)).await;
    raw.get("/v2/").await;
    raw.head().await;
    drop(registry);
    raw.drain().await;
    assert!(get(&url).try_send().await.is_err());
}
