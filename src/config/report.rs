//! What the operator reads: the mistakes, or the configuration in effect.
//!
//! Owns the two texts. Promises one line a mistake and one line a value, whatever characters the operator typed.

use std::fmt::{self, Write as _};

/// Where a value stands that nobody wrote.
pub(super) const DEFAULT: &str = "default";

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was written: a file, `environment NAME`, a flag, or `default`.
    pub origin: String,
    /// The key, from the top; empty if it is no key's.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, key, what } = self;
        if key.is_empty() { write!(f, "{origin}: {what}") } else { write!(f, "{origin}: {key}: {what}") }
    }
}

/// Everything that is wrong. Displayed as one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|mistake| writeln!(f, "{mistake}"))
    }
}

/// One value in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// The path of its table; empty at the top.
    pub(super) section: String,
    pub(super) key: String,
    /// The value as TOML, or `***` for a secret.
    pub(super) value: String,
    pub(super) origin: String,
}

/// The lines as a file would hold them, each with its origin behind it.
pub(super) fn effective(title: &str, lines: &[Line]) -> String {
    /// Where the origins begin, so that they can be read down: most lines are shorter.
    const ORIGIN_COLUMN: usize = 56;
    let mut text = format!("# {title}\n");
    let mut section = "";
    for line in lines {
        if line.section != section {
            section = &line.section;
            let _ = writeln!(text, "\n[{section}]"); // a String takes everything
        }
        let value = format!("{} = {}", line.key, line.value);
        let _ = writeln!(text, "{value:<ORIGIN_COLUMN$} # {}", line.origin);
    }
    text
}

/// A TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

/// A key as TOML spells it: bare if it can be.
pub(super) fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if bare { name.to_owned() } else { quoted(name) }
}
