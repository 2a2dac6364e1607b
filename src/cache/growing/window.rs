//! The window: the bytes of a growing blob that are not in its file, as long as a reader needs them.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::{Buf, Bytes};

use super::Failure;

/// The bytes that are not in the file.
#[derive(Default)]
pub(super) struct Window {
    /// Where the file ends and the window took over; `None` while everything goes to the file.
    pub(super) from: Option<u64>,
    /// Offset of the first byte that is still here.
    pub(super) start: u64,
    pub(super) chunks: VecDeque<Bytes>,
    pub(super) len: u64,
    pub(super) readers: Vec<Weak<AtomicU64>>,
    /// What stands for its memory elsewhere: free when the last reader is gone.
    pub(super) place: Option<Arc<dyn Any + Send + Sync>>,
}

/// Whether a window still has room, or why not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The next bytes fit.
    Free,
    /// The slowest reader still needs what is there.
    Full,
    /// Nobody reads any more.
    Unwanted,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("from", &self.from).field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Window {
    pub(super) fn leave_file(&mut self, offset: u64) {
        self.from = Some(offset);
        self.start = offset;
    }

    pub(super) fn read(&self, position: u64, upto: u64) -> Result<Bytes, Failure> {
        let mut offset = self.start;
        for chunk in &self.chunks {
            let end = offset + chunk.len() as u64;
            if position >= offset && position < end {
                let from = usize::try_from(position - offset).unwrap_or(usize::MAX);
                let to = usize::try_from(upto.min(end) - offset).unwrap_or(usize::MAX);
                return Ok(chunk.slice(from..to));
            }
            offset = end;
        }
        Err(Failure::Behind)
    }

    /// The position of the slowest reader, `None` when nobody reads. Who was cut off is no reader any more, though it may
    /// learn that only when its client takes what it has: the others do not wait for it a second time.
    pub(super) fn slowest(&mut self) -> Option<u64> {
        self.readers.retain(|reader| reader.strong_count() > 0);
        let positions = self.readers.iter().filter_map(Weak::upgrade).map(|cursor| cursor.load(Ordering::Acquire));
        let was_cut = self.from.is_some_and(|from| self.start > from);
        positions.filter(|&position| position != u64::MAX && !(was_cut && position < self.start)).min()
    }

    /// Forgets what lies before a position; of a chunk that reaches beyond it, its part. That part's memory is free with the
    /// rest of the chunk, but it must not count: a window that is full of what was read would never have room.
    pub(super) fn forget_before(&mut self, position: u64) {
        while let Some(chunk) = self.chunks.front_mut()
            && self.start < position
        {
            let gone = (position - self.start).min(chunk.len() as u64);
            chunk.advance(usize::try_from(gone).unwrap_or(usize::MAX));
            self.start += gone;
            self.len -= gone;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
    }
}
