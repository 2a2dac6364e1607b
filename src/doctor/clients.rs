//! The clients that can use a mirror: where their settings are, what to write there, and what they send. Facts only.

use std::fs;
use std::path::Path;

use super::Subject;

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// dockerd with its own image store.
    Docker,
    /// containerd, and what is made of it: Kubernetes, nerdctl.
    Containerd,
    /// podman, skopeo, buildah and CRI-O, which share their settings.
    Podman,
    /// `BuildKit` as a daemon of its own.
    Buildkit,
    /// k3s.
    K3s,
    /// RKE2.
    Rke2,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Docker, Self::Containerd, Self::Podman, Self::Buildkit, Self::K3s, Self::Rke2];

    /// What `--client` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Buildkit => "buildkit",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
        }
    }

    /// By that name, or that of one that shares its settings.
    pub fn named(name: &str) -> Option<Self> {
        let same = match name {
            "dockerd" => "docker",
            "nerdctl" | "kubernetes" => "containerd",
            "skopeo" | "buildah" | "cri-o" | "crio" => "podman",
            "buildkitd" | "buildx" => "buildkit",
            name => name,
        };
        Self::ALL.into_iter().find(|client| client.name() == same)
    }

    /// Programs of it.
    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["dockerd"],
            Self::Containerd => &["containerd", "nerdctl"],
            Self::Podman => &["podman", "skopeo", "buildah", "crio"],
            Self::Buildkit => &["buildkitd"],
            Self::K3s => &["k3s"],
            Self::Rke2 => &["rke2"],
        }
    }

    /// Whether it is on the machine whose files are under `root`.
    pub(super) fn is_there(self, root: &Path) -> bool {
        let folders = ["usr/local/bin", "usr/local/sbin", "usr/bin", "usr/sbin", "bin", "sbin"];
        self.programs().iter().any(|program| folders.iter().any(|folder| root.join(folder).join(program).exists()))
    }

    /// The file that names the mirror, from the root.
    pub(super) fn file(self) -> &'static str {
        match self {
            Self::Docker => "etc/docker/daemon.json",
            Self::Containerd => "etc/containerd/certs.d/docker.io/hosts.toml",
            Self::Podman => "etc/containers/registries.conf.d/50-millpond.conf",
            Self::Buildkit => "etc/buildkit/buildkitd.toml",
            Self::K3s => "etc/rancher/k3s/registries.yaml",
            Self::Rke2 => "etc/rancher/rke2/registries.yaml",
        }
    }

    /// What belongs into it, for Docker Hub.
    pub(super) fn lines(self, subject: &Subject) -> String {
        let (authority, mirror) = (subject.authority(), subject.mirror());
        match self {
            Self::Docker if subject.tls || subject.is_loopback() => format!("{{ \"registry-mirrors\": [\"{mirror}\"] }}\n"),
            Self::Docker => format!("{{ \"registry-mirrors\": [\"{mirror}\"], \"insecure-registries\": [\"{authority}\"] }}\n"),
            Self::Containerd => format!("[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"2s\"\n"),
            Self::Podman => {
                let insecure = if subject.tls { "" } else { "insecure = true\n" };
                format!("[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"{authority}/docker.io\"\n{insecure}")
            }
            Self::Buildkit => {
                let http = if subject.tls { String::new() } else { format!("[registry.\"{authority}\"]\nhttp = true\n") };
                format!("[registry.\"docker.io\"]\nmirrors = [\"{authority}\"]\n{http}")
            }
            Self::K3s | Self::Rke2 => format!("mirrors:\n  docker.io:\n    endpoint: [\"{mirror}\"]\n"),
        }
    }

    /// What makes the lines work, beside them.
    pub(super) fn also(self, root: &Path) -> Option<&'static str> {
        match self {
            Self::Docker => {
                Some("then restart it: systemctl restart docker (an entry beside others that the file has, not in their place)")
            }
            Self::Containerd => {
                let text = fs::read_to_string(root.join("etc/containerd/config.toml")).unwrap_or_default();
                let is_set = written(&text).any(|line| line.contains("config_path") && line.contains("certs.d"));
                (!is_set).then_some("Kubernetes looks there only if /etc/containerd/config.toml sets config_path = \"/etc/containerd/certs.d\"; nerdctl always does")
            }
            Self::Podman => None,
            Self::Buildkit => Some("then restart it; docker buildx: docker buildx create --use --buildkitd-config FILE"),
            Self::K3s => Some("then restart it: systemctl restart k3s (k3s-agent on agents)"),
            Self::Rke2 => Some("then restart it: systemctl restart rke2-server (rke2-agent on agents)"),
        }
    }

    /// Whether the mirror is named in its settings already.
    pub(super) fn has(self, root: &Path, subject: &Subject) -> bool {
        let wanted = match self {
            Self::Podman | Self::Buildkit => subject.authority(),
            _ => subject.mirror(),
        };
        let names_it = |path: &Path| {
            let text = fs::read_to_string(path).unwrap_or_default();
            // Up to its end: port 500 is not port 5000.
            written(&text).any(|line| {
                line.match_indices(&wanted).any(|(at, _)| !line[at + wanted.len()..].starts_with(|c: char| c.is_ascii_alphanumeric()))
            })
        };
        if names_it(&root.join(self.file())) {
            return true;
        }
        match self {
            Self::Containerd => names_it(&root.join("etc/containerd/certs.d/_default/hosts.toml")),
            Self::Podman => {
                let more = fs::read_dir(root.join("etc/containers/registries.conf.d")).into_iter().flatten().flatten();
                names_it(&root.join("etc/containers/registries.conf")) || more.into_iter().any(|entry| names_it(&entry.path()))
            }
            _ => false,
        }
    }

    /// What it calls itself.
    pub(super) fn agent(self) -> &'static str {
        match self {
            Self::Docker => "docker/28.0.0 millpond-doctor",
            Self::Containerd | Self::K3s | Self::Rke2 => "containerd/v2.0.0 millpond-doctor",
            Self::Podman => "containers/5.0.0 millpond-doctor",
            Self::Buildkit => "buildkit/v0.20 millpond-doctor",
        }
    }

    /// Whether it asks for `/v2/` first.
    pub(super) fn pings(self) -> bool {
        matches!(self, Self::Docker | Self::Podman)
    }

    /// Whether it asks for a tag by HEAD first.
    pub(super) fn heads(self) -> bool {
        self != Self::Podman
    }

    /// What stands before an image's name in the path, and behind everything in the query.
    pub(super) fn layout(self) -> (&'static str, &'static str) {
        match self {
            Self::Docker => ("", ""),
            Self::Podman => ("docker.io/", ""),
            Self::Containerd | Self::Buildkit | Self::K3s | Self::Rke2 => ("", "?ns=docker.io"),
        }
    }

    /// Whether a secret path can stand in its settings: before `/v2`.
    pub(super) fn takes_path(self) -> bool {
        !matches!(self, Self::Podman | Self::Buildkit)
    }

    /// Folders in which it finds certificates to trust for this mirror.
    pub(super) fn trusts(self, subject: &Subject) -> Vec<String> {
        let of = |folder: &str| format!("{folder}/{}", subject.authority());
        match self {
            Self::Docker => vec![of("etc/docker/certs.d")],
            Self::Containerd => vec![of("etc/containerd/certs.d"), "etc/containerd/certs.d/docker.io".to_owned()],
            Self::Podman => vec![of("etc/containers/certs.d"), of("etc/docker/certs.d")],
            Self::Buildkit | Self::K3s | Self::Rke2 => Vec::new(),
        }
    }
}

/// Lines that are no comments.
fn written(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with('#'))
}
