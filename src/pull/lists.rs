//! Lists: the tags of a repository, and what refers to a manifest. Passed on from the upstream; when it cannot answer, what
//! is held.

use bytes::Bytes;

use super::{Answer, Asker, Error, Pull};
use crate::observe::{Kind, Outcome};
use crate::oci::{Digest, MediaType, PAGE_MAX, Repository};
use crate::upstream::Upstream;

/// Pages of referrers that are put together for one answer, and the bytes they may have in all: far more than any image's
/// signatures, and no more memory than a few large manifests.
const REFERRERS_PAGES_MAX: usize = 100;
const REFERRERS_BYTES_MAX: usize = 16 << 20;

/// A page of tags.
#[derive(Debug, PartialEq, Eq)]
pub struct Tags {
    /// In the upstream's order.
    pub tags: Vec<String>,
    /// The `n` and `last` of the next page, if there is one.
    pub next: Option<(Option<u32>, String)>,
}

/// Referrers: an OCI index.
#[derive(Debug)]
pub struct Referrers {
    /// The index, as the upstream sent it; where it came in pages, all of them as one.
    pub bytes: Bytes,
    /// Whether the upstream applied the filter.
    pub filtered: bool,
}

impl Pull {
    /// The tags of a repository, at most `n` after `last`.
    pub async fn tags(&self, asker: Asker, repository: &Repository, n: Option<u32>, last: Option<&str>) -> Result<Answer<Tags>, Error> {
        let upstream = self.upstream(repository, Kind::Tags)?;
        self.check_visible(asker, &upstream, repository, super::private::What::Tags).await?;
        if self.offline() {
            return self.held_tags(repository, n, last).await.ok_or(Error::Offline(Kind::Tags));
        }
        let answer = upstream.tags(&repository.name, n, last).await;
        match self.judged(repository, Kind::Tags, answer) {
            Ok(page) => Ok(Answer { content: Tags { tags: page.tags, next: page.next }, outcome: Outcome::Passed }),
            Err(error) if error.is_definite() => Err(error),
            Err(error) => self.held_tags(repository, n, last).await.ok_or(error),
        }
    }

    async fn held_tags(&self, repository: &Repository, n: Option<u32>, last: Option<&str>) -> Option<Answer<Tags>> {
        let held = self.0.cache.tags(repository).await;
        if held.is_empty() {
            return None;
        }
        let names = held.iter().map(ToString::to_string).collect();
        Some(Answer { content: page(names, n, last), outcome: Outcome::Stale })
    }

    /// What refers to a manifest. A registry without the referrers API keeps the list under a tag (distribution-spec,
    /// "Referrers Tag Schema"): that is looked up in its place, and a 404 of both is passed on.
    pub async fn referrers(
        &self,
        asker: Asker,
        repository: &Repository,
        digest: &Digest,
        artifact_types: &[String],
    ) -> Result<Answer<Referrers>, Error> {
        let upstream = self.upstream(repository, Kind::Referrers)?;
        self.check_visible(asker, &upstream, repository, super::private::What::Manifest(*digest)).await?;
        let error = match self.ask_referrers(&upstream, repository, digest, artifact_types).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if matches!(error, Error::Denied) {
            return Err(error);
        }
        match self.by_tag(&upstream, repository, &digest.referrers_tag(), false).await {
            // Some registries take the tag for the digest that it is made of, and answer with the image itself (gitlab.com); any other
            // type is no list either.
            Ok(Answer { content, .. }) if content.digest == *digest || !content.media_type.as_ref().is_some_and(MediaType::is_index) => {
                Err(Error::NotFound(Kind::Referrers))
            }
            Ok(Answer { content, outcome }) => {
                let bytes = content.bytes.ok_or(Error::NotFound(Kind::Referrers))?;
                Ok(Answer { content: Referrers { bytes, filtered: false }, outcome })
            }
            Err(Error::NotFound(_) | Error::NotShown(_)) => Err(Error::NotFound(Kind::Referrers)),
            // The first error says more: the API was there, and failed.
            Err(_) => Err(error),
        }
    }

    async fn ask_referrers(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        artifact_types: &[String],
    ) -> Result<Answer<Referrers>, Error> {
        if self.offline() {
            return Err(Error::Offline(Kind::Referrers));
        }
        self.check_absent(repository, Kind::Referrers, digest)?;
        let answer = upstream.referrers(&repository.name, digest, artifact_types).await;
        let page = self
            .judged(repository, Kind::Referrers, answer)
            .inspect_err(|error| self.note_absent(repository, Kind::Referrers, digest, error))?;
        let (mut pages, mut filtered, mut next) = (vec![page.bytes], page.filters_applied, page.next);
        // A client that is given one page of several, and no link to the next, takes it for the whole.
        while let Some(query) = next {
            let answer = upstream.referrers_page(&repository.name, digest, &query).await;
            let page = self.judged(repository, Kind::Referrers, answer)?;
            pages.push(page.bytes);
            if pages.len() > REFERRERS_PAGES_MAX || pages.iter().map(Bytes::len).sum::<usize>() > REFERRERS_BYTES_MAX {
                return Err(Error::BadUpstream);
            }
            (filtered, next) = (filtered && page.filters_applied, page.next);
        }
        let bytes = joined(pages).ok_or(Error::BadUpstream)?;
        Ok(Answer { content: Referrers { bytes, filtered }, outcome: Outcome::Passed })
    }
}

/// Makes one index of several pages; a single one stays as it came.
fn joined(mut pages: Vec<Bytes>) -> Option<Bytes> {
    if pages.len() == 1 {
        return pages.pop();
    }
    let mut all: Vec<serde_json::Value> = Vec::new();
    let mut index = serde_json::Value::Null;
    for page in &pages {
        let mut page: serde_json::Value = serde_json::from_slice(page).ok()?;
        all.append(page.get_mut("manifests")?.as_array_mut()?);
        if index.is_null() {
            index = page;
        }
    }
    *index.get_mut("manifests")? = all.into();
    Some(index.to_string().into())
}

/// Cuts a page out of sorted names, as a registry would (distribution-spec end-8b).
fn page(names: Vec<String>, n: Option<u32>, last: Option<&str>) -> Tags {
    let after = |name: &String| last.is_none_or(|last| name.as_str() > last);
    let mut tags = names.into_iter().filter(after).collect::<Vec<_>>();
    let n = usize::try_from(n.unwrap_or(PAGE_MAX)).unwrap_or(usize::MAX);
    let more = n > 0 && tags.len() > n;
    tags.truncate(n);
    let next = tags.last().filter(|_| more).map(|last| (u32::try_from(n).ok(), last.clone()));
    Tags { tags, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_referrers_become_one_index() {
        let page = |digest: &str| Bytes::from(format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}"}}],"x":1}}"#));
        assert_eq!(joined(vec![page("a")]), Some(page("a")));
        let both = r#"{"schemaVersion":2,"manifests":[{"digest":"a"},{"digest":"b"}],"x":1}"#;
        assert_eq!(joined(vec![page("a"), page("b")]), Some(Bytes::from(both)));
        assert_eq!(joined(vec![page("a"), Bytes::from("{}")]), None);
    }

    #[test]
    fn pages_follow_each_other_and_end() {
        let names = || ["a", "b", "c"].map(str::to_owned).to_vec();
        let first = page(names(), Some(2), None);
        assert_eq!(first, Tags { tags: vec!["a".into(), "b".into()], next: Some((Some(2), "b".into())) });
        assert_eq!(page(names(), Some(2), Some("b")), Tags { tags: vec!["c".into()], next: None });
        assert_eq!(page(names(), Some(3), None).next, None);
        assert_eq!(page(names(), Some(0), None), Tags { tags: vec![], next: None });
        assert_eq!(page(names(), None, Some("zzz")), Tags { tags: vec![], next: None });
    }
}
