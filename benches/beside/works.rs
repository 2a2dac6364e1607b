//! The works: what is asked for, by how many, and what is aimed at. Subjects take turns within a round, so that whatever else this
//! machine does falls on all of them.

use std::io;

use crate::bench::Bench;
use crate::cold::{self, Miss, Tells};
use crate::crowd::{self, Crowd};
use crate::handshakes;
use crate::held::{self, Held, What};
use crate::say;
use crate::table::Bound::{AtLeast, AtMost};
use crate::table::{Bound, Heading, Measure, Target};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// A blob that every server keeps in memory, or should.
pub const SMALL: u64 = 40_000;

const NGINX: Option<&str> = Some("nginx");
const REGISTRY: Option<&str> = Some("docker-registry");

/// One work.
pub struct Work {
    pub name: &'static str,
    title: String,
    does: Does,
    targets: Vec<Target>,
}

enum Does {
    Hold(Held),
    Miss(Miss),
    Crowd(Crowd),
    /// Whether sessions are resumed.
    Shake(bool),
}

/// Every work, at its full size or small enough for a look whether all of it runs.
pub fn all(is_quick: bool) -> Vec<Work> {
    let size = |full, quick| if is_quick { quick } else { full };
    let (large, medium) = (size(GIB, 64 * MIB), size(10 * MIB, 2 * MIB));
    [held(large, medium), misses(large, &size), crowds(size(8 * MIB, MIB)), secret(large, medium)].into_iter().flatten().collect()
}

fn held(large: u64, medium: u64) -> Vec<Work> {
    let hot = |name, title, what, connections, targets| {
        let does = Does::Hold(Held { what, connections, is_tls: false });
        Work { name, title: format!("held {title} x {connections}"), does, targets }
    };
    let body = || vec![target(Measure::Throughput, AtLeast(1.5), NGINX), target(Measure::CpuPerGib, AtMost(0.6), NGINX)];
    let request = || vec![target(Measure::Requests, AtLeast(1.0), NGINX), target(Measure::CpuPerRequest, AtMost(1.0), NGINX)];
    let tag = [request(), vec![target(Measure::Requests, AtLeast(100.0), REGISTRY)]].concat();
    vec![
        hot("hot-large", format!("blob, {}", spelled(large)), What::Blob(large), 4, body()),
        hot("hot-medium", format!("blob, {}", spelled(medium)), What::Blob(medium), 16, body()),
        hot("hot-small", "blob, 40 kB".to_owned(), What::Blob(SMALL), 16, request()),
        hot("hot-tag", "tag".to_owned(), What::Tag, 32, tag),
        hot("hot-range", format!("blob, 64 KiB ranges of {}", spelled(large)), What::Part(large, 64 * KIB), 16, request()),
    ]
}

fn misses(large: u64, size: &impl Fn(u64, u64) -> u64) -> Vec<Work> {
    let once = || target(Measure::UpstreamBytes, AtMost(1.0), None);
    let cold = |name, title, miss: Miss, targets: Vec<Target>| {
        let title = format!("cold {}, {title}", spelled(miss.size));
        Work { name, title, does: Does::Miss(miss), targets: [targets, vec![once()]].concat() }
    };
    let fast = Miss { size: large, pace: 0, clients: 1, tells: Tells::Speed };
    // Less than what millpond fetches over several connections: here R is all that there is.
    let join = Miss { size: size(48 * MIB, 8 * MIB), pace: 16 * MIB, clients: 64, tells: Tells::LastClient };
    let wide = Miss { size: size(128 * MIB, 64 * MIB), pace: size(5 * MIB, 16 * MIB), clients: 1, tells: Tells::Rate };
    let speed = vec![target(Measure::Wall, AtMost(1.0), REGISTRY), target(Measure::FirstByte, AtMost(5.0), None)];
    let rate = |miss: Miss| format!("R = {}/s", spelled(miss.pace));
    vec![
        cold("cold", "fast upstream, 1 client".to_owned(), fast, speed),
        cold("join", format!("upstream at {}, 64 clients", rate(join)), join, vec![target(Measure::LastClient, AtMost(1.05), None)]),
        cold("wide", format!("upstream gives each connection {}", rate(wide)), wide, vec![target(Measure::Rate, AtLeast(3.5), None)]),
    ]
}

fn crowds(size: u64) -> Vec<Work> {
    let crowd = |name, connections| Work {
        name,
        title: format!("held {} to {connections} connections that take 2 MiB/s each", spelled(size)),
        does: Does::Crowd(Crowd { size, connections, pace: 2 * MIB }),
        targets: vec![target(Measure::Memory, AtMost(100.0), None), target(Measure::Failed, AtMost(0.0), None)],
    };
    vec![crowd("slow-500", 500), crowd("slow-1000", 1000)]
}

fn secret(large: u64, medium: u64) -> Vec<Work> {
    let hot = |name, size, connections| Work {
        name,
        title: format!("TLS, held blob, {} x {connections}", spelled(size)),
        does: Does::Hold(Held { what: What::Blob(size), connections, is_tls: true }),
        targets: vec![target(Measure::Throughput, AtLeast(1.0), NGINX)],
    };
    let shake = |name, title: &str, resumes| Work { name, title: title.to_owned(), does: Does::Shake(resumes), targets: vec![] };
    vec![
        hot("tls-large", large, 4),
        hot("tls-medium", medium, 16),
        shake("tls-full", "TLS, a full handshake and a held tag", false),
        shake("tls-resumed", "TLS, a resumed session and a held tag", true),
    ]
}

fn target(measure: Measure, bound: Bound, beside: Option<&'static str>) -> Target {
    Target { measure, beside, bound }
}

fn spelled(size: u64) -> String {
    if size.is_multiple_of(GIB) { format!("{} GiB", size / GIB) } else { format!("{} MiB", size / MIB) }
}

impl Work {
    pub fn heading(&self) -> Heading {
        Heading { work: self.name, title: format!("{} ({})", self.title, self.name), targets: self.targets.clone() }
    }

    /// The size of the blob that it asks for.
    pub fn size(&self) -> Option<u64> {
        match &self.does {
            Does::Hold(Held { what: What::Blob(size) | What::Part(size, _), .. }) => Some(*size),
            Does::Hold(Held { what: What::Tag, .. }) | Does::Shake(_) => None,
            Does::Miss(miss) => Some(miss.size),
            Does::Crowd(crowd) => Some(crowd.size),
        }
    }

    pub fn run(&self, bench: &mut Bench) -> io::Result<()> {
        say(&format!("{}: {}", self.name, self.title));
        match &self.does {
            Does::Hold(held) => held::run(bench, self.name, *held),
            Does::Miss(miss) => {
                cold::run(bench, self.name, *miss);
                Ok(())
            }
            Does::Crowd(crowd) => crowd::run(bench, self.name, *crowd),
            Does::Shake(resumes) => handshakes::run(bench, self.name, *resumes),
        }
    }
}
