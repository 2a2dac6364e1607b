//! What a scripted registry was asked: every request, in order of arrival, and how its answer ended.

use std::ops::Deref;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use hyper::{HeaderMap, Method};
use millpond::oci::Digest;
use tokio::sync::watch;

use super::super::patience::try_within;
use super::listener::Port;

/// What a request is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `/v2/`.
    Ping,
    /// The token server.
    Token,
    /// A manifest.
    Manifest,
    /// A blob, at the registry: in the hub profile a redirect.
    Blob,
    /// A blob, at a CDN.
    Cdn,
    /// The list of tags.
    Tags,
    /// The list of referrers.
    Referrers,
    /// The search of index.docker.io and hub.docker.com.
    Search,
    /// Anything else.
    Other,
}

/// A pattern of requests: for faults, and for counting. Starts as a [`Kind`], or as [`Want::any`].
#[derive(Clone, Debug, Default)]
pub struct Want {
    kind: Option<Kind>,
    method: Option<Method>,
    repository: Option<String>,
    content: Option<String>,
    port: Option<Port>,
    ranged: Option<bool>,
}

/// One request, as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which listener took it.
    pub port: Port,
    /// Which connection it came on; numbered from 1 in order of arrival at any listener.
    pub connection: u64,
    /// What it is about.
    pub kind: Kind,
    /// GET or HEAD, mostly.
    pub method: Method,
    /// The path, as sent.
    pub path: String,
    /// The query, as sent, without the question mark.
    pub query: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The body, of a POST.
    pub body: Bytes,
    /// The repository that the path names.
    pub repository: Option<String>,
    /// The tag or digest that the path names.
    pub reference: Option<String>,
    /// The content it asks for: the digest in the path, or what the tag meant on arrival.
    pub digest: Option<Digest>,
}

/// How an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// All of it was handed to the kernel.
    Whole,
    /// The registry broke it off, by a fault or by going down.
    Cut,
    /// The peer went away before.
    Left,
}

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Record {
    request: Arc<Request>,
    // When it arrived and when its answer ended, counted in arrivals and ends.
    arrived: u64,
    ended: Option<u64>,
    /// The status, once the head of the answer is sent.
    pub status: Option<u16>,
    /// Bytes of the body that were handed to the kernel.
    pub sent: u64,
    /// How it ended, once it has.
    pub end: Option<End>,
}

/// The records, and a bell that rings at every change.
#[derive(Debug)]
pub(super) struct Log {
    records: Mutex<Records>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Records {
    all: Vec<Record>,
    // So many of the first are not shown any more.
    forgotten: usize,
    // Arrivals and ends until now.
    events: u64,
}

impl Kind {
    /// Of this content (a digest, also when asked for by tag) or this reference (a tag).
    pub fn of(self, content: impl ToString) -> Want {
        Want::from(self).of(content)
    }

    /// In this repository.
    pub fn within(self, repository: &str) -> Want {
        Want::from(self).within(repository)
    }

    /// By GET.
    pub fn get(self) -> Want {
        Want::from(self).get()
    }

    /// By HEAD.
    pub fn head(self) -> Want {
        Want::from(self).head()
    }
}

impl Want {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Of this content (a digest, also when asked for by tag) or this reference (a tag).
    pub fn of(mut self, content: impl ToString) -> Self {
        self.content = Some(content.to_string());
        self
    }

    /// In this repository.
    pub fn within(mut self, repository: &str) -> Self {
        self.repository = Some(repository.into());
        self
    }

    /// By GET.
    pub fn get(self) -> Self {
        self.method(Method::GET)
    }

    /// By HEAD.
    pub fn head(self) -> Self {
        self.method(Method::HEAD)
    }

    /// By another method.
    pub fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// At this listener.
    pub fn at(mut self, port: Port) -> Self {
        self.port = Some(port);
        self
    }

    /// With a Range header, or without.
    pub fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    /// Whether the request is one of these.
    pub fn matches(&self, request: &Request) -> bool {
        let names =
            |text: &String| request.reference.as_ref() == Some(text) || request.digest.is_some_and(|digest| digest.to_string() == *text);
        self.kind.is_none_or(|kind| kind == request.kind)
            && self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.repository.as_ref().is_none_or(|name| request.repository.as_ref() == Some(name))
            && self.content.as_ref().is_none_or(names)
            && self.port.is_none_or(|port| port == request.port)
            && self.ranged.is_none_or(|ranged| ranged == request.headers.contains_key("range"))
    }
}

impl From<Kind> for Want {
    fn from(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::default() }
    }
}

impl Request {
    /// The text of a header, if it was sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("headers of a test are text"))
    }

    /// The values of a parameter of the query.
    pub fn params(&self, name: &str) -> Vec<String> {
        url::form_urlencoded::parse(self.query.as_bytes()).filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    }
}

impl Deref for Record {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

impl Record {
    /// As a line, for the message of a failed test.
    pub fn line(&self) -> String {
        let query = if self.query.is_empty() { String::new() } else { format!("?{}", self.query) };
        let range = self.header("range").map(|range| format!(" [{range}]")).unwrap_or_default();
        let status = self.status.map_or("no answer yet".into(), |status| status.to_string());
        format!(
            "{:?} c{} {} {}{query}{range} -> {status}, {} bytes, {:?}",
            self.port, self.connection, self.method, self.path, self.sent, self.end
        )
    }
}

/// How many of these were under way at once, at most.
pub(super) fn peak<'a>(records: impl Iterator<Item = &'a Record>) -> usize {
    let mut events: Vec<(u64, bool)> =
        records.flat_map(|record| [Some((record.arrived, true)), record.ended.map(|ended| (ended, false))]).flatten().collect();
    events.sort_unstable();
    let mut open = 0;
    let after = |(_, arrival): (u64, bool)| {
        open = if arrival { open + 1 } else { open - 1 };
        open
    };
    events.into_iter().map(after).max().unwrap_or(0)
}

impl Log {
    pub(super) fn new() -> Self {
        Self { records: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Records an arrival and gives its number.
    pub(super) fn arrived(&self, request: Arc<Request>) -> usize {
        let id = {
            let mut records = self.records.lock().unwrap();
            records.events += 1;
            let arrived = records.events;
            records.all.push(Record { request, arrived, ended: None, status: None, sent: 0, end: None });
            records.all.len() - 1
        };
        self.ring();
        id
    }

    /// Notes how an answer ended.
    pub(super) fn ended(&self, id: usize, end: End) {
        {
            let mut records = self.records.lock().unwrap();
            records.events += 1;
            let ended = records.events;
            (records.all[id].end, records.all[id].ended) = (Some(end), Some(ended));
        }
        self.ring();
    }

    /// Notes what became of a request.
    pub(super) fn note(&self, id: usize, change: impl FnOnce(&mut Record)) {
        change(&mut self.records.lock().unwrap().all[id]);
        self.ring();
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&[Record]) -> T) -> T {
        let records = self.records.lock().unwrap();
        look(&records.all[records.forgotten..])
    }

    /// Hides what has arrived until now.
    pub(super) fn forget(&self) {
        let mut records = self.records.lock().unwrap();
        records.forgotten = records.all.len();
    }

    /// Waits until the records are as wished; panics with all of them when that does not happen.
    pub(super) async fn wait_for(&self, what: &str, mut as_wished: impl FnMut(&[Record]) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !self.read(&mut as_wished) {
                changed.changed().await.expect("the log holds the sender");
            }
        };
        if try_within(wait).await.is_none() {
            let lines: Vec<String> = self.read(|records| records.iter().map(Record::line).collect());
            panic!("waited in vain for {what}; the registry saw:\n{}", lines.join("\n"));
        }
    }

    fn ring(&self) {
        self.changed.send_modify(|n| *n += 1);
    }
}
