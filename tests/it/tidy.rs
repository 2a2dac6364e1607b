//! The architecture, checked like everything else: who may import whom, what only one file may say, how long a file may be,
//! and that every promise in `lib.rs` names a test that exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may import whom: dependencies point one way. The parts of a module count as the module.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("version", &[]),
    ("log", &[]),
    ("mapping", &[]),
    ("observe", &["oci", "log"]),
    ("route", &["oci", "observe"]),
    ("listen", &["mapping"]),
    ("access", &[]),
    ("admin", &["observe"]),
    ("doctor", &["oci", "upstream"]),
    ("cache", &["oci", "observe", "mapping"]),
    ("upstream", &["oci", "observe", "version"]),
    ("fill", &["oci", "observe", "cache"]),
    ("pull", &["oci", "observe", "cache", "upstream", "fill"]),
    ("reply", &["oci", "observe", "cache", "pull", "route", "listen", "mapping"]),
    ("handle", &["oci", "observe", "listen", "route", "access", "pull", "reply", "upstream"]),
    ("serve", &["access", "admin", "cache", "fill", "handle", "listen", "observe", "pull", "upstream", "version"]),
    ("config", &["oci", "access", "cache", "listen", "pull", "upstream"]),
];

/// What may be said in these files only.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("sled::", &["cache/index.rs"]),
    ("crossbeam_epoch::", &["cache/index.rs"]),
    ("moka::", &["cache/hot.rs"]),
    ("figment::", &["config"]),
    ("fs::write(", &[]),
    ("File::create", &[]),
    ("OpenOptions::new", &["cache/folder.rs"]),
    ("fs::rename(", &["cache/folder.rs", "cache/blobs.rs", "cache/index/leftover.rs", "cache/audit.rs"]),
    (
        "fs::remove_file(",
        &[
            "cache/folder.rs",
            "cache/blobs.rs",
            "cache/repos.rs",
            "cache/index/leftover.rs",
            "cache/keep.rs",
            "cache/audit.rs",
            "cache/quarantine.rs",
        ],
    ),
    ("unsafe ", &["listen/unsent.rs", "cache/writeback.rs", "mapping.rs"]),
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

/// Licences that may be asked of whoever ships the program: permissive ones, compatible with Apache-2.0. As in `deny.toml`.
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-3-Clause",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether a licence expression can be met by what is allowed. `MIT/Apache-2.0` is an old way to say OR.
fn may_be_used(expression: &str) -> bool {
    let words = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "-WITH-");
    let words = words.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut at = 0;
    let met = any_of(&words, &mut at);
    met && at == words.len()
}

fn any_of(words: &[String], at: &mut usize) -> bool {
    let mut met = all_of(words, at);
    while words.get(*at).is_some_and(|word| word == "OR") {
        *at += 1;
        met |= all_of(words, at);
    }
    met
}

fn all_of(words: &[String], at: &mut usize) -> bool {
    let mut met = one(words, at);
    while words.get(*at).is_some_and(|word| word == "AND") {
        *at += 1;
        met &= one(words, at);
    }
    met
}

fn one(words: &[String], at: &mut usize) -> bool {
    let word = words.get(*at).map(String::as_str).unwrap_or_default();
    *at += 1;
    if word == "(" {
        let met = any_of(words, at);
        *at += 1;
        return met;
    }
    LICENCES.contains(&word.replace("-WITH-", " WITH ").as_str())
}

#[test]
fn licence_expressions_are_understood() {
    for good in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-3.0) AND ISC", "Apache-2.0 WITH LLVM-exception OR X"] {
        assert!(may_be_used(good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "MIT AND (GPL-3.0 OR X)", "MIT)", "MIT ISC", "AND"] {
        assert!(!may_be_used(bad), "{bad}");
    }
}

#[test]
fn dependencies_come_from_one_registry_under_permissive_licences() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for lock in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let text = fs::read_to_string(root.join(lock)).unwrap();
        let sources = text.lines().filter_map(|line| line.strip_prefix("source = ")).collect::<BTreeSet<_>>();
        assert!(sources.len() == 1 && sources.iter().all(|source| source.starts_with("\"registry+")), "{lock}: {sources:?}");
    }
    let deny = fs::read_to_string(root.join("deny.toml")).unwrap();
    for licence in LICENCES {
        assert!(deny.contains(&format!("\"{licence}\"")), "deny.toml does not name {licence}");
    }
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let wrong = packages.iter().filter(|package| !package["license"].as_str().is_some_and(may_be_used));
    let wrong = wrong.map(|package| format!("{} {}", package["name"], package["license"])).collect::<Vec<_>>();
    assert!(packages.len() > 50 && wrong.is_empty(), "{wrong:#?}");
}
