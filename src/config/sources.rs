//! What a configuration is made of, as values.
//!
//! Owns the search for the file and the only look at the process's environment. All that follows takes [`Sources`], so that
//! tests hand in texts and maps and may run side by side.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::environment;
use super::report::{Mistake, Mistakes, quoted};

/// Where the file is looked for when nobody names one, first to last.
const PLACES: [&str; 2] = ["mirror.toml", "/etc/millpond/mirror.toml"];

/// Names the file; a single underscore, so it is no key.
const FILE_VARIABLE: &str = "MILLPOND_CONFIG";

/// Everything that has a say in the configuration. It may hold secrets, so it cannot be printed.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<File>,
    /// The environment; variables that are no text in their name are not ours.
    pub env: BTreeMap<String, OsString>,
    /// `--profile`; without it `MILLPOND_PROFILE` counts.
    pub profile: Option<String>,
    /// `--log`.
    pub log: Option<String>,
}

/// A file that was read.
#[derive(Clone)]
pub struct File {
    /// As mistakes and origins call it.
    pub name: String,
    /// What it says.
    pub text: String,
}

impl Sources {
    /// The environment of this process, and the file that `--config`, else `$MILLPOND_CONFIG` names, else the first that is
    /// there of `./mirror.toml` and `/etc/millpond/mirror.toml`. A file that was named must be there; one that is there must
    /// be readable.
    pub fn of_process(config: Option<&Path>) -> Result<Self, Mistakes> {
        let env = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        let file = match named(config, &env) {
            Some((origin, path)) => {
                let unreadable = |error| mistake(origin, format!("{} cannot be read: {error}", quoted(&path.to_string_lossy())));
                Some(read(&path).map_err(unreadable)?)
            }
            None => search(&PLACES.map(Path::new))?,
        };
        Ok(Self { file, env, profile: None, log: None })
    }
}

fn named(config: Option<&Path>, env: &BTreeMap<String, OsString>) -> Option<(String, PathBuf)> {
    let of_flag = || config.map(|path| ("flag --config".to_owned(), path.to_owned()));
    let of_env = || environment::own(env, FILE_VARIABLE).map(|path| (environment::origin(FILE_VARIABLE), PathBuf::from(path)));
    of_flag().or_else(of_env)
}

fn search(places: &[&Path]) -> Result<Option<File>, Mistakes> {
    // A file that is there and cannot be read is a mistake: going on without it would undo what it forbids.
    let there = places.iter().find(|place| !matches!(place.symlink_metadata(), Err(error) if error.kind() == ErrorKind::NotFound));
    let read = |place: &&Path| read(place).map_err(|error| mistake(place.display().to_string(), format!("cannot be read: {error}")));
    there.map(read).transpose()
}

fn read(path: &Path) -> io::Result<File> {
    Ok(File { name: path.display().to_string(), text: fs::read_to_string(path)? })
}

fn mistake(origin: String, what: String) -> Mistakes {
    Mistakes(vec![Mistake { origin, key: String::new(), what }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_is_there_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        let places = [first.as_path(), second.as_path()];

        assert!(search(&places).expect("nothing is no mistake").is_none());
        fs::write(&second, "# second").expect("a file");
        assert_eq!(search(&places).expect("readable").map(|file| file.text).as_deref(), Some("# second"));
        fs::create_dir(&first).expect("a folder");
        let mistakes = search(&places).err().expect("a folder in the way is not passed over").to_string();
        assert!(mistakes.contains("first"), "{mistakes}");
    }

    #[test]
    fn the_flag_names_the_file_before_the_environment_does() {
        let env = [(FILE_VARIABLE.to_owned(), OsString::from("of-env"))].into();
        assert_eq!(named(Some(Path::new("of-flag")), &env).map(|(_, path)| path), Some("of-flag".into()));
        assert_eq!(named(None, &env), Some(("environment MILLPOND_CONFIG".into(), "of-env".into())));
        let empty = [(FILE_VARIABLE.to_owned(), OsString::new())].into();
        assert_eq!(named(None, &empty), None);
    }
}
