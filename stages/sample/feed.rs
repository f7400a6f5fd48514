//! Work on threads, results in order. At most `ahead` results exist beyond the one in the consumer's hands, so memory is bounded; an error comes out
//! in its turn and ends the feed; when the consumer leaves, early or by panic, the workers stop and are joined.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::cut::caught;
use crate::error::Error;

/// Batches made ahead of a network.
pub const AHEAD: usize = 4;

/// How a feed works; nothing in here changes what comes out.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub workers: usize,
    /// Results made ahead of the consumer.
    pub ahead: usize,
}

/// The consumer's end.
pub struct Feed<'a, T> {
    shared: &'a Shared<T>,
    cancel: &'a AtomicBool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    range: Range<u64>,
}

struct State<T> {
    /// Next number that a worker takes up.
    claim: u64,
    /// Next number that the consumer gets.
    give: u64,
    ready: BTreeMap<u64, Result<T, Error>>,
    closed: bool,
}

/// Makes `range` with `make` on worker threads while `consume` takes the results in order.
pub fn feed<T: Send, R>(
    range: Range<u64>,
    pace: Pace,
    cancel: &AtomicBool,
    make: impl Fn(u64) -> Result<T, Error> + Sync,
    consume: impl FnOnce(&mut Feed<T>) -> R,
) -> R {
    let state = State { claim: range.start, give: range.start, ready: BTreeMap::new(), closed: false };
    let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), range };
    std::thread::scope(|scope| {
        for _ in 0..pace.workers.max(1) {
            scope.spawn(|| work(&shared, pace.ahead.max(1) as u64, cancel, &make));
        }
        // Dropped before the scope joins its threads, on a panic of the consumer too.
        let mut feed = Feed { shared: &shared, cancel };
        consume(&mut feed)
    })
}

fn work<T>(shared: &Shared<T>, ahead: u64, cancel: &AtomicBool, make: &(impl Fn(u64) -> Result<T, Error> + Sync)) {
    loop {
        let n = {
            let mut s = shared.lock();
            while !s.closed && s.claim < shared.range.end && s.claim >= s.give + ahead {
                s = shared.changed.wait(s).expect("no holder panics");
            }
            if s.closed || s.claim >= shared.range.end {
                return;
            }
            s.claim += 1;
            s.claim - 1
        };
        let made = if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { caught(|| make(n)) };
        let failed = made.is_err();
        let mut s = shared.lock();
        s.ready.insert(n, made);
        shared.changed.notify_all();
        if failed {
            // What stands before it is still given; nothing after it is begun.
            s.claim = shared.range.end;
        }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> std::sync::MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder panics")
    }
}

impl<T> Feed<'_, T> {
    /// The next result; `None` at the end of the range. After an error there is nothing more.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<T, Error>> {
        let mut s = self.shared.lock();
        loop {
            if s.closed || s.give >= self.shared.range.end {
                return None;
            }
            if self.cancel.load(Ordering::Relaxed) {
                s.closed = true;
                self.shared.changed.notify_all();
                return Some(Err(Error::Cancelled));
            }
            let give = s.give;
            if let Some(result) = s.ready.remove(&give) {
                s.give += 1;
                s.closed |= result.is_err();
                self.shared.changed.notify_all();
                return Some(result);
            }
            // The flag of Ctrl-C wakes nobody: look at it ten times a second.
            s = self.shared.changed.wait_timeout(s, Duration::from_millis(100)).expect("no holder panics").0;
        }
    }
}

impl<T> Drop for Feed<'_, T> {
    fn drop(&mut self) {
        // A poisoned lock cannot come from here, and a drop must not panic.
        if let Ok(mut s) = self.shared.state.lock() {
            s.closed = true;
        }
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    static CALM: AtomicBool = AtomicBool::new(false);

    fn slow(n: u64) -> u64 {
        // Later numbers are sooner done.
        std::thread::sleep(Duration::from_millis((n * 7) % 5));
        n
    }

    #[test]
    fn results_leave_in_order_whatever_the_workers() {
        for workers in [1, 2, 7] {
            let got: Vec<u64> = feed(
                3..40,
                Pace { workers, ahead: 4 },
                &CALM,
                |n| Ok(slow(n)),
                |f| std::iter::from_fn(|| f.next()).map(Result::unwrap).collect(),
            );
            assert_eq!(got, (3..40).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_more_than_the_bound_is_made_ahead() {
        let (made, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        feed(
            0..30,
            Pace { workers: 4, ahead: 3 },
            &CALM,
            |_| {
                most.fetch_max(made.fetch_add(1, SeqCst) + 1, SeqCst);
                Ok(())
            },
            |f| {
                while let Some(r) = f.next() {
                    r.unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                    made.fetch_sub(1, SeqCst);
                }
            },
        );
        assert!(most.load(SeqCst) <= 4, "{most:?}: three ahead and the one in hand");
    }

    #[test]
    fn an_error_comes_in_its_turn_and_ends_the_feed() {
        let fail = |n| if n == 5 { Err(Error::Model { why: "five".into() }) } else { Ok(slow(n)) };
        let got: Vec<_> = feed(0..100, Pace { workers: 3, ahead: 8 }, &CALM, fail, |f| std::iter::from_fn(|| f.next()).collect());
        assert_eq!(got.len(), 6);
        assert!(got[..5].iter().enumerate().all(|(i, r)| *r.as_ref().unwrap() == i as u64));
        assert_eq!(got[5].as_ref().unwrap_err().to_string(), "model: five");
    }

    #[test]
    fn a_panic_of_a_worker_is_an_error() {
        let got: Vec<_> = feed(
            0..9,
            Pace { workers: 2, ahead: 2 },
            &CALM,
            |n| if n == 2 { panic!("broken tile") } else { Ok(n) },
            |f| std::iter::from_fn(|| f.next()).collect(),
        );
        assert_eq!(got.len(), 3);
        assert!(got[2].as_ref().unwrap_err().to_string().contains("broken tile"));
    }

    #[test]
    fn leaving_early_joins_the_workers() {
        let first = feed(0..u64::MAX, Pace { workers: 3, ahead: 2 }, &CALM, |n| Ok(slow(n)), |f| f.next().unwrap().unwrap());
        assert_eq!(first, 0);
        let broken = std::panic::catch_unwind(|| {
            feed(0..u64::MAX, Pace { workers: 3, ahead: 2 }, &CALM, |n| Ok(slow(n)), |_: &mut Feed<u64>| panic!("consumer"))
        });
        assert!(broken.is_err());
    }

    #[test]
    fn cancel_ends_a_feed_that_waits() {
        let cancel = AtomicBool::new(false);
        let got = feed(
            0..1000,
            Pace { workers: 1, ahead: 1 },
            &cancel,
            |n| {
                std::thread::sleep(Duration::from_millis(20));
                Ok(n)
            },
            |f| {
                f.next().unwrap().unwrap();
                cancel.store(true, SeqCst);
                f.next().unwrap()
            },
        );
        assert!(matches!(got, Err(Error::Cancelled)));
    }
}
