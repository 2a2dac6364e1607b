use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::support::client::{get, pull};
use crate::support::mirror::Builder;
use crate::support::patience::within;
use crate::support::registry::{Blob, Fault, Image, Kind, Port, Registry};
use crate::support::scene::{REPO, quick};
use crate::support::tls::{self, Certificate, Pem};

const TABLE: &str = "upstreams.\"docker.io\"";

/// TLS before a registry without: asks whoever comes for a certificate, and takes those who show none as well.
struct Door {
    address: SocketAddr,
    shown: Arc<Mutex<Vec<Option<CertificateDer<'static>>>>>,
    through: Arc<Mutex<JoinSet<()>>>,
    task: JoinHandle<()>,
}

impl Door {
    async fn before(registry: &Registry) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (acceptor, behind) = (tokio_rustls::TlsAcceptor::from(tls::server_that_asks()), registry.address(Port::Registry));
        let (shown, through) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(Mutex::new(JoinSet::new())));
        let (notes, connections) = (shown.clone(), through.clone());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, notes) = (acceptor.clone(), notes.clone());
                connections.lock().unwrap().spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
                    notes.lock().unwrap().push(shown.map(CertificateDer::into_owned));
                    let mut registry = TcpStream::connect(behind).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut registry).await;
                });
            }
        });
        Self { address, shown, through, task }
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// What was shown, a connection each; from now on the rest.
    fn shown(&self) -> Vec<Option<CertificateDer<'static>>> {
        std::mem::take(&mut *self.shown.lock().unwrap())
    }

    /// Ends all connections: what comes next begins anew.
    async fn cut(&self) {
        let mut connections = std::mem::take(&mut *self.through.lock().unwrap());
        connections.shutdown().await;
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn write(builder: &Builder, pem: &Pem) {
    std::fs::write(builder.beside("client.crt"), &pem.cert).unwrap();
    std::fs::write(builder.beside("client.key"), &pem.key).unwrap();
}

fn der(pem: &Pem) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.cert.as_bytes()).unwrap()
}

/// A registry behind a door, and a mirror that shows this certificate there.
async fn scene(pem: &Pem) -> (Registry, Door, Builder) {
    let registry = Registry::plain().await;
    registry.image(REPO, "latest", Image::layers([50_000, 70_000]));
    let door = Door::before(&registry).await;
    let builder = Builder::new().endpoint("docker.io", &door.url()).trusting("docker.io").tune(quick);
    write(&builder, pem);
    let path = |name: &str| format!("\"{}\"", builder.beside(name).display());
    let (cert, key) = (path("client.crt"), path("client.key"));
    (registry, door, builder.set(TABLE, "client_cert", &cert).set(TABLE, "client_key", &key))
}

#[tokio::test]
async fn it_is_shown_to_the_endpoints_and_not_where_they_redirect_to() {
    let pem = tls::leaf(Certificate::Good);
    let (registry, door, builder) = scene(&pem).await;
    let mirror = builder.start();
    pull(&mirror.url(), REPO, "latest").await.unwrap();
    let shown = door.shown();
    assert!(!shown.is_empty() && shown.iter().all(|shown| *shown == Some(der(&pem))), "{}", shown.len());
    // The storage asks for one too, and gets none.
    let storage = Registry::plain().await;
    let elsewhere = Door::before(&storage).await;
    let blob = Blob::seeded(5, 1000);
    storage.blob(REPO, &blob);
    registry.on(Kind::Blob.of(blob.digest), Fault::redirect(307, &format!("{}/v2/{REPO}/blobs/{}", elsewhere.url(), blob.digest)));
    assert_eq!(get(mirror.blob(REPO, blob.digest)).fetch().await.digest, blob.digest);
    assert_eq!(elsewhere.shown(), [None]);
}

#[tokio::test]
async fn it_is_read_again_at_sighup_and_a_mistake_leaves_the_old_one() {
    let (first, second) = (tls::leaf(Certificate::Good), tls::leaf(Certificate::Good));
    let (registry, door, builder) = scene(&first).await;
    let process = builder.clone().traced().spawn().await;
    let next = async |seed: u64| {
        let blob = Blob::seeded(seed, 1000);
        registry.blob(REPO, &blob);
        door.cut().await;
        assert_eq!(get(process.blob(REPO, blob.digest)).fetch().await.digest, blob.digest, "{}", process.log());
        door.shown().pop().unwrap()
    };
    let reread = "were read again";
    let reload = async |times: usize| {
        process.signal(Signal::HUP);
        let heard = async || assert_eq!(get(format!("{}/v2/", process.url())).send().await.status, 200);
        within("the end of a reload", async {
            while process.log().matches(reread).count() < times {
                heard().await;
            }
        })
        .await;
    };
    assert_eq!(next(1).await, Some(der(&first)));
    std::fs::write(builder.beside("client.key"), &second.key).unwrap();
    reload(1).await;
    assert!(process.log().contains("it is not the key of"), "{}", process.log());
    assert_eq!(next(2).await, Some(der(&first)));
    write(&builder, &second);
    reload(2).await;
    assert_eq!(next(3).await, Some(der(&second)));
    assert!(!process.log().contains("PRIVATE KEY"));
}

#[tokio::test]
async fn what_is_no_certificate_is_told_by_check() {
    let (_registry, _door, builder) = scene(&tls::leaf(Certificate::Good)).await;
    let file = builder.beside("check.toml");
    std::fs::write(&file, builder.toml()).unwrap();
    let check = async || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millpond"));
        command.arg("check").arg("--config").arg(&file).env_clear();
        let output = within("the end of check", command.output()).await.unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check().await, (Some(0), String::new()));
    std::fs::write(builder.beside("client.crt"), "hello").unwrap();
    let (code, text) = check().await;
    assert!(code == Some(64) && text.contains("upstreams.\"docker.io\".client_cert: ") && text.contains("no certificate in PEM"), "{text}");
}
