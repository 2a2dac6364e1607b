//! What goes wrong with a request: plain values that a test composes and hands to `Registry::on`.
//!
//! Several faults for the same requests take turns: the first that is not used up has the request. Offsets count from the
//! start of the body of the one answer that the fault has, whatever part of a blob that is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::super::gate::Gate;
use super::answer::Answer;
use super::content::Content;
use super::log::{Request, Want};
use super::quirks::{MultiRange, Ranges};
use super::wire::{Cut, Delivery, Framing};

/// One way to go wrong, or several at once. For every matching request, unless limited by [`Fault::times`].
#[derive(Clone, Debug, Default)]
pub struct Fault {
    skip: usize,
    times: Option<usize>,
    pub(super) head_gate: Option<Gate>,
    pub(super) early_hints: bool,
    pub(super) instead: Instead,
    pub(super) ranges: Option<Ranges>,
    pub(super) multi: Option<MultiRange>,
    pub(super) delivery: Delivery,
    edits: Vec<Edit>,
    ends_early: Option<u64>,
    longer_by: u64,
    other_bytes: bool,
    gzipped: bool,
}

/// What comes in place of the registry's own answer.
#[derive(Clone, Debug, Default)]
pub(super) enum Instead {
    #[default]
    Nothing,
    Answer(Answer),
    /// The challenge, as if no token had been sent.
    Challenge,
    /// The same URL again, by a redirect.
    Redirect(u16),
    /// These bytes, and the end of the connection.
    Raw(Bytes),
    /// Nothing but the end of the connection.
    HangUp(Cut),
}

#[derive(Clone, Debug)]
enum Edit {
    Set(String, String),
    Remove(String),
}

/// How the registry answers as it should, but late, slowly, or not to the end.
impl Fault {
    /// Nothing wrong; a start for others.
    pub fn none() -> Self {
        Self::default()
    }

    /// The head of the answer waits at the gate.
    pub fn wait(gate: &Gate) -> Self {
        Self { head_gate: Some(gate.clone()), ..Self::default() }
    }

    /// The body waits at the gate after `bytes`.
    pub fn stall(bytes: u64, gate: &Gate) -> Self {
        Self::none().then_stall(bytes, gate)
    }

    /// The connection ends in good order (FIN) after `bytes` of the body.
    pub fn cut(bytes: u64) -> Self {
        Self::deliver(|d| d.cut = Some((bytes, Cut::Fin)))
    }

    /// The connection is reset (RST) after `bytes` of the body. What the peer has not taken yet may be lost with it.
    pub fn reset(bytes: u64) -> Self {
        Self::deliver(|d| d.cut = Some((bytes, Cut::Rst)))
    }

    /// The connection ends before the head.
    pub fn hang_up() -> Self {
        Self::instead(Instead::HangUp(Cut::Fin))
    }

    /// The connection is reset before the head.
    pub fn hang_up_reset() -> Self {
        Self::instead(Instead::HangUp(Cut::Rst))
    }

    /// The body comes at so many bytes a second.
    pub fn trickle(bytes_per_second: u64) -> Self {
        Self::deliver(|d| d.rate = Some(bytes_per_second))
    }

    /// The body ends after `bytes` as if that were all: a length, or chunks, that agree with what is sent.
    pub fn short(bytes: u64) -> Self {
        Self { ends_early: Some(bytes), ..Self::default() }
    }

    /// The body has `bytes` more than the content.
    pub fn longer_by(bytes: u64) -> Self {
        Self { longer_by: bytes, ..Self::default() }
    }

    /// The body comes in chunks, without a length.
    pub fn chunked() -> Self {
        Self::deliver(|d| d.framing = Framing::Chunked)
    }

    /// The body comes without a length and ends with the connection.
    pub fn until_close() -> Self {
        Self::deliver(|d| d.framing = Framing::UntilClose)
    }

    /// The head announces so many bytes, the body is what it is, and then the connection ends.
    pub fn announces(bytes: u64) -> Self {
        Self::deliver(|d| d.framing = Framing::Announced(bytes))
    }

    /// One bit is wrong at this offset of the body.
    pub fn flip(offset: u64) -> Self {
        Self::deliver(|d| d.flips.push(offset))
    }

    /// As many bytes as should be, but others.
    pub fn other_bytes() -> Self {
        Self { other_bytes: true, ..Self::default() }
    }

    /// The body in `Content-Encoding: gzip`, whether it was asked for or not.
    pub fn gzipped() -> Self {
        Self { gzipped: true, ..Self::default() }
    }

    /// Ranges are answered so.
    pub fn ranges(ranges: Ranges) -> Self {
        Self { ranges: Some(ranges), ..Self::default() }
    }

    /// Several ranges in one request are answered so.
    pub fn multi_range(multi: MultiRange) -> Self {
        Self { multi: Some(multi), ..Self::default() }
    }

    /// An informational answer (103) comes before the true one.
    pub fn early_hints() -> Self {
        Self { early_hints: true, ..Self::default() }
    }

    fn deliver(change: impl FnOnce(&mut Delivery)) -> Self {
        let mut fault = Self::default();
        change(&mut fault.delivery);
        fault
    }

    fn instead(instead: Instead) -> Self {
        Self { instead, ..Self::default() }
    }
}

/// How the registry answers something else.
impl Fault {
    /// This status, with the error body that the specification has for it.
    pub fn status(status: u16) -> Self {
        Self::answer(Answer::error_of(status))
    }

    /// 429 as Docker Hub's pull limit, with Retry-After if given.
    pub fn too_many(retry_after: Option<u64>) -> Self {
        let fault = Self::status(429);
        match retry_after {
            Some(seconds) => fault.header("Retry-After", &seconds.to_string()),
            None => fault,
        }
    }

    /// 429 as Docker Hub's abuse limit: plain text of a proxy, with bare line feeds in the head.
    pub fn hap429() -> Self {
        Self::raw(
            "HTTP/1.1 429 Too Many Requests\nCache-Control: no-cache\nConnection: close\nContent-Type: text/plain\n\
             Retry-After: 60\n\nToo Many Requests (HAP429).\n",
        )
    }

    /// 200 with a page instead of the content, as of a captive portal.
    pub fn html() -> Self {
        Self::answer(Answer::html(200, "<html><body>Please log in.</body></html>"))
    }

    /// 502 with a page.
    pub fn bad_gateway() -> Self {
        Self::answer(Answer::html(502, "<html><head><title>502 Bad Gateway</title></head></html>"))
    }

    /// 200 with this JSON, for instance of a token server.
    pub fn json(body: &str) -> Self {
        Self::answer(Answer::json(200, body.to_owned()))
    }

    /// The challenge again, whatever token was sent.
    pub fn challenge() -> Self {
        Self::instead(Instead::Challenge)
    }

    /// A redirect to this place, absolute or relative.
    pub fn redirect(status: u16, location: &str) -> Self {
        Self::answer(Answer::new(status).header("Location", location))
    }

    /// A redirect to the URL that was asked for.
    pub fn redirect_loop(status: u16) -> Self {
        Self::instead(Instead::Redirect(status))
    }

    /// These bytes instead of an answer, and the end of the connection.
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::instead(Instead::Raw(bytes.into()))
    }

    fn answer(answer: Answer) -> Self {
        Self::instead(Instead::Answer(answer))
    }
}

/// What may be added to any of them.
impl Fault {
    /// For so many requests, then never again.
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    /// For one request.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Not for the first `requests` that match.
    pub fn skip(mut self, requests: usize) -> Self {
        self.skip = requests;
        self
    }

    /// Also: the head waits at the gate.
    pub fn behind(mut self, gate: &Gate) -> Self {
        self.head_gate = Some(gate.clone());
        self
    }

    /// Also: the body waits at the gate after `bytes`. Where a cut is at the same place, the gate comes first.
    pub fn then_stall(mut self, bytes: u64, gate: &Gate) -> Self {
        self.delivery.stalls.push((bytes, gate.clone()));
        self
    }

    /// Also: the connection ends (FIN) after `bytes` of the body.
    pub fn then_cut(mut self, bytes: u64) -> Self {
        self.delivery.cut = Some((bytes, Cut::Fin));
        self
    }

    /// Also: the connection is reset (RST) after `bytes` of the body.
    pub fn then_reset(mut self, bytes: u64) -> Self {
        self.delivery.cut = Some((bytes, Cut::Rst));
        self
    }

    /// Also: in chunks, without a length.
    pub fn in_chunks(mut self) -> Self {
        self.delivery.framing = Framing::Chunked;
        self
    }

    /// Also: at so many bytes a second.
    pub fn at_rate(mut self, bytes_per_second: u64) -> Self {
        self.delivery.rate = Some(bytes_per_second);
        self
    }

    /// Also: with this header in place of any of its name.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.edits.push(Edit::Set(name.into(), value.into()));
        self
    }

    /// Also: without this header.
    pub fn without(mut self, name: &str) -> Self {
        self.edits.push(Edit::Remove(name.into()));
        self
    }

    /// Also: with this body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        match &mut self.instead {
            Instead::Answer(answer) => answer.body = Content::bytes(body),
            other => panic!("{other:?} has no body to set"),
        }
        self
    }

    /// Does to an answer what is to be done before it is on the wire.
    pub(super) fn apply(&self, mut answer: Answer) -> Answer {
        let len = answer.body.len();
        if self.other_bytes {
            answer.body = Content::seeded(u64::MAX, len);
        }
        if self.longer_by > 0 {
            answer.body = Content::joined([answer.body, Content::seeded(u64::MAX, self.longer_by)]);
        }
        if let Some(bytes) = self.ends_early {
            answer.body = answer.body.slice(0, bytes.min(len));
        }
        if self.gzipped {
            answer = answer.gzipped();
        }
        for edit in &self.edits {
            match edit {
                Edit::Set(name, value) => answer.set(name, value),
                Edit::Remove(name) => answer.remove(name),
            }
        }
        answer
    }
}

/// A fault that was handed to the registry, to see whether it has struck.
#[derive(Clone, Debug)]
pub struct Planned(Arc<Plan>);

#[derive(Debug)]
struct Plan {
    want: Want,
    fault: Fault,
    matched: AtomicUsize,
    struck: AtomicUsize,
}

impl Planned {
    /// How many requests it has had.
    pub fn struck(&self) -> usize {
        self.0.struck.load(Ordering::SeqCst)
    }
}

/// The faults in the order in which they were handed over.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Planned>>);

impl Faults {
    pub(super) fn add(&self, want: Want, fault: Fault) -> Planned {
        let planned = Planned(Arc::new(Plan { want, fault, matched: AtomicUsize::new(0), struck: AtomicUsize::new(0) }));
        self.0.lock().unwrap().push(planned.clone());
        planned
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// The fault that has this request, if any.
    pub(super) fn take(&self, request: &Request) -> Option<Fault> {
        // Under the lock, so that requests that arrive at once take turns.
        let plans = self.0.lock().unwrap();
        for Planned(plan) in plans.iter().filter(|planned| planned.0.want.matches(request)) {
            let used_up = plan.fault.times.is_some_and(|times| plan.struck.load(Ordering::SeqCst) >= times);
            if used_up {
                continue;
            }
            if plan.matched.fetch_add(1, Ordering::SeqCst) >= plan.fault.skip {
                plan.struck.fetch_add(1, Ordering::SeqCst);
                return Some(plan.fault.clone());
            }
        }
        None
    }
}
