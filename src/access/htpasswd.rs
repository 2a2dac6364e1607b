//! The htpasswd file: users and bcrypt hashes, one a line.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::{self, Read};
use std::path::Path;

use super::AccessError;

/// Bytes of the file: some ten thousand users.
const MAX_FILE: u64 = 1024 * 1024;

/// bcrypt's cost doubles the time of a check with every step; 14 is about a second. Above, two wrong passwords would keep everybody waiting.
const MAX_COST: u32 = 14;

/// A line that is no user. Shown as `line: what`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {what}")]
pub struct Mistake {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it; never the line itself.
    pub what: String,
}

/// The users by name, each with a hash that bcrypt can read.
pub(super) type Users = HashMap<String, String>;

pub(super) fn read(path: &Path) -> Result<Users, AccessError> {
    let content = open(path).map_err(|reason| AccessError::Read { path: path.to_owned(), reason })?;
    parse(&content).map_err(|mistakes| AccessError::Htpasswd { path: path.to_owned(), mistakes })
}

fn open(path: &Path) -> io::Result<String> {
    let mut content = String::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut content)?;
    if content.len() as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB: not an htpasswd file"));
    }
    Ok(content)
}

/// A file without users is one that lets nobody in.
pub(super) fn parse(content: &str) -> Result<Users, Vec<Mistake>> {
    let mut users = Users::new();
    let mut mistakes = Vec::new();
    for (index, text) in content.lines().enumerate() {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let what = match entry(text) {
            Ok((user, hash)) => match users.entry(user.to_owned()) {
                Entry::Vacant(vacant) => {
                    vacant.insert(hash.to_owned());
                    continue;
                }
                Entry::Occupied(_) => format!("the user {user:?} stands here twice"),
            },
            Err(what) => what,
        };
        mistakes.push(Mistake { line: index + 1, what });
    }
    if mistakes.is_empty() { Ok(users) } else { Err(mistakes) }
}

fn entry(text: &str) -> Result<(&str, &str), String> {
    let (user, hash) = text.split_once(':').ok_or("expected user:hash")?;
    if user.is_empty() {
        return Err("the user is empty".into());
    }
    if !["$2y$", "$2a$", "$2b$"].iter().any(|version| hash.starts_with(version)) {
        return Err(format!("the password of {user:?} is not hashed with bcrypt; make the line with `htpasswd -B`"));
    }
    // The parser checks the shape; only a verification also decodes the salt.
    let cost = hash.parse::<bcrypt::HashParts>().map_err(|_| format!("the bcrypt hash of {user:?} is damaged"))?.get_cost();
    if cost > MAX_COST {
        return Err(format!("the bcrypt cost {cost} of {user:?} is over {MAX_COST}: each check would take seconds"));
    }
    if !hash[7..].bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/') {
        return Err(format!("the bcrypt hash of {user:?} is damaged"));
    }
    Ok((user, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuMzyHX5Vu6aZEU1bjGwZAlMsjW8BJVqC";

    #[test]
    fn users_comments_and_windows_lines() {
        let users = parse(&format!("# team\r\n\r\nann:{HASH}\r\n  bob:{HASH}  \n")).unwrap();
        assert_eq!(users.len(), 2);
        assert_eq!(users["ann"], HASH);
        assert_eq!(users["bob"], HASH);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn every_mistake_with_its_line_and_no_hash() {
        let secret = "$apr1$abcdefgh$0123456789012345678901";
        let content = format!(
            "ann:{HASH}\nnocolon\n:{HASH}\nbob:{secret}\ncid:$2y$04$short\ndan:$2y$15${rest}\nann:{HASH}\neve:$2x$04${rest}\nfay:$2y$04${bad}",
            rest = &HASH[7..],
            bad = HASH[7..].replace('M', "!"),
        );
        let mistakes = parse(&content).unwrap_err();
        let lines: Vec<usize> = mistakes.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7, 8, 9], "{mistakes:#?}");
        let error = AccessError::Htpasswd { path: "/etc/users".into(), mistakes };
        let text = error.to_string();
        assert!(text.starts_with("/etc/users:2: expected user:hash\n/etc/users:3: "), "{text}");
        assert!(!text.contains("$apr1$") && !text.contains(HASH), "{text}");
    }
}
