//! What a training will ask the shelves for: the plan is pure, so the bricks of epochs to come are known before the first is read. Decides speed, no byte.

use std::ops::Range;
use std::sync::Mutex;

use super::cut::Source;
use super::plan::Plan;
use crate::error::Error;
use crate::store::{Array, Store, Trace};

/// Epochs that are foreseen at a time: on the trace of the tests a view of 16 gave 0.95 of the optimum at a quarter of the set, one of 32 more than 0.98.
pub const EPOCHS: u64 = 32;
/// After how many epochs the view is taken anew.
pub const RENEWED: u64 = EPOCHS / 4;
/// The bricks of some steps, in order; the request of a patch is its number from the first step on. Ends early where the view would take more memory.
/// - `steps`: counted over all epochs
pub fn trace(plan: &Plan, sources: &[Source], steps: Range<u64>, bytes_max: u64) -> Result<Trace, Error> {
    let (mut trace, mut request) = (Trace::default(), 0);
    for step in steps {
        for at in plan.step(step / plan.steps, step % plan.steps) {
            for (brick, bytes) in sources[at.case as usize].volume.bricks(at.region)? {
                trace.push(request, &brick, bytes);
            }
            request += 1;
        }
        if trace.making_bytes() >= bytes_max {
            break;
        }
    }
    Ok(trace)
}

/// Keeps the shelves told of what comes. Where the budget of the RAM shelf covers all that is read, it holds the volumes whole and there is nothing to tell.
pub struct Foresight<'a> {
    plan: &'a Plan<'a>,
    sources: &'a [Source],
    store: &'a Store,
    /// All steps of the training.
    of: u64,
    holds_whole: bool,
    /// Requests in a step.
    patches: u64,
    seen: Mutex<Option<Seen>>,
}

struct Seen {
    first: u64,
    /// From this step on the view is taken anew.
    renew: u64,
}

impl<'a> Foresight<'a> {
    pub fn new(plan: &'a Plan, sources: &'a [Source], store: &'a Store, of: u64) -> Self {
        store.expect_boxes(Some(plan.patch));
        let arrays: Vec<Array> = sources.iter().flat_map(|s| s.volume.arrays()).collect();
        let holds_whole = store.hold_whole(&arrays);
        Self { plan, sources, store, of, holds_whole, patches: plan.rank.part(plan.batch).len().max(1) as u64, seen: Mutex::new(None) }
    }

    /// Whether there is nothing to foresee, because all that is read fits in memory.
    pub fn holds_whole(&self) -> bool {
        self.holds_whole
    }

    /// Called before a step is read; those before `given` are in the consumer's hands. A view that cannot be had is none: reading tells what is wrong.
    pub fn at(&self, step: u64, given: u64) {
        if self.holds_whole || !self.store.keeps_bricks() {
            return;
        }
        let mut seen = self.seen.lock().expect("no holder panics");
        if seen.as_ref().is_none_or(|s| step >= s.renew) {
            let end = (step + EPOCHS * self.plan.steps).min(self.of);
            let trace = trace(self.plan, self.sources, step..end, self.store.view_bytes()).ok();
            let known = trace.as_ref().and_then(|t| t.uses.last()).map_or(0, |(r, _)| *r as u64 / self.patches);
            self.store.foresee(trace.as_ref());
            *seen = Some(Seen { first: step, renew: step + (RENEWED * self.plan.steps).min(known / 2).max(1) });
        }
        if let Some(s) = seen.as_ref() {
            self.store.passed((given.saturating_sub(s.first) * self.patches).min(u32::MAX as u64 - 1) as u32);
        }
    }
}

impl Drop for Foresight<'_> {
    fn drop(&mut self) {
        self.store.expect_boxes(None);
        if self.holds_whole {
            self.store.release_whole();
        } else {
            self.store.foresee(None);
        }
    }
}
