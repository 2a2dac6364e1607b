//! Instructions of the hot paths, counted by valgrind's callgrind and held against `benches/budgets`; and, roughly, allocations.
//!
//!     cargo test --bench instructions              fails where a budget is passed
//!     cargo test --bench instructions -- --set     writes what was counted as the new budgets
//!     cargo test --bench instructions -- tag-get   one case; the counts stay in target/guard for `callgrind_annotate`
//!     cargo bench --bench instructions             what the optimised program costs: told and not judged
//!
//! What is judged is the program as it is tested, unoptimised: it is built already, and what it does, as often as it does it, is counted all the
//! more plainly. It costs some seven times as many instructions as the optimised one.
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

/// Whether this is the build that the budgets are for.
const IS_JUDGED: bool = cfg!(debug_assertions);

/// Of a budget, that is not a regression: another C library copies memory in other steps.
const MARGIN_PERCENT: u64 = 5;

/// Requests that are counted, after as many before it is.
const TIMES: usize = 200;

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
    if let [flag, cases @ ..] = args.as_slice()
        && flag == "--counted"
    {
        run(cases);
        return ExitCode::SUCCESS;
    }
    let set = args.iter().any(|arg| arg == "--set");
    let only = args.iter().filter(|arg| !arg.starts_with("--")).collect::<Vec<_>>();
    let cases = CASES.iter().map(|case| case.0).filter(|case| only.is_empty() || only.iter().any(|only| only == case));
    let counted = count(&cases.collect::<Vec<_>>());
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/budgets");
    let text = std::fs::read_to_string(&file).expect("the budgets");
    if set {
        std::fs::write(&file, rewritten(&text, &counted)).expect("the budgets can be written");
        return ExitCode::SUCCESS;
    }
    if compare(&budgets(&text), &counted) || !IS_JUDGED {
        return ExitCode::SUCCESS;
    }
    complain();
    ExitCode::FAILURE
}

#[expect(clippy::print_stderr, reason = "that is where it is looked for")]
fn complain() {
    eprintln!(
        "\nerror: a request costs over {MARGIN_PERCENT} % more instructions than its budget allows, see above. What it does more than before is in the \
         profile that lies in target/guard:\n\n    callgrind_annotate target/guard/callgrind.CASE | head -60\n\nWhere that is worth \
         its price, new budgets are set by:\n\n    cargo test --bench instructions -- --set\n"
    );
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
            () if !IS_JUDGED => "  (of the unoptimised)",
            () if !within => "  TOO MUCH",
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

/// What one request of each case costs. All of them in one process, under valgrind: that one is slow to start.
fn count(cases: &[&'static str]) -> BTreeMap<&'static str, Cost> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guard");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--compress-strings=no"])
        .args(["--toggle-collect=*instructions::counted*", "--dump-before=*instructions::begin_anew*"])
        .arg(format!("--callgrind-out-file={}", folder.join("callgrind").display()))
        .arg(std::env::current_exe().expect("this program"))
        .arg("--counted")
        .args(cases)
        .stdin(Stdio::null())
        .output()
        .expect("valgrind can be started: .ci/install installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cost = |(n, case): (usize, &&'static str)| {
        // What was counted from one beginning to the next: each case begins twice, and is not warm the first time.
        let profile = folder.join(format!("callgrind.{case}"));
        std::fs::rename(folder.join(format!("callgrind.{}", 2 * n + 3)), &profile).expect("what was counted");
        (*case, Cost::of(case, &std::fs::read_to_string(&profile).expect("what was counted")))
    };
    cases.iter().enumerate().map(cost).collect()
}

impl Cost {
    fn of(case: &str, profile: &str) -> Self {
        let times = (if case == "route" { TIMES * ROUTES } else { TIMES }) as u64;
        let total = profile.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse::<u64>().ok());
        let instructions = total.expect("a total") / times;
        assert!(instructions > 0, "{case}: nothing was counted");
        // To the nearest: caches tidy up after themselves now and then.
        Self { instructions, allocations: (allocations(profile) + times / 2) / times }
    }
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
fn run(cases: &[String]) {
    let mut place = cases.iter().any(|case| case != "route").then(Place::open);
    for case in cases {
        let (_, method, wanted, header) = CASES.iter().find(|(name, ..)| name == case).expect("a case");
        let Some(place) = place.as_mut().filter(|_| *wanted != Wanted::Nothing) else {
            for _ in 0..2 {
                begin_anew();
                counted(|| black_box_routes(TIMES * ROUTES));
            }
            continue;
        };
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
        // Warm, with tables as large as they get, only the second time.
        for _ in 0..2 {
            begin_anew();
            counted(|| place.repeat(&request, length, TIMES));
        }
    }
    // The last ends where another begins.
    begin_anew();
}

/// What was counted before this is written down, and forgotten: this name is given to valgrind too.
#[inline(never)]
fn begin_anew() {
    black_box(());
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
