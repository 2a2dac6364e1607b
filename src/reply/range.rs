//! `Range` and `If-Range` against a size: which bytes does the client want? Pure (RFC 9110 section 14).

use std::ops::Range;

/// Ranges that one request may have: what the container-image clients send at the most.
const RANGES_MAX: usize = 1_024;

/// Which part of a content is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All of it: no range, or one that is to be ignored.
    Whole,
    /// These bytes.
    One(Range<u64>),
    /// These parts, in this order.
    Many(Vec<Range<u64>>),
    /// Nothing of it: 416.
    Nothing,
}

/// Reads a `Range` header. What is not a range of bytes is ignored, as the RFC says; `500-0`, which it also calls invalid,
/// is answered with 416, as the OCI conformance suite wants it. Parts that together are longer than the whole are ignored:
/// nobody who wants bytes asks for them twice.
pub fn parse(header: Option<&str>, size: u64) -> Wanted {
    let Some((unit, set)) = header.and_then(|header| header.trim().split_once('=')) else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    // As nearly all are.
    if !set.contains(',') && !set.trim().is_empty() {
        return match one(set.trim(), size) {
            Spec::Satisfiable(range) => Wanted::One(range),
            Spec::Unsatisfiable => Wanted::Nothing,
            Spec::Malformed => Wanted::Whole,
        };
    }
    let mut ranges = Vec::new();
    let mut any = false;
    for (n, spec) in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()).enumerate() {
        if n >= RANGES_MAX {
            return Wanted::Whole;
        }
        any = true;
        match one(spec, size) {
            Spec::Satisfiable(range) => ranges.push(range),
            Spec::Unsatisfiable => {}
            Spec::Malformed => return Wanted::Whole,
        }
    }
    let total: u128 = ranges.iter().map(|range| u128::from(range.end - range.start)).sum();
    match ranges.len() {
        0 if any => Wanted::Nothing,
        0 => Wanted::Whole,
        1 => Wanted::One(ranges.remove(0)),
        _ if total > u128::from(size) => Wanted::Whole,
        _ => Wanted::Many(ranges),
    }
}

/// Where the one range of a `Range` header begins whatever the size is; nothing where that depends on it, where there are
/// several, and where the header is to be ignored.
pub(super) fn first_byte(header: &str) -> Option<u64> {
    let (unit, spec) = header.trim().split_once('=')?;
    let (first, last) = spec.split_once('-').filter(|_| unit.trim().eq_ignore_ascii_case("bytes"))?;
    match (number(first), number(last)) {
        (Number::Is(first), Number::Absent | Number::Is(_)) => Some(first),
        _ => None,
    }
}

enum Spec {
    Satisfiable(Range<u64>),
    Unsatisfiable,
    Malformed,
}

fn one(spec: &str, size: u64) -> Spec {
    let Some((first, last)) = spec.split_once('-') else { return Spec::Malformed };
    let range = match (number(first), number(last)) {
        // The last so many bytes.
        (Number::Absent, Number::Is(suffix)) => size.saturating_sub(suffix)..size,
        (Number::Is(first), Number::Absent) => first..size,
        (Number::Is(first), Number::Is(last)) => first..last.saturating_add(1).min(size),
        _ => return Spec::Malformed,
    };
    if range.is_empty() { Spec::Unsatisfiable } else { Spec::Satisfiable(range) }
}

enum Number {
    Absent,
    Is(u64),
    Bad,
}

/// A number of digits of any length: what does not fit is larger than every blob.
fn number(text: &str) -> Number {
    let text = text.trim();
    if text.is_empty() {
        return Number::Absent;
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Number::Bad;
    }
    Number::Is(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_byte_is_that_of_the_range_that_will_be_served() {
        for (header, first) in [("bytes=7-", Some(7)), (" BYTES = 7 - 9 ", Some(7)), ("bytes=9-7", Some(9))] {
            assert_eq!(super::first_byte(header), first, "{header}");
        }
        for header in ["bytes=-7", "bytes=7-9,1-2", "bytes=7-9,", "bytes=7-x", "bytes=x-", "lines=7-9", "bytes", "bytes=", ""] {
            assert_eq!(super::first_byte(header), None, "{header}");
        }
    }

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_cases_of_the_conformance_suite() {
        for (header, expected) in [
            ("bytes=500-1499", Wanted::One(500..1500)),
            ("bytes=500-", Wanted::One(500..2048)),
            ("bytes=-500", Wanted::One(1548..2048)),
            ("bytes=2000-5000", Wanted::One(2000..2048)),
            ("bytes=0-", Wanted::One(0..2048)),
            ("bytes=500-0", Wanted::Nothing),
            ("bytes=5000-10000", Wanted::Nothing),
        ] {
            assert_eq!(parse(Some(header), 2048), expected, "{header}");
        }
    }

    #[test]
    fn odd_headers_are_ignored_or_clamped() {
        for (header, expected) in [
            ("bytes=0-0", Wanted::One(0..1)),
            ("bytes=-1", Wanted::One(9..10)),
            ("bytes=-99", Wanted::One(0..10)),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=abc", Wanted::Whole),
            ("bytes=", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=1-x", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=--1", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
            ("bytes", Wanted::Whole),
            ("bytes=0-18446744073709551616", Wanted::One(0..10)),
            ("bytes=18446744073709551616-", Wanted::Nothing),
            ("bytes=1-2, 4-5,", Wanted::Many(vec![1..3, 4..6])),
            ("bytes=4-5,1-2", Wanted::Many(vec![4..6, 1..3])),
            ("bytes=1-2,99-", Wanted::One(1..3)),
            ("bytes=0-,0-", Wanted::Whole),
        ] {
            assert_eq!(parse(Some(header), 10), expected, "{header}");
        }
        assert_eq!(parse(None, 10), Wanted::Whole);
        assert_eq!(parse(Some("bytes=0-0"), 0), Wanted::Nothing);
        assert_eq!(parse(Some("bytes=0-,0-"), u64::MAX), Wanted::Whole);
        let many = format!("bytes={}", "0-0,".repeat(RANGES_MAX + 1));
        assert_eq!(parse(Some(&many), 10_000), Wanted::Whole);
    }

    proptest! {
        #[test]
        fn a_range_stays_within_the_content(header in "bytes=[0-9,-]{0,40}", size in 0_u64..1000) {
            let within = |range: &Range<u64>| range.start < range.end && range.end <= size;
            match parse(Some(&header), size) {
                Wanted::One(range) => prop_assert!(within(&range)),
                Wanted::Many(ranges) => prop_assert!(ranges.len() > 1 && ranges.iter().all(within)),
                Wanted::Whole | Wanted::Nothing => {}
            }
        }
    }
}
