use hyper::Method;
use millpond::oci::Digest;

use super::{REPO, token, token_in, token_url};
use crate::support::client::{get, head, pull, pull_with};
use crate::support::registry::{Builder, Image, Index, Kind, Port, Registry};
use crate::support::{KIB, MIB};

#[tokio::test]
async fn the_dance_of_docker_hub_by_hand() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([MIB]));
    let layer = &image.layers[0];
    let manifest_url = format!("{}/v2/{REPO}/manifests/latest", hub.url());

    let ping = get(format!("{}/v2/", hub.url())).send().await;
    assert_eq!(ping.status, 401);
    assert!(!ping.header("www-authenticate").unwrap().contains("scope"), "the ping has no scope to tell");
    let refused = get(&manifest_url).send().await;
    let challenge = refused.header("www-authenticate").unwrap();
    assert_eq!(
        challenge,
        format!("Bearer realm=\"{}/token\",service=\"registry.docker.io\",scope=\"repository:{REPO}:pull\"", hub.url_of(Port::Auth))
    );
    let token = token_in(&get(token_url(challenge)).send().await);
    assert_eq!(get(format!("{}/v2/", hub.url())).bearer(&token).send().await.status, 200);

    let checked = head(&manifest_url).bearer(&token).send().await;
    assert_eq!((checked.status, checked.header("ratelimit-remaining")), (200, Some("100;w=21600")), "HEAD is free");
    let manifest = get(&manifest_url).bearer(&token).send().await;
    assert_eq!((manifest.status, manifest.header("ratelimit-remaining")), (200, Some("99;w=21600")));
    assert_eq!(manifest.header("docker-content-digest"), Some(&*image.digest.to_string()));
    assert_eq!(manifest.header("content-type"), Some(&*image.media_type));
    assert_eq!(manifest.body, image.manifest);

    let redirect = get(format!("{}/v2/{REPO}/blobs/{}", hub.url(), layer.digest)).bearer(&token).send().await;
    assert_eq!((redirect.status, redirect.body.len()), (307, 0));
    let location = redirect.header("location").unwrap();
    assert!(location.starts_with(&hub.url_of(Port::CdnA)), "{location}");
    let blob = get(location).send().await;
    assert_eq!((blob.status, Digest::sha256_of(&blob.body)), (200, layer.digest));

    assert_eq!(hub.violations(), [""; 0]);
    assert_eq!((hub.count(Kind::Ping), hub.count(Kind::Token), hub.count(Kind::Manifest.get())), (2, 1, 2));
    assert_eq!((hub.gets_of(&image.digest), hub.gets_of(&layer.digest)), (1, 1));
    assert_eq!((hub.bytes_of(&layer.digest), hub.pulls()), (MIB, 1));
    let asked: Vec<Port> = hub.requests().iter().map(|record| record.port).collect();
    assert_eq!(asked.len(), 8);
    assert_eq!(asked.last(), Some(&Port::CdnA));
}

#[tokio::test]
async fn a_token_opens_only_its_repository_and_only_for_its_time() {
    let hub = Registry::hub().await;
    hub.image(REPO, "latest", Image::layers([1]));
    hub.image("library/other", "latest", Image::layers([1]));
    let token = token(&hub).await;
    let of = |repo: &str| get(format!("{}/v2/{repo}/manifests/latest", hub.url())).bearer(&token).send();
    assert_eq!(of(REPO).await.status, 200);
    let other = of("library/other").await;
    assert!(other.status == 401 && other.header("www-authenticate").unwrap().contains("error=\"insufficient_scope\""));
    hub.revoke_tokens();
    let expired = of(REPO).await;
    assert!(expired.status == 401 && expired.header("www-authenticate").unwrap().contains("error=\"invalid_token\""));
}

#[tokio::test]
async fn a_token_may_live_for_few_requests_only() {
    let hub = Builder::hub().quirks(|q| q.token_uses = Some(2)).start().await;
    hub.image(REPO, "latest", Image::layers([1]));
    let token = token(&hub).await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(head(format!("{}/v2/{REPO}/manifests/latest", hub.url())).bearer(&token).send().await.status);
    }
    assert_eq!(statuses, [200, 200, 401]);
}

#[tokio::test]
async fn a_private_repository_is_for_users() {
    let hub = Registry::hub().await;
    hub.image("org/app", "1", Image::layers([1]));
    hub.private("org/app");
    hub.user("ann", "secret");
    let token_url = format!("{}/token?service=registry.docker.io&scope=repository:org/app:pull", hub.url_of(Port::Auth));
    let manifest = |token: String| get(format!("{}/v2/org/app/manifests/1", hub.url())).bearer(&token).send();

    let anonymous = token_in(&get(&token_url).send().await);
    assert_eq!(manifest(anonymous).await.status, 401, "a token without access, as Docker Hub gives");
    let ann = token_in(&get(&token_url).basic("ann", "secret").send().await);
    assert_eq!(manifest(ann).await.status, 200);
    let wrong = get(&token_url).basic("ann", "guess").send().await;
    assert_eq!((wrong.status, wrong.text()), (401, r#"{"details":"incorrect username or password"}"#));

    let form =
        "grant_type=password&service=registry.docker.io&scope=repository:org/app:pull&username=ann&password=secret&access_type=offline";
    let posted = crate::support::client::Ask::new(Method::POST, &format!("{}/token", hub.url_of(Port::Auth))).body(form).send().await;
    assert_eq!(posted.json()["refresh_token"], "refresh-ann");
    assert_eq!(manifest(token_in(&posted)).await.status, 200);
    assert_eq!(hub.violations(), [""; 0]);
}

#[tokio::test]
async fn a_cdn_wants_its_own_fresh_url_and_no_token() {
    let hub = Registry::hub().await;
    let image = hub.image(REPO, "latest", Image::layers([KIB]));
    let token = token(&hub).await;
    let locate = async || {
        let redirect = get(format!("{}/v2/{REPO}/blobs/{}", hub.url(), image.layers[0].digest)).bearer(&token).send().await;
        redirect.header("location").unwrap().to_owned()
    };
    let (first, second) = (locate().await, locate().await);
    assert!(second.starts_with(&hub.url_of(Port::CdnB)), "the CDNs take turns");
    let (one, two) = (get(&first).send().await, get(&second).send().await);
    assert_eq!((one.status, two.status), (200, 200));
    assert_ne!(one.header("etag"), two.header("etag"), "what is the same has another ETag elsewhere");
    let at_the_other = first.replace(&hub.url_of(Port::CdnA), &hub.url_of(Port::CdnB));
    assert_eq!(get(&at_the_other).send().await.status, 403);
    assert_eq!(get(&first[..first.len() - 1]).send().await.status, 403);
    hub.expire_urls();
    assert_eq!(get(&first).send().await.status, 403);

    assert_eq!(hub.violations(), [""; 0]);
    assert_eq!(get(&first).bearer(&token).send().await.status, 400);
    assert_eq!(hub.violations().len(), 1, "{:?}", hub.violations());
}

#[tokio::test]
async fn pulls_are_counted_down_to_429() {
    let hub = Registry::hub().await;
    hub.image(REPO, "latest", Image::layers([1]));
    hub.pulls_left(1);
    let token = token(&hub).await;
    let url = format!("{}/v2/{REPO}/manifests/latest", hub.url());
    assert_eq!(get(&url).bearer(&token).send().await.status, 200);
    let refused = get(&url).bearer(&token).send().await;
    assert_eq!((refused.status, refused.header("ratelimit-remaining")), (429, Some("0;w=21600")));
    assert_eq!(refused.json()["errors"][0]["code"], "TOOMANYREQUESTS");
    assert_eq!(head(&url).bearer(&token).send().await.status, 200);
}

#[tokio::test]
async fn what_a_mirror_must_not_do_is_noted() {
    let hub = Registry::hub().await;
    hub.image(REPO, "latest", Image::layers([1]));
    let url = format!("{}/v2/{REPO}/manifests/latest", hub.url());
    get(&url).header("Host", "docker.io").send().await;
    get(format!("{url}?ns=docker.io")).send().await;
    get(&url).basic("ann", "secret").send().await;
    get(format!("{}/token?service=registry.docker.io&scope=repository:{REPO}:pull,push", hub.url_of(Port::Auth))).send().await;
    crate::support::client::Ask::new(Method::PUT, &url).body("{}").send().await;
    let other = Registry::hub().await;
    other.image(REPO, "latest", Image::layers([1]));
    get(&url).bearer(&token(&other).await).send().await;
    let violations = hub.violations();
    for (violation, word) in violations.iter().zip(["the Host of", "ns", "not a token", "more than pull", "write", "another registry"]) {
        assert!(violation.contains(word), "{violation}");
    }
    assert_eq!(violations.len(), 6, "{violations:?}");
}

#[tokio::test]
async fn a_pull_sees_a_whole_image() {
    let plain = Registry::plain().await;
    let index = plain.index(REPO, "latest", Index::platforms(&Image::layers([MIB, 0, 5]), &["linux/amd64", "linux/arm64"]));
    let pulled = pull(&plain.url(), REPO, "latest").await.unwrap();
    assert_eq!(pulled.manifests, [index.digest, index.children[0].digest]);
    assert_eq!(pulled.blobs.len(), 4);
    assert!(pull(&plain.url(), REPO, "missing").await.is_err());
    assert_eq!(plain.pulls(), 0, "no limit");

    // Docker Hub without the CDNs, so that the simple client can follow.
    let hub = Builder::hub().quirks(|q| q.blobs = crate::support::registry::Blobs::Inline).start().await;
    hub.image(REPO, "latest", Image::layers([MIB]).docker());
    let token = token(&hub).await;
    assert_eq!(pull_with(&hub.url(), REPO, "latest", |ask| ask.bearer(&token)).await.unwrap().manifests.len(), 1);
}

#[tokio::test]
async fn tags_move_and_go() {
    let plain = Registry::plain().await;
    let old = plain.image(REPO, "latest", Image::layers([1]));
    let new = plain.push_untagged(REPO, Image::layers([1]).seed(2));
    let resolve = async || head(format!("{}/v2/{REPO}/manifests/latest", plain.url())).send().await;
    assert_eq!(resolve().await.header("docker-content-digest"), Some(&*old.digest.to_string()));
    plain.tag(REPO, "latest", &new.digest);
    assert_eq!(resolve().await.header("docker-content-digest"), Some(&*new.digest.to_string()));
    let unchanged = get(format!("{}/v2/{REPO}/manifests/latest", plain.url())).header("If-None-Match", &format!("\"{}\"", new.digest));
    assert_eq!(unchanged.send().await.status, 304);
    plain.untag(REPO, "latest");
    let gone = resolve().await;
    assert_eq!((gone.status, gone.body.len()), (404, 0));
    plain.remove_manifest(REPO, &new.digest);
    plain.remove_blob(REPO, &new.layers[0].digest);
    assert_eq!(get(format!("{}/v2/{REPO}/manifests/{}", plain.url(), new.digest)).send().await.status, 404);
    assert_eq!(get(format!("{}/v2/{REPO}/blobs/{}", plain.url(), new.layers[0].digest)).send().await.status, 404);
}
