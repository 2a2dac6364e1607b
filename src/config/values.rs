//! What one value may be: from the text that an operator wrote to a type that cannot be wrong.
//!
//! Every function takes the text and answers with the value or with the sentence that tells the operator what to write
//! instead; nothing branches on that sentence. No sentence ever repeats a secret.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;
use url::Url;

use super::LogFormat;
use crate::access::Secret;
use crate::cache::MaxSize;
use crate::oci::Registry;
use crate::upstream::{ANONYMOUS, DEFAULT_ACCOUNT, Private, Proxy, Via};

/// The longest name of an account: it is a label of every line about it.
const ACCOUNT_CHARS_MAX: usize = 64;

/// The largest size in bytes: what a file system can address.
const SIZE_BYTES_MAX: u64 = i64::MAX as u64;

/// The shortest secret path in characters: 16 random ones of 64 are 96 bits, which nobody guesses over a network.
pub(super) const SECRET_CHARS_MIN: usize = 16;

/// The longest secret path in characters: it must fit into a request line beside a repository name.
pub(super) const SECRET_CHARS_MAX: usize = 128;

/// `64MiB`, `100MB`, `1.5 GiB`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    bytes(text).ok_or_else(|| format!("{text:?} is not a size; write for example 64MiB"))
}

/// Bytes a second: a size, or a plain 0 for never, which means the same in every unit.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    if text == "0" {
        Ok(0)
    } else {
        bytes(text).ok_or_else(|| format!("{text:?} is not a number of bytes a second; write for example 4MiB, or 0 for never"))
    }
}

/// Bytes a second of an upstream's blobs: at least as many as let each of 64 connections be heard often enough.
pub(super) fn bandwidth(text: &str) -> Result<u64, String> {
    let rate = bytes(text).ok_or_else(|| format!("{text:?} is not a number of bytes a second; write for example 20MB"))?;
    if rate < super::BANDWIDTH_MIN {
        Err(format!("{text:?} is too little for anybody to pull through; write at least 128KiB"))
    } else {
        Ok(rate)
    }
}

/// A size above zero, or a share of the file system.
pub(super) fn max_size(text: &str) -> Result<MaxSize, String> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.trim().parse().ok().filter(|percent| (1..=100).contains(percent));
        return percent.map(MaxSize::Percent).ok_or_else(|| format!("{text:?} is not a share from 1% to 100%"));
    }
    match bytes(text) {
        Some(0) => Err(format!("{text:?} leaves no room for anything; write for example 50GiB or 80%")),
        Some(bytes) => Ok(MaxSize::Bytes(bytes)),
        None => Err(format!("{text:?} is not a size; write for example 50GiB or 80%")),
    }
}

fn bytes(text: &str) -> Option<u64> {
    // A bare number is refused: 50 is a cache of fifty bytes to one reader and of fifty gigabytes to the next.
    let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
    let ByteSize(bytes) = text.parse().ok().filter(|_| has_unit)?;
    (bytes <= SIZE_BYTES_MAX).then_some(bytes)
}

/// A duration for which a disk may be silent: a second at least, for no disk is always quicker than that, and an hour at most.
pub(super) fn patience(text: &str) -> Result<Duration, String> {
    match duration(text, Duration::from_secs(3_600))? {
        patience if patience < Duration::from_secs(1) => {
            Err(format!("{text:?} is too short for a disk; write 1s or more, for example 10s"))
        }
        patience => Ok(patience),
    }
}

/// `90s`, `1m`, `30d`, `1h 30m`, up to a limit.
pub(super) fn duration(text: &str, max: Duration) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write for example 90s, 1m or 30d");
    // "5M" would be five months to the parser and five minutes to whoever wrote it.
    if text.contains(|c: char| c.is_ascii_uppercase()) {
        return Err(wrong());
    }
    let duration = humantime::parse_duration(text).map_err(|_| wrong())?;
    if duration > max {
        return Err(format!("{text:?} is longer than {}", humantime::format_duration(max)));
    }
    Ok(duration)
}

/// An IP address and a port, where 0 takes a free one.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address and a port; write for example 0.0.0.0:5000 or [::]:5000"))
}

/// A CIDR, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet = text.parse().map_err(|_| format!("{text:?} is not a network; write for example 10.0.0.0/8 or 192.168.1.7"))?;
    if network.trunc() != network {
        // It may have meant the one address or the whole network: who may pull is not guessed.
        return Err(format!("{text:?} is an address within a network; write {} or {}", network.trunc(), network.addr()));
    }
    Ok(network)
}

/// The base URL of a registry, without the `/v2/`.
pub(super) fn endpoint(text: &str) -> Result<Url, String> {
    // What stands before an @ may be a password.
    let shown = if text.contains('@') { "this address".to_owned() } else { format!("{text:?}") };
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    if !matches!(scheme.as_deref(), Some("http" | "https")) {
        return Err(format!("{shown} does not begin with https:// or http://"));
    }
    let url = Url::parse(text).map_err(|error| format!("{shown} is not an address: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("an address must not hold a login; write username and password_file".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{shown} must have neither ? nor #"));
    }
    if url.port() == Some(0) {
        return Err(format!("{shown} names port 0, where nothing listens"));
    }
    if url.path().trim_end_matches('/').ends_with("/v2") {
        return Err(format!("{shown} must not end in /v2, which is added to every request"));
    }
    Ok(url)
}

/// The base URL of a search, or none.
pub(super) fn search(text: &str) -> Result<Option<Url>, String> {
    if text == "none" { Ok(None) } else { endpoint(text).map(Some) }
}

/// A host with an optional port.
pub(super) fn host(text: &str) -> Result<String, String> {
    let host = Registry::parse(text).map_err(|_| format!("{text:?} is not a host; write for example auth.docker.io"))?;
    Ok(host.to_string())
}

/// The first path segment of the mirror URL of whoever knows it.
///
/// No dot: a segment with one names a registry (`/<registry>/v2/…`), and neither may pass for the other.
pub(super) fn secret(text: &str) -> Result<Secret, String> {
    let url_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if !text.chars().all(url_safe) {
        return Err("may hold letters, digits, - and _ only: it is one segment of a URL".into());
    }
    if !(SECRET_CHARS_MIN..=SECRET_CHARS_MAX).contains(&text.len()) {
        return Err(format!("must have {SECRET_CHARS_MIN} to {SECRET_CHARS_MAX} characters; make one with: openssl rand -hex 16"));
    }
    Ok(Secret(text.to_owned()))
}

/// What a registry knows us as. Basic separates it from the password by a colon (RFC 7617, 2).
pub(super) fn username(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c == ':' || c.is_control()) {
        return Err(format!("{text:?} is not a user name: it must not be empty, and has no colon"));
    }
    Ok(text.to_owned())
}

/// A proxy, or that there is none.
pub(super) fn proxy(text: &str) -> Result<Via, String> {
    match text {
        "" | "none" => Ok(Via::Direct),
        proxy => Proxy::parse(proxy).map(Via::Proxy),
    }
}

/// Who may have private content.
pub(super) fn private(text: &str) -> Result<Private, String> {
    match text {
        "authenticated" => Ok(Private::Authenticated),
        "anyone" => Ok(Private::Anyone),
        _ => Err(format!("{text:?} is neither \"authenticated\" nor \"anyone\"")),
    }
}

/// How the log is written.
pub(super) fn log(text: &str) -> Result<LogFormat, String> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is none of \"auto\", \"text\" and \"json\"")),
    }
}

/// A file that can be read now.
pub(super) fn file(text: &str) -> Result<PathBuf, String> {
    let path = path(text)?;
    let unreadable = |error: std::io::Error| format!("{text:?} cannot be read: {error}");
    let metadata = fs::metadata(&path).map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(format!("{text:?} is a folder, not a file"));
    }
    // Opening a pipe would wait for its other end, and eat what it brings.
    if metadata.is_file() {
        fs::File::open(&path).map_err(unreadable)?;
    }
    Ok(path)
}

/// What an account is called in the log and the metrics.
pub(super) fn account(text: &str) -> Result<(), String> {
    let fits = (1..=ACCOUNT_CHARS_MAX).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    match text {
        ANONYMOUS | DEFAULT_ACCOUNT => Err("is what the log calls another one; choose another name".to_owned()),
        _ if fits => Ok(()),
        _ => Err(format!("is no name of an account; write 1 to {ACCOUNT_CHARS_MAX} letters, digits, - and _")),
    }
}

/// A folder, or a place where one can be made.
pub(super) fn folder(text: &str) -> Result<PathBuf, String> {
    let path = path(text)?;
    if path.exists() && !path.is_dir() {
        return Err(format!("{text:?} is a file, not a folder"));
    }
    Ok(path)
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("is empty; write a path".into());
    }
    if text.starts_with('~') {
        return Err(format!("{text:?}: no shell replaces the ~ here; write the whole path"));
    }
    Ok(Path::new(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("64MiB", 64 << 20), ("100MB", 100_000_000), ("1.5 GiB", 3 << 29), ("7B", 7), ("2k", 2000), ("0B", 0)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "50", "50GB5", "GiB", "-1GiB", "1.2.3GiB", "50 giraffes", "50%", "16EiB", "99999999999999EB", "é"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_rate_is_a_size_or_nothing() {
        for (text, bytes) in [("4MiB", 4 << 20), ("0", 0), ("0B", 0), ("100kB", 100_000)] {
            assert_eq!(rate(text), Ok(bytes), "{text}");
        }
        for text in ["", "4", "never", "4MiB/s", "-1MiB"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bandwidth_is_enough_to_pull_with() {
        assert_eq!(bandwidth("20MB"), Ok(20_000_000));
        assert_eq!(bandwidth("128KiB"), Ok(128 << 10));
        for text in ["", "20", "0", "0B", "127KiB", "20Mbit"] {
            assert!(bandwidth(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_cache_has_a_size_or_a_share() {
        assert_eq!(max_size("50GiB"), Ok(MaxSize::Bytes(50 << 30)));
        assert_eq!(max_size("1%"), Ok(MaxSize::Percent(1)));
        assert_eq!(max_size("100%"), Ok(MaxSize::Percent(100)));
        for text in ["0B", "0%", "101%", "%", "-1%", "1.5%", "256%", "80", ""] {
            assert!(max_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_disk_has_a_second_at_least() {
        assert_eq!(patience("1s"), Ok(Duration::from_secs(1)));
        for text in ["0s", "999ms", "61m", "soon"] {
            assert!(patience(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_units_and_an_end() {
        let hour = Duration::from_secs(3600);
        for (text, seconds) in [("90s", 90), ("1m", 60), ("1h", 3600), ("10m 30s", 630), ("0s", 0), ("0", 0)] {
            assert_eq!(duration(text, hour), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "90", "soon", "-1s", "1M", "1H", "61m", "99999999999999999999s", "5m m"] {
            assert!(duration(text, hour).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_numbers() {
        for text in ["0.0.0.0:5000", "[::]:5000", "127.0.0.1:0"] {
            assert!(address(text).is_ok(), "{text}");
        }
        for text in ["", "5000", ":5000", "0.0.0.0", "localhost:5000", "0.0.0.0:65536", "0.0.0.0:-1", "::1:5000 "] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_are_whole() {
        for (text, network_is) in
            [("10.0.0.0/8", "10.0.0.0/8"), ("192.168.1.7", "192.168.1.7/32"), ("fd00::/8", "fd00::/8"), ("::1", "::1/128")]
        {
            assert_eq!(network(text).map(|network| network.to_string()), Ok(network_is.to_owned()), "{text}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0.1/8", "lan", "10.0.0/8", "10.0.0.0/-1", "10.0.0.0-10.0.0.9"] {
            assert!(network(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoints_are_bases() {
        for text in
            ["https://registry-1.docker.io", "http://10.0.0.7:5000", "https://host/prefix/", "HTTPS://Host", "https://[fd00::1]:5000"]
        {
            assert!(endpoint(text).is_ok(), "{text}");
        }
        let bad = [
            "",
            "registry-1.docker.io",
            "registry.example:5000",
            "ftp://host",
            "https://",
            "https://ho st",
            "https://host:0",
            "https://host:70000",
        ];
        let more_bad = ["https://host?x=1", "https://host#x", "https://host/v2", "https://host/v2/", "//host", "https:host"];
        for text in bad.into_iter().chain(more_bad) {
            assert!(endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_login_in_an_address_is_refused_and_not_repeated() {
        for text in ["https://me:hunter2@host", "https://me:hunter2@ho st", "ftp://me:hunter2@host", "https://hunter2@host/v2"] {
            let sentence = endpoint(text).expect_err("a login");
            assert!(!sentence.contains("hunter2"), "{sentence}");
        }
    }

    #[test]
    fn a_secret_is_long_one_segment_and_not_repeated() {
        assert!(secret("0123456789abcdef").is_ok());
        assert!(secret(&"x".repeat(SECRET_CHARS_MAX)).is_ok());
        let too_long = "x".repeat(SECRET_CHARS_MAX + 1);
        for text in ["", "0123456789abcde", "0123456789/abcdef", "0123456789abcde.", "0123456789%2fabcdef", "0123456789abcdé", &too_long] {
            let sentence = secret(text).expect_err(text);
            assert!(text.is_empty() || !sentence.contains(text), "{sentence}");
        }
    }

    #[test]
    fn files_can_be_read_and_folders_can_be_made() {
        let folder_there = tempfile::tempdir().expect("a folder");
        let file_there = folder_there.path().join("file");
        fs::write(&file_there, "x").expect("a file");
        let [dir_text, file_text] = [folder_there.path(), file_there.as_path()].map(|path| path.to_str().expect("text").to_owned());

        assert_eq!(file(&file_text), Ok(file_there));
        assert_eq!(folder(&dir_text), Ok(folder_there.path().to_owned()));
        assert!(folder(&format!("{dir_text}/not/yet")).is_ok());
        assert!(folder(&file_text).expect_err("a file").contains("is a file"));
        assert!(file(&dir_text).expect_err("a folder").contains("is a folder"));
        assert!(file(&format!("{dir_text}/none")).expect_err("nothing").contains("/none"));
        assert!(file("").is_err());
        assert!(folder("~/cache").expect_err("a tilde").contains('~'));
    }
}
