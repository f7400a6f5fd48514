//! The RAM shelf: decoded bricks, sharded by name, each shard with its part of the byte budget. A brick is fetched once however many threads
//! want it. Where the future is known (`future.rs`) a full shard gives up what is needed latest and takes in nothing that is needed later still. Where it
//! is not, it replaces a brick only by one that is asked for more often: in an epoch-wise order every least-recently-used rule throws away exactly what
//! comes next, keeping what is there is the best that needs no plan, and frequency adds the popular middle of a volume.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use super::future::{Foreseen, NEVER, Trace};
use super::{Brick, Ids};
use crate::error::Error;

/// Shards no smaller than this, so that a large brick still fits its part of the budget.
const SHARD_MIN_BYTES: u64 = 64 << 20;
const SHARDS_MAX: u64 = 32;
/// Bricks looked at to find the least wanted.
const SAMPLE: usize = 6;
/// By how many requests a new brick must lead: within an epoch everyone is at most one ahead.
const LEAD: u8 = 1;

pub(super) struct Ram {
    shards: Vec<Mutex<Shard>>,
    shard_bytes: AtomicU64,
    /// Requests before this one of the foreseen trace are all answered.
    now: AtomicU32,
}

#[derive(Default)]
struct Shard {
    /// By the id of the name.
    entries: HashMap<u64, Entry, Ids>,
    /// The ids in `entries`, for drawing at random.
    order: Vec<u64>,
    /// Bricks that a thread is fetching.
    flights: HashMap<Brick, Arc<Flight>>,
    used_bytes: u64,
    foreseen: Option<Foreseen>,
    wanted: Sketch,
    draw: u64,
}

struct Entry {
    /// Two names may have one id; only this one is here.
    name: Brick,
    bytes: Arc<Vec<u8>>,
    /// Index in `order`.
    place: usize,
    /// When it is needed next.
    next: u32,
}

#[derive(Default)]
struct Flight {
    /// Outer `None`: in the air. Inner `None`: the fetch failed and someone else may try.
    landed: Mutex<Option<Option<Arc<Vec<u8>>>>>,
    changed: Condvar,
}

/// Ends a flight on every way out of a fetch, panics included.
struct Landing<'a> {
    shard: &'a Mutex<Shard>,
    name: Brick,
    flight: Arc<Flight>,
    bytes: Option<Arc<Vec<u8>>>,
}

const HELD: &str = "no thread panics while it holds a shard";

impl Ram {
    pub fn new(limit_bytes: u64) -> Self {
        Self::in_parts(limit_bytes, Self::parts(limit_bytes))
    }

    /// How many parts a budget is shared among.
    pub fn parts(limit_bytes: u64) -> u64 {
        (limit_bytes / SHARD_MIN_BYTES).clamp(1, SHARDS_MAX)
    }

    pub fn in_parts(limit_bytes: u64, n: u64) -> Self {
        Self { shards: (0..n).map(|_| Mutex::default()).collect(), shard_bytes: AtomicU64::new(limit_bytes / n), now: AtomicU32::new(0) }
    }

    /// Another budget; what no longer fits leaves.
    pub fn resize(&self, limit_bytes: u64) {
        let shard_bytes = limit_bytes / self.shards.len() as u64;
        self.shard_bytes.store(shard_bytes, Ordering::Relaxed);
        for shard in &self.shards {
            let mut s = shard.lock().expect(HELD);
            while s.used_bytes > shard_bytes {
                let last = *s.order.last().expect("what takes bytes is an entry");
                s.remove(last);
            }
        }
    }

    /// From now on requests come as the trace says; `None`: nothing is known of them.
    pub fn foresee(&self, trace: Option<&Trace>) {
        self.now.store(0, Ordering::Relaxed);
        let mut parts = trace.map(|t| t.split(self.shards.len(), |id| self.shard_of(id)).into_iter());
        for shard in &self.shards {
            let mut s = shard.lock().expect(HELD);
            s.foreseen = parts.as_mut().and_then(Iterator::next);
            s.look_ahead();
        }
    }

    /// All requests before this one of the foreseen trace are answered.
    pub fn passed(&self, request: u32) {
        self.now.fetch_max(request, Ordering::Relaxed);
    }

    fn shard_of(&self, id: u64) -> usize {
        (id >> 32) as usize % self.shards.len()
    }

    /// The brick, and whether it was on the shelf (or in another thread's hands) already.
    pub fn get_or_load(&self, name: &Brick, load: impl FnOnce() -> Result<Vec<u8>, Error>) -> Result<(Arc<Vec<u8>>, bool), Error> {
        let id = name.short_id();
        let shard = &self.shards[self.shard_of(id)];
        let now = self.now.load(Ordering::Relaxed);
        let mut asked = None;
        loop {
            let theirs = {
                let mut s = shard.lock().expect(HELD);
                let next = *asked.get_or_insert_with(|| {
                    s.wanted.count(id);
                    s.ask(id, now)
                });
                if let Some(entry) = s.entries.get(&id).filter(|e| e.name == *name) {
                    return Ok((entry.bytes.clone(), true));
                }
                match s.flights.get(name) {
                    Some(flight) => flight.clone(),
                    None => {
                        let flight = Arc::new(Flight::default());
                        s.flights.insert(*name, flight.clone());
                        drop(s);
                        let mut landing = Landing { shard, name: *name, flight, bytes: None };
                        let bytes = Arc::new(load()?);
                        shard.lock().expect(HELD).admit(*name, id, next, &bytes, self.shard_bytes.load(Ordering::Relaxed));
                        landing.bytes = Some(bytes.clone());
                        return Ok((bytes, false));
                    }
                }
            };
            if let Some(bytes) = theirs.wait() {
                return Ok((bytes, true));
            }
        }
    }

    #[cfg(test)]
    pub fn used_bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.lock().expect("no holder panics").used_bytes).sum()
    }
}

impl Shard {
    /// Counts one request off the foreseen ones and says when the brick is needed again.
    fn ask(&mut self, id: u64, now: u32) -> u32 {
        let Some(foreseen) = &mut self.foreseen else { return NEVER };
        let next = foreseen.ask(id, now);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.next = next;
            foreseen.push(next, id);
            if foreseen.is_stale(self.entries.len()) {
                self.look_ahead_again();
            }
        }
        next
    }

    /// Looks up when each brick that is held is needed next.
    fn look_ahead(&mut self) {
        let Some(foreseen) = &self.foreseen else { return };
        self.entries.iter_mut().for_each(|(id, e)| e.next = foreseen.next(*id));
        self.look_ahead_again();
    }

    /// Puts what is held in order anew.
    fn look_ahead_again(&mut self) {
        if let Some(foreseen) = &mut self.foreseen {
            foreseen.refill(self.entries.iter().map(|(id, e)| (e.next, *id)));
        }
    }

    /// - `next`: when it is needed again
    fn admit(&mut self, name: Brick, id: u64, next: u32, bytes: &Arc<Vec<u8>>, limit_bytes: u64) {
        // What the allocation takes, not what is used of it.
        let need = bytes.capacity() as u64;
        if need > limit_bytes || self.entries.contains_key(&id) {
            return;
        }
        if self.foreseen.is_some() {
            while self.used_bytes + need > limit_bytes {
                let Some(victim) = self.latest(next) else { return };
                self.remove(victim);
            }
        }
        let asked = self.wanted.estimate(id);
        while self.used_bytes + need > limit_bytes {
            let (asked_least, victim) = (0..SAMPLE)
                .map(|_| {
                    let place = self.next_draw() as usize % self.order.len();
                    let candidate = self.order[place];
                    (self.wanted.estimate(candidate), candidate)
                })
                .min_by_key(|(n, _)| *n)
                .expect("a full shard holds something");
            if asked <= asked_least.saturating_add(LEAD) {
                return;
            }
            self.remove(victim);
        }
        self.used_bytes += need;
        self.entries.insert(id, Entry { name, bytes: bytes.clone(), place: self.order.len(), next });
        self.order.push(id);
        if let Some(foreseen) = &mut self.foreseen {
            foreseen.push(next, id);
        }
    }

    /// The brick that is needed latest, where that is later than `than`.
    fn latest(&mut self, than: u32) -> Option<u64> {
        let foreseen = self.foreseen.as_mut()?;
        foreseen.latest(than, |next, id| self.entries.get(&id).is_some_and(|e| e.next == next))
    }

    fn remove(&mut self, id: u64) {
        let entry = self.entries.remove(&id).expect("drawn from the entries");
        self.used_bytes -= entry.bytes.capacity() as u64;
        self.order.swap_remove(entry.place);
        if let Some(moved) = self.order.get(entry.place) {
            self.entries.get_mut(moved).expect("every name in the order has its entry").place = entry.place;
        }
    }

    /// Weyl sequence, mixed: which bricks are looked at decides speed, never bytes.
    fn next_draw(&mut self) -> u64 {
        self.draw = self.draw.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.draw ^ (self.draw >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x ^ (x >> 27)
    }
}

impl Flight {
    fn wait(&self) -> Option<Arc<Vec<u8>>> {
        let mut landed = self.landed.lock().expect(HELD);
        loop {
            match &*landed {
                Some(bytes) => return bytes.clone(),
                None => landed = self.changed.wait(landed).expect(HELD),
            }
        }
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.shard.lock().expect(HELD).flights.remove(&self.name);
        *self.flight.landed.lock().expect(HELD) = Some(self.bytes.take());
        self.flight.changed.notify_all();
    }
}

/// How often bricks were asked for, roughly: a count-min sketch of two rows whose counts are halved from time to time, so that yesterday's
/// favourites leave.
struct Sketch {
    counts: Vec<u8>,
    until_halved: u32,
}

const SKETCH_SLOTS: usize = 1 << 14;

impl Default for Sketch {
    fn default() -> Self {
        Self { counts: vec![0; 2 * SKETCH_SLOTS], until_halved: 16 * SKETCH_SLOTS as u32 }
    }
}

impl Sketch {
    fn slots(id: u64) -> [usize; 2] {
        let slot = |bits: u64| bits as usize % SKETCH_SLOTS;
        [slot(id), SKETCH_SLOTS + slot(id >> 17)]
    }

    fn count(&mut self, id: u64) {
        for slot in Self::slots(id) {
            self.counts[slot] = self.counts[slot].saturating_add(1);
        }
        self.until_halved -= 1;
        if self.until_halved == 0 {
            self.counts.iter_mut().for_each(|c| *c /= 2);
            self.until_halved = 16 * SKETCH_SLOTS as u32;
        }
    }

    fn estimate(&self, id: u64) -> u8 {
        Self::slots(id).map(|s| self.counts[s]).into_iter().min().expect("two rows")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use voxmill_schemas::artifact::Key;

    use super::*;

    fn brick(i: u32) -> Brick {
        Brick { artifact: Key([7; 32]), array: 0, index: [0, 0, 0, i] }
    }

    #[test]
    fn a_brick_that_many_threads_want_is_fetched_once() {
        let ram = Ram::new(1 << 20);
        let fetched = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..16 {
                s.spawn(|| {
                    let (bytes, _) = ram
                        .get_or_load(&brick(1), || {
                            fetched.fetch_add(1, Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_millis(30));
                            Ok(vec![5; 100])
                        })
                        .unwrap();
                    assert_eq!(*bytes, vec![5; 100]);
                });
            }
        });
        assert_eq!(fetched.into_inner(), 1);
    }

    #[test]
    fn a_failed_fetch_lets_the_next_one_try() {
        let ram = Ram::new(1 << 20);
        assert!(ram.get_or_load(&brick(1), || Err(Error::Cancelled)).is_err());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ram.get_or_load(&brick(1), || panic!("broken decoder"))));
        assert!(panicked.is_err());
        let (bytes, was_there) = ram.get_or_load(&brick(1), || Ok(vec![1])).unwrap();
        assert!(!was_there && *bytes == [1]);
    }

    #[test]
    fn epochs_in_any_order_hit_as_often_as_the_shelf_is_large() {
        let (n, size) = (400u32, 1000usize);
        let ram = Ram::new(100 * size as u64);
        let mut hits = 0;
        for epoch in 0..10u32 {
            for i in 0..n {
                // Another order each epoch: 400 and the factor share no divisor.
                let i = (i * [1, 3, 7, 9, 11, 13, 17, 19, 21, 23][epoch as usize]) % n;
                hits += ram.get_or_load(&brick(i), || Ok(vec![0; size])).unwrap().1 as u32;
            }
        }
        // A quarter fits; the first epoch fills.
        assert!(hits >= 9 * 95, "{hits} of {}", 9 * 100);
    }

    #[test]
    fn new_favourites_take_the_place_of_old_ones() {
        let ram = Ram::new(10 * 100);
        let ask = |i: u32| ram.get_or_load(&brick(i), || Ok(vec![0; 100])).unwrap().1;
        for i in 0..10 {
            ask(i);
        }
        for _ in 0..5 {
            for i in 100..110 {
                ask(i);
            }
        }
        assert!((100..110).filter(|i| ask(*i)).count() >= 8);
    }
}
