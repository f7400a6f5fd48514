//! The future of a training is known, because its patches are drawn by a pure function: which bricks will be asked for, and when each one is needed next.
//! Giving up what is needed latest is the best any shelf can do (Belady 1966); [`simulate`] says how near ours comes, and where least-recently-used stands.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use super::Brick;
use super::ram::Ram;
use crate::error::Error;

/// No need is known.
pub(super) const NEVER: u32 = u32::MAX;

/// Bricks in the order in which they will be asked for. A request is what one patch reads: it asks for a brick once.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Every brick once, with the bytes it takes in memory.
    pub bricks: Vec<(Brick, u64)>,
    /// (number of the request, index in `bricks`), by request.
    pub uses: Vec<(u32, u32)>,
    index: HashMap<Brick, u32>,
}

impl Trace {
    /// - `request`: no smaller than the one before
    pub fn push(&mut self, request: u32, brick: Brick, bytes: u64) {
        let new = self.bricks.len() as u32;
        let i = *self.index.entry(brick).or_insert(new);
        if i == new {
            self.bricks.push((brick, bytes));
        }
        self.uses.push((request, i));
    }

    /// Bytes of all bricks that are asked for.
    pub fn bytes(&self) -> u64 {
        self.bricks.iter().map(|(_, n)| n).sum()
    }

    /// The trace of each part of a shelf.
    pub(super) fn split(&self, n: usize, part: impl Fn(&Brick) -> usize) -> Vec<Foreseen> {
        let mut counts = vec![0u32; self.bricks.len()];
        self.uses.iter().for_each(|(_, i)| counts[*i as usize] += 1);
        let mut at: Vec<Vec<u32>> = counts.into_iter().map(|n| Vec::with_capacity(n as usize)).collect();
        self.uses.iter().for_each(|(request, i)| at[*i as usize].push(*request));
        let mut parts: Vec<Foreseen> = (0..n).map(|_| Foreseen::default()).collect();
        for ((brick, _), at) in self.bricks.iter().zip(at) {
            parts[part(brick)].uses.insert(*brick, Uses { at: at.into_boxed_slice(), done: 0 });
        }
        parts
    }

    /// The requests from one on, counted from it.
    fn since(&self, first: u32, n: u32) -> Trace {
        let mut out = Trace::default();
        let begin = self.uses.partition_point(|(r, _)| *r < first);
        for (request, i) in self.uses[begin..].iter().take_while(|(r, _)| *r - first < n) {
            let (brick, bytes) = self.bricks[*i as usize];
            out.push(request - first, brick, bytes);
        }
        out
    }
}

/// What is known of the requests to one part of a shelf.
#[derive(Default)]
pub(super) struct Foreseen {
    uses: HashMap<Brick, Uses>,
    /// What is held by its next need, with leavings of needs that have passed.
    heap: BinaryHeap<(u32, Brick)>,
}

struct Uses {
    at: Box<[u32]>,
    /// How many of them have been asked for.
    done: usize,
}

impl Foreseen {
    /// Counts a request off, and all that should have come before `now`. Gives the next one.
    pub fn ask(&mut self, name: &Brick, now: u32) -> u32 {
        let Some(uses) = self.uses.get_mut(name) else { return NEVER };
        uses.done += 1;
        while uses.at.get(uses.done).is_some_and(|at| *at < now) {
            uses.done += 1;
        }
        uses.at.get(uses.done).copied().unwrap_or(NEVER)
    }

    /// When a brick is needed next.
    pub fn next(&self, name: &Brick) -> u32 {
        self.uses.get(name).and_then(|u| u.at.get(u.done)).copied().unwrap_or(NEVER)
    }

    pub fn push(&mut self, next: u32, name: Brick) {
        self.heap.push((next, name));
    }

    /// Whether there are more leavings than anything else.
    pub fn is_stale(&self, n_held: usize) -> bool {
        self.heap.len() > 2 * n_held + 64
    }

    pub fn refill(&mut self, held: impl Iterator<Item = (u32, Brick)>) {
        self.heap.clear();
        self.heap.extend(held);
    }

    /// Takes out the brick that is needed latest, where that is later than `than`.
    /// - `is_held`: whether a brick is held with that need
    pub fn latest(&mut self, than: u32, is_held: impl Fn(u32, &Brick) -> bool) -> Option<Brick> {
        while let Some((next, name)) = self.heap.peek().copied() {
            if !is_held(next, &name) {
                self.heap.pop();
                continue;
            }
            return (next > than).then(|| self.heap.pop().map(|(_, name)| name)).flatten();
        }
        None
    }
}

/// Shares of uses that found their brick in memory, 0 to 1, on one trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// Our RAM shelf, looking ahead as far as a training does.
    pub ours: f64,
    /// The optimum: all of the future known, nothing split.
    pub optimum: f64,
    /// Least recently used out first.
    pub lru: f64,
}

/// Runs a trace against a shelf of `ram_bytes`.
/// - `ahead`: requests that are foreseen at a time; `renewed`: after how many the view is taken anew
pub fn simulate(trace: &Trace, ram_bytes: u64, ahead: u32, renewed: u32) -> Ratios {
    let n = trace.uses.len().max(1) as f64;
    Ratios {
        ours: ours(trace, ram_bytes, ahead, renewed) as f64 / n,
        optimum: optimum(trace, ram_bytes) as f64 / n,
        lru: lru(trace, ram_bytes) as f64 / n,
    }
}

fn ours(trace: &Trace, ram_bytes: u64, ahead: u32, renewed: u32) -> usize {
    let (ram, mut begun, mut hits) = (Ram::new(ram_bytes), 0, 0);
    ram.foresee(Some(&trace.since(0, ahead)));
    for (request, i) in &trace.uses {
        if *request - begun >= renewed {
            begun = *request;
            ram.foresee(Some(&trace.since(begun, ahead)));
        }
        ram.passed(request - begun);
        let (brick, bytes) = &trace.bricks[*i as usize];
        let (_, was_there) = ram.get_or_load(brick, || Ok::<_, Error>(vec![0; *bytes as usize])).expect("zeros cannot fail");
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
                    trace.push(request, brick, bytes);
                }
                request += 1;
            }
        }
        trace
    }

    #[test]
    fn the_shelf_comes_near_the_optimum_and_lies_above_lru() {
        let trace = crops(20, 100, 16 << 10);
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
                trace.push(epoch * 200 + n as u32, Brick { artifact: Key([1; 32]), array: 0, index: [0, 0, 0, i] }, 100);
            }
        }
        let r = simulate(&trace, 50 * 100, 16 * 200, 8 * 200);
        assert!((r.optimum - 0.25).abs() < 0.02 && r.ours >= 0.98 * r.optimum && r.lru < 0.06, "{r:?}");
    }

    #[test]
    fn requests_that_were_not_foreseen_take_no_place_from_those_that_were() {
        let ram = Ram::new(10 * 100);
        let brick = |i: u32| Brick { artifact: Key([2; 32]), array: 0, index: [0, 0, 0, i] };
        let ask = |i: u32| ram.get_or_load(&brick(i), || Ok(vec![0; 100])).unwrap().1;
        let mut trace = Trace::default();
        (0..20u32).for_each(|n| trace.push(n, brick(n % 10), 100));
        ram.foresee(Some(&trace));
        assert_eq!((0..10).filter(|i| ask(*i)).count(), 0);
        assert_eq!((100..200).filter(|i| ask(*i)).count(), 0);
        assert_eq!((0..10).filter(|i| ask(*i)).count(), 10);
        ram.foresee(None);
        assert!(ask(3) && ram.used_bytes() <= 10 * 100);
    }
}
