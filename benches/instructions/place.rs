//! The server that is counted, the registry that it was filled from, and a client that does as little as it can: all in one thread.

use std::net::SocketAddr;
use std::sync::Arc;

use millpond::config::{Config, File, Sources, load};
use millpond::log::{EnvFilter, Log};
use millpond::oci::Digest;
use millpond::serve::{Parts, Server, Tuning};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// A blob that is held in memory.
pub(crate) const SMALL_BYTES: usize = 40_000;

/// One that is not.
const LARGE_BYTES: usize = 2_000_000;

/// What the registry has, in one repository.
pub(crate) struct Image {
    pub(crate) manifest_digest: String,
    pub(crate) small_digest: String,
    pub(crate) large_digest: String,
    manifest: Vec<u8>,
    small: Vec<u8>,
    large: Vec<u8>,
}

/// A server that holds the image, and a connection to it.
pub(crate) struct Place {
    pub(crate) image: Arc<Image>,
    runtime: Runtime,
    client: TcpStream,
    answer: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let (small, large) = (vec![1; SMALL_BYTES], vec![2; LARGE_BYTES]);
        let digest = |bytes: &[u8]| Digest::sha256_of(bytes).to_string();
        let layer = |bytes: &[u8]| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            serde_json::json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
        };
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(b"{}"), "size": 2 },
            "layers": [layer(&small), layer(&large)],
        });
        let manifest = manifest.to_string().into_bytes();
        let (manifest_digest, small_digest, large_digest) = (digest(&manifest), digest(&small), digest(&large));
        Self { manifest_digest, small_digest, large_digest, manifest, small, large }
    }

    /// What it answers to the first line of a request.
    fn answer(&self, line: &str) -> (&'static str, &[u8]) {
        match () {
            () if line.contains("/manifests/") => ("application/vnd.oci.image.manifest.v1+json", &self.manifest),
            () if line.contains(&self.small_digest) => ("application/octet-stream", &self.small),
            () if line.contains(&self.large_digest) => ("application/octet-stream", &self.large),
            () => ("application/json", b"{}"),
        }
    }
}

impl Place {
    /// A server that was asked for everything once.
    pub(crate) fn open() -> Self {
        // As the program logs, to nobody.
        Log::to(std::io::sink()).expect("a thread").install(true, false, EnvFilter::new("info"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (folder, image) = (tempfile::tempdir().expect("a folder"), Arc::new(Image::new()));
        let client = runtime.block_on(async {
            let registry = registry(Arc::clone(&image)).await;
            let addr = server(&folder.path().display().to_string(), registry);
            let client = TcpStream::connect(addr).await.expect("a connection");
            client.set_nodelay(true).expect("a socket");
            client
        });
        let mut place = Self { image, runtime, client, answer: Vec::new(), _folder: folder };
        let image = Arc::clone(&place.image);
        let manifests = ["latest", &image.manifest_digest].map(Self::manifest);
        let blobs = [&image.small_digest, &image.large_digest].map(|digest: &String| Self::blob(digest));
        for path in manifests.into_iter().chain(blobs) {
            // Until it is held, which is a moment after it was first answered.
            let request = format!("GET {path} HTTP/1.1\r\nHost: mirror.example:5000\r\n\r\n");
            while !{
                place.ask(&request);
                let head = place.answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head");
                String::from_utf8_lossy(&place.answer[..head]).contains("cache-status: millpond; hit")
            } {}
        }
        place
    }

    /// The path of a manifest.
    pub(crate) fn manifest(reference: &str) -> String {
        format!("/v2/library/debian/manifests/{reference}?ns=docker.io")
    }

    /// The path of a blob.
    pub(crate) fn blob(digest: &str) -> String {
        format!("/v2/library/debian/blobs/{digest}?ns=docker.io")
    }

    /// Asks once; how many bytes the answer has in all.
    pub(crate) fn ask(&mut self, request: &str) -> usize {
        let Self { runtime, client, answer, .. } = self;
        answer.clear();
        runtime.block_on(async {
            client.write_all(request.as_bytes()).await.expect("it reads");
            let head = loop {
                assert!(client.read_buf(answer).await.expect("it answers") > 0, "it hung up");
                if let Some(at) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    break at + 4;
                }
            };
            let text = String::from_utf8_lossy(&answer[..head]).to_lowercase();
            assert!(text.starts_with("http/1.1 20"), "{text}");
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            let body = if request.starts_with("HEAD") { 0 } else { length.expect("a length") };
            while answer.len() < head + body {
                assert!(client.read_buf(answer).await.expect("it answers") > 0, "it hung up");
            }
            answer.len()
        })
    }

    /// Asks again and again for what has an answer of so many bytes.
    pub(crate) fn repeat(&mut self, request: &str, length: usize, times: usize) {
        let Self { runtime, client, answer, .. } = self;
        answer.resize(length, 0);
        runtime.block_on(async {
            for _ in 0..times {
                client.write_all(request.as_bytes()).await.expect("it reads");
                client.read_exact(answer).await.expect("it answers");
            }
        });
    }
}

/// The server as the program starts it.
fn server(folder: &str, registry: SocketAddr) -> SocketAddr {
    let listen = "[server]\nlisten = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"\n";
    // Nothing becomes old while it is counted.
    let cache = format!("[cache]\ndir = \"{folder}/data\"\ntag_ttl = \"1d\"\npatrol = \"0\"\n");
    let upstream = format!("[upstreams.\"docker.io\"]\nendpoints = [\"http://{registry}\"]\n");
    let file = File { name: "mirror.toml".into(), text: [listen, &cache, &upstream].concat() };
    let loaded = load(&Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let Config { server, access, cache, pull, upstreams, .. } = loaded.config;
    let parts = Parts { server, access, cache, pull, upstreams };
    let server = Server::open(parts, Tuning::default()).unwrap_or_else(|error| panic!("{error}"));
    let addr = server.addr();
    tokio::spawn(server.run(std::future::pending()));
    addr
}

/// A registry that knows one image.
async fn registry(image: Arc<Image>) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut client, _)) = socket.accept().await {
            let image = Arc::clone(&image);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while client.read_buf(&mut request).await.is_ok_and(|bytes| bytes > 0) {
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let (kind, body) = image.answer(text.lines().next().unwrap_or_default());
                    let length = body.len();
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
                    let body = if text.starts_with("HEAD") { &[] } else { body };
                    if client.write_all(&[head.as_bytes(), body].concat()).await.is_err() {
                        return;
                    }
                    request.clear();
                }
            });
        }
    });
    addr
}
