//! The works on what is not held: each round every subject starts with an empty folder, so that every pull is a miss.

use std::io;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::bench::{Bench, Purpose, verify};
use crate::content::{Blob, Content};
use crate::http;
use crate::servers::{Kind, Server, Subject};
use crate::table::Measure;

/// How the upstream and the clients of a miss behave.
#[derive(Clone, Copy, Debug)]
pub struct Miss {
    pub size: u64,
    /// Bytes a second that the upstream gives each connection; 0 is all that it can.
    pub pace: u64,
    pub clients: usize,
    pub tells: Tells,
}

/// What is of interest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tells {
    /// How long it takes, when the first byte comes, what it costs.
    Speed,
    /// When the slowest of many clients is done.
    LastClient,
    /// What is made of a slow upstream. It takes those who use one connection as long as it must: once is enough for them.
    Rate,
}

/// What came of one run.
struct Run {
    wall: Duration,
    /// After the upstream's first byte.
    first: Duration,
    cpu: f64,
    memory: f64,
    failed: usize,
    upstream_bytes: u64,
    upstream_requests: u64,
}

pub fn run(bench: &mut Bench, work: &'static str, miss: Miss) {
    let mut failed: Vec<String> = Vec::new();
    for round in 0..bench.rounds {
        for subject in bench.subjects.clone() {
            let is_of_use = match miss.tells {
                Tells::Speed => true,
                Tells::LastClient => !matches!(subject.kind, Kind::Limit),
                Tells::Rate => matches!(subject.kind, Kind::Millpond(_)) || round == 0 && !matches!(subject.kind, Kind::Limit),
            };
            if !is_of_use || failed.contains(&subject.name) {
                continue;
            }
            match once(bench, &subject, miss, round == 0) {
                Ok(run) => bench.note(work, &subject.name, round, &values(miss, &run)),
                Err(error) => {
                    bench.leave_out(work, &subject.name, &error);
                    failed.push(subject.name);
                }
            }
        }
    }
}

fn values(miss: Miss, run: &Run) -> Vec<(Measure, f64)> {
    let wall = run.wall.as_secs_f64();
    let alone = miss.size as f64 / miss.pace.max(1) as f64;
    let upstream =
        [(Measure::UpstreamBytes, run.upstream_bytes as f64 / miss.size as f64), (Measure::UpstreamRequests, run.upstream_requests as f64)];
    let rest = [(Measure::CpuSeconds, run.cpu), (Measure::Memory, run.memory), (Measure::Failed, run.failed as f64)];
    let first = match miss.tells {
        Tells::Speed => vec![(Measure::Wall, wall), (Measure::FirstByte, run.first.as_secs_f64() * 1e3)],
        Tells::LastClient => vec![(Measure::LastClient, wall / alone), (Measure::FirstByte, run.first.as_secs_f64() * 1e3)],
        Tells::Rate => vec![(Measure::Rate, alone / wall), (Measure::Wall, wall)],
    };
    [&first[..], &upstream, &rest].concat()
}

/// One subject with an empty folder, and its clients.
fn once(bench: &Bench, subject: &Subject, miss: Miss, is_first: bool) -> io::Result<Run> {
    let server = bench.start(subject, Purpose { is_cold: true, is_tls: false, with_limit: true })?;
    bench.upstream.reset(0, bench.latency);
    if !matches!(subject.kind, Kind::Limit) {
        // What is done once in the life of a server is not the miss: tokens, connections, challenges.
        http::get(&mut http::connect(server.port)?, &Content::tag_path(), None, |_| ())?;
    }
    server.settle()?;
    rustix::fs::sync();
    bench.upstream.reset(miss.pace, bench.latency);
    let blob = bench.content.blob(miss.size).clone();
    let before = server.cpu()?;
    let (over, gate) = (AtomicBool::new(false), Barrier::new(miss.clients + 1));
    let (pulls, memory, begun) = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| server.greatest_memory(&over));
        let clients: Vec<_> = (0..miss.clients).map(|_| scope.spawn(|| pull(&server, &blob, &gate))).collect();
        gate.wait();
        let begun = Instant::now();
        let pulls: Vec<io::Result<Pulled>> = clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect();
        over.store(true, Ordering::Relaxed);
        (pulls, watcher.join().expect("a watcher does not panic"), begun)
    });
    server.settle()?;
    let cpu = server.cpu()? - before;
    let failed = pulls.iter().filter(|pull| pull.is_err()).count();
    let pulled: Vec<Pulled> =
        pulls.into_iter().collect::<io::Result<Vec<_>>>().or_else(|error| if failed < miss.clients { Ok(vec![]) } else { Err(error) })?;
    let done = pulled.iter().map(|pull| pull.done).max().unwrap_or_else(Instant::now);
    let first = pulled.iter().map(|pull| pull.first).min().zip(bench.upstream.first_byte());
    let run = Run {
        wall: done - begun,
        first: first.map_or(Duration::MAX, |(ours, upstream)| ours.saturating_duration_since(upstream)),
        cpu,
        memory,
        failed,
        upstream_bytes: bench.upstream.body_bytes(),
        upstream_requests: bench.upstream.requests(),
    };
    if is_first {
        bench.upstream.reset(0, bench.latency);
        verify(&server, &blob.path(), &blob.hex)?;
    }
    Ok(run)
}

struct Pulled {
    first: Instant,
    done: Instant,
}

/// One client: connected before the gate opens, done with its last byte.
fn pull(server: &Server, blob: &Blob, gate: &Barrier) -> io::Result<Pulled> {
    let stream = http::connect(server.port);
    gate.wait();
    let first = http::discard(&mut stream?, &blob.path(), blob.size)?;
    Ok(Pulled { first, done: Instant::now() })
}
