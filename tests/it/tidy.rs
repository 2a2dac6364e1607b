//! The architecture, checked like everything else: who may import whom, what only one file may say, how long a file may be,
//! and that every promise in `lib.rs` names a test that exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom: dependencies point one way. The parts of a module count as the module.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("observe", &["oci"]),
    ("route", &["oci", "observe"]),
    ("listen", &[]),
    ("access", &[]),
    ("admin", &["observe"]),
    ("doctor", &["oci", "upstream"]),
    ("cache", &["oci", "observe"]),
    ("upstream", &["oci", "observe"]),
    ("fill", &["oci", "observe", "cache"]),
    ("pull", &["oci", "observe", "cache", "upstream", "fill"]),
    ("reply", &["oci", "observe", "cache", "pull", "route", "listen"]),
    ("handle", &["oci", "observe", "listen", "route", "access", "pull", "reply", "upstream"]),
    ("serve", &["access", "admin", "cache", "fill", "handle", "listen", "observe", "pull", "upstream"]),
    ("config", &["oci", "access", "cache", "listen", "pull", "upstream"]),
];

/// What may be said in these files only.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("sled::", &["cache/index.rs"]),
    ("moka::", &["cache/hot.rs"]),
    ("figment::", &["config"]),
    ("fs::write(", &[]),
    ("File::create", &[]),
    ("OpenOptions::new", &["cache/folder.rs"]),
    ("fs::rename(", &["cache/folder.rs", "cache/blobs.rs", "cache/index.rs", "cache/audit.rs"]),
    (
        "fs::remove_file(",
        &[
            "cache/folder.rs",
            "cache/blobs.rs",
            "cache/repos.rs",
            "cache/index.rs",
            "cache/keep.rs",
            "cache/audit.rs",
            "cache/quarantine.rs",
        ],
    ),
    ("unsafe ", &["listen/unsent.rs"]),
    ("todo!(", &[]),
    ("dbg!(", &[]),
    (".unwrap()", &[]),
    ("println!(", &[]),
];

/// Lines of a file before its tests: what a newcomer reads in one go.
const LINES_MAX: usize = 460;

struct Source {
    /// Below `src/`.
    path: String,
    /// Without the unit tests at its end, and without comments.
    code: String,
    lines: usize,
    has_promise: bool,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let read = |file: PathBuf| {
        let text = fs::read_to_string(&file).unwrap();
        let path = file.strip_prefix(&root).unwrap().display().to_string();
        let story = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let code = story.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        Source { path, lines: story.lines().count(), has_promise: text.starts_with("//!"), code }
    };
    let is_test = |source: &Source| source.path.ends_with("tests.rs") || source.path.contains("/tests/");
    files.into_iter().map(read).filter(|source| !is_test(source)).collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), files);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            files.push(entry.path());
        }
    }
}

/// The module that a file belongs to: `cache/blobs.rs` to `cache`.
fn module(path: &str) -> &str {
    path.split(['/', '.']).next().unwrap()
}

/// The modules that a file imports, in `use crate::{a, b::c}` too.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(group) => {
                let group = group.split(';').next().unwrap_or_default();
                found.extend(group.split(',').map(|part| word(part.trim())));
            }
            None => drop(found.insert(word(rest))),
        }
    }
    found.remove("");
    found
}

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = module(&source.path);
        if matches!(own, "lib" | "main" | "cli") {
            continue;
        }
        let (_, allowed) = MAY_IMPORT.iter().find(|(name, _)| *name == own).unwrap_or_else(|| panic!("{own} has no line in the table"));
        for import in imports(&source.code) {
            if import != own && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{} imports {import}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_table_is_a_tree_and_not_a_knot() {
    let mut done = BTreeSet::new();
    while done.len() < MAY_IMPORT.len() {
        let next = MAY_IMPORT.iter().find(|(name, needs)| !done.contains(name) && needs.iter().all(|need| done.contains(need)));
        let (name, _) = next.unwrap_or_else(|| panic!("a circle among what is left after {done:?}"));
        done.insert(*name);
    }
}

#[test]
fn only_those_say_it_who_may() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (word, files) in ONLY_IN {
            if source.code.contains(word) && !files.iter().any(|file| source.path.starts_with(file)) {
                wrong.push(format!("{} says {word}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_promise_something_and_can_be_read_in_one_go() {
    let mut wrong = Vec::new();
    for source in sources() {
        if !source.has_promise {
            wrong.push(format!("{} does not begin with what it promises", source.path));
        }
        if source.lines > LINES_MAX {
            wrong.push(format!("{} has {} lines before its tests", source.path, source.lines));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    let mut promises = 0;
    for line in map.lines().filter(|line| line.starts_with("//! ")) {
        for name in line.split('`').skip(1).step_by(2).filter_map(|name| name.strip_prefix("it::")) {
            promises += 1;
            let (theme, test) = name.rsplit_once("::").unwrap_or_else(|| panic!("{name} is no test's path"));
            let theme = theme.split("::").next().unwrap();
            let mut files = Vec::new();
            walk(&root.join("tests/it"), &mut files);
            let of_theme = |file: &&PathBuf| {
                let path = file.strip_prefix(root.join("tests/it")).unwrap().display().to_string();
                module(&path) == theme
            };
            let found = files.iter().filter(of_theme).any(|file| fs::read_to_string(file).unwrap().contains(&format!("fn {test}(")));
            assert!(found, "lib.rs names the test {name}, which does not exist");
        }
    }
    assert!(promises >= 9, "every invariant names its test; {promises} do");
}
