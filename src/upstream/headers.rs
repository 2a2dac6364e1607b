//! The header values that registries answer with, each read by one pure function.
//!
//! Knows no connection and no clock. A value that is not as its specification says is nothing, never a guess.
//! Public for the fuzzer, which reaches it as a stranger does.

use std::time::Duration;

use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, DATE, HeaderMap, LINK, RETRY_AFTER};
use url::Url;

use super::quota::Said;
use crate::oci::Digest;

/// The longest name of whom pulls are counted of, in bytes: an IPv6 address has 39, an UUID 36.
const SOURCE_BYTES_MAX: usize = 128;

/// What a `Content-Range` says of a 206 (RFC 9110 section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// The first byte that follows.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The size of the whole, where the server knows it.
    pub total: Option<u64>,
}

impl ContentRange {
    /// `bytes 5-9/10` or `bytes 5-9/*`.
    pub fn parse(text: &str) -> Option<Self> {
        let (unit, range) = text.trim().split_once(' ')?;
        let (range, total) = range.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let total = if total == "*" { None } else { Some(number(total)?) };
        let range = Self { first: number(first)?, last: number(last)?, total };
        let fits = range.first <= range.last && range.total.is_none_or(|total| range.last < total);
        (unit.eq_ignore_ascii_case("bytes") && fits).then_some(range)
    }
}

/// The range that a 206 says its body is: one, and as long as the body where that has a length.
pub(super) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let mut ranges = headers.get_all(CONTENT_RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return None };
    let range = range.to_str().ok().and_then(ContentRange::parse)?;
    content_length(headers).is_none_or(|length| length == range.last - range.first + 1).then_some(range)
}

/// Digits and nothing else: `u64::parse` alone would take a plus.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The announced length of the body, also of the body that a HEAD has not.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    number(headers.get(CONTENT_LENGTH)?.to_str().ok()?)
}

/// `Docker-Content-Digest`, where there is one. Two, or one that is no digest, is an error: what follows it is unclear.
pub(super) fn content_digest(headers: &HeaderMap) -> Result<Option<Digest>, ()> {
    let mut values = headers.get_all("docker-content-digest").iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().ok().and_then(|text| Digest::parse(text.trim()).ok()).map(Some).ok_or(()),
        (Some(_), Some(_)) => Err(()),
    }
}

/// Whether the body is a page for people, as firewalls and captive portals answer with: no registry does.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let media_type = headers.get(hyper::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    media_type.trim_start().to_ascii_lowercase().starts_with("text/html")
}

/// Whether the body is encoded in a way that was not asked for.
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    let plain = |value: &str| value.is_empty() || value.eq_ignore_ascii_case("identity");
    headers.get_all("content-encoding").iter().any(|value| !value.to_str().is_ok_and(|text| plain(text.trim())))
}

/// What is said of the pulls that are left: `ratelimit-remaining: 85;w=21600` beside `ratelimit-limit: 100;w=21600`, or the
/// same with `x-` before it (Docker Hub). A limit alone, or one that is less than what is left of it, says nothing.
pub(super) fn ratelimit(headers: &HeaderMap) -> Option<Said> {
    let read = |name: &str| {
        let value = headers.get(format!("ratelimit-{name}")).or_else(|| headers.get(format!("x-ratelimit-{name}")))?;
        let mut parts = value.to_str().ok()?.split(';').map(str::trim);
        let count = parts.next().filter(|text| !text.is_empty()).and_then(number)?;
        let window = parts.find_map(|part| part.strip_prefix("w=").and_then(number)).map(Duration::from_secs);
        Some((count, window))
    };
    let (remaining, window) = read("remaining")?;
    let limit = read("limit").filter(|&(limit, _)| limit >= remaining);
    Some(Said { limit: limit.map(|(limit, _)| limit), remaining, window: window.or(limit.and_then(|(_, window)| window)) })
}

/// Whom the pulls are counted of: an address or an account, for the log alone.
pub(super) fn ratelimit_source(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("docker-ratelimit-source")?.to_str().ok()?.trim();
    let is_name = !text.is_empty() && text.len() <= SOURCE_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_name.then_some(text)
}

/// `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3). A date is held against the `Date` of the same answer, so
/// that a wrong clock on this side means nothing.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let then = http_date(text)?;
    let now = http_date(headers.get(DATE)?.to_str().ok()?.trim())?;
    Some(Duration::from_secs(then.saturating_sub(now)))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the only form that is still generated (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = number(words.next()?)?;
    let month = words.next()?;
    let month = MONTHS.iter().zip(1_u64..).find(|(name, _)| **name == month)?.1;
    let year = number(words.next()?).filter(|year| (1970..=9999).contains(year))?;
    let mut time = words.next()?.split(':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    if words.next() != Some("GMT") || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1 March of year 0: a year that begins in March has its leap day last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// The query of the next page: `Link: </v2/x/tags/list?n=9&last=z>; rel="next"`, relative or absolute, of any host
/// (distribution-spec 1.1 "Listing Tags"). The host is not looked at: the query is asked of the same endpoint again.
pub fn next_page(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).find_map(|line| {
        let target = line.trim_start().strip_prefix('<')?;
        let (target, params) = target.split_once('>')?;
        let is_next = params
            .split([';', ','])
            .filter_map(|param| param.trim().split_once('='))
            .any(|(name, value)| name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next"));
        // Resolved only to be parsed: the base is no host that exists.
        let url = Url::parse("http://next.invalid").and_then(|base| base.join(target)).ok()?;
        is_next.then(|| url.query().unwrap_or_default().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            let name: HeaderName = name.parse().expect("a header's name");
            map.append(name, HeaderValue::from_str(value).expect("a header's value"));
        }
        map
    }

    #[test]
    fn content_ranges() {
        let good = |first, last, total| Some(ContentRange { first, last, total });
        assert_eq!(ContentRange::parse("bytes 5-9/10"), good(5, 9, Some(10)));
        assert_eq!(ContentRange::parse("Bytes 0-0/*"), good(0, 0, None));
        for bad in ["", "bytes", "bytes 5-9", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "bytes +5-9/10", "bytes -5/10"] {
            assert_eq!(ContentRange::parse(bad), None, "{bad}");
        }
        assert_eq!(ContentRange::parse("lines 5-9/10"), None);
        assert_eq!(ContentRange::parse("bytes 0-18446744073709551616/*"), None);
    }

    #[test]
    fn waiting_times() {
        let seconds = |value: &str| retry_after(&headers(&[("retry-after", value)])).map(|d| d.as_secs());
        assert_eq!(seconds("60"), Some(60));
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds("99999999999999999999999"), Some(u64::MAX));
        for bad in ["-1", "soon", "", "1.5", "985.86µs", "Sun, 06 Nov 1994 08:49:37 GMT"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        let date = |now, then| retry_after(&headers(&[("date", now), ("retry-after", then)])).map(|d| d.as_secs());
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:00 GMT"), Some(23));
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:00:00 GMT"), Some(0));
        assert_eq!(date("Thu, 31 Dec 2026 23:59:59 GMT", "Fri, 01 Jan 2027 00:00:01 GMT"), Some(2));
        assert_eq!(date("Wed, 28 Feb 2024 00:00:00 GMT", "Fri, 01 Mar 2024 00:00:00 GMT"), Some(2 * 86_400));
    }

    #[test]
    fn dates() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        for bad in ["Sun, 06 Nov 1994 08:49:37", "06 Nov 1994 08:49:37 GMT", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 GMT"] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }

    #[test]
    fn next_pages() {
        let next = |value: &str| next_page(&headers(&[("link", value)]));
        assert_eq!(next(r#"</v2/a/tags/list?n=2&last=b>; rel="next""#).as_deref(), Some("n=2&last=b"));
        assert_eq!(next("<https://evil.test/v2/a/tags/list?last=b>;rel=next").as_deref(), Some("last=b"));
        assert_eq!(next(r#"<?last=b>; title="x"; rel="next""#).as_deref(), Some("last=b"));
        for none in [r#"</v2/a?last=b>; rel="prev""#, "</v2/a?last=b>", "/v2/a?last=b; rel=next", "<", ""] {
            assert_eq!(next(none), None, "{none}");
        }
    }

    #[test]
    fn digests_and_encodings() {
        let digest = Digest::sha256_of(b"x");
        let text = digest.to_string();
        assert_eq!(content_digest(&headers(&[])), Ok(None));
        assert_eq!(content_digest(&headers(&[("docker-content-digest", &text)])), Ok(Some(digest)));
        assert_eq!(content_digest(&headers(&[("docker-content-digest", &text), ("docker-content-digest", &text)])), Err(()));
        assert_eq!(content_digest(&headers(&[("docker-content-digest", "sha256:abc")])), Err(()));

        assert!(!is_encoded(&headers(&[])));
        assert!(!is_encoded(&headers(&[("content-encoding", "Identity")])));
        assert!(is_encoded(&headers(&[("content-encoding", "gzip")])));
        assert!(is_encoded(&headers(&[("content-encoding", "identity"), ("content-encoding", "zstd")])));

        assert_eq!(content_length(&headers(&[("content-length", "+5")])), None);
    }

    #[test]
    fn limits_of_pulls() {
        let told =
            |pairs: &[(&str, &str)]| ratelimit(&headers(pairs)).map(|said| (said.remaining, said.limit, said.window.map(|w| w.as_secs())));
        assert_eq!(told(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "85;w=21600")]), Some((85, Some(100), Some(21_600))));
        assert_eq!(told(&[("x-ratelimit-limit", "100; w=60"), ("x-ratelimit-remaining", "0")]), Some((0, Some(100), Some(60))));
        assert_eq!(told(&[("ratelimit-remaining", "7;q=1;w=x")]), Some((7, None, None)));
        assert_eq!(told(&[("ratelimit-remaining", "7"), ("ratelimit-limit", "5")]), Some((7, None, None)));
        for bad in ["many", "", ";w=60", "-1", "+1"] {
            assert_eq!(told(&[("ratelimit-remaining", bad), ("ratelimit-limit", "100;w=21600")]), None, "{bad:?}");
        }
        assert_eq!(told(&[("ratelimit-limit", "100;w=21600")]), None);
        let source = |text: &str| ratelimit_source(&headers(&[("docker-ratelimit-source", text)])).map(str::to_owned);
        assert_eq!(source("203.0.113.7").as_deref(), Some("203.0.113.7"));
        assert_eq!((source(""), source("a b"), source(&"x".repeat(129))), (None, None, None));
    }
}
