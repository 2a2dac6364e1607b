//! Instructions of the hot paths, counted by valgrind's callgrind and held against `benches/budgets`; and, roughly, allocations.
//!
//!     cargo bench --profile guard --bench instructions              fails where a budget is passed
//!     cargo bench --profile guard --bench instructions -- --set     writes what was counted as the new budgets
//!     cargo bench --profile guard --bench instructions -- tag-get   one case; the counts stay in target/guard for `callgrind_annotate`
//!
//! The server is the real one, on a socket of this machine, in one thread together with a client that does next to nothing: what is
//! counted is all that runs in user space from one request to the next. The kernel is not counted, nor other threads (the log's, the disk's), and so
//! no hashing, which is another on each processor. Each case runs in a process of its own, which valgrind watches.

mod place;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use hyper::Method;
use millpond::oci::Registry;
use millpond::route::{Known, route};
use place::{Place, SMALL_BYTES};

/// Of a budget, that is not a regression: another C library copies memory in other steps.
const MARGIN_PERCENT: u64 = 10;

/// Requests before it is counted: caches are warm and tables as large as they get.
const WARM: usize = 300;

/// Requests that are counted; and as many again.
const TIMES: usize = 300;

/// A route is cheap: so many for each time.
const ROUTES: usize = 100;

/// What is counted, and the request: its method, what it is for, and a header.
const CASES: &[(&str, &str, Wanted, &str)] = &[
    ("route", "", Wanted::Nothing, ""),
    ("ping-get", "GET", Wanted::Ping, ""),
    ("tag-get", "GET", Wanted::Tag, ""),
    ("tag-head", "HEAD", Wanted::Tag, ""),
    ("manifest-get", "GET", Wanted::Manifest, ""),
    ("blob-head", "HEAD", Wanted::Small, ""),
    ("blob-40k-get", "GET", Wanted::Small, ""),
    ("range-64k-get", "GET", Wanted::Large, "Range: bytes=1000000-1065535\r\n"),
];

/// What a request is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Nothing,
    Ping,
    Tag,
    Manifest,
    Small,
    Large,
}

/// What a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    instructions: u64,
    allocations: u64,
}

fn main() -> ExitCode {
    let args = std::env::args().skip(1).collect::<Vec<_>>();
    if let [flag, case, times] = args.as_slice()
        && flag == "--counted-case"
    {
        run(case, times.parse().expect("a number"));
        return ExitCode::SUCCESS;
    }
    let set = args.iter().any(|arg| arg == "--set");
    let only = args.iter().filter(|arg| !arg.starts_with("--")).collect::<Vec<_>>();
    let cases = CASES.iter().map(|case| case.0).filter(|case| only.is_empty() || only.iter().any(|only| only == case));
    let counted = cases.map(|case| (case, count(case))).collect::<BTreeMap<_, _>>();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/budgets");
    let text = std::fs::read_to_string(&file).expect("the budgets");
    if set {
        std::fs::write(&file, rewritten(&text, &counted)).expect("the budgets can be written");
        return ExitCode::SUCCESS;
    }
    if compare(&budgets(&text), &counted) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what was counted beside its budget; false where one is passed.
#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn compare(budgets: &BTreeMap<String, Cost>, counted: &BTreeMap<&str, Cost>) -> bool {
    println!("{:<16} {:>12} {:>12} {:>12} {:>12}", "case", "instructions", "budget", "allocations", "budget");
    let mut good = true;
    for (case, cost) in counted {
        let budget = budgets.get(*case).copied().unwrap_or(Cost { instructions: 0, allocations: 0 });
        // Allocations are told and not judged: from run to run the count of the same program differs.
        let within = cost.instructions <= budget.instructions * (100 + MARGIN_PERCENT) / 100;
        let verdict = match () {
            () if !within => "  TOO MUCH: see benches/budgets",
            () if cost.instructions < budget.instructions * (100 - MARGIN_PERCENT) / 100 => "  less: a new budget would hold it",
            () => "",
        };
        let Cost { instructions, allocations } = cost;
        println!("{case:<16} {instructions:>12} {:>12} {allocations:>12} {:>12}{verdict}", budget.instructions, budget.allocations);
        good &= within;
    }
    good
}

/// Lines of a name and two numbers; what begins with # is for people.
fn budgets(text: &str) -> BTreeMap<String, Cost> {
    let budget = |line: &str| {
        let mut words = line.split_whitespace();
        let (case, instructions, allocations) = (words.next()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((case.to_owned(), Cost { instructions, allocations }))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(budget).collect()
}

/// The same text with new numbers.
fn rewritten(text: &str, counted: &BTreeMap<&str, Cost>) -> String {
    let mut costs = budgets(text);
    costs.extend(counted.iter().map(|(case, cost)| ((*case).to_owned(), *cost)));
    let mut new = text.lines().filter(|line| line.starts_with('#')).fold(String::new(), |text, line| text + line + "\n");
    for (case, ..) in CASES {
        if let Some(Cost { instructions, allocations }) = costs.get(*case) {
            let _ = writeln!(new, "{case:<16} {instructions:>12} {allocations:>12}");
        }
    }
    new
}

/// What one request of a case costs: what twice as many cost more. For valgrind counts calls also where it collects nothing.
fn count(case: &str) -> Cost {
    let (less, more) = (profile(case, TIMES), profile(case, TIMES * 2));
    let total = |text: &str| text.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok()).expect("a total");
    let times = (if case == "route" { TIMES * ROUTES } else { TIMES }) as u64;
    let instructions = total(&more).saturating_sub(total(&less)) / times;
    assert!(instructions > 0, "{case}: nothing was counted");
    // To the nearest: caches tidy up after themselves now and then.
    Cost { instructions, allocations: (allocations(&more).saturating_sub(allocations(&less)) + times / 2) / times }
}

/// Runs a case under valgrind: its profile.
fn profile(case: &str, times: usize) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guard");
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join(format!("callgrind.{case}.{times}"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*instructions::counted*", "--compress-strings=no"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(std::env::current_exe().expect("this program"))
        .args(["--counted-case", case, &times.to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("valgrind can be started: .ci/install installs it");
    assert!(output.status.success(), "{case}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(&file).expect("what was counted")
}

/// Calls of the C library's allocator in a profile: a line names the function that is called, and the next how often it is.
fn allocations(profile: &str) -> u64 {
    let mut calls = 0;
    let mut counts = false;
    for line in profile.lines() {
        if let Some(callee) = line.strip_prefix("cfn=") {
            counts = ["malloc", "calloc", "realloc", "posix_memalign"].contains(&callee);
        } else if let Some(times) = line.strip_prefix("calls=").filter(|_| counts) {
            calls += times.split(' ').next().and_then(|times| times.parse::<u64>().ok()).unwrap_or(0);
            counts = false;
        }
    }
    calls
}

/// What valgrind watches.
fn run(case: &str, times: usize) {
    let (_, method, wanted, header) = CASES.iter().find(|(name, ..)| *name == case).expect("a case");
    if *wanted == Wanted::Nothing {
        return counted(|| black_box_routes(times * ROUTES));
    }
    let mut place = Place::open();
    let path = match wanted {
        Wanted::Nothing | Wanted::Ping => "/v2/".to_owned(),
        Wanted::Tag => Place::manifest("latest"),
        Wanted::Manifest => Place::manifest(&place.image.manifest_digest),
        Wanted::Small => Place::blob(&place.image.small_digest),
        Wanted::Large => Place::blob(&place.image.large_digest),
    };
    let host = "Host: mirror.example:5000\r\nUser-Agent: containerd/2.1.4\r\nAccept: */*\r\n";
    let request = format!("{method} {path} HTTP/1.1\r\n{host}{header}\r\n");
    let length = place.ask(&request);
    assert!(*wanted != Wanted::Small || *method == "HEAD" || length > SMALL_BYTES, "a blob of {length} bytes");
    place.repeat(&request, length, WARM);
    counted(|| place.repeat(&request, length, times));
}

/// Collection is on while this is on the stack: the name is given to valgrind.
#[inline(never)]
fn counted(work: impl FnOnce()) {
    work();
    // Else the call above would be a jump, and this function over before it.
    black_box(());
}

struct Hub;

impl Known for Hub {
    fn registry(&self, named: &Registry) -> Option<Registry> {
        Some(named.clone())
    }
}

fn black_box_routes(times: usize) {
    let digest = format!("/v2/library/debian/blobs/sha256:{}", "0a".repeat(32));
    for time in 0..times {
        let (path, query) =
            if time % 2 == 0 { (digest.as_str(), Some("ns=docker.io")) } else { ("/v2/library/debian/manifests/latest", None) };
        black_box(route(&Method::GET, black_box(path), query, &Hub)).expect("a route");
    }
}
