//! A clock that jumped while nobody looked: told at the start, and believed.
//!
//! A clock that is years ahead and a host that was off for years look the same from here: the newest file in the data folder
//! is old. In the first case a tag that is older than `max_stale` is young, in the second the operator said not to serve it
//! unless the upstream confirms it. So what the clock says holds, and what is at stake is only the tags, and only while the
//! upstream cannot answer: digests never expire, and one answer makes a tag young again. A clock that went back makes the
//! age of tags unknown, and they are served.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A clock may be wrong by so much without anybody being told: time zones, and hosts whose clock is set after the start.
const SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// What the clock says, held against the newest file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Jump {
    /// Nothing worth a word.
    None,
    /// By more than tags may be served stale.
    Ahead(Duration),
    /// Into the past.
    Back(Duration),
}

/// When anything in the data folder was last written, by the clock of then. To be asked before the start writes to it.
pub(super) fn last_written(root: &Path) -> Option<SystemTime> {
    let time = |path: &Path| fs::symlink_metadata(path).ok()?.modified().ok();
    let newest = |dir: &Path| fs::read_dir(dir).ok()?.filter_map(|entry| time(&entry.ok()?.path())).max();
    // In `index/` something is written at least every half minute in which anything is pulled.
    [root, &root.join("index")].into_iter().filter_map(newest).max()
}

/// Says so when the clock and the folder do not go together.
pub(super) fn tell_of_a_jump(last: Option<SystemTime>, tag_life: Duration) {
    let days = |jump: Duration| jump.as_secs() / (24 * 60 * 60);
    match jump(last, SystemTime::now(), tag_life) {
        Jump::None => {}
        Jump::Ahead(ahead) => tracing::warn!(
            days = days(ahead),
            "the clock is further ahead of the last write to the data folder than cache.max_stale: held tags are served only once the upstream has confirmed them, digests at once. If the clock is wrong, set it"
        ),
        Jump::Back(back) => tracing::warn!(
            days = days(back),
            "the clock is behind the last write to the data folder: held tags are of unknown age, and served while the upstream cannot answer. If the clock is wrong, set it"
        ),
    }
}

fn jump(last: Option<SystemTime>, now: SystemTime, tag_life: Duration) -> Jump {
    let Some(last) = last else { return Jump::None };
    match now.duration_since(last) {
        Ok(ahead) if ahead > tag_life.max(SLACK) => Jump::Ahead(ahead),
        Err(back) if back.duration() > SLACK => Jump::Back(back.duration()),
        _ => Jump::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_jump_that_changes_something_is_told() {
        let now = SystemTime::now();
        let (hour, day, life) = (Duration::from_secs(3_600), SLACK, 30 * SLACK);
        assert_eq!(jump(None, now, life), Jump::None);
        for (last, life, expected) in [
            (now, life, Jump::None),
            (now - 30 * day, life, Jump::None),
            (now - 31 * day, life, Jump::Ahead(31 * day)),
            (now - hour, Duration::ZERO, Jump::None),
            (now - 2 * day, Duration::ZERO, Jump::Ahead(2 * day)),
            (now + hour, life, Jump::None),
            (now + 2 * day, life, Jump::Back(2 * day)),
        ] {
            assert_eq!(jump(Some(last), now, life), expected);
        }
    }

    #[test]
    fn the_newest_file_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(last_written(&dir.path().join("absent")), None);
        assert_eq!(last_written(dir.path()), None);
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::create_dir(dir.path().join("index")).expect("creates");
        for (name, time) in [("index/db", then + SLACK), ("CLEAN", then)] {
            fs::write(dir.path().join(name), "").expect("writes");
            fs::File::open(dir.path().join(name)).and_then(|file| file.set_modified(time)).expect("sets");
        }
        fs::File::open(dir.path().join("index")).and_then(|file| file.set_modified(then)).expect("sets");
        assert_eq!(last_written(dir.path()), Some(then + SLACK));
    }
}
