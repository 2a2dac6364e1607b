//! One HTTP request at a time, for filling a registry and for looking at answers to the byte. Follows no redirect, decodes nothing.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderMap};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header's value, or the empty text.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Sends a request without a body to `http://address/target`; each of `headers` becomes a header line of its own.
pub(crate) fn ask(method: Method, url: &str, headers: &[(&str, &str)]) -> Answer {
    send(method, url, headers, Bytes::new())
}

/// Sends a request and reads the answer to its end; panics when there is none, or half of one.
pub(crate) fn send(method: Method, url: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
    let (address, target) = url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("http://address/target");
    let mut request = Request::builder().method(method).uri(format!("/{target}")).header(HOST, address);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async {
            let stream = tokio::net::TcpStream::connect(address).await?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let driver = tokio::spawn(connection);
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            driver.abort();
            Ok::<_, Box<dyn std::error::Error>>(Answer { status: head.status.as_u16(), headers: head.headers, body })
        })
        .unwrap_or_else(|error| panic!("{url}: {error}"))
}
