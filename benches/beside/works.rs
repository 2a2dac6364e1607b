//! The works, one by one: what is asked for, of whom, and what is noted. Subjects take turns within a round, so that whatever
//! else this machine does falls on all of them.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::cold::{self, Miss, Tells};
use crate::content::{Content, hex};
use crate::load::{self, Ask, Load};
use crate::servers::{Server, Setting, Subject};
use crate::table::Bound::{AtLeast, AtMost};
use crate::table::{Bound, Heading, Measure, Results, Sample, Target, quantile};
use crate::upstream::Upstream;
use crate::{http, say};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: f64 = (1 << 30) as f64;

/// All that the works need.
pub struct Bench<'a> {
    pub dir: &'a Path,
    pub content: Arc<Content>,
    pub upstream: Upstream,
    pub subjects: Vec<Subject>,
    pub rounds: usize,
    /// How long a load is watched.
    pub window: Duration,
    pub log: bool,
    pub results: Results,
    /// What has to be said below the table.
    pub notes: Vec<String>,
}

/// One work.
pub struct Work {
    pub name: &'static str,
    title: String,
    does: Does,
    targets: Vec<Target>,
}

enum Does {
    /// What is held, to so many connections at once.
    Hot { what: What, connections: usize },
    /// What is not.
    Cold(Miss),
}

#[derive(Clone, Copy)]
enum What {
    Blob(u64),
    Tag,
    /// Ranges of this length.
    Part(u64, u64),
}

fn target(measure: Measure, bound: Bound, beside: Option<&'static str>) -> Target {
    Target { measure, beside, bound }
}

/// Every work, at its full size or small enough for a look whether all of it runs.
pub fn all(is_quick: bool) -> Vec<Work> {
    let large = if is_quick { 64 * MIB } else { 1024 * MIB };
    let medium = if is_quick { 2 * MIB } else { 10 * MIB };
    let nginx = Some("nginx");
    let body = || vec![target(Measure::Throughput, AtLeast(1.5), nginx), target(Measure::CpuPerGib, AtMost(0.6), nginx)];
    let request = || vec![target(Measure::Requests, AtLeast(1.0), nginx), target(Measure::CpuPerRequest, AtMost(1.0), nginx)];
    let hot = |name, title: String, what, connections, targets| Work { name, title, does: Does::Hot { what, connections }, targets };
    let tag = [request(), vec![target(Measure::Requests, AtLeast(100.0), Some("docker-registry"))]].concat();
    let cold = |name, title: String, miss, targets| Work { name, title, does: Does::Cold(miss), targets };
    let first_byte = || target(Measure::FirstByte, AtMost(5.0), None);
    let once = || target(Measure::UpstreamBytes, AtMost(1.0), None);
    let join = Miss { size: if is_quick { 8 * MIB } else { 48 * MIB }, pace: 16 * MIB, clients: 64, tells: Tells::LastClient };
    let wide = Miss {
        size: if is_quick { 64 * MIB } else { 128 * MIB },
        pace: if is_quick { 32 } else { 5 } * MIB,
        clients: 1,
        tells: Tells::Rate,
    };
    vec![
        hot("hot-large", format!("held blob, {} x 4", spelled(large)), What::Blob(large), 4, body()),
        hot("hot-medium", format!("held blob, {} x 16", spelled(medium)), What::Blob(medium), 16, body()),
        hot("hot-small", "held blob, 40 kB x 16".to_owned(), What::Blob(40_000), 16, request()),
        hot("hot-tag", "held tag x 32".to_owned(), What::Tag, 32, tag),
        hot("hot-range", format!("64 KiB ranges of a {} blob x 16", spelled(large)), What::Part(large, 64 * KIB), 16, request()),
        cold(
            "cold",
            format!("cold {}, fast upstream, 1 client", spelled(large)),
            Miss { size: large, pace: 0, clients: 1, tells: Tells::Speed },
            vec![target(Measure::Wall, AtMost(1.0), Some("docker-registry")), first_byte(), once()],
        ),
        cold(
            "join",
            format!("cold {}, upstream at R = {}/s, 64 clients", spelled(join.size), spelled(join.pace)),
            join,
            vec![target(Measure::LastClient, AtMost(1.05), None), once()],
        ),
        cold(
            "wide",
            format!("cold {}, upstream gives each connection R = {}/s", spelled(wide.size), spelled(wide.pace)),
            wide,
            vec![target(Measure::Rate, AtLeast(3.5), None), once()],
        ),
    ]
}

fn spelled(size: u64) -> String {
    if size.is_multiple_of(1 << 30) { format!("{} GiB", size >> 30) } else { format!("{} MiB", size >> 20) }
}

impl Work {
    pub fn heading(&self) -> Heading {
        Heading { work: self.name, title: format!("{} ({})", self.title, self.name), targets: self.targets.clone() }
    }

    /// The sizes of the blobs that it asks for.
    pub fn sizes(&self) -> Vec<u64> {
        match &self.does {
            Does::Hot { what: What::Blob(size) | What::Part(size, _), .. } => vec![*size],
            Does::Hot { what: What::Tag, .. } => vec![],
            Does::Cold(miss) => vec![miss.size],
        }
    }

    pub fn run(&self, bench: &mut Bench) -> io::Result<()> {
        say(&format!("{}: {}", self.name, self.title));
        match &self.does {
            Does::Hot { what, connections } => self.hot(bench, *what, *connections),
            Does::Cold(miss) => {
                cold::run(bench, self.name, *miss);
                Ok(())
            }
        }
    }

    fn hot(&self, bench: &mut Bench, what: What, connections: usize) -> io::Result<()> {
        bench.upstream.reset(0, Duration::ZERO);
        let content = Arc::clone(&bench.content);
        let (ask, expected) = match what {
            What::Blob(size) => (Ask { path: content.blob(size).path(), size, part: None }, &content.blob(size).hex),
            What::Part(size, part) => (Ask { path: content.blob(size).path(), size, part: Some(part) }, &content.blob(size).hex),
            What::Tag => (Ask { path: Content::tag_path(), size: content.manifest.len() as u64, part: None }, &content.manifest_hex),
        };
        let mut servers = Vec::new();
        for subject in bench.subjects.clone() {
            match bench.start(&subject, false).and_then(|server| bench.warm(&server, &ask, expected).map(|()| server)) {
                Ok(server) => servers.push(server),
                Err(error) => bench.leave_out(self.name, &subject.name, &error),
            }
        }
        rustix::fs::sync(); // what the fills have written does not disturb what is measured
        for round in 0..bench.rounds {
            for server in &servers {
                let seen = load::run(Load { port: server.port, connections, window: bench.window }, &ask, &server.pids())?;
                let is_large = matches!(what, What::Blob(size) if size > MIB);
                let per_body = [(Measure::Throughput, seen.bytes as f64 / GIB / seen.seconds)];
                let per_request = [
                    (Measure::Requests, seen.requests as f64 / seen.seconds),
                    (Measure::CpuPerRequest, seen.server_cpu * 1e6 / seen.requests.max(1) as f64),
                ];
                let cpu_per_body = [(Measure::CpuPerGib, seen.server_cpu * GIB / seen.bytes.max(1) as f64)];
                let latency = |share| quantile(&seen.latencies, share).unwrap_or(f64::NAN);
                let latencies = [
                    (Measure::Half, latency(0.5)),
                    (Measure::Slow, latency(0.99)),
                    (Measure::Slower, latency(0.999)),
                    (Measure::Slowest, latency(1.0)),
                ];
                let rest = [(Measure::Memory, server.memory()?), (Measure::ClientBusy, seen.busy), (Measure::Failed, seen.failed as f64)];
                let values =
                    if is_large { [&per_body[..], &cpu_per_body, &rest].concat() } else { [&per_request[..], &latencies, &rest].concat() };
                bench.note(self.name, &server.name, round, &values);
            }
        }
        Ok(())
    }
}

impl Bench<'_> {
    pub fn start(&self, subject: &Subject, is_cold: bool) -> io::Result<Server> {
        let setting = Setting { dir: self.dir, source: &self.content.dir, upstream: self.upstream.port, log: self.log, is_cold };
        subject.start(&setting)
    }

    /// Pulls until the server has it, and checks that what it hands out is right: the whole, and a range if that is what is
    /// asked for.
    fn warm(&self, server: &Server, ask: &Ask, expected: &str) -> io::Result<()> {
        let mut before = u64::MAX;
        while before != self.upstream.blob_requests() {
            before = self.upstream.blob_requests();
            let mut digest = Sha256::new();
            http::get(&mut http::connect(server.port)?, &ask.path, None, |piece| digest.update(piece))?;
            if hex(&digest.finalize()) != expected {
                return Err(io::Error::other("the whole is wrong"));
            }
            server.settle()?;
        }
        let Some(part) = ask.part else { return Ok(()) };
        let (from, until) = (ask.size / 3, ask.size / 3 + part);
        let mut got = Vec::new();
        http::get(&mut http::connect(server.port)?, &ask.path, Some((from, until)), |piece| got.extend_from_slice(piece))?;
        let mut right = vec![0; part as usize];
        std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(self.content.dir.join(expected))?, &mut right, from)?;
        if got == right { Ok(()) } else { Err(io::Error::other("a range is wrong")) }
    }

    pub fn note(&mut self, work: &'static str, subject: &str, round: usize, values: &[(Measure, f64)]) {
        let said: Vec<String> =
            values.iter().map(|(measure, value)| format!("{} {}", measure.title(), crate::table::number(*value))).collect();
        say(&format!("  {subject}: {}", said.join("; ")));
        let sample =
            |(measure, value): &(Measure, f64)| Sample { work, subject: subject.to_owned(), round, measure: *measure, value: *value };
        self.results.samples.extend(values.iter().map(sample));
    }

    pub fn leave_out(&mut self, work: &str, subject: &str, error: &io::Error) {
        let note = format!("{work}: without {subject}, which failed: {error}");
        say(&note);
        self.notes.push(note);
    }
}
