//! Is this the password of that user? Asked with every request, answered by bcrypt once in a while.
//!
//! A check takes a quarter of a second of a core, on purpose. So answers are remembered under a salted hash of user and password, checks
//! run off the runtime's workers, few at once, and only so many may wait; who asks what is being found out waits for that and takes no
//! place. An unknown user costs what a wrong password costs, and an address that was wrong too often is not checked for (`guesses`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use sha2::{Digest, Sha256};
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::Instant;

use super::guesses::Guesses;
use super::htpasswd::Users;

/// How long a right password is believed without a check. A change of the file and SIGHUP end it at once.
const RIGHT_FOR: Duration = Duration::from_secs(300);

/// How long a wrong one is: a client that repeats itself costs nothing, a user who was just entered is not kept out.
const WRONG_FOR: Duration = Duration::from_secs(10);

/// Checks at once: one may be slow without holding up the next, and a flood of guesses takes no more than two cores.
const CHECKS: usize = 2;

/// Checks that wait for their turn: at a quarter of a second each, the last one waits 8 s, less than clients do.
const WAITING: usize = 64;

/// Answers that are remembered. Checks are so slow that less than this can come about in five minutes.
const REMEMBERED: usize = 4096;

/// Random bytes of this process, so that a hash in memory means nothing elsewhere and cannot be aimed at.
pub(super) struct Salt([u8; 32]);

impl Salt {
    pub(super) fn new() -> Self {
        let mut salt = [0; 32];
        let random = aws_lc_rs::default_provider().secure_random;
        random.fill(&mut salt).expect("the system has random bytes");
        Self(salt)
    }

    /// The parts keep their borders: each is preceded by its length.
    pub(super) fn hash(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hash = Sha256::new_with_prefix(self.0);
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checked {
    Right,
    Wrong,
    /// Too many wait.
    Busy,
    /// It was not looked at: too many wrong ones came from there. After so long there is leave for another.
    Limited(Duration),
}

/// Whether the password, the first, makes the hash, the second.
type Verify = dyn Fn(&[u8], &str) -> bool + Send + Sync;

/// One version of the htpasswd file, and what was found out with it.
pub(super) struct Passwords {
    users: Users,
    /// What an unknown user is checked against: no password makes it, at the highest cost in the file.
    nobody: String,
    salt: Salt,
    /// Held for a look-up or an insertion.
    known: Mutex<Known>,
    /// What is being found out. Held for a look-up.
    under_way: Mutex<HashMap<[u8; 32], Arc<OnceCell<Checked>>>>,
    verify: Arc<Verify>,
    checks: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    guesses: Guesses,
}

/// One who waits for what is being found out. The last one to leave takes it off the list.
struct Waiting<'p> {
    passwords: &'p Passwords,
    key: [u8; 32],
    cell: Arc<OnceCell<Checked>>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut under_way = self.passwords.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // The list's, and this one.
        if Arc::strong_count(&self.cell) <= 2 {
            under_way.remove(&self.key);
        }
    }
}

impl Passwords {
    pub(super) fn new(users: Users) -> Self {
        Self::with(users, Arc::new(|password, hash| bcrypt::verify(password, hash).unwrap_or(false)))
    }

    pub(super) fn with(users: Users, verify: Arc<Verify>) -> Self {
        let (checks, waiting) = (Arc::new(Semaphore::new(CHECKS)), Arc::new(Semaphore::new(CHECKS + WAITING)));
        Self {
            nobody: nobody(&users),
            users,
            salt: Salt::new(),
            known: Mutex::default(),
            under_way: Mutex::default(),
            verify,
            checks,
            waiting,
            guesses: Guesses::default(),
        }
    }

    /// The next version of the file: nothing is known yet, the limits go on.
    pub(super) fn renewed(&self, users: Users) -> Self {
        Self {
            checks: Arc::clone(&self.checks),
            waiting: Arc::clone(&self.waiting),
            guesses: self.guesses.clone(),
            ..Self::with(users, Arc::clone(&self.verify))
        }
    }

    /// Whether a client at this address has the password of that user.
    pub(super) async fn check(self: &Arc<Self>, ip: IpAddr, user: &str, password: &[u8]) -> Checked {
        let key = self.salt.hash(&[user.as_bytes(), password]);
        if let Some(known) = self.known(&key) {
            return known;
        }
        let cell = Arc::clone(self.under_way.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default());
        let waiting = Waiting { passwords: self, key, cell };
        // Who is told that there is no leave or no place speaks for itself: the next one tries.
        match waiting.cell.get_or_try_init(|| self.find_out(key, ip, user, password)).await {
            Ok(checked) => *checked,
            Err(refused) => refused,
        }
    }

    async fn find_out(self: &Arc<Self>, key: [u8; 32], ip: IpAddr, user: &str, password: &[u8]) -> Result<Checked, Checked> {
        let guess = self.guesses.begin(ip).map_err(Checked::Limited)?;
        let place = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| Checked::Busy)?;
        let turn = Arc::clone(&self.checks).acquire_owned().await.expect("the semaphore is never closed");
        // One that was being checked when its client left may be known by now.
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let hash = self.users.get(user);
        let exists = hash.is_some();
        let hash = hash.unwrap_or(&self.nobody).clone();
        let password = password.to_vec();
        let this = Arc::clone(self);
        // The turn ends with the check, not with the client: one that leaves does not free a core, and its guess counts.
        let check = tokio::task::spawn_blocking(move || {
            let right = (this.verify)(&password, &hash) && exists;
            this.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key, right);
            if !right {
                guess.was_wrong();
            }
            drop((place, turn));
            if right { Checked::Right } else { Checked::Wrong }
        });
        Ok(check.await.unwrap_or(Checked::Wrong))
    }

    fn known(&self, key: &[u8; 32]) -> Option<Checked> {
        let right = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key)?;
        Some(if right { Checked::Right } else { Checked::Wrong })
    }
}

/// A hash at the highest cost of the file, 22 characters of salt and 31 of hash.
fn nobody(users: &Users) -> String {
    let costs = users.values().filter_map(|hash| hash.parse::<bcrypt::HashParts>().ok()).map(|parts| parts.get_cost());
    format!("$2y${:02}${:.<53}", costs.max().unwrap_or(bcrypt::DEFAULT_COST), "")
}

/// Answers, each with its end.
#[derive(Default)]
struct Known(HashMap<[u8; 32], (bool, Instant)>);

impl Known {
    fn get(&self, key: &[u8; 32]) -> Option<bool> {
        self.0.get(key).filter(|(_, end)| Instant::now() < *end).map(|(right, _)| *right)
    }

    fn insert(&mut self, key: [u8; 32], right: bool) {
        let now = Instant::now();
        // After a check, this walk is nothing.
        self.0.retain(|_, (_, end)| now < *end);
        if self.0.len() < REMEMBERED {
            self.0.insert(key, (right, now + if right { RIGHT_FOR } else { WRONG_FOR }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guesses::{BURST, EVERY};
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

    /// Users whose "hash" is the password, and a count of the checks.
    fn counted(users: &[(&str, &str)]) -> (Arc<Passwords>, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let verify = move |password: &[u8], hash: &str| {
            counter.fetch_add(1, Ordering::Relaxed);
            password == hash.as_bytes()
        };
        (Arc::new(Passwords::with(owned(users), Arc::new(verify))), count)
    }

    fn owned(users: &[(&str, &str)]) -> Users {
        users.iter().map(|(user, hash)| ((*user).to_owned(), (*hash).to_owned())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_remembered_for_its_time() {
        let (passwords, count) = counted(&[("ann", "a")]);
        let checks = || count.load(Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right);
            assert_eq!(passwords.check(HERE, "ann", b"b").await, Checked::Wrong);
        }
        assert_eq!(checks(), 2);
        tokio::time::advance(WRONG_FOR).await;
        assert_eq!(passwords.check(HERE, "ann", b"b").await, Checked::Wrong);
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right);
        assert_eq!(checks(), 3, "the wrong one was checked again, the right one not");
        tokio::time::advance(RIGHT_FOR).await;
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right);
        assert_eq!(checks(), 4);
    }

    #[tokio::test]
    async fn user_and_password_keep_their_border() {
        let (passwords, count) = counted(&[("ann", "ab"), ("anna", "b")]);
        assert_eq!(passwords.check(HERE, "ann", b"ab").await, Checked::Right);
        assert_eq!(passwords.check(HERE, "anna", b"b").await, Checked::Right);
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn an_unknown_user_is_checked_and_never_right() {
        let (passwords, count) = counted(&[]);
        let nobody = passwords.nobody.clone();
        assert_eq!(passwords.check(HERE, "eve", nobody.as_bytes()).await, Checked::Wrong);
        assert_eq!(count.load(Ordering::Relaxed), 1, "it took as long as any");
    }

    #[test]
    fn nobody_is_a_hash_that_bcrypt_works_on() {
        let hash = bcrypt::hash("x", 5).unwrap();
        let nobody = nobody(&Users::from([("ann".to_owned(), hash)]));
        assert!(nobody.starts_with("$2y$05$"), "{nobody}");
        assert!(!bcrypt::verify("x", &nobody).unwrap(), "an error would have been quick");
    }

    /// Users of whom each has the password that is its name, and a check that waits for a word each time.
    fn gated(users: &[(&str, &str)]) -> (Arc<Passwords>, mpsc::Sender<()>, Arc<AtomicUsize>) {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let verify = move |password: &[u8], hash: &str| {
            counter.fetch_add(1, Ordering::Relaxed);
            gate.lock().unwrap().recv().unwrap();
            password == hash.as_bytes()
        };
        (Arc::new(Passwords::with(owned(users), Arc::new(verify))), open, count)
    }

    #[tokio::test]
    async fn one_check_for_all_who_ask_the_same_and_they_take_one_place() {
        let (passwords, open, count) = gated(&[("ann", "a")]);
        let mut asked = tokio::task::JoinSet::new();
        for n in 0..3 * (CHECKS + WAITING) {
            let passwords = Arc::clone(&passwords);
            let ip = Ipv4Addr::from_bits(u32::try_from(n).unwrap() / 100).into();
            asked.spawn(async move { passwords.check(ip, "ann", b"a").await });
        }
        while count.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(passwords.waiting.available_permits(), CHECKS + WAITING - 1);
        open.send(()).unwrap();
        while let Some(checked) = asked.join_next().await {
            assert_eq!(checked.unwrap(), Checked::Right);
        }
        assert_eq!(count.load(Ordering::Relaxed), 1);
        assert!(passwords.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn busy_beyond_the_queue_and_never_for_what_is_known() {
        let (passwords, open, count) = gated(&[("ann", "a")]);
        open.send(()).unwrap();
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right);
        let mut asked = tokio::task::JoinSet::new();
        for n in 0..CHECKS + WAITING {
            let passwords = Arc::clone(&passwords);
            let ip = Ipv4Addr::from_bits(u32::try_from(n).unwrap()).into();
            asked.spawn(async move { passwords.check(ip, &n.to_string(), b"wrong").await });
        }
        while passwords.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(passwords.check(HERE, "bob", b"b").await, Checked::Busy);
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right, "it was right before");
        for _ in 0..=CHECKS + WAITING {
            open.send(()).unwrap();
        }
        while let Some(checked) = asked.join_next().await {
            assert_eq!(checked.unwrap(), Checked::Wrong);
        }
        assert_eq!(passwords.check(HERE, "bob", b"b").await, Checked::Wrong, "the queue is free again");
        assert_eq!(count.load(Ordering::Relaxed), CHECKS + WAITING + 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_is_stopped_and_keeps_out_nobody_else() {
        let (passwords, count) = counted(&[("ann", "a"), ("bob", "b")]);
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right);
        for n in 0..BURST {
            assert_eq!(passwords.check(HERE, "bob", &n.to_be_bytes()).await, Checked::Wrong);
        }
        let checks = count.load(Ordering::Relaxed);
        for n in BURST..3 * BURST {
            assert_eq!(passwords.check(HERE, "bob", &n.to_be_bytes()).await, Checked::Limited(EVERY));
        }
        assert_eq!(passwords.check(HERE, "bob", b"b").await, Checked::Limited(EVERY), "not even the right one");
        assert_eq!(count.load(Ordering::Relaxed), checks, "no check was made for it");
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right, "who is logged in already, behind the same address");
        assert_eq!(passwords.check(Ipv4Addr::new(192, 0, 2, 8).into(), "bob", b"b").await, Checked::Right, "and whoever is elsewhere");
        let renewed = Arc::new(passwords.renewed(owned(&[("bob", "b")])));
        assert_eq!(renewed.check(HERE, "bob", b"c").await, Checked::Limited(EVERY), "a new list pays no debts");
        tokio::time::advance(EVERY).await;
        assert_eq!(renewed.check(HERE, "bob", b"b").await, Checked::Right);
    }

    #[tokio::test]
    async fn a_new_list_knows_nothing_of_the_old() {
        let (passwords, _) = counted(&[("ann", "a")]);
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Right);
        let passwords = Arc::new(passwords.renewed(owned(&[("ann", "b")])));
        assert_eq!(passwords.check(HERE, "ann", b"a").await, Checked::Wrong);
        assert_eq!(passwords.check(HERE, "ann", b"b").await, Checked::Right);
    }
}
