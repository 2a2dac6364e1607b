//! Logins as Docker keeps them: `config.json`, and the credential helpers that it names.
//!
//! Owns the reading of the file (pure) and the run of a helper. A helper is a program that the file names and that answers on
//! its standard output (docker/docker-credential-helpers): it is run without a shell, by a name that can only be a name, for a
//! bounded time, and what it prints is read up to a limit and never repeated.

use std::collections::HashMap;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use hyper::header::HeaderValue;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::login::basic;
use crate::oci::Registry;

/// The largest file that is read, in bytes. One with a hundred logins has a tenth of it.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// The largest answer of a helper that is read, in bytes: a user name and a token.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// The longest name of a helper: that of a file, without what stands before it.
const NAME_BYTES_MAX: usize = 64;

/// The key of Docker Hub's login, since Docker's first days.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What a file says of a registry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This login.
    Login(HeaderValue),
    /// Ask this helper.
    Helper(Helper),
    /// Nothing: it is asked as anybody.
    Nobody,
}

/// A credential helper, and under which names it may know a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Helper {
    name: String,
    servers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// What the text of a `config.json` says of a registry: first its helper, then the store of all, then the file itself.
pub(super) fn find(json: &[u8], registry: &Registry) -> Result<Found, String> {
    // The text of serde_json's error may hold a piece of the file.
    let unreadable =
        |error: serde_json::Error| format!("it is not Docker's config.json (line {}, column {})", error.line(), error.column());
    let file: File = serde_json::from_slice(json).map_err(unreadable)?;
    let is_hub = *registry == Registry::docker_hub();
    let is_this = |key: &&String| host_of_key(key).is_some_and(|host| if is_hub { is_hub_host(&host) } else { host == registry.as_str() });
    let own = file.cred_helpers.keys().find(is_this).and_then(|key| file.cred_helpers.get(key));
    let helper = own.or((!file.creds_store.is_empty()).then_some(&file.creds_store)).filter(|name| !name.is_empty());
    if let Some(name) = helper {
        return Ok(Found::Helper(Helper::new(name, registry, is_hub)?));
    }
    // A key in the usual spelling goes before an odd one, whatever the order of the map.
    let mut keys: Vec<_> = file.auths.keys().filter(is_this).collect();
    let usual = if is_hub { HUB_KEY } else { registry.as_str() };
    keys.sort_by_key(|key| (key.as_str() != usual, key.as_str()));
    keys.first().and_then(|key| file.auths.get(*key)).map_or(Ok(Found::Nobody), Entry::found)
}

/// The host that a key of the file speaks of. A path other than that of the API is a part of a registry (as podman writes it),
/// whose login is not for all of it.
fn host_of_key(key: &str) -> Option<String> {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    matches!(path, "" | "v1" | "v1/" | "v2" | "v2/").then(|| host.to_ascii_lowercase())
}

fn is_hub_host(host: &str) -> bool {
    matches!(host, "index.docker.io" | "docker.io" | "registry-1.docker.io")
}

impl Entry {
    fn found(&self) -> Result<Found, String> {
        if !self.identitytoken.is_empty() {
            return Err("the login is an identity token, which millpond cannot use; log in with a password or an access token".to_owned());
        }
        if self.auth.is_empty() {
            let is_empty = self.username.is_empty() && self.password.is_empty();
            return if is_empty { Ok(Found::Nobody) } else { Ok(Found::Login(basic(&self.username, &self.password)?)) };
        }
        let wrong = || "the auth of the registry is not the base64 of user:password".to_owned();
        let decoded = base64::engine::general_purpose::STANDARD.decode(self.auth.trim()).map_err(|_| wrong())?;
        let decoded = String::from_utf8(decoded).map_err(|_| wrong())?;
        let (user, password) = decoded.split_once(':').ok_or_else(wrong)?;
        // Docker's own reader cuts these off.
        Ok(Found::Login(basic(user, password.trim_matches('\0'))?))
    }
}

impl Helper {
    fn new(name: &str, registry: &Registry, is_hub: bool) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) || name.starts_with(['.', '-']) {
            return Err("the name of the credential helper has more in it than letters, digits, ., - and _".to_owned());
        }
        let servers = if is_hub { vec![HUB_KEY.to_owned()] } else { vec![registry.to_string(), format!("https://{registry}")] };
        Ok(Self { name: name.to_owned(), servers })
    }

    /// The program, as it is looked for in `PATH`.
    pub(super) fn program(&self) -> String {
        format!("docker-credential-{}", self.name)
    }

    /// Asks it; nothing where it has nothing. No answer repeats what it printed.
    pub(super) async fn ask(&self, limit: Duration) -> Result<Option<HeaderValue>, String> {
        let asking = async {
            for server in &self.servers {
                if let Some(login) = self.ask_for(server).await? {
                    return Ok(Some(login));
                }
            }
            Ok(None)
        };
        let answer = timeout(limit, asking).await.unwrap_or_else(|_| Err(format!("no answer within {} s", limit.as_secs_f64())));
        answer.map_err(|why| format!("{}: {why}", self.program()))
    }

    async fn ask_for(&self, server: &str) -> Result<Option<HeaderValue>, String> {
        let text = |error: std::io::Error| error.to_string();
        let mut command = Command::new(self.program());
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(text)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else { return Err("no pipe to it".to_owned()) };
        // One that answers without listening breaks the pipe, and is believed all the same.
        let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        drop(stdin);
        let mut printed = Vec::new();
        stdout.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut printed).await.map_err(text)?;
        if printed.len() as u64 > ANSWER_BYTES_MAX {
            return Err("it prints too much".to_owned());
        }
        let status = child.wait().await.map_err(text)?;
        if !status.success() {
            let printed = String::from_utf8_lossy(&printed).to_lowercase();
            let is_nothing = ["credentials not found", "no credentials server url", "no credentials username"]
                .iter()
                .any(|words| printed.contains(words));
            return if is_nothing { Ok(None) } else { Err(status.to_string()) };
        }
        read_answer(&printed)
    }
}

fn read_answer(printed: &[u8]) -> Result<Option<HeaderValue>, String> {
    let answer: Answer = serde_json::from_slice(printed).map_err(|_| "what it prints is no login".to_owned())?;
    if answer.username == TOKEN_USER {
        return Err("it has an identity token, which millpond cannot use; log in with a password or an access token".to_owned());
    }
    if answer.username.is_empty() && answer.secret.is_empty() {
        return Ok(None);
    }
    basic(&answer.username, &answer.secret).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, registry: &str) -> Result<Found, String> {
        find(json.as_bytes(), &Registry::parse(registry).expect("a registry"))
    }

    fn login(user: &str, password: &str) -> Found {
        Found::Login(basic(user, password).expect("a login"))
    }

    fn helper(name: &str, servers: &[&str]) -> Found {
        let servers = servers.iter().map(|&server| server.to_owned()).collect();
        Found::Helper(Helper { name: name.to_owned(), servers })
    }

    #[test]
    fn keys_in_all_their_spellings() {
        // u:p and v:q
        for key in ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "https://registry-1.docker.io/v2/"] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}},"other.test":{{"auth":"djpx"}}}},"HttpHeaders":{{"a":"b"}}}}"#);
            assert_eq!(found(&json, "docker.io"), Ok(login("u", "p")), "{key}");
            assert_eq!(found(&json, "other.test"), Ok(login("v", "q")));
            assert_eq!(found(&json, "third.test"), Ok(Found::Nobody));
        }
        for key in ["r.test:5000", "https://r.test:5000", "http://R.test:5000/", "https://r.test:5000/v2/"] {
            assert_eq!(found(&format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}}}}}}"#), "r.test:5000"), Ok(login("u", "p")), "{key}");
        }
        for key in ["r.test", "r.test:5000/team", "https://r.test:5000.evil.test", "xr.test:5000"] {
            assert_eq!(found(&format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}}}}}}"#), "r.test:5000"), Ok(Found::Nobody), "{key}");
        }
        let both = r#"{"auths":{"docker.io":{"auth":"djpx"},"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
        assert_eq!(found(both, "docker.io"), Ok(login("u", "p")), "the usual key goes first");
        assert_eq!(found(r#"{"auths":{"a.test":{"username":"u","password":"p"}}}"#, "a.test"), Ok(login("u", "p")));
        assert_eq!(found(r#"{"auths":{"a.test":{}}}"#, "a.test"), Ok(Found::Nobody));
        assert_eq!(found("{}", "a.test"), Ok(Found::Nobody));
    }

    #[test]
    fn helpers_go_before_the_file() {
        let json = r#"{"auths":{"a.test":{"auth":"dTpw"},"b.test":{}},"credHelpers":{"a.test":"ecr-login"},"credsStore":"pass"}"#;
        assert_eq!(found(json, "a.test"), Ok(helper("ecr-login", &["a.test", "https://a.test"])));
        assert_eq!(found(json, "b.test"), Ok(helper("pass", &["b.test", "https://b.test"])));
        assert_eq!(found(json, "docker.io"), Ok(helper("pass", &[HUB_KEY])));
        for name in ["../evil", "a b", "a;b", "-x", ".x", "a/b", "a\\u0000b", &"x".repeat(65)] {
            let what = found(&format!(r#"{{"credsStore":"{name}"}}"#), "a.test").expect_err(name);
            assert!(what.contains("name of the credential helper"), "{what}");
        }
    }

    #[test]
    fn mistakes_repeat_no_secret() {
        for json in [
            r#"{"auths":{"a.test":{"auth":"hunter2"#,
            r#"{"auths":{"a.test":{"auth":"hunter2!"}}}"#,
            r#"{"auths":{"a.test":"hunter2"}}"#,
            r#"{"auths":{"a.test":{"auth":"","identitytoken":"hunter2"}}}"#,
            r#"{"auths":{"a.test":{"username":"u:","password":"hunter2"}}}"#,
            "hunter2",
        ] {
            let what = found(json, "a.test").expect_err(json);
            assert!(!what.contains("hunter2"), "{what}");
        }
        for printed in ["hunter2", r#"{"Username":"<token>","Secret":"hunter2"}"#, r#"{"Username":"a\nb","Secret":"hunter2"}"#] {
            let what = read_answer(printed.as_bytes()).expect_err(printed);
            assert!(!what.contains("hunter2"), "{what}");
        }
        assert_eq!(read_answer(br#"{"ServerURL":"x","Username":"","Secret":""}"#), Ok(None));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let helper = Helper { name: "there-is-no-such-helper".to_owned(), servers: vec!["a.test".to_owned()] };
        let what = helper.ask(Duration::from_secs(60)).await.expect_err("nothing to run");
        assert!(what.starts_with("docker-credential-there-is-no-such-helper: "), "{what}");
    }
}
