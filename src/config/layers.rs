//! One tree out of all sources, each leaf with the name of the source that won.
//!
//! Owns the order of the sources. A later one overrides a value, extends a table and replaces a list. Knows no key but
//! `profile` and `upstreams`, whose names are folded to lower case so that `Docker.io` and `docker.io` are one.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};

use super::report::{Mistake, key};
use super::{File, Sources, builtin, environment};

/// Some values and the name of where they stand.
struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Puts every source over the one before it. What cannot be read at all is a mistake and no layer.
pub(super) fn merge(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Figment {
    let mut merged = Figment::from(Layer { origin: "built in".into(), values: builtin::layer() });
    if let Some((variable, dir)) = data_folder(&sources.env) {
        merged = merged.merge(Layer { origin: format!("${variable}"), values: table("cache", "dir", &dir) });
    }
    for layer in of_file(sources, mistakes) {
        merged = merged.merge(layer);
    }
    for (origin, values) in environment::layers(&sources.env, &upstreams(&merged), mistakes) {
        merged = merged.merge(Layer { origin, values });
    }
    if let Some(log) = &sources.log {
        merged = merged.merge(Layer { origin: "flag --log".into(), values: Dict::from([("log".into(), Value::from(log.as_str()))]) });
    }
    merged
}

/// All values of a merged tree.
pub(super) fn values(merged: &Figment) -> Dict {
    let mut by_profile = merged.data().unwrap_or_default(); // no layer ever fails
    by_profile.remove(&Profile::Default).unwrap_or_default()
}

/// Which file and which profile, for the head of what `check` prints.
pub(super) fn title(sources: &Sources) -> String {
    let file = sources.file.as_ref().map_or("no configuration file", |file| &file.name);
    chosen_profile(sources).map_or_else(|| file.to_owned(), |(_, profile)| format!("{file}, profile {profile}"))
}

fn table(section: &str, key: &str, value: &str) -> Dict {
    Dict::from([(section.to_owned(), Value::from(Dict::from([(key.to_owned(), Value::from(value))])))])
}

fn upstreams(merged: &Figment) -> BTreeSet<String> {
    let values = values(merged);
    values.get("upstreams").and_then(Value::as_dict).map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

/// Where the data folder is unless somebody says: systemd's `StateDirectory=`, else the user's cache folder.
fn data_folder(env: &BTreeMap<String, OsString>) -> Option<(&'static str, String)> {
    let text = |variable| environment::own(env, variable).and_then(|value| value.to_str());
    // systemd separates several folders by colons. The XDG base directory specification wants relative paths ignored.
    let state = || text("STATE_DIRECTORY").and_then(|list| list.split(':').next()).map(str::to_owned);
    let below = |variable, folder| {
        text(variable).filter(|path| path.starts_with('/')).map(|path| format!("{}/{folder}", path.trim_end_matches('/')))
    };
    state()
        .map(|dir| ("STATE_DIRECTORY", dir))
        .or_else(|| below("XDG_CACHE_HOME", "millpond").map(|dir| ("XDG_CACHE_HOME", dir)))
        .or_else(|| below("HOME", ".cache/millpond").map(|dir| ("HOME", dir)))
}

/// The file, and over it the part of the profile.
fn of_file(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Vec<Layer> {
    let Some(file) = &sources.file else {
        mistakes.extend(chosen_profile(sources).map(|(origin, name)| {
            let what = format!("there is no configuration file that could hold a profile {name:?}");
            Mistake { origin, key: String::new(), what }
        }));
        return Vec::new();
    };
    let mut values = match parse(file) {
        Ok(values) => values,
        Err(mistake) => {
            mistakes.push(mistake);
            return Vec::new();
        }
    };
    let mut profiles = take_table(&mut values, "profile", "profile", &file.name, mistakes);
    let mut layers = vec![Layer { values: folded(values, &file.name, mistakes), origin: file.name.clone() }];
    if let Some((origin, name)) = chosen_profile(sources) {
        if profiles.contains_key(&name) {
            let path = format!("profile.{}", key(&name));
            let values = take_table(&mut profiles, &name, &path, &file.name, mistakes);
            let origin = format!("{} [{path}]", file.name);
            layers.push(Layer { values: folded(values, &origin, mistakes), origin });
        } else {
            let there_are = if profiles.is_empty() { "it has none".into() } else { format!("it has {}", names(&profiles)) };
            let what = format!("{name:?} is no profile of {}; {there_are}", file.name);
            mistakes.push(Mistake { origin, key: String::new(), what });
        }
    }
    layers
}

/// The name of the profile and who chose it.
fn chosen_profile(sources: &Sources) -> Option<(String, String)> {
    const VARIABLE: &str = "MILLPOND_PROFILE";
    let of_flag = || sources.profile.clone().map(|name| ("flag --profile".to_owned(), name));
    let of_env =
        || environment::own(&sources.env, VARIABLE).map(|name| (environment::origin(VARIABLE), name.to_string_lossy().into_owned()));
    of_flag().or_else(of_env)
}

fn names(table: &Dict) -> String {
    table.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn parse(file: &File) -> Result<Dict, Mistake> {
    let parsed = Toml::string(&file.text).data();
    let mut by_profile =
        parsed.map_err(|error| Mistake { origin: file.name.clone(), key: String::new(), what: in_one_line(&error.to_string()) })?;
    Ok(by_profile.remove(&Profile::Default).unwrap_or_default())
}

/// The parser draws the line of the mistake below its position. One line must do, and the drawn one may hold a secret.
fn in_one_line(error: &str) -> String {
    /// A bar, the line with the mistake, a caret.
    const DRAWING_LINES: usize = 3;
    let mut lines = error.lines();
    let head = lines.next().unwrap_or_default();
    match head.strip_prefix("TOML parse error at ") {
        Some(position) => format!("{position}: {}", lines.skip(DRAWING_LINES).collect::<Vec<_>>().join("; ")),
        None => error.lines().collect::<Vec<_>>().join("; "),
    }
}

/// Takes a table that is not part of the configuration itself out of it.
fn take_table(values: &mut Dict, name: &str, path: &str, origin: &str, mistakes: &mut Vec<Mistake>) -> Dict {
    match values.remove(name) {
        None => Dict::new(),
        Some(Value::Dict(_, table)) => table,
        Some(_) => {
            mistakes.push(Mistake { origin: origin.to_owned(), key: path.to_owned(), what: "is not a table".into() });
            Dict::new()
        }
    }
}

/// The names of upstreams in lower case, as they are compared.
fn folded(mut values: Dict, origin: &str, mistakes: &mut Vec<Mistake>) -> Dict {
    let Some(Value::Dict(_, upstreams)) = values.get_mut("upstreams") else { return values };
    for (name, value) in std::mem::take(upstreams) {
        if upstreams.insert(name.to_ascii_lowercase(), value).is_some() {
            let key = format!("upstreams.{}", key(&name));
            mistakes.push(Mistake { origin: origin.to_owned(), key, what: "stands here twice, in upper and in lower case".into() });
        }
    }
    values
}
