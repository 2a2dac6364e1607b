//! May a tag be believed, must it be asked about, may it be served stale, is it worth one of the last pulls? Pure functions of
//! its age.

use std::time::Duration;

use crate::upstream::Pulls;

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

/// Whether what is held is served although its tag moved, because the new manifest would cost one of the last pulls: those are
/// for images that are not held. With few pulls left that goes on for `ttl_low`, with none until what is held is too old. A
/// tag of unknown age is not believed for longer than it must be.
pub fn saves(age: Option<Duration>, pulls: Pulls, ttl_low: Duration, ttl: Duration, max_stale: Duration) -> bool {
    let oldest = ttl.saturating_add(max_stale);
    match (pulls, age) {
        (Pulls::Ample, _) | (Pulls::Low, None) => false,
        (Pulls::Low, Some(age)) => age < ttl_low.min(oldest),
        (Pulls::Spent, age) => !ttl_low.is_zero() && age.is_none_or(|age| age <= oldest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_pulls_are_for_what_is_not_held() {
        let (ttl, low, stale) = (Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600));
        let age = |seconds| Some(Duration::from_secs(seconds));
        for (held, pulls, expected) in [
            (age(61), Pulls::Ample, false),
            (age(61), Pulls::Low, true),
            (age(599), Pulls::Low, true),
            (age(600), Pulls::Low, false),
            (None, Pulls::Low, false),
            (age(600), Pulls::Spent, true),
            (age(3660), Pulls::Spent, true),
            (age(3661), Pulls::Spent, false),
            (None, Pulls::Spent, true),
        ] {
            assert_eq!(saves(held, pulls, low, ttl, stale), expected, "{held:?} {pulls:?}");
        }
        assert!(!saves(age(90), Pulls::Low, low, ttl, Duration::ZERO), "nothing stale is nothing stale");
        assert!(!saves(age(90), Pulls::Spent, Duration::ZERO, ttl, stale), "the operator spends them");
    }

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
