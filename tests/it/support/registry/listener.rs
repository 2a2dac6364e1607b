//! The sockets of a scripted registry: each keeps its port for the registry's whole life, listening or not.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use super::serve::{Shared, connection};

/// The listeners of a registry, as many hosts to its clients.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Port {
    /// The registry API.
    Registry,
    /// The token server.
    Auth,
    /// A CDN that signs `?verify=`.
    CdnA,
    /// Another, that signs `?Expires=&Signature=`.
    CdnB,
    /// Search.
    Search,
}

impl Port {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::Registry, Self::Auth, Self::CdnA, Self::CdnB, Self::Search];
}

/// A port that is ours, and the task that listens on it.
pub(super) struct Listener {
    port: Port,
    address: SocketAddr,
    // Bound but never listening. While nobody listens the kernel refuses connections, and gives the port to nobody else.
    reserved: TcpSocket,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Listener {
    pub(super) fn reserve(port: Port, ip: IpAddr) -> Self {
        let reserved = socket(SocketAddr::new(ip, 0));
        Self { port, address: reserved.local_addr().unwrap(), reserved, running: None }
    }

    pub(super) fn port(&self) -> Port {
        self.port
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Listens, unless it does already.
    pub(super) fn up(&mut self, shared: &Arc<Shared>) {
        if self.running.is_none() {
            let listener = socket(self.address).listen(1024).unwrap();
            let (stop, stopped) = oneshot::channel();
            let task = tokio::spawn(accept(listener, self.port, shared.clone(), stopped));
            self.running = Some(Running { stop, task });
        }
    }

    /// Listens no more, and closes the connections that are open; done when it is done.
    pub(super) async fn down(&mut self) {
        if let Some(Running { stop, task }) = self.running.take() {
            let _ = stop.send(());
            task.await.unwrap();
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    // Lets the listening socket share the port with the one that reserves it.
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

async fn accept(listener: TcpListener, port: Port, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => break,
            accepted = listener.accept() => {
                let (socket, _) = accepted.unwrap();
                connections.spawn(connection(shared.clone(), port, socket));
            }
            Some(ended) = connections.join_next() => {
                // A panic is a mistake of the kit or the test: it must not pass as a connection that broke.
                if let Err(panicked) = ended {
                    shared.violation(format!("the registry itself failed: {panicked}"));
                }
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}
