//! May a tag be believed, must it be asked about, may it be served stale? A pure function of its age.

use std::time::Duration;

/// Whether the upstream can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// It can.
    Open,
    /// It failed a moment ago and is left alone: whoever holds something serves that.
    Resting,
    /// The operator said never to ask (`cache.offline`).
    Offline,
}

/// What to do about a tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Serve what is held: it is young enough.
    Believe,
    /// Serve what is held, marked stale, without asking.
    Stale,
    /// Ask; when the upstream cannot answer, serve what is held, marked stale.
    AskOrStale,
    /// Ask; what is held is too old to be served, or there is nothing.
    Ask,
    /// There is nothing, and nobody to ask.
    Absent,
}

/// Judges a tag by how long ago the upstream confirmed it. `held` is `None` when nothing is held, `Some(None)` when its age
/// is unknown because the clock went back: such a tag is neither young nor too old.
pub fn judge(held: Option<Option<Duration>>, reach: Reach, ttl: Duration, max_stale: Duration) -> Verdict {
    let Some(age) = held else {
        return if reach == Reach::Offline { Verdict::Absent } else { Verdict::Ask };
    };
    let young = age.is_some_and(|age| age < ttl);
    let too_old = age.is_some_and(|age| age > ttl.saturating_add(max_stale));
    match reach {
        _ if young => Verdict::Believe,
        // Offline is the operator's word that what is held is good.
        Reach::Offline => Verdict::Stale,
        _ if too_old => Verdict::Ask,
        Reach::Resting => Verdict::Stale,
        Reach::Open => Verdict::AskOrStale,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table() {
        let (ttl, max_stale) = (Duration::from_secs(60), Duration::from_secs(3600));
        let age = |seconds| Some(Some(Duration::from_secs(seconds)));
        for (held, reach, expected) in [
            (None, Reach::Open, Verdict::Ask),
            (None, Reach::Resting, Verdict::Ask),
            (None, Reach::Offline, Verdict::Absent),
            (age(0), Reach::Open, Verdict::Believe),
            (age(59), Reach::Resting, Verdict::Believe),
            (age(59), Reach::Offline, Verdict::Believe),
            (age(60), Reach::Open, Verdict::AskOrStale),
            (age(60), Reach::Resting, Verdict::Stale),
            (age(60), Reach::Offline, Verdict::Stale),
            (age(3660), Reach::Open, Verdict::AskOrStale),
            (age(3661), Reach::Open, Verdict::Ask),
            (age(3661), Reach::Resting, Verdict::Ask),
            (age(1 << 40), Reach::Offline, Verdict::Stale),
            (Some(None), Reach::Open, Verdict::AskOrStale),
            (Some(None), Reach::Resting, Verdict::Stale),
        ] {
            assert_eq!(judge(held, reach, ttl, max_stale), expected, "{held:?} {reach:?}");
        }
    }

    #[test]
    fn no_time_to_live_asks_every_time() {
        assert_eq!(judge(Some(Some(Duration::ZERO)), Reach::Open, Duration::ZERO, Duration::ZERO), Verdict::AskOrStale);
    }
}
