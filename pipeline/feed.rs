//! `voxmill feed`: the batches of a training without the training, timed; and `voxmill cache simulate`: what the RAM shelf would have of them at other
//! budgets, beside the best that any shelf could and beside least-recently-used, and what a step would wait for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use voxmill_schemas::artifact::Kind;
use voxmill_schemas::spec::{parse_size, size_text};
use voxmill_stages::error::Error;
use voxmill_stages::sample::cut;
use voxmill_stages::sample::feed::{AHEAD, Pace, feed};
use voxmill_stages::sample::foresight::{self, EPOCHS, Foresight, RENEWED};
use voxmill_stages::sample::{Pool, Rank, Sampler};
use voxmill_stages::stage::Input;
use voxmill_stages::store::{Counts, Limits, Store, Trace, simulate};

use crate::cli::{FeedArgs, PlanFormat, SimulateArgs, print};
use crate::jobs;
use crate::plan::{Plan, PlanNode};
use crate::session::{Fault, Session, store_dir};

/// Shown by `voxmill feed --help`.
pub const HELP: &str = r#"Draws the patches that NODE trains on, by the same dice and through the same shelves, and
throws the batches away. What is above NODE must be made: voxmill run FILE.

Several processes share the batches when VOXMILL_RANK and VOXMILL_WORLD_SIZE (or torchrun's
RANK and WORLD_SIZE) are set: each makes its own patches of every step.

Exit codes: 0 done, 2 nothing to draw from, 130 stopped.

Examples:
  voxmill feed FILE net --steps 500
  voxmill feed FILE net --epochs 3 --step-ms 150      how long a model of 150 ms a step waits
  voxmill feed FILE net --format json --set cache.ram.limit=2GiB"#;

/// What a measurement may take of memory for its trace.
const TRACE_BYTES: u64 = 512 << 20;
/// Steps that are timed to say what a step costs.
const TIMED: u64 = 4;

/// Runs the feed alone.
pub fn main(plan: &Plan, a: &FeedArgs, jobs: usize, cancel: &AtomicBool) -> Result<(), Fault> {
    let session = opened(plan, a.memory.as_deref())?;
    let (name, mut sampler) = sampler_of(&session, plan, a.node.as_deref())?;
    sampler.rank = Rank::from_environment(|name| std::env::var(name).ok())?;
    if sampler.batch < sampler.rank.of as usize {
        let why = format!("a batch of {} patches cannot be shared by {} processes: each needs one", sampler.batch, sampler.rank.of);
        return Err(Fault::Wrong(why));
    }
    let steps = a.steps.unwrap_or(sampler.steps.saturating_mul(a.epochs.unwrap_or(1)));
    let told = run(&session.store, &sampler, steps, jobs, Duration::from_millis(a.step_ms), cancel)?;
    print(&match a.format {
        PlanFormat::Json => serde_json::to_string_pretty(&told.json(&name, &sampler)).expect("plain data"),
        PlanFormat::Table => told.text(&name, &sampler),
    });
    Ok(())
}

/// What a run of the feed showed.
struct Told {
    steps: u64,
    patches: u64,
    bytes: u64,
    took: Duration,
    /// Until the first batch.
    first: Duration,
    /// How long the one who trains waited, after the first batch: steps, in all, the longest.
    waits: (u64, Duration, Duration),
    /// Share of the time that the workers were at work.
    busy: f64,
    workers: usize,
    counts: Counts,
    holds_whole: bool,
    /// Resident memory of this process after a tenth of the steps and after all, bytes.
    memory: (Option<u64>, Option<u64>),
}

fn run(store: &Store, sampler: &Sampler, steps: u64, jobs: usize, step: Duration, cancel: &AtomicBool) -> Result<Told, Fault> {
    let plan = sampler.plan();
    let (pool, foresight, busy) = (Pool::default(), Foresight::new(&plan, &sampler.sources, store, steps), AtomicU64::new(0));
    let workers = jobs.clamp(1, AHEAD);
    let make = |n: u64| {
        let began = Instant::now();
        foresight.at(n, n.saturating_sub((AHEAD + workers) as u64));
        let made = cut::batch(&sampler.sources, &plan.step(n / plan.steps, n % plan.steps), plan.patch, store, &pool);
        busy.fetch_add(began.elapsed().as_nanos() as u64, Ordering::Relaxed);
        made
    };
    // A wait shorter than this is the handing over.
    const NOTICED: Duration = Duration::from_millis(1);
    let (before, began) = (store.counts(), Instant::now());
    let mut told = Told {
        steps,
        patches: 0,
        bytes: 0,
        took: Duration::ZERO,
        first: Duration::ZERO,
        waits: (0, Duration::ZERO, Duration::ZERO),
        busy: 0.0,
        workers,
        counts: before,
        holds_whole: foresight.holds_whole(),
        memory: (None, None),
    };
    let mut done = 0;
    feed(0..steps, Pace { workers, ahead: AHEAD }, cancel, make, |feed| -> Result<(), Error> {
        loop {
            let asked = Instant::now();
            let Some(batch) = feed.next() else { return Ok(()) };
            let (batch, waited) = (batch?, asked.elapsed());
            if told.patches == 0 {
                told.first = began.elapsed();
            } else if waited >= NOTICED {
                told.waits = (told.waits.0 + 1, told.waits.1 + waited, told.waits.2.max(waited));
            }
            told.patches += batch.n as u64;
            told.bytes += batch.images.len() as u64 * 4 + batch.labels.len() as u64;
            done += 1;
            if done == steps.div_ceil(10) {
                told.memory.0 = resident_bytes();
            }
            std::thread::sleep(step);
            pool.give(batch);
        }
    })?;
    told.took = began.elapsed();
    told.memory.1 = resident_bytes();
    told.busy = busy.into_inner() as f64 / 1e9 / told.took.as_secs_f64().max(1e-9) / workers as f64;
    let after = store.counts();
    told.counts = Counts {
        ram_hits: after.ram_hits - before.ram_hits,
        nvme_hits: after.nvme_hits - before.nvme_hits,
        disk_reads: after.disk_reads - before.disk_reads,
    };
    Ok(told)
}

/// Resident memory of this process, where the kernel tells.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

impl Told {
    fn mb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.took.as_secs_f64().max(1e-9)
    }

    fn shares(&self) -> [f64; 3] {
        let c = [self.counts.ram_hits, self.counts.nvme_hits, self.counts.disk_reads];
        let all = c.iter().sum::<u64>().max(1) as f64;
        c.map(|n| n as f64 / all)
    }

    fn json(&self, node: &str, s: &Sampler) -> Value {
        let (ms, [ram, nvme, disk]) = (|d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3, self.shares());
        json!({
            "node": node, "rank": s.rank.rank, "of": s.rank.of, "steps": self.steps, "patches": self.patches, "patch": s.patch, "bytes": self.bytes,
            "took_ms": ms(self.took), "mb_per_s": self.mb_per_s(), "patches_per_s": self.patches as f64 / self.took.as_secs_f64().max(1e-9),
            "first_ms": ms(self.first), "waits": { "steps": self.waits.0, "ms": ms(self.waits.1), "longest_ms": ms(self.waits.2) },
            "workers": self.workers, "busy": self.busy,
            "bricks": { "ram": self.counts.ram_hits, "nvme": self.counts.nvme_hits, "disk": self.counts.disk_reads },
            "shares": { "ram": ram, "nvme": nvme, "disk": disk }, "held_whole": self.holds_whole,
            "memory": { "tenth_bytes": self.memory.0, "end_bytes": self.memory.1 },
        })
    }

    fn text(&self, node: &str, s: &Sampler) -> String {
        let rank = if s.rank == Rank::ALONE { String::new() } else { format!(", process {} of {}", s.rank.rank + 1, s.rank.of) };
        let [ram, nvme, disk] = self.shares().map(|share| format!("{:.1} %", share * 100.0));
        let whole = if self.holds_whole { " (all volumes held whole)" } else { "" };
        let memory = |bytes: Option<u64>| bytes.map_or("?".into(), size_text);
        let per_s = self.patches as f64 / self.took.as_secs_f64().max(1e-9);
        format!(
            "{node}  {} steps, {} patches of {}{rank}\n\
             rate   {:.0} MB/s, {per_s:.1} patches/s in {:.2} s; the first batch after {:.0} ms\n\
             waits  {} of {} steps waited for their batch: {:.2} s in all, {:.0} ms the longest\n\
             work   {} workers, at work {:.0} % of the time\n\
             bricks ram {ram}{whole}, nvme {nvme}, disk {disk}\n\
             memory {} after a tenth of the steps, {} at the end",
            self.steps,
            self.patches,
            s.patch,
            self.mb_per_s(),
            self.took.as_secs_f64(),
            self.first.as_secs_f64() * 1e3,
            self.waits.0,
            self.steps,
            self.waits.1.as_secs_f64(),
            self.waits.2.as_secs_f64() * 1e3,
            self.workers,
            self.busy * 100.0,
            memory(self.memory.0),
            memory(self.memory.1),
        )
    }
}

/// Hit ratios at budgets, and what bounds a step there.
pub fn simulated(plan: &Plan, a: &SimulateArgs, jobs: usize) -> Result<u8, Fault> {
    let session = opened(plan, None)?;
    let (name, sampler) = sampler_of(&session, plan, a.node.as_deref())?;
    let plan_of = sampler.plan();
    let steps = sampler.steps.saturating_mul(a.epochs);
    let trace = foresight::trace(&plan_of, &sampler.sources, 0..steps, TRACE_BYTES)?;
    let (set_bytes, requests) = (trace.bytes(), trace.uses.last().map_or(1, |(r, _)| *r as u64 + 1));
    let epochs = requests as f64 / (sampler.steps * sampler.batch as u64).max(1) as f64;
    let budgets = a.ram.iter().map(|text| budget(text, set_bytes)).collect::<Result<Vec<_>, _>>()?;
    let costs = costs(plan, &sampler)?;
    let workers = jobs.clamp(1, AHEAD) as f64;
    let (per_epoch, model_ms) = ((sampler.steps * sampler.batch as u64) as u32, a.step_ms.map(|ms| ms as f64));
    let rows: Vec<Row> = budgets
        .into_iter()
        .map(|ram_bytes| {
            let r = simulate(&trace, ram_bytes, per_epoch.saturating_mul(EPOCHS as u32), per_epoch.saturating_mul(RENEWED as u32));
            let bricks = trace.uses.len() as f64 / requests as f64 * sampler.batch as f64;
            let terms =
                Terms { model_ms, prepare_ms: costs.prepare_ms / workers, disk_ms: bricks * (1.0 - r.ours) * costs.brick_ms / workers };
            Row { ram_bytes, ours: r.ours, optimum: r.optimum, lru: r.lru, terms }
        })
        .collect();
    print(&if a.json {
        let rows: Vec<Value> = rows.iter().map(|r| r.json(set_bytes)).collect();
        let told = json!({ "node": name, "set_bytes": set_bytes, "bricks": trace.bricks.len(), "uses": trace.uses.len(), "epochs": epochs, "budgets": rows });
        serde_json::to_string_pretty(&told).expect("plain data")
    } else {
        table(&name, &trace, epochs, &rows)
    });
    Ok(0)
}

/// A budget: a size, or a share of the set in percent.
fn budget(text: &str, set_bytes: u64) -> Result<u64, Fault> {
    let percent = text.trim().strip_suffix('%').map(|p| p.trim().parse::<f64>().ok().filter(|p| (0.0..=100.0).contains(p)));
    let bytes = match percent {
        Some(percent) => percent.map(|p| (set_bytes as f64 * p / 100.0) as u64),
        None => parse_size(text),
    };
    bytes.ok_or_else(|| Fault::Wrong(format!("--ram {text}: expected a size such as 8GiB or a share of what is read such as 25%")))
}

struct Row {
    ram_bytes: u64,
    ours: f64,
    optimum: f64,
    lru: f64,
    terms: Terms,
}

/// What a step takes, by what it waits for, milliseconds.
struct Terms {
    /// The network, where it was told.
    model_ms: Option<f64>,
    /// Cutting, converting and augmenting, on all workers.
    prepare_ms: f64,
    /// Reading and decoding what the RAM shelf has not.
    disk_ms: f64,
}

impl Terms {
    /// The workers do both; the network works beside them.
    fn bound(&self) -> &'static str {
        let feed_ms = self.prepare_ms + self.disk_ms;
        match self.model_ms {
            Some(model_ms) if model_ms >= feed_ms => "model",
            _ if self.disk_ms > self.prepare_ms => "disk",
            _ => "preparing",
        }
    }
}

impl Row {
    fn json(&self, set_bytes: u64) -> Value {
        let t = &self.terms;
        json!({
            "ram_bytes": self.ram_bytes, "share": self.ram_bytes as f64 / set_bytes.max(1) as f64, "hits": self.ours, "optimum": self.optimum, "lru": self.lru,
            "step_ms": { "model": t.model_ms, "preparing": t.prepare_ms, "disk": t.disk_ms }, "bound": t.bound(),
        })
    }
}

fn table(name: &str, trace: &Trace, epochs: f64, rows: &[Row]) -> String {
    let set_bytes = trace.bytes();
    let mut out = format!(
        "{name}  {} uses of {} bricks, {} in memory, over {epochs:.1} epochs\n\n\
         {:>10}  {:>6}  {:>6}  {:>7}  {:>6}  {:>10}  {:>10}  {}\n",
        trace.uses.len(),
        trace.bricks.len(),
        size_text(set_bytes),
        "ram",
        "share",
        "hits",
        "optimum",
        "lru",
        "preparing",
        "disk",
        "bound"
    );
    for r in rows {
        let share = r.ram_bytes as f64 / set_bytes.max(1) as f64 * 100.0;
        out.push_str(&format!(
            "{:>10}  {:>4.0} %  {:>6.3}  {:>7.3}  {:>6.3}  {:>7.1} ms  {:>7.1} ms  {}\n",
            size_text(r.ram_bytes),
            share,
            r.ours,
            r.optimum,
            r.lru,
            r.terms.prepare_ms,
            r.terms.disk_ms,
            r.terms.bound()
        ));
    }
    out.push_str("\nhits: share of uses that the RAM shelf has; optimum: Belady's, all of the future known (bricks of one size), or ours where that is more; a step waits for the larger of the model\n");
    out.push_str("and preparing + disk (timed here and now, without an NVMe shelf)");
    out
}

/// What a step costs one thread with all in memory, and what each brick costs that is not, milliseconds.
struct Costs {
    prepare_ms: f64,
    brick_ms: f64,
}

fn costs(plan: &Plan, sampler: &Sampler) -> Result<Costs, Fault> {
    let (plan_of, pool) = (sampler.plan(), Pool::default());
    let steps = TIMED.min(sampler.steps.max(1));
    let pass = |store: &Store| -> Result<f64, Fault> {
        let began = Instant::now();
        for n in 0..steps {
            pool.give(cut::batch(&sampler.sources, &plan_of.step(0, n), sampler.patch, store, &pool)?);
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let shelf = |ram_bytes| Store::open(&Limits { disk_dir: store_dir(&plan.workspace), disk_bytes: None, nvme: None, ram_bytes });
    let (bare, held) = (shelf(0)?, shelf(u64::MAX / 2)?);
    // The first pass of each brings the files into the page cache, or the bricks onto the shelf.
    pass(&bare)?;
    let reads = bare.counts().disk_reads.max(1) as f64;
    let bare_ms = pass(&bare)?;
    pass(&held)?;
    let held_ms = pass(&held)?;
    Ok(Costs { prepare_ms: held_ms / steps as f64, brick_ms: (bare_ms - held_ms).max(0.0) / reads })
}

fn opened(plan: &Plan, memory: Option<&str>) -> Result<Session, Fault> {
    if !store_dir(&plan.workspace).is_dir() {
        return Err(Fault::Wrong(format!("nothing was run in {} yet: voxmill run FILE", plan.workspace.display())));
    }
    Session::open(plan, memory)
}

/// What a node trains on: of the node that is named, else of the only one that draws patches.
fn sampler_of(session: &Session, plan: &Plan, name: Option<&str>) -> Result<(String, Sampler), Fault> {
    let learns = |n: &&PlanNode| n.def.info.gives == Kind::Model && n.def.info.ports.iter().any(|p| p.kind == Kind::Volume);
    let all: Vec<&PlanNode> = plan.nodes.iter().filter(learns).collect();
    let names = || all.iter().map(|n| n.name.clone()).collect::<Vec<_>>().join(", ");
    let mut found = Vec::new();
    let mut missing = None;
    for node in all.iter().filter(|n| name.is_none_or(|name| n.name == name)) {
        match drawn(session, plan, node) {
            Ok(Some(sampler)) => found.push((node.name.clone(), sampler)),
            Ok(None) => {}
            Err(e) => missing = Some(e),
        }
    }
    match (found.len(), missing, name) {
        (1, ..) => Ok(found.remove(0)),
        (0, Some(e), _) => Err(e),
        (0, None, Some(name)) => Err(Fault::NoSuchNode { name: format!("{name} that trains on patches"), nodes: names() }),
        (0, None, None) => Err(Fault::Wrong("no node of this file trains on patches".into())),
        _ => Err(Fault::Wrong(format!("several nodes train on patches: name one of {}", names()))),
    }
}

fn drawn(session: &Session, plan: &Plan, node: &PlanNode) -> Result<Option<Sampler>, Fault> {
    let heads = session.heads(plan, false);
    let mut given: BTreeMap<usize, Vec<Input>> = BTreeMap::new();
    for (_, up) in node.ups() {
        let name = &plan.nodes[up].name;
        let mut items = Vec::new();
        for key in heads.read(name).values() {
            session.store.hold(key)?;
            if let Some(m) = session.store.disk.manifest(key)? {
                items.push(Input { dir: session.store.disk.dir(key), manifest: m.into(), rows: None });
            }
        }
        if items.is_empty() {
            return Err(Fault::Wrong(format!("nothing of {name} stands on the shelf yet: voxmill run FILE {name}")));
        }
        given.insert(up, items);
    }
    let work = jobs::of(node, plan.seed, |up| given.get(&up).map_or(&[][..], Vec::as_slice))?;
    match work.jobs.first() {
        Some(job) => Ok(node.stage.sampler(&job.inputs, plan.seed)?),
        None => Ok(None),
    }
}
