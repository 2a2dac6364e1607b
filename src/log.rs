//! Where the log goes: into a buffer, and from there to whoever reads it, by a thread of its own.
//!
//! Promises: lines come out whole and in their order. A request never waits for whoever reads the log: its line is in the buffer when its
//! answer has ended, and with others on its way within [`FLUSH_EVERY`]. Everything else that is worth a look is out when the call
//! returns, unless the reader stands still, which is waited for once ([`PATIENCE`]). Who stands still for long loses lines, and is told
//! how many when it reads again; the buffer is bounded ([`BUFFER_MAX`]). [`Log::close`] loses nothing that can be written in time.
//!
//! The line of a request ([`request()`]) has a way of its own where the log is JSON.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

pub use tracing_subscriber::filter::EnvFilter;

mod request;

pub use self::request::Request;

/// The log of this process, where it is JSON.
static JSON: OnceLock<Log> = OnceLock::new();

/// What the line of a request is called, for it to be known among all others.
const REQUEST: &str = "request";

/// What the line that tells of lost lines is called.
const LOST: &str = "lost lines";

/// How long the line of a request may wait for others to be written with it.
const FLUSH_EVERY: Duration = Duration::from_millis(100);

/// Bytes that are worth a write of their own: some 200 lines.
const BATCH: usize = 64 << 10;

/// Bytes that wait for a reader that stands still, some ten thousand lines.
const BUFFER_MAX: usize = 4 << 20;

/// How long a reader of the log is waited for, before it counts as standing still, and at the stop.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way to whoever reads the log. Cheap to clone.
#[derive(Clone)]
pub struct Log(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There is something to be written.
    filled: Condvar,
    /// Something was.
    written: Condvar,
    patience: Duration,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// Somebody waits for what is in there.
    urgent: bool,
    phase: Phase,
    /// Lines put in since the start, and those of them that are out.
    put: u64,
    out: u64,
    lost: u64,
    /// The reader did not read in time, and has not since.
    stalled: bool,
}

#[derive(Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Open,
    /// What is left is written, then it ends.
    Closing,
    /// Nothing is written any more.
    Ended,
}

impl Log {
    /// Begins to write to `out`, until it is closed.
    pub fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        Self::patient(out, PATIENCE).map(|(log, _)| log)
    }

    fn patient(out: impl Write + Send + 'static, patience: Duration) -> io::Result<(Self, JoinHandle<()>)> {
        let shared = Shared { state: Mutex::default(), filled: Condvar::new(), written: Condvar::new(), patience };
        let log = Self(Arc::new(shared));
        let writer = log.clone();
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.write(out))?;
        Ok((log, thread))
    }

    /// Makes this the log of the process: `json` or else text, in colours if `ansi`, as far as the filter lets through.
    pub fn install(&self, json: bool, ansi: bool, filter: EnvFilter) {
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(self.clone()).with_ansi(ansi);
        if json {
            log.json().flatten_event(true).init();
            let _ = JSON.set(self.clone());
        } else {
            log.init();
        }
    }

    /// Writes what is left, as far as there is time: a reader that stands still does not keep the process.
    pub fn close(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        self.0.filled.notify_one();
        let patience = self.0.patience;
        drop(
            self.0.written.wait_timeout_while(state, patience, |state| state.phase != Phase::Ended).unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Puts a line in; with `wait` it is out at the return, unless nobody reads.
    fn put(&self, line: &[u8], wait: bool) {
        let mut state = self.lock();
        let before = state.lines.len();
        if before + line.len() > BUFFER_MAX {
            state.lost += 1;
            return;
        }
        state.lines.extend_from_slice(line);
        state.put += 1;
        state.urgent |= wait;
        // Once for the first line, once for a full batch: between them the writer needs no telling.
        if wait || before == 0 || (before < BATCH && state.lines.len() >= BATCH) {
            self.0.filled.notify_one();
        }
        let ticket = state.put;
        if wait && !state.stalled {
            let not_out = |state: &mut State| state.out < ticket && !state.stalled && state.phase != Phase::Ended;
            let waited = self.0.written.wait_timeout_while(state, self.0.patience, not_out);
            let (mut state, time) = waited.unwrap_or_else(PoisonError::into_inner);
            // Nobody else waits then: a worker of the runtime stands here.
            state.stalled |= time.timed_out();
        }
    }

    /// The thread's own work.
    fn write(self, mut out: impl Write) {
        let mut batch = Vec::new();
        loop {
            let mut state = self.lock();
            while state.lines.is_empty() && state.phase == Phase::Open {
                state = self.0.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let may_wait = |state: &mut State| !state.urgent && state.phase == Phase::Open && state.lines.len() < BATCH;
            let waited = self.0.filled.wait_timeout_while(state, FLUSH_EVERY, may_wait);
            let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if state.lines.is_empty() {
                state.phase = Phase::Ended;
                self.0.written.notify_all();
                return;
            }
            std::mem::swap(&mut state.lines, &mut batch);
            state.urgent = false;
            let (through, lost) = (state.put, std::mem::take(&mut state.lost));
            drop(state);
            // Who closed the log does not want to read it: there is nobody to tell.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
            batch.shrink_to(BATCH * 2);
            let mut state = self.lock();
            (state.out, state.stalled) = (through, false);
            self.0.written.notify_all();
            drop(state);
            if lost > 0 {
                tracing::warn!(name: LOST, lost, "lines of the log were lost: nobody read them");
            }
        }
    }

    // Never held over a write.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line on its way.
pub struct OneLine<'a> {
    log: &'a Log,
    wait: bool,
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = OneLine<'a>;

    fn make_writer(&'a self) -> OneLine<'a> {
        OneLine { log: self, wait: true }
    }

    fn make_writer_for(&'a self, what: &Metadata<'_>) -> OneLine<'a> {
        OneLine { log: self, wait: *what.level() <= Level::INFO && ![REQUEST, LOST].contains(&what.name()) }
    }
}

impl Write for OneLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.log.put(line, self.wait);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts the line of a request into the log, if its filter lets it through.
pub fn request(line: &Request<'_>) {
    if !tracing::enabled!(target: request::TARGET, Level::INFO) {
        return;
    }
    match JSON.get() {
        Some(log) => line.spelled(|bytes| log.put(bytes, false)),
        None => event(line),
    }
}

/// The same by the way of all others.
fn event(line: &Request<'_>) {
    let Request { method, upstream, repo, reference, status, outcome, bytes, duration_ms, client, end, error, request } = *line;
    tracing::info!(
        name: REQUEST,
        target: request::TARGET,
        method, upstream, repo, reference, status, outcome, bytes, duration_ms, %client, end, error, request,
        "request"
    );
}

/// A text between quotes, with nothing in it that ends a line or moves a cursor.
fn quote(line: &mut String, text: &str) {
    line.push('"');
    let is_plain = |byte: u8| matches!(byte, b' ' | b'!' | b'#'..=b'[' | b']'..=b'~');
    // All of them are looked at, many at a time: it is rare that one is not plain.
    if text.bytes().fold(true, |all, byte| all & is_plain(byte)) {
        line.push_str(text);
    } else {
        for char in text.chars() {
            match char {
                '"' | '\\' => line.extend(['\\', char]),
                // None of them is beyond four digits.
                control if control.is_control() => {
                    let _ = write!(line, "\\u{:04x}", u32::from(control));
                }
                other => line.push(other),
            }
        }
    }
    line.push('"');
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A reader that takes one write when it is told to.
    struct Slow {
        may: Receiver<()>,
        taken: SyncSender<String>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.may.recv().map_err(io::Error::other)?;
            self.taken.send(String::from_utf8_lossy(bytes).into_owned()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow(patience: Duration) -> (Log, JoinHandle<()>, SyncSender<()>, Receiver<String>) {
        let ((go, may), (taken, lines)) = (sync_channel(1_000), sync_channel(1_000));
        let (log, thread) = Log::patient(Slow { may, taken }, patience).unwrap();
        (log, thread, go, lines)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn lines_come_whole_in_order_and_all_of_them() {
        let (log, thread, go, lines) = slow(LONG);
        (0..1_000).for_each(|_| go.send(()).unwrap());
        let all = (0..10_000).fold(String::new(), |all, n| all + &n.to_string() + "\n");
        for (n, line) in all.split_inclusive('\n').enumerate() {
            log.put(line.as_bytes(), n % 1_000 == 0);
        }
        log.close();
        thread.join().unwrap();
        assert_eq!(lines.try_iter().collect::<String>(), all);
    }

    #[test]
    fn what_is_waited_for_is_out() {
        let (log, _thread, go, lines) = slow(LONG);
        go.send(()).unwrap();
        log.put(b"a request\n", false);
        log.put(b"a warning\n", true);
        assert!(lines.try_iter().collect::<String>().ends_with("a warning\n"));
    }

    #[test]
    fn a_reader_that_stands_still_is_waited_for_once_and_loses_what_is_too_much() {
        let (log, thread, go, lines) = slow(Duration::from_millis(1));
        log.put(b"first\n", true);
        assert!(log.lock().stalled);
        // From here on nobody waits, however long that would be.
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        (0..10_000).for_each(|_| log.put(&line, true));
        let state = log.lock();
        assert!(state.lines.len() <= BUFFER_MAX && state.lines.len() + line.len() > BUFFER_MAX);
        assert!(state.lost > 0 && state.put + state.lost == 10_001);
        let kept = state.put;
        drop(state);
        log.close();
        assert!(!thread.is_finished(), "it is not waited for at the end either");
        (0..3).for_each(|_| go.send(()).unwrap());
        thread.join().unwrap();
        let text: String = lines.try_iter().collect();
        assert!(text.starts_with("first\nx") && text.lines().count() as u64 == kept, "{} of {kept}", text.lines().count());
    }
}
