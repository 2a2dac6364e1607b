//! Health and metrics, for whoever operates the mirror: a listener of its own, so that the registry's port needs no special paths.
//!
//! Knows nothing of registries, caches or sockets: a request's head in, an answer out. Nothing secret is told, but it is nobody's business
//! either: the default address is the loopback.

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use crate::observe::Metrics;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
/// What `prometheus_client` writes; Prometheus tells the two text formats apart by it.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether requests should be sent here. A cheap handle: `main` moves it along from starting to ready to draining.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<RwLock<Option<&'static str>>>);

impl Readiness {
    /// Not ready, because it is starting.
    pub fn starting() -> Self {
        Self(Arc::new(RwLock::new(Some("starting"))))
    }

    /// Ready from now on.
    pub fn ready(&self) {
        self.set(None);
    }

    /// Not ready from now on; `reason` is what `/readyz` says, such as `draining`.
    pub fn not_ready(&self, reason: &'static str) {
        self.set(Some(reason));
    }

    /// Why it is not ready; None when it is.
    pub fn reason(&self) -> Option<&'static str> {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, reason: Option<&'static str>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

/// The service of the admin listener. Cheap to clone.
#[derive(Clone)]
pub struct Admin {
    metrics: Metrics,
    readiness: Readiness,
}

impl Admin {
    /// Tells of these.
    pub fn new(metrics: Metrics, readiness: Readiness) -> Self {
        Self { metrics, readiness }
    }

    fn with_disk(&self, word: &str) -> String {
        if self.metrics.is_disk_overdue() { format!("{word}, but the disk does not answer\n") } else { format!("{word}\n") }
    }

    /// GET and HEAD of `/healthz`, `/readyz` and `/metrics`; all else is the registry's JSON error.
    pub fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let answer: fn(&Self) -> Response<Full<Bytes>> = match request.uri().path() {
            // That it answers is the message; a disk that does not is told beside it, for clients are served all the same.
            "/healthz" => |admin| reply(StatusCode::OK, TEXT, admin.with_disk("ok")),
            "/readyz" => |admin| match admin.readiness.reason() {
                None => reply(StatusCode::OK, TEXT, admin.with_disk("ready")),
                Some(reason) => reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
            },
            "/metrics" => |admin| reply(StatusCode::OK, OPENMETRICS, admin.metrics.render()),
            _ => {
                return error(
                    StatusCode::NOT_FOUND,
                    "NOT_FOUND",
                    "there is /healthz, /readyz and /metrics here; the registry is on the other port",
                );
            }
        };
        if matches!(*request.method(), Method::GET | Method::HEAD) {
            // hyper leaves the body of an answer to HEAD out and keeps its length.
            return answer(self);
        }
        let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "only GET and HEAD");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        refused
    }
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    reply(status, JSON, serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string())
}

fn reply(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn ask(admin: &Admin, method: Method, target: &str) -> (StatusCode, String, String) {
        let response = admin.answer(&Request::builder().method(method).uri(target).body(()).unwrap());
        let status = response.status();
        let media_type = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, media_type, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_follows_the_life_of_the_process() {
        let readiness = Readiness::starting();
        let admin = Admin::new(Metrics::new(), readiness.clone());
        let ready = || ask(&admin, Method::GET, "/readyz");
        assert_eq!(ready().await, (StatusCode::SERVICE_UNAVAILABLE, TEXT.into(), "starting\n".into()));
        readiness.ready();
        assert_eq!(ready().await, (StatusCode::OK, TEXT.into(), "ready\n".into()));
        readiness.not_ready("draining");
        assert_eq!(ready().await, (StatusCode::SERVICE_UNAVAILABLE, TEXT.into(), "draining\n".into()));
        assert_eq!(ask(&admin, Method::GET, "/healthz?x").await.0, StatusCode::OK, "draining is not dying");
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_is_told_and_no_reason_to_send_nobody() {
        let (readiness, metrics) = (Readiness::starting(), Metrics::new());
        let admin = Admin::new(metrics.clone(), readiness.clone());
        readiness.ready();
        metrics.disk_overdue(1);
        for (page, word) in [("/healthz", "ok"), ("/readyz", "ready")] {
            let told = (StatusCode::OK, TEXT.to_owned(), format!("{word}, but the disk does not answer\n"));
            assert_eq!(ask(&admin, Method::GET, page).await, told);
        }
    }

    #[tokio::test]
    async fn metrics_are_named_by_their_format() {
        let admin = Admin::new(Metrics::new(), Readiness::starting());
        let (status, media_type, body) = ask(&admin, Method::GET, "/metrics").await;
        assert_eq!((status, media_type.as_str()), (StatusCode::OK, OPENMETRICS));
        assert!(body.contains("millpond_cache_bytes 0\n") && body.ends_with("# EOF\n"), "{body}");
    }

    #[tokio::test]
    async fn anything_else_is_a_json_error() {
        let admin = Admin::new(Metrics::new(), Readiness::starting());
        for target in ["/", "/v2/", "/healthz/", "/Metrics", "//healthz", "*"] {
            let (status, media_type, body) = ask(&admin, Method::GET, target).await;
            assert_eq!((status, media_type.as_str()), (StatusCode::NOT_FOUND, JSON), "{target}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&body).unwrap()["errors"][0]["code"], "NOT_FOUND");
        }
        let response = admin.answer(&Request::post("/healthz").body(()).unwrap());
        assert_eq!(
            (response.status(), &response.headers()[ALLOW]),
            (StatusCode::METHOD_NOT_ALLOWED, &HeaderValue::from_static("GET, HEAD"))
        );
    }
}
