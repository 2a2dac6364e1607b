//! What the fuzzer starts from, replayed: every file under `fuzz/corpus/` through the assertions of its target. So an input
//! that once broke a parser, put there, stays a test.
//!
//! And a short fuzzing of its own on each change, without a fuzzer's tools: the same inputs, changed at random. Which changes
//! follows from a number, so that whatever is found is found again; `fuzz/run` looks longer, and sees what it has reached.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, panic, thread};

use fastrand::Rng;

#[path = "../../fuzz/src/lib.rs"]
mod properties;

/// The inputs of one target, by name.
fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect()
}

#[test]
fn every_input_keeps_the_promises_of_its_target() {
    let mut broken = Vec::new();
    for (target, holds) in properties::TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() >= 10, "{target} has {} inputs", inputs.len());
        let breaks = |input: &[u8]| panic::catch_unwind(|| holds(input)).is_err();
        broken.extend(inputs.into_iter().filter(|(_, input)| breaks(input)).map(|(path, _)| path));
    }
    assert!(broken.is_empty(), "the reasons stand above: {broken:#?}");
}

#[test]
fn every_target_is_replayed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let replayed: BTreeSet<String> = properties::TARGETS.map(|(name, _)| name.to_owned()).into();
    assert_eq!(names("fuzz_targets"), replayed);
    assert_eq!(names("corpus"), replayed);
}

/// Changed inputs of each target.
const CHANGED: u64 = 30_000;

/// No target takes longer, on however slow a machine: what is left of its inputs is then not tried.
const TIME_MAX: Duration = Duration::from_secs(8);

/// The largest changed input, in bytes.
const CHANGED_BYTES_MAX: usize = 4 << 10;

/// What parsers stumble over.
const STUMBLES: &[&[u8]] = &[
    b"%2f",
    b"%2F",
    b"%00",
    b"%0d%0a",
    b"%25",
    b"%",
    b"..",
    b"../",
    b"//",
    b"\\",
    b"\\\"",
    b"\"",
    b"\r\n",
    b"\n",
    b"\0",
    b"\t",
    b" ",
    b",",
    b";",
    b"=",
    b"&",
    b"?",
    b"#",
    b"@",
    b":",
    b"[::1]",
    b"127.0.0.1",
    b"2130706433",
    b"http://",
    b"https://",
    b"ns=",
    b"n=",
    b"last=",
    b"sha256:",
    b"sha512:",
    b"bytes=",
    b"bytes ",
    b"-",
    b"*",
    b"0",
    b"-1",
    b"18446744073709551615",
    b"18446744073709551616",
    b"99999999999999999999999999",
    b"1e309",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"true",
    b"\"mediaType\":",
    b"\"manifests\":[]",
    b"\"layers\":[]",
    b"realm=",
    b"service=",
    b"Bearer ",
    b"Basic ",
    b"rel=next",
    b"<",
    b">",
    b"\xff",
    b"\xc3\xa9",
    b"\xe2\x80\xae",
    b"\xef\xbb\xbf",
    b"/v2/",
    b"/manifests/",
    b"/blobs/",
    b"/tags/list",
    b"/referrers/",
    b"_",
    b"__",
    b"~",
    b"$",
    b"'",
    b"\"\"\"",
    b"[server]",
    b"GiB",
    b"d",
];

/// An input, changed in a few places as a fuzzer changes it.
fn changed(rng: &mut Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = inputs[rng.usize(..inputs.len())].clone();
    for _ in 0..=rng.usize(..6) {
        let at = rng.usize(..=bytes.len());
        let to = (at + rng.usize(..=(bytes.len() - at).min(64))).min(bytes.len());
        match rng.u8(..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..to)),
            3 => bytes.truncate(at),
            4 => {
                let again = bytes[at..to].repeat(1 + rng.usize(..8));
                drop(bytes.splice(at..at, again));
            }
            5 => {
                let other = &inputs[rng.usize(..inputs.len())];
                let from = rng.usize(..=other.len());
                let part = other[from..(from + rng.usize(..=64)).min(other.len())].to_vec();
                drop(bytes.splice(at..to, part));
            }
            _ => drop(bytes.splice(at..at, STUMBLES[rng.usize(..STUMBLES.len())].to_vec())),
        }
    }
    bytes.truncate(CHANGED_BYTES_MAX);
    bytes
}

/// Tries changed inputs; how many, and the first that breaks a promise.
fn fuzz(target: &str, holds: fn(&[u8])) -> (u64, Option<Vec<u8>>) {
    let mut inputs = inputs(target);
    // A folder is listed in no order.
    inputs.sort();
    let inputs: Vec<_> = inputs.into_iter().map(|(_, input)| input).collect();
    let mut rng = Rng::with_seed(target.bytes().map(u64::from).sum());
    let began = Instant::now();
    for tried in 0..CHANGED {
        if began.elapsed() > TIME_MAX {
            return (tried, None);
        }
        let input = changed(&mut rng, &inputs);
        if panic::catch_unwind(|| holds(&input)).is_err() {
            return (tried, Some(input));
        }
    }
    (CHANGED, None)
}

#[test]
fn inputs_that_are_changed_at_random_keep_the_promises_too() {
    let ended: Vec<_> = thread::scope(|scope| {
        let threads = properties::TARGETS.map(|(target, holds)| (target, scope.spawn(move || fuzz(target, holds))));
        threads.into_iter().map(|(target, thread)| (target, thread.join().unwrap())).collect()
    });
    for (target, (tried, found)) in ended {
        println!("{target}: {tried} changed inputs");
        assert!(tried > 0 || found.is_some(), "{target}: not one");
        assert!(found.is_none(), "put this under fuzz/corpus/{target}/: b\"{}\"", found.unwrap_or_default().escape_ascii());
    }
}

#[test]
fn a_broken_promise_is_found() {
    let breaks = |input: &[u8]| assert!(!input.windows(2).any(|two| two == b"%%"), "it was put there on purpose");
    assert!(fuzz("route", breaks).1.is_some());
}
