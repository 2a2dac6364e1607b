//! The works on what is held: every subject has it before the first round, and all of them stay up until the last.

use std::io;
use std::sync::Arc;

use crate::bench::{Bench, Purpose};
use crate::content::Content;
use crate::load::{self, Ask, Load, Seen};
use crate::table::{Measure, quantile};

const MIB: u64 = 1 << 20;
const GIB: f64 = (1 << 30) as f64;

/// Of a processor: from here on a load thread is the bottleneck.
const LOAD_MAX: f64 = 0.95;

/// What so many connections ask for at once.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub what: What,
    pub connections: usize,
    pub is_tls: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum What {
    Blob(u64),
    Tag,
    /// Ranges of a blob: of its size, of their length.
    Part(u64, u64),
}

pub fn run(bench: &mut Bench, work: &'static str, held: Held) -> io::Result<()> {
    let content = Arc::clone(&bench.content);
    let (ask, expected) = asked(&content, held.what);
    let servers = bench.start_warm(work, &ask, expected, Purpose { is_cold: false, is_tls: held.is_tls, with_limit: !held.is_tls });
    for round in 0..bench.rounds {
        for server in &servers {
            let asked_before = bench.upstream.requests();
            let seen = load::run(Load { server, connections: held.connections, window: bench.window }, &ask)?;
            let is_large = matches!(held.what, What::Blob(size) if size > MIB);
            let said = if is_large { per_body(&seen) } else { per_request(&seen) };
            let asked = (bench.upstream.requests() - asked_before) as f64 / seen.requests_in_all.max(1) as f64;
            let rest = [
                (Measure::Memory, seen.memory),
                (Measure::UpstreamShare, asked),
                (Measure::ClientBusy, seen.busy),
                (Measure::Failed, seen.failed as f64),
            ];
            if seen.busy > LOAD_MAX {
                bench.notes.push(format!("{work}, {}: the load was as busy as it can be; the server may be faster than this", server.name));
            }
            bench.note(work, &server.name, round, &[&said[..], &rest].concat());
        }
    }
    Ok(())
}

/// What is asked for, and its sha256.
pub fn asked(content: &Content, what: What) -> (Ask, &str) {
    let of_blob = |size, part| (Ask { path: content.blob(size).path(), size, part }, content.blob(size).hex.as_str());
    match what {
        What::Blob(size) => of_blob(size, None),
        What::Part(size, part) => of_blob(size, Some(part)),
        What::Tag => (Ask { path: Content::tag_path(), size: content.manifest.len() as u64, part: None }, &content.manifest_hex),
    }
}

fn per_body(seen: &Seen) -> Vec<(Measure, f64)> {
    let gib = seen.bytes as f64 / GIB;
    vec![(Measure::Throughput, gib / seen.seconds), (Measure::CpuPerGib, seen.server_cpu / gib)]
}

fn per_request(seen: &Seen) -> Vec<(Measure, f64)> {
    let latency = |share| quantile(&seen.latencies, share).unwrap_or(f64::NAN);
    vec![
        (Measure::Requests, seen.requests as f64 / seen.seconds),
        (Measure::CpuPerRequest, seen.server_cpu * 1e6 / seen.requests as f64),
        (Measure::Half, latency(0.5)),
        (Measure::Slow, latency(0.99)),
        (Measure::Slower, latency(0.999)),
        (Measure::Slowest, latency(1.0)),
    ]
}
