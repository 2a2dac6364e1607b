//! One request, one answer: what leaves this process and how its failures are named.
//!
//! Owns [`Wire`], the only place that sends. Promises that the only headers sent are the ones in [`Outgoing`], that each
//! request is counted, and that no log line holds a query.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, PROXY_AUTHORIZATION, RANGE, USER_AGENT, VIA};
use hyper::{Method, Request, Response, StatusCode, Uri};
use tracing::debug;
use url::Url;

use super::budget::{Deadline, Limits};
use super::connect::{Clients, Reach, explain};
use super::error::{Error, Flaw, Phase, ProxyFault, Why};
use super::proxy::Proxy;
use super::redirect::host_of;
use crate::observe::{Kind, Metrics};

/// Who is asking.
const AGENT: &str = concat!("millpond/", env!("CARGO_PKG_VERSION"));

/// A body that nobody wants is read up to so many bytes, because that costs less than the next TLS handshake. Error
/// bodies and the pages that redirects carry are a tenth of it.
const SETTLE_BYTES_MAX: u64 = 16 << 10;

/// And for so long.
const SETTLE_TIME_MAX: Duration = Duration::from_millis(500);

/// What it takes to send requests for one upstream.
pub(super) struct Wire {
    pub(super) upstream: Arc<str>,
    pub(super) clients: Clients,
    pub(super) metrics: Metrics,
    pub(super) limits: Arc<Limits>,
}

/// A request: all that is ever told to an upstream.
pub(super) struct Outgoing<'a> {
    pub(super) method: &'a Method,
    pub(super) url: &'a Url,
    pub(super) accept: &'static str,
    pub(super) authorization: Option<&'a HeaderValue>,
    /// The first byte that is wanted.
    pub(super) offset: u64,
    /// The last one, where that is not the end.
    pub(super) last: Option<u64>,
    pub(super) kind: Kind,
    pub(super) reach: Reach,
    /// The host that named this URL.
    pub(super) from: &'a str,
    /// The mirrors that ask, for an endpoint.
    pub(super) via: Option<&'a HeaderValue>,
}

impl Outgoing<'_> {
    fn request(&self) -> Result<Request<Empty<Bytes>>, Error> {
        let unusable = || Error::BadAnswer { host: self.from.to_owned(), flaw: Flaw::Location };
        // The two crates disagree about a few characters; an URL that only one of them knows is not followed.
        let uri: Uri = self.url.as_str().parse().map_err(|_| unusable())?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT, HeaderValue::from_static(self.accept));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(authorization) = self.authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        if let Some(via) = self.via {
            headers.insert(VIA, via.clone());
        }
        if self.offset > 0 || self.last.is_some() {
            let last = self.last.map_or_else(String::new, |last| last.to_string());
            let range = HeaderValue::from_str(&format!("bytes={}-{last}", self.offset)).expect("digits");
            headers.insert(RANGE, range);
        }
        Ok(request)
    }
}

impl Wire {
    /// Sends, and waits for the head of the answer: until the deadline, but no longer than such a wait may be.
    pub(super) async fn send(&self, out: &Outgoing<'_>, deadline: Deadline) -> Result<Response<Incoming>, Error> {
        let mut request = out.request()?;
        let host = host_of(out.url);
        let forwarder = self.clients.forwarder(out.url);
        if let Some(authorization) = forwarder.and_then(Proxy::authorization) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        let answer = deadline.within(self.limits.head).run(self.clients.get(out.reach, out.url).request(request)).await;
        let answer = match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(explain(&error, &host, out.from)),
            None => Err(Error::Timeout { host: host.clone(), phase: Phase::Head }),
        };
        let status = answer.as_ref().map_or(0, |answer| answer.status().as_u16());
        self.metrics.asked(&self.upstream, out.kind, status);
        // No path either: some storages put the signature there.
        debug!(upstream = %self.upstream, host, kind = out.kind.as_str(), method = %out.method, offset = out.offset, status, "asked");
        match (answer, forwarder) {
            (Ok(answer), Some(proxy)) if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                settle(answer).await;
                let why = Why::Proxy { proxy: proxy.label(), fault: ProxyFault::Login };
                Err(Error::Unavailable { host, why })
            }
            (answer, _) => answer,
        }
    }
}

/// Reads a small body to its end.
pub(super) async fn read_whole(host: &str, mut body: Incoming, max: usize, deadline: Deadline) -> Result<Bytes, Error> {
    let too_large = || Error::BadAnswer { host: host.to_owned(), flaw: Flaw::TooLarge(max) };
    if usize::try_from(body.size_hint().lower()).map_or(true, |announced| announced > max) {
        return Err(too_large());
    }
    let reading = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::Unavailable { host: host.to_owned(), why: Why::Cut })?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    };
    deadline.run(reading).await.unwrap_or_else(|| Err(Error::Timeout { host: host.to_owned(), phase: Phase::Body }))
}

/// Puts an answer aside whose body nobody wants, so that its connection can be used again.
pub(super) async fn settle(answer: Response<Incoming>) {
    let mut body = answer.into_body();
    if body.size_hint().upper().is_some_and(|bytes| bytes <= SETTLE_BYTES_MAX) {
        let reading = async { while let Some(Ok(_)) = body.frame().await {} };
        let _ = Deadline::after(SETTLE_TIME_MAX).run(reading).await;
    }
}
