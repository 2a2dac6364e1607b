//! How a scripted registry behaves in general: what real registries do differently from each other. One field a difference.

use std::time::Duration;

/// Everything that can be set, at the start or while it runs.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is set alone, by its name
pub struct Quirks {
    /// What a client must show.
    pub auth: Auth,
    /// How it is told so.
    pub challenge: Challenge,
    /// Where the challenge sends the client, when not to the registry's own token server.
    pub realm: Option<String>,
    /// How long a token really lives.
    pub token_ttl: Duration,
    /// How many requests a token really lives.
    pub token_uses: Option<u64>,
    /// What the token answer says about that; by default the truth.
    pub expires_in: Announced,
    /// Seconds by which the token server's clock is ahead of the client's.
    pub issued_at_skew: i64,
    /// The names under which the token stands in the answer.
    pub token_fields: TokenFields,
    /// The answer to a POST for a token; nothing is support.
    pub token_post: Option<u16>,
    /// The token server's answer for what the client may not see; nothing is a token that opens nothing.
    pub token_denied: Option<u16>,
    /// What Accept does.
    pub accept: Accept,
    /// What HEAD of a manifest gives.
    pub head: Head,
    /// What Docker-Content-Digest says about a manifest.
    pub digest_header: DigestHeader,
    /// What Content-Type says about a manifest.
    pub content_type: ContentType,
    /// What is known of referrers.
    pub referrers: Referrers,
    /// Tags on a page at most, also when the client asks for more.
    pub tags_page: Option<usize>,
    /// Whether the Link of a list names the host.
    pub absolute_links: bool,
    /// An empty list of tags is `null`.
    pub null_tags: bool,
    /// Pulls in a window, and how that is told.
    pub rate_limit: Option<RateLimit>,
    /// Where blobs are.
    pub blobs: Blobs,
    /// Where manifests are, when at another registry: requests are redirected to this base URL.
    pub manifests_at: Option<String>,
    /// HEAD of a blob is answered by the registry, not redirected.
    pub head_blob_direct: bool,
    /// How long a signed URL is good.
    pub url_ttl: Duration,
    /// A signed URL is good once.
    pub url_once: bool,
    /// How ranges are answered.
    pub ranges: Ranges,
    /// How several ranges in one request are answered.
    pub multi: MultiRange,
    /// Blobs and manifests are sent with `Content-Encoding: gzip` to whoever accepts it, as registry.access.redhat.com.
    pub gzips: bool,
    /// Bytes a second that one connection gets.
    pub rate: Option<u64>,
    /// How long every answer takes to begin, by tokio's clock.
    pub latency: Duration,
    /// A path before `/v2/`, as of a mirror behind another server.
    pub prefix: String,
}

/// What a client must show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Auth {
    /// Nothing.
    None,
    /// A token of the repository.
    Bearer,
    /// A user's name and password.
    Basic,
}

/// The shape of `WWW-Authenticate`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Challenge {
    /// Realm, service, and on repositories the scope, quoted.
    Hub,
    /// `service` without quotes, as gcr.io.
    Unquoted,
    /// No service.
    NoService,
    /// No scope.
    NoScope,
    /// A scope that is not the repository asked for, as ghcr.io on `/v2/`.
    PlaceholderScope,
    /// `Basic …, Bearer …` in one line, as quay.io.
    BasicAndBearer,
    /// Basic and Bearer in two lines.
    TwoLines,
}

/// `expires_in` in a token answer, in seconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Announced {
    /// As it is.
    Truth,
    /// Not there.
    Nothing,
    /// This.
    Seconds(i64),
}

/// Under which names a token answer holds the token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenFields {
    /// `token` and `access_token`.
    Both,
    /// `token` only, as quay.io.
    Token,
    /// `access_token` only.
    AccessToken,
}

/// What a manifest's type means against the Accept header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Accept {
    /// Nothing: what is stored is answered.
    Ignored,
    /// 404 when the type is not listed, as `docker-registry` and Docker Hub in 2024.
    Strict,
    /// An index asked for by tag without being listed becomes its first child, as `docker-registry`.
    Child,
    /// Without any type of version 2 the answer is a manifest of schema 1.
    Schema1,
}

/// What HEAD of a manifest gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Head {
    /// The headers of GET.
    Right,
    /// 405.
    Refused,
    /// 200 without Docker-Content-Digest.
    NoDigest,
    /// 200 without Content-Length.
    NoLength,
    /// 200 with a body, which HTTP forbids.
    WithBody,
}

/// What Docker-Content-Digest says about a manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DigestHeader {
    /// Its digest.
    Right,
    /// It is not there.
    Missing,
    /// Another.
    Wrong,
}

/// What Content-Type says about a manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContentType {
    /// Its type.
    Right,
    /// Its type and a parameter.
    WithCharset,
    /// It is not there.
    Missing,
    /// `text/plain`.
    Text,
}

/// What is known of referrers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Referrers {
    /// 404, as docker-registry and ghcr.io: clients then ask for the referrers tag.
    Absent,
    /// Always an empty list.
    Empty,
    /// The list, with the filter applied and so many on a page.
    Listed {
        /// On a page.
        page: usize,
    },
}

/// Pulls in a window: a GET of a manifest is a pull.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateLimit {
    /// How many.
    pub limit: u64,
    /// In so many seconds.
    pub window: u64,
    /// The headers begin with `x-`.
    pub prefixed: bool,
}

/// Where the bytes of blobs come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Blobs {
    /// From the registry itself.
    Inline,
    /// From a CDN, by a redirect to a signed URL.
    Redirect(Redirect),
}

/// What a redirect to a blob looks like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Redirect {
    /// 302, 307 and so on.
    pub status: u16,
    /// The registry's own host, by a path alone, as gcr.io.
    pub relative: bool,
    /// With an HTML body.
    pub html: bool,
    /// With `Cache-Control: max-age=31536000`, as quay.io.
    pub cacheable: bool,
}

/// How a range is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ranges {
    /// As RFC 9110 says.
    Right,
    /// 200 and everything.
    Ignored,
    /// 206, the bytes asked for, and a Content-Range that says others.
    WrongContentRange,
    /// 206 from so many bytes before what was asked for, and a Content-Range that says so.
    Earlier(u64),
    /// 206 of so many bytes at most.
    Shorter(u64),
    /// 416, always.
    Refused,
}

/// How several ranges in one request are answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MultiRange {
    /// `multipart/byteranges`.
    Multipart,
    /// 206 of the first only, as Cloudflare.
    First,
    /// 200 and everything, as S3.
    Whole,
    /// 400, as Google's.
    Refused,
}

impl Quirks {
    /// Docker Hub's ways.
    pub fn hub() -> Self {
        Self {
            auth: Auth::Bearer,
            blobs: Blobs::Redirect(Redirect::HUB),
            rate_limit: Some(RateLimit { limit: 100, window: 21_600, prefixed: false }),
            ..Self::plain()
        }
    }

    /// The ways of `docker-registry`, without its strictness about Accept.
    pub fn plain() -> Self {
        Self {
            auth: Auth::None,
            challenge: Challenge::Hub,
            realm: None,
            token_ttl: Duration::from_secs(300),
            token_uses: None,
            expires_in: Announced::Truth,
            issued_at_skew: 0,
            token_fields: TokenFields::Both,
            token_post: None,
            token_denied: None,
            accept: Accept::Ignored,
            head: Head::Right,
            digest_header: DigestHeader::Right,
            content_type: ContentType::Right,
            referrers: Referrers::Absent,
            tags_page: None,
            absolute_links: false,
            null_tags: false,
            rate_limit: None,
            blobs: Blobs::Inline,
            manifests_at: None,
            head_blob_direct: false,
            url_ttl: Duration::from_secs(1200),
            url_once: false,
            ranges: Ranges::Right,
            multi: MultiRange::Multipart,
            gzips: false,
            rate: None,
            latency: Duration::ZERO,
            prefix: String::new(),
        }
    }
}

impl Redirect {
    /// 307 with nothing, to another host.
    pub const HUB: Self = Self { status: 307, relative: false, html: false, cacheable: false };
    /// 302 with a page and a year of life.
    pub const QUAY: Self = Self { status: 302, relative: false, html: true, cacheable: true };
    /// 302 to a path of the same host.
    pub const GCR: Self = Self { status: 302, relative: true, html: false, cacheable: false };
}
