//! TLS: whom millpond believes.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

use super::super::{Error, Why};
use super::server::{Seen, name, tag};
use super::*;

/// A server named `dns` whose certificate is signed by an authority of its own; the authority's certificate in PEM.
fn acceptor(dns: &str) -> (TlsAcceptor, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([dns.to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &authority).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a configuration");
    (TlsAcceptor::from(Arc::new(config)), authority.pem())
}

async fn server(dns: &str) -> (Server, String) {
    let (tls, pem) = acceptor(dns);
    (Server::start_with(Some(tls), |_| |_: &Seen, _| reply(200, &[], "{}")).await, pem)
}

#[tokio::test]
async fn an_authority_of_ones_own_is_believed_where_it_is_named() {
    let (server, pem) = server("localhost").await;
    let mut setup = Setup::new(&[&server]);
    let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("unknown");
    assert!(matches!(error, Error::Unavailable { why: Why::Certificate(_), .. }), "{error:?}");
    assert_eq!((server.connections(), server.count()), (1, 0), "a certificate does not become better by asking again");

    setup.settings.ca_file = Some(setup.file("ca.pem", &pem));
    setup.upstream().manifest(&name("a"), &tag("latest")).await.expect("trusted");
}

#[tokio::test]
async fn a_certificate_of_another_name_is_not_believed() {
    let (server, pem) = server("other.test").await;
    let mut setup = Setup::new(&[&server]);
    setup.settings.ca_file = Some(setup.file("ca.pem", &pem));
    let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("another name");
    assert!(matches!(error, Error::Unavailable { why: Why::Certificate(_), .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_without_tls_is_never_spoken_to_in_clear() {
    let plain = Server::start(|_, _| reply(200, &[], "{}")).await;
    let mut setup = Setup::new(&[&plain]).with_login();
    setup.settings.endpoints = vec![Url::parse(&format!("https://localhost:{}", plain.addr.port())).expect("an URL")];
    let error = setup.upstream().manifest(&name("a"), &tag("latest")).await.expect_err("no TLS");
    assert!(matches!(error, Error::Unavailable { why: Why::Tls(_), .. }), "{error:?}");
    assert_eq!(plain.count(), 0);
}
