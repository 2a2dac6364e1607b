use serde_json::Value;

use super::{REPO, error_of, mirror_of};
use crate::support::KIB;
use crate::support::client::{Reply, get, head};
use crate::support::mirror::{Builder, Mirror};
use crate::support::registry::{Image, Index, Kind, Pushed, Referrers, Registry};

/// The path that a Link names; it must be of this server.
fn next_of(reply: &Reply) -> Option<String> {
    let (target, rel) = reply.header("link")?.split_once('>').unwrap();
    assert_eq!(rel, "; rel=\"next\"");
    Some(target.strip_prefix("</").map(|path| format!("/{path}")).expect("a path of our own"))
}

/// All tags, page by page as a client follows them, and how many pages that were.
async fn follow(mirror: &Mirror, path: &str) -> (Vec<String>, usize) {
    let (mut tags, mut pages, mut next) = (Vec::new(), 0, Some(path.to_owned()));
    let base = path.split('?').next().unwrap();
    while let Some(path) = next {
        assert!(path.starts_with(base) && pages < 20, "{path}");
        let reply = get(mirror.url() + &path).send().await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        let page = reply.json();
        tags.extend(page["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()));
        (pages, next) = (pages + 1, next_of(&reply));
    }
    (tags, pages)
}

#[tokio::test]
async fn tags_are_listed_page_by_page_in_every_layout() {
    for absolute in [false, true] {
        let (hub, other) = (Registry::hub().await, Registry::plain().await);
        for (registry, tag) in [(&hub, "hub"), (&other, "other")] {
            registry.quirks(|quirks| quirks.absolute_links = absolute);
            for n in 1..=5 {
                registry.image("org/app", &format!("{tag}-{n}"), Image::layers([KIB]));
            }
        }
        let mirror = Builder::new().upstream("docker.io", &hub).upstream("ghcr.io", &other).start();
        for (path, tag) in [
            ("/v2/org/app/tags/list?", "hub"),
            ("/v2/docker.io/org/app/tags/list?", "hub"),
            ("/docker.io/v2/org/app/tags/list?", "hub"),
            ("/v2/ghcr.io/org/app/tags/list?", "other"),
            ("/ghcr.io/v2/org/app/tags/list?", "other"),
            ("/v2/org/app/tags/list?ns=ghcr.io&", "other"),
        ] {
            let all: Vec<String> = (1..=5).map(|n| format!("{tag}-{n}")).collect();
            assert_eq!(follow(&mirror, path).await, (all.clone(), 1), "{path}");
            assert_eq!(follow(&mirror, &format!("{path}n=2")).await, (all.clone(), 3), "{path}");
            assert_eq!(follow(&mirror, &format!("{path}n=2&last={tag}-2")).await, (all[2..].to_vec(), 2), "{path}");
            assert_eq!(follow(&mirror, &format!("{path}n=5")).await, (all, 1), "{path}");
            assert_eq!(follow(&mirror, &format!("{path}n=0")).await, (vec![], 1), "{path}");
        }
        assert_eq!((hub.violations(), other.violations()), (vec![], vec![]));
    }
}

#[tokio::test]
async fn pages_that_the_upstream_cuts_are_followed_and_an_empty_list_is_a_list() {
    let plain = Registry::plain().await;
    plain.quirks(|quirks| (quirks.tags_page, quirks.null_tags) = (Some(1), true));
    let image = plain.image(REPO, "a", Image::layers([KIB]));
    for tag in ["b", "c"] {
        plain.tag(REPO, tag, &image.digest);
    }
    plain.push_untagged("library/untagged", Image::layers([KIB]));
    let mirror = mirror_of(&plain);
    let (tags, pages) = follow(&mirror, &format!("/v2/{REPO}/tags/list")).await;
    assert_eq!((tags, pages), (vec!["a".into(), "b".into(), "c".into()], 3));
    let empty = get(format!("{}/v2/library/untagged/tags/list", mirror.url())).send().await;
    assert_eq!((empty.status, empty.json()["tags"].clone()), (200, Value::Array(vec![])));
    assert_eq!(empty.json()["name"], "library/untagged");
    let bare = head(format!("{}/v2/{REPO}/tags/list", mirror.url())).send().await;
    assert_eq!((bare.status, bare.body.len()), (200, 0));
    assert_eq!(bare.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn tags_that_are_held_are_listed_when_nobody_answers() {
    let plain = Registry::plain().await;
    for tag in ["b", "a", "c", "never"] {
        plain.image(REPO, tag, Image::layers([KIB]));
    }
    let mirror = mirror_of(&plain);
    for tag in ["a", "b", "c"] {
        get(mirror.manifest(REPO, tag)).send().await;
    }
    plain.down().await;
    let all = vec!["a".into(), "b".into(), "c".into()];
    assert_eq!(follow(&mirror, &format!("/v2/{REPO}/tags/list?n=2")).await, (all, 2));
    let stale = get(format!("{}/v2/{REPO}/tags/list", mirror.url())).send().await;
    assert!(stale.header("cache-status").unwrap().contains("fwd=stale"), "{:?}", stale.headers);
    assert_eq!(get(format!("{}/v2/library/other/tags/list", mirror.url())).send().await.status, 503);
}

/// An image with three artifacts that refer to it, two of one type.
fn referred(registry: &Registry) -> (Pushed, Vec<String>) {
    let image = registry.image(REPO, "latest", Image::layers([KIB]));
    let kinds = ["application/x.sbom", "application/x.signature", "application/x.sbom"];
    let push = |(n, kind): (u64, &&str)| registry.push_untagged(REPO, Image::artifact(kind, 10).seed(n).subject(&image)).digest.to_string();
    let artifacts = (1..).zip(&kinds).map(push).collect();
    (image, artifacts)
}

fn digests(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/vnd.oci.image.index.v1+json"));
    let index = reply.json();
    assert_eq!(index["schemaVersion"], 2);
    index["manifests"].as_array().unwrap().iter().map(|manifest| manifest["digest"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn referrers_are_listed_and_filtered_by_the_api() {
    for page in [10, 1] {
        let plain = Registry::plain().await;
        plain.quirks(|quirks| quirks.referrers = Referrers::Listed { page });
        let (image, artifacts) = referred(&plain);
        let mirror = mirror_of(&plain);
        let url = format!("{}/v2/{REPO}/referrers/{}", mirror.url(), image.digest);
        let all = get(&url).send().await;
        assert_eq!((digests(&all), all.header("oci-filters-applied")), (artifacts.clone(), None), "pages of {page}");
        let sboms = get(format!("{url}?artifactType=application/x.sbom")).send().await;
        assert_eq!(digests(&sboms), [&*artifacts[0], &*artifacts[2]], "pages of {page}");
        assert_eq!(sboms.header("oci-filters-applied"), Some("artifactType"));
        let none = get(format!("{}/v2/{REPO}/referrers/{}", mirror.url(), image.layers[0].digest)).send().await;
        assert_eq!(digests(&none), [""; 0]);
        let bare = head(&url).send().await;
        assert_eq!((bare.status, bare.body.len()), (200, 0));
        // What is listed can be pulled.
        assert_eq!(get(mirror.manifest(REPO, &artifacts[0])).send().await.status, 200);
    }
}

#[tokio::test]
async fn without_the_api_the_tag_of_the_referrers_is_looked_up() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "latest", Image::layers([KIB]));
    let mirror = mirror_of(&plain);
    let url = |digest: &str| format!("{}/v2/{REPO}/referrers/{digest}", mirror.url());
    let other = plain.image(REPO, "other", Image::layers([KIB]).seed(9)).digest.to_string();
    assert_eq!(error_of(&get(url(&other)).send().await).0, 404);

    let sbom = Image::artifact("application/x.sbom", 10).subject(&image);
    let digest = image.digest.to_string();
    let list = plain.index(REPO, &digest.replace(':', "-"), Index::of([sbom]));
    let reply = get(url(&digest)).send().await;
    assert_eq!(digests(&reply), [list.children[0].digest.to_string()]);
    assert_eq!((&reply.body, reply.header("oci-filters-applied")), (&list.manifest, None));
    assert_eq!(plain.count(Kind::Referrers), 2, "{}", plain.story());

    plain.down().await;
    assert_eq!(get(url(&digest)).send().await.body, list.manifest, "held by its tag");
}
