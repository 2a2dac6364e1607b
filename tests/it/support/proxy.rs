//! A scripted proxy: CONNECT, plain HTTP by the whole URL, and SOCKS5, on one port. It counts, and misbehaves when told to.
//!
//! Whatever name it is asked for, it connects to the loopback port that the test gave that name: tests can use names that
//! nobody resolves, and see by that who resolved them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::gate::Gate;

/// What it does to whoever comes.
#[derive(Clone, Debug)]
pub enum Mood {
    /// Leads on.
    Open,
    /// Reads what it is asked and says nothing until the gate opens.
    Silent(Gate),
    /// Sends these bytes in place of an answer, and closes.
    Says(&'static str),
    /// SOCKS5: this reply in place of success.
    Replies(u8),
}

/// A proxy that runs until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    places: BTreeMap<String, SocketAddr>,
    login: Option<(String, String)>,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<String>>,
}

impl Proxy {
    /// That wants no login, and knows these names, as `host:port`.
    pub async fn open(places: &[(&str, SocketAddr)]) -> Self {
        Self::start(places, None).await
    }

    /// That wants this login.
    pub async fn with_login(places: &[(&str, SocketAddr)], user: &str, password: &str) -> Self {
        Self::start(places, Some((user.into(), password.into()))).await
    }

    async fn start(places: &[(&str, SocketAddr)], login: Option<(String, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let places = places.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let shared = Arc::new(Shared { places, login, mood: Mutex::new(Mood::Open), asked: Mutex::default() });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Self { address, shared, task }
    }

    /// Where it is, as `host:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// What it does from now on.
    pub fn mood(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }

    /// What it was asked for: `CONNECT host:port`, `GET http://…` or `SOCKS host:port`.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn note(&self, what: String) {
        self.asked.lock().unwrap().push(what);
    }

    fn place(&self, name: &str) -> Option<SocketAddr> {
        self.places.get(name).copied().or_else(|| name.parse().ok())
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(serve(stream, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, shared: Arc<Shared>) -> Option<()> {
    let mut first = [0];
    stream.peek(&mut first).await.ok()?;
    if first[0] == 5 { socks(stream, &shared).await } else { http(&mut stream, &shared).await }
}

async fn http(stream: &mut TcpStream, shared: &Shared) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).unwrap();
    let line = text.lines().next().unwrap();
    let (method, rest) = line.split_once(' ').unwrap();
    let target = rest.strip_suffix(" HTTP/1.1").unwrap();
    shared.note(format!("{method} {target}"));
    let mood = shared.mood.lock().unwrap().clone();
    match mood {
        Mood::Silent(gate) => gate.wait().await,
        Mood::Says(text) => {
            stream.write_all(text.as_bytes()).await.ok()?;
            return stream.shutdown().await.ok();
        }
        Mood::Open | Mood::Replies(_) => {}
    }
    if let Some((user, password)) = &shared.login {
        let wanted = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")));
        let shown = text.lines().find_map(|line| line.to_ascii_lowercase().starts_with("proxy-authorization: ").then(|| &line[21..]));
        if shown != Some(&*wanted) {
            let refusal =
                "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"proxy\"\r\nContent-Length: 0\r\n\r\n";
            return stream.write_all(refusal.as_bytes()).await.ok();
        }
    }
    let name = if method == "CONNECT" { target } else { target.strip_prefix("http://").unwrap().split('/').next().unwrap() };
    let Some(place) = shared.place(name) else {
        return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await.ok();
    };
    let mut onward = TcpStream::connect(place).await.ok()?;
    if method == "CONNECT" {
        stream.write_all(b"HTTP/1.1 200 Connection established\r\nProxy-Agent: scripted\r\n\r\n").await.ok()?;
    } else {
        // One request a connection: what a client wants next comes by another, and is noted there.
        let path = &target["http://".len() + name.len()..];
        let headers =
            text.lines().skip(1).filter(|line| !line.to_ascii_lowercase().starts_with("proxy-authorization:") && !line.is_empty());
        let headers: String = headers.map(|line| format!("{line}\r\n")).collect();
        onward.write_all(format!("{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").as_bytes()).await.ok()?;
    }
    copy_bidirectional(stream, &mut onward).await.ok().map(drop)
}

async fn socks(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    let [_, count] = read::<2>(&mut stream).await?;
    let mut methods = vec![0; count.into()];
    stream.read_exact(&mut methods).await.ok()?;
    let method = if shared.login.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        return stream.write_all(&[5, 0xff]).await.ok();
    }
    stream.write_all(&[5, method]).await.ok()?;
    if let Some(login) = &shared.login {
        let _version = read::<1>(&mut stream).await?;
        let shown = (short(&mut stream).await?, short(&mut stream).await?);
        let good = shown == *login;
        stream.write_all(&[1, u8::from(!good)]).await.ok()?;
        if !good {
            return None;
        }
    }
    let [_, _, _, kind] = read::<4>(&mut stream).await?;
    let host = match kind {
        1 => std::net::Ipv4Addr::from(read::<4>(&mut stream).await?).to_string(),
        3 => short(&mut stream).await?,
        _ => panic!("an address of kind {kind}"),
    };
    let name = format!("{host}:{}", stream.read_u16().await.ok()?);
    shared.note(format!("SOCKS {name}"));
    let mood = shared.mood.lock().unwrap().clone();
    let reply = match mood {
        Mood::Silent(gate) => {
            gate.wait().await;
            0
        }
        Mood::Replies(reply) => reply,
        Mood::Open | Mood::Says(_) => 0,
    };
    let place = shared.place(&name).filter(|_| reply == 0);
    let Some(place) = place else {
        return stream.write_all(&[5, if reply == 0 { 4 } else { reply }, 0, 1, 0, 0, 0, 0, 0, 0]).await.ok();
    };
    let mut onward = TcpStream::connect(place).await.ok()?;
    // The address as a name, which is the longest way to say it.
    stream.write_all(b"\x05\x00\x00\x03\x07elsewhe\x00\x50").await.ok()?;
    copy_bidirectional(&mut stream, &mut onward).await.ok().map(drop)
}

async fn read<const N: usize>(stream: &mut TcpStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

async fn short(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = vec![0; stream.read_u8().await.ok()?.into()];
    stream.read_exact(&mut bytes).await.ok()?;
    String::from_utf8(bytes).ok()
}
