//! Any writer, any readers, in any order: what is read is what was written, and nobody waits for ever.

use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use std::task::Poll;

use proptest::prelude::*;

use super::*;

/// Pieces of an odd size, so that they fall on no boundary.
const PIECE: usize = 311_111;
const SIZE: usize = 12 << 20;
const WINDOW_BYTES_MAX: u64 = 4 << 20;

static CONTENT: LazyLock<Bytes> =
    LazyLock::new(|| (0..SIZE).map(|n| u8::try_from((n ^ n >> 8 ^ n >> 16) & 0xFF).expect("a byte")).collect());

#[derive(Clone, Copy, Debug)]
enum Act {
    Write(usize),
    LeaveFile,
    Cut,
    Join(usize, Option<usize>),
    Read(usize),
    Leave(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (1..6_usize).prop_map(Act::Write),
        1 => Just(Act::LeaveFile),
        1 => Just(Act::Cut),
        2 => (0..SIZE, prop::option::of(1..SIZE)).prop_map(|(start, len)| Act::Join(start, len.map(|len| (start + len).min(SIZE)))),
        2 => Just(Act::Join(0, None)),
        12 => (0..8_usize).prop_map(Act::Read),
        1 => (0..8_usize).prop_map(Act::Leave),
    ]
}

struct World {
    writer: Writer,
    growing: Growing,
    file: Arc<File>,
    sized: bool,
    written: usize,
    window: bool,
    readers: Vec<Reader>,
}

impl World {
    fn new(sized: bool) -> Self {
        let (writer, growing) = growing(Digest::sha256_of(b""));
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        writer.open(sized.then_some(SIZE as u64), Some(file.clone()));
        Self { writer, growing, file, sized, written: 0, window: false, readers: Vec::new() }
    }

    fn write(&mut self, pieces: usize) {
        for _ in 0..pieces {
            let piece = CONTENT.slice(self.written..(self.written + PIECE).min(SIZE));
            if piece.is_empty() || self.window && self.writer.room(WINDOW_BYTES_MAX) != Room::Free {
                return;
            }
            if self.window {
                self.writer.push(piece.clone());
            } else {
                self.file.write_all_at(&piece, self.written as u64).expect("writes");
            }
            self.written += piece.len();
            self.writer.arrived(self.written as u64);
        }
    }

    /// One read; false when the reader is over. Waiting is allowed only where nothing is released.
    async fn read(&mut self, reader: usize) -> Result<bool, Failure> {
        let ready = self.growing.progress().ready;
        let reader = &mut self.readers[reader];
        let at = reader.position;
        let waits = at >= ready && reader.end.is_none_or(|end| at < end);
        let bytes = {
            let mut next = std::pin::pin!(reader.next());
            match futures_util::poll!(next.as_mut()) {
                Poll::Ready(bytes) => bytes?,
                Poll::Pending if waits => return Ok(true),
                Poll::Pending => next.await?,
            }
        };
        let Some(bytes) = bytes else {
            let whole = matches!(self.growing.progress().phase, Phase::Whole);
            assert!(reader.end.is_some_and(|end| at >= end) || whole && at >= SIZE as u64, "ended at {at}");
            return Ok(false);
        };
        assert!(!bytes.is_empty() && reader.position <= ready.min(reader.end.unwrap_or(u64::MAX)));
        assert!(CONTENT[usize::try_from(at).expect("small")..][..bytes.len()] == bytes, "wrong bytes at {at}");
        Ok(true)
    }

    /// Reads all that is there; drops the readers that are over or cut off.
    async fn read_all(&mut self) {
        let mut n = 0;
        while n < self.readers.len() {
            let at = self.readers[n].position;
            match self.read(n).await {
                Ok(true) if self.readers[n].position == at => n += 1,
                Ok(true) => {}
                Ok(false) => drop(self.readers.remove(n)),
                Err(failure) => {
                    let window = self.growing.0.window();
                    let lost = window.from.is_some_and(|from| window.start > from) && at < window.start;
                    drop(window);
                    assert!(matches!(failure, Failure::Behind) && lost, "{failure} at {at}");
                    drop(self.readers.remove(n));
                }
            }
        }
    }

    async fn act(&mut self, act: Act) {
        match act {
            Act::Write(pieces) => self.write(pieces),
            Act::LeaveFile if !self.window => {
                self.writer.leave_file(self.written as u64, Arc::new(()));
                self.window = true;
            }
            Act::Cut if self.window => drop(self.writer.cut_slowest(WINDOW_BYTES_MAX)),
            Act::Join(start, end) => self.readers.extend(self.growing.reader(start as u64, end.map(|end| end as u64)).ok()),
            Act::Read(n) if n < self.readers.len() => match self.read(n).await {
                Ok(true) => {}
                Ok(false) | Err(Failure::Behind) => drop(self.readers.remove(n)),
                Err(other) => panic!("{other}"),
            },
            Act::Leave(n) if n < self.readers.len() => drop(self.readers.remove(n)),
            _ => {}
        }
        let progress = self.growing.progress();
        let limit = if self.sized { SIZE.min(self.written).min(SIZE - 65_536) } else { self.written.saturating_sub(65_536) };
        assert_eq!(progress.ready, limit as u64, "the tail is held back");
        assert!(self.growing.0.window().len <= WINDOW_BYTES_MAX + PIECE as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn what_is_read_is_what_was_written(acts in prop::collection::vec(act(), 0..120), sized: bool, good: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let mut world = World::new(sized);
            for act in acts {
                world.act(act).await;
            }
            while world.written < SIZE {
                world.read_all().await;
                if world.readers.is_empty() {
                    let start = world.growing.0.window().start.min(world.written as u64);
                    world.readers.push(world.growing.reader(start, None).expect("serves from the window's start"));
                    world.read_all().await;
                }
                assert_eq!(world.writer.room(WINDOW_BYTES_MAX), Room::Free, "all was read, and yet there is no room");
                world.write(3);
            }
            if good {
                world.writer.finish(SIZE as u64);
                world.read_all().await;
                assert!(world.readers.is_empty(), "whoever was left has read to its end");
            } else {
                world.read_all().await;
                world.writer.fail(Failure::Corrupt);
                for n in 0..world.readers.len() {
                    assert!(matches!(world.read(n).await, Err(Failure::Corrupt)), "a failed blob never ends cleanly");
                }
            }
        });
    }
}
