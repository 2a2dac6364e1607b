//! Who is challenged and who is served: logins beside networks, by the requests that each client sends. Guesses. Users and certificates
//! that change under the running mirror.

use std::fs;
use std::time::Duration;

use crate::support::client::{Ask, Reply, get, head, pull_with};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{self, Image, Registry};
use crate::support::scene::Scene;
use crate::support::tls::{self, Certificate};

const SECRET: &str = "team/secret";
const DOCKER: &str =
    "docker/28.5.2 go/go1.25.3 git-commit/89c5e8f kernel/6.1 os/linux arch/amd64 UpstreamClient(Docker-Client/28.5.2 \\(linux\\))";
const PODMAN: &str = "containers/5.24.1 (github.com/containers/image)";
const CONTAINERD: &str = "containerd/v2.0.0";

/// A private repository, a mirror that can see it, a user, and everybody of this machine admitted.
async fn scene() -> Scene {
    let hub = registry::Builder::hub().own_addresses().start().await;
    hub.user("ann", "secret");
    hub.private(SECRET);
    hub.image(SECRET, "latest", Image::layers([500]).seed(7));
    hub.image("team/public", "latest", Image::layers([500]).seed(8));
    Scene::with(hub, |builder| {
        let builder = builder.login("docker.io", "ann", "secret").user("bob", "guess").set("access", "networks", "[\"127.0.0.0/8\"]");
        builder.set("access", "login_hosts", "[\"localhost\"]")
    })
}

impl Scene {
    fn ask(&self, target: &str, agent: &str) -> Ask {
        get(format!("{}{target}", self.mirror.url())).header("User-Agent", agent)
    }

    /// As if it were called `localhost`.
    fn by_login_host(&self, target: &str, agent: &str) -> Ask {
        self.ask(target, agent).header("Host", &format!("localhost:{}", self.mirror.address().port()))
    }
}

fn assert_challenged(reply: &Reply) {
    assert_eq!(reply.status, 401, "{reply:?}");
    assert!(reply.header("www-authenticate").unwrap().starts_with("Basic realm="), "{reply:?}");
}

#[tokio::test]
async fn classic_dockerd_is_challenged_at_no_name_that_a_daemon_json_may_hold() {
    let scene = scene().await;
    for target in ["/v2/", "/docker.io/v2/", "/v2/team/public/manifests/latest"] {
        assert_eq!(scene.ask(target, DOCKER).send().await.status, 200, "{target}");
    }
    assert_eq!(scene.ask("/v2/team/secret/manifests/latest", DOCKER).send().await.status, 404);
    // Nor who says nothing of himself.
    assert_eq!(get(format!("{}/v2/", scene.mirror.url())).send().await.status, 200);
}

#[tokio::test]
async fn docker_login_works_by_a_login_host() {
    let scene = scene().await;
    // `docker login localhost:PORT`, with a wrong password and with the right one.
    assert_challenged(&scene.by_login_host("/v2/", DOCKER).send().await);
    assert_challenged(&scene.by_login_host("/v2/", DOCKER).basic("bob", "wrong").send().await);
    assert_eq!(scene.by_login_host("/v2/", DOCKER).basic("bob", "guess").send().await.status, 200);
    // `docker pull localhost:PORT/team/secret`.
    let pulled = scene.by_login_host("/v2/team/secret/manifests/latest", DOCKER).basic("bob", "guess").send().await;
    assert_eq!(pulled.status, 200, "{pulled:?}");
    assert_challenged(&scene.by_login_host("/v2/team/public/manifests/latest", DOCKER).send().await);
}

#[tokio::test]
async fn podman_is_challenged_once_and_goes_on_with_or_without_a_login() {
    let scene = scene().await;
    assert_challenged(&scene.ask("/v2/", PODMAN).send().await);
    // Without a login it sends an empty one.
    assert_eq!(scene.ask("/v2/team/public/manifests/latest", PODMAN).header("Authorization", "Basic Og==").send().await.status, 200);
    assert_eq!(scene.ask("/v2/team/secret/manifests/latest", PODMAN).header("Authorization", "Basic Og==").send().await.status, 404);
    // `podman login`, and a pull.
    assert_challenged(&scene.ask("/v2/", PODMAN).basic("bob", "wrong").send().await);
    assert_eq!(scene.ask("/v2/", PODMAN).basic("bob", "guess").send().await.status, 200);
    assert_eq!(scene.ask("/v2/team/secret/manifests/latest", PODMAN).basic("bob", "guess").send().await.status, 200);
}

#[tokio::test]
async fn containerd_is_challenged_where_it_would_be_told_that_there_is_nothing() {
    let scene = scene().await;
    let tag = |name: &str| format!("/v2/{name}/manifests/latest");
    assert_eq!(scene.ask(&tag("team/public"), CONTAINERD).send().await.status, 200);
    let hidden = scene.ask(&tag(SECRET), CONTAINERD).send().await;
    assert_challenged(&hidden);
    assert_challenged(&scene.ask(&tag("team/absent"), CONTAINERD).send().await);
    assert_eq!(scene.ask(&tag(SECRET), CONTAINERD).basic("bob", "guess").send().await.status, 200);
    // Who has logged in is told what the registry told the mirror.
    let absent = scene.ask(&tag("team/absent"), CONTAINERD).basic("bob", "guess").send().await;
    assert!([403, 404].contains(&absent.status), "{absent:?}");
    // As a mirror it has other hosts to go on to, and its login for them is none for this one.
    for name in [SECRET, "team/absent"] {
        assert_eq!(scene.ask(&format!("{}?ns=docker.io", tag(name)), CONTAINERD).send().await.status, 404);
        assert_eq!(scene.ask(&format!("/docker.io{}", tag(name)), CONTAINERD).send().await.status, 404);
    }
}

#[tokio::test]
async fn who_guesses_is_told_to_wait_and_nobody_else_is() {
    let mirror = Builder::new().user("bob", "guess").start();
    let ping = |from: [u8; 4], password: &str| head(format!("{}/v2/", mirror.url())).from(from).basic("bob", password);
    let (mut refused, mut limited) = (0, None);
    assert_eq!(ping([127, 0, 0, 9], "guess").send().await.status, 200);
    for n in 0..60 {
        let reply = ping([127, 0, 0, 9], &format!("wrong{n}")).send().await;
        match reply.status {
            401 => refused += 1,
            429 => limited = Some(reply),
            _ => panic!("{reply:?}"),
        }
    }
    let limited = limited.expect("sixty are too many");
    assert!((1..=6).contains(&limited.header("retry-after").unwrap().parse::<u32>().unwrap()), "{limited:?}");
    assert!(refused >= 20, "{refused} were looked at");
    assert_eq!(ping([127, 0, 0, 9], "guess").send().await.status, 200, "who is logged in stays so, behind the same address");
    assert_eq!(ping([127, 0, 0, 10], "guess").send().await.status, 200);
    assert_eq!(ping([127, 0, 0, 10], "wrong").send().await.status, 401);
}

/// A mirror that looks at its files all the time.
fn quick(builder: Builder) -> Builder {
    builder.tune(|tuning| tuning.look = Duration::from_millis(1))
}

#[tokio::test]
async fn a_user_who_is_entered_may_pull_and_one_who_is_struck_out_may_not() {
    let settings = quick(Builder::new().user("bob", "guess"));
    let file = settings.beside("htpasswd");
    let mirror = settings.start();
    let status = async |user: &str| get(format!("{}/v2/", mirror.url())).basic(user, "guess").send().await.status;
    assert_eq!((status("bob").await, status("cid").await), (200, 401));
    let old = fs::read_to_string(&file).unwrap();
    // As a careful operator does it: another file takes the name.
    let put = |text: &str| {
        let next = file.with_extension("next");
        fs::write(&next, text).unwrap();
        fs::rename(next, &file).unwrap();
    };
    put(&old.replace("bob:", "cid:"));
    within("the new user", async { while status("cid").await != 200 {} }).await;
    assert_eq!(status("bob").await, 401);
    // A mistake changes nothing; a good file after it does.
    put("nonsense");
    for _ in 0..5 {
        assert_eq!(status("cid").await, 200);
    }
    put(&old);
    within("the old user", async { while status("bob").await != 200 {} }).await;
    assert_eq!(status("cid").await, 401);
}

#[tokio::test]
async fn a_certificate_that_is_exchanged_is_used() {
    let settings = quick(Builder::new().tls());
    let (cert, key) = (settings.beside("cert.pem"), settings.beside("key.pem"));
    let mirror = settings.start();
    let url = format!("{}/v2/", mirror.url());
    assert_eq!(get(&url).send().await.status, 200);
    // The kit trusts one authority: a certificate of another is refused by it.
    let [good, other] = [tls::leaf(Certificate::Good), tls::leaf(Certificate::UnknownAuthority)];
    fs::write(&cert, &other.cert).unwrap();
    fs::write(&key, &other.key).unwrap();
    within("the other certificate", async { while get(&url).try_send().await.is_ok() {} }).await;
    fs::write(&cert, &good.cert).unwrap();
    fs::write(&key, &good.key).unwrap();
    within("the good certificate", async { while get(&url).try_send().await.is_err() {} }).await;
}
