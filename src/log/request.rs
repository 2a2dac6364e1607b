//! The one line of a request as JSON: spelled exactly as `tracing_subscriber` would, without a detour, for it is made for every hit.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::quote;

/// What the line says. All texts but the error are words, names, digests and numbers, which have nothing in them to be escaped.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The method.
    pub method: &'a str,
    /// The registry, or nothing.
    pub upstream: &'a str,
    /// The repository's name, or nothing.
    pub repo: &'a str,
    /// A tag, a digest or nothing.
    pub reference: &'a str,
    /// HTTP's.
    pub status: u16,
    /// How the answer came about.
    pub outcome: &'a str,
    /// Of its body, as far as they were handed over.
    pub bytes: u64,
    /// Milliseconds from its head to its end.
    pub duration_ms: u64,
    /// Who asked.
    pub client: SocketAddr,
    /// How the answer ended.
    pub end: &'a str,
    /// Why it broke off.
    pub error: Option<&'a str>,
    /// The request's id.
    pub request: &'a str,
}

/// What this module logs as.
pub(super) const TARGET: &str = "millpond::observe";

thread_local! {
    static LINE: RefCell<String> = const { RefCell::new(String::new()) };
    static SECOND: RefCell<Second> = const { RefCell::new(Second { number: 0, text: String::new() }) };
}

/// The second that was spelled last, which is that of the next line as a rule: `2026-11-21T20:50:16.`.
struct Second {
    number: u64,
    text: String,
}

impl Request<'_> {
    /// Spells it, and gives it to `put` while it is there.
    pub(super) fn spelled(&self, put: impl FnOnce(&[u8])) {
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.spell(line, SystemTime::now());
            put(line.as_bytes());
        });
    }

    fn spell(&self, line: &mut String, now: SystemTime) {
        line.push_str("{\"timestamp\":\"");
        moment(line, now.duration_since(UNIX_EPOCH).unwrap_or_default());
        line.push_str("\",\"level\":\"INFO\",\"message\":\"request\"");
        let mut number = itoa::Buffer::new();
        text(line, ",\"method\":\"", self.method);
        text(line, ",\"upstream\":\"", self.upstream);
        text(line, ",\"repo\":\"", self.repo);
        text(line, ",\"reference\":\"", self.reference);
        line.push_str(",\"status\":");
        line.push_str(number.format(self.status));
        text(line, ",\"outcome\":\"", self.outcome);
        line.push_str(",\"bytes\":");
        line.push_str(number.format(self.bytes));
        line.push_str(",\"duration_ms\":");
        line.push_str(number.format(self.duration_ms));
        line.push_str(",\"client\":\"");
        address(line, self.client);
        line.push('"');
        text(line, ",\"end\":\"", self.end);
        if let Some(error) = self.error {
            line.push_str(",\"error\":");
            quote(line, error);
        }
        text(line, ",\"request\":\"", self.request);
        line.push_str(",\"target\":\"");
        line.push_str(TARGET);
        line.push_str("\"}\n");
    }
}

/// A field whose text is plain.
fn text(line: &mut String, name: &str, value: &str) {
    line.push_str(name);
    line.push_str(value);
    line.push('"');
}

/// A moment in RFC 3339, with microseconds.
fn moment(line: &mut String, since_1970: Duration) {
    SECOND.with_borrow_mut(|second| {
        if second.number != since_1970.as_secs() || second.text.is_empty() {
            let whole = UNIX_EPOCH + Duration::from_secs(since_1970.as_secs());
            *second = Second { number: since_1970.as_secs(), text: humantime::format_rfc3339_seconds(whole).to_string().replace('Z', ".") };
        }
        line.push_str(&second.text);
    });
    // A digit before them keeps their zeros.
    line.push_str(&itoa::Buffer::new().format(1_000_000 + since_1970.subsec_micros())[1..]);
    line.push('Z');
}

fn address(line: &mut String, address: SocketAddr) {
    let SocketAddr::V4(v4) = address else {
        line.push_str(&address.to_string());
        return;
    };
    let mut number = itoa::Buffer::new();
    for (part, after) in v4.ip().octets().into_iter().zip([".", ".", ".", ":"]) {
        line.push_str(number.format(part));
        line.push_str(after);
    }
    line.push_str(number.format(v4.port()));
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::fmt::format::{Format, JsonFields};

    use super::*;
    use crate::log::{Log, event};

    /// What everybody else's way makes of the same line.
    fn stock(line: &Request<'_>) -> serde_json::Value {
        let (taken, lines) = std::sync::mpsc::sync_channel(10);
        let (log, thread) = Log::patient(Sent(taken), Duration::from_secs(600)).expect("a thread");
        let json = Format::default().json().flatten_event(true);
        let inner = tracing_subscriber::fmt::layer().fmt_fields(JsonFields::new()).event_format(json).with_writer(log.clone());
        let subscriber = tracing_subscriber::layer::SubscriberExt::with(tracing_subscriber::registry(), inner);
        tracing::subscriber::with_default(subscriber, || event(line));
        log.close();
        thread.join().expect("ends");
        serde_json::from_str(&lines.try_iter().collect::<String>()).expect("is JSON")
    }

    struct Sent(std::sync::mpsc::SyncSender<String>);

    impl std::io::Write for Sent {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.send(String::from_utf8_lossy(bytes).into_owned()).map_err(std::io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn it_is_spelled_as_all_others() {
        let digest = crate::oci::Digest::sha256_of(b"").to_string();
        let usual = Request {
            method: "GET",
            upstream: "docker.io",
            repo: "library/debian",
            reference: &digest,
            status: 200,
            outcome: "hit",
            bytes: 40_000,
            duration_ms: 0,
            client: "127.0.0.1:65535".parse().expect("an address"),
            end: "whole",
            error: None,
            request: "0123456789abcdef",
        };
        let [v6, far] = ["[fe80::1]:5", "255.0.10.199:1"].map(|text| text.parse().expect("an address"));
        let failed = Request { error: Some("\u{1b}[2J \"\\\n é"), end: "failed", bytes: u64::MAX, client: v6, ..usual };
        let of_nothing = Request { upstream: "", repo: "", reference: "", status: 404, duration_ms: 86_400_000, client: far, ..usual };
        for line in [usual, failed, of_nothing] {
            let mut ours = None;
            line.spelled(|bytes| ours = serde_json::from_slice::<serde_json::Value>(bytes).ok());
            let (mut ours, mut theirs) = (ours.expect("is JSON"), stock(&line));
            for time in [ours["timestamp"].take(), theirs["timestamp"].take()] {
                humantime::parse_rfc3339(time.as_str().expect("a time")).expect("is a time");
            }
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn its_time_is_as_it_was_to_the_microsecond() {
        let mut before = None;
        for micros in [0, 1, 999_999, 1_000_000, 1_000_001, 1_795_294_216_050_607, 1_795_294_216_050_608, 7] {
            let moment = UNIX_EPOCH + Duration::from_micros(micros);
            let mut line = String::new();
            super::moment(&mut line, Duration::from_micros(micros));
            assert_eq!(line, humantime::format_rfc3339_micros(moment).to_string());
            assert_ne!(before.replace(line.clone()), Some(line));
        }
    }
}
