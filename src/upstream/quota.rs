//! How many pulls are left? What an upstream says of it in each answer, and when that is worth a line in the log.
//!
//! Owns [`Quota`], the last word of an upstream on one account, and [`Pulls`], what follows from it for those who decide
//! whether to spend one. A word is believed for as long as the window that it speaks of. Contacts nobody, and logs nothing:
//! it says what is news.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Fewer pulls than this are few, whatever the limit: a large image with its index, and the one that somebody needs now.
const FEW_PULLS: u64 = 10;

/// And so is less than this part of the limit: the tenth that is left for images that are not held.
const LOW_PART: u64 = 10;

/// How long a word is believed that names no window: the shortest that a registry is known to count by.
const WINDOW_DEFAULT: Duration = Duration::from_secs(3_600);

/// The longest window that is believed: a day, so that a nonsense one does not keep an old word for ever.
const WINDOW_MAX: Duration = Duration::from_secs(86_400);

/// How many pulls an upstream still grants, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pulls {
    /// Enough, or it does not say.
    Ample,
    /// Fewer than ten, or less than a tenth of the limit.
    Low,
    /// None.
    Spent,
}

/// What one answer says: `100;w=21600`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Said {
    /// What the window starts with.
    pub(super) limit: Option<u64>,
    /// What is left.
    pub(super) remaining: u64,
    /// For how long that is counted.
    pub(super) window: Option<Duration>,
}

/// What changed so much that it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Less than a half is left.
    Half,
    /// Few are left.
    Few,
    /// None is left.
    None,
    /// There are enough again.
    Back,
}

/// The last word on one account.
#[derive(Default)]
pub(super) struct Quota(Mutex<State>);

#[derive(Default)]
struct State {
    said: Option<(Said, Instant)>,
    /// The last news that was not good, until there are enough again.
    told: Option<News>,
}

impl Quota {
    /// Takes a word; what of it is news.
    pub(super) fn take(&self, said: Said) -> Option<News> {
        let mut state = self.lock();
        state.said = Some((said, Instant::now()));
        let rank = |news: Option<News>| match news {
            None | Some(News::Back) => 0,
            Some(News::Half) => 1,
            Some(News::Few) => 2,
            Some(News::None) => 3,
        };
        let now = said.level();
        if rank(now) > rank(state.told) {
            state.told = now;
            return now;
        }
        // Between a half and three quarters nothing is told: a budget that fills up while it is used would be told all day.
        (state.told.is_some() && said.is_back()).then(|| {
            state.told = None;
            News::Back
        })
    }

    /// The last word, unless it is of a window that is over.
    pub(super) fn now(&self) -> Option<Said> {
        let (said, at) = self.lock().said?;
        (at.elapsed() < said.window.unwrap_or(WINDOW_DEFAULT).min(WINDOW_MAX)).then_some(said)
    }

    // std: held for a few instructions, never across an await.
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    fn level(self) -> Option<News> {
        match (pulls(self.remaining, self.limit), self.limit) {
            (Pulls::Spent, _) => Some(News::None),
            (Pulls::Low, _) => Some(News::Few),
            (Pulls::Ample, Some(limit)) if self.remaining < limit.div_ceil(2) => Some(News::Half),
            (Pulls::Ample, _) => None,
        }
    }

    fn is_back(self) -> bool {
        let enough = self.limit.map_or(FEW_PULLS, |limit| limit - limit / 4);
        self.remaining >= enough
    }
}

/// What so many pulls of so many are. Of a limit that is small itself less than a half is few.
pub(super) fn pulls(left: u64, limit: Option<u64>) -> Pulls {
    let few = limit.map_or(FEW_PULLS, |limit| FEW_PULLS.min(limit / 2).max(limit / LOW_PART));
    match left {
        0 => Pulls::Spent,
        left if left < few => Pulls::Low,
        _ => Pulls::Ample,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(remaining: u64, limit: u64) -> Said {
        Said { limit: Some(limit), remaining, window: Some(Duration::from_secs(21_600)) }
    }

    #[test]
    fn few_are_ten_or_a_tenth() {
        for (left, limit, is) in [
            (100, Some(100), Pulls::Ample),
            (10, Some(100), Pulls::Ample),
            (9, Some(100), Pulls::Low),
            (1, Some(100), Pulls::Low),
            (0, Some(100), Pulls::Spent),
            (99, Some(1000), Pulls::Low),
            (100, Some(1000), Pulls::Ample),
            (10, Some(10), Pulls::Ample),
            (5, Some(10), Pulls::Ample),
            (4, Some(10), Pulls::Low),
            (10, None, Pulls::Ample),
            (9, None, Pulls::Low),
            (0, None, Pulls::Spent),
        ] {
            assert_eq!(pulls(left, limit), is, "{left} of {limit:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_step_down_is_told_once_and_the_way_back_once() {
        let quota = Quota::default();
        let mut told = Vec::new();
        let down = (0..=100).rev();
        // Up and down again around a half: nothing new.
        let wavering = (0..40).chain((30..60).rev()).chain(30..60);
        for remaining in down.chain(wavering) {
            told.extend(quota.take(said(remaining, 100)).map(|news| (news, remaining)));
        }
        assert_eq!(told, [(News::Half, 49), (News::Few, 9), (News::None, 0)]);
        assert_eq!(quota.take(said(74, 100)), None);
        assert_eq!(quota.take(said(75, 100)), Some(News::Back));
        assert_eq!(quota.take(said(100, 100)), None);
        assert_eq!(quota.take(said(3, 100)), Some(News::Few), "what is passed over is not told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_word_is_believed_for_its_window() {
        let quota = Quota::default();
        assert_eq!(quota.now(), None);
        quota.take(said(0, 100));
        tokio::time::advance(Duration::from_secs(21_599)).await;
        assert_eq!(quota.now(), Some(said(0, 100)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(quota.now(), None);
        quota.take(Said { window: None, ..said(1, 100) });
        tokio::time::advance(WINDOW_DEFAULT).await;
        assert_eq!(quota.now(), None);
    }
}
