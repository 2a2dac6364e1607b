//! What a token service answers, and for how long that is believed.

use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Deserialize;
use tokio::time::Instant;

/// The life of a token that does not say how long it lives (distribution "Token Authentication Specification").
const LIFE_DEFAULT: Duration = Duration::from_secs(60);

/// The longest life that is believed. public.ecr.aws says 12 h.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);

/// A token is renewed so long before its end, or after four fifths of its life if that is later: a request that is
/// sent with it must arrive while it is valid.
const RENEWED_BEFORE: Duration = Duration::from_secs(30);

/// The longest token that is taken, in bytes: it has to fit into the header of a request.
const TOKEN_BYTES_MAX: usize = 32 << 10;

/// A token, as it is sent.
#[derive(Clone)]
pub(super) struct Token {
    /// `Bearer …`, marked so that nothing prints it.
    pub(super) header: HeaderValue,
    /// When it is time for another.
    pub(super) fresh_until: Instant,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    // Whatever stands there: a number, a number in quotes, nonsense.
    expires_in: Option<serde_json::Value>,
}

impl Token {
    /// Reads `{"token":…,"expires_in":300}` or the same with `access_token`; nothing, if it is not that.
    pub(super) fn read(json: &[u8], received: Instant) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(json).ok()?;
        let filled = |text: &String| !text.is_empty();
        let text = answer.token.filter(filled).or(answer.access_token.filter(filled))?;
        if text.len() > TOKEN_BYTES_MAX || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
        header.set_sensitive(true);
        let life = life(answer.expires_in.as_ref());
        let fresh = life.saturating_sub(RENEWED_BEFORE).max(life * 4 / 5);
        Some(Self { header, fresh_until: received + fresh })
    }
}

fn life(expires_in: Option<&serde_json::Value>) -> Duration {
    let seconds = expires_in.and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()));
    // Zero and less are taken for "not said": the registry refuses the token if it was meant.
    let positive = seconds.filter(|seconds| *seconds > 0.0).map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(LIFE_MAX));
    positive.map_or(LIFE_DEFAULT, |life| life.min(LIFE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh_for(json: &str) -> Option<u64> {
        let now = Instant::now();
        Token::read(json.as_bytes(), now).map(|token| (token.fresh_until - now).as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn lives() {
        assert_eq!(fresh_for(r#"{"token":"a","access_token":"a","expires_in":300,"issued_at":"1999-01-01T00:00:00Z"}"#), Some(270));
        assert_eq!(fresh_for(r#"{"access_token":"a"}"#), Some(48), "60 s where nothing is said");
        assert_eq!(fresh_for(r#"{"token":"","access_token":"a","expires_in":10}"#), Some(8));
        assert_eq!(fresh_for(r#"{"token":"a","expires_in":"300"}"#), Some(270));
        for unsaid in ["0", "-1", "\"x\"", "null", "[]"] {
            assert_eq!(fresh_for(&format!(r#"{{"token":"a","expires_in":{unsaid}}}"#)), Some(48), "{unsaid}");
        }
        for endless in ["1e18", "1e308", "86400"] {
            assert_eq!(fresh_for(&format!(r#"{{"token":"a","expires_in":{endless}}}"#)), Some(86_370), "{endless}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_token() {
        for json in ["", "{}", "<html>", r#"{"token":""}"#, r#"{"token":"a\r\nX: y"}"#, r#"{"token":"a b"}"#, r#"{"token":"ä"}"#, "[1]"] {
            assert_eq!(fresh_for(json), None, "{json}");
        }
        assert_eq!(fresh_for(&format!(r#"{{"token":"{}"}}"#, "a".repeat(TOKEN_BYTES_MAX + 1))), None);
    }

    #[test]
    fn a_token_is_never_shown() {
        let token = Token::read(br#"{"token":"secret"}"#, Instant::now()).expect("a token");
        assert_eq!(format!("{:?}", token.header), "Sensitive");
    }
}
