use futures_util::future::join_all;

use super::{REPO, Target, assert_error_body, assert_tells_nothing};
use crate::support::client::get;
use crate::support::registry::Kind;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Paths that try to leave, or that lead nowhere.
const PATHS: &[&str] = &[
    "/v2/../../../etc/passwd",
    "/%2F%2F%2F..%2F..%2F..%2Fetc%2Fpasswd",
    "/v2/..%2f..%2fetc/manifests/passwd",
    "/v2/%2e%2e/manifests/x",
    "/v2/%2e%2e%2f%2e%2e/manifests/x",
    "/v2/%252e%252e/manifests/x",
    "/v2/a/../b/manifests/x",
    "/v2/./a/manifests/x",
    "/v2/a/blobs/../../../../etc/passwd",
    "//v2/library/alpine/manifests/latest",
    "/./v2/library/alpine/manifests/latest",
    "//evil.test/v2/",
    "/\\evil.test/v2/",
    "/v2/..\\..\\etc/manifests/x",
    "/v2/a%5c..%5cb/manifests/x",
    "/v2/library//alpine/manifests/latest",
    "/v2//manifests/x",
    "/v2/library/alpine/manifests/latest/",
    "/V2/",
    "/v1/",
    "/v1/users/",
    "//v1/_ping",
    "//v2/_catalog",
    "/./v2/_catalog",
    "/v2/%5fcatalog",
    "/v2/_catalog/",
    "/",
    "/index.html",
    "/metrics",
    "/healthz",
    "/admin",
    "/docker.io/metrics",
    "/docker.io/",
    "/v2/x/foo/bar",
    "/v2/a/tags",
    "/v2/a/tags/",
    "/v2/a/tags/other",
    "/v2/a",
    "/v2/a/blobs",
    "/v2/a/blobs/",
    "/v2/a/manifests/",
    "/v2/a/blobs/uploads/",
    "/v2/a/blobs/uploads/1234",
];

/// Names that are none.
const NAMES: &[&str] = &[
    "/v2/UPPER/case/manifests/x",
    "/v2/a..b/manifests/x",
    "/v2/-a/manifests/x",
    "/v2/a-/manifests/x",
    "/v2/a___b/manifests/x",
    "/v2/.a/manifests/x",
    "/v2/a./manifests/x",
    "/v2/_a/manifests/x",
    "/v2/a/_tags/manifests/x",
    "/v2/a/_manifests/tags/list",
    "/v2/a%00b/manifests/x",
    "/v2/a%0d%0aSet-Cookie:x/manifests/x",
    "/v2/a%7f/manifests/x",
    "/v2/a%ff/manifests/x",
    "/v2/%c3%a9/manifests/x",
    "/v2/a%20b/manifests/x",
    "/v2/a%/manifests/x",
    "/v2/a%2/manifests/x",
    "/v2/a%zz/manifests/x",
    "/v2/a@b/manifests/x",
    "/v2/a:80/manifests/x",
    "/v2/a+b/manifests/x",
    "/v2/~root/manifests/x",
    "/v2/$(id)/manifests/x",
];

/// Tags that are none.
const TAGS: &[&str] = &["..", ".", "-x", ".x", "a%20b", "a%2fb", "x%00", "x%0a", "%ff", "a+b"];

/// Pages, cursors and registries that are none, or not for everybody.
const QUERIES: &[&str] = &[
    "/v2/a/tags/list?n=-1",
    "/v2/a/tags/list?n=abc",
    "/v2/a/tags/list?n=99999999999999999999",
    "/v2/a/tags/list?n=1e3",
    "/v2/a/tags/list?last=%00",
    "/v2/a/tags/list?last=%ff",
    "/v2/a/tags/list?last=x%0d%0aX-Injected:1",
    "/v2/a/manifests/x?ns=evil.test",
    "/v2/a/manifests/x?ns=169.254.169.254",
    "/v2/a/manifests/x?ns=127.0.0.1:22",
    "/v2/a/manifests/x?ns=[::1]:22",
    "/v2/a/manifests/x?ns=localhost",
    "/v2/a/manifests/x?ns=docker.io@evil.test",
    "/v2/a/manifests/x?ns=docker.io%00.evil.test",
    "/v2/a/manifests/x?ns=docker.io%2f..%2f..",
    "/v2/a/manifests/x?ns=docker.io&ns=ghcr.io",
    "/v2/a/manifests/x?ns=%00",
    "/v2/a/manifests/x?ns=",
    "/v2/a/manifests/x?ns=http://evil.test/",
    "/evil.test/v2/a/manifests/x",
    "/169.254.169.254/v2/a/manifests/x",
    "/v2/169.254.169.254/latest/manifests/x",
    "/v2/localhost:22/a/manifests/x",
];

/// Digests that are none.
fn digests() -> Vec<String> {
    let sha256 = [
        &HEX[1..],
        &format!("{HEX}0"),
        &HEX.to_uppercase(),
        &HEX.replace('e', "z"),
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "",
        "%00",
    ];
    let others = [
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
        &format!("sha256::{HEX}"),
        &format!("sha256sha256:{HEX}"),
        &format!("sha256+b64:{HEX}"),
        &format!("SHA256:{HEX}"),
        &format!("sha512:{HEX}"),
    ];
    sha256.map(|hex| format!("sha256:{hex}")).into_iter().chain(others.map(str::to_owned)).collect()
}

/// Targets of GET that must be refused before anybody is asked, and the statuses that are right for them.
fn refused() -> Vec<(Vec<u8>, &'static [u16])> {
    const BAD: &[u16] = &[400];
    const EITHER: &[u16] = &[400, 404];
    const LONG: &[u16] = &[400, 414, 431];
    let mut list: Vec<(Vec<u8>, &'static [u16])> = Vec::new();
    let mut add = |statuses, target: &str| list.push((target.as_bytes().to_vec(), statuses));
    for target in PATHS.iter().chain(QUERIES) {
        add(EITHER, target);
    }
    for target in NAMES {
        add(BAD, target);
    }
    for tag in TAGS {
        add(EITHER, &format!("/v2/a/manifests/{tag}"));
    }
    for digest in digests() {
        for kind in ["blobs", "manifests", "referrers"] {
            add(EITHER, &format!("/v2/a/{kind}/{digest}"));
        }
    }
    for word in ["notadigest", ":abc", "sha256"] {
        add(BAD, &format!("/v2/a/blobs/{word}"));
        add(BAD, &format!("/v2/a/referrers/{word}"));
    }
    for len in [256, 4096, 20_000, 70_000] {
        add(LONG, &format!("/v2/{}/manifests/x", "a".repeat(len)));
    }
    add(LONG, &format!("/v2/{}/manifests/x", vec!["a"; 2000].join("/")));
    add(LONG, &format!("/v2/a/manifests/{}", "t".repeat(129)));
    add(LONG, &format!("/v2/a/referrers/sha256:{HEX}?artifactType={}", "a".repeat(60_000)));
    add(BAD, &format!("/v2/a/referrers/sha256:{HEX}?{}", vec!["artifactType=a"; 100].join("&")));
    // Bytes that are no text.
    list.push((b"/v2/a\xff/manifests/x".to_vec(), EITHER));
    list.push((b"/v2/\xc3\xa9/manifests/x".to_vec(), EITHER));
    list
}

#[tokio::test]
async fn hostile_targets_are_refused_and_nobody_is_asked() {
    let target = Target::new().await;
    let all = refused();
    println!("{} hostile targets", all.len());
    assert!(all.len() >= 100, "{}", all.len());
    for some in all.chunks(16) {
        for ((bytes, statuses), answer) in some.iter().zip(join_all(some.iter().map(|(bytes, _)| target.get(bytes))).await) {
            let what: String = String::from_utf8_lossy(bytes).chars().take(120).collect();
            let answer = answer.unwrap_or_else(|| panic!("{what}: no answer"));
            assert!(statuses.contains(&answer.status), "{what}: {}\n{}", answer.status, answer.body);
            assert_tells_nothing(&what, &answer);
            // What hyper itself refuses has no body.
            if !answer.body.is_empty() {
                assert_error_body(&what, &answer);
            }
        }
    }
    target.assert_untouched();
}

#[tokio::test]
async fn names_may_be_the_words_of_the_paths() {
    let target = Target::new().await;
    for (path, name) in [
        (format!("/v2/blobs/blobs/sha256:{HEX}"), "library/blobs"),
        (format!("/v2/blobs/uploads/blobs/sha256:{HEX}"), "blobs/uploads"),
        ("/v2/manifests/manifests/manifests".into(), "library/manifests"),
        ("/v2/tags/list/tags/list".into(), "tags/list"),
        ("/v2/v2/v2/manifests/v2".into(), "v2/v2"),
        ("/v2/referrers/manifests/referrers".into(), "library/referrers"),
    ] {
        let answer = target.get(&path).await.unwrap();
        assert_eq!(answer.status, 404, "{path}: {}", answer.body);
        assert_error_body(&path, &answer);
        assert!(
            target.plain.requests().iter().any(|request| request.repository.as_deref() == Some(name)),
            "{path}:\n{}",
            target.plain.story()
        );
    }
}

#[tokio::test]
async fn a_manifest_is_no_blob_and_a_blob_no_manifest_because_the_bytes_are_here() {
    let target = Target::new().await;
    let (manifest, layer) = (target.image.digest, target.image.layers[0].digest);
    assert_eq!(get(target.mirror.manifest(REPO, manifest)).send().await.status, 200);
    assert_eq!(get(target.mirror.blob(REPO, layer)).send().await.status, 200);
    target.mirror.settled().await;
    // The registry has no such manifest, and says so; in another repository it has neither.
    assert_eq!(get(target.mirror.manifest(REPO, layer)).send().await.status, 404);
    for digest in [manifest, layer] {
        assert_eq!(get(target.mirror.manifest("library/other", digest)).send().await.status, 404);
        assert_eq!(get(target.mirror.blob("library/other", digest)).send().await.status, 404);
    }
    assert_eq!(target.plain.count(Kind::Blob.get().within("library/other")), 0, "{}", target.plain.story());
}

#[tokio::test]
async fn pages_are_cut_down_and_odd_cursors_are_harmless() {
    let target = Target::new().await;
    for query in ["n=2147483647", "n=0", "last=../../", "last=%2e%2e%2f", "x=y&&&=&n=1", "last=zzz&n=1"] {
        let answer = target.get(format!("/v2/{REPO}/tags/list?{query}")).await.unwrap();
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        assert_tells_nothing(query, &answer);
    }
    for request in target.plain.requests() {
        assert!(request.params("n").iter().all(|n| n.parse::<u32>().unwrap() <= 1000), "{}", request.line());
    }
}
