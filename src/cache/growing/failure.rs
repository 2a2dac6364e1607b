//! Why a blob did not come: what a fill tells its readers, and they their clients.

use std::io;
use std::time::Duration;

/// Why a blob did not come, in terms that decide what the client is told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The upstream says that there is none.
    #[error("the upstream does not have it")]
    NotFound,
    /// The upstream refuses it to millpond.
    #[error("the upstream refuses it")]
    Denied,
    /// The upstream asks to be left alone for so long.
    #[error("the upstream's rate limit is used up")]
    RateLimited(Duration),
    /// The upstream cannot be reached, or breaks off again and again.
    #[error("the upstream cannot deliver it")]
    Unavailable,
    /// The upstream's requests lead back here.
    #[error("the upstream asks this mirror")]
    Loop,
    /// The upstream did not answer in time.
    #[error("the upstream did not answer in time")]
    Timeout,
    /// What the upstream sent is not what the digest names, or no proper answer.
    #[error("the upstream sent something else than was asked for")]
    Corrupt,
    /// It was so again and again: the upstream is not asked for it for so long.
    #[error("the upstream has it wrong")]
    Refuted(Duration),
    /// The writer ended without saying why: millpond is stopping, or has a fault.
    #[error("the transfer was given up")]
    Abandoned,
    /// This reader was too slow for a blob that cannot be stored.
    #[error("the reader fell behind a blob that cannot be stored")]
    Behind,
    /// The file cannot be read.
    #[error("the disk failed")]
    Disk(io::ErrorKind),
}

impl Failure {
    /// Whether the next who asks may have better luck at once, because it was this transfer that failed, not the blob.
    pub fn is_of_this_transfer(&self) -> bool {
        matches!(self, Self::Abandoned | Self::Behind | Self::Disk(_))
    }
}
