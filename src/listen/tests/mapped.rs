//! Pieces of mapped files: they reach the socket as they are, cost no memory, and are in memory when they are written.

use std::io::IoSlice;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::listen::connection::Connections;
use crate::listen::mapped::Mapped;
use crate::mapping::{self, mapped, page_out};

/// A giver of files that nobody cuts, which tells when one of them cannot be sent.
struct Whole<F>(F);

impl<F: Fn(io::ErrorKind) + Send + Sync> Giver for Whole<F> {
    fn is_uncut(&self) -> bool {
        true
    }

    fn failed(&self, error: io::ErrorKind) {
        self.0(error);
    }
}

/// A giver of a file that is cut at some time, which is told why its piece was not sent.
#[derive(Default)]
struct Cut {
    now: AtomicBool,
    told: Mutex<Option<io::ErrorKind>>,
}

impl Giver for Cut {
    fn is_uncut(&self) -> bool {
        !self.now.load(Ordering::Relaxed)
    }

    fn failed(&self, error: io::ErrorKind) {
        *self.told.lock().unwrap() = Some(error);
    }
}

/// One whom nobody needs to tell.
pub(in crate::listen) fn nobody() -> Arc<dyn Giver> {
    Arc::new(Whole(|_| {}))
}

/// A body of pieces that lie in a mapping, and who gives them.
fn body<const N: usize>(pieces: [Bytes; N], giver: Arc<dyn Giver>) -> TestBody {
    let mut pieces = pieces.into_iter();
    let frames = stream::poll_fn(move |_| {
        let piece = pieces.next();
        if piece.is_some() {
            assert!(mapped_piece() > 0, "this connection takes none");
            gives_mapped(Arc::clone(&giver));
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// How often this thread has waited for a disk to bring a page.
fn waits() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(9).unwrap().parse().unwrap()
}

const LEN: usize = 3 << 20;

const LAST: &[u8] = b"GET / HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n";

async fn body_of(server: &Server) -> Vec<u8> {
    let mut socket = server.connect().await;
    socket.write_all(LAST).await.unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
    head.map_or_else(Vec::new, |head| answer.split_off(head + 4))
}

fn serving(piece: Bytes) -> Server {
    serving_telling(piece, nobody())
}

fn serving_telling(piece: Bytes, giver: Arc<dyn Giver>) -> Server {
    Server::start(Limits::default(), None, move |_, _| {
        let (piece, giver) = (piece.clone(), Arc::clone(&giver));
        Box::pin(async move {
            let len = HeaderValue::from(piece.len());
            // Of two that wait nobody can say that they were just seen.
            let mut response = Response::new(body([piece.slice(..mapping::PAGE), piece.slice(mapping::PAGE..)], giver));
            response.headers_mut().insert(CONTENT_LENGTH, len);
            response
        })
    })
}

#[tokio::test]
async fn what_the_kernel_took_back_is_brought_in_before_it_is_written() {
    let (file, bytes, mapping) = mapped(LEN);
    if !page_out(&file, &mapping) {
        return;
    }
    let server = serving(Bytes::from_owner(mapping));
    let before = waits();
    assert!(body_of(&server).await == bytes);
    // The runtime has this one thread for everything that may not wait.
    assert_eq!(waits(), before);
}

#[tokio::test]
async fn what_was_cut_off_breaks_its_connection_and_nothing_else_and_its_giver_is_told() {
    let (file, bytes, mapping) = mapped(LEN);
    let (tell, mut told) = mpsc::unbounded_channel();
    let server = serving_telling(Bytes::from_owner(mapping), Arc::new(Whole(move |error| tell.send(error).unwrap())));
    assert_eq!(body_of(&server).await.len(), bytes.len());
    assert!(told.try_recv().is_err(), "all of it was sent");
    file.set_len(LEN as u64 / 2).unwrap();
    for _ in 0..2 {
        assert!(body_of(&server).await.len() < bytes.len());
        tokio::time::timeout(Duration::from_secs(60), told.recv()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_file_that_was_cut_while_a_piece_lay_there_is_sent_no_further() {
    let (_file, bytes, mapping) = mapped(LEN);
    let giver = Arc::new(Cut::default());
    let service = {
        let (piece, giver) = (Bytes::from_owner(mapping), giver.clone());
        move |_, _| -> Answer {
            let (piece, giver) = (piece.clone(), giver.clone());
            Box::pin(async move {
                let len = HeaderValue::from(piece.len());
                let mut response = Response::new(body([piece], giver));
                response.headers_mut().insert(CONTENT_LENGTH, len);
                response
            })
        }
    };
    let server = Server::start(Limits::default(), None, service);
    assert!(body_of(&server).await == bytes);
    let mut socket = server.connect().await;
    socket.write_all(LAST).await.unwrap();
    read_to(&mut socket, "\r\n\r\n").await;
    // Both kernels hold less than it all. What they hold is right; what they do not, nobody can tell from zeros.
    giver.now.store(true, Ordering::Relaxed);
    let mut rest = Vec::new();
    let _ = socket.read_to_end(&mut rest).await;
    assert!(rest.len() < LEN - 1000, "{} bytes", rest.len());
    assert_eq!(*giver.told.lock().unwrap(), Some(io::ErrorKind::UnexpectedEof));
}

#[tokio::test]
async fn who_leaves_in_the_middle_is_no_fault_of_the_file() {
    let (_file, _, mapping) = mapped(LEN);
    let (tell, mut told) = mpsc::unbounded_channel();
    let server = serving_telling(Bytes::from_owner(mapping), Arc::new(Whole(move |error| tell.send(error).unwrap())));
    for _ in 0..2 {
        let mut socket = server.connect().await;
        socket.write_all(LAST).await.unwrap();
        read_to(&mut socket, "\r\n\r\n").await;
    }
    server.stop().await;
    assert!(told.try_recv().is_err());
}

/// A socket that notes where what it is given lies, and never looks at it.
struct Noting {
    request: &'static [u8],
    seen: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let request = std::mem::take(&mut self.request);
        buf.put_slice(request);
        if request.is_empty() { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncWrite for Noting {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.seen.lock().unwrap().push((buf.as_ptr().addr(), buf.len()));
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.seen.lock().unwrap().extend(bufs.iter().map(|buf| (buf.as_ptr().addr(), buf.len())));
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_mapped_piece_reaches_the_socket_as_it_is() {
    let (file, _, mapping) = mapped(LEN);
    // Whoever looked at it now would end the process.
    file.set_len(0).unwrap();
    let piece = Bytes::from_owner(mapping);
    let (at, len) = (piece.as_ptr().addr(), piece.len());
    let seen = Arc::default();
    let socket = Noting { request: LAST, seen: Arc::clone(&seen) };
    let connections = Connections::new(Limits::default(), None, CancellationToken::new());
    let client = Client { addr: ([127, 0, 0, 1], 1).into(), certificate: false };
    let served = connections.http1(socket, Some(Mapped::default()), client, move |_, _| {
        let piece = piece.clone();
        async move { Response::new(body([piece], nobody())) }
    });
    served.await.unwrap();
    assert!(seen.lock().unwrap().contains(&(at, len)), "{:?}", seen.lock().unwrap());
}

#[tokio::test]
async fn the_socket_of_a_connection_writes_what_it_is_given() {
    let server = Server::start(Limits::default(), None, echo);
    let socket = server.connect().await;
    let guard = crate::listen::guard::Guard::new(socket, STALL_TIMEOUT, Mapped::default());
    assert!(guard.is_write_vectored(), "hyper would copy what it writes");
}

#[tokio::test]
async fn pages_that_are_there_are_not_brought() {
    let (file, _, mapping) = mapped(LEN);
    let all = [IoSlice::new(b"a head"), IoSlice::new(mapping.as_ref())];
    assert!(crate::listen::mapped::bring(&all).is_none());
    if page_out(&file, &mapping) {
        crate::listen::mapped::bring(&all).expect("a page is not there").await.unwrap();
    }
    assert!(mapping::is_resident(mapping.as_ref()));
}

#[test]
fn what_was_just_seen_is_looked_for_from_the_second_write_on() {
    let mapped = Mapped::default();
    let give = || crate::listen::mapped::poll(Some(&mapped), || gives_mapped(nobody())).1.unwrap();
    assert!(!mapped.look());
    let first = give();
    assert_eq!((mapped.look(), mapped.look(), mapped.look()), (false, true, true));
    let second = give();
    assert!(mapped.look(), "the first has been there for a while");
    drop(first);
    assert!(mapped.look());
    drop(second);
    assert!(!mapped.look());
    let third = give();
    drop(third);
    assert!(!mapped.look() && !mapped.look());
}
