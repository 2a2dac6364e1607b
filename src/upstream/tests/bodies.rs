//! Good answers and bad ones: manifests, blobs and ranges, lists.

use super::super::{Announced, Error, Flaw, Sight};
use super::server::{Reply, digest, name, read, tag};
use super::*;
use crate::oci::MediaType;

type Script = fn() -> Reply;

fn oci_index() -> MediaType {
    MediaType::parse("application/vnd.oci.image.index.v1+json").expect("a media type")
}

#[tokio::test]
async fn a_manifest_comes_as_it_is() {
    let text = digest("{}").to_string();
    let server = Server::start(move |_, _| {
        reply(200, &[("content-type", "application/vnd.oci.image.index.v1+json; x=y"), ("docker-content-digest", &text)], "{}")
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    let fetched = upstream.manifest(&name("a"), &tag("latest")).await.expect("a manifest");
    assert_eq!(fetched.bytes.as_ref(), b"{}");
    assert_eq!(fetched.content_type.as_deref(), Some("application/vnd.oci.image.index.v1+json; x=y"));
    assert_eq!(fetched.digest, Some(digest("{}")));
    let announced = upstream.head_manifest(&name("a"), &tag("latest")).await.expect("a HEAD");
    assert_eq!(announced, Announced { digest: Some(digest("{}")), media_type: Some(oci_index()), size: Some(2) });
}

#[tokio::test]
async fn manifests_that_cannot_be_used() {
    let cases: [(Script, Flaw); 7] = [
        (|| reply(200, &[], vec![b' '; (4 << 20) + 1]), Flaw::TooLarge(4 << 20)),
        (|| reply(200, &[("content-encoding", "gzip")], "{}"), Flaw::Encoded),
        (|| reply(200, &[("docker-content-digest", "sha256:abc")], "{}"), Flaw::DigestHeader),
        (|| reply(206, &[("content-range", "bytes 0-1/2")], "{}"), Flaw::Status(206)),
        (|| reply(204, &[], ""), Flaw::Status(204)),
        (|| reply(304, &[], ""), Flaw::Status(304)),
        (|| reply(300, &[("location", "/x")], ""), Flaw::Status(300)),
    ];
    for (script, flaw) in cases {
        let server = Server::start(move |_, _| script()).await;
        let error = Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect_err("unusable");
        assert_eq!((error, server.count()), (Error::BadAnswer { host: server.host(), flaw }, 1));
    }
    // The largest that is taken.
    let server = Server::start(|_, _| reply(200, &[], vec![b' '; 4 << 20])).await;
    Setup::new(&[&server]).upstream().manifest(&name("a"), &tag("latest")).await.expect("4 MiB");
}

#[tokio::test]
async fn a_registry_without_head_is_asked_with_get() {
    let server = Server::start(|seen, _| match seen.method.as_str() {
        "HEAD" => reply(405, &[], ""),
        _ => reply(200, &[("content-type", "application/vnd.oci.image.index.v1+json")], "{}"),
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    let expected = Announced { digest: Some(digest("{}")), media_type: Some(oci_index()), size: Some(2) };
    for _ in 0..2 {
        assert_eq!(upstream.head_manifest(&name("a"), &tag("latest")).await.expect("by GET"), expected);
    }
    let manifest = "/v2/a/manifests/latest";
    assert_eq!(server.lines(), [format!("HEAD {manifest}"), format!("GET {manifest}"), format!("GET {manifest}")]);
    assert_eq!(upstream.head_blob(&name("a"), &digest("{}")).await.expect("by GET"), Some(2));
}

#[tokio::test]
async fn a_head_may_say_little() {
    let server = Server::start(|_, _| {
        let Reply::Now(mut answer) = reply(200, &[("transfer-encoding", "chunked")], "") else { unreachable!("it is now") };
        answer.headers_mut().remove("content-length");
        Reply::Now(answer)
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    let announced = upstream.head_manifest(&name("a"), &tag("latest")).await.expect("a HEAD");
    assert_eq!(announced, Announced { digest: None, media_type: None, size: None });
    assert_eq!(upstream.head_blob(&name("a"), &digest("x")).await.expect("a HEAD"), None);
}

#[tokio::test]
async fn a_blob_is_resumed_exactly_where_it_was_asked_to() {
    let cases: [(Script, u64, Option<u64>, &str); 4] = [
        (|| reply(206, &[("content-range", "bytes 3-6/7")], "tent"), 3, Some(7), "tent"),
        (|| reply(206, &[("content-range", "bytes 3-6/*")], "tent"), 3, None, "tent"),
        (|| reply(206, &[("content-range", "bytes 3-4/7")], "te"), 3, Some(7), "te"),
        (|| reply(200, &[], "content"), 0, Some(7), "content"),
    ];
    for (script, start, size, body) in cases {
        let server = Server::start(move |_, _| script()).await;
        let blob = Setup::new(&[&server]).upstream().blob(&name("a"), &digest("content"), 3).await.expect("a blob");
        assert_eq!((blob.start, blob.size), (start, size));
        assert_eq!(read(blob).await, body);
        assert_eq!(server.seen()[0].header("range"), Some("bytes=3-"));
    }
    let bad: [Script; 6] = [
        || reply(206, &[("content-range", "bytes 2-6/7")], "ntent"),
        || reply(206, &[("content-range", "bytes 3-6/7")], "longer than that"),
        || reply(206, &[], "tent"),
        || reply(206, &[("content-range", "bytes 3-6/7"), ("content-range", "bytes 0-3/7")], "tent"),
        || reply(206, &[("content-type", "multipart/byteranges; boundary=x"), ("content-range", "bytes */7")], "--x"),
        || reply(416, &[("content-range", "bytes */3")], ""),
    ];
    for script in bad {
        let server = Server::start(move |_, _| script()).await;
        let error = Setup::new(&[&server]).upstream().blob(&name("a"), &digest("content"), 3).await.expect_err("not there");
        assert_eq!(error, Error::BadAnswer { host: server.host(), flaw: Flaw::Range });
    }
    let server = Server::start(|_, _| reply(206, &[("content-range", "bytes 0-6/7")], "content")).await;
    let error = Setup::new(&[&server]).upstream().blob(&name("a"), &digest("content"), 0).await.expect_err("unasked");
    assert_eq!(error, Error::BadAnswer { host: server.host(), flaw: Flaw::Status(206) });
    assert_eq!(server.seen()[0].header("range"), None);
}

#[tokio::test]
async fn tags_come_in_pages() {
    let server = Server::start(|seen, _| match seen.query.as_str() {
        "n=2" => reply(
            200,
            &[("link", r#"<https://elsewhere.test/v2/a/tags/list?n=2&last=b>; rel="next""#)],
            r#"{"name":"a","tags":["a","b","no tag"]}"#,
        ),
        "n=2&last=b" => reply(200, &[], r#"{"name":"a","tags":null}"#),
        "last=x%26y" => reply(200, &[("link", r#"</v2/a/tags/list?last=x%26y>; rel="next""#)], r#"{"tags":[]}"#),
        "" => reply(200, &[("link", r#"</v2/a/tags/list?next_page=gAAA>; rel="next""#)], r#"{"tags":["q"]}"#),
        _ => reply(200, &[], "<html>"),
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    let page = async |n, last| upstream.tags(&name("a"), n, last).await.map(|page| (page.tags, page.next));
    let tags = |tags: &[&str]| tags.iter().map(|&tag| tag.to_owned()).collect::<Vec<_>>();
    assert_eq!(page(Some(2), None).await, Ok((tags(&["a", "b"]), Some((Some(2), "b".to_owned())))));
    assert_eq!(page(Some(2), Some("b")).await, Ok((Vec::new(), None)));
    assert_eq!(page(None, Some("x&y")).await, Ok((Vec::new(), None)), "a page that leads to itself is the last");
    assert_eq!(page(None, None).await, Ok((tags(&["q"]), Some((None, "q".to_owned())))), "quay.io has a cursor of its own");
    assert_eq!(page(Some(7), None).await, Err(Error::BadAnswer { host: server.host(), flaw: Flaw::Json }));
}

#[tokio::test]
async fn referrers_are_an_index_or_not_there() {
    const INDEX: &str = r#"{"schemaVersion":2,"manifests":[]}"#;
    let server = Server::start(|seen, _| match (seen.path.starts_with("/v2/none/"), seen.query.as_str()) {
        (true, _) => reply(404, &[], ""),
        (_, "artifactType=a%2Fb&artifactType=c") => {
            reply(200, &[("oci-filters-applied", "x, artifactType"), ("link", "<?page=2&ns=docker.io>; rel=next")], INDEX)
        }
        (_, "page=2") => reply(200, &[], INDEX),
        _ => reply(200, &[("content-type", "text/html")], "<html>"),
    })
    .await;
    let upstream = Setup::new(&[&server]).upstream();
    let subject = digest("x");
    let page = upstream.referrers(&name("a"), &subject, &["a/b".to_owned(), "c".to_owned()]).await.expect("a page");
    assert_eq!((page.bytes.as_ref(), page.filters_applied), (INDEX.as_bytes(), true));
    let next = page.next.expect("another page");
    let page = upstream.referrers_page(&name("a"), &subject, &next).await.expect("a page");
    assert_eq!((page.filters_applied, page.next), (false, None));
    assert_eq!(server.lines()[0], format!("GET /v2/a/referrers/{subject}"));
    let error = upstream.referrers(&name("none"), &subject, &[]).await.expect_err("no such API");
    assert_eq!(error, Error::NotFound { host: server.host() });
    let error = upstream.referrers(&name("a"), &subject, &[]).await.expect_err("a page for people");
    assert_eq!(error, Error::BadAnswer { host: server.host(), flaw: Flaw::Json });
}

#[tokio::test]
async fn what_anybody_sees_is_asked_without_a_login_too() {
    let server = Server::start(|_, _| reply(404, &[], "")).await;
    let upstream = Setup::new(&[&server]).upstream();
    assert_eq!(upstream.seen_by_anyone(&name("a"), What::Tags).await.expect("an answer"), Sight::Absent);
    assert_eq!(upstream.seen_by_anyone(&name("a"), What::Blob(&digest("x"))).await.expect("an answer"), Sight::Absent);
    assert_eq!(server.lines()[1], format!("HEAD /v2/a/blobs/{}", digest("x")));
}

#[tokio::test]
async fn a_page_to_log_in_with_is_not_a_manifest_that_anybody_may_see() {
    let server = Server::start(|_, _| reply(200, &[("content-type", "text/html")], "<html>")).await;
    let upstream = Setup::new(&[&server]).with_login().upstream();
    assert_eq!(upstream.seen_by_anyone(&name("a"), What::Manifest(&tag("latest"))).await.expect("an answer"), Sight::Absent);
}
