//! One request to the mirror, as a client would send it: a connection of its own, TLS as the client would check it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Subject;

/// How long a connection may take: the mirror is on this machine or near it.
const CONNECT: Duration = Duration::from_secs(10);

/// How long an answer may take, whole: longer than the mirror gives an upstream.
const ANSWER: Duration = Duration::from_secs(60);

/// The largest answer that is read, in bytes: an image's configuration is some ten KiB, a manifest at most 4 MiB.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// Why there is none, as the end of a sentence.
pub(super) type Silence = String;

pub(super) async fn ask(
    subject: &Subject,
    roots: &Arc<RootCertStore>,
    method: Method,
    target: &str,
    agent: &str,
) -> Result<Answer, Silence> {
    let at = subject.connect_to();
    let tcp = match tokio::time::timeout(CONNECT, TcpStream::connect(&at)).await {
        Err(_) => return Err(format!("nothing answers at {at}: is a firewall between?")),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            return Err(format!("nothing listens at {at}: millpond is not running there; start it with `millpond serve`"));
        }
        Ok(Err(error)) => return Err(format!("{at} cannot be reached: {error}")),
        Ok(Ok(tcp)) => tcp,
    };
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("Host", subject.authority())
        .header("User-Agent", agent)
        .header("Accept", ACCEPT)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let talk = async {
        if !subject.tls {
            return exchange(tcp, request).await;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let config = config.with_root_certificates(Arc::clone(roots)).with_no_client_auth();
        let name = ServerName::try_from(subject.host.clone()).map_err(|error| error.to_string())?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|error| {
            let authority = subject.authority();
            format!("TLS to {authority} fails ({error}): if its certificate is not trusted, give the client the authority's; if it is not for that name, call the mirror by one that it is for (--address)")
        })?;
        exchange(tls, request).await
    };
    tokio::time::timeout(ANSWER, talk).await.unwrap_or_else(|_| Err(format!("{at} takes connections and does not answer within a minute")))
}

/// As all clients together ask.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, */*";

async fn exchange(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, request: Request<Empty<Bytes>>) -> Result<Answer, Silence> {
    let broken = |error: &dyn std::fmt::Display| {
        format!("what answers there does not speak as millpond is configured to, HTTP with TLS or without ({error})")
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    let driver = tokio::spawn(connection);
    let answered = async {
        let (head, body) = sender.send_request(request).await.map_err(|error| broken(&error))?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| format!("the answer broke off: {error}"))?;
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: body.to_bytes() })
    };
    let answered = answered.await;
    driver.abort();
    answered
}

/// What the system trusts, and what lies in these folders.
pub(super) fn roots(root: &Path, folders: &[String]) -> Arc<RootCertStore> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for entry in folders.iter().filter_map(|folder| std::fs::read_dir(root.join(folder)).ok()).flatten().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "crt" || extension == "pem")
            && let Ok(certificates) = CertificateDer::pem_file_iter(entry.path())
        {
            store.add_parsable_certificates(certificates.flatten());
        }
    }
    Arc::new(store)
}
