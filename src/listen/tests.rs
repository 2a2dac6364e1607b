//! The listener over real sockets on the loopback; where a limit is a time, in paused time.

mod drain;
mod hostile;
mod limits;
pub(super) mod mapped;
mod secure;

use std::convert::Infallible;
use std::io;
use std::pin::Pin;

use futures_util::stream::{self, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

type TestBody = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Pin<Box<dyn Future<Output = Response<TestBody>> + Send>>;

/// A listener that serves until told to stop.
struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    done: JoinHandle<Drained>,
}

impl Server {
    fn start<S>(limits: Limits, tls: Option<Certificates>, service: S) -> Self
    where
        S: Fn(Client, Request<Incoming>) -> Answer + Clone + Send + 'static,
    {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), tls).unwrap();
        let (addr, stop) = (listener.addr(), CancellationToken::new());
        let done = tokio::spawn(listener.serve(service, limits, stop.clone()));
        Self { addr, stop, done }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    async fn stop(self) -> Drained {
        self.stop.cancel();
        self.done.await.unwrap()
    }
}

/// Answers what is checked with 200, the path and who asked; anything else as the check says.
fn echo(client: Client, request: Request<Incoming>) -> Answer {
    Box::pin(async move {
        match check(&request) {
            Ok(()) => {
                let certificate = if client.certificate { " with a certificate" } else { "" };
                Response::new(full(format!("{}{certificate}", request.uri().path())))
            }
            Err(refusal) => {
                let mut response = Response::new(full(refusal.to_string()));
                *response.status_mut() = refusal.status();
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
        }
    })
}

fn full(text: impl Into<Bytes>) -> TestBody {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body whose frames the test sends; it ends when the sender is dropped.
fn piecewise() -> (mpsc::UnboundedSender<io::Result<Bytes>>, TestBody) {
    let (sender, receiver) = mpsc::unbounded_channel::<io::Result<Bytes>>();
    let frames = stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|frame| (frame.map(Frame::data), receiver)) });
    (sender, StreamBody::new(frames).boxed_unsync())
}

/// A body that gives as long as it is taken, and whose end can be waited for.
fn endless() -> (mpsc::Receiver<Infallible>, TestBody) {
    let (alive, end) = mpsc::channel::<Infallible>(1);
    let chunk = Bytes::from(vec![7; 1 << 20]);
    let frames = stream::repeat(()).map(move |()| {
        let _held = &alive;
        Ok(Frame::data(chunk.clone()))
    });
    (end, StreamBody::new(frames).boxed_unsync())
}

/// A service that gives this body to the first request, and panics at the second.
fn once(body: TestBody) -> impl Fn(Client, Request<Incoming>) -> Answer + Clone + Send + 'static {
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    move |_, _| {
        let body = body.lock().unwrap().take().expect("one request");
        Box::pin(async move { Response::new(body) })
    }
}

const GET: &[u8] = b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n";

/// Reads until the text ends like this, which must come.
async fn read_to(socket: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let byte = socket.read_u8().await.unwrap_or_else(|error| panic!("{error} after {:?}", String::from_utf8_lossy(&text)));
        text.push(byte);
    }
    String::from_utf8(text).unwrap()
}

/// Reads until the server closes; a reset is a close too.
async fn read_all(socket: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut text = Vec::new();
    let _ = socket.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// The time since `start` lies within a second after `limit`.
#[track_caller]
fn assert_took(start: Instant, limit: Duration) {
    let took = start.elapsed();
    assert!(took >= limit && took <= limit + Duration::from_secs(1), "took {took:?}, the limit is {limit:?}");
}
