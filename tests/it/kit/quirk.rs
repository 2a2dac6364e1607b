use super::{REPO, one_layer, token_in};
use crate::support::client::{Ask, get, head};
use crate::support::registry::{
    Accept, Announced, Auth, Blobs, Builder, Challenge, ContentType, DOCKER_MANIFEST, DigestHeader, Head, Image, Index, OCI_INDEX,
    OCI_MANIFEST, Port, Quirks, RateLimit, Redirect, Referrers, Registry, TokenFields,
};

#[tokio::test]
async fn challenges_have_many_shapes() {
    let hub = Registry::hub().await;
    hub.image(REPO, "latest", Image::layers([1]));
    let realm = format!("realm=\"{}/token\"", hub.url_of(Port::Auth));
    let scope = format!("scope=\"repository:{REPO}:pull\"");
    for (challenge, expected) in [
        (Challenge::Unquoted, vec![format!("Bearer {realm},service=registry.docker.io,{scope}")]),
        (Challenge::NoService, vec![format!("Bearer {realm},{scope}")]),
        (Challenge::NoScope, vec![format!("Bearer {realm},service=\"registry.docker.io\"")]),
        (Challenge::PlaceholderScope, vec![format!("Bearer {realm},service=\"registry.docker.io\",scope=\"repository:user/image:pull\"")]),
        (Challenge::BasicAndBearer, vec![format!("Basic {realm}, Bearer {realm},service=\"registry.docker.io\",{scope}")]),
        (Challenge::TwoLines, vec![format!("Basic {realm}"), format!("Bearer {realm},service=\"registry.docker.io\",{scope}")]),
    ] {
        hub.quirks(|q| q.challenge = challenge);
        let reply = get(format!("{}/v2/{REPO}/manifests/latest", hub.url())).send().await;
        let lines: Vec<&str> = reply.headers.get_all("www-authenticate").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(lines, expected, "{challenge:?}");
    }
    hub.quirks(|q| (q.challenge, q.realm) = (Challenge::Hub, Some("http://evil.invalid/token".into())));
    let reply = get(format!("{}/v2/", hub.url())).send().await;
    assert!(reply.header("www-authenticate").unwrap().contains("realm=\"http://evil.invalid/token\""));
}

#[tokio::test]
async fn token_answers_have_many_shapes() {
    let hub = Registry::hub().await;
    hub.image(REPO, "latest", Image::layers([1]));
    let url = format!("{}/token?service=registry.docker.io&scope=repository:{REPO}:pull", hub.url_of(Port::Auth));
    let full = get(&url).send().await.json();
    assert_eq!(full["token"], full["access_token"]);
    assert_eq!((full["expires_in"].as_u64(), full["issued_at"].is_string()), (Some(300), true));
    hub.quirks(|q| (q.token_fields, q.expires_in) = (TokenFields::Token, Announced::Nothing));
    let quay = get(&url).send().await.json();
    assert_eq!(quay.as_object().unwrap().keys().collect::<Vec<_>>(), ["token"]);
    hub.quirks(|q| (q.token_fields, q.expires_in) = (TokenFields::AccessToken, Announced::Seconds(0)));
    let other = get(&url).send().await.json();
    assert!(other["token"].is_null() && other["access_token"].is_string() && other["expires_in"] == 0);

    hub.quirks(|q| q.token_ttl = std::time::Duration::ZERO);
    let short = get(&url).send().await.json();
    let used = get(format!("{}/v2/", hub.url())).bearer(short["access_token"].as_str().unwrap()).send().await;
    assert_eq!(used.status, 401, "announced or not, it lives as long as it lives");

    hub.quirks(|q| (q.token_post, q.token_denied) = (Some(405), Some(403)));
    assert_eq!(Ask::new(hyper::Method::POST, &url).send().await.status, 405);
    assert_eq!(get(url.replace("debian", "unknown")).send().await.status, 403);
    assert_eq!(get(url.replace("registry.docker.io", "else")).send().await.status, 400);
}

#[tokio::test]
async fn basic_is_asked_for_on_every_request() {
    let registry = Builder::plain().quirks(|q| q.auth = Auth::Basic).start().await;
    registry.image(REPO, "latest", Image::layers([1]));
    registry.user("ann", "secret");
    let url = format!("{}/v2/{REPO}/manifests/latest", registry.url());
    let refused = get(&url).send().await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Basic realm=\"Registry\"")));
    assert_eq!(get(&url).basic("ann", "guess").send().await.status, 401);
    assert_eq!(get(&url).basic("ann", "secret").send().await.status, 200);
    assert_eq!(registry.violations(), [""; 0]);
}

#[tokio::test]
async fn accept_may_matter() {
    let registry = Registry::plain().await;
    let index = registry.index(REPO, "latest", Index::platforms(&Image::layers([1]), &["linux/amd64", "linux/arm64"]));
    let url = format!("{}/v2/{REPO}/manifests/latest", registry.url());
    let ask = |accept: &str| get(&url).header("Accept", accept).send();
    assert_eq!(get(&url).send().await.header("content-type"), Some(OCI_INDEX));
    registry.quirks(|q| q.accept = Accept::Strict);
    let refused = ask("*/*").await;
    assert_eq!((refused.status, refused.text().contains("OCI index found, but accept header does not support")), (404, true));
    assert_eq!(ask(&format!("{DOCKER_MANIFEST}, {OCI_INDEX};q=0.5")).await.status, 200);
    let two_lines = get(&url).header("Accept", DOCKER_MANIFEST).header("Accept", OCI_INDEX).send().await;
    assert_eq!(two_lines.status, 200);
    registry.quirks(|q| q.accept = Accept::Child);
    let child = ask(OCI_MANIFEST).await;
    assert_eq!(child.header("docker-content-digest"), Some(&*index.children[0].digest.to_string()));
    assert_eq!(child.body, index.children[0].manifest);
    registry.quirks(|q| q.accept = Accept::Schema1);
    assert!(ask("*/*").await.header("content-type").unwrap().ends_with("v1+prettyjws"));
    assert_eq!(ask(OCI_INDEX).await.body, index.manifest);
}

#[tokio::test]
async fn heads_of_manifests_may_be_poor() {
    let registry = Registry::plain().await;
    let image = registry.image(REPO, "latest", Image::layers([1]));
    let url = format!("{}/v2/{REPO}/manifests/latest", registry.url());
    let ask = async |quirk: fn(&mut Quirks)| {
        registry.quirks(quirk);
        head(&url).send().await
    };
    let right = ask(|_| ()).await;
    let len = image.manifest.len().to_string();
    assert_eq!((right.header("content-length"), right.body.len()), (Some(&*len), 0));
    assert_eq!(ask(|q| q.head = Head::Refused).await.status, 405);
    assert_eq!(ask(|q| q.head = Head::NoDigest).await.header("docker-content-digest"), None);
    let no_length = ask(|q| q.head = Head::NoLength).await;
    assert_eq!((no_length.status, no_length.header("content-length")), (200, None));
    assert_eq!(get(&url).send().await.body, image.manifest, "GET is not concerned");
    assert_eq!(ask(|q| q.head = Head::WithBody).await.body.len(), 0, "a good client does not take it for a body");
    let wrong = ask(|q| (q.head, q.digest_header) = (Head::Right, DigestHeader::Wrong)).await;
    assert_ne!(wrong.header("docker-content-digest"), Some(&*image.digest.to_string()));
    assert_eq!(ask(|q| q.digest_header = DigestHeader::Missing).await.header("docker-content-digest"), None);
    assert!(ask(|q| q.content_type = ContentType::WithCharset).await.header("content-type").unwrap().ends_with("; charset=utf-8"));
    assert_eq!(ask(|q| q.content_type = ContentType::Missing).await.header("content-type"), None);
    assert_eq!(ask(|q| q.content_type = ContentType::Text).await.header("content-type"), Some("text/plain"));
}

#[tokio::test]
async fn contents_are_compressed_for_whoever_lets_it() {
    let (registry, image, url) = one_layer(100).await;
    registry.quirks(|q| q.gzips = true);
    assert_eq!(get(&url).header("Accept-Encoding", "identity").send().await.body, image.layers[0].content.to_bytes());
    let zipped = get(&url).header("Accept-Encoding", "zstd, gzip").send().await;
    assert_eq!((zipped.header("content-encoding"), zipped.body.len() > 100), (Some("gzip"), true));
}

#[tokio::test]
async fn redirects_have_many_shapes() {
    let (registry, image, url) = one_layer(100).await;
    registry.quirks(|q| q.blobs = Blobs::Redirect(Redirect::QUAY));
    let quay = get(&url).send().await;
    assert_eq!((quay.status, quay.header("cache-control")), (302, Some("max-age=31536000")));
    assert!(!quay.body.is_empty());
    assert_eq!(head(&url).send().await.status, 302);
    registry.quirks(|q| q.head_blob_direct = true);
    assert_eq!(head(&url).send().await.header("content-length"), Some("100"));

    registry.quirks(|q| (q.blobs, q.url_once) = (Blobs::Redirect(Redirect::GCR), true));
    let gcr = get(&url).send().await;
    let location = gcr.header("location").unwrap();
    assert!(location.starts_with("/artifacts-downloads/"), "{location}");
    let hop = format!("{}{location}", registry.url());
    assert_eq!(get(&hop).send().await.body, image.layers[0].content.to_bytes());
    assert_eq!(get(&hop).send().await.status, 403, "good once");

    registry.quirks(|q| (q.blobs, q.url_ttl) = (Blobs::Redirect(Redirect::HUB), std::time::Duration::ZERO));
    assert_eq!(get(get(&url).send().await.header("location").unwrap()).send().await.status, 403, "expired at once");

    let other = Registry::hub().await;
    other.image(REPO, "latest", Image::layers([100]));
    registry.quirks(|q| q.manifests_at = Some(other.url()));
    let elsewhere = get(format!("{}/v2/{REPO}/manifests/latest", registry.url())).send().await;
    let location = elsewhere.header("location").unwrap();
    assert_eq!((elsewhere.status, location), (307, &*format!("{}/v2/{REPO}/manifests/latest", other.url())));
    let challenged = get(location).send().await;
    assert_eq!(challenged.status, 401);
    let token = token_in(&get(super::token_url(challenged.header("www-authenticate").unwrap())).send().await);
    assert_eq!(get(location).bearer(&token).send().await.body, image.manifest);
}

#[tokio::test]
async fn referrers_are_listed_filtered_paged_or_unknown() {
    let registry = Registry::plain().await;
    let image = registry.image(REPO, "latest", Image::layers([1]));
    let sboms: Vec<_> =
        (1..4).map(|seed| registry.push_untagged(REPO, Image::artifact("application/spdx+json", 5).seed(seed).subject(&image))).collect();
    registry.push_untagged(REPO, Image::artifact("application/vnd.sig", 5).subject(&image));
    let url = format!("{}/v2/{REPO}/referrers/{}", registry.url(), image.digest);
    assert_eq!(get(&url).send().await.status, 404);
    registry.quirks(|q| q.referrers = Referrers::Empty);
    assert_eq!(get(&url).send().await.json()["manifests"], serde_json::json!([]));

    registry.quirks(|q| q.referrers = Referrers::Listed { page: 2 });
    let mut found = Vec::new();
    let mut next = Some(format!("{url}?artifactType=application%2Fspdx%2Bjson"));
    while let Some(page) = next {
        let reply = get(&page).send().await;
        assert_eq!((reply.header("content-type"), reply.header("oci-filters-applied")), (Some(OCI_INDEX), Some("artifactType")));
        found.extend(reply.json()["manifests"].as_array().unwrap().iter().map(|listed| listed["digest"].as_str().unwrap().to_owned()));
        next = reply.header("link").map(|link| registry.url() + link.strip_prefix('<').unwrap().split('>').next().unwrap());
    }
    assert_eq!(found, sboms.iter().map(|sbom| sbom.digest.to_string()).collect::<Vec<_>>());
    assert_eq!(get(format!("{}/v2/{REPO}/referrers/latest", registry.url())).send().await.status, 400);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let registry = Registry::plain().await;
    let image = registry.image(REPO, "a", Image::layers([1]));
    for tag in ["b", "c", "d"] {
        registry.tag(REPO, tag, &image.digest);
    }
    let url = format!("{}/v2/{REPO}/tags/list", registry.url());
    let all = get(&url).send().await;
    assert_eq!((all.text(), all.header("link")), (r#"{"name":"library/debian","tags":["a","b","c","d"]}"#, None));
    let page = get(format!("{url}?n=2&last=a")).send().await;
    assert_eq!(page.json()["tags"], serde_json::json!(["b", "c"]));
    assert_eq!(page.header("link"), Some(&*format!("</v2/{REPO}/tags/list?n=2&last=c>; rel=\"next\"")));
    registry.quirks(|q| (q.tags_page, q.absolute_links) = (Some(3), true));
    assert_eq!(get(&url).send().await.header("link"), Some(&*format!("<{url}?last=c>; rel=\"next\"")));
    assert_eq!(get(format!("{url}?n=0")).send().await.json()["tags"], serde_json::json!([]));
    assert_eq!(get(format!("{url}?n=x")).send().await.status, 400);
    registry.quirks(|q| q.null_tags = true);
    assert!(get(format!("{url}?last=z")).send().await.json()["tags"].is_null());
    assert_eq!(get(url.replace("debian", "unknown")).send().await.json()["errors"][0]["code"], "NAME_UNKNOWN");
}

#[tokio::test]
async fn a_registry_may_live_below_a_path_and_count_in_its_own_way() {
    let limit = RateLimit { limit: 10, window: 3600, prefixed: true };
    let registry = Builder::plain().quirks(|q| (q.prefix, q.rate_limit) = ("/mirror".into(), Some(limit))).start().await;
    registry.image(REPO, "latest", Image::layers([1]));
    let reply = get(format!("{}/v2/{REPO}/manifests/latest", registry.url())).send().await;
    assert_eq!((reply.status, reply.header("x-ratelimit-remaining")), (200, Some("9;w=3600")));
    assert_eq!(get(format!("{}/v2/", registry.url_of(Port::Registry))).send().await.status, 404);
}

#[tokio::test]
async fn names_are_searched_and_a_repository_may_be_called_anything() {
    let registry = Registry::hub().await;
    registry.image("library/mysql", "8", Image::layers([1]));
    let search = registry.url_of(Port::Search);
    assert_eq!(get(format!("{search}/v1/search?q=mysql&n=25")).send().await.json()["results"][0]["name"], "mysql");
    assert_eq!(get(format!("{search}/v2/search/repositories/?query=sql")).send().await.json()["results"][0]["repo_name"], "library/mysql");
    assert_eq!(get(format!("{search}/v1/_ping")).send().await.status, 200);

    let plain = Registry::plain().await;
    for name in ["manifests/blobs", "a/tags/list", "blobs"] {
        let image = plain.image(name, "latest", Image::layers([1]));
        let escaped = image.digest.to_string().replace(':', "%3A");
        assert_eq!(get(format!("{}/v2/{name}/manifests/{escaped}", plain.url())).send().await.body, image.manifest, "{name}");
    }
}
