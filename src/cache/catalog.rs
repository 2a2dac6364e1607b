//! Which repositories are held: found in the folders themselves, in order, a bounded piece at a time.
//!
//! A repository is held while a tag or a manifest of it is linked. The order is that of names component by component (`a/b` before
//! `a-b`), which is the order of folders. Nothing of this waits for the disk on a worker, and at most [`WALKS`] walks run at once.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Cache;
use super::disk::Disk;
use super::repos::{Repos, Visibility};
use crate::oci::{Name, Registry, Repository};

/// Walks at once: a second one need not wait for a long one, and the disk is there for pulls.
const WALKS: usize = 2;

/// How long one who asks waits for a walk to begin.
const PATIENCE: Duration = Duration::from_secs(5);

/// Folders that one walk opens, at most: a second or two. Who turns pages goes on where it ended; a search in a cache of more
/// repositories does not see all of them.
const FOLDERS_MAX: usize = 50_000;

/// Names in a folder that are kept in memory at a time, some MiB: as many as a walk opens, so that even a folder with a million
/// names is read once a walk. It is read to its end, since there is no order before that.
const BATCH: usize = FOLDERS_MAX;

/// How long one who asks waits for the end of a walk: a cold disk may take many times what a walk usually does, and one that
/// hangs for ever.
const WALK_MAX: Duration = Duration::from_secs(30);

static TURNS: Semaphore = Semaphore::const_new(WALKS);

/// A piece of the list.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// In order.
    pub repositories: Vec<Repository>,
    /// Where to go on; none at the end.
    pub next: Option<Repository>,
}

/// Whether a repository is wanted. The second is what is known of who may see it.
pub type Wanted = Box<dyn Fn(&Repository, Option<Visibility>) -> bool + Send>;

impl Cache {
    /// Held repositories of these registries, after `after`, at most `most`. None when too many ask.
    pub async fn repositories(&self, registries: Vec<Registry>, after: Option<Repository>, most: usize, wanted: Wanted) -> Option<Listing> {
        let repos = self.0.repos.clone();
        blocking(&self.0.disk, move || {
            list(&Walker { repos: &repos, wanted: &wanted, folders_max: FOLDERS_MAX }, &registries, after.as_ref(), most)
        })
        .await
    }

    /// Those of these repositories that are held and wanted.
    pub async fn held_among(&self, repositories: Vec<Repository>, wanted: Wanted) -> Vec<Repository> {
        let repos = self.0.repos.clone();
        let is_held = move |repository: &Repository| {
            let dir = repos.dir(repository);
            (dir.join("_tags").is_dir() || dir.join("_manifests").is_dir()) && wanted(repository, seen(&repos, repository))
        };
        blocking(&self.0.disk, move || repositories.into_iter().filter(is_held).collect()).await.unwrap_or_default()
    }
}

async fn blocking<T: Send + 'static>(disk: &Disk, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if disk.is_away() {
        return None;
    }
    let turn: SemaphorePermit<'static> = tokio::time::timeout(PATIENCE, TURNS.acquire()).await.ok()?.ok()?;
    let work = move || {
        let done = work();
        // With the walk, not with the client.
        drop(turn);
        done
    };
    tokio::time::timeout(WALK_MAX, tokio::task::spawn_blocking(work)).await.ok()?.ok()
}

/// What cannot be read is nobody's.
fn seen(repos: &Repos, repository: &Repository) -> Option<Visibility> {
    repos.visibility(repository).unwrap_or(Some(Visibility::Private))
}

/// How it is walked.
struct Walker<'w> {
    repos: &'w Repos,
    wanted: &'w Wanted,
    folders_max: usize,
}

fn list(walker: &Walker<'_>, registries: &[Registry], after: Option<&Repository>, most: usize) -> Listing {
    let mut walk = Walk { walker, most, folders: 0, found: Vec::new(), at: None, is_cut: false };
    let start = after.and_then(|after| registries.iter().position(|registry| *registry == after.registry)).unwrap_or(0);
    for registry in &registries[start..] {
        let after = after.filter(|after| after.registry == *registry);
        let components = after.map(|after| after.name.as_str().split('/').collect::<Vec<_>>());
        let root = walker.repos.of_registry(registry);
        walk.below(registry, &root, "", components.as_deref());
        if walk.is_cut {
            break;
        }
    }
    let Walk { mut found, at, is_cut, .. } = walk;
    let overflow = found.len() > most;
    found.truncate(most);
    let next = if overflow { found.last().cloned() } else { at.filter(|_| is_cut) };
    Listing { repositories: found, next }
}

struct Walk<'w> {
    walker: &'w Walker<'w>,
    most: usize,
    folders: usize,
    found: Vec<Repository>,
    /// The name that was dealt with last; what is below it may still come.
    at: Option<Repository>,
    /// There may be more.
    is_cut: bool,
}

impl Walk<'_> {
    /// The folder `dir` of the name `name`, and all below; with `after`, only what comes after that.
    fn below(&mut self, registry: &Registry, dir: &Path, name: &str, after: Option<&[&str]>) {
        if self.folders >= self.walker.folders_max && self.at.is_some() {
            self.is_cut = true;
            return;
        }
        self.folders += 1;
        let mut from = after.and_then(|after| after.first()).map(|first| (*first).to_owned());
        let mut is_first = true;
        loop {
            let Ok(batch) = Batch::read(dir, from.as_deref(), is_first) else { return };
            // Its own name comes before those below it; `after` is at it or past it.
            if is_first && after.is_none() {
                self.visit(registry, name, batch.has_records);
            }
            for child in &batch.names {
                if self.is_cut {
                    return;
                }
                let path = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
                let rest = after.and_then(|after| after.split_first()).filter(|(first, _)| **first == *child).map(|(_, rest)| rest);
                match rest {
                    // What is below the very name that was last: nothing sorts before the empty component.
                    Some([]) => self.below(registry, &dir.join(child), &path, Some(&[""])),
                    rest => self.below(registry, &dir.join(child), &path, rest),
                }
            }
            if self.is_cut || !batch.is_full {
                return;
            }
            (from, is_first) = (batch.names.last().cloned(), false);
        }
    }

    fn visit(&mut self, registry: &Registry, name: &str, has_records: bool) {
        let Ok(name) = Name::parse(name) else { return };
        let repository = Repository { registry: registry.clone(), name };
        if has_records && (self.walker.wanted)(&repository, seen(self.walker.repos, &repository)) {
            self.found.push(repository.clone());
        }
        self.at = Some(repository);
        self.is_cut = self.found.len() > self.most;
    }
}

/// The first names in a folder, in order.
struct Batch {
    names: Vec<String>,
    /// There may be more.
    is_full: bool,
    has_records: bool,
}

impl Batch {
    /// From `from` on, which itself counts with `including`.
    fn read(dir: &Path, from: Option<&str>, including: bool) -> io::Result<Self> {
        let (mut names, mut has_records) = (BTreeSet::new(), false);
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            has_records |= name == "_tags" || name == "_manifests";
            let is_past = from.is_none_or(|from| name.as_str() > from || including && name == from);
            let fits = names.len() < BATCH || names.last().is_some_and(|last| name < *last);
            if name.starts_with('_') || !is_past || !fits || !entry.file_type()?.is_dir() {
                continue;
            }
            names.insert(name);
            if names.len() > BATCH {
                names.pop_last();
            }
        }
        Ok(Self { is_full: names.len() == BATCH, names: names.into_iter().collect(), has_records })
    }
}

#[cfg(test)]
mod tests {
    use super::super::folder::Folder;
    use super::super::space::Beside;
    use super::*;
    use crate::observe::Metrics;

    fn scene(names: &[&str]) -> (tempfile::TempDir, Repos) {
        let dir = tempfile::tempdir().expect("a folder");
        for name in names {
            fs::create_dir_all(dir.path().join("repos").join(name).join("_tags")).expect("a repository");
        }
        let repos = Repos::new(Folder::open(dir.path()).expect("opens"), Beside::new(Metrics::new()));
        (dir, repos)
    }

    fn everything(repos: &Repos, registries: &[&str], page: usize, wanted: &Wanted) -> Vec<String> {
        everything_by(&Walker { repos, wanted, folders_max: FOLDERS_MAX }, registries, page)
    }

    fn everything_by(walker: &Walker<'_>, registries: &[&str], page: usize) -> Vec<String> {
        let registries = registries.iter().map(|name| Registry::parse(name).expect("valid")).collect::<Vec<_>>();
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let Listing { repositories, next } = list(walker, &registries, after.as_ref(), page);
            assert!(repositories.len() <= page);
            all.extend(repositories.iter().map(ToString::to_string));
            match next {
                Some(next) => after = Some(next),
                None => return all,
            }
        }
    }

    #[test]
    fn pages_of_any_size_are_the_whole_list_in_order() {
        let held = [
            "docker.io/library/a",
            "docker.io/org",
            "docker.io/org/app",
            "docker.io/org/app/deep/er",
            "docker.io/org-a",
            "docker.io/org-a/x",
            "docker.io/zoo/z",
            "ghcr.io/org/app",
            "quay.io/a/b",
        ];
        let (dir, repos) = scene(&held);
        // None of these is one that is held.
        fs::create_dir_all(dir.path().join("repos/docker.io/empty/folder")).expect("a folder");
        fs::create_dir_all(dir.path().join("repos/docker.io/seen/_visibility")).expect("a folder");
        fs::create_dir_all(dir.path().join("repos/docker.io/_odd/_tags")).expect("a folder");
        let all: Wanted = Box::new(|_, _| true);
        for page in 1..=held.len() + 1 {
            assert_eq!(everything(&repos, &["docker.io", "ghcr.io"], page, &all), held[..8], "pages of {page}");
            // Cut short by what it costs, it goes on at the same place.
            for folders_max in 6..20 {
                let walker = Walker { repos: &repos, wanted: &all, folders_max };
                assert_eq!(everything_by(&walker, &["docker.io", "ghcr.io"], page), held[..8], "pages of {page}, {folders_max} folders");
            }
        }
        assert_eq!(everything(&repos, &["quay.io", "unheld.test"], 1, &all), held[8..]);
        let some: Wanted = Box::new(|repository, _| repository.name.as_str().contains("app"));
        assert_eq!(everything(&repos, &["docker.io", "ghcr.io"], 1, &some), [held[2], held[3], held[7]]);
    }

    #[test]
    fn a_place_that_is_gone_is_gone_on_from() {
        let (_dir, repos) = scene(&["docker.io/a/b", "docker.io/a/d", "docker.io/c/x"]);
        let registries = [Registry::docker_hub()];
        let all: Wanted = Box::new(|_, _| true);
        let after = |name: &str| {
            let after = Repository { registry: Registry::docker_hub(), name: Name::parse(name).expect("valid") };
            list(&Walker { repos: &repos, wanted: &all, folders_max: FOLDERS_MAX }, &registries, Some(&after), 9)
                .repositories
                .iter()
                .map(|held| held.name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(after("a/c"), ["a/d", "c/x"]);
        assert_eq!(after("a/b/gone"), ["a/d", "c/x"]);
        assert_eq!(after("b"), ["c/x"]);
        assert_eq!(after("z"), [""; 0]);
    }

    #[test]
    fn the_first_names_of_a_folder_are_found_in_any_order() {
        let names = ["c", "a", "e", "b", "d"].map(|name| format!("docker.io/{name}"));
        let (dir, _repos) = scene(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let read = |from, including| Batch::read(&dir.path().join("repos/docker.io"), from, including).expect("reads").names;
        assert_eq!(read(None, true), ["a", "b", "c", "d", "e"]);
        assert_eq!(read(Some("b"), true), ["b", "c", "d", "e"]);
        assert_eq!(read(Some("b"), false), ["c", "d", "e"]);
        assert_eq!(read(Some("z"), true), [""; 0]);
    }
}
