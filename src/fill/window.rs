//! What cannot be stored goes through a window in memory: where that memory comes from, and its back-pressure. Such a blob
//! goes no faster than its slowest reader, up to a limit.
//!
//! The memory of all windows is bounded: half of [`super::Limits::windows`] is places, of which each transfer needs one and
//! which one waits for; the other half is for whoever comes first, so that a few go at full speed and many go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Fill, Limits, Source, Store};
use crate::cache::{Failure, Room};

/// A place, in bytes: the least with which a transfer gets on at the speed of a network.
const PLACE_BYTES: u64 = 4 << 20;

/// Of that, what three reads of a connection may take, which are 1 MiB at the most: one that the window has begun to forget,
/// one too much in what is written, one too much in what gathers.
const READS_BYTES: u64 = 3 << 20;

/// Places that one transfer can use besides its own: with 8 MiB it is as fast as with more.
const EXTRA_PLACES_MAX: usize = 1;

/// Bytes that may gather in memory while a batch is written to a file: the fill then stops reading, and the upstream waits.
const GATHER_BYTES_MAX: usize = 4 << 20;

/// How long a transfer goes on that nobody reads and nobody can join, because another took its place: as long as it may take
/// from finding it to reading it.
const ORPHAN: Duration = Duration::from_secs(1);

/// Bytes that a reader of a full window takes within the stall limit if it is alive: 4 KiB a second, as connections need.
const PROGRESS: u64 = 60 << 10;

/// The memory of all windows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Windows {
    places: Arc<Semaphore>,
    extra: Arc<Semaphore>,
}

/// The memory of one window: its own bytes, and those that gather before it.
#[derive(Debug)]
pub(super) struct Place {
    bytes: u64,
    _own: OwnedSemaphorePermit,
    _extra: Option<OwnedSemaphorePermit>,
}

impl Windows {
    /// All within this limit.
    pub fn new(limits: &Limits) -> Self {
        let half = usize::try_from(limits.windows / PLACE_BYTES / 2).unwrap_or(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(half.max(1))), extra: Arc::new(Semaphore::new(half)) }
    }

    async fn place(&self) -> Option<Place> {
        let own = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let count = u32::try_from(self.extra.available_permits().min(EXTRA_PLACES_MAX)).unwrap_or(0);
        // Somebody else may be quicker: then there is none.
        let extra = Arc::clone(&self.extra).try_acquire_many_owned(count).ok();
        let places = 1 + extra.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) as u64;
        Some(Place { bytes: places * PLACE_BYTES, _own: own, _extra: extra })
    }
}

impl Place {
    /// What the window may hold before more is put into it.
    fn window(&self) -> u64 {
        (self.bytes - READS_BYTES) / 2
    }

    /// What may gather before it is put there, and gathers meanwhile.
    fn gathers(&self) -> u64 {
        (self.bytes - READS_BYTES) / 4
    }
}

impl<S: Source> Fill<S> {
    /// From here on nothing is stored. Waits for a place in memory, but not for ever.
    pub(super) async fn leave_file(&mut self) -> Result<(), Failure> {
        let windows = self.context.windows.clone();
        let Ok(Some(place)) = timeout(self.context.limits.stall, windows.place()).await else {
            tracing::warn!(digest = %self.digest, "too many blobs that cannot be stored are under way; this one is given up");
            return Err(Failure::Unavailable);
        };
        let place = Arc::new(place);
        self.permit.writer().leave_file(self.done, place.clone());
        // Removes the file's name; those who read its part have it open.
        self.store = Store::Window(place);
        Ok(())
    }

    /// How many bytes may gather before they are written.
    fn gathers(&self) -> usize {
        match &self.store {
            Store::Window(place) => usize::try_from(place.gathers()).unwrap_or(usize::MAX),
            Store::File(_) | Store::Unopened => GATHER_BYTES_MAX,
        }
    }

    /// Whether more may gather before that is written.
    pub(super) fn is_hungry(&self) -> bool {
        self.gathered.is_hungry(self.gathers())
    }

    /// Waits until the window, if there is one, has room. A reader that takes nothing for [`super::Limits::stall`] is cut off; when nobody
    /// reads at all for so long there is no reason to go on.
    pub(super) async fn wait_for_room(&mut self) -> Result<(), Failure> {
        let Store::Window(place) = &self.store else { return Ok(()) };
        let max = place.window();
        let permit = self.permit.clone();
        let writer = permit.writer();
        let mut deadline = Instant::now() + self.context.limits.stall;
        let mut mark = writer.slowest();
        loop {
            let room = writer.room(max);
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
                    if !writer.cut_slowest(max) {
                        // A fault of ours, for there is somebody to wait for; but no wait is for ever.
                        return Err(Failure::Abandoned);
                    }
                    deadline = Instant::now() + self.context.limits.stall;
                }
            }
        }
    }
}
