use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

use crate::support::client::{get, pull};
use crate::support::registry::{Builder, Fault, Image, Kind, Port, Registry, Want};
use crate::support::scene::{REPO, Scene, assert_refused, assert_whole};

/// A host that nobody should go to, and that sees whoever does.
struct Bait(TcpListener);

impl Bait {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.9:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn host(&self) -> String {
        self.0.local_addr().unwrap().to_string()
    }

    fn assert_untouched(&self) {
        let touched = self.0.accept().map(|(_, from)| from);
        assert!(touched.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "somebody was lured away: {touched:?}");
    }
}

#[tokio::test]
async fn the_bait_sees_who_comes() {
    let bait = Bait::new();
    let _client = std::net::TcpStream::connect(bait.host()).unwrap();
    assert!(bait.0.accept().is_ok());
}

/// With a login, so that there is something to lose.
async fn scene() -> (Scene, Bait) {
    let hub = Builder::hub().own_addresses().start().await;
    hub.user("ann", "secret");
    (Scene::with(hub, |builder| builder.login("docker.io", "ann", "secret").private_to_anyone("docker.io")), Bait::new())
}

#[tokio::test]
async fn a_realm_that_is_not_configured_is_not_gone_to() {
    let (scene, bait) = scene().await;
    let held = scene.hold("held").await;
    // Which realm is the right one is not known any more.
    let scene = scene.restart(|builder| builder).await;
    scene.hub.image("library/alpine", "latest", Image::layers([10]));
    let (host, own) = (bait.host(), scene.hub.address(Port::Auth));
    for realm in [
        format!("http://{host}/token"),
        format!("http://{own}@{host}/token"),
        format!("http://{own}%2f@{host}/token"),
        format!("http://{host}\\\\@{own}/token"),
        format!("http://{host}/token?host={own}"),
        format!("//{host}/token"),
        format!("ftp://{host}/token"),
        format!("http://{}:1/token", own.ip()),
        format!("http://localhost:{}/token", own.port()),
        "file:///etc/passwd".to_owned(),
        String::new(),
    ] {
        scene.hub.quirks(|quirks| quirks.realm = Some(realm.clone()));
        let reply = get(scene.mirror.manifest("library/alpine", "latest")).send().await;
        assert_eq!(reply.status, 502, "{realm}: {reply:?}\n{}", scene.hub.story());
        bait.assert_untouched();
        pull(&scene.mirror.url(), REPO, "held").await.unwrap();
    }
    scene.hub.quirks(|quirks| quirks.realm = None);
    scene.serves_what_it_holds(&held, "held").await;
    pull(&scene.mirror.url(), "library/alpine", "latest").await.unwrap();
    scene.is_sound().await;
}

#[tokio::test]
async fn a_token_service_that_redirects_takes_no_password_along() {
    let (scene, bait) = scene().await;
    scene.hub.image(REPO, "latest", Image::layers([10]));
    for status in [301, 302, 307, 308] {
        scene.hub.on(Kind::Token, Fault::redirect(status, &format!("http://{}/token", bait.host())));
        assert_eq!(scene.manifest("latest").send().await.status, 502, "{}", scene.hub.story());
        bait.assert_untouched();
        scene.hub.heal();
    }
    assert_eq!(scene.manifest("latest").send().await.status, 200);
}

#[tokio::test]
async fn a_redirect_to_what_is_no_web_address_is_refused() {
    let (scene, bait) = scene().await;
    let held = scene.hold("held").await;
    let (blob, host) = (scene.push(1, 1000), bait.host());
    let image = scene.hub.push_untagged(REPO, Image::layers([10]));
    for location in [
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1:70/".to_owned(),
        "javascript:alert(1)".to_owned(),
        format!("http://ann:secret@{host}/x"),
        format!("http://ann@{host}/x"),
        "http://[::1".to_owned(),
        String::new(),
        format!("http://{host}/{}", "x".repeat(20_000)),
    ] {
        for (kind, url) in [(Kind::Blob, scene.url(&blob)), (Kind::Manifest, scene.mirror.manifest(REPO, image.digest))] {
            scene.hub.on(kind, Fault::redirect(307, &location).once());
            assert_refused(&get(url).send().await, 502);
        }
        bait.assert_untouched();
    }
    for kind in [Kind::Blob, Kind::Cdn] {
        scene.hub.on(kind, Fault::redirect(307, "x").without("Location").once());
        assert_refused(&scene.get(&blob).send().await, 502);
    }
    scene.serves_what_it_holds(&held, "held").await;
    scene.is_sound().await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
}

#[tokio::test]
async fn a_public_registry_does_not_lead_into_a_private_network() {
    fn all_but_the_bait(ip: IpAddr) -> bool {
        ip.to_canonical() != IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9))
    }
    let hub = Builder::hub().own_addresses().start().await;
    let scene = Scene::with(hub, |builder| builder.tune(|tuning| tuning.upstream.is_public = all_but_the_bait));
    let held = scene.hold("held").await;
    let (bait, blob) = (Bait::new(), scene.push(1, 1000));
    let image = scene.hub.push_untagged(REPO, Image::layers([10]));
    let port = bait.0.local_addr().unwrap().port();
    for host in ["127.0.0.9", "2130706441", "0x7f.9", "0177.0.0.011", "[::ffff:127.0.0.9]"] {
        let location = format!("http://{host}:{port}/latest/meta-data/");
        for (kind, url) in
            [(Kind::Blob, scene.url(&blob)), (Kind::Cdn, scene.url(&blob)), (Kind::Manifest, scene.mirror.manifest(REPO, image.digest))]
        {
            scene.hub.on(kind, Fault::redirect(302, &location).once());
            assert_refused(&get(url).send().await, 502);
            bait.assert_untouched();
        }
    }
    scene.serves_what_it_holds(&held, "held").await;
    scene.is_sound().await;
    assert_whole(&scene.get(&blob).fetch().await, &blob);
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let scene = Scene::new().await;
    let held = scene.hold("held").await;
    for (seed, kind) in (1..).zip([Kind::Blob, Kind::Cdn]) {
        for status in [301, 302, 303, 307, 308] {
            let blob = scene.push(seed * 1000 + u64::from(status), 1000);
            let circle = scene.hub.on(kind.of(blob.digest), Fault::redirect_loop(status));
            assert_refused(&scene.get(&blob).send().await, 502);
            assert!(circle.struck() <= 6, "{}", scene.hub.story());
            scene.hub.heal();
            assert_whole(&scene.get(&blob).fetch().await, &blob);
        }
    }
    let image = scene.hub.push_untagged(REPO, Image::layers([10]));
    let circle = scene.hub.on(Kind::Manifest.of(image.digest), Fault::redirect_loop(307));
    assert_refused(&scene.manifest(image.digest).send().await, 502);
    assert!(circle.struck() <= 6, "{}", scene.hub.story());
    scene.serves_what_it_holds(&held, "held").await;
    scene.is_sound().await;
}

#[tokio::test]
async fn a_manifest_does_not_leave_tls_by_a_redirect() {
    let (hub, bait) = (Builder::hub().tls().start().await, Bait::new());
    let scene = Scene::with(hub, |builder| builder);
    let image = scene.hub.image(REPO, "latest", Image::layers([10]));
    scene.hub.on(Kind::Manifest, Fault::redirect(307, &format!("http://{}/x", bait.host())).skip(1).once());
    assert_refused(&scene.manifest("latest").send().await, 502);
    bait.assert_untouched();
    assert_eq!(scene.manifest("latest").send().await.body, image.manifest);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect() {
    let (scene, _) = scene().await;
    let other = Registry::plain().await;
    let image = other.image(REPO, "latest", Image::layers([10]));
    scene.hub.image(REPO, "latest", Image::layers([10]));
    let blob = scene.push(1, 1000);
    other.blob(REPO, &blob);
    scene.hub.quirks(|quirks| quirks.manifests_at = Some(other.url()));
    assert_eq!(scene.manifest("latest").send().await.body, image.manifest, "{}", scene.hub.story());
    scene.hub.on(Kind::Blob.of(blob.digest), Fault::redirect(307, &format!("{}/v2/{REPO}/blobs/{}", other.url(), blob.digest)));
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    assert_eq!(other.count(Want::any().get()), 2, "{}", other.story());
    assert!(other.requests().iter().all(|record| record.header("authorization").is_none()));
    assert_eq!(other.violations(), [""; 0]);
    scene.is_sound().await;
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_and_nowhere_else() {
    let (scene, _) = scene().await;
    scene.hub.image(REPO, "latest", Image::layers([1000, 2000]));
    pull(&scene.mirror.url(), REPO, "latest").await.unwrap();
    let basic = |record: &crate::support::registry::Record| record.header("authorization").is_some_and(|text| text.starts_with("Basic"));
    let requests = scene.hub.requests();
    assert!(requests.iter().any(basic), "{}", scene.hub.story());
    assert!(requests.iter().filter(|record| basic(record)).all(|record| record.port == Port::Auth), "{}", scene.hub.story());
    let authorized = |record: &&crate::support::registry::Record| record.header("authorization").is_some();
    assert_eq!(requests.iter().filter(|record| record.kind == Kind::Cdn).filter(authorized).count(), 0);
    scene.is_sound().await;
}

/// Addresses that no public registry leads to, in every spelling there is for one.
fn private_spellings() -> Vec<String> {
    let special = [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.9",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
    ];
    let mut list = Vec::new();
    for dotted in special {
        let address: Ipv4Addr = dotted.parse().unwrap();
        let ([a, b, c, d], bits) = (address.octets(), address.to_bits());
        let (high, low) = (bits >> 16, bits & 0xffff);
        list.extend([dotted.to_owned(), format!("{bits}"), format!("0x{bits:08x}"), format!("0{bits:o}")]);
        list.extend([format!("0x{a:x}.{b}.{c}.{d}"), format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"), format!("{a}.{}", bits & 0xff_ffff)]);
        list.extend([format!("{a}.{b}.{low}"), format!("{dotted}.").replace('.', "%2e"), format!("{dotted}.")]);
        // Mapped, compatible, translated (NAT64, both prefixes), 6to4, Teredo.
        list.extend([format!("[::ffff:{dotted}]"), format!("[::ffff:{high:x}:{low:x}]"), format!("[::{high:x}:{low:x}]")]);
        list.extend([format!("[64:ff9b::{dotted}]"), format!("[64:ff9b:1::{high:x}:{low:x}]"), format!("[2002:{high:x}:{low:x}::1]")]);
        list.push(format!("[2001:0:{high:x}:{low:x}::1]"));
    }
    list.extend(
        ["[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[fc00::1]", "[fd12:3456::1]", "[fe80::1]", "[fec0::1]", "[ff02::1]"].map(str::to_owned),
    );
    // Full-width digits and dots are the same address to an URL parser.
    list.extend(["\u{ff11}27.0.0.9", "127\u{3002}0\u{3002}0\u{3002}9", "\u{2460}\u{2461}7.0.0.9"].map(str::to_owned));
    list
}

#[tokio::test]
async fn no_private_address_is_gone_to_however_it_is_spelled() {
    /// What the program takes for public, and the scripted registry besides.
    fn is_public(ip: IpAddr) -> bool {
        let registry = matches!(ip, IpAddr::V4(v4) if v4.octets()[..3] == [127, 0, 0] && v4.octets()[3] < 9);
        registry || (millpond::serve::Tuning::default().upstream.is_public)(ip)
    }
    let hub = Builder::hub().own_addresses().start().await;
    let scene = Scene::with(hub, |builder| builder.tune(|tuning| tuning.upstream.is_public = is_public));
    let (bait, blob) = (Bait::new(), scene.push(1, 1000));
    let port = bait.0.local_addr().unwrap().port();
    let spellings = private_spellings();
    assert!(spellings.len() >= 200, "{}", spellings.len());
    for host in spellings {
        scene.hub.on(Kind::Blob, Fault::redirect(307, &format!("http://{host}:{port}/")).once());
        // 503 would say that it was tried.
        assert_eq!(scene.get(&blob).send().await.status, 502, "{host}");
        bait.assert_untouched();
    }
    assert_whole(&scene.get(&blob).fetch().await, &blob);
    scene.is_sound().await;
}

/// A name that means a public address when it is looked up for the first time, and 127.0.0.1 from then on.
#[tokio::test]
async fn a_name_is_judged_by_what_it_means_now() {
    static REBOUND: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    fn is_public(ip: IpAddr) -> bool {
        let rebound = REBOUND.load(std::sync::atomic::Ordering::SeqCst);
        ip.is_ipv4() && (ip != IpAddr::V4(Ipv4Addr::LOCALHOST) || !rebound)
    }
    let other = Registry::plain().await;
    let elsewhere = format!("http://localhost:{}", other.address(Port::Registry).port());
    // `localhost` is somewhere else than the registry.
    let hub = Builder::hub().own_addresses_from(2).start().await;
    let scene = Scene::with(hub, |builder| builder.tune(|tuning| tuning.upstream.is_public = is_public));
    for (seed, rebound) in [(1, false), (2, true)] {
        let blob = scene.push(seed, 1000);
        other.blob(REPO, &blob);
        // No connection is left over from the time before.
        other.on(Kind::Blob, Fault::until_close());
        scene.hub.on(Kind::Blob.of(blob.digest), Fault::redirect(307, &format!("{elsewhere}/v2/{REPO}/blobs/{}", blob.digest)));
        REBOUND.store(rebound, std::sync::atomic::Ordering::SeqCst);
        let connections = other.connections();
        if rebound {
            assert_refused(&scene.get(&blob).send().await, 502);
            assert_eq!(other.connections(), connections, "{}", other.story());
        } else {
            assert_whole(&scene.get(&blob).fetch().await, &blob);
            assert_eq!(other.connections(), connections + 1, "{}", other.story());
        }
    }
    scene.is_sound().await;
}

#[tokio::test]
async fn links_lead_nowhere_else() {
    let bait = Bait::new();
    let (host, mut asked) = (bait.host(), 0);
    let hub = Builder::hub().own_addresses().start().await;
    hub.user("ann", "secret");
    let scene = Scene::with(hub, |builder| builder.login("docker.io", "ann", "secret").private_to_anyone("docker.io"));
    let image = scene.hold("held").await;
    let empty = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    for target in [
        format!("http://{host}/v2/{REPO}/x?last=z&n=1"),
        format!("//{host}/v2/{REPO}/x?last=z&n=1"),
        format!("http://ann:secret@{host}/?last=z&n=1"),
        format!("\\\\{host}\\x?last=z&n=1"),
        format!("/v2/../../{host}/?last=z&n=1"),
        "file:///etc/passwd?last=z&n=1".to_owned(),
        format!("?last=z&n=1&ns={host}&x=%0d%0aHost:%20{host}"),
    ] {
        let link = format!("<{target}>; rel=\"next\"");
        scene.hub.on(Kind::Tags, Fault::json(r#"{"name":"x","tags":["a"]}"#).header("Link", &link).once());
        let reply = scene.tags().await;
        assert_eq!(reply.status, 200, "{target}: {reply:?}");
        let next = reply.header("link").unwrap_or_default().to_owned();
        assert!(!next.contains(&host) && !next.contains("passwd") && !next.contains("secret"), "{target}: {next}");
        assert!(next.is_empty() || next.starts_with(&format!("</v2/{REPO}/tags/list?")), "{target}: {next}");
        let want = Kind::Referrers.of(image.digest);
        scene.hub.on(want.clone(), Fault::json(empty).header("Link", &link).once());
        let reply = get(format!("{}/v2/{REPO}/referrers/{}", scene.mirror.url(), image.digest)).send().await;
        assert!([200, 404, 502].contains(&reply.status), "{target}: {reply:?}");
        assert!(reply.header("link").is_none(), "{target}: {reply:?}");
        bait.assert_untouched();
        asked += 1;
        assert!(scene.hub.requests().iter().all(|record| record.header("host").is_none_or(|named| named != host)));
    }
    assert_eq!(asked, 7);
    scene.is_sound().await;
}
