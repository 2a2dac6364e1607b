//! Ranges of a blob (RFC 9110 section 14), answered rightly or in the ways that real servers get them wrong.

use super::answer::Answer;
use super::content::Content;
use super::log::Request;
use super::quirks::{MultiRange, Quirks, Ranges};

const BOUNDARY: &str = "3d6b6a416f9b5";

/// The part of `content` that the request asks for.
pub(super) fn answer(quirks: &Quirks, request: &Request, content: &Content, etag: &str) -> Answer {
    let len = content.len();
    let whole = || Answer::new(200).content(content.clone());
    let answer = match wanted(request, len, etag) {
        _ if quirks.ranges == Ranges::Refused => unsatisfiable(len),
        _ if quirks.ranges == Ranges::Ignored => whole(),
        Wanted::Whole => whole(),
        Wanted::Nothing => unsatisfiable(len),
        Wanted::Parts(parts) if parts.len() == 1 => one(quirks.ranges, content, parts[0]),
        Wanted::Parts(parts) => match quirks.multi {
            MultiRange::Multipart => multipart(content, &parts),
            MultiRange::First => one(quirks.ranges, content, parts[0]),
            MultiRange::Whole => whole(),
            MultiRange::Refused => Answer::error_of(400),
        },
    };
    let typed = if answer.has("Content-Type") { answer } else { answer.header("Content-Type", "application/octet-stream") };
    typed.header("Accept-Ranges", "bytes").header("ETag", etag)
}

/// First and last byte.
type Span = (u64, u64);

enum Wanted {
    Whole,
    Parts(Vec<Span>),
    Nothing,
}

fn wanted(request: &Request, len: u64, etag: &str) -> Wanted {
    let Some(specs) = request.header("range").and_then(|range| range.strip_prefix("bytes=")) else { return Wanted::Whole };
    if request.header("if-range").is_some_and(|condition| condition != etag) {
        return Wanted::Whole;
    }
    let mut parts = Vec::new();
    for spec in specs.split(',') {
        let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
        let span = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) => (first, last.min(len.saturating_sub(1))),
            (Ok(first), Err(_)) if last.is_empty() => (first, len.saturating_sub(1)),
            (Err(_), Ok(suffix)) if first.is_empty() && suffix > 0 => (len.saturating_sub(suffix), len.saturating_sub(1)),
            _ => return Wanted::Whole,
        };
        if span.0 <= span.1 && span.0 < len {
            parts.push(span);
        }
    }
    if parts.is_empty() { Wanted::Nothing } else { Wanted::Parts(parts) }
}

fn unsatisfiable(len: u64) -> Answer {
    Answer::error_of(416).header("Content-Range", format!("bytes */{len}"))
}

fn one(ranges: Ranges, content: &Content, (first, last): Span) -> Answer {
    let len = content.len();
    let (first, last) = match ranges {
        Ranges::Earlier(bytes) => (first.saturating_sub(bytes), last),
        Ranges::Shorter(bytes) => (first, last.min(first + bytes - 1)),
        Ranges::Right | Ranges::Ignored | Ranges::WrongContentRange | Ranges::Refused => (first, last),
    };
    let said = if ranges == Ranges::WrongContentRange { first + 1 } else { first };
    let part = Answer::new(206).content(content.slice(first, last - first + 1));
    part.header("Content-Range", format!("bytes {said}-{last}/{len}"))
}

fn multipart(content: &Content, parts: &[Span]) -> Answer {
    let mut pieces = Vec::new();
    for &(first, last) in parts {
        pieces.push(Content::bytes(format!(
            "\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n",
            content.len()
        )));
        pieces.push(content.slice(first, last - first + 1));
    }
    pieces.push(Content::bytes(format!("\r\n--{BOUNDARY}--\r\n")));
    Answer::new(206).header("Content-Type", format!("multipart/byteranges; boundary={BOUNDARY}")).content(Content::joined(pieces))
}
