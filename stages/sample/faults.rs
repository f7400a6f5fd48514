//! Whatever befalls a shelf, a batch has the voxels of an undisturbed read, or there is an error; it never has others.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use indexmap::IndexMap;
use voxmill_schemas::artifact::{CaseId, Key};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;

use super::cut::{self, Source};
use super::draw::Dice;
use super::feed::{Pace, feed};
use super::foresight::Foresight;
use super::plan::{Case, Foreground, Plan};
use super::{Batch, Pool, Random, Rank};
use crate::ops::augment::Axis;
use crate::store::{Limits, Store};
use crate::volume::{About, Labels, StoredVolume, Volume, Voxels};

static CALM: AtomicBool = AtomicBool::new(false);
const SIZE: Zyx<usize> = Zyx::new(40, 50, 34);
const STEPS: u64 = 6;

fn source(dir: &Path, i: u8) -> Source {
    let geometry = Geometry::axis_aligned(SIZE, Zyx::splat(1.0));
    let voxels = Voxels::I16((0..SIZE.count()).map(|v| (v as u32).wrapping_mul(2_654_435_761) as i16 ^ i as i16).collect());
    let labels = Labels {
        classes: IndexMap::from([("A".to_string(), 1)]),
        voxels: (0..SIZE.count()).map(|v| (v % 7 == i as usize) as u8).collect(),
    };
    let v = Volume { geometry, channels: vec!["CT".into()], voxels, labels: Some(labels), about: About::of(geometry) };
    let at = dir.join(format!("volume-{i}"));
    fs::create_dir_all(&at).unwrap();
    v.write(&at, None).unwrap();
    Source { case: CaseId(format!("case-{i}")), volume: StoredVolume::open(&at, Key([i + 1; 32])).unwrap() }
}

fn cases(sources: &[Source]) -> Vec<Case> {
    let case =
        |s: &Source| Case { size: SIZE, spacing_mm: Zyx::splat(1.0), foreground: Foreground::of(&s.volume.labels().unwrap().unwrap()) };
    sources.iter().map(case).collect()
}

fn plan<'a>(cases: &'a [Case], augment: &'a [Random]) -> Plan<'a> {
    Plan { seed: 3, patch: Zyx::new(20, 36, 24), batch: 2, steps: STEPS, foreground: 0.5, augment, cases, rank: Rank::ALONE }
}

fn store(dir: &Path, ram_bytes: u64, nvme_bytes: u64) -> Store {
    Store::open(&Limits { disk_dir: dir.join("store"), disk_bytes: None, nvme: Some((dir.join("nvme"), nvme_bytes)), ram_bytes }).unwrap()
}

/// Three epochs from a step on.
fn batches(plan: &Plan, sources: &[Source], store: &Store, from: u64, workers: usize) -> Vec<Batch> {
    let of = 3 * STEPS;
    let foresight = Foresight::new(plan, sources, store, of);
    let make = |n: u64| {
        foresight.at(n, n.saturating_sub(4 + workers as u64));
        cut::batch(sources, &plan.step(n / STEPS, n % STEPS), plan.patch, store, &Pool::default())
    };
    feed(from..of, Pace { workers, ahead: 4 }, &CALM, make, |f| std::iter::from_fn(|| f.next()).map(Result::unwrap).collect())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let list = |d: &Path| fs::read_dir(d).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let mut all: Vec<PathBuf> = list(&dir.join("nvme")).into_iter().filter(|p| p.is_dir()).flat_map(|d| list(&d)).collect();
    all.sort();
    all
}

/// Flips a bit, cuts, lengthens, empties or deletes a file.
fn damage(path: &Path, dice: &mut Dice) {
    let mut bytes = fs::read(path).unwrap();
    let at = dice.below(bytes.len().max(1) as u64) as usize;
    match dice.below(5) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 => bytes.truncate(at),
        2 => bytes.extend_from_slice(&[7; 9]),
        3 => bytes.clear(),
        _ => return fs::remove_file(path).unwrap(),
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_same_batches_leave_for_any_workers_any_shelves_and_any_resume() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<Source> = (0..3).map(|i| source(dir.path(), i)).collect();
    let (cases, flip) = (cases(&sources), [Random::Flip { axes: vec![Axis::Z, Axis::X], probability: 0.5 }]);
    let plan = plan(&cases, &flip);
    let calm = batches(&plan, &sources, &store(dir.path(), 0, 0), 0, 1);
    for (workers, ram, nvme, from) in [(3, 1 << 30, 0, 0), (2, 200 << 10, 1 << 30, 5), (4, 100 << 10, 300 << 10, 11), (1, 0, 1 << 30, 17)] {
        assert!(
            batches(&plan, &sources, &store(dir.path(), ram, nvme), from, workers) == calm[from as usize..],
            "{workers} {ram} {nvme} {from}"
        );
    }
}

#[test]
fn a_thousand_faults_of_the_nvme_shelf_change_no_voxel() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<Source> = (0..2).map(|i| source(dir.path(), i)).collect();
    let cases = cases(&sources);
    let plan = plan(&cases, &[]);
    let calm: Vec<Batch> = (0..STEPS)
        .map(|n| cut::batch(&sources, &plan.step(0, n), plan.patch, &store(dir.path(), 0, 0), &Pool::default()).unwrap())
        .collect();
    let shelf = store(dir.path(), 0, 1 << 30);
    for n in 0..1000 {
        let mut dice = Dice::new(1, 0, n, "fault");
        let found = entries(dir.path());
        if !found.is_empty() {
            damage(&found[dice.below(found.len() as u64) as usize], &mut dice);
        }
        let step = dice.below(STEPS);
        assert!(
            cut::batch(&sources, &plan.step(0, step), plan.patch, &shelf, &Pool::default()).unwrap() == calm[step as usize],
            "fault {n}"
        );
    }
}

#[test]
fn damage_to_the_disk_shelf_is_an_error_or_changes_nothing() {
    for n in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let sources = [source(dir.path(), 0)];
        let cases = cases(&sources);
        let plan = plan(&cases, &[]);
        let no_shelves = store(dir.path(), 0, 0);
        let calm = cut::batch(&sources, &plan.step(0, 0), plan.patch, &no_shelves, &Pool::default()).unwrap();
        let mut dice = Dice::new(2, 0, n, "fault");
        let mut files = Vec::new();
        let mut folders = vec![sources[0].volume.dir.clone()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
                if path.is_dir() { folders.push(path) } else { files.push(path) }
            }
        }
        files.sort();
        damage(&files[dice.below(files.len() as u64) as usize], &mut dice);
        let Ok(volume) = StoredVolume::open(&sources[0].volume.dir, Key([9; 32])) else { continue };
        let again = [Source { case: sources[0].case.clone(), volume }];
        if let Ok(batch) = cut::batch(&again, &plan.step(0, 0), plan.patch, &no_shelves, &Pool::default()) {
            assert!(batch == calm, "fault {n}");
        }
    }
}

#[test]
fn the_batches_of_all_ranks_side_by_side_are_those_of_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<Source> = (0..3).map(|i| source(dir.path(), i)).collect();
    let (cases, flip) = (cases(&sources), [Random::Flip { axes: vec![Axis::Y], probability: 0.5 }]);
    let alone = Plan { batch: 5, ..plan(&cases, &flip) };
    let whole = batches(&alone, &sources, &store(dir.path(), 0, 0), 0, 1);
    for of in [2, 3, 5] {
        let ranks: Vec<Vec<Batch>> = (0..of)
            .map(|rank| batches(&Plan { rank: Rank { rank, of }, ..alone.clone() }, &sources, &store(dir.path(), 300 << 10, 1 << 30), 0, 2))
            .collect();
        for (n, all) in whole.iter().enumerate() {
            let parts = || ranks.iter().map(|r| &r[n]);
            assert_eq!(parts().map(|b| b.n).sum::<usize>(), 5);
            assert!(parts().flat_map(|b| b.images.iter()).eq(&all.images), "step {n} of {of} ranks");
            assert!(parts().flat_map(|b| b.labels.iter()).eq(&all.labels) && parts().flat_map(|b| b.cases.iter()).eq(&all.cases));
        }
    }
}

#[test]
fn buffers_that_are_used_again_hold_nothing_of_what_they_held() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<Source> = (0..2).map(|i| source(dir.path(), i)).collect();
    let cases = cases(&sources);
    // Larger than the volumes along x: what lies beyond is written again each time.
    let plan = Plan { patch: Zyx::new(20, 36, 48), ..plan(&cases, &[]) };
    let (shelf, pool) = (store(dir.path(), 1 << 30, 0), Pool::default());
    for n in 0..STEPS {
        let fresh = cut::batch(&sources, &plan.step(0, n), plan.patch, &shelf, &Pool::default()).unwrap();
        let used = cut::batch(&sources, &plan.step(0, n), plan.patch, &shelf, &pool).unwrap();
        assert!(used == fresh);
        let mut dirty = used;
        dirty.images.fill(f32::NAN);
        dirty.labels.fill(9);
        pool.give(dirty);
    }
}

#[test]
fn volumes_that_fit_in_memory_are_held_whole_and_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let sources: Vec<Source> = (0..2).map(|i| source(dir.path(), i)).collect();
    let cases = cases(&sources);
    let plan = plan(&cases, &[]);
    let calm = batches(&plan, &sources, &store(dir.path(), 0, 0), 0, 1);
    let shelf = store(dir.path(), 1 << 20, 0);
    assert!(Foresight::new(&plan, &sources, &shelf, 1).holds_whole());
    assert!(batches(&plan, &sources, &shelf, 0, 3) == calm);
    // Each layer is decoded once, whichever thread asks first.
    let (reads, all) =
        (shelf.counts().disk_reads, sources.iter().flat_map(|s| s.volume.bricks(Region::whole(SIZE)).unwrap()).count() as u64);
    assert!(reads <= all, "{reads} of {all}");
    // Beside another training, and in a budget that is too small, it goes by bricks.
    let _first = Foresight::new(&plan, &sources, &shelf, 1);
    assert!(!Foresight::new(&plan, &sources, &shelf, 1).holds_whole());
    assert!(!Foresight::new(&plan, &sources, &store(dir.path(), 100 << 10, 0), 1).holds_whole());
}
