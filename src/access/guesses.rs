//! How many wrong passwords an address may try: some at once, then one every few seconds.
//!
//! Owns the table of addresses that were wrong lately, which is bounded whatever comes. A password that was right a moment ago
//! is not asked about here, so one who guesses keeps nobody out who is logged in, and nobody at another address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Wrong passwords of an address at once: more than a user mistypes, and as many users may log in at once from behind one address.
pub(super) const BURST: u32 = 20;

/// After that, one each such time: 14,400 a day, where the worst passwords that people choose are found after millions. A client that
/// repeats the same wrong one is answered from memory for longer than that, so it never gets here.
pub(super) const EVERY: Duration = Duration::from_secs(6);

/// Addresses in the table, some hundred KiB: an attack from more of them is bounded by the checks that run at once.
const ADDRESSES_MAX: usize = 4096;

/// The table. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Guesses(Arc<Mutex<HashMap<IpAddr, Account>>>);

struct Account {
    /// Every wrong password moves it on by [`EVERY`]; what lies ahead of now is what the address has used up.
    even_at: Instant,
    /// Passwords of it that are being checked: each may turn out wrong.
    under_way: u32,
}

/// Leave to have one password checked. To be kept until it is.
pub(super) struct Guess {
    guesses: Guesses,
    address: IpAddr,
    is_wrong: bool,
}

impl Guesses {
    /// Leave for a check, or how long it takes until there is some.
    pub(super) fn begin(&self, ip: IpAddr) -> Result<Guess, Duration> {
        let (now, address) = (Instant::now(), household(ip));
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !table.contains_key(&address) {
            make_room(&mut table, now);
        }
        let account = table.entry(address).or_insert(Account { even_at: now, under_way: 0 });
        let used = account.even_at.saturating_duration_since(now) + EVERY * account.under_way;
        let most = EVERY * (BURST - 1);
        if let Some(too_much) = used.checked_sub(most)
            && !too_much.is_zero()
        {
            return Err(too_much);
        }
        account.under_way += 1;
        drop(table);
        Ok(Guess { guesses: self.clone(), address, is_wrong: false })
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Guess {
    /// It was wrong.
    pub(super) fn was_wrong(mut self) {
        self.is_wrong = true;
    }
}

impl Drop for Guess {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut table = self.guesses.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(account) = table.get_mut(&self.address) else { return };
        account.under_way = account.under_way.saturating_sub(1);
        if self.is_wrong {
            let before = account.even_at.saturating_duration_since(now);
            account.even_at = account.even_at.max(now) + EVERY;
            let most = EVERY * (BURST - 1);
            if before <= most && before + EVERY > most {
                tracing::warn!(client = %self.address, "too many wrong passwords from this address; those it sends next are refused for a while");
            }
        } else if account.even_at <= now && account.under_way == 0 {
            table.remove(&self.address);
        }
    }
}

/// Forgets who owes nothing, and if all do, who owes least.
fn make_room(table: &mut HashMap<IpAddr, Account>, now: Instant) {
    if table.len() < ADDRESSES_MAX {
        return;
    }
    table.retain(|_, account| account.even_at > now || account.under_way > 0);
    if table.len() >= ADDRESSES_MAX
        && let Some(least) = table.iter().filter(|(_, account)| account.under_way == 0).min_by_key(|(_, account)| account.even_at)
    {
        let least = *least.0;
        table.remove(&least);
    }
}

/// A customer of an IPv6 network has a whole /64 to choose addresses from.
fn household(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn some_at_once_then_one_in_a_while() {
        let guesses = Guesses::default();
        for _ in 0..BURST {
            guesses.begin(ip("192.0.2.1")).expect("leave").was_wrong();
        }
        let wait = guesses.begin(ip("192.0.2.1")).err().expect("no leave");
        assert_eq!(wait, EVERY);
        assert!(guesses.begin(ip("192.0.2.2")).is_ok(), "a neighbour");
        tokio::time::advance(wait).await;
        guesses.begin(ip("192.0.2.1")).expect("leave").was_wrong();
        assert!(guesses.begin(ip("192.0.2.1")).is_err());
        tokio::time::advance(EVERY * BURST).await;
        for _ in 0..BURST {
            guesses.begin(ip("::ffff:192.0.2.1")).expect("leave").was_wrong();
        }
        assert!(guesses.begin(ip("192.0.2.1")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_being_checked_counts_and_what_was_right_does_not() {
        let guesses = Guesses::default();
        let all = (0..BURST).map(|_| guesses.begin(ip("2001:db8::1")).expect("leave")).collect::<Vec<_>>();
        assert!(guesses.begin(ip("2001:db8::2")).is_err(), "the same household");
        assert!(guesses.begin(ip("2001:db8:0:1::2")).is_ok(), "the next one");
        drop(all);
        assert!(guesses.begin(ip("2001:db8::2")).is_ok());
        assert_eq!(guesses.len(), 0, "who was right is not remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_is_bounded_and_keeps_the_worst() {
        let guesses = Guesses::default();
        for _ in 0..BURST {
            guesses.begin(ip("192.0.2.1")).expect("leave").was_wrong();
        }
        for n in 0..2 * u32::try_from(ADDRESSES_MAX).unwrap() {
            guesses.begin(Ipv4Addr::from_bits(n).into()).expect("leave").was_wrong();
        }
        assert!(guesses.len() <= ADDRESSES_MAX);
        assert!(guesses.begin(ip("192.0.2.1")).is_err());
    }
}
