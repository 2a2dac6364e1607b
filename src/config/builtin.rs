//! The public registries that work without a line of configuration, in the words of the configuration.
//!
//! Owns the step from typed settings to a layer of the configuration, so that an operator's entry overrides them key by key
//! and `check` can say which is which.

use crate::upstream::Settings;
use figment::value::{Dict, Value};

/// `{ upstreams = { "docker.io" = { endpoints = […], auth_hosts = […] }, … } }`.
pub(super) fn layer() -> Dict {
    let entries =
        crate::upstream::builtin().upstreams.into_iter().map(|(registry, settings)| (registry.to_string(), Value::from(entry(&settings))));
    Dict::from([("upstreams".to_owned(), Value::from(entries.collect::<Dict>()))])
}

fn entry(settings: &Settings) -> Dict {
    // "https://host/" is what a parsed URL says; people leave the last slash out.
    let endpoints: Vec<String> = settings.endpoints.iter().map(|url| url.as_str().trim_end_matches('/').to_owned()).collect();
    let mut entry = Dict::from([("endpoints".to_owned(), Value::from(endpoints))]);
    if !settings.auth_hosts.is_empty() {
        entry.insert("auth_hosts".to_owned(), Value::from(settings.auth_hosts.clone()));
    }
    if let Some(search) = &settings.search {
        entry.insert("search".to_owned(), Value::from(search.as_str().trim_end_matches('/')));
    }
    entry
}
