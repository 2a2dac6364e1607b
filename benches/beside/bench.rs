//! What all works share: the upstream and its content, the subjects, and what was measured and has to be said.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::content::{Content, hex};
use crate::load::Ask;
use crate::servers::{Kind, Server, Setting, Subject};
use crate::table::{Measure, Results, Sample, number};
use crate::tls::Tls;
use crate::upstream::Upstream;
use crate::{http, say};

pub struct Bench<'a> {
    pub dir: &'a Path,
    pub content: Arc<Content>,
    pub upstream: Upstream,
    pub subjects: Vec<Subject>,
    pub tls: Tls,
    pub rounds: usize,
    /// How long a load is watched.
    pub window: Duration,
    pub log: bool,
    /// How long the upstream takes for each answer.
    pub latency: Duration,
    pub results: Results,
    /// What has to be said below the table.
    pub notes: Vec<String>,
}

/// What a server is started for.
#[derive(Clone, Copy, Default, Debug)]
pub struct Purpose {
    /// It has to fetch what it serves.
    pub is_cold: bool,
    pub is_tls: bool,
    /// The limit takes part: it is for what a server does at full speed, and speaks no TLS.
    pub with_limit: bool,
}

impl Bench<'_> {
    pub fn start(&self, subject: &Subject, purpose: Purpose) -> io::Result<Server> {
        subject.start(&Setting {
            dir: self.dir,
            source: &self.content.dir,
            upstream: self.upstream.port,
            log: self.log,
            is_cold: purpose.is_cold,
            tls: purpose.is_tls.then_some(&self.tls),
        })
    }

    /// All that can be started and serve what is asked for, right and held.
    pub fn start_warm(&mut self, work: &'static str, ask: &Ask, expected: &str, purpose: Purpose) -> Vec<Server> {
        self.upstream.reset(0, self.latency);
        let mut servers = Vec::new();
        let mut subjects = self.subjects.clone();
        subjects.retain(|subject| purpose.with_limit || !matches!(subject.kind, Kind::Limit));
        for subject in subjects {
            match self.start(&subject, purpose).and_then(|server| self.warm(&server, ask, expected).map(|()| server)) {
                Ok(server) => servers.push(server),
                Err(error) => self.leave_out(work, &subject.name, &error),
            }
        }
        rustix::fs::sync(); // what the fills have written does not disturb what is measured
        servers
    }

    /// Pulls until the server has it, and checks that what it hands out is right: the whole, and a range if that is what is
    /// asked for.
    fn warm(&self, server: &Server, ask: &Ask, expected: &str) -> io::Result<()> {
        let mut before = u64::MAX;
        while before != self.upstream.blob_requests() {
            before = self.upstream.blob_requests();
            verify(server, &ask.path, expected)?;
            server.settle()?;
        }
        let Some(part) = ask.part else { return Ok(()) };
        let (from, until) = (ask.size / 3, ask.size / 3 + part);
        let mut got = Vec::new();
        http::get(&mut server.connect()?, &ask.path, Some((from, until)), |piece| got.extend_from_slice(piece))?;
        let mut right = vec![0; part as usize];
        std::fs::File::open(self.content.dir.join(expected))?.read_exact_at(&mut right, from)?;
        if got == right { Ok(()) } else { Err(io::Error::other("a range is wrong")) }
    }

    pub fn note(&mut self, work: &'static str, subject: &str, round: usize, values: &[(Measure, f64)]) {
        let said: Vec<String> = values.iter().map(|(measure, value)| format!("{} {}", measure.title(), number(*value))).collect();
        say(&format!("  {subject}: {}", said.join("; ")));
        let sample =
            |(measure, value): &(Measure, f64)| Sample { work, subject: subject.to_owned(), round, measure: *measure, value: *value };
        self.results.samples.extend(values.iter().map(sample));
    }

    pub fn leave_out(&mut self, work: &str, subject: &str, error: &io::Error) {
        let note = format!("{work}: without {subject}, which failed: {}", error.to_string().lines().next().unwrap_or_default());
        say(&format!("  {note}"));
        self.notes.push(note);
    }
}

/// One whole answer hashes to what it must be.
pub fn verify(server: &Server, path: &str, expected: &str) -> io::Result<()> {
    let mut digest = Sha256::new();
    http::get(&mut server.connect()?, path, None, |piece| digest.update(piece))?;
    if hex(&digest.finalize()) == expected { Ok(()) } else { Err(io::Error::other("the whole is wrong")) }
}
