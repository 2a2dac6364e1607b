//! The kit does what it says: what a test asserts on later is true only if these are.

mod client; // the client sees cuts, resets and slow bodies; the audit sees a wrong file
mod content; // contents are reproducible, readable anywhere, and named rightly
mod fault; // every fault is visible to a client
mod hub; // the dance of Docker Hub, step by step
mod mirror; // settings of the mirror are what its program reads
mod outage; // listeners go down and come back; TLS goes wrong
mod quirk; // registries that differ

use crate::support::client::{Reply, get};
use crate::support::registry::{Image, Pushed, Registry};

const REPO: &str = "library/debian";

/// A plain registry with one image of one layer, and the URL of that layer.
async fn one_layer(len: u64) -> (Registry, Pushed, String) {
    let registry = Registry::plain().await;
    let image = registry.image(REPO, "latest", Image::layers([len]));
    let url = format!("{}/v2/{REPO}/blobs/{}", registry.url(), image.layers[0].digest);
    (registry, image, url)
}

/// A token for the test's repository, got as a client does.
async fn token(registry: &Registry) -> String {
    let challenge = get(format!("{}/v2/{REPO}/manifests/latest", registry.url())).send().await;
    assert_eq!(challenge.status, 401);
    let answer = get(token_url(challenge.header("www-authenticate").unwrap())).send().await;
    token_in(&answer)
}

/// The URL to which a quoted challenge sends the client.
fn token_url(challenge: &str) -> String {
    let param = |name: &str| challenge.split(&format!("{name}=\"")).nth(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    let mut url = url::Url::parse(&param("realm").unwrap()).unwrap();
    for name in ["service", "scope"] {
        if let Some(value) = param(name) {
            url.query_pairs_mut().append_pair(name, &value);
        }
    }
    url.into()
}

fn token_in(answer: &Reply) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["token"].as_str().unwrap().to_owned()
}
