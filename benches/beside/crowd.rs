//! Hundreds of connections that take a held blob slowly, all at once: what a server keeps in memory for them, and whether it
//! sees each to its end.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, sockopt};

use crate::bench::{Bench, Purpose};
use crate::held::{What, asked};
use crate::servers::Server;
use crate::table::Measure;
use crate::{http, pause};

/// How often each connection is looked at.
const TICK: Duration = Duration::from_millis(10);
/// What a client's kernel takes in advance: little, so that the server has to wait for it.
const RECEIVE_BUFFER: usize = 64 << 10;
/// Nothing for so long: it was forgotten.
const SILENCE: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    pub size: u64,
    pub connections: usize,
    /// Bytes a second that each takes.
    pub pace: u64,
}

pub fn run(bench: &mut Bench, work: &'static str, crowd: Crowd) -> io::Result<()> {
    let content = Arc::clone(&bench.content);
    let (ask, expected) = asked(&content, What::Blob(crowd.size));
    let servers = bench.start_warm(work, &ask, expected, Purpose::default());
    for round in 0..bench.rounds {
        for server in &servers {
            let values = once(server, &ask.path, crowd)?;
            bench.note(work, &server.name, round, &values);
        }
    }
    Ok(())
}

fn once(server: &Server, path: &str, crowd: Crowd) -> io::Result<Vec<(Measure, f64)>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (over, begun, before) = (AtomicBool::new(false), Instant::now(), server.cpu()?);
    let (failed, memory) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| server.greatest_memory(&over));
        let share = |index| crowd.connections / threads + usize::from(index < crowd.connections % threads);
        let takers: Vec<_> = (0..threads).map(|index| scope.spawn(move || take(server, path, crowd, share(index)))).collect();
        let failed: usize = takers.into_iter().map(|taker| taker.join().expect("a taker does not panic")).sum();
        over.store(true, Ordering::Relaxed);
        (failed, watcher.join().expect("a watcher does not panic"))
    });
    let wall = begun.elapsed().as_secs_f64();
    let gib = (crowd.size * crowd.connections as u64) as f64 / f64::from(1 << 30);
    Ok(vec![
        (Measure::Memory, memory),
        (Measure::Failed, failed as f64),
        (Measure::CpuPerGib, (server.cpu()? - before) / gib),
        (Measure::LastClient, wall * crowd.pace as f64 / crowd.size as f64),
    ])
}

/// One client, and how far it is.
struct Taker {
    stream: TcpStream,
    head: Vec<u8>,
    /// Nothing while the head is awaited.
    left: Option<u64>,
    taken: u64,
    begun: Instant,
    heard: Instant,
}

/// Sees so many to their end; gives how many failed.
fn take(server: &Server, path: &str, crowd: Crowd, connections: usize) -> usize {
    let mut buffer = vec![0; 1 << 20];
    let began: Vec<io::Result<Taker>> = (0..connections).map(|_| Taker::begin(server.port, path)).collect();
    let mut failed = began.iter().filter(|taker| taker.is_err()).count();
    let mut takers: Vec<Taker> = began.into_iter().flatten().collect();
    while !takers.is_empty() {
        takers.retain_mut(|taker| {
            let progress = taker.progress(crowd, &mut buffer);
            failed += usize::from(progress.is_err());
            matches!(progress, Ok(false))
        });
        pause(TICK);
    }
    failed
}

impl Taker {
    fn begin(port: u16, path: &str) -> io::Result<Self> {
        let stream = http::connect(port)?;
        sockopt::set_socket_recv_buffer_size(&stream, RECEIVE_BUFFER)?;
        io::Write::write_all(&mut &stream, http::request(path, None).as_bytes())?;
        stream.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Self { stream, head: Vec::with_capacity(2 << 10), left: None, taken: 0, begun: now, heard: now })
    }

    /// Takes what it may by now. True once it has all.
    fn progress(&mut self, crowd: Crowd, buffer: &mut [u8]) -> io::Result<bool> {
        let may = (self.begun.elapsed().as_secs_f64() * crowd.pace as f64) as u64;
        let now = match self.left {
            None => return self.read_head(crowd.size),
            Some(0) => return Ok(true),
            Some(left) => left.min(may.saturating_sub(self.taken)).min(buffer.len() as u64),
        };
        if now == 0 {
            return Ok(false);
        }
        match rustix::net::recv(&self.stream, &mut buffer[..now as usize], RecvFlags::TRUNC) {
            Ok((_, 0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, more)) => {
                self.took(more as u64);
                Ok(self.left == Some(0))
            }
            Err(rustix::io::Errno::AGAIN) => self.patience(),
            Err(error) => Err(error.into()),
        }
    }

    fn read_head(&mut self, size: u64) -> io::Result<bool> {
        match rustix::io::read(&self.stream, rustix::buffer::spare_capacity(&mut self.head)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => return self.patience(),
            Err(error) => return Err(error.into()),
        }
        if let Some(end) = http::head_end(&self.head) {
            let text = std::str::from_utf8(&self.head[..end]).unwrap_or_default();
            if http::status_and_length(text) != Some((200, size)) {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.left = Some(size);
            self.took((self.head.len() - end) as u64);
        }
        Ok(self.left == Some(0))
    }

    fn took(&mut self, more: u64) {
        self.taken += more;
        self.left = self.left.map(|left| left - more);
        self.heard = Instant::now();
    }

    fn patience(&self) -> io::Result<bool> {
        if self.heard.elapsed() < SILENCE { Ok(false) } else { Err(io::ErrorKind::TimedOut.into()) }
    }
}
