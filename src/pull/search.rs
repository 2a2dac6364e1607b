//! Search, and the list of what is held.
//!
//! What a registry finds and what is held here come as one list: what is held first, and marked, since that is what the user of a mirror
//! gets at once. Without the registry (offline, down, none to ask) it is what is held. Nobody learns of what he may not pull.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use super::{Answer, Asker, Error, Pull};
use crate::cache::{Listing, Visibility, Wanted};
use crate::observe::Outcome;
use crate::oci::{Name, Registry, Repository};
use crate::upstream::{self, Private, Results, Upstream};

pub use crate::upstream::RESULTS_MAX;

/// How long an answer of a registry is given again: somebody who types a term letter by letter, and a team that looks for the same.
pub(super) const ANSWER_FOR: Duration = Duration::from_secs(60);

/// Answers that are kept, of some ten KiB each.
pub(super) const ANSWERS_MAX: u64 = 256;

/// What is asked of a registry: the term, results of a page, which page.
pub(super) type Question = (Registry, String, u32, u32);

/// A page of results.
#[derive(Debug, PartialEq, Eq)]
pub struct Search {
    /// What is held first.
    pub found: Vec<Found>,
    /// How many there are on all pages, as far as is known.
    pub total: u64,
}

/// A repository that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// As one pulls it from this mirror: `HOST:PORT/<name>`.
    pub name: String,
    /// One line.
    pub description: String,
    /// Stars.
    pub stars: u64,
    /// An official image of Docker Hub.
    pub official: bool,
    /// It is held here.
    pub held: bool,
}

impl Pull {
    /// Looks for a term: page `page` of `n` results each. What is held stands on the first.
    pub async fn search(&self, asker: Asker, term: &str, n: u32, page: u32) -> Answer<Search> {
        let sources = self.0.upstreams.all().filter(|upstream| upstream.can_search() && !self.offline()).cloned().collect::<Vec<_>>();
        let (answers, mut held) = tokio::join!(
            join_all(sources.iter().map(|upstream| self.found_at(upstream, term, n, page))),
            self.held_like(asker, term, if page == 1 { n } else { 0 }),
        );
        let outcome = if answers.iter().any(Option::is_some) { Outcome::Passed } else { Outcome::Stale };
        let mut hits = Vec::new();
        let mut total = 0;
        for (upstream, results) in sources.iter().zip(answers) {
            let Some(results) = results else { continue };
            total += results.total;
            let found = results.hits.iter().filter_map(|hit| Some((home(upstream.registry(), &hit.name)?, hit.clone())));
            hits.extend(found.filter(|(repository, _)| upstream.admits(&repository.name)));
        }
        let hubs = hits.iter().map(|(repository, _)| repository.clone()).filter(|repository| !held.contains(repository)).collect();
        held.extend(self.0.cache.held_among(hubs, self.listed(asker)).await);
        let mut found = Vec::new();
        for repository in &held {
            let hit = hits.iter().find(|(hit, _)| hit == repository).map(|(_, hit)| hit);
            let official = repository.registry == Registry::docker_hub() && repository.name.as_str().starts_with("library/");
            found.push(Found {
                name: short(repository),
                description: hit.map(|hit| hit.description.clone()).unwrap_or_default(),
                stars: hit.map_or(0, |hit| hit.stars),
                official: hit.map_or(official, |hit| hit.official),
                held: true,
            });
        }
        found.sort_by_key(|found| (found.name != term, !found.official));
        for (repository, hit) in hits.into_iter().filter(|(repository, _)| !held.contains(repository)) {
            let name = short(&repository);
            found.push(Found { name, description: hit.description, stars: hit.stars, official: hit.official, held: false });
        }
        found.truncate(n as usize);
        total = total.max(found.len() as u64);
        Answer { content: Search { found, total }, outcome }
    }

    /// What a registry finds; one question for all who ask the same. Nothing when it cannot answer.
    async fn found_at(&self, upstream: &Upstream, term: &str, n: u32, page: u32) -> Option<Arc<Results>> {
        let memory = &self.0.memory;
        let question = (upstream.registry().clone(), term.to_lowercase(), n, page);
        if let Some(known) = memory.searched.get(&question) {
            return Some(known);
        }
        if memory.mute.get(upstream.registry()).is_some() {
            return None;
        }
        let (pull, upstream, term, key) = (self.clone(), upstream.clone(), term.to_owned(), question.clone());
        let ask = || async move {
            match upstream.search(&term, n, page).await {
                Ok(results) => {
                    let results = Arc::new(results);
                    pull.0.memory.searched.put(key, results.clone());
                    Some(results)
                }
                Err(error) => {
                    tracing::warn!(upstream = %upstream.registry(), %error, "search cannot be asked there; what is held is found");
                    // That others search as well says nothing of the registry.
                    if !matches!(error, upstream::Error::Unavailable { why: upstream::Why::Busy, .. }) {
                        pull.0.memory.mute.put(upstream.registry().clone(), ());
                    }
                    None
                }
            }
        };
        memory.searches.run(question, &self.0.tasks, ask).await.1.flatten()
    }

    /// Held repositories with the term in the name by which they are pulled here.
    async fn held_like(&self, asker: Asker, term: &str, n: u32) -> Vec<Repository> {
        if n == 0 {
            return Vec::new();
        }
        let (term, listed) = (term.to_lowercase(), self.listed(asker));
        let wanted: Wanted = Box::new(move |repository, visibility| full(repository).contains(&term) && listed(repository, visibility));
        let listing = self.0.cache.repositories(self.registries(None), None, n as usize, wanted).await;
        listing.unwrap_or_default().repositories
    }

    /// What is held, of all registries or of one: at most `n` after `last`, spelled as they are pulled here.
    pub async fn catalog(&self, asker: Asker, of: Option<&Registry>, n: u32, last: Option<&str>) -> Result<Answer<Catalog>, Error> {
        let after = last.and_then(|last| place(of, last));
        let listing = if n == 0 {
            Listing::default()
        } else {
            let listing = self.0.cache.repositories(self.registries(of), after, n as usize, self.listed(asker)).await;
            listing.ok_or(Error::Abandoned)?
        };
        let spell = |repository: &Repository| if of.is_some() { repository.name.to_string() } else { full(repository) };
        let content = Catalog { names: listing.repositories.iter().map(spell).collect(), next: listing.next.as_ref().map(spell) };
        Ok(Answer { content, outcome: Outcome::Local })
    }

    /// Docker Hub, which needs no name here, then the others by name.
    fn registries(&self, of: Option<&Registry>) -> Vec<Registry> {
        if let Some(of) = of {
            return vec![of.clone()];
        }
        let mut registries = self.0.upstreams.registries().cloned().collect::<Vec<_>>();
        registries.sort_by_key(|registry| *registry != Registry::docker_hub());
        registries
    }

    /// Whether one may hear of a repository: as he may pull from it, by what is known without asking anybody.
    fn listed(&self, asker: Asker) -> Wanted {
        let upstreams = self.0.upstreams.clone();
        Box::new(move |repository, visibility| {
            let Some(upstream) = upstreams.get(&repository.registry).filter(|upstream| upstream.admits(&repository.name)) else {
                return false;
            };
            let was_never_private = !upstream.has_credentials() && visibility != Some(Visibility::Private);
            asker.authenticated || upstream.private() == Private::Anyone || was_never_private || visibility == Some(Visibility::Public)
        })
    }
}

/// A page of what is held.
#[derive(Debug, PartialEq, Eq)]
pub struct Catalog {
    /// As they are pulled here.
    pub names: Vec<String>,
    /// The `last` of the next page, if there is one.
    pub next: Option<String>,
}

/// As it is pulled from this mirror's root, in full: Docker Hub's without the registry, unless the name looks as if it had one.
fn full(repository: &Repository) -> String {
    let name = repository.name.as_str();
    let looks_like_a_host = name.split_once('/').is_some_and(|(first, _)| Registry::is_spelled_by(first));
    if repository.registry == Registry::docker_hub() && !looks_like_a_host { name.to_owned() } else { repository.to_string() }
}

/// The same, as people write it.
fn short(repository: &Repository) -> String {
    let full = full(repository);
    full.strip_prefix("library/").map_or(full.clone(), str::to_owned)
}

/// The repository that a name means in the list of `of`.
fn place(of: Option<&Registry>, last: &str) -> Option<Repository> {
    if let Some(of) = of {
        return Some(Repository { registry: of.clone(), name: Name::parse(last).ok()? });
    }
    let spelled = last.split_once('/').filter(|(first, _)| Registry::is_spelled_by(first));
    match spelled {
        Some((first, rest)) => Some(Repository { registry: Registry::parse(first).ok()?, name: Name::parse(rest).ok()? }),
        None => Some(Repository { registry: Registry::docker_hub(), name: Name::parse(last).ok()? }),
    }
}

/// Where a hit is pulled from.
fn home(registry: &Registry, name: &Name) -> Option<Repository> {
    Some(Repository { registry: registry.clone(), name: name.clone().in_library_of(registry).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_place() {
        let of = |registry: &str, name: &str| Repository {
            registry: Registry::parse(registry).expect("valid"),
            name: Name::parse(name).expect("valid"),
        };
        for (repository, written, shortened) in [
            (of("docker.io", "library/debian"), "library/debian", "debian"),
            (of("docker.io", "org/app"), "org/app", "org/app"),
            (of("docker.io", "my.group/app"), "docker.io/my.group/app", "docker.io/my.group/app"),
            (of("ghcr.io", "library/x"), "ghcr.io/library/x", "ghcr.io/library/x"),
            (of("registry.lan:5000", "x"), "registry.lan:5000/x", "registry.lan:5000/x"),
        ] {
            assert_eq!((full(&repository).as_str(), short(&repository).as_str()), (written, shortened));
            assert_eq!(place(None, written), Some(repository.clone()));
            assert_eq!(place(Some(&repository.registry), repository.name.as_str()), Some(repository));
        }
        assert_eq!(place(None, "../x"), None);
    }
}
