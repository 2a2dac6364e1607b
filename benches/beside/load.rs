//! The load: so many connections, each always with one request under way, driven by a thread a processor.
//!
//! Bodies are discarded in the kernel (`recv` with `MSG_TRUNC` copies nothing), heads are looked at for status and length and no
//! more, so that what is measured is the server. Numbers are taken over a window in the middle: requests that are under way at its
//! end are seen to their end, so that each answer is found whole or counted as failed.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::RecvFlags;

use crate::content::Random;
use crate::servers::Server;
use crate::tls::{self, Discarding};
use crate::{http, pause, proc};

/// How long the load runs before it counts.
const WARM_UP: Duration = Duration::from_millis(200);
/// What one `recv` may discard.
const DISCARD: usize = 4 << 20;
/// As much of an answer as is looked at; all heads fit.
const HEAD: usize = 2 << 10;
/// Nothing for so long: the server is broken.
const SILENCE: rustix::event::Timespec = rustix::event::Timespec { tv_sec: 15, tv_nsec: 0 };

/// What each connection asks for, again and again.
#[derive(Clone, Debug)]
pub struct Ask {
    pub path: String,
    pub size: u64,
    /// Ranges of this length at random offsets, instead of the whole.
    pub part: Option<u64>,
}

#[derive(Clone, Copy)]
pub struct Load<'a> {
    pub server: &'a Server,
    pub connections: usize,
    pub window: Duration,
}

/// What came of it.
#[derive(Default, Debug)]
pub struct Seen {
    pub seconds: f64,
    pub requests: u64,
    /// Those before and after the window too.
    pub requests_in_all: u64,
    pub bytes: u64,
    pub failed: u64,
    pub server_cpu: f64,
    /// Of the server, at the most.
    pub memory: f64,
    /// Of the busiest load thread.
    pub busy: f64,
    /// Of each request, in ms, sorted.
    pub latencies: Vec<f64>,
}

/// What one thread counts, so that another may look at any moment.
#[derive(Default)]
struct Tally {
    requests: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
    cpu_us: AtomicU64,
}

#[derive(Default, Clone, Copy)]
struct Snapshot {
    at: Option<Instant>,
    requests: u64,
    bytes: u64,
    server_cpu: f64,
}

pub fn run(load: Load, ask: &Ask) -> io::Result<Seen> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(load.connections);
    let tallies: Vec<Tally> = (0..threads).map(|_| Tally::default()).collect();
    let (counting, over, pids) = (AtomicBool::new(false), AtomicBool::new(false), load.server.pids());
    std::thread::scope(|scope| {
        let workers: Vec<_> = tallies
            .iter()
            .enumerate()
            .map(|(index, tally)| {
                let share = load.connections / threads + usize::from(index < load.connections % threads);
                let (counting, over) = (&counting, &over);
                let seed = index as u64 + 1;
                scope.spawn(move || Worker::new(load.server, share, ask, seed, tally, counting, over)?.run())
            })
            .collect();
        pause(WARM_UP);
        let busy_before: Vec<u64> = tallies.iter().map(|t| t.cpu_us.load(Ordering::Relaxed)).collect();
        counting.store(true, Ordering::Relaxed);
        let before = snapshot(&tallies, &pids);
        let memory = watch(load);
        let after = snapshot(&tallies, &pids);
        counting.store(false, Ordering::Relaxed);
        let busy = tallies.iter().zip(busy_before).map(|(t, before)| t.cpu_us.load(Ordering::Relaxed) - before).max().unwrap_or(0);
        over.store(true, Ordering::Relaxed);
        let mut seen = Seen::default();
        for worker in workers {
            seen.latencies.extend(worker.join().map_err(|_| io::Error::other("a load thread panicked"))??);
        }
        let (before, after) = (before?, after?);
        seen.latencies.sort_by(f64::total_cmp);
        seen.seconds = after.at.zip(before.at).map_or(0.0, |(after, before)| (after - before).as_secs_f64());
        seen.requests = after.requests - before.requests;
        seen.bytes = after.bytes - before.bytes;
        seen.server_cpu = after.server_cpu - before.server_cpu;
        seen.requests_in_all = tallies.iter().map(|tally| tally.requests.load(Ordering::Relaxed)).sum();
        seen.failed = tallies.iter().map(|tally| tally.failed.load(Ordering::Relaxed)).sum();
        seen.memory = memory?;
        seen.busy = busy as f64 / 1e6 / seen.seconds;
        Ok(seen)
    })
}

/// Waits until the window is over; gives the most memory that the server had.
fn watch(load: Load) -> io::Result<f64> {
    let (began, mut most) = (Instant::now(), load.server.memory()?);
    while let Some(left) = load.window.checked_sub(began.elapsed()) {
        pause(left.min(Duration::from_millis(100)));
        most = most.max(load.server.memory()?);
    }
    Ok(most)
}

fn snapshot(tallies: &[Tally], pids: &[u32]) -> io::Result<Snapshot> {
    let sum = |count: fn(&Tally) -> &AtomicU64| tallies.iter().map(|tally| count(tally).load(Ordering::Relaxed)).sum();
    let server_cpu = proc::cpu(pids)?;
    Ok(Snapshot { at: Some(Instant::now()), requests: sum(|t| &t.requests), bytes: sum(|t| &t.bytes), server_cpu })
}

/// One connection, and how far its answer is.
struct Connection {
    stream: TcpStream,
    head: Vec<u8>,
    /// Of the body; nothing while the head is awaited.
    left: Option<u64>,
    asked: Instant,
    secret: Option<Discarding>,
}

struct Worker<'a> {
    server: &'a Server,
    ask: &'a Ask,
    random: Random,
    tally: &'a Tally,
    counting: &'a AtomicBool,
    over: &'a AtomicBool,
    epoll: OwnedFd,
    connections: Vec<Connection>,
    open: usize,
    discard: Vec<u8>,
    request: String,
    latencies: Vec<f64>,
}

impl<'a> Worker<'a> {
    fn new(
        server: &'a Server,
        connections: usize,
        ask: &'a Ask,
        seed: u64,
        tally: &'a Tally,
        counting: &'a AtomicBool,
        over: &'a AtomicBool,
    ) -> io::Result<Self> {
        let mut worker = Self {
            server,
            ask,
            random: Random(seed),
            tally,
            counting,
            over,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: Vec::new(),
            open: 0,
            discard: vec![0; DISCARD],
            request: http::request(&ask.path, None),
            latencies: Vec::new(),
        };
        for index in 0..connections {
            let connection = worker.connect(index)?;
            worker.connections.push(connection);
        }
        worker.open = connections;
        Ok(worker)
    }

    fn connect(&self, index: usize) -> io::Result<Connection> {
        let (secret, stream) = match &self.server.tls {
            Some(tls) => {
                let (secret, stream) = Discarding::prepare(tls::connect(tls, self.server.port)?, &self.ask.path, self.ask.size)?;
                (Some(secret), stream)
            }
            None => (None, http::connect(self.server.port)?),
        };
        stream.set_nonblocking(true)?;
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(index as u64), epoll::EventFlags::IN)?;
        Ok(Connection { stream, head: Vec::with_capacity(HEAD), left: None, asked: Instant::now(), secret })
    }

    fn run(mut self) -> io::Result<Vec<f64>> {
        for index in 0..self.connections.len() {
            self.begin(index)?;
        }
        let mut events = Vec::with_capacity(self.connections.len());
        while self.open > 0 {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&SILENCE)) {
                Ok(0) => {
                    self.tally.failed.fetch_add(self.open as u64, Ordering::Relaxed);
                    break;
                }
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            for event in &events {
                let index = event.data.u64() as usize;
                if let Err(error) = self.progress(index) {
                    self.fail(index, &error)?;
                }
            }
            self.tally.cpu_us.store((proc::own_cpu() * 1e6) as u64, Ordering::Relaxed);
        }
        Ok(self.latencies)
    }

    /// The next request of a connection, or its end.
    fn begin(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        if self.over.load(Ordering::Relaxed) {
            self.open -= 1;
            epoll::delete(&self.epoll, &connection.stream)?;
            connection.stream.shutdown(std::net::Shutdown::Both)?;
            return Ok(());
        }
        if let Some(part) = self.ask.part {
            let from = self.random.next() % (self.ask.size - part);
            self.request = http::request(&self.ask.path, Some((from, from + part)));
        }
        connection.head.clear();
        connection.left = None;
        connection.asked = Instant::now();
        if let Some(secret) = &mut connection.secret {
            return secret.ask(&mut connection.stream, self.request.as_bytes());
        }
        let sent = rustix::io::write(&connection.stream, self.request.as_bytes())?;
        if sent == self.request.len() { Ok(()) } else { Err(io::Error::other("the server takes no request")) }
    }

    /// What came on a connection.
    fn progress(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        if let Some(secret) = &mut connection.secret {
            let (more, is_whole) = secret.discard(&connection.stream, &mut self.discard)?;
            self.tally.bytes.fetch_add(more, Ordering::Relaxed);
            return if is_whole { self.finish(index) } else { Ok(()) };
        }
        if connection.left.is_none() && !read_head(connection, self.ask, self.tally)? {
            return Ok(());
        }
        while let Some(left @ 1..) = connection.left {
            let most = left.min(DISCARD as u64) as usize;
            match rustix::net::recv(&connection.stream, &mut self.discard[..most], RecvFlags::TRUNC) {
                Ok((_, 0)) => return Err(io::Error::other("a body ended before its end")),
                Ok((_, more)) => {
                    connection.left = Some(left - more as u64);
                    self.tally.bytes.fetch_add(more as u64, Ordering::Relaxed);
                    // The rest is on its way: one call an event.
                    if left - more as u64 > 0 {
                        return Ok(());
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.finish(index)
    }

    fn finish(&mut self, index: usize) -> io::Result<()> {
        self.tally.requests.fetch_add(1, Ordering::Relaxed);
        if self.counting.load(Ordering::Relaxed) {
            self.latencies.push(self.connections[index].asked.elapsed().as_secs_f64() * 1e3);
        }
        self.begin(index)
    }

    /// Counts a failure, and begins anew on another connection.
    fn fail(&mut self, index: usize, error: &io::Error) -> io::Result<()> {
        if self.tally.failed.fetch_add(1, Ordering::Relaxed) == 0 {
            crate::say(&format!("  the first failure: {error}"));
        }
        self.connections[index] = self.connect(index)?;
        self.begin(index)
    }
}

/// Reads the head, and of the body what comes with it. True once it is whole.
fn read_head(connection: &mut Connection, ask: &Ask, tally: &Tally) -> io::Result<bool> {
    let wrong = |what: &str, head: &[u8]| io::Error::other(format!("{what}: {}", String::from_utf8_lossy(head)));
    match rustix::io::read(&connection.stream, rustix::buffer::spare_capacity(&mut connection.head)) {
        Ok(0) => return Err(wrong("the server left", &connection.head)),
        Ok(_) => {}
        Err(rustix::io::Errno::AGAIN) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    let Some(end) = http::head_end(&connection.head) else {
        return if connection.head.len() < HEAD { Ok(false) } else { Err(wrong("a head without end", &connection.head)) };
    };
    let text = std::str::from_utf8(&connection.head[..end]).unwrap_or_default();
    let expected = match ask.part {
        Some(part) => (206, part),
        None => (200, ask.size),
    };
    if http::status_and_length(text) != Some(expected) {
        return Err(wrong("not what was asked for", &connection.head[..end]));
    }
    let came = (connection.head.len() - end) as u64;
    tally.bytes.fetch_add(came, Ordering::Relaxed);
    connection.left = Some(expected.1 - came);
    Ok(true)
}
