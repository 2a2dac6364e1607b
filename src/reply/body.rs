//! The body of every answer: bytes from memory, from a whole file, or from a blob that is still arriving, in any ranges.
//!
//! Promises: a body ends cleanly only when every byte of it was handed over; else it ends with an error, and the
//! connection breaks short of its Content-Length or without its last chunk. What is told of the request is told when its
//! body ends, whichever way.
//!
//! A disk that cannot be read in the middle of a body is no reason to break it: the content is asked for anew, and the body
//! goes on where it was. Never over bytes that nobody verified: those of a blob that is arriving are first seen to its end.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use tokio_util::sync::ReusableBoxFuture;

use crate::cache::{Blob, Failure, Growing, Reader};
use crate::listen;
use crate::mapping::PAGE;
use crate::observe::{Line, Outcome};

/// How often a body asks for its content anew: a held file that cannot be read, the transfer that replaces it and cannot be
/// read either, and the one after that, which does without the disk; and once for luck.
const AGAIN_MAX: u32 = 4;

/// A piece of fewer bytes is read rather than sent from a mapping: as quick, and the client has them whatever becomes of the file.
const MAPPED_PIECE_MIN: u64 = 16 << 10;

/// Asks for a content anew, from an offset on; nothing when it cannot be had.
pub type Again = Arc<dyn Fn(u64) -> BoxFuture<'static, Option<Content>> + Send + Sync>;

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The blob that was arriving will not be whole.
    #[error("the blob did not arrive: {0}")]
    Failed(Failure),
    /// The file cannot be read any more.
    #[error("the blob's file cannot be read: {0}")]
    Disk(io::ErrorKind),
}

/// Where the bytes of a content are.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory.
    Memory(Bytes),
    /// On disk.
    Whole(Blob),
    /// Arriving.
    Growing(Growing),
}

/// The body of an answer.
#[derive(Default)]
pub struct Body {
    /// What comes next, and after it.
    next: Option<Part>,
    later: VecDeque<Part>,
    current: Option<Flow>,
    /// Bytes still to come, where that is known.
    left: Option<u64>,
    /// How the answer came about.
    pub(crate) outcome: Option<Outcome>,
    line: Option<Line>,
    /// Where the current part is, for it to go on there.
    place: Option<Place>,
    /// Bytes went out of a blob that is arriving: nobody has verified them yet.
    unproven: bool,
    again: Option<Again>,
    agains: u32,
}

/// Where a part is in its content.
struct Place {
    content: Content,
    at: u64,
    end: Option<u64>,
}

/// A part of a body that has not begun.
enum Part {
    Text(Bytes),
    Range(Content, u64, Option<u64>),
    Many(Many),
}

/// The ranges that are still to come. A thousand of them wait as numbers; the text before each is made when it is sent.
struct Many {
    content: Content,
    ranges: std::vec::IntoIter<Range<u64>>,
    head: Head,
    end: Bytes,
}

/// Makes the text that stands before a range.
type Head = Box<dyn Fn(&Range<u64>) -> Bytes + Send>;

/// The part that is being sent.
enum Flow {
    Bytes(Bytes),
    File { blob: Blob, at: u64, end: u64, waiting: Option<BoxFuture<'static, io::Result<Bytes>>>, giver: Option<Arc<dyn listen::Giver>> },
    Growing(ReusableBoxFuture<'static, (Reader, Result<Option<Bytes>, Failure>)>),
    Again { asking: BoxFuture<'static, Option<Content>>, why: Option<BodyError> },
}

impl Body {
    /// Nothing.
    pub fn empty() -> Self {
        Self { left: Some(0), ..Self::default() }
    }

    /// These bytes.
    pub fn bytes(bytes: Bytes) -> Self {
        Self { left: Some(bytes.len() as u64), next: Some(Part::Text(bytes)), ..Self::default() }
    }

    /// All of a content; `size` is `None` when nobody has said one.
    pub fn whole(content: Content, size: Option<u64>) -> Self {
        Self { left: size, next: Some(Part::Range(content, 0, size)), ..Self::default() }
    }

    /// A range of a content.
    pub fn range(content: Content, range: &Range<u64>) -> Self {
        let left = Some(range.end - range.start);
        Self { left, next: Some(Part::Range(content, range.start, Some(range.end))), ..Self::default() }
    }

    /// Ranges of a content, each after a text of its own, and a text at the end (`multipart/byteranges`).
    pub fn ranges(content: Content, ranges: Vec<Range<u64>>, head: Head, end: Bytes) -> Self {
        let length = |range: &Range<u64>| head(range).len() as u64 + (range.end - range.start);
        let left = ranges.iter().map(length).sum::<u64>() + end.len() as u64;
        let many = Many { content, ranges: ranges.into_iter(), head, end };
        Self { left: Some(left), next: Some(Part::Many(many)), ..Self::default() }
    }

    /// Its length, where it is known.
    pub fn len(&self) -> Option<u64> {
        self.left
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.left == Some(0)
    }

    /// What is to be told of the request when this body ends.
    #[must_use]
    pub fn telling(mut self, mut line: Line) -> Self {
        if self.is_empty() {
            // Nobody will ask an empty body for its end.
            line.whole();
        }
        self.line = Some(line);
        self
    }

    /// Asks by this for its content anew when the disk fails it.
    #[must_use]
    pub fn or_again(self, again: Again) -> Self {
        Self { again: Some(again), ..self }
    }

    /// The same headers would have been sent with a body: HEAD has none.
    #[must_use]
    pub fn without_bytes(self) -> Self {
        Self { line: self.line, ..Self::empty() }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if let Some(Flow::Again { asking, why }) = &mut self.current {
                let content = ready!(asking.as_mut().poll(context));
                let (Some(content), Some(place)) = (content, self.place.take()) else {
                    return Poll::Ready(why.take().map(Err));
                };
                self.unproven = false;
                if let Some(part) = self.next.replace(Part::Range(content, place.at, place.end)) {
                    self.later.push_front(part);
                }
                self.current = None;
            }
            if let Some(flow) = &mut self.current {
                match ready!(flow.poll(context)) {
                    Some(Ok(bytes)) => {
                        if let Some(place) = &mut self.place {
                            place.at += bytes.len() as u64;
                            self.unproven |= matches!(place.content, Content::Growing(_));
                        }
                        return Poll::Ready(Some(Ok(bytes)));
                    }
                    Some(Err(error)) => match self.come_back(error) {
                        Ok(()) => continue,
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    },
                    None => self.current = None,
                }
            }
            let part = match self.next.take().or_else(|| self.later.pop_front()) {
                None => return Poll::Ready(None),
                Some(Part::Many(mut many)) => {
                    match many.ranges.next() {
                        Some(range) => {
                            self.later.push_back(Part::Text((many.head)(&range)));
                            self.later.push_back(Part::Range(many.content.clone(), range.start, Some(range.end)));
                            self.later.push_back(Part::Many(many));
                        }
                        None => self.later.push_back(Part::Text(many.end)),
                    }
                    continue;
                }
                Some(part) => part,
            };
            self.place = part.place();
            match part.begin() {
                Ok(flow) => self.current = Some(flow),
                Err(failure) => {
                    if let Err(error) = self.come_back(BodyError::Failed(failure)) {
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
        }
    }

    /// Asks for the content anew, where that may help and is right.
    fn come_back(&mut self, why: BodyError) -> Result<(), BodyError> {
        let (Some(again), Some(place)) = (&self.again, &self.place) else { return Err(why) };
        // What was sent of a blob that is arriving must turn out to be right, before other bytes follow it.
        let proof = match (&why, &place.content) {
            // A file that was cut was changed by somebody: who knows what else.
            (BodyError::Disk(io::ErrorKind::UnexpectedEof), _) => return Err(why),
            (BodyError::Disk(_), Content::Whole(_)) => None,
            (BodyError::Failed(failure), Content::Growing(_)) if failure.is_of_this_transfer() && !self.unproven => None,
            (BodyError::Failed(Failure::Disk(_)), Content::Growing(growing)) => Some(growing.clone()),
            _ => return Err(why),
        };
        if self.agains == AGAIN_MAX {
            return Err(why);
        }
        self.agains += 1;
        tracing::warn!(at = place.at, error = %why, "a body cannot go on from where its bytes came from; they are asked for anew");
        let (again, at) = (again.clone(), place.at);
        let asking = Box::pin(async move {
            match proof {
                Some(growing) => growing.whole().await.ok()?,
                None => 0,
            };
            again(at).await
        });
        self.current = Some(Flow::Again { asking, why: Some(why) });
        Ok(())
    }
}

impl Part {
    fn place(&self) -> Option<Place> {
        match self {
            Self::Text(_) | Self::Many(_) | Self::Range(Content::Memory(_), ..) => None,
            Self::Range(content, at, end) => Some(Place { content: content.clone(), at: *at, end: *end }),
        }
    }

    fn begin(self) -> Result<Flow, Failure> {
        Ok(match self {
            Self::Text(bytes) => Flow::Bytes(bytes),
            // Taken apart before it begins.
            Self::Many(many) => Flow::Bytes(many.end),
            Self::Range(Content::Memory(bytes), start, end) => {
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Flow::Bytes(bytes.slice(at(start)..at(end.unwrap_or(u64::MAX))))
            }
            Self::Range(Content::Whole(blob), start, end) => {
                Flow::File { end: end.unwrap_or_else(|| blob.size()), blob, at: start, waiting: None, giver: None }
            }
            Self::Range(Content::Growing(growing), start, end) => Flow::Growing(ReusableBoxFuture::new(next(growing.reader(start, end)?))),
        })
    }
}

async fn next(mut reader: Reader) -> (Reader, Result<Option<Bytes>, Failure>) {
    let bytes = reader.next_upto(listen::piece).await;
    (reader, bytes)
}

impl Flow {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        match self {
            Self::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready(if bytes.is_empty() { None } else { Some(Ok(bytes)) })
            }
            Self::File { blob, at, end, waiting, giver } => poll_file(blob, at, *end, waiting, giver, context),
            Self::Growing(future) => {
                let (reader, bytes) = ready!(future.poll(context));
                Poll::Ready(match bytes {
                    Ok(Some(bytes)) => {
                        future.set(next(reader));
                        Some(Ok(bytes))
                    }
                    Ok(None) => {
                        // Polled no more: the part is over.
                        future.set(next(reader));
                        None
                    }
                    Err(failure) => Some(Err(BodyError::Failed(failure))),
                })
            }
            // The body itself looks after it.
            Self::Again { .. } => Poll::Pending,
        }
    }
}

/// Reads what the page cache has at once, and the rest on the blocking pool: a runtime's worker never waits for the disk, and
/// no client for one that does not answer.
fn poll_file(
    blob: &Blob,
    at: &mut u64,
    end: u64,
    waiting: &mut Option<BoxFuture<'static, io::Result<Bytes>>>,
    giver: &mut Option<Arc<dyn listen::Giver>>,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, BodyError>>> {
    if *at >= end {
        return Poll::Ready(None);
    }
    let max = listen::piece().min(end - *at);
    let read = loop {
        if let Some(reading) = waiting {
            let read = ready!(reading.as_mut().poll(context));
            *waiting = None;
            break read;
        }
        // Never while a read is on its way: its bytes would come once more.
        if let Some(bytes) = mapped_now(blob, *at, end, giver) {
            break Ok(bytes);
        }
        if let Some(bytes) = blob.read_now(*at, max) {
            break Ok(bytes);
        }
        *waiting = Some(Box::pin(blob.clone().read(*at, max)));
    };
    Poll::Ready(Some(match read {
        // Somebody truncated the file: what is missing must not look like the end.
        Ok(bytes) if bytes.is_empty() => Err(BodyError::Disk(io::ErrorKind::UnexpectedEof)),
        Ok(bytes) => {
            *at += bytes.len() as u64;
            Ok(bytes)
        }
        Err(error) => Err(BodyError::Disk(error.kind())),
    }))
}

/// Bytes for a connection that takes them as the kernel has them. Up to the end of a page, or of what is wanted.
fn mapped_now(blob: &Blob, at: u64, end: u64, giver: &mut Option<Arc<dyn listen::Giver>>) -> Option<Bytes> {
    let max = listen::mapped_piece();
    let upto = if end - at <= max { end } else { (at + max) / PAGE as u64 * PAGE as u64 };
    let len = upto.checked_sub(at).filter(|&len| len >= MAPPED_PIECE_MIN && max > 0)?;
    let bytes = blob.mapped_now(at, len)?;
    let giver = giver.get_or_insert_with(|| Arc::new(Gives { blob: blob.clone(), told: AtomicBool::new(false) }));
    listen::gives_mapped(Arc::clone(giver));
    Some(bytes)
}

/// A blob of which mapped pieces are on their way.
struct Gives {
    blob: Blob,
    /// Two of them may be.
    told: AtomicBool,
}

impl listen::Giver for Gives {
    fn is_uncut(&self) -> bool {
        self.blob.is_uncut()
    }

    fn failed(&self, error: io::ErrorKind) {
        if !self.told.swap(true, Ordering::Relaxed) {
            self.blob.cannot_be_sent(error);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let next = ready!(self.poll_next(context));
        let this = &mut *self;
        Poll::Ready(match next {
            Some(Ok(bytes)) => {
                let len = bytes.len() as u64;
                this.left = this.left.map(|left| left.saturating_sub(len));
                if let Some(line) = &mut this.line {
                    line.sent(len);
                    if this.left == Some(0) {
                        line.whole();
                    }
                }
                Some(Ok(Frame::data(bytes)))
            }
            Some(Err(error)) => {
                this.next = None;
                this.later.clear();
                this.current = None;
                if let Some(line) = &mut this.line {
                    line.failed(&error);
                }
                Some(Err(error))
            }
            None => {
                if let Some(line) = &mut this.line {
                    line.whole();
                }
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn ranges_of_memory_are_cut_and_joined() {
        let content = Content::Memory(Bytes::from_static(b"0123456789"));
        let range = Body::range(content.clone(), &(2..5));
        assert_eq!(range.len(), Some(3));
        assert_eq!(range.collect().await.expect("whole").to_bytes(), "234");
        let head = |range: &Range<u64>| Bytes::from(format!("<{}>", range.start));
        let body = Body::ranges(content, vec![0..1, 8..10], Box::new(head), Bytes::from_static(b"<end>"));
        let expected = "<0>0<8>89<end>";
        assert_eq!(body.len(), Some(expected.len() as u64));
        assert_eq!(body.collect().await.expect("whole").to_bytes(), expected);
    }

    #[tokio::test]
    async fn an_empty_body_is_at_its_end() {
        let body = Body::whole(Content::Memory(Bytes::new()), Some(0));
        assert!(http_body::Body::is_end_stream(&body));
        assert!(body.collect().await.expect("whole").to_bytes().is_empty());
    }
}
