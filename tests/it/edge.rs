//! Hostile requests: each is answered in the registry's words or not at all, none contacts an upstream, none tells
//! anything, none leaves anything behind.

mod heads; // what is wrong with HTTP itself: framing, hosts, sizes
mod paths; // what is wrong with what is asked for
mod writes; // pushes: refused before their body is read

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::client::{Close, Raw};
use crate::support::mirror::{Builder, Mirror};
use crate::support::registry::{Image, Pushed, Registry};

const REPO: &str = "library/debian";

/// A mirror with a login and a secret path in front of a registry that counts its connections.
struct Target {
    plain: Registry,
    image: Pushed,
    mirror: Mirror,
    before: BTreeSet<PathBuf>,
}

/// What a raw request brought.
struct Answer {
    status: u16,
    head: String,
    body: String,
    close: Close,
}

impl Target {
    async fn new() -> Self {
        let plain = Registry::plain().await;
        let image = plain.image(REPO, "latest", Image::layers([1000]));
        let mirror = Builder::new().upstream("docker.io", &plain).login("docker.io", "ann", "hush-password").start();
        let before = files(mirror.settings().data().parent().unwrap());
        Self { plain, image, mirror, before }
    }

    /// Sends these bytes, says that no more will come, and reads to the end; nothing when there is no answer.
    async fn send(&self, bytes: impl AsRef<[u8]>) -> Option<Answer> {
        let mut raw = Raw::connect(self.mirror.address()).await;
        // A server that refuses early may have closed already.
        let _ = raw.try_send(bytes).await;
        let (bytes, close) = raw.drain().await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        Some(Answer { status, head: head.to_lowercase(), body: body.to_owned(), close })
    }

    /// A GET of a target as it is, without any reading of it by a client.
    async fn get(&self, target: impl AsRef<[u8]>) -> Option<Answer> {
        let request = [b"GET ", target.as_ref(), b" HTTP/1.1\r\nHost: kit\r\nConnection: close\r\n\r\n"].concat();
        self.send(request).await
    }

    /// Asserts that nothing was asked of an upstream and nothing was left on the disk.
    fn assert_untouched(&self) {
        assert_eq!(self.plain.connections(), 0, "{}", self.plain.story());
        let after = files(self.mirror.settings().data().parent().unwrap());
        let mut new = after.difference(&self.before).filter(|path| !path.components().any(|part| part.as_os_str() == "index"));
        assert_eq!(new.next(), None);
    }
}

/// Asserts that nothing of the machine, its secrets or another's words is in an answer.
#[track_caller]
fn assert_tells_nothing(what: &str, answer: &Answer) {
    let all = format!("{}\n{}", answer.head, answer.body);
    for secret in ["hush-password", "/tmp", "/home", "/root", "root:", "panicked", "src/", "127.0.0.1", "passwd\"", "No such file"] {
        assert!(!all.contains(secret), "{what} is told {secret:?}: {all}");
    }
    assert!(!answer.head.contains("\nlocation:") && !answer.head.contains("set-cookie"), "{what}: {}", answer.head);
}

/// Asserts the form of the specification: a code and a message.
#[track_caller]
fn assert_error_body(what: &str, answer: &Answer) {
    assert!(answer.head.contains("content-type: application/json"), "{what}: {}", answer.head);
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{what}: {error}: {}", answer.body));
    let error = &body["errors"][0];
    assert!(error["code"].as_str().is_some_and(|code| !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase() || c == '_')));
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{what}: {body}");
    assert!(answer.head.contains("cache-status: millpond") && answer.head.contains("x-content-type-options: nosniff"), "{}", answer.head);
}

fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { BTreeSet::from([path]) }).collect()
}
