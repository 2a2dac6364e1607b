//! What a mistyped word was probably meant to be.

/// The known word that is nearest, if one is near enough to be worth a question.
pub(super) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    // One slip in a short word, one more for every four letters.
    let allowed = 1 + word.len() / 4;
    let ranked = known.into_iter().map(|candidate| (rank(&word, candidate), candidate));
    ranked.min().filter(|(rank, _)| *rank <= allowed).map(|(_, candidate)| candidate)
}

/// How far apart two words are; a word that was cut short, or goes on, is as near as one slip.
fn rank(word: &str, candidate: &str) -> usize {
    /// Two letters begin too many words.
    const STEM_BYTES_MIN: usize = 3;
    let stem = word.len().min(candidate.len());
    if stem >= STEM_BYTES_MIN && (word.starts_with(candidate) || candidate.starts_with(word)) {
        return 1;
    }
    distance(word, candidate)
}

/// Levenshtein's distance: how many letters to put in, leave out or replace.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_a_stranger_is_not() {
        let keys = ["dir", "max_size", "tag_ttl", "max_stale", "memory", "offline", "password_file"];
        for (typed, meant) in [
            ("max_sise", Some("max_size")),
            ("maxsize", Some("max_size")),
            ("max-size", Some("max_size")),
            ("MAX_SIZE", Some("max_size")),
            ("tagttl", Some("tag_ttl")),
            ("password", Some("password_file")),
            ("directory", Some("dir")),
            ("proxy", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(closest(typed, keys), meant, "{typed}");
        }
    }

    #[test]
    fn distance_counts_slips() {
        for (a, b, slips) in [("", "", 0), ("abc", "", 3), ("", "abc", 3), ("kitten", "sitting", 3), ("é", "e", 1)] {
            assert_eq!(distance(a, b), slips, "{a} {b}");
        }
    }
}
