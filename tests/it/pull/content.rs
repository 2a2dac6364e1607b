use super::{REPO, assert_head_is_get, error_of, headers_without, mirror_of};
use crate::support::client::{get, head, pull};
use crate::support::registry::{Accept, Blob, Content, Image, Index, Kind, Pushed, Registry, Tree, Want};
use crate::support::{KIB, MIB};

/// The largest manifest that is taken, in bytes.
const LARGEST: usize = 4 << 20;

fn every_kind() -> Vec<(&'static str, Tree)> {
    let image = Image::layers([KIB]);
    let both = ["linux/amd64", "linux/arm64"];
    vec![
        ("oci", image.clone().into()),
        ("docker", image.clone().docker().into()),
        ("index", Index::platforms(&image, &both).into()),
        ("list", Index::platforms(&image.clone().docker(), &both).docker().into()),
        ("nested", Index::of([Index::of([image.clone()]), Index::platforms(&image, &both)]).into()),
        ("artifact", Image::artifact("application/spdx+json", 100).into()),
        ("signature", Image::artifact("application/x.signature", 100).subject(&Tree::from(image.clone()).build()).into()),
        ("windows", image.clone().foreign_layer("https://example.com/base.tar").into()),
        ("sha512", image.clone().sha512().into()),
        ("sha512-index", Index::of([image.clone().sha512()]).sha512().into()),
        ("no-layers", Image::layers([]).into()),
        ("largest", image.padded_to(LARGEST).into()),
    ]
}

#[tokio::test]
async fn every_kind_of_manifest_comes_byte_for_byte_by_tag_and_by_digest() {
    let plain = Registry::plain().await;
    let by_tag = mirror_of(&plain);
    let by_digest = mirror_of(&plain);
    for (tag, tree) in every_kind() {
        let pushed = plain.push(REPO, tag, tree);
        let digest = pushed.digest.to_string();
        for url in [by_tag.manifest(REPO, tag), by_tag.manifest(REPO, &digest), by_digest.manifest(REPO, &digest)] {
            let cold = head(&url).send().await;
            let reply = get(&url).send().await;
            assert_eq!(reply.status, 200, "{url}: {}", reply.text());
            assert!(reply.is_whole() && reply.body == pushed.manifest, "{url}");
            for (name, value) in [
                ("content-type", pushed.media_type.clone()),
                ("docker-content-digest", digest.clone()),
                ("etag", format!("\"{digest}\"")),
                ("content-length", pushed.manifest.len().to_string()),
            ] {
                assert_eq!(reply.header(name), Some(&*value), "{url}: {name}");
            }
            let but = &["cache-status"];
            assert_eq!(headers_without(&cold.headers, but), headers_without(&reply.headers, but), "{url}");
            assert_head_is_get(&url).await;
        }
    }
    assert_eq!(plain.violations(), [""; 0]);
}

#[tokio::test]
async fn a_manifest_beyond_the_limit_is_refused_and_not_kept() {
    let plain = Registry::plain().await;
    let image = plain.image(REPO, "huge", Image::layers([KIB]).padded_to(LARGEST + 1));
    let mirror = mirror_of(&plain);
    for reference in ["huge".to_owned(), image.digest.to_string()] {
        let reply = get(mirror.manifest(REPO, reference)).send().await;
        assert_eq!(error_of(&reply), (502, "MANIFEST_INVALID".into()));
    }
    mirror.settled().await;
    mirror.stop().await.audit().assert_sound().assert_holds([]);
}

#[tokio::test]
async fn accept_changes_nothing() {
    // This registry gives the first child of an index to whoever does not list indexes.
    let plain = Registry::plain().await;
    plain.quirks(|quirks| quirks.accept = Accept::Child);
    let index = plain.index(REPO, "latest", Index::platforms(&Image::layers([KIB]), &["linux/amd64", "linux/arm64"]));
    let long = vec!["application/x.y+json"; 700].join(", ");
    let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    for accept in ["", "*/*;q=0", schema1, "application/vnd.oci.image.manifest.v1+json", &long] {
        let mirror = mirror_of(&plain);
        for reference in ["latest".to_owned(), index.digest.to_string()] {
            let reply = get(mirror.manifest(REPO, reference)).header("Accept", accept).send().await;
            assert_eq!((reply.status, &reply.body), (200, &index.manifest), "{accept}");
            assert_eq!(reply.header("content-type"), Some(&*index.media_type));
        }
    }
}

#[tokio::test]
async fn blobs_of_every_size_come_whole_and_head_says_what_get_says() {
    let plain = Registry::plain().await;
    let mirror = mirror_of(&plain);
    let sizes = [0, 1, 2048, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 3 * MIB + 7];
    let sha256 = sizes.into_iter().map(|len| Blob::seeded(len + 1, len));
    let sha512 = [0, 5, MIB].into_iter().map(|len| Blob::sha512(Content::seeded(len + 2, len)));
    for blob in sha256.chain(sha512) {
        // No manifest names it: the upstream's word is the link.
        plain.blob(REPO, &blob);
        let url = mirror.blob(REPO, blob.digest);
        let cold = head(&url).send().await;
        assert_eq!((cold.status, plain.gets_of(&blob.digest)), (200, 0), "HEAD starts no fill");
        for _ in 0..2 {
            let reply = get(&url).send().await;
            assert!(reply.status == 200 && reply.is_whole() && blob.digest.is_of(&reply.body), "{url}: {}", reply.status);
            let but = &["cache-status"];
            assert_eq!(headers_without(&cold.headers, but), headers_without(&reply.headers, but), "{url}");
            assert_eq!(reply.header("content-length"), Some(&*blob.len().to_string()));
            assert_eq!(reply.header("docker-content-digest"), Some(&*blob.digest.to_string()));
            mirror.settled().await;
        }
        assert_head_is_get(&url).await;
        assert_eq!((plain.gets_of(&blob.digest), plain.bytes_of(&blob.digest)), (1, blob.len()), "{}", plain.story());
    }
}

#[tokio::test]
async fn a_whole_tree_is_pulled_by_its_names() {
    let hub = Registry::hub().await;
    let mirror = mirror_of(&hub);
    // The base of a Windows image is elsewhere: clients know.
    for (tag, tree) in every_kind().into_iter().filter(|(tag, _)| *tag != "windows") {
        let pushed = hub.push(REPO, tag, tree);
        assert_eq!(pull(&mirror.url(), REPO, tag).await.map(|pulled| pulled.digest), Ok(pushed.digest), "{tag}");
    }
    assert_eq!(hub.violations(), [""; 0]);
}

#[tokio::test]
async fn what_is_not_there_is_said_in_the_registrys_words() {
    let hub = Registry::hub().await;
    let image: Pushed = hub.image(REPO, "latest", Image::layers([KIB]));
    let mirror = mirror_of(&hub);
    let absent = Blob::seeded(99, 5).digest;
    let unknown = |url: String, code: &'static str| (url, code);
    for (url, code) in [
        unknown(mirror.manifest(REPO, "none"), "MANIFEST_UNKNOWN"),
        unknown(mirror.manifest(REPO, absent), "MANIFEST_UNKNOWN"),
        unknown(mirror.blob(REPO, absent), "BLOB_UNKNOWN"),
        unknown(mirror.blob(REPO, Blob::sha512(Content::bytes("none")).digest), "BLOB_UNKNOWN"),
        unknown(mirror.manifest("no/such", "latest"), "MANIFEST_UNKNOWN"),
        unknown(format!("{}/v2/no/such/tags/list", mirror.url()), "NAME_UNKNOWN"),
        // A manifest is no blob for a registry that keeps them apart, nor is a blob a manifest.
        unknown(mirror.manifest(REPO, image.layers[0].digest), "MANIFEST_UNKNOWN"),
    ] {
        let reply = get(&url).send().await;
        assert_eq!(error_of(&reply), (404, code.into()), "{url}");
        let bare = head(&url).send().await;
        assert_eq!((bare.status, bare.body.len()), (404, 0), "{url}");
        assert_eq!(bare.header("content-type"), Some("application/json"));
    }
    hub.forget();
    assert_eq!(get(mirror.manifest(REPO, "none")).send().await.status, 404);
    assert_eq!(hub.count(Want::from(Kind::Manifest)), 0, "remembered for a moment");
}
