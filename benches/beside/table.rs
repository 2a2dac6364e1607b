//! What was measured, and the one table that says it: medians, spreads, ratios, and whether each target holds.
//!
//! Pure, and it knows no other file of the benchmark, so that a test can include it.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank is a small number, and not below nothing")]

use std::fmt::Write as _;

/// The subject whose targets they are; every ratio is its value divided by another's.
pub const OURS: &str = "millpond";

/// Something that can be said of a work in one number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    Throughput,
    Requests,
    CpuPerGib,
    CpuPerRequest,
    Half,
    Slow,
    Slower,
    Slowest,
    Memory,
    Wall,
    FirstByte,
    CpuSeconds,
    LastClient,
    UpstreamBytes,
    UpstreamRequests,
    UpstreamShare,
    Rate,
    Connections,
    CpuPerConnection,
    Resumed,
    ClientBusy,
    Failed,
}

impl Measure {
    /// Its name with its unit, as the table says it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Throughput => "throughput, GiB/s",
            Self::Requests => "requests a second",
            Self::CpuPerGib => "server CPU, s/GiB",
            Self::CpuPerRequest => "server CPU, us/request",
            Self::Half => "latency p50, ms",
            Self::Slow => "latency p99, ms",
            Self::Slower => "latency p99.9, ms",
            Self::Slowest => "latency max, ms",
            Self::Memory => "RssAnon at the most, MB",
            Self::Wall => "wall, s",
            Self::FirstByte => "first byte after the upstream's, ms",
            Self::CpuSeconds => "server CPU, s",
            Self::LastClient => "slowest client / (size / R)",
            Self::UpstreamBytes => "upstream bytes / size",
            Self::UpstreamRequests => "upstream requests",
            Self::UpstreamShare => "upstream requests / request",
            Self::Rate => "rate / R",
            Self::Connections => "connections a second",
            Self::CpuPerConnection => "server CPU, us/connection",
            Self::Resumed => "share of resumed sessions",
            Self::ClientBusy => "busiest load thread, share of a processor",
            Self::Failed => "failed requests",
        }
    }

    /// Whether ours divided by another's means something.
    fn compares(self) -> bool {
        !matches!(
            self,
            Self::UpstreamBytes | Self::UpstreamRequests | Self::UpstreamShare | Self::Resumed | Self::ClientBusy | Self::Failed
        )
    }
}

/// One number of one round.
#[derive(Clone, Debug)]
pub struct Sample {
    pub work: &'static str,
    pub subject: String,
    pub round: usize,
    pub measure: Measure,
    pub value: f64,
}

/// The side of its value on which a target lies.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// What a measure of ours must be: by itself, or divided by that of another subject.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub measure: Measure,
    pub beside: Option<&'static str>,
    pub bound: Bound,
}

/// A work as the table shows it.
#[derive(Clone, Debug)]
pub struct Heading {
    pub work: &'static str,
    pub title: String,
    pub targets: Vec<Target>,
}

/// The value below which a share of `sorted` lies: the nearest rank. Nothing of nothing.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// Least, median and greatest. The median of an even number of values is the mean of the two in the middle.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub greatest: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (least, greatest) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        Some(Self { least, median, greatest })
    }
}

/// `ours` divided by `other`; nothing where that says nothing.
pub fn ratio(ours: f64, other: f64) -> Option<f64> {
    (other > 0.0 && ours.is_finite()).then(|| ours / other)
}

/// All that was measured.
#[derive(Default)]
pub struct Results {
    pub samples: Vec<Sample>,
}

impl Results {
    /// The rounds of one measure, if there is one.
    pub fn spread(&self, work: &str, subject: &str, measure: Measure) -> Option<Spread> {
        let is_it = |s: &&Sample| s.work == work && s.subject == subject && s.measure == measure;
        Spread::of(self.samples.iter().filter(is_it).map(|s| s.value).collect())
    }

    /// Ours divided by another's, of the medians.
    pub fn beside(&self, work: &str, measure: Measure, subject: &str) -> Option<f64> {
        ratio(self.spread(work, OURS, measure)?.median, self.spread(work, subject, measure)?.median)
    }

    /// What a target is judged by, and whether it holds; nothing if it was not measured.
    pub fn judge(&self, work: &str, target: &Target) -> Option<(f64, bool)> {
        let value = match target.beside {
            Some(subject) => self.beside(work, target.measure, subject)?,
            None => self.spread(work, OURS, target.measure)?.median,
        };
        // As the table says it: to three digits.
        let said = number(value).parse().unwrap_or(value);
        let holds = match target.bound {
            Bound::AtMost(most) => said <= most,
            Bound::AtLeast(least) => said >= least,
        };
        Some((value, holds))
    }

    /// The table, in Markdown: a row for each measure of each work.
    pub fn markdown(&self, headings: &[Heading], subjects: &[String]) -> String {
        let others: Vec<&String> = subjects.iter().filter(|subject| *subject != OURS).collect();
        let ratios = others.iter().map(|other| format!("/ {other}"));
        let columns: Vec<String> = subjects.iter().cloned().chain(ratios).collect();
        let rules = "---|".repeat(columns.len() + 3);
        let mut text = format!("| work | measure | {} | target |\n|{rules}\n", columns.join(" | "));
        for heading in headings {
            let mut title = heading.title.as_str();
            for measure in self.measures(heading.work) {
                self.row(&mut text, heading, title, measure, subjects, &others);
                title = "";
            }
        }
        text
    }

    fn row(&self, text: &mut String, heading: &Heading, title: &str, measure: Measure, subjects: &[String], others: &[&String]) {
        let _ = write!(text, "| {title} | {} |", measure.title());
        for subject in subjects {
            let cell = self.spread(heading.work, subject, measure).map(spelled).unwrap_or_default();
            let _ = write!(text, " {cell} |");
        }
        for other in others {
            let compared = measure.compares().then(|| self.beside(heading.work, measure, other)).flatten();
            let cell = compared.map(number).unwrap_or_default();
            let _ = write!(text, " {cell} |");
        }
        let targets = heading.targets.iter().filter(|target| target.measure == measure);
        let verdicts: Vec<String> = targets.map(|target| self.verdict(heading.work, target)).collect();
        let _ = writeln!(text, " {} |", verdicts.join("; "));
    }

    fn verdict(&self, work: &str, target: &Target) -> String {
        let (sign, bound) = match target.bound {
            Bound::AtMost(most) => ("<=", most),
            Bound::AtLeast(least) => (">=", least),
        };
        let of = target.beside.map(|subject| format!(" of {subject}")).unwrap_or_default();
        let said = match self.judge(work, target) {
            Some((_, true)) => "holds".to_owned(),
            Some((value, false)) => format!("**missed: {}**", number(value)),
            None => "not measured".to_owned(),
        };
        format!("{sign} {bound}{of}: {said}")
    }

    /// The measures of a work, in the order in which they were first taken.
    fn measures(&self, work: &str) -> Vec<Measure> {
        let mut found = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.work == work) {
            if !found.contains(&sample.measure) {
                found.push(sample.measure);
            }
        }
        found
    }

    /// Every number of every round, a line each.
    pub fn tsv(&self) -> String {
        let mut text = String::from("work\tsubject\tround\tmeasure\tvalue\n");
        for Sample { work, subject, round, measure, value } in &self.samples {
            let _ = writeln!(text, "{work}\t{subject}\t{round}\t{}\t{value}", measure.title());
        }
        text
    }
}

/// The median, and the spread where there is one.
fn spelled(spread: Spread) -> String {
    let (least, median, greatest) = (number(spread.least), number(spread.median), number(spread.greatest));
    if least == greatest { median } else { format!("{median} ({least}-{greatest})") }
}

/// Three digits that mean something.
pub fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.1 => format!("{value:.4}"),
        size if size < 1.0 => format!("{value:.3}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
