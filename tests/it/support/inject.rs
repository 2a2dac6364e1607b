//! Faults of the disk, between the program and the kernel: every call of the real program on a file of its data folder can be
//! watched, refused with an error, or be the moment at which the program is killed.
//!
//! The program runs under a filter of the kernel (seccomp) that stops a thread at each such call and asks the test, which answers
//! from a thread of its own. So the calls of all threads stand in one order, which a tracer that counts a thread's calls does
//! not give (strace's `inject=…:when=N` counts each thread for itself, and a blocking pool has many); the program under test
//! is the one that is shipped; and faults can begin and end while it serves.
//!
//! What is not on a file of the data folder goes on untouched.

// The kernel's interface has no safe wrapper: the filter, the ioctls, and the moment between fork and exec.
#![allow(unsafe_code)]

mod call;
mod filter;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

pub use call::{Call, Event};

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is made.
    Pass,
    /// It is not made, and fails with this.
    Fail(Errno),
    /// It is not made: the program is killed.
    Kill,
    /// It hangs until [`Injector::release`]; one that asks not to wait is told that it would have to.
    Hang,
}

/// Watches one program. Clones are the same.
#[derive(Clone)]
pub struct Injector(Arc<Shared>);

struct Shared {
    root: PathBuf,
    state: Mutex<State>,
}

type Judge = Box<dyn FnMut(&Event) -> Verdict + Send>;

#[derive(Default)]
struct State {
    judge: Option<Judge>,
    seen: Vec<(Event, Verdict)>,
    listener: Option<Arc<OwnedFd>>,
    hung: Vec<libc::seccomp_notif>,
}

impl Injector {
    /// For a program over this data folder.
    pub fn new(root: &Path) -> Self {
        std::fs::create_dir_all(root).unwrap();
        Self(Arc::new(Shared { root: root.canonicalize().unwrap(), state: Mutex::default() }))
    }

    /// From now on `judge` decides about every call; what was seen before is forgotten.
    pub fn arm(&self, judge: impl FnMut(&Event) -> Verdict + Send + 'static) {
        let mut state = self.lock();
        state.judge = Some(Box::new(judge));
        state.seen.clear();
    }

    /// From now on every call is made. What was seen, and what was decided.
    pub fn disarm(&self) -> Vec<(Event, Verdict)> {
        let mut state = self.lock();
        state.judge = None;
        std::mem::take(&mut state.seen)
    }

    /// From now on every call is made, those too that hang; what was seen until now.
    pub fn release(&self) -> Vec<(Event, Verdict)> {
        let seen = self.disarm();
        let mut state = self.lock();
        for asked in std::mem::take(&mut state.hung) {
            filter::answer(state.listener.as_ref().expect("somebody hangs"), &asked, None);
        }
        seen
    }

    /// How many calls hang.
    pub fn hung(&self) -> usize {
        self.lock().hung.len()
    }

    /// Has the program that `command` starts watched; one program for one injector at a time.
    pub fn dress(&self, command: &mut Command) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let program = filter::program();
        // SAFETY: between fork and exec only system calls are made, on memory that was allocated before.
        unsafe {
            command.pre_exec(move || {
                let listener = filter::install(&program)?;
                filter::send(&theirs, &listener)
            });
        }
        let injector = self.clone();
        std::thread::spawn(move || {
            // Nothing comes when the program could not be started.
            if let Ok(listener) = filter::receive(&ours) {
                let listener = Arc::new(listener);
                injector.lock().listener = Some(listener.clone());
                injector.watch(&listener);
            }
        });
    }

    /// Answers until the program has ended.
    fn watch(&self, listener: &OwnedFd) {
        while let Some(asked) = filter::next(listener) {
            let verdict = call::understand(&asked, &self.0.root).map_or(Verdict::Pass, |event| self.judge(event));
            match verdict {
                Verdict::Pass => filter::answer(listener, &asked, None),
                Verdict::Fail(error) => filter::answer(listener, &asked, Some(error)),
                Verdict::Hang if call::may_not_wait(&asked) => filter::answer(listener, &asked, Some(Errno::AGAIN)),
                Verdict::Hang => {
                    let mut state = self.lock();
                    // Released between the judgement and now: then it is made.
                    if state.judge.is_some() {
                        state.hung.push(asked);
                    } else {
                        filter::answer(listener, &asked, None);
                    }
                }
                // The thread waits for an answer until it is dead.
                Verdict::Kill => {
                    if let Some(pid) = Pid::from_raw(asked.pid.cast_signed()) {
                        let _ = kill_process(pid, Signal::KILL);
                    }
                }
            }
        }
    }

    fn judge(&self, event: Event) -> Verdict {
        let mut state = self.lock();
        let Some(judge) = &mut state.judge else { return Verdict::Pass };
        let verdict = judge(&event);
        state.seen.push((event, verdict));
        verdict
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
