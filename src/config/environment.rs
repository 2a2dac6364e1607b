//! Which environment variable sets which key.
//!
//! `MILLPOND__CACHE__MAX_SIZE` sets `cache.max_size`: two underscores stand between the parts, because keys have single ones,
//! and because Kubernetes gives every container variables such as `MILLPOND_PORT=tcp://…` for a service of that name. What has
//! a single one after MILLPOND is left alone. Case does not matter. A value is plain text, whatever its key wants: a list is
//! separated by commas (`[]` is the empty one), a truth is `true` or `false`.
//!
//! The name of an upstream has dots, which not everybody can put into a variable's name (shells and systemd cannot, compose
//! and Kubernetes can). So both are understood:
//!
//! - `MILLPOND__UPSTREAMS__docker.io__USERNAME`: the name itself, also of an upstream that stands nowhere else
//! - `MILLPOND__UPSTREAMS__DOCKER_IO__USERNAME`: every character that is no letter and no digit as an underscore, for an
//!   upstream that is built in or in the file

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use figment::value::{Dict, Value};

use super::report::Mistake;

/// Begins every variable that sets a key.
const PREFIX: &str = "MILLPOND__";

/// Begins the variables that others may set too.
const SINGLE_PREFIX: &str = "MILLPOND_";

/// How the origin of a variable's value is told.
pub(super) fn origin(variable: &str) -> String {
    format!("environment {variable}")
}

/// A variable of millpond's own, such as `MILLPOND_CONFIG`. Empty is as good as not set: that is how a compose file without
/// a value for it looks.
pub(super) fn own<'e>(env: &'e BTreeMap<String, OsString>, variable: &str) -> Option<&'e OsString> {
    env.get(variable).filter(|value| !value.is_empty())
}

/// Each variable that sets a key, as a layer of its own: its origin and a tree with one leaf.
pub(super) fn layers(env: &BTreeMap<String, OsString>, upstreams: &BTreeSet<String>, mistakes: &mut Vec<Mistake>) -> Vec<(String, Dict)> {
    let mut layers = Vec::new();
    let mut set_by: BTreeMap<Vec<String>, &str> = BTreeMap::new();
    for (variable, value) in env {
        let Some(rest) = strip_prefix(variable, PREFIX) else { continue };
        let mut mistake = |what: String| mistakes.push(Mistake { origin: origin(variable), key: String::new(), what });
        let path = match path(rest, upstreams) {
            Ok(path) => path,
            Err(what) => {
                mistake(what);
                continue;
            }
        };
        let Some(value) = value.to_str() else {
            mistake("is not UTF-8".into());
            continue;
        };
        if let Some(other) = set_by.insert(path.clone(), variable) {
            mistake(format!("sets what {other} sets"));
        }
        layers.push((origin(variable), tree(&path, value)));
    }
    layers
}

fn strip_prefix<'v>(variable: &'v str, prefix: &str) -> Option<&'v str> {
    let head = variable.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &variable[prefix.len()..])
}

fn path(rest: &str, upstreams: &BTreeSet<String>) -> Result<Vec<String>, String> {
    let mut path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
    if path.iter().any(String::is_empty) {
        return Err("names no key; write for example MILLPOND__CACHE__MAX_SIZE".into());
    }
    if let [own @ ("config" | "profile")] = path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        return Err(format!("has no effect; write {SINGLE_PREFIX}{} with one underscore", own.to_ascii_uppercase()));
    }
    if let [section, name, _] = path.as_mut_slice()
        && section == "upstreams"
    {
        *name = upstream(name, upstreams)?;
    }
    Ok(path)
}

fn upstream(spelled: &str, upstreams: &BTreeSet<String>) -> Result<String, String> {
    if !spelled.contains('_') {
        return Ok(spelled.to_owned());
    }
    let underscored = |name: &str| name.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    let meant: Vec<&str> = upstreams.iter().map(String::as_str).filter(|name| underscored(name) == spelled).collect();
    match meant.as_slice() {
        [name] => Ok((*name).to_owned()),
        [] => Err(format!("no upstream is spelled {spelled}; a new one needs its name as it is, or a place in the file")),
        several => Err(format!("{spelled} may be {}; write the name as it is", several.join(" or "))),
    }
}

fn tree(path: &[String], value: &str) -> Dict {
    let (leaf, tables) = path.split_last().expect("splitting a text leaves at least one part");
    let innermost = Dict::from([(leaf.clone(), Value::from(value))]);
    tables.iter().rev().fold(innermost, |inner, table| Dict::from([(table.clone(), Value::from(inner))]))
}

/// Variables that would set one of these keys if only they had two underscores: nobody else has a use for such a name.
pub(super) fn single_underscores(env: &BTreeMap<String, OsString>, keys: &[String]) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for variable in env.keys() {
        let Some(rest) = strip_prefix(variable, SINGLE_PREFIX) else { continue };
        if let Some(key) = keys.iter().find(|key| key.replace('.', "_").eq_ignore_ascii_case(rest)) {
            let right = key.replace('.', "__").to_ascii_uppercase();
            let what = format!("has no effect; write {PREFIX}{right} with two underscores between the parts");
            mistakes.push(Mistake { origin: origin(variable), key: String::new(), what });
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<String> {
        ["docker.io", "my-registry.example:5000", "a.b", "a-b"].map(str::to_owned).into()
    }

    #[test]
    fn two_underscores_separate_and_case_does_not_matter() {
        let dotted = |rest| path(rest, &known()).map(|path| path.join(" "));
        for (rest, is) in [
            ("CACHE__MAX_SIZE", "cache max_size"),
            ("cache__Max_Size", "cache max_size"),
            ("LOG", "log"),
            ("SERVER__TLS__CLIENT_CA", "server tls client_ca"),
            ("UPSTREAMS__docker.io__USERNAME", "upstreams docker.io username"),
            ("UPSTREAMS__DOCKER_IO__USERNAME", "upstreams docker.io username"),
            ("UPSTREAMS__MY_REGISTRY_EXAMPLE_5000__PASSWORD_FILE", "upstreams my-registry.example:5000 password_file"),
            ("UPSTREAMS__new.example:80__ENDPOINTS", "upstreams new.example:80 endpoints"),
            ("UPSTREAMS__LOCALHOST__ENDPOINTS", "upstreams localhost endpoints"),
        ] {
            assert_eq!(dotted(rest).as_deref(), Ok(is), "{rest}");
        }
        for rest in ["", "CACHE__", "__CACHE", "CACHE____DIR", "UPSTREAMS__NEW_EXAMPLE__ENDPOINTS", "UPSTREAMS__A_B__ENDPOINTS"] {
            assert!(dotted(rest).is_err(), "{rest}");
        }
    }

    #[test]
    fn a_key_set_twice_is_a_mistake() {
        let env = ["MILLPOND__CACHE__DIR", "MILLPOND__cache__dir"].map(|name| (name.to_owned(), OsString::from("x"))).into();
        let mut mistakes = Vec::new();
        layers(&env, &known(), &mut mistakes);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
        assert!(mistakes[0].what.contains("MILLPOND__CACHE__DIR"), "{mistakes:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_no_text_is_a_mistake() {
        use std::os::unix::ffi::OsStringExt as _;
        let env = [("MILLPOND__CACHE__DIR".to_owned(), OsString::from_vec(vec![0xff]))].into();
        let mut mistakes = Vec::new();
        layers(&env, &known(), &mut mistakes);
        assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    }
}
