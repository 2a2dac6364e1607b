//! Files that are read again when they change: certificates and the list of users.
//!
//! Looks at what the file system says of a file every few seconds, and never at its bytes. A file that cannot be used is told once;
//! what was read before stays in use, and the next change is another chance.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::version::Version;

/// How often the files are looked at: soon enough for an operator who waits for it, and a handful of system calls.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// Some files that are used together, and what is to be done when one of them changes.
pub(super) struct Watched {
    files: Vec<PathBuf>,
    seen: Vec<Option<Version>>,
    reload: Box<dyn Fn() + Send + Sync>,
}

impl Watched {
    /// From now on. What changes between this and the first look counts.
    pub(super) fn new(files: Vec<PathBuf>, reload: impl Fn() + Send + Sync + 'static) -> Self {
        let seen = versions(&files);
        Self { files, seen, reload: Box::new(reload) }
    }

    /// Blocks on the disk.
    fn look(&mut self) {
        // Before they are read: a change that comes while they are is seen at the next look.
        let now = versions(&self.files);
        if now != self.seen {
            self.seen = now;
            (self.reload)();
        }
    }
}

/// Looks until the stop. A file system that hangs holds up nothing but this.
pub(super) async fn watch(mut watched: Vec<Watched>, every: Duration, stop: CancellationToken) {
    watched.retain(|group| !group.files.is_empty());
    while !watched.is_empty() && stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        let look = tokio::task::spawn_blocking(move || {
            watched.iter_mut().for_each(Watched::look);
            watched
        });
        let Some(Ok(back)) = stop.run_until_cancelled(look).await else { return };
        watched = back;
    }
}

fn versions(files: &[PathBuf]) -> Vec<Option<Version>> {
    files.iter().map(|file| Version::of(file)).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_change_is_one_reading_whatever_kind_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("cert"), "1").expect("writes");
        std::os::unix::fs::symlink(at("cert"), at("link")).expect("links");
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let mut watched = Watched::new(vec![at("link"), at("key")], move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let changes: [(&str, &dyn Fn()); 5] = [
            ("nothing", &|| ()),
            ("another length", &|| std::fs::write(at("cert"), "22").expect("writes")),
            ("a file that was not there", &|| std::fs::write(at("key"), "").expect("writes")),
            ("another file of the same length by the same name", &|| {
                std::fs::write(at("new"), "33").expect("writes");
                std::fs::rename(at("new"), at("cert")).expect("renames");
            }),
            ("gone", &|| std::fs::remove_file(at("cert")).expect("removes")),
        ];
        for (n, (what, change)) in changes.into_iter().enumerate() {
            change();
            watched.look();
            watched.look();
            assert_eq!(count.load(Ordering::Relaxed), n, "{what}");
        }
    }
}
