//! millpond beside nginx, docker-registry and what this machine can do at all: `cargo bench --bench beside`.
//!
//! Starts an upstream, then for each work of the table the servers that are compared, on loopback, with fresh folders on this disk;
//! loads them in turns; prints one table with ratios and targets, and writes it to a file beside the numbers of each round.
//! Ends what it started, also when it is interrupted.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command that reports")]
#![allow(unreachable_pub, missing_docs, reason = "in a binary, public means: of this module")]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes fit, and measurements are no sums of money")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;

mod bench;
mod cold;
mod content;
mod crowd;
mod handshakes;
mod held;
mod http;
mod limit;
mod load;
mod proc;
mod servers;
mod table;
mod tls;
mod upstream;
mod works;

use bench::Bench;
use servers::{Kind, Subject};

/// millpond beside nginx, docker-registry and the limit of this machine.
#[derive(Parser, Debug)]
#[allow(clippy::struct_excessive_bools, reason = "switches on a command line")]
struct Args {
    /// Rounds of each work; the table says median, least and greatest.
    #[arg(long)]
    rounds: Option<usize>,
    /// Small sizes, one round: does all of it run?
    #[arg(long)]
    quick: bool,
    /// Works by name or by how their names begin, separated by commas.
    #[arg(long, value_delimiter = ',')]
    works: Vec<String>,
    /// Subjects by name, separated by commas: millpond, earlier, nginx, docker-registry, limit.
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<String>,
    /// The millpond to measure, instead of the one that was built for this.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_millpond"))]
    bin: PathBuf,
    /// An earlier millpond to compare with.
    #[arg(long)]
    against: Option<PathBuf>,
    /// The table's file; the numbers of each round go beside it, with the ending tsv.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where the servers have their folders: on the disk that is to be measured.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Seconds for which each load is watched.
    #[arg(long)]
    seconds: Option<f64>,
    /// Milliseconds that the upstream takes before each answer.
    #[arg(long, default_value_t = 0)]
    latency: u64,
    /// No server writes a line a request.
    #[arg(long)]
    no_log: bool,
    /// Says the names of the works.
    #[arg(long)]
    list: bool,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// SIGINT or SIGTERM came.
static TOLD_TO_END: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let done = match words.get(1).map(String::as_str) {
        Some("limit") => be_the_limit(&words[2..]),
        _ => compare(&Args::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The servers are gone because of it, and the other thread ends this process.
        Err(_) if TOLD_TO_END.load(Ordering::Relaxed) => loop {
            std::thread::park();
        },
        Err(error) => {
            eprintln!("beside: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The process that shows what the machine can do at all.
fn be_the_limit(words: &[String]) -> io::Result<()> {
    let [source, scratch, upstream @ ..] = words else { return Err(io::ErrorKind::InvalidInput.into()) };
    limit::serve(Path::new(source), upstream.first().and_then(|port| port.parse().ok()), Path::new(scratch))
}

fn compare(args: &Args) -> io::Result<()> {
    let chosen = |names: &[String], name: &str| names.is_empty() || names.iter().any(|start| name.starts_with(start.as_str()));
    let mut works = works::all(args.quick);
    works.retain(|work| chosen(&args.works, work.name));
    if args.list {
        for work in &works {
            say(&work.heading().title);
        }
        return Ok(());
    }
    let (mut subjects, mut notes) = subjects(args);
    subjects.retain(|subject| chosen(&args.subjects, &subject.name));
    let mut sizes: Vec<u64> = works.iter().filter_map(works::Work::size).chain([works::SMALL]).collect();
    sizes.sort_unstable();
    sizes.dedup();

    raise_descriptors();
    std::fs::create_dir_all(&args.dir)?;
    let dir = tempfile::Builder::new().prefix("beside-").tempdir_in(&args.dir)?;
    end_when_told(dir.path().to_owned())?;
    let content = Arc::new(content::Content::make(&dir.path().join("source"), &sizes)?);
    let upstream = upstream::Upstream::start(Arc::clone(&content))?;
    notes.push(format!(
        "{}; ratios are millpond's median divided by the other's; everything is on loopback, client and upstream on the same processors",
        if args.no_log {
            "no server writes an access log"
        } else {
            "every server but limit writes a line a request to a file, nginx by 64 KiB"
        }
    ));
    let mut bench = Bench {
        dir: dir.path(),
        content,
        upstream,
        subjects,
        tls: tls::Tls::make(dir.path())?,
        rounds: args.rounds.unwrap_or(if args.quick { 1 } else { 3 }),
        window: Duration::from_secs_f64(args.seconds.unwrap_or(if args.quick { 0.3 } else { 2.0 })),
        log: !args.no_log,
        latency: Duration::from_millis(args.latency),
        results: table::Results::default(),
        notes,
    };
    for work in &works {
        work.run(&mut bench)?;
    }
    report(args, &works, &bench)
}

/// All that can be compared here, and a line for each that cannot.
fn subjects(args: &Args) -> (Vec<Subject>, Vec<String>) {
    let mut notes = Vec::new();
    let mut subjects = vec![Subject { name: table::OURS.to_owned(), kind: Kind::Millpond(args.bin.clone()) }];
    if let Some(earlier) = &args.against {
        subjects.push(Subject { name: "earlier".to_owned(), kind: Kind::Millpond(earlier.clone()) });
    }
    for (name, kind) in [("nginx", Kind::Nginx as fn(PathBuf) -> Kind), ("docker-registry", Kind::Registry)] {
        match servers::find(name) {
            Some(program) => subjects.push(Subject { name: name.to_owned(), kind: kind(program) }),
            None => notes.push(format!("without {name}: it is not installed")),
        }
    }
    subjects.push(Subject { name: "limit".to_owned(), kind: Kind::Limit });
    (subjects, notes)
}

fn report(args: &Args, works: &[works::Work], bench: &Bench) -> io::Result<()> {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let headings: Vec<_> = works.iter().map(works::Work::heading).collect();
    let names: Vec<String> = bench.subjects.iter().map(|subject| subject.name.clone()).collect();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let mut foot =
        vec![format!("{now}, commit {}, `cargo bench --bench beside -- {}`, rounds: {}", proc::commit(), words.join(" "), bench.rounds)];
    foot.extend(proc::machine(bench.dir));
    foot.extend(bench.subjects.iter().map(Subject::version));
    foot.extend(bench.notes.iter().cloned());
    let lines: Vec<String> = foot.iter().map(|line| format!("- {line}\n")).collect();
    let text = format!("{}\n{}", bench.results.markdown(&headings, &names), lines.concat());
    say(&format!("\n{text}"));
    let default = || Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("beside").join(format!("{}.md", now.replace(':', "")));
    let out = args.out.clone().unwrap_or_else(default);
    if let Some(parent) = out.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&out, text)?;
    std::fs::write(out.with_extension("tsv"), bench.results.tsv())?;
    say(&format!("written to {}", out.display()));
    Ok(())
}

/// A line on the terminal, or for who started this.
pub fn say(line: &str) {
    println!("{line}");
}

/// Waits. A benchmark is made of it.
#[allow(clippy::disallowed_methods, reason = "time itself is what is measured")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// As many descriptors as this user may have, for this process and all that it starts.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where that is refused, the works with many connections fail and say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// SIGINT and SIGTERM end the servers and remove the folder, then this process.
fn end_when_told(dir: PathBuf) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
        });
        TOLD_TO_END.store(true, Ordering::Relaxed);
        servers::end_all();
        let _ = std::fs::remove_dir_all(dir);
        #[allow(clippy::exit, reason = "the other threads wait for servers that are gone")]
        std::process::exit(130)
    });
    Ok(())
}
