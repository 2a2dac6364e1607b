//! Secrets: in nothing that the program says, at whatever level it logs. The program itself, as an operator runs it who looks
//! for a fault.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;

use crate::support::client::{get, head, pull, pull_with};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{self, Fault, Image, Kind, Port};

const SECRET: &str = "team/secret";
const PUBLIC: &str = "team/public";
/// The login of the mirror, and what its clients show.
const PASSWORD: &str = "canary-upstream-password";
const CLIENTS: &str = "canary-client-password";
const WRONG: &str = "canary-wrong-password";
const PATH: &str = "canary-secret-path-0123456789";
const BEARER: &str = "canary-bearer-of-a-client";
const COOKIE: &str = "canary-cookie";

/// A secret as it is, and as `Authorization: Basic` has it.
fn forms() -> Vec<String> {
    let basic = |user: &str, password: &str| BASE64_STANDARD.encode(format!("{user}:{password}"));
    let plain = [PASSWORD, CLIENTS, WRONG, PATH, BEARER, COOKIE].map(str::to_owned);
    plain.into_iter().chain([basic("ann", PASSWORD), basic("bob", CLIENTS), basic("bob", WRONG)]).collect()
}

/// Everything that may go wrong upstream, for each of which something is logged.
fn faults() -> [(Kind, Fault); 14] {
    [
        (Kind::Token, Fault::status(401)),
        (Kind::Token, Fault::status(500)),
        (Kind::Token, Fault::json("{}")),
        (Kind::Token, Fault::redirect(307, "http://ann:canary-cookie@127.0.0.9:1/")),
        (Kind::Manifest, Fault::status(403)),
        (Kind::Manifest, Fault::status(500)),
        (Kind::Manifest, Fault::html()),
        (Kind::Manifest, Fault::challenge()),
        (Kind::Manifest, Fault::redirect(307, "http://ann:canary-cookie@127.0.0.9:1/?q=canary-cookie")),
        (Kind::Manifest, Fault::redirect(307, "http://127.0.0.9:1/canary-cookie?q=canary-cookie#canary-cookie")),
        (Kind::Blob, Fault::redirect(307, "http://127.0.0.9:1/canary-cookie?q=canary-cookie")),
        (Kind::Cdn, Fault::status(403).body("canary-cookie")),
        (Kind::Cdn, Fault::cut(10)),
        (Kind::Cdn, Fault::other_bytes()),
    ]
}

/// All that nobody may read: what was shown, the tokens that were issued, the signatures of the URLs.
fn secrets(hub: &registry::Registry) -> Vec<String> {
    let mut secrets = forms();
    let sent = hub.requests();
    secrets.extend(sent.iter().filter_map(|record| Some(record.header("authorization")?.split_once(' ')?.1.to_owned())));
    let signed = sent.iter().filter(|record| matches!(record.port, Port::CdnA | Port::CdnB)).map(|record| record.query.clone());
    secrets.extend(signed.filter(|query| !query.is_empty()));
    secrets.sort();
    secrets.dedup();
    assert!(secrets.len() > 12, "{}", secrets.len());
    secrets
}

#[tokio::test]
async fn what_is_secret_is_in_no_log_no_metric_and_no_answer() {
    let hub = registry::Builder::hub().own_addresses().start().await;
    hub.user("ann", PASSWORD);
    hub.private(SECRET);
    hub.image(SECRET, "latest", Image::layers([300_000]).seed(1));
    hub.image(PUBLIC, "latest", Image::layers([200_000]).seed(2));
    let settings = Builder::new().upstream("docker.io", &hub).login("docker.io", "ann", PASSWORD).user("bob", CLIENTS).secret_path(PATH);
    let program = settings.set("access", "networks", "[\"127.0.0.0/8\"]").traced().spawn().await;
    let (base, secret_base) = (program.url(), format!("{}/{PATH}", program.url()));
    let mut said = Vec::new();

    pull(&base, PUBLIC, "latest").await.unwrap();
    pull_with(&base, SECRET, "latest", |ask| ask.basic("bob", CLIENTS)).await.unwrap();
    pull(&secret_base, SECRET, "latest").await.unwrap();
    let manifest = |base: &str, repository: &str, tag: &str| format!("{base}/v2/{repository}/manifests/{tag}");
    for ask in [
        get(manifest(&base, SECRET, "latest")).basic("bob", WRONG),
        get(manifest(&base, SECRET, "latest")).bearer(BEARER).header("Cookie", COOKIE).header("X-Registry-Auth", COOKIE),
        get(format!("{base}/v2/{SECRET}/manifests/absent")).basic("bob", CLIENTS),
        get(manifest(&secret_base, SECRET, "absent")),
        get(manifest(&secret_base, "UPPER", "x")),
        get(format!("{secret_base}/nothing")),
        get(format!("{secret_base}x/v2/")),
        get(format!("{secret_base}/v2/{SECRET}/manifests/latest?ns=evil.test")),
        head(format!("{secret_base}/v2/")),
    ] {
        said.push(format!("{:?}", ask.send().await));
    }
    hub.revoke_tokens();
    hub.expire_urls();
    for (n, (kind, fault)) in (0..).zip(faults()) {
        let tag = format!("fault-{n}");
        hub.image(SECRET, &tag, Image::layers([100_000]).seed(100 + n));
        hub.revoke_tokens();
        // Often enough to be told of, seldom enough that nothing waits for long.
        let planned = hub.on(kind, fault.times(2));
        // Whatever comes of it.
        let pulled = pull(&secret_base, SECRET, &tag).await;
        assert!(planned.struck() > 0, "{kind:?}, {tag}");
        said.push(pulled.map_or_else(|error| error.replace(&secret_base, ""), |_| String::new()));
        hub.heal();
    }
    program.signal(Signal::HUP);
    for page in ["/metrics", "/healthz", "/readyz", "/canary"] {
        said.push(get(program.admin(page)).send().await.text().to_owned());
    }
    said.push(get(format!("{base}/v2/{PUBLIC}/tags/list")).send().await.text().to_owned());

    let log = program.log();
    assert!(log.contains("TRACE") && log.contains("\"DEBUG\"") && log.contains("did not deliver"), "it was not looked at everything");
    said.push(log);
    for secret in &secrets(&hub) {
        for text in &said {
            let at = text.find(secret.as_str());
            let around = at.map(|at| text[at.saturating_sub(300)..].chars().take(500 + secret.len()).collect::<String>());
            assert_eq!(around, None, "{secret}");
        }
    }
    program.terminate().await;
}

#[tokio::test]
async fn what_strangers_write_stays_on_its_line_in_the_log() {
    let hub = registry::Registry::plain().await;
    let program = Builder::new().upstream("docker.io", &hub).traced().spawn().await;
    // What a terminal, or a reader of lines, would take for something else.
    let nasty = b"\x1b[2J\x1b]0;x\x07\x9b31m\xe2\x80\xae";
    let mut raw = crate::support::client::Raw::connect(program.address()).await;
    let lines =
        [b"GET /v2/a".as_slice(), nasty, b"/manifests/x HTTP/1.1\r\nHost: kit\r\nUser-Agent: ", nasty, b"\r\nConnection: close\r\n\r\n"];
    let _ = raw.try_send(lines.concat()).await;
    raw.drain().await;
    for path in ["/v2/a%1b%5b2J/manifests/x", "/v2/a%0a%7b%22level%22/manifests/x", "/v2/a/manifests/%1b", "/v2/a/tags/list?last=%0a%1b"] {
        get(format!("{}{path}", program.url())).send().await;
    }
    // And an upstream that writes such things.
    let told = [b"HTTP/1.1 500 \x1b[2J\r\nX: \x1b[31m\r\nContent-Length: 4\r\n\r\n\x1b[1m".as_slice()].concat();
    hub.on(Kind::Manifest, Fault::raw(told));
    get(format!("{}/v2/library/debian/manifests/latest", program.url())).send().await;
    within("the log of it", async {
        while !program.log().contains("library/debian") {
            get(program.admin("/healthz")).send().await;
        }
    })
    .await;
    for line in program.log().lines() {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(serde_json::from_str::<serde_json::Value>(line).is_ok(), "{line:?}");
    }
    program.terminate().await;
}
