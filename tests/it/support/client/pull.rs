//! A pull as container clients do it: resolve the tag, take the manifest by digest, then every blob, and verify it all.

use millpond::oci::Digest;

use super::{Ask, get, head};

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What was pulled; every digest was verified.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// What the tag meant.
    pub digest: Digest,
    /// The manifests on the way, the index first.
    pub manifests: Vec<Digest>,
    /// The blobs of the image.
    pub blobs: Vec<Digest>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// Pulls `repository:tag` from the registry at `base`, of an index the first image.
pub async fn pull(base: &str, repository: &str, tag: &str) -> Result<Pulled, String> {
    pull_with(base, repository, tag, |ask| ask).await
}

/// As [`pull`], with what `dress` adds to every request.
pub async fn pull_with(base: &str, repository: &str, tag: &str, dress: impl Fn(Ask) -> Ask) -> Result<Pulled, String> {
    let url = |kind: &str, reference: &str| format!("{base}/v2/{repository}/{kind}/{reference}");
    let resolved = dress(head(url("manifests", tag)).header("Accept", ACCEPT)).try_send().await.map_err(|error| error.to_string())?;
    if resolved.status != 200 {
        return Err(format!("HEAD of {tag}: {}", resolved.status));
    }
    let digest = resolved.header("docker-content-digest").and_then(|text| Digest::parse(text).ok()).ok_or("HEAD gives no digest")?;
    let mut pulled = Pulled { digest, manifests: Vec::new(), blobs: Vec::new(), bytes: 0 };
    let mut next = digest;
    let image = loop {
        let ask = dress(get(url("manifests", &next.to_string())).header("Accept", ACCEPT));
        let reply = ask.try_send().await.map_err(|error| error.to_string())?;
        if reply.status != 200 || !reply.is_whole() {
            return Err(format!("GET of manifest {next}: {} {:?} {:?}", reply.status, reply.ended, reply.body));
        }
        if !next.is_of(&reply.body) {
            return Err(format!("manifest {next} has wrong bytes"));
        }
        pulled.manifests.push(next);
        pulled.bytes += reply.body.len() as u64;
        let manifest = reply.json();
        let Some(first) = manifest["manifests"].get(0).map(|child| child["digest"].clone()) else { break manifest };
        next = Digest::parse(first.as_str().unwrap_or_default()).map_err(|error| error.to_string())?;
    };
    let layers = image["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
    for descriptor in std::iter::once(&image["config"]).chain(layers) {
        let digest = Digest::parse(descriptor["digest"].as_str().unwrap_or_default()).map_err(|error| error.to_string())?;
        pulled.bytes += blob(dress(get(url("blobs", &digest.to_string()))), &digest).await?;
        pulled.blobs.push(digest);
    }
    Ok(pulled)
}

/// Takes a blob and verifies it; how many bytes it has.
async fn blob(ask: Ask, digest: &Digest) -> Result<u64, String> {
    let mut stream = ask.try_stream().await.map_err(|error| error.to_string())?;
    if stream.status != 200 {
        return Err(format!("GET of blob {digest}: {}", stream.status));
    }
    let (mut hasher, mut len) = (digest.hasher(), 0);
    while let Some(chunk) = stream.chunk().await {
        let chunk = chunk.map_err(|error| format!("GET of blob {digest}: cut after {len} bytes: {error}"))?;
        hasher.update(&chunk);
        len += chunk.len() as u64;
    }
    if hasher.finish() == *digest { Ok(len) } else { Err(format!("blob {digest} has wrong bytes")) }
}
