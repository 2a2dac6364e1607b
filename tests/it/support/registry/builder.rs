//! How a scripted registry is set up before it listens.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use super::super::tls::{self, Certificate};
use super::Registry;
use super::cdn::SignedUrls;
use super::fault::Faults;
use super::listener::{Listener, Port};
use super::log::Log;
use super::quirks::Quirks;
use super::serve::{Host, Shared};

/// A registry to be.
#[derive(Clone, Debug)]
pub struct Builder {
    quirks: Quirks,
    tls: Vec<Port>,
    certificate: Certificate,
    own_addresses: Option<u8>,
    send_buffer: Option<usize>,
}

impl Builder {
    /// Docker Hub's ways.
    pub fn hub() -> Self {
        Self::new(Quirks::hub())
    }

    /// The ways of `docker-registry`.
    pub fn plain() -> Self {
        Self::new(Quirks::plain())
    }

    fn new(quirks: Quirks) -> Self {
        Self { quirks, tls: Vec::new(), certificate: Certificate::Good, own_addresses: None, send_buffer: None }
    }

    /// Changes its ways.
    pub fn quirks(mut self, change: impl FnOnce(&mut Quirks)) -> Self {
        change(&mut self.quirks);
        self
    }

    /// HTTPS at all listeners, with certificates of [`tls::authority_pem`].
    pub fn tls(self) -> Self {
        self.tls_at(&Port::ALL)
    }

    /// HTTPS at these listeners only: with the CDNs left out, as a registry that redirects to plain HTTP.
    pub fn tls_at(mut self, ports: &[Port]) -> Self {
        self.tls = ports.to_vec();
        self
    }

    /// HTTPS with a certificate that is wrong.
    pub fn certificate(mut self, certificate: Certificate) -> Self {
        self.certificate = certificate;
        self.tls()
    }

    /// Every listener at a loopback address of its own (127.0.0.1 to 127.0.0.5, which Linux has without being told), so
    /// that they differ by host and not by port alone.
    pub fn own_addresses(self) -> Self {
        self.own_addresses_from(1)
    }

    /// As [`Builder::own_addresses`], the first of them at `127.0.0.first`.
    pub fn own_addresses_from(mut self, first: u8) -> Self {
        self.own_addresses = Some(first);
        self
    }

    /// So many bytes of a body, not megabytes, wait in the kernel for a peer that does not read.
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = Some(bytes);
        self
    }

    /// Listens.
    pub async fn start(self) -> Registry {
        let reserve = |(port, own): (Port, u8)| {
            let last = self.own_addresses.map_or(1, |first| first + own);
            Listener::reserve(port, IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)))
        };
        let listeners: Vec<Listener> = Port::ALL.into_iter().zip(0..).map(reserve).collect();
        let tls = (!self.tls.is_empty()).then(|| tls::server(self.certificate));
        let host = |listener: &Listener| Host {
            port: listener.port(),
            address: listener.address(),
            tls: tls.clone().filter(|_| self.tls.contains(&listener.port())),
        };
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            quirks: Mutex::new(self.quirks),
            faults: Faults::default(),
            log: Log::new(),
            tokens: Mutex::default(),
            urls: Mutex::new(SignedUrls::new()),
            users: Mutex::default(),
            pulls: Mutex::default(),
            readers: Mutex::default(),
            violations: Mutex::default(),
            doors: Mutex::default(),
            connections: AtomicU64::new(0),
            hosts: listeners.iter().map(host).collect(),
            send_buffer: self.send_buffer,
        });
        let registry = Registry { shared, listeners: tokio::sync::Mutex::new(listeners) };
        registry.up().await;
        registry
    }
}
