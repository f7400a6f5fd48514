//! The future of a training is known, because its patches are drawn by a pure function: which bricks will be asked for, and when each one is needed next.
//! Giving up what is needed latest is the best any shelf can do (Belady 1966); [`simulate`] says how near ours comes, and where least-recently-used stands.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::ops::Range;

use voxmill_schemas::artifact::Key;

use super::ram::Ram;
use super::{Brick, Ids};
use crate::error::Error;

/// A view of what comes takes no more of the budget than its share of so many.
pub(super) const VIEW_SHARE: u64 = 16;

/// No need is known.
pub(super) const NEVER: u32 = u32::MAX;

/// Bricks in the order in which they will be asked for, by their short ids: two that share one cost speed, no voxel. A request is what one patch reads: it
/// asks for a brick once.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Every brick once, with the bytes it takes in memory.
    pub bricks: Vec<(u64, u64)>,
    /// (number of the request, index in `bricks`), by request.
    pub uses: Vec<(u32, u32)>,
    index: HashMap<u64, u32, Ids>,
}

impl Trace {
    /// - `request`: no smaller than the one before
    pub fn push(&mut self, request: u32, brick: &Brick, bytes: u64) {
        self.push_id(request, brick.short_id(), bytes);
    }

    fn push_id(&mut self, request: u32, id: u64, bytes: u64) {
        let new = self.bricks.len() as u32;
        let i = *self.index.entry(id).or_insert(new);
        if i == new {
            self.bricks.push((id, bytes));
        }
        self.uses.push((request, i));
    }

    /// Bytes of all bricks that are asked for.
    pub fn bytes(&self) -> u64 {
        self.bricks.iter().map(|(_, n)| n).sum()
    }

    /// Bytes that a view made of it takes, about.
    pub fn view_bytes(&self) -> u64 {
        self.bricks.len() as u64 * 32 + self.uses.len() as u64 * 4
    }

    /// Bytes that trace, view and the view before take while the view is made, about: lists and tables that double as they grow.
    pub fn making_bytes(&self) -> u64 {
        self.bricks.len() as u64 * 128 + self.uses.len() as u64 * 24
    }

    /// The trace of each part of a shelf.
    pub(super) fn split(&self, n: usize, part: impl Fn(u64) -> usize) -> Vec<Foreseen> {
        let mut counts = vec![0u32; self.bricks.len()];
        self.uses.iter().for_each(|(_, i)| counts[*i as usize] += 1);
        let mut parts: Vec<Foreseen> = (0..n).map(|_| Foreseen::default()).collect();
        // First the room of every brick, then its requests; `counts` becomes where the next one goes.
        let mut ends = vec![0u32; n];
        for ((id, _), count) in self.bricks.iter().zip(&mut counts) {
            let p = part(*id);
            let begin = ends[p];
            ends[p] += *count;
            parts[p].uses.insert(*id, begin..ends[p]);
            *count = begin;
        }
        parts.iter_mut().zip(&ends).for_each(|(p, end)| p.at = vec![0; *end as usize]);
        for (request, i) in &self.uses {
            let p = part(self.bricks[*i as usize].0);
            parts[p].at[counts[*i as usize] as usize] = *request;
            counts[*i as usize] += 1;
        }
        parts
    }

    /// The requests from one on, counted from it; as many as a view of so many bytes holds.
    fn since(&self, first: u32, n: u32, bytes_max: u64) -> Trace {
        let mut out = Trace::default();
        let begin = self.uses.partition_point(|(r, _)| *r < first);
        for (request, i) in self.uses[begin..].iter().take_while(|(r, _)| *r - first < n) {
            if out.making_bytes() >= bytes_max {
                break;
            }
            let (id, bytes) = self.bricks[*i as usize];
            out.push_id(request - first, id, bytes);
        }
        out
    }
}

/// What is known of the requests to one part of a shelf.
#[derive(Default)]
pub(super) struct Foreseen {
    /// Where the requests for a brick that are still to come stand in `at`.
    uses: HashMap<u64, Range<u32>, Ids>,
    at: Vec<u32>,
    /// What is held by its next need, with leavings of needs that have passed.
    heap: BinaryHeap<(u32, u64)>,
}

impl Foreseen {
    /// Counts a request off, and all that should have come before `now`. Gives the next one.
    pub fn ask(&mut self, id: u64, now: u32) -> u32 {
        let Some(uses) = self.uses.get_mut(&id) else { return NEVER };
        uses.start = (uses.start + 1).min(uses.end);
        while uses.start < uses.end && self.at[uses.start as usize] < now {
            uses.start += 1;
        }
        self.next(id)
    }

    /// When a brick is needed next.
    pub fn next(&self, id: u64) -> u32 {
        self.uses.get(&id).filter(|u| u.start < u.end).map_or(NEVER, |u| self.at[u.start as usize])
    }

    pub fn push(&mut self, next: u32, id: u64) {
        self.heap.push((next, id));
    }

    /// Whether there are more leavings than anything else.
    pub fn is_stale(&self, n_held: usize) -> bool {
        self.heap.len() > 2 * n_held + 64
    }

    pub fn refill(&mut self, held: impl Iterator<Item = (u32, u64)>) {
        self.heap.clear();
        self.heap.extend(held);
    }

    /// Takes out the brick that is needed latest, where that is later than `than`.
    /// - `is_held`: whether a brick is held with that need
    pub fn latest(&mut self, than: u32, is_held: impl Fn(u32, u64) -> bool) -> Option<u64> {
        while let Some((next, id)) = self.heap.peek().copied() {
            if !is_held(next, id) {
                self.heap.pop();
                continue;
            }
            return (next > than).then(|| self.heap.pop().map(|(_, id)| id)).flatten();
        }
        None
    }
}

/// Shares of uses that found their brick in memory, 0 to 1, on one trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// Our RAM shelf, looking ahead as far as a training does.
    pub ours: f64,
    /// The optimum: all of the future known, nothing split. Belady's rule does not weigh sizes: where bricks differ in them it may fall behind, and ours counts.
    pub optimum: f64,
    /// Least recently used out first.
    pub lru: f64,
}

/// Runs a trace against a shelf of `ram_bytes`.
/// - `ahead`: requests that are foreseen at a time; `renewed`: after how many the view is taken anew
pub fn simulate(trace: &Trace, ram_bytes: u64, ahead: u32, renewed: u32) -> Ratios {
    let n = trace.uses.len().max(1) as f64;
    let ours = ours(trace, ram_bytes, ahead, renewed);
    Ratios { ours: ours as f64 / n, optimum: optimum(trace, ram_bytes).max(ours) as f64 / n, lru: lru(trace, ram_bytes) as f64 / n }
}

/// Bricks are held as if a byte were a thousand: what counts is who is held. The view takes its share of the budget, as in a training.
fn ours(trace: &Trace, ram_bytes: u64, ahead: u32, renewed: u32) -> usize {
    const SCALE: u64 = 1024;
    // Bricks of their own, whose ids the view goes by.
    let bricks: Vec<Brick> =
        (0..trace.bricks.len() as u32).map(|i| Brick { artifact: Key([0; 32]), array: 0, index: [0, 0, 0, i] }).collect();
    let mut known = Trace::default();
    trace.uses.iter().for_each(|(request, i)| known.push(*request, &bricks[*i as usize], trace.bricks[*i as usize].1));
    let ram = Ram::in_parts(ram_bytes / SCALE, Ram::parts(ram_bytes));
    let foresee = |first: u32| {
        let view = known.since(first, ahead, ram_bytes / VIEW_SHARE);
        let seen = view.uses.last().map_or(0, |(request, _)| *request);
        ram.resize(ram_bytes.saturating_sub(view.view_bytes()) / SCALE);
        ram.foresee(Some(&view));
        renewed.min(seen / 2).max(1)
    };
    let (mut begun, mut hits, mut until) = (0, 0, foresee(0));
    for (request, i) in &trace.uses {
        if *request - begun >= until {
            begun = *request;
            until = foresee(begun);
        }
        ram.passed(request - begun);
        let bytes = trace.bricks[*i as usize].1.div_ceil(SCALE);
        let (_, was_there) = ram.get_or_load(&bricks[*i as usize], || Ok::<_, Error>(vec![0; bytes as usize])).expect("zeros cannot fail");
        hits += was_there as usize;
    }
    hits
}

fn optimum(trace: &Trace, ram_bytes: u64) -> usize {
    let mut next = vec![NEVER; trace.uses.len()];
    let mut seen: HashMap<u32, u32> = HashMap::new();
    for (at, (_, i)) in trace.uses.iter().enumerate().rev() {
        next[at] = seen.insert(*i, at as u32).unwrap_or(NEVER);
    }
    let (mut held, mut by_need, mut used, mut hits) = (HashMap::new(), BTreeSet::new(), 0, 0);
    for (at, (_, i)) in trace.uses.iter().enumerate() {
        let need = trace.bricks[*i as usize].1;
        if let Some(due) = held.remove(i) {
            hits += 1;
            by_need.remove(&(due, *i));
            used -= need;
        }
        by_need.insert((next[at], *i));
        held.insert(*i, next[at]);
        used += need;
        while used > ram_bytes
            && let Some((_, out)) = by_need.pop_last()
        {
            held.remove(&out);
            used -= trace.bricks[out as usize].1;
        }
    }
    hits
}

fn lru(trace: &Trace, ram_bytes: u64) -> usize {
    let (mut held, mut by_age, mut used, mut hits) = (HashMap::new(), BTreeMap::new(), 0, 0);
    for (at, (_, i)) in trace.uses.iter().enumerate() {
        match held.insert(*i, at) {
            Some(last) => {
                hits += 1;
                by_age.remove(&last);
            }
            None => used += trace.bricks[*i as usize].1,
        }
        by_age.insert(at, *i);
        while used > ram_bytes
            && let Some((_, out)) = by_age.pop_first()
        {
            held.remove(&out);
            used -= trace.bricks[out as usize].1;
        }
    }
    hits
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::artifact::Key;

    use super::*;

    fn draw(seed: &mut u64) -> usize {
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33) as usize
    }

    /// Crops of 3³ bricks from each of some volumes of 8³ an epoch, the volumes in another order each time.
    fn crops(volumes: usize, epochs: u32, bytes: u64) -> Trace {
        let (mut trace, mut seed, mut request) = (Trace::default(), 11, 0);
        for _ in 0..epochs {
            let mut order: Vec<usize> = (0..volumes).collect();
            (1..volumes).rev().for_each(|i| order.swap(i, draw(&mut seed) % (i + 1)));
            for v in order {
                let first = [(); 3].map(|()| draw(&mut seed) % 6);
                for i in 0..27 {
                    let at = [first[0] + i / 9, first[1] + i / 3 % 3, first[2] + i % 3].map(|n| n as u32);
                    let brick = Brick { artifact: Key([v as u8; 32]), array: 0, index: [0, at[0], at[1], at[2]] };
                    trace.push(request, &brick, bytes);
                }
                request += 1;
            }
        }
        trace
    }

    #[test]
    fn the_shelf_comes_near_the_optimum_and_lies_above_lru() {
        let trace = crops(20, 100, 64 << 10);
        for (share, limit) in [(4, trace.bytes() / 4), (2, trace.bytes() / 2)] {
            let r = simulate(&trace, limit, 20 * 32, 20 * 8);
            assert!(r.ours >= 0.98 * r.optimum && r.ours > r.lru && r.optimum < 1.0, "a {share}th: {r:?}");
        }
    }

    #[test]
    fn whole_samples_stay_where_they_are() {
        // Each brick once an epoch: no rule keeps more than what fits.
        let mut trace = Trace::default();
        let mut seed = 5;
        for epoch in 0..20u32 {
            let mut order: Vec<u32> = (0..200).collect();
            (1..200).rev().for_each(|i| order.swap(i, draw(&mut seed) % (i + 1)));
            for (n, i) in order.into_iter().enumerate() {
                trace.push(epoch * 200 + n as u32, &Brick { artifact: Key([1; 32]), array: 0, index: [0, 0, 0, i] }, 100 << 10);
            }
        }
        let r = simulate(&trace, 50 * (100 << 10), 16 * 200, 8 * 200);
        assert!((r.optimum - 0.25).abs() < 0.02 && r.ours >= 0.98 * r.optimum && r.lru < 0.06, "{r:?}");
    }

    #[test]
    fn requests_that_were_not_foreseen_take_no_place_from_those_that_were() {
        let ram = Ram::new(10 * 100);
        let brick = |i: u32| Brick { artifact: Key([2; 32]), array: 0, index: [0, 0, 0, i] };
        let ask = |i: u32| ram.get_or_load(&brick(i), || Ok(vec![0; 100])).unwrap().1;
        let mut trace = Trace::default();
        (0..20u32).for_each(|n| trace.push(n, &brick(n % 10), 100));
        ram.foresee(Some(&trace));
        assert_eq!((0..10).filter(|i| ask(*i)).count(), 0);
        assert_eq!((100..200).filter(|i| ask(*i)).count(), 0);
        assert_eq!((0..10).filter(|i| ask(*i)).count(), 10);
        ram.foresee(None);
        assert!(ask(3) && ram.used_bytes() <= 10 * 100);
    }
}
