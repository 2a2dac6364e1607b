//! The window's back-pressure: a blob that is not stored goes no faster than its slowest reader, up to a limit.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Fill, Source};
use crate::cache::{Failure, Room};

/// How long a transfer goes on that nobody reads and nobody can join, because another took its place: as long as it may take
/// from finding it to reading it.
const ORPHAN: Duration = Duration::from_secs(1);

/// Bytes that a reader of a full window takes within the stall limit if it is alive: 4 KiB a second, as connections need.
const PROGRESS: u64 = 60 << 10;

impl<S: Source> Fill<S> {
    /// Waits until the window has room. A reader that takes nothing for [`super::Limits::stall`] is cut off; when nobody
    /// reads at all for so long there is no reason to go on.
    pub(super) async fn wait_for_room(&mut self) -> Result<(), Failure> {
        let permit = self.permit.clone();
        let writer = permit.writer();
        let mut deadline = Instant::now() + self.context.limits.stall;
        let mut mark = writer.slowest();
        loop {
            let room = writer.room();
            if room == Room::Free {
                return Ok(());
            }
            if room == Room::Unwanted && !permit.is_current() {
                deadline = deadline.min(Instant::now() + ORPHAN);
            }
            if timeout_at(deadline, writer.reader_moved()).await.is_ok() {
                // Whoever gets on is slow, not stuck.
                let slowest = writer.slowest();
                if mark.is_none() || slowest >= mark.map(|mark| mark + PROGRESS) {
                    mark = slowest;
                    deadline = Instant::now() + self.context.limits.stall;
                }
                continue;
            }
            match room {
                Room::Unwanted => return Err(Failure::Abandoned),
                Room::Full | Room::Free => {
                    tracing::warn!(digest = %self.digest, "a client is too slow for a blob that cannot be stored; it is cut off");
                    writer.cut_slowest();
                    deadline = Instant::now() + self.context.limits.stall;
                }
            }
        }
    }
}
