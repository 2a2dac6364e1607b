//! Clients that no test machine has, replayed: the requests of each in its order, with its headers and in its layout, and what it
//! insists on in the answers. The real ones that Debian has are in `tests/clients`.

mod chunks; // containerd's parallel ranges, resumed downloads, lazy pulls
mod pulls; // whole pulls, cold and hot, one table row a client
mod signatures; // cosign's tags and the referrers API, above all their 404s

use crate::support::client::{Ask, Reply, get, head};
use crate::support::mirror::{Builder, Mirror};
use crate::support::registry::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Pushed, Registry};

const REPO: &str = "library/debian";

/// What containers/image lists besides: manifests of old, which nobody sends any more.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const SCHEMA_1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";

/// How Go's HTTP client and containerd's announce what they could decode: registries must not use it.
const GO: Option<&str> = Some("gzip");
const CONTAINERD: Option<&str> = Some("zstd;q=1.0, gzip;q=0.8, deflate;q=0.5");

/// A client, as far as a mirror can tell one from another.
#[derive(Clone, Copy, Debug)]
struct Client {
    agent: &'static str,
    /// What stands before the repository.
    prefix: &'static str,
    /// The registry that it names in `ns`.
    namespace: Option<&'static str>,
    accept: Accept,
    encoding: Option<&'static str>,
    /// Asks for `/v2/` before anything else.
    pings: bool,
    /// Asks for a tag's digest by HEAD, then for the manifest by that digest.
    resolves: bool,
}

/// How a client says which manifests it takes.
#[derive(Clone, Copy, Debug)]
enum Accept {
    /// One header a type: dockerd (in any order) and containers/image.
    Lines(&'static [&'static str]),
    /// One header for all: containerd, `BuildKit`, go-containerregistry.
    Joined(&'static [&'static str]),
}

impl Client {
    /// A request for something of a repository: `manifests/latest`.
    fn ask(self, mirror: &Mirror, repository: &str, ask: fn(String) -> Ask, rest: &str) -> Ask {
        let sign = if rest.contains('?') { "&ns=" } else { "?ns=" };
        let query = self.namespace.map(|name| format!("{sign}{name}")).unwrap_or_default();
        let ask = ask(format!("{}{}/{repository}/{rest}{query}", mirror.url(), self.prefix)).header("User-Agent", self.agent);
        self.encoding.into_iter().fold(ask, |ask, encoding| ask.header("Accept-Encoding", encoding))
    }

    /// The same with the types of manifests that this client takes.
    fn ask_manifest(self, mirror: &Mirror, repository: &str, ask: fn(String) -> Ask, reference: impl ToString) -> Ask {
        let ask = self.ask(mirror, repository, ask, &format!("manifests/{}", reference.to_string()));
        match self.accept {
            Accept::Lines(types) => types.iter().fold(ask, |ask, one| ask.header("Accept", one)),
            Accept::Joined(types) => ask.header("Accept", &types.join(", ")),
        }
    }

    /// What every answer to this client says, errors included.
    #[track_caller]
    fn assert_signed(self, reply: &Reply) {
        assert_eq!(reply.header("oci-namespace"), self.namespace, "{self:?}");
        assert_eq!(reply.header("docker-distribution-api-version"), Some("registry/2.0"), "{self:?}");
        for unwanted in ["content-encoding", "transfer-encoding", "x-registry-supports-signatures", "www-authenticate", "location"] {
            assert_eq!(reply.header(unwanted), None, "{self:?} gets {unwanted}");
        }
        assert!(reply.is_whole(), "{self:?}: {:?}", reply.ended);
    }

    /// What it must be told of a manifest, by GET or by HEAD: exact digest, type and length, and 200.
    #[track_caller]
    fn assert_manifest(self, reply: &Reply, pushed: &Pushed) {
        self.assert_signed(reply);
        assert_eq!(reply.status, 200, "{self:?}");
        assert_eq!(reply.header("docker-content-digest"), Some(&*pushed.digest.to_string()), "{self:?}");
        assert_eq!(reply.header("content-type"), Some(&*pushed.media_type), "{self:?}");
        assert_eq!(reply.header("content-length"), Some(&*pushed.manifest.len().to_string()), "{self:?}");
    }

    /// A 404 in the words of the specification.
    #[track_caller]
    fn assert_unknown(self, reply: &Reply) {
        self.assert_signed(reply);
        let code = &reply.json()["errors"][0]["code"];
        assert_eq!((reply.status, code.as_str()), (404, Some("MANIFEST_UNKNOWN")), "{self:?}");
    }

    /// A whole pull, as this client makes it: a tag, the index, the first platform, its configuration and layers.
    async fn pull(self, mirror: &Mirror, repository: &str, tag: &str, index: &Pushed) {
        if self.pings {
            assert_eq!(get(format!("{}/v2/", mirror.url())).header("User-Agent", self.agent).send().await.status, 200);
        }
        if self.resolves {
            let resolved = self.ask_manifest(mirror, repository, head, tag).send().await;
            self.assert_manifest(&resolved, index);
            assert!(resolved.body.is_empty());
        }
        let reference = if self.resolves { index.digest.to_string() } else { tag.to_owned() };
        let mut manifests = vec![(reference, index)];
        manifests.extend(index.children.first().map(|child| (child.digest.to_string(), child)));
        for (reference, pushed) in &manifests {
            let reply = self.ask_manifest(mirror, repository, get, reference).send().await;
            self.assert_manifest(&reply, pushed);
            assert_eq!(reply.body, pushed.manifest, "{self:?}");
        }
        let (_, image) = manifests.last().unwrap();
        for blob in image.blobs() {
            let reply = self.ask(mirror, repository, get, &format!("blobs/{}", blob.digest)).send().await;
            self.assert_signed(&reply);
            assert_eq!((reply.status, reply.header("content-length")), (200, Some(&*blob.len().to_string())), "{self:?}");
            assert_eq!(reply.header("docker-content-digest"), Some(&*blob.digest.to_string()), "{self:?}");
            assert!(blob.digest.is_of(&reply.body), "{self:?}");
        }
    }
}

/// dockerd 20 to 28 with its classic store.
const DOCKERD: Client = Client {
    agent: "docker/28.5.1 go/go1.24.8 git-commit/f8215cc kernel/6.12.48 os/linux arch/amd64 UpstreamClient(Docker-Client/28.5.1 \\(linux\\))",
    prefix: "/v2",
    namespace: None,
    accept: Accept::Lines(&[DOCKER_LIST, OCI_MANIFEST, "application/json", SCHEMA_1_SIGNED, OCI_INDEX, SCHEMA_1, DOCKER_MANIFEST]),
    encoding: GO,
    pings: true,
    resolves: true,
};

/// containerd with a `hosts.toml`; k3s, rke2 and nerdctl are this client too.
const CONTAINERD_2: Client = Client {
    agent: "containerd/v2.1.4",
    prefix: "/v2",
    namespace: Some("docker.io"),
    accept: Accept::Joined(&[DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX, "*/*"]),
    encoding: CONTAINERD,
    pings: false,
    resolves: true,
};

/// podman, CRI-O, skopeo and buildah.
const CRI_O: Client = Client {
    agent: "cri-o/1.33.0 go/go1.24.1 os/linux arch/amd64",
    prefix: "/v2/docker.io",
    namespace: None,
    accept: Accept::Lines(&[OCI_MANIFEST, DOCKER_MANIFEST, SCHEMA_1_SIGNED, SCHEMA_1, DOCKER_LIST, OCI_INDEX]),
    encoding: GO,
    pings: true,
    resolves: false,
};

/// crane, ko, kaniko, cosign: everything made of go-containerregistry, which knows Docker Hub by another name.
const CRANE: Client = Client {
    agent: "crane/v0.20.6 go-containerregistry/v0.20.6",
    prefix: "/v2/index.docker.io",
    namespace: None,
    accept: Accept::Joined(&[DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST]),
    encoding: GO,
    pings: true,
    resolves: true,
};

/// A mirror in front of a registry that clients call docker.io.
fn mirror_of(registry: &Registry) -> Mirror {
    Builder::new().upstream("docker.io", registry).start()
}
