//! A few small made-up cases on a shelf, for the tests of training and inference: a bright ball (class 1) and a dark box (class 2) in noise.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use indexmap::IndexMap;
use voxmill_schemas::artifact::{CaseId, ContentHash, Key, Kind, Manifest, Recipe};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;
use voxmill_schemas::tables::{Row, SplitRow};

use crate::ops::augment::{Augment, Sample, Step, apply};
use crate::stage::{Cx, Input, Inputs, Progress, Rows};
use crate::store::{Limits, Store};
use crate::volume::{About, Labels, Volume, Voxels};

pub struct Trial {
    pub dir: tempfile::TempDir,
    pub store: Store,
    pub cases: Vec<Input>,
    pub split: Rows,
}

impl Trial {
    /// `n` cases; every third one validates.
    pub fn new(n: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { disk_dir: dir.path().join("store"), ram_bytes: 64 << 20, ..Limits::default() };
        let store = Store::open(&limits).unwrap();
        let cases = (0..n).map(|i| put(dir.path(), &format!("case_{i}"), &volume(i as u64))).collect();
        let part = |i: usize| if i % 3 == 2 { "val" } else { "train" };
        let row = |i: usize| SplitRow { case: format!("case_{i}"), patient: format!("p{i}"), fold: 0, part: part(i).into() };
        let rows: Vec<SplitRow> = (0..n).map(row).collect();
        let split = Rows([(SplitRow::TABLE.to_string(), SplitRow::to_batch(&rows))].into());
        Self { dir, store, cases, split }
    }

    pub fn inputs(&self) -> Inputs {
        let split = Input { dir: self.dir.path().into(), manifest: manifest("split", None, Kind::Table), rows: Some(self.split.clone()) };
        Inputs([("cases".to_string(), self.cases.clone()), ("split".to_string(), vec![split])].into())
    }

    /// An empty folder of this name.
    pub fn folder(&self, name: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn cx<'a>(
        &'a self,
        draft: &'a Path,
        memo: &'a Path,
        jobs: usize,
        cancel: &'a AtomicBool,
        progress: &'a (dyn Fn(Progress) + Sync),
    ) -> Cx<'a> {
        Cx { draft, case: None, seed: 3, memo, store: &self.store, lazy: false, jobs, memory_bytes: 1 << 30, cancel, progress }
    }
}

/// A crop of a larger source grid, so that the way back is not the identity.
pub fn volume(seed: u64) -> Volume {
    let source = Geometry::axis_aligned(Zyx::new(22, 20, 20), Zyx::new(1.0, 1.0, 1.0));
    let geometry = source.crop(Region { start: Zyx::new(2, 1, 0), size: Zyx::new(18, 18, 20) });
    let size = geometry.size;
    let (cz, cy, cx) = (6.0 + (seed % 3) as f64, 6.0 + (seed % 2) as f64, 6.0 + (seed % 4) as f64);
    let labels: Vec<u8> = (0..size.count())
        .map(|i| {
            let (z, y, x) = ((i / (size.y * size.x)) as f64, (i / size.x % size.y) as f64, (i % size.x) as f64);
            let r2 = (z - cz).powi(2) + (y - cy).powi(2) + (x - cx).powi(2);
            if r2 <= 16.0 {
                1
            } else if z >= 12.0 && y >= 12.0 && x >= 13.0 {
                2
            } else {
                0
            }
        })
        .collect();
    let clean = labels.iter().map(|l| [0.0, 2.0, -2.0][*l as usize]).collect();
    let noisy = Augment(vec![Step::Noise { std: 0.3, seed }]);
    let s = apply(&noisy, Sample { size, channels: 1, voxels: clean, labels: None });
    Volume {
        geometry,
        channels: vec!["MR".into()],
        voxels: Voxels::F32(s.voxels),
        labels: Some(Labels { classes: IndexMap::from([("Ball".to_string(), 1), ("Box".to_string(), 2)]), voxels: labels }),
        about: About {
            modality: "MR".into(),
            unit: "normalised".into(),
            patient: format!("p{seed}"),
            study: "study".into(),
            series: format!("s{seed}"),
            volume: 0,
            ..About::of(source)
        },
    }
}

/// Writes a volume where an artifact would stand.
pub fn put(root: &Path, case: &str, v: &Volume) -> Input {
    let dir = root.join("artifacts").join(case);
    std::fs::create_dir_all(&dir).unwrap();
    v.write(&dir, None).unwrap();
    let mut m = Manifest::clone(&manifest(case, Some(case), Kind::Volume));
    m.facts = v.facts().facts;
    Input { dir, manifest: m.into(), rows: None }
}

pub fn manifest(name: &str, case: Option<&str>, kind: Kind) -> Arc<Manifest> {
    Arc::new(Manifest {
        key: Key::of(name.as_bytes()),
        content: ContentHash::of(name.as_bytes()),
        kind,
        case: case.map(|c| CaseId(c.into())),
        recipe: Recipe { stage: "test".into(), version: 1, config: serde_json::Value::Null, inputs: BTreeMap::new(), seed: 0 },
        input_keys: BTreeMap::new(),
        facts: serde_json::Map::new(),
        files: BTreeMap::new(),
        bytes: 0,
        layout: 0,
    })
}

/// File → hash of everything in a folder.
pub fn bytes(dir: &Path) -> BTreeMap<String, String> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), blake3::hash(&std::fs::read(p).unwrap()).to_string()))
        .collect()
}
