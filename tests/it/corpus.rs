//! What the fuzzer starts from, replayed: every file under `fuzz/corpus/` through the assertions of its target. So an input
//! that once broke a parser, put there, stays a test.

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, panic};

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
