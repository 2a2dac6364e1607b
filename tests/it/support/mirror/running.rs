//! The mirror inside the test's own process: the real server on free ports.

use std::ops::Deref;

use millpond::config::Config;
use millpond::serve::{Parts, Server};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::patience::within;
use super::{Builder, Place};

/// A mirror that serves until it is stopped or dropped.
pub struct Mirror {
    place: Place,
    settings: Builder,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Mirror {
    pub(super) fn start(settings: Builder) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (place, task) = launch(&settings, stopped);
        Self { place, settings, stop: Some(stop), task }
    }

    /// Stops it as SIGTERM does, and waits until it has drained. What comes back starts it again over the same data.
    pub async fn stop(mut self) -> Builder {
        let _ = self.stop.take().map(|stop| stop.send(()));
        within("the end of the mirror", &mut self.task).await.expect("the mirror did not panic");
        self.settings.clone()
    }

    /// Its settings and its folder.
    pub fn settings(&self) -> &Builder {
        &self.settings
    }
}

impl Deref for Mirror {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens the server and serves until `stop`. The one place of the kit that knows the server's own interface.
fn launch(settings: &Builder, stop: oneshot::Receiver<()>) -> (Place, JoinHandle<()>) {
    let Config { server, access, cache, pull, upstreams, .. } = settings.config();
    let parts = Parts { server, access, cache, pull, upstreams };
    let server = Server::open(parts, settings.tuning.clone()).unwrap_or_else(|error| panic!("{error}\n{}", settings.toml()));
    let place = Place { address: server.addr(), admin: server.admin_addr(), tls: server.has_tls() };
    (place, tokio::spawn(server.run(async { drop(stop.await) })))
}
