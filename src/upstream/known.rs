//! The well-known public registries, and the other names that people use for them.

use std::collections::BTreeMap;

use url::Url;

use super::{Config, Settings};
use crate::oci::Registry;

/// Name, endpoint, and the hosts besides the endpoint's that issue its tokens.
const PUBLIC: &[(&str, &str, &[&str])] = &[
    ("docker.io", "https://registry-1.docker.io", &["auth.docker.io"]),
    ("ghcr.io", "https://ghcr.io", &[]),
    ("quay.io", "https://quay.io", &[]),
    ("registry.k8s.io", "https://registry.k8s.io", &[]),
    ("gcr.io", "https://gcr.io", &[]),
    ("us.gcr.io", "https://us.gcr.io", &[]),
    ("eu.gcr.io", "https://eu.gcr.io", &[]),
    ("asia.gcr.io", "https://asia.gcr.io", &[]),
    ("us-docker.pkg.dev", "https://us-docker.pkg.dev", &[]),
    ("europe-docker.pkg.dev", "https://europe-docker.pkg.dev", &[]),
    ("asia-docker.pkg.dev", "https://asia-docker.pkg.dev", &[]),
    ("public.ecr.aws", "https://public.ecr.aws", &[]),
    ("mcr.microsoft.com", "https://mcr.microsoft.com", &[]),
    ("registry.gitlab.com", "https://registry.gitlab.com", &["gitlab.com"]),
    ("docker.elastic.co", "https://docker.elastic.co", &["docker-auth.elastic.co"]),
    ("nvcr.io", "https://nvcr.io", &[]),
    ("cgr.dev", "https://cgr.dev", &[]),
];

/// Who answers `/v1/search` for Docker Hub. The other registries' searches are their own.
const HUB_SEARCH: &str = "https://index.docker.io";

/// Other names of the same registry.
const ALIASES: &[(&str, &str)] = &[("index.docker.io", "docker.io"), ("registry-1.docker.io", "docker.io")];

/// The table of well-known public registries, all anonymous. The operator's table is laid over it.
pub fn builtin() -> Config {
    let entry = |&(name, endpoint, auth_hosts): &(&str, &str, &[&str])| {
        let name = Registry::parse(name).expect("the table names registries");
        let settings = Settings {
            auth_hosts: auth_hosts.iter().map(|&host| host.to_owned()).collect(),
            search: (name == Registry::docker_hub()).then(|| Url::parse(HUB_SEARCH).expect("it is an URL")),
            ..Settings::of(vec![Url::parse(endpoint).expect("the table names URLs")])
        };
        (name, settings)
    };
    Config { upstreams: PUBLIC.iter().map(entry).collect::<BTreeMap<_, _>>(), ..Config::default() }
}

/// The name under which a registry is configured and cached.
pub fn canonical(registry: &Registry) -> Registry {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == registry.as_str());
    alias.map_or_else(|| registry.clone(), |(_, name)| Registry::parse(name).expect("the table names registries"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_complete_and_has_no_aliases() {
        let config = builtin();
        assert_eq!(config.upstreams.len(), PUBLIC.len());
        for (registry, settings) in &config.upstreams {
            assert_eq!(canonical(registry), *registry);
            assert!(settings.endpoints.iter().all(|url| url.scheme() == "https"), "{registry}");
        }
        let hub = &config.upstreams[&Registry::docker_hub()];
        assert_eq!(hub.auth_hosts, ["auth.docker.io"]);
        for alias in ["index.docker.io", "registry-1.docker.io"] {
            assert_eq!(canonical(&Registry::parse(alias).expect("a registry")), Registry::docker_hub());
        }
    }
}
