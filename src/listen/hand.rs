//! What answers hold in memory for clients that have not taken it yet: counted for the whole listener, and kept small when there are many.
//!
//! hyper takes a piece of a body before it knows whether the client has room for it, and HTTP/2 takes one for every stream, even with no window
//! at all. Alone that is nothing; times a thousand clients that do not read it would be hundreds of megabytes. So each piece is counted from
//! when a body gives it until the last of its bytes is sent ([`Held`]). While less than [`AMPLE`] is out, every body gives pieces of
//! [`PIECE_MAX`]. Beyond, a body gives [`PIECE_MIN`] at a time, and the next when the last is gone; only who has proved to read quickly
//! goes on with large ones, until [`MOST`] is out.
//!
//! A body learns how much it may give from [`piece`], which is true while it is polled.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::mapped::{self, Given, Mapped};
use super::streams::Stream;

/// Bytes of a piece, when all is well. Larger gains nothing on loopback.
pub const PIECE_MAX: u64 = 64 << 10;

/// Bytes of a piece in a crowd. 8192 connections that take nothing hold 64 MiB of them, as much again over TLS.
pub(super) const PIECE_MIN: u64 = 8 << 10;

/// Bytes in hand up to which nobody needs to save: 96 clients with a large piece each.
pub(super) const AMPLE: u64 = 6 << 20;

/// Bytes in hand beyond which everybody saves, however quick: with a thousand connections it leaves the process below 100 MB.
pub(super) const MOST: u64 = 32 << 20;

/// Bytes that a client takes without a [`PAUSE`] when it is quick. More than both kernels hold for a client that reads nothing: theirs are
/// taken as quickly. Ours takes what `unsent` says, a client's some hundred KiB.
const QUICK: u64 = 512 << 10;

/// Bytes after which an answer lets others have their turn. A client on the same host, or on a fast network, can take more than a worker can
/// give, and would keep it for itself.
const BURST: u64 = 4 << 20;

/// How long a quick client may keep the server waiting, for the next piece to be given or for room in its socket. Longer, and it waits less
/// for the server than the server for it.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// Set before a body is polled; it is polled to the end of its piece on the same thread.
    static PIECE: Cell<u64> = const { Cell::new(PIECE_MAX) };
}

/// How many bytes the body that is being polled should give at the most. Giving more is no fault, where they are in memory already.
pub fn piece() -> u64 {
    PIECE.get()
}

/// Bytes in hand, of all answers of a listener. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Hands(Arc<AtomicU64>);

/// What is in hand for one HTTP/1 connection, whose answers come one after the other, or for one HTTP/2 stream. Cheap to clone.
#[derive(Clone)]
pub(super) struct Hand(Arc<InHand>);

struct InHand {
    bytes: AtomicU64,
    emptied: AtomicWaker,
    /// With that of all others.
    all: Hands,
}

impl Hands {
    /// One that is empty.
    pub(super) fn hand(&self) -> Hand {
        Hand(Arc::new(InHand { bytes: AtomicU64::new(0), emptied: AtomicWaker::new(), all: self.clone() }))
    }
}

/// Bytes that count as in hand until they are dropped, which is when they were sent.
pub(super) struct Held<D> {
    data: D,
    bytes: u64,
    hand: Hand,
    _mapped: Option<Given>,
}

impl<D> Held<D> {
    fn new(data: D, bytes: u64, hand: &Hand, mapped: Option<Given>) -> Self {
        if bytes > 0 {
            hand.0.all.0.fetch_add(bytes, Ordering::Relaxed);
            hand.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        Self { data, bytes, hand: hand.clone(), _mapped: mapped }
    }
}

impl<D> Drop for Held<D> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let hand = &self.hand.0;
        hand.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
        // Release: who sees an empty hand sees it after the piece was sent.
        if hand.bytes.fetch_sub(self.bytes, Ordering::AcqRel) == self.bytes {
            hand.emptied.wake();
        }
    }
}

impl<D: Buf> Buf for Held<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [std::io::IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, bytes: usize) {
        self.data.advance(bytes);
    }
}

/// An answer's body that gives no more than its client's share.
pub(super) struct Paced<B> {
    body: B,
    hand: Hand,
    /// Bytes given since the client last kept the server waiting, and when the last of them were.
    run: u64,
    last: Option<Instant>,
    /// Where the connection can send what lies in a mapping.
    mapped: Option<Mapped>,
    /// Bytes given since others had their turn.
    burst: u64,
    /// On HTTP/2: told whether the answer waits for its source or for the client.
    stream: Option<Stream>,
}

impl<B: Body + Unpin> Paced<B> {
    pub(super) fn new(body: B, hand: Hand, mapped: Option<Mapped>, mut stream: Option<Stream>) -> Self {
        if let Some(stream) = &mut stream {
            // An empty body is never polled.
            stream.serving(false);
        }
        Self { body, hand, run: 0, last: None, mapped, burst: 0, stream }
    }

    /// How much may be given now; waits for the client where there is a crowd.
    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<u64> {
        let out = self.out();
        if out < AMPLE {
            return Poll::Ready(PIECE_MAX);
        }
        if self.last.is_some_and(|last| last.elapsed() > PAUSE) {
            self.run = 0;
        }
        if self.run >= QUICK && out < MOST {
            return Poll::Ready(PIECE_MAX);
        }
        let hand = &self.hand.0;
        if hand.bytes.load(Ordering::Acquire) == 0 {
            return Poll::Ready(PIECE_MIN);
        }
        hand.emptied.register(cx.waker());
        // It may have been emptied before the waker was there.
        if hand.bytes.load(Ordering::Acquire) == 0 { Poll::Ready(PIECE_MIN) } else { Poll::Pending }
    }

    /// Bytes in hand, of all.
    fn out(&self) -> u64 {
        self.hand.0.all.0.load(Ordering::Relaxed)
    }

    fn tell(&mut self, tell: impl FnOnce(&mut Stream)) {
        if let Some(stream) = &mut self.stream {
            tell(stream);
        }
    }
}

impl<B: Body + Unpin> Body for Paced<B> {
    type Data = Held<B::Data>;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, B::Error>>> {
        let this = &mut *self;
        if this.burst >= BURST {
            this.burst = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let Poll::Ready(piece) = this.poll_turn(cx) else {
            this.tell(|stream| stream.serving(false));
            return Poll::Pending;
        };
        PIECE.set(piece);
        let (polled, mapped) = mapped::poll(this.mapped.as_ref(), || Pin::new(&mut this.body).poll_frame(cx));
        PIECE.set(PIECE_MAX);
        if polled.is_pending() {
            this.tell(|stream| stream.serving(true));
        }
        let frame = ready!(polled);
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|data| {
                    let bytes = data.remaining() as u64;
                    this.tell(|stream| stream.gave(bytes));
                    this.run += bytes;
                    this.burst += bytes;
                    // What is mapped is nobody's memory: it can be had again.
                    let bytes = if mapped.is_some() { 0 } else { bytes };
                    this.last = (this.out() >= AMPLE / 2).then(Instant::now);
                    Held::new(data, bytes, &this.hand, mapped)
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;

    use super::*;

    /// Gives as much as it may, for ever.
    struct Endless;

    impl Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let bytes = vec![7; usize::try_from(piece()).unwrap()];
            Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
        }
    }

    /// The next piece, if there is one now.
    fn give(body: &mut Paced<Endless>, waker: &std::task::Waker) -> Option<Held<Bytes>> {
        match Pin::new(body).poll_frame(&mut Context::from_waker(waker)) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            _ => None,
        }
    }

    fn take(body: &mut Paced<Endless>) -> Option<u64> {
        give(body, std::task::Waker::noop()).map(|held| held.remaining() as u64)
    }

    /// As if others had so much in hand.
    fn others(hands: &Hands, bytes: u64) {
        hands.0.store(bytes, Ordering::Relaxed);
    }

    #[tokio::test(start_paused = true)]
    async fn alone_a_client_may_have_what_it_wants() {
        let hands = Hands::default();
        let mut body = Paced::new(Endless, hands.hand(), None, None);
        let held: Vec<_> = (0..10).map(|_| give(&mut body, std::task::Waker::noop()).unwrap()).collect();
        assert!(held.iter().all(|held| held.remaining() as u64 == PIECE_MAX));
        assert_eq!(hands.0.load(Ordering::Relaxed), 10 * PIECE_MAX);
        drop(held);
        assert_eq!(hands.0.load(Ordering::Relaxed), 0, "what was sent is in nobody's hand");
        assert_eq!(piece(), PIECE_MAX, "outside of a poll nothing is asked to be small");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_all_lets_others_have_their_turn() {
        let mut body = Paced::new(Endless, Hands::default().hand(), None, None);
        let (woken, waker) = counter();
        for turn in 1..4 {
            let given = std::iter::from_fn(|| give(&mut body, &waker)).map(|held| held.remaining() as u64).sum::<u64>();
            assert_eq!((given, woken.count()), (BURST, turn), "it comes back by itself");
        }
    }

    /// Gives a mapped piece for ever.
    struct Mapping;

    impl Body for Mapping {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            assert!(mapped::mapped_piece() > 0);
            mapped::gives_mapped(crate::listen::tests::mapped::nobody());
            Poll::Ready(Some(Ok(Frame::data(vec![7; 1 << 20].into()))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_mapped_piece_is_in_nobodys_hand_and_is_looked_after_until_it_is_sent() {
        let (hands, mapped) = (Hands::default(), Mapped::default());
        let mut body = Paced::new(Mapping, hands.hand(), Some(mapped.clone()), None);
        let mut give = || match Pin::new(&mut body).poll_frame(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok().unwrap(),
            _ => panic!("it gives"),
        };
        let (first, second) = (give(), give());
        assert_eq!(hands.0.load(Ordering::Relaxed), 0);
        drop(first);
        assert!(mapped.any());
        drop(second);
        assert!(!mapped.any());
        assert_eq!(mapped::mapped_piece(), 0, "only while it is polled");
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_crowd_it_is_one_small_piece_at_a_time() {
        let hands = Hands::default();
        others(&hands, AMPLE);
        let mut body = Paced::new(Endless, hands.hand(), None, None);
        let (woken, waker) = counter();
        let first = give(&mut body, &waker).unwrap();
        assert_eq!(first.remaining() as u64, PIECE_MIN);
        assert!(give(&mut body, &waker).is_none(), "the first is not sent yet");
        assert_eq!(woken.count(), 0);
        drop(first);
        assert_eq!(woken.count(), 1);
        assert_eq!(take(&mut body), Some(PIECE_MIN));
        // The crowd goes: all as before.
        others(&hands, 0);
        assert_eq!(take(&mut body), Some(PIECE_MAX));
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_quickly_has_large_pieces_until_it_pauses() {
        let hands = Hands::default();
        others(&hands, AMPLE);
        let mut body = Paced::new(Endless, hands.hand(), None, None);
        let small = std::iter::from_fn(|| take(&mut body).filter(|&bytes| bytes == PIECE_MIN)).count() as u64;
        assert_eq!(small, QUICK / PIECE_MIN);
        assert_eq!(take(&mut body), Some(PIECE_MAX));
        others(&hands, MOST);
        assert_eq!(take(&mut body), Some(PIECE_MIN), "there is too much in hand for anybody");
        others(&hands, AMPLE);
        assert_eq!(take(&mut body), Some(PIECE_MAX));
        tokio::time::advance(PAUSE * 2).await;
        assert_eq!(take(&mut body), Some(PIECE_MIN));
    }

    /// A waker that counts.
    fn counter() -> (Arc<Woken>, std::task::Waker) {
        let woken = Arc::new(Woken::default());
        (Arc::clone(&woken), std::task::Waker::from(woken))
    }

    #[derive(Default)]
    struct Woken(AtomicU64);

    impl Woken {
        fn count(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
