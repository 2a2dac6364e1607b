//! The token server of a scripted registry, and the guard at its door (distribution, "Token Authentication").

use std::collections::HashMap;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::answer::Answer;
use super::listener::Port;
use super::log::Request;
use super::quirks::{Announced, Auth, Challenge, Quirks, TokenFields};
use super::serve::Shared;

const SERVICE: &str = "registry.docker.io";

/// The tokens that were issued.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    count: u64,
    good: HashMap<String, Grant>,
}

#[derive(Debug)]
struct Grant {
    user: Option<String>,
    repositories: Vec<String>,
    until: Instant,
    uses_left: Option<u64>,
}

impl Tokens {
    /// Makes every token bad that was issued.
    pub(super) fn revoke_all(&mut self) {
        self.good.clear();
    }
}

/// Lets the request pass, or says what to answer instead.
pub(super) fn refuse(shared: &Shared, quirks: &Quirks, request: &Request) -> Option<Answer> {
    match quirks.auth {
        Auth::None => None,
        Auth::Basic => match user_of(shared, request) {
            Some(Ok(_)) => None,
            _ => Some(Answer::error_of(401).header("Www-Authenticate", "Basic realm=\"Registry\"")),
        },
        Auth::Bearer => match bearer(shared, request) {
            Ok(()) => None,
            Err(error) => Some(challenge(shared, quirks, request, error)),
        },
    }
}

/// Checks the token; why it is not enough, in the word of RFC 6750, if there was one.
fn bearer(shared: &Shared, request: &Request) -> Result<(), Option<&'static str>> {
    let Some(token) = request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) else {
        if request.headers.contains_key("authorization") {
            shared.violation(format!("credentials that are not a token at {:?}: {}", request.port, request.path));
        }
        return Err(None);
    };
    if shared.is_of_another_registry(token) {
        shared.violation(format!("the token of another registry at {:?}: {}", request.port, request.path));
    }
    let mut tokens = shared.tokens.lock().unwrap();
    let grant = tokens.good.get_mut(token).ok_or(Some("invalid_token"))?;
    if Instant::now() >= grant.until || grant.uses_left == Some(0) {
        return Err(Some("invalid_token"));
    }
    if let Some(uses) = &mut grant.uses_left {
        *uses -= 1;
    }
    match &request.repository {
        Some(name) if !grant.repositories.contains(name) => Err(Some("insufficient_scope")),
        _ => Ok(()),
    }
}

/// The user whose token a request has; empty where it is nobody's.
pub(super) fn asker(shared: &Shared, request: &Request) -> String {
    let token = request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let tokens = shared.tokens.lock().unwrap();
    token.and_then(|token| tokens.good.get(token)).and_then(|grant| grant.user.clone()).unwrap_or_default()
}

/// 401 with the challenge in the registry's manner.
pub(super) fn challenge(shared: &Shared, quirks: &Quirks, request: &Request, error: Option<&str>) -> Answer {
    let realm = quirks.realm.clone().unwrap_or_else(|| format!("{}/token", shared.url(Port::Auth)));
    let mut bearer = format!("Bearer realm=\"{realm}\"");
    match quirks.challenge {
        Challenge::NoService => {}
        Challenge::Unquoted => bearer += &format!(",service={SERVICE}"),
        _ => bearer += &format!(",service=\"{SERVICE}\""),
    }
    match (&request.repository, quirks.challenge) {
        (_, Challenge::NoScope) => {}
        (_, Challenge::PlaceholderScope) => bearer += ",scope=\"repository:user/image:pull\"",
        (Some(name), _) => bearer += &format!(",scope=\"repository:{name}:pull\""),
        (None, _) => {}
    }
    if let Some(error) = error {
        bearer += &format!(",error=\"{error}\"");
    }
    let answer = match &request.repository {
        Some(name) => {
            let detail = json!([{ "Type": "repository", "Class": "", "Name": name, "Action": "pull" }]);
            Answer::error(401, "UNAUTHORIZED", "authentication required", detail)
        }
        None => Answer::error_of(401),
    };
    let answer = answer.header("Docker-Distribution-Api-Version", "registry/2.0");
    match quirks.challenge {
        Challenge::BasicAndBearer => answer.header("Www-Authenticate", format!("Basic realm=\"{realm}\", {bearer}")),
        Challenge::TwoLines => answer.header("Www-Authenticate", format!("Basic realm=\"{realm}\"")).header("Www-Authenticate", bearer),
        _ => answer.header("Www-Authenticate", bearer),
    }
}

/// The token server.
pub(super) fn token(shared: &Shared, quirks: &Quirks, request: &Request) -> Answer {
    let posted = request.method == hyper::Method::POST;
    if let (true, Some(status)) = (posted, quirks.token_post) {
        return Answer::error_of(status);
    }
    let form = if posted { String::from_utf8_lossy(&request.body).into_owned() } else { request.query.clone() };
    let form: Vec<(String, String)> = url::form_urlencoded::parse(form.as_bytes()).into_owned().collect();
    let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let user = match (user_of(shared, request), field("username"), field("password"), field("refresh_token")) {
        (Some(user), ..) => user.map(Some),
        (None, Some(user), Some(password), _) => shared.login(user, password).map(Some),
        (None, _, _, Some(token)) => shared.refreshed(token).map(Some),
        _ => Ok(None),
    };
    let Ok(user) = user else { return Answer::json(401, r#"{"details":"incorrect username or password"}"#) };
    if quirks.challenge != Challenge::NoService && field("service") != Some(SERVICE) {
        return Answer::json(400, r#"{"details":"unknown service"}"#);
    }
    let scopes: Vec<&str> = form.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' ')).collect();
    let (granted, denied) = grants(shared, &scopes, user.as_deref());
    if let (true, Some(status)) = (denied, quirks.token_denied) {
        return Answer::error_of(status);
    }
    let mut answer = issue(shared, quirks, granted, user.clone());
    if let (Some(user), true) = (user, field("access_type") == Some("offline") || field("offline_token") == Some("true")) {
        answer.insert("refresh_token".into(), format!("refresh-{user}").into());
    }
    Answer::json(200, Value::from(answer).to_string())
}

/// The repositories among the scopes that this client may pull, and whether there was one that it may not.
fn grants(shared: &Shared, scopes: &[&str], user: Option<&str>) -> (Vec<String>, bool) {
    let mut granted = Vec::new();
    let store = shared.store.lock().unwrap();
    for scope in scopes {
        let Some((name, actions)) = scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':')) else { continue };
        if actions != "pull" {
            shared.violation(format!("a token for more than pull: {scope}"));
        }
        let readers = shared.readers.lock().unwrap();
        let reads = |user: &str| readers.get(name).is_none_or(|readers| readers.iter().any(|reader| reader == user));
        if store.has(name) && (!store.is_private(name) || user.is_some_and(reads)) {
            granted.push(name.to_owned());
        }
    }
    let denied = granted.len() < scopes.len();
    (granted, denied)
}

fn issue(shared: &Shared, quirks: &Quirks, repositories: Vec<String>, user: Option<String>) -> Map<String, Value> {
    let mut tokens = shared.tokens.lock().unwrap();
    tokens.count += 1;
    let access: Vec<Value> = repositories.iter().map(|name| json!({ "type": "repository", "name": name, "actions": ["pull"] })).collect();
    let claims = json!({ "access": access, "aud": SERVICE, "jti": tokens.count.to_string() });
    let token = format!("{}.{}.{}", URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT"}"#), URL_SAFE_NO_PAD.encode(claims.to_string()), shared.mark());
    let until = Instant::now() + quirks.token_ttl;
    tokens.good.insert(token.clone(), Grant { user, repositories, until, uses_left: quirks.token_uses });

    let mut answer = Map::new();
    if quirks.token_fields != TokenFields::AccessToken {
        answer.insert("token".into(), token.clone().into());
    }
    if quirks.token_fields != TokenFields::Token {
        answer.insert("access_token".into(), token.into());
    }
    match quirks.expires_in {
        Announced::Truth => drop(answer.insert("expires_in".into(), quirks.token_ttl.as_secs().into())),
        Announced::Seconds(seconds) => drop(answer.insert("expires_in".into(), seconds.into())),
        Announced::Nothing => {}
    }
    if quirks.expires_in != Announced::Nothing {
        let skew = std::time::Duration::from_secs(quirks.issued_at_skew.unsigned_abs());
        let now = SystemTime::now();
        let issued_at = if quirks.issued_at_skew < 0 { now - skew } else { now + skew };
        answer.insert("issued_at".into(), humantime::format_rfc3339_nanos(issued_at).to_string().into());
    }
    answer
}

/// Who the Basic header says it is, if there is one; an error when that is not true.
fn user_of(shared: &Shared, request: &Request) -> Option<Result<String, ()>> {
    let basic = request.header("authorization")?.strip_prefix("Basic ")?;
    let decoded = STANDARD.decode(basic).ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let (user, password) = decoded.split_once(':').unwrap_or_default();
    Some(shared.login(user, password))
}
