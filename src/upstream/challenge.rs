//! `WWW-Authenticate`, read as registries really write it.
//!
//! A pure function from header lines to what millpond can do about them. Tolerant of what is found in the field
//! (unquoted values, several challenges in one line or on several lines, commas and escapes within quotes), strict where
//! a guess could send a password astray: what is ambiguous or broken is nothing.

/// The longest header that is read, in bytes, all lines together. Honest ones have 200.
const BYTES_MAX: usize = 8 << 10;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// A token from a token service (distribution "Token Authentication Specification").
    Bearer {
        /// The token service's URL, not looked at yet.
        realm: String,
        /// What the token is for.
        service: Option<String>,
    },
    /// A user name and a password (RFC 7617).
    Basic,
}

/// The one challenge to answer: Bearer where there is exactly one, else Basic, else nothing.
///
/// Two Bearer challenges are nothing: one of them may name a realm that is out for the other's token.
pub fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let mut parsed = Vec::new();
    let mut bytes = 0;
    for line in lines {
        bytes += line.len();
        if bytes > BYTES_MAX {
            return None;
        }
        parsed.extend(parse(line)?);
    }
    let is = |name: &'static str| move |c: &&Parsed<'_>| c.scheme.eq_ignore_ascii_case(name);
    let mut bearers = parsed.iter().filter(is("bearer"));
    match (bearers.next(), bearers.next()) {
        (Some(bearer), None) => {
            Some(Challenge::Bearer { realm: bearer.param("realm")?.to_owned(), service: bearer.param("service").map(str::to_owned) })
        }
        (Some(_), Some(_)) => None,
        (None, _) => parsed.iter().any(|c| is("basic")(&c)).then_some(Challenge::Basic),
    }
}

struct Parsed<'a> {
    scheme: &'a str,
    params: Vec<(&'a str, String)>,
}

impl Parsed<'_> {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// All challenges of one line (RFC 9110 section 11.6.1: a list of challenges, each of which holds a list itself).
fn parse(line: &str) -> Option<Vec<Parsed<'_>>> {
    let mut challenges: Vec<Parsed<'_>> = Vec::new();
    let mut rest = skip(line);
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_whitespace() || matches!(c, ',' | '=' | '"')).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return None;
        }
        let Some(value) = after.trim_start().strip_prefix('=') else {
            // A word without a value begins the next challenge.
            challenges.push(Parsed { scheme: word, params: Vec::new() });
            rest = skip(after);
            continue;
        };
        let (value, after) = read_value(value.trim_start())?;
        let challenge = challenges.last_mut()?;
        if challenge.param(word).is_some() {
            return None;
        }
        challenge.params.push((word, value));
        rest = skip(after);
    }
    Some(challenges)
}

fn skip(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == ',')
}

/// A quoted string with escapes, or whatever stands up to the next comma or space. A quote that never ends is nothing.
fn read_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_ascii_whitespace() || c == ',').unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        let odd = |c: char| matches!(c, '"' | '\\') || c.is_control();
        return (!value.contains(odd)).then(|| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next().map(|(_, escaped)| escaped).filter(|c| !c.is_control())?),
            c if c.is_control() => return None,
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Challenge {
        Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) }
    }

    #[test]
    fn what_registries_send() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        assert_eq!(read([hub]), Some(bearer("https://auth.docker.io/token", Some("registry.docker.io"))));
        // gcr: an unquoted service. pkg.dev: no service.
        assert_eq!(
            read([r#"Bearer realm="https://gcr.io/v2/token",service=gcr.io"#]),
            Some(bearer("https://gcr.io/v2/token", Some("gcr.io")))
        );
        assert_eq!(read([r#"bearer REALM="https://a/b""#]), Some(bearer("https://a/b", None)));
        // quay: two schemes in a line. Others: on two lines.
        let quay = r#"Basic realm="q, u", Bearer realm="https://quay.io/v2/auth",service="quay.io""#;
        assert_eq!(read([quay]), Some(bearer("https://quay.io/v2/auth", Some("quay.io"))));
        assert_eq!(read([r#"Basic realm="x""#, r#"Bearer realm="https://a""#]), Some(bearer("https://a", None)));
        assert_eq!(read([r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(read(["Basic"]), Some(Challenge::Basic));
        // A comma within quotes, an escape, spaces around the sign, empty list members.
        let odd = r#" ,, Bearer  scope="repository:a/b:pull,push" , realm = "https://a/\"b\\" ,"#;
        assert_eq!(read([odd]), Some(bearer(r#"https://a/"b\"#, None)));
    }

    #[test]
    fn what_is_broken_or_ambiguous_is_nothing() {
        for line in [
            "",
            r#"Bearer realm="https://a"#,
            r#"Bearer realm="https://a\"#,
            r#"Bearer service="x""#,
            "Negotiate",
            "Negotiate dG9rZW4=",
            r#"realm="https://a""#,
            r#"Bearer realm="https://a", Bearer realm="https://b""#,
            r#"Bearer realm="https://a",realm="https://b""#,
            "Bearer realm=\"https://a\u{7}\"",
            "Bearer realm=https://a\u{7}b",
            r#"Bearer realm=https://a"b""#,
            r#"Bearer ="x""#,
            "\"",
        ] {
            assert_eq!(read([line]), None, "{line}");
        }
        let long = format!(r#"Bearer realm="https://a/{}""#, "x".repeat(BYTES_MAX));
        assert_eq!(read([long.as_str()]), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(line in ".{0,200}", words in r#"[a-z =",\\]{0,60}"#) {
            let _ = read([line.as_str(), words.as_str()]);
        }
    }
}
