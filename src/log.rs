//! Where the log goes: into a buffer, and from there to whoever reads it, by a thread of its own.
//!
//! Promises: lines come out whole and in their order. A request never waits for whoever reads the log: its line is in the buffer when its
//! answer has ended, and with others on its way within [`FLUSH_EVERY`]. Everything else that is worth a look is out when the call
//! returns, unless the reader stands still, which is waited for once ([`PATIENCE`]). Who stands still for long, or takes nothing because its
//! disk is full, loses lines, and is told how many when it takes some again; the buffer is bounded ([`BUFFER_MAX`]). [`Log::close`] loses
//! nothing that can be written in time.
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
        let log = Self::unwritten(patience);
        let writer = log.clone();
        let thread = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.write(out))?;
        Ok((log, thread))
    }

    fn unwritten(patience: Duration) -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), filled: Condvar::new(), written: Condvar::new(), patience }))
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

    /// Puts a line in if there is room; with `wait` it is out at the return, unless nobody reads.
    fn put(&self, line: &[u8], wait: bool, room: usize) {
        let mut state = self.lock();
        let before = state.lines.len();
        if before + line.len() > room {
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
        let (mut batch, mut is_torn) = (Vec::new(), false);
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
            // What is cut off is at least a line of its own.
            is_torn = is_torn && take(&mut out, b"\n") == 0;
            let rest = batch.split_off(if is_torn { 0 } else { take(&mut out, &batch) });
            is_torn = is_torn || (!rest.is_empty() && batch.last().is_some_and(|&last| last != b'\n'));
            batch.clear();
            batch.shrink_to(BATCH * 2);
            let mut state = self.lock();
            (state.out, state.stalled) = (through, false);
            if !rest.is_empty() {
                // Who takes nothing cannot be told that either: it is with the next that is taken.
                state.lost += lost + rest.split_inclusive(|&byte| byte == b'\n').count() as u64;
            }
            self.0.written.notify_all();
            drop(state);
            if lost > 0 && rest.is_empty() {
                tracing::warn!(name: LOST, lost, "lines of the log were lost: nobody read them, or there was no room for them");
            }
        }
    }

    // Never held over a write.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives a reader as much as it takes; how much that was.
fn take(out: &mut impl Write, bytes: &[u8]) -> usize {
    let mut taken = 0;
    while taken < bytes.len() {
        match out.write(&bytes[taken..]) {
            Ok(0) => break,
            Ok(more) => taken += more,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                // A pipe that somebody else who has it made so.
                io::ErrorKind::WouldBlock => std::thread::park_timeout(FLUSH_EVERY),
                _ => break,
            },
        }
    }
    let _ = out.flush();
    taken
}

/// One line on its way.
pub struct OneLine<'a> {
    log: &'a Log,
    wait: bool,
    room: usize,
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = OneLine<'a>;

    fn make_writer(&'a self) -> OneLine<'a> {
        OneLine { log: self, wait: true, room: BUFFER_MAX }
    }

    fn make_writer_for(&'a self, what: &Metadata<'_>) -> OneLine<'a> {
        let (is_request, tells_of_lost) = (what.name() == REQUEST, what.name() == LOST);
        // What was lost is told once for each batch: that is always let in.
        let room = if tells_of_lost { usize::MAX } else { BUFFER_MAX };
        OneLine { log: self, wait: *what.level() <= Level::INFO && !is_request && !tells_of_lost, room }
    }
}

impl Write for OneLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.log.put(line, self.wait, self.room);
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
        Some(log) => line.spelled(|bytes| log.put(bytes, false, BUFFER_MAX)),
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

    fn put(log: &Log, line: &[u8], wait: bool) {
        log.put(line, wait, BUFFER_MAX);
    }

    /// Until it is so.
    fn until(log: &Log, holds: impl Fn(&State) -> bool) {
        while !holds(&log.lock()) {
            std::thread::yield_now();
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn lines_come_whole_in_order_and_all_of_them() {
        let (log, thread, go, lines) = slow(LONG);
        (0..1_000).for_each(|_| go.send(()).unwrap());
        let all = (0..10_000).fold(String::new(), |all, n| all + &n.to_string() + "\n");
        for (n, line) in all.split_inclusive('\n').enumerate() {
            put(&log, line.as_bytes(), n % 1_000 == 0);
        }
        log.close();
        thread.join().unwrap();
        assert_eq!(lines.try_iter().collect::<String>(), all);
    }

    #[test]
    fn what_is_waited_for_is_out() {
        let (log, _thread, go, lines) = slow(LONG);
        go.send(()).unwrap();
        put(&log, b"a request\n", false);
        put(&log, b"a warning\n", true);
        assert!(lines.try_iter().collect::<String>().ends_with("a warning\n"));
    }

    #[test]
    fn a_reader_that_stands_still_is_waited_for_once_and_loses_what_is_too_much() {
        let (log, thread, go, lines) = slow(Duration::from_millis(1));
        put(&log, b"first\n", true);
        assert!(log.lock().stalled);
        // From here on nobody waits, however long that would be.
        let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
        (0..10_000).for_each(|_| put(&log, &line, true));
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

    /// The log of a thread of its own, written to `out`; what is lost is told.
    fn telling(out: impl Write + Send + 'static) -> (Log, JoinHandle<()>) {
        let log = Log::unwritten(Duration::from_millis(1));
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        let writer = log.clone();
        let thread = std::thread::spawn(move || tracing::subscriber::with_default(subscriber, || writer.write(out)));
        (log, thread)
    }

    #[test]
    fn who_reads_again_is_told_how_much_was_lost() {
        let ((go, may), (taken, lines)) = (sync_channel(10), sync_channel(10));
        let (log, thread) = telling(Slow { may, taken });
        put(&log, b"first\n", true);
        until(&log, |state| state.lines.is_empty());
        let half = [vec![b'x'; BUFFER_MAX / 2 - 1], b"\n".to_vec()].concat();
        (0..5).for_each(|_| put(&log, &half, false));
        go.send(()).unwrap();
        until(&log, |state| state.lines.is_empty());
        // Also where there is no room for anything else.
        (0..2).for_each(|_| put(&log, &half, false));
        (0..10).for_each(|_| go.send(()).unwrap());
        log.close();
        thread.join().unwrap();
        assert!(lines.try_iter().any(|line| line.contains("lost=3\n")));
    }

    #[test]
    fn the_line_of_a_request_is_not_waited_for_and_a_warning_is() {
        let (log, _thread, go, lines) = slow(LONG);
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(name: REQUEST, "a request");
            (0..2).for_each(|_| go.send(()).unwrap());
            tracing::warn!("a warning");
        });
        let text = lines.try_iter().collect::<String>();
        assert!(text.contains("a request") && text.contains("a warning"), "{text}");
    }

    /// A disk with so much room.
    #[derive(Clone)]
    struct Disk(Arc<Mutex<(String, usize)>>);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let taken = bytes.len().min(disk.1);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.1 -= taken;
            disk.0.push_str(std::str::from_utf8(&bytes[..taken]).unwrap());
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_what_comes_then_is_whole() {
        let disk = Disk(Arc::new(Mutex::new((String::new(), 9))));
        let (log, thread) = telling(disk.clone());
        for line in ["first\n", "second\n", "third\n"] {
            put(&log, line.as_bytes(), false);
            until(&log, |state| state.out == state.put);
        }
        disk.0.lock().unwrap().1 = usize::MAX;
        put(&log, b"fourth\n", true);
        until(&log, |state| state.put == 5);
        log.close();
        thread.join().unwrap();
        let text = disk.0.lock().unwrap().0.clone();
        assert!(text.starts_with("first\nsec\nfourth\n") && text.contains("lost=2\n"), "{text}");
    }
}
