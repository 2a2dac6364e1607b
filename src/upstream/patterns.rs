//! Which repositories of an upstream are served at all: `allow` and `deny`.
//!
//! Owns [`Pattern`] and [`Repositories`]. Pure. Promises that a match takes no longer than the product of the two lengths,
//! whatever the pattern.

use crate::oci::Name;

/// The longest pattern, in bytes: as long as a repository's name may be.
const BYTES_MAX: usize = 255;

/// A repository, or many: `*` stands for any characters within a segment of the path, `**` for any at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Byte(u8),
    Within,
    Across,
}

/// `allow` and `deny` of an upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repositories {
    /// What may be pulled; nothing is everything.
    pub allow: Vec<Pattern>,
    /// What may not, also where it is allowed.
    pub deny: Vec<Pattern>,
}

impl Pattern {
    /// Reads one; what it says is what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| Err(format!("{text:?} {what}; write for example library/*, team/** or org/app"));
        let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'*' | b'/');
        if text.is_empty() || text.len() > BYTES_MAX || !text.bytes().all(is_part) {
            return wrong("is not a pattern of repositories, which are of lower case letters, digits, ., _, - and /");
        }
        if text.starts_with('/') || text.ends_with('/') || text.contains("//") || text.contains("***") {
            return wrong("matches no repository");
        }
        let mut parts = Vec::with_capacity(text.len());
        let mut bytes = text.bytes().peekable();
        while let Some(byte) = bytes.next() {
            parts.push(match byte {
                b'*' if bytes.next_if_eq(&b'*').is_some() => Part::Across,
                b'*' => Part::Within,
                byte => Part::Byte(byte),
            });
        }
        Ok(Self { parts })
    }

    fn matches(&self, name: &str) -> bool {
        // Which lengths of the pattern's beginning match what was read of the name.
        let mut open = vec![false; self.parts.len() + 1];
        open[0] = true;
        self.pass_stars(&mut open);
        for byte in name.bytes() {
            let mut next = vec![false; open.len()];
            for (at, part) in self.parts.iter().enumerate().filter(|(at, _)| open[*at]) {
                match part {
                    Part::Byte(wanted) => next[at + 1] |= *wanted == byte,
                    Part::Within => next[at] |= byte != b'/',
                    Part::Across => next[at] = true,
                }
            }
            self.pass_stars(&mut next);
            open = next;
        }
        open[self.parts.len()]
    }

    /// A star may stand for nothing.
    fn pass_stars(&self, open: &mut [bool]) {
        for (at, part) in self.parts.iter().enumerate() {
            if open[at] && !matches!(part, Part::Byte(_)) {
                open[at + 1] = true;
            }
        }
    }
}

impl Repositories {
    /// Whether a repository is served. `deny` wins.
    pub fn admits(&self, name: &Name) -> bool {
        let any = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(name.as_str()));
        (self.allow.is_empty() || any(&self.allow)) && !any(&self.deny)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect(text)
    }

    #[test]
    fn stars_stay_within_a_segment_and_two_do_not() {
        for (text, name, expected) in [
            ("library/debian", "library/debian", true),
            ("library/debian", "library/debian2", false),
            ("library/*", "library/debian", true),
            ("library/*", "library/a/b", false),
            ("library/*", "xlibrary/a", false),
            ("library/**", "library/a/b", true),
            ("library/**", "library", false),
            ("**", "a/b/c", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("**/secret", "a/b/secret", true),
            ("**/secret", "secret", false),
            ("**secret", "secret", true),
            ("team-*/app-*", "team-a/app-1", true),
            ("team-*/app-*", "team-a/x/app-1", false),
            ("a*b*c", "aXbXc", true),
            ("a*b*c", "abb", false),
        ] {
            assert_eq!(pattern(text).matches(name), expected, "{text} {name}");
        }
        for bad in ["", "/a", "a/", "a//b", "UPPER", "a b", "a***b", "a?", "docker.io/library/[a]", &"a".repeat(256)] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
        let long = pattern(&"a*".repeat(127));
        assert!(!long.matches(&"a".repeat(100)), "and it ends soon");
    }

    #[test]
    fn deny_wins_and_no_list_is_everything() {
        let admits = |allow: &[&str], deny: &[&str], name: &str| {
            let of = |texts: &[&str]| texts.iter().map(|text| pattern(text)).collect();
            Repositories { allow: of(allow), deny: of(deny) }.admits(&Name::parse(name).expect("a name"))
        };
        assert!(admits(&[], &[], "a/b"));
        assert!(admits(&["a/*"], &[], "a/b") && !admits(&["a/*"], &[], "b/b"));
        assert!(!admits(&["a/*"], &["a/b"], "a/b") && admits(&["a/*"], &["a/b"], "a/c"));
        assert!(!admits(&[], &["**"], "a"));
    }

    proptest::proptest! {
        #[test]
        fn a_name_matches_itself_and_two_stars(name in "[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,3}", text in ".{0,40}") {
            proptest::prop_assert!(pattern(&name).matches(&name) && pattern("**").matches(&name));
            if let Ok(pattern) = Pattern::parse(&text) {
                let _ = pattern.matches(&name);
            }
        }
    }
}
