//! An answer before it is on the wire.

use bytes::Bytes;
use serde_json::{Value, json};

use super::content::{Content, gzip};

/// A status, headers and a body.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Content,
    /// The body is sent even if the request was HEAD.
    pub(super) body_on_head: bool,
    /// The length is not told, though there is one.
    pub(super) untold_length: bool,
}

impl Answer {
    /// Without a body.
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Content::bytes(""), body_on_head: false, untold_length: false }
    }

    pub(super) fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status).header("Content-Type", "application/json").content(Content::bytes(body))
    }

    pub(super) fn html(status: u16, body: &str) -> Self {
        Self::new(status).header("Content-Type", "text/html; charset=utf-8").content(Content::bytes(body.to_owned()))
    }

    /// An error as the distribution specification writes it.
    pub(super) fn error(status: u16, code: &str, message: &str, detail: impl Into<Value>) -> Self {
        let error = json!({ "errors": [{ "code": code, "message": message, "detail": detail.into() }] });
        Self::json(status, error.to_string())
    }

    /// The usual error of a status.
    pub(super) fn error_of(status: u16) -> Self {
        let (code, message) = match status {
            400 => ("NAME_INVALID", "invalid"),
            401 => ("UNAUTHORIZED", "authentication required"),
            403 => ("DENIED", "requested access to the resource is denied"),
            404 => ("MANIFEST_UNKNOWN", "unknown"),
            405 => ("UNSUPPORTED", "The operation is unsupported."),
            416 => ("RANGE_INVALID", "invalid range"),
            429 => ("TOOMANYREQUESTS", "You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit"),
            503 => ("UNAVAILABLE", "service unavailable"),
            _ => ("UNKNOWN", "unknown error"),
        };
        Self::error(status, code, message, Value::Null)
    }

    /// With one more header.
    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    /// With this body.
    pub(super) fn content(mut self, body: Content) -> Self {
        self.body = body;
        self
    }

    /// The same in `Content-Encoding: gzip`.
    pub(super) fn gzipped(mut self) -> Self {
        self.body = Content::Bytes(gzip(&self.body.to_bytes()));
        self.set("Content-Encoding", "gzip");
        self
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.into(), value.into()));
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name))
    }
}
