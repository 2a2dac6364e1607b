//! What a call is about: which kind, on which file of the data folder.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use libc::{c_long, seccomp_notif};

/// A kind of call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Call {
    /// Opens what is there for reading, a folder too.
    Open,
    /// Opens for writing, or creates.
    Create,
    /// Writes.
    Write,
    /// Allocates.
    Allocate,
    /// Cuts or extends.
    Truncate,
    /// Syncs the data of a file.
    SyncData,
    /// Syncs all of a file, or a folder.
    Sync,
    /// Renames.
    Rename,
    /// Removes a file or a folder.
    Remove,
    /// Makes a folder.
    MakeFolder,
    /// Changes who may do what.
    Permit,
    /// Reads.
    Read,
}

/// A call on a file of the data folder that is about to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// What.
    pub call: Call,
    /// On what, relative to the data folder.
    pub path: String,
    /// Where a rename leads to.
    pub to: Option<String>,
}

/// How the arguments of a call name its file.
#[derive(Clone, Copy)]
pub(super) enum Named {
    /// By a descriptor.
    Fd,
    /// By a path, the first argument.
    Path,
    /// By a folder and a path in it.
    At,
    /// By two paths.
    Paths,
    /// By two folders and paths in them.
    Ats,
}

/// The calls that are asked about.
#[rustfmt::skip]
pub(super) const WATCHED: &[(c_long, (Call, Named))] = &[
    (libc::SYS_openat, (Call::Open, Named::At)),
    (libc::SYS_write, (Call::Write, Named::Fd)),
    (libc::SYS_pwrite64, (Call::Write, Named::Fd)),
    (libc::SYS_pwritev, (Call::Write, Named::Fd)),
    (libc::SYS_pwritev2, (Call::Write, Named::Fd)),
    (libc::SYS_fallocate, (Call::Allocate, Named::Fd)),
    (libc::SYS_ftruncate, (Call::Truncate, Named::Fd)),
    (libc::SYS_fdatasync, (Call::SyncData, Named::Fd)),
    (libc::SYS_sync_file_range, (Call::SyncData, Named::Fd)),
    (libc::SYS_fsync, (Call::Sync, Named::Fd)),
    (libc::SYS_renameat, (Call::Rename, Named::Ats)),
    (libc::SYS_renameat2, (Call::Rename, Named::Ats)),
    (libc::SYS_unlinkat, (Call::Remove, Named::At)),
    (libc::SYS_mkdirat, (Call::MakeFolder, Named::At)),
    (libc::SYS_fchmodat, (Call::Permit, Named::At)),
    (libc::SYS_read, (Call::Read, Named::Fd)),
    (libc::SYS_pread64, (Call::Read, Named::Fd)),
    (libc::SYS_preadv, (Call::Read, Named::Fd)),
    (libc::SYS_preadv2, (Call::Read, Named::Fd)),
    #[cfg(target_arch = "x86_64")] (libc::SYS_open, (Call::Open, Named::Path)),
    #[cfg(target_arch = "x86_64")] (libc::SYS_rename, (Call::Rename, Named::Paths)),
    #[cfg(target_arch = "x86_64")] (libc::SYS_unlink, (Call::Remove, Named::Path)),
    #[cfg(target_arch = "x86_64")] (libc::SYS_rmdir, (Call::Remove, Named::Path)),
    #[cfg(target_arch = "x86_64")] (libc::SYS_mkdir, (Call::MakeFolder, Named::Path)),
    #[cfg(target_arch = "x86_64")] (libc::SYS_chmod, (Call::Permit, Named::Path)),
];

impl Event {
    /// What and where in words that are the same in every run: `rename tmp > blobs`.
    pub fn step(&self) -> String {
        let call = match self.call {
            Call::Open => "open",
            Call::Create => "create",
            Call::Write => "write",
            Call::Allocate => "allocate",
            Call::Truncate => "truncate",
            Call::SyncData => "fdatasync",
            Call::Sync => "fsync",
            Call::Rename => "rename",
            Call::Remove => "remove",
            Call::MakeFolder => "mkdir",
            Call::Permit => "chmod",
            Call::Read => "read",
        };
        match &self.to {
            Some(to) => format!("{call} {} > {}", place(&self.path), place(to)),
            None => format!("{call} {}", place(&self.path)),
        }
    }

    /// Whether it changes what is on the disk, or when it is there.
    pub fn changes(&self) -> bool {
        !matches!(self.call, Call::Open | Call::Read)
    }
}

/// The part of the data folder that a path is in: below `repos`, the folder that begins with an underscore.
fn place(path: &str) -> &str {
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    if first == "repos" { parts.find(|part| part.starts_with('_')).unwrap_or(first) } else { first }
}

/// What is about to be done to the data folder at `root`, if anything.
pub(super) fn understand(asked: &seccomp_notif, root: &Path) -> Option<Event> {
    let (_, (call, named)) = WATCHED.iter().find(|(number, _)| *number == c_long::from(asked.data.nr))?;
    let args = asked.data.args;
    let asker = Asker(asked.pid);
    let (path, to, flags) = match named {
        Named::Fd => (asker.file(args[0])?, None, 0),
        Named::Path => (asker.path(None, args[0])?, None, args[1]),
        Named::At => (asker.path(Some(args[0]), args[1])?, None, args[2]),
        Named::Paths => (asker.path(None, args[0])?, Some(asker.path(None, args[1])?), 0),
        Named::Ats => (asker.path(Some(args[0]), args[1])?, Some(asker.path(Some(args[2]), args[3])?), 0),
    };
    let within = |path: PathBuf| Some(path.strip_prefix(root).ok()?.to_str()?.trim_end_matches(" (deleted)").to_owned());
    let writes = flags & u64::try_from(libc::O_CREAT | libc::O_WRONLY | libc::O_RDWR).unwrap_or(0) != 0;
    let call = if *call == Call::Open && writes { Call::Create } else { *call };
    Some(Event { call, path: within(path)?, to: to.and_then(within) })
}

/// Whether a call asks not to be made when it would have to wait.
pub(super) fn may_not_wait(asked: &seccomp_notif) -> bool {
    c_long::from(asked.data.nr) == libc::SYS_preadv2 && asked.data.args[5] & u64::try_from(libc::RWF_NOWAIT).unwrap_or(0) != 0
}

/// The thread that is about to make a call.
struct Asker(u32);

impl Asker {
    fn file(&self, fd: u64) -> Option<PathBuf> {
        // A descriptor is the lower half of its register.
        let fd = u32::try_from(fd & u64::from(u32::MAX)).ok()?.cast_signed();
        let link = if fd == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{fd}") };
        fs::read_link(format!("/proc/{}/{link}", self.0)).ok()
    }

    fn path(&self, dir: Option<u64>, address: u64) -> Option<PathBuf> {
        let mut text = vec![0; usize::try_from(libc::PATH_MAX).ok()?];
        let memory = fs::File::open(format!("/proc/{}/mem", self.0)).ok()?;
        // What lies behind the text may be no memory any more: then less is read.
        let read = memory.read_at(&mut text, address).ok()?;
        let end = text[..read].iter().position(|byte| *byte == 0)?;
        let path = PathBuf::from(String::from_utf8(text[..end].to_vec()).ok()?);
        if path.is_absolute() {
            return Some(path);
        }
        let dir = self.file(dir.unwrap_or(u64::from(libc::AT_FDCWD.cast_unsigned())))?;
        Some(dir.join(path))
    }
}
