//! TLS: who is shown what, who is believed, and HTTP/2.

use std::path::Path;
use std::task::Poll;

use http_body_util::Empty;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// A folder with a CA, and the files of a server that it signed.
struct Authority {
    dir: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { dir: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(authority.path("ca.pem"), authority.issuer.pem()).unwrap();
        authority.sign("server");
        authority.sign("client");
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `name.pem` and `name.key`, new ones.
    fn sign(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn tls(&self) -> Tls {
        Tls { cert: self.path("server.pem"), key: self.path("server.key"), client_ca: None }
    }

    fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// A client that trusts this CA, with a certificate of `of` or without, and offers these protocols.
    fn client(&self, of: Option<&Authority>, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(Self::chain(&self.path("ca.pem")));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = match of {
            None => builder.with_no_client_auth(),
            Some(of) => {
                let key = PrivateKeyDer::from_pem_file(of.path("client.key")).unwrap();
                builder.with_client_auth_cert(Self::chain(&of.path("client.pem")), key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

async fn connect(server: &Server, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, server.connect().await).await
}

/// The answer to a GET over HTTP/1.1, or the error that stands in its place.
async fn get(server: &Server, config: ClientConfig) -> io::Result<String> {
    let mut stream = connect(server, &Arc::new(config)).await?;
    stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())
}

#[tokio::test]
async fn a_client_certificate_is_told_and_none_is_fine() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let tls = Tls { client_ca: Some(authority.path("ca.pem")), ..authority.tls() };
    let server = Server::start(Limits::default(), Some(Certificates::load(&tls).unwrap()), echo);
    assert_eq!(get(&server, authority.client(None, &[])).await.unwrap(), "/v2/");
    assert_eq!(get(&server, authority.client(Some(&authority), &[])).await.unwrap(), "/v2/ with a certificate");
    get(&server, authority.client(Some(&stranger), &[])).await.expect_err("signed by somebody else");
}

#[tokio::test]
async fn what_lies_in_a_mapping_is_not_asked_for() {
    let authority = Authority::new();
    let service = |_, _| -> Answer {
        let mut text = Some(Ok(Frame::data(Bytes::from_static(b"read"))));
        let frames = stream::poll_fn(move |_| {
            // It would be encrypted: looked at.
            assert_eq!(mapped_piece(), 0);
            Poll::Ready(text.take())
        });
        Box::pin(async { Response::new(StreamBody::new(frames).boxed_unsync()) })
    };
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), service);
    assert_eq!(get(&server, authority.client(None, &[])).await.unwrap(), "read");
    let stream = connect(&server, &Arc::new(authority.client(None, &["h2"]))).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://localhost/v2/").body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "read");
}

#[tokio::test]
async fn without_a_ca_no_certificate_counts() {
    let authority = Authority::new();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), echo);
    assert_eq!(get(&server, authority.client(Some(&authority), &[])).await.unwrap(), "/v2/");
}

#[tokio::test]
async fn a_session_is_resumed_with_its_certificate_until_a_file_changes() {
    let authority = Authority::new();
    let tls = Tls { client_ca: Some(authority.path("ca.pem")), ..authority.tls() };
    let certificates = Certificates::load(&tls).unwrap();
    let server = Server::start(Limits::default(), Some(certificates.clone()), echo);
    let config = Arc::new(authority.client(Some(&authority), &[]));
    let ask = || async {
        let mut stream = connect(&server, &config).await.unwrap();
        stream.write_all(b"GET /v2/ HTTP/1.0\r\n\r\n").await.unwrap();
        assert!(read_all(&mut stream).await.ends_with("/v2/ with a certificate"));
        stream.get_ref().1.handshake_kind().unwrap()
    };
    let resumed_from_the_second_on = async || {
        assert_eq!(ask().await, rustls::HandshakeKind::Full);
        for _ in 0..3 {
            assert_eq!(ask().await, rustls::HandshakeKind::Resumed);
        }
    };
    resumed_from_the_second_on().await;
    // Nothing has changed.
    certificates.reload().unwrap();
    assert_eq!(ask().await, rustls::HandshakeKind::Resumed);
    authority.sign("server");
    certificates.reload().unwrap();
    resumed_from_the_second_on().await;
    // Whoever is admitted by a CA is asked again when there is another.
    let both = authority.issuer.pem() + &Authority::new().issuer.pem();
    std::fs::write(authority.path("ca.pem"), both).unwrap();
    certificates.reload().unwrap();
    resumed_from_the_second_on().await;
    // A file that cannot be used changes nothing.
    std::fs::write(authority.path("ca.pem"), "gone wrong").unwrap();
    certificates.reload().unwrap_err();
    assert_eq!(ask().await, rustls::HandshakeKind::Resumed);
}

#[tokio::test]
async fn a_reload_shows_the_new_certificate_or_keeps_the_old() {
    let authority = Authority::new();
    let certificates = Certificates::load(&authority.tls()).unwrap();
    let server = Server::start(Limits::default(), Some(certificates.clone()), echo);
    let shown = || async {
        let stream = connect(&server, &Arc::new(authority.client(None, &[]))).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    };
    let old = shown().await;
    std::fs::write(authority.path("server.pem"), "gone wrong").unwrap();
    certificates.reload().unwrap_err();
    assert_eq!(shown().await, old);
    authority.sign("server");
    certificates.reload().unwrap();
    assert_ne!(shown().await, old);
}

#[test]
fn a_mistake_is_told_with_its_file() {
    let (authority, other) = (Authority::new(), Authority::new());
    std::fs::write(authority.path("empty.pem"), "").unwrap();
    std::fs::write(authority.path("torn.pem"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    std::fs::write(authority.path("false.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let good = authority.tls();
    let at = |name: &str| authority.path(name);
    for (tls, file, what) in [
        (Tls { cert: at("no.pem"), ..good.clone() }, at("no.pem"), "No such file or directory"),
        (Tls { key: at("no.key"), ..good.clone() }, at("no.key"), "No such file or directory"),
        (Tls { cert: at("empty.pem"), ..good.clone() }, at("empty.pem"), "no certificate inside"),
        (Tls { cert: at("server.key"), ..good.clone() }, at("server.key"), "no certificate inside"),
        (Tls { key: at("server.pem"), ..good.clone() }, at("server.pem"), "no private key inside"),
        (Tls { cert: at("torn.pem"), ..good.clone() }, at("torn.pem"), "section end"),
        (Tls { cert: at("false.pem"), ..good.clone() }, at("false.pem"), "invalid peer certificate"),
        (Tls { key: other.path("server.key"), ..good.clone() }, other.path("server.key"), "does not belong to the certificate in"),
        (Tls { client_ca: Some(at("no.pem")), ..good.clone() }, at("no.pem"), "No such file or directory"),
        (Tls { client_ca: Some(at("empty.pem")), ..good.clone() }, at("empty.pem"), "no certificate inside"),
        (Tls { client_ca: Some(at("false.pem")), ..good.clone() }, at("false.pem"), "invalid peer certificate"),
    ] {
        let text = Certificates::load(&tls).err().expect(what).to_string();
        assert!(text.starts_with(&format!("{}: ", file.display())) && text.contains(what), "{text}: expected {what}");
    }
    Certificates::load(&good).unwrap();
}

#[tokio::test]
async fn alpn_prefers_http1_and_speaks_http2_to_those_who_insist() {
    let authority = Authority::new();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), echo);
    let both = connect(&server, &Arc::new(authority.client(None, &["h2", "http/1.1"]))).await.unwrap();
    assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let (mut sender, connection) = http1::handshake(TokioIo::new(both)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/v2/").header("host", "localhost").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);

    let mut sender = h2(&server, &authority, 1 << 20).await;
    let answers = (0..10).map(|n| {
        let request = Request::get(format!("https://localhost/{n}")).body(Empty::<Bytes>::new()).unwrap();
        sender.send_request(request)
    });
    for (n, answer) in futures_util::future::join_all(answers).await.into_iter().enumerate() {
        let body = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("/{n}"));
    }
    assert_eq!(server.stop().await.cut, 0, "both were idle");
}

async fn h2(server: &Server, authority: &Authority, window: u32) -> http2::SendRequest<Empty<Bytes>> {
    let stream = connect(server, &Arc::new(authority.client(None, &["h2"]))).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.initial_stream_window_size(window).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request() -> Request<Empty<Bytes>> {
    Request::get("https://localhost/v2/").body(Empty::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_is_closed() {
    let authority = Authority::new();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), echo);
    let mut sender = h2(&server, &authority, 1 << 20).await;
    sender.send_request(request()).await.unwrap().into_body().collect().await.unwrap();
    tokio::time::sleep(HEADER_TIMEOUT.mul_f32(0.9)).await;
    assert!(sender.ready().await.is_ok());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(sender.ready().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_http2_client_that_grants_no_window_is_cut() {
    let authority = Authority::new();
    let (mut end, body) = endless();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), once(body));
    let mut sender = h2(&server, &authority, 1024).await;
    let start = Instant::now();
    let _unread = sender.send_request(request()).await.unwrap();
    assert!(end.recv().await.is_none());
    assert!(start.elapsed() >= STALL_TIMEOUT && start.elapsed() < STALL_TIMEOUT + Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_http2_body_that_waits_for_its_source_is_kept() {
    let authority = Authority::new();
    let (frames, body) = piecewise();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), once(body));
    let mut sender = h2(&server, &authority, 1 << 20).await;
    let answer = sender.send_request(request()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    frames.send(Ok(Bytes::from_static(b"late"))).unwrap();
    drop(frames);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "late");
}

#[tokio::test]
async fn a_body_that_fails_resets_its_http2_stream() {
    let authority = Authority::new();
    let (frames, body) = piecewise();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), once(body));
    let mut sender = h2(&server, &authority, 1 << 20).await;
    let answer = sender.send_request(request()).await.unwrap();
    frames.send(Ok(Bytes::from_static(b"half"))).unwrap();
    frames.send(Err(io::Error::other("does not hash to its digest"))).unwrap();
    answer.into_body().collect().await.expect_err("not a clean end");
}

#[tokio::test(start_paused = true)]
async fn an_http2_body_finishes_within_the_drain_and_is_cut_after() {
    let authority = Authority::new();
    for (finish, cut) in [(true, 0), (false, 1)] {
        let (frames, body) = piecewise();
        let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), once(body));
        let mut sender = h2(&server, &authority, 1 << 20).await;
        let answer = sender.send_request(request()).await.unwrap();
        server.stop.cancel();
        tokio::time::sleep(Duration::from_secs(20)).await;
        frames.send(Ok(Bytes::from_static(b"late"))).unwrap();
        if finish {
            drop(frames);
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "late");
            assert_eq!(server.done.await.unwrap().cut, cut);
        } else {
            assert_eq!(server.done.await.unwrap().cut, cut);
            answer.into_body().collect().await.expect_err("cut");
            frames.closed().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stands_still_is_cut_and_delays_nobody() {
    let authority = Authority::new();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), echo);
    let start = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..50 {
        let mut socket = server.connect().await;
        socket.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01]).await.unwrap();
        silent.push(socket);
    }
    assert_eq!(get(&server, authority.client(None, &[])).await.unwrap(), "/v2/");
    assert_took(start, Duration::ZERO);
    for mut socket in silent {
        read_all(&mut socket).await;
    }
    assert_took(start, HANDSHAKE_TIMEOUT);
}

#[tokio::test]
async fn plain_text_on_the_tls_port_is_turned_away() {
    let authority = Authority::new();
    let server = Server::start(Limits::default(), Some(Certificates::load(&authority.tls()).unwrap()), echo);
    let mut socket = server.connect().await;
    socket.write_all(GET).await.unwrap();
    let answer = read_all(&mut socket).await;
    assert!(!answer.contains("HTTP/"), "{answer:?}");
    assert_eq!(get(&server, authority.client(None, &[])).await.unwrap(), "/v2/");
}
