//! The state of a training in hand, on disk. A checkpoint is written beside and renamed; its files are checked against their hashes when it is read, so
//! one that a power cut tore is passed over. A training that goes on from one ends with the bytes of an undisturbed one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::ContentHash;
use voxmill_schemas::tables::{HistoryRow, Row, StepRow, ValidationRow};

use crate::error::Error;
use crate::table;

/// Where a training stands, besides the network and the optimiser.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Steps done since the beginning.
    pub done: u64,
    /// Sum of the losses of the epoch in hand.
    pub loss_sum: f64,
    /// One row an epoch that ended.
    pub history: Vec<HistoryRow>,
    /// One row a step that was done.
    pub steps: Vec<StepRow>,
    /// Rows of every validation.
    pub validation: Vec<ValidationRow>,
    /// Epoch (from 1) of the best validation so far.
    pub best_epoch: Option<i64>,
}

/// `state.json`, written last.
#[derive(Serialize, Deserialize)]
struct Seal {
    done: u64,
    /// Bits of an f64: JSON would round it.
    loss_sum_bits: u64,
    best_epoch: Option<i64>,
    files: BTreeMap<String, ContentHash>,
}

const SEAL: &str = "state.json";
const PREFIX: &str = "step-";

/// Writes a checkpoint into `memo` and drops older ones. `fill` writes the files that are not ours (network, optimiser, best weights) into a folder.
pub fn save(memo: &Path, state: &State, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let beside = memo.join("beside");
    drop_folder(&beside);
    std::fs::create_dir_all(&beside).map_err(Error::io("make folder", &beside))?;
    fill(&beside)?;
    table::write_rows(&beside, &state.history)?;
    table::write_rows(&beside, &state.steps)?;
    table::write_rows(&beside, &state.validation)?;
    let seal = Seal { done: state.done, loss_sum_bits: state.loss_sum.to_bits(), best_epoch: state.best_epoch, files: hashes(&beside)? };
    let path = beside.join(SEAL);
    std::fs::write(&path, serde_json::to_vec_pretty(&seal).expect("plain data")).map_err(Error::io("write", &path))?;
    let older = folders(memo);
    // Twelve digits: the names sort as the numbers do.
    let place = memo.join(format!("{PREFIX}{:012}", state.done));
    drop_folder(&place);
    std::fs::rename(&beside, &place).map_err(Error::io("rename checkpoint to", &place))?;
    older.iter().filter(|p| **p != place).for_each(|p| drop_folder(p));
    Ok(())
}

/// The newest checkpoint in `memo` that is whole, with its folder.
pub fn newest(memo: &Path) -> Option<(State, PathBuf)> {
    folders(memo).into_iter().rev().find_map(|dir| Some((read(&dir)?, dir)))
}

fn read(dir: &Path) -> Option<State> {
    let seal: Seal = serde_json::from_slice(&std::fs::read(dir.join(SEAL)).ok()?).ok()?;
    let mut found = hashes(dir).ok()?;
    found.remove(SEAL);
    if found != seal.files {
        return None;
    }
    let (history, steps, validation) = (rows(dir)?, rows(dir)?, rows(dir)?);
    Some(State { done: seal.done, loss_sum: f64::from_bits(seal.loss_sum_bits), history, steps, validation, best_epoch: seal.best_epoch })
}

/// `None` where they cannot be read: an older version wrote other tables.
fn rows<R: Row>(dir: &Path) -> Option<Vec<R>> {
    R::from_batch(&table::read(&dir.join(format!("{}.parquet", R::TABLE))).ok()?).ok()
}

/// Checkpoints, oldest first.
fn folders(memo: &Path) -> Vec<PathBuf> {
    let is_one = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(PREFIX));
    let mut all: Vec<PathBuf> = std::fs::read_dir(memo).into_iter().flatten().flatten().map(|e| e.path()).filter(is_one).collect();
    all.sort();
    all
}

fn drop_folder(dir: &Path) {
    // One that cannot be dropped is in nobody's way: a later run sorts it behind the newer ones.
    let _ = std::fs::remove_dir_all(dir);
}

/// Path relative to `dir` → hash, of every file below it.
fn hashes(dir: &Path) -> Result<BTreeMap<String, ContentHash>, Error> {
    let mut out = BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at).map_err(Error::io("list", &at))? {
            let path = entry.map_err(Error::io("list", &at))?.path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
                let name = path.strip_prefix(dir).expect("found below it").to_string_lossy().into_owned();
                out.insert(name, ContentHash::of(&bytes));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state(done: u64) -> State {
        let row = HistoryRow { epoch: 1, step: 3, lr: 0.1, loss: 0.1 + 0.2, val_dice: None, class_dice: vec![f64::NAN, 0.5] };
        let steps = vec![StepRow { epoch: 1, step: 1, lr: 0.1, loss: 0.1 + 0.2 }];
        let validation = vec![ValidationRow { epoch: 1, case: "a".into(), class: "b".into(), dice: None }];
        State { done, loss_sum: 0.1 + 0.2, history: vec![HistoryRow { class_dice: vec![], ..row }], steps, validation, best_epoch: Some(1) }
    }

    fn put(memo: &Path, done: u64) {
        save(memo, &state(done), |dir| {
            std::fs::create_dir(dir.join("net")).unwrap();
            std::fs::write(dir.join("net/weights"), done.to_string()).unwrap();
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn the_newest_comes_back_bit_for_bit_and_older_ones_go() {
        let memo = tempfile::tempdir().unwrap();
        assert!(newest(memo.path()).is_none());
        put(memo.path(), 9);
        put(memo.path(), 10);
        let (s, dir) = newest(memo.path()).unwrap();
        assert_eq!(s, state(10));
        assert_eq!(std::fs::read_to_string(dir.join("net/weights")).unwrap(), "10");
        assert_eq!(folders(memo.path()).len(), 1);
    }

    #[test]
    fn a_torn_checkpoint_is_passed_over() {
        let memo = tempfile::tempdir().unwrap();
        put(memo.path(), 5);
        let kept = memo.path().join("step-000000000004");
        std::fs::rename(newest(memo.path()).unwrap().1, &kept).unwrap();
        put(memo.path(), 6);
        assert!(!kept.exists(), "an older one is dropped by a newer");
        put(memo.path(), 7);
        std::fs::write(newest(memo.path()).unwrap().1.join("net/weights"), "torn").unwrap();
        assert!(newest(memo.path()).is_none());
        // A kill while a checkpoint is written leaves only the folder beside.
        std::fs::create_dir(memo.path().join("beside")).unwrap();
        put(memo.path(), 8);
        assert_eq!(newest(memo.path()).unwrap().0.done, 8);
    }
}
