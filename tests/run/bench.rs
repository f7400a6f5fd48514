//! A pipeline in a scratch folder over a few real cases, and the program run on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub struct Bench {
    pub dir: tempfile::TempDir,
}

pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn of(o: Output) -> Self {
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Self { code: o.status.code().unwrap_or(-1), stdout: text(o.stdout), stderr: text(o.stderr) }
    }

    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code\n--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr);
        self
    }

    pub fn says(&self, what: &str) -> &Self {
        assert!(self.stderr.contains(what) || self.stdout.contains(what), "{what:?} in\n{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Node → (made, reused, quarantined) from `--log json`.
    pub fn counts(&self) -> BTreeMap<String, (u64, u64, u64)> {
        let end = self
            .stderr
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).ok())
            .find(|v| v["event"] == "end")
            .unwrap_or_else(|| panic!("an end event in {}", self.stderr));
        let row = |n: &Value| {
            let count = |k: &str| n[k].as_u64().unwrap();
            (n["node"].as_str().unwrap().to_string(), (count("made"), count("reused"), n["quarantined"].as_array().unwrap().len() as u64))
        };
        end["nodes"].as_array().unwrap().iter().map(row).collect()
    }

    pub fn made(&self) -> u64 {
        self.counts().values().map(|c| c.0).sum()
    }
}

pub fn example_cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/hippocampus");
    let mut cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    cases
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for e in std::fs::read_dir(from).unwrap() {
        let e = e.unwrap();
        let target = to.join(e.file_name());
        if e.path().is_dir() {
            copy_tree(&e.path(), &target);
        } else {
            std::fs::copy(e.path(), target).unwrap();
        }
    }
}

pub const PIPELINE: &str = include_str!("pipeline.yaml");

impl Bench {
    /// A scratch folder with `n` cases under `archive/` and the small pipeline.
    pub fn new(n: usize) -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(bench.archive()).unwrap();
        (0..n).for_each(|i| bench.add_case(i));
        std::fs::write(bench.path("p.yaml"), PIPELINE).unwrap();
        bench
    }

    pub fn path(&self, p: &str) -> PathBuf {
        self.dir.path().join(p)
    }
    pub fn archive(&self) -> PathBuf {
        self.path("archive")
    }
    pub fn add_case(&self, i: usize) {
        let case = &example_cases()[i];
        copy_tree(case, &self.archive().join(case.file_name().unwrap()));
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_voxmill"));
        c.args(args).current_dir(self.dir.path()).env("NO_COLOR", "1").env_remove("RUST_BACKTRACE");
        c
    }

    pub fn voxmill(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// `voxmill run p.yaml ARGS --log json`.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.voxmill(&[&["run", "p.yaml", "--log", "json"], args].concat())
    }

    /// Every file of every artifact with its hash: what must be equal from run to run.
    pub fn artifacts(&self) -> BTreeMap<String, String> {
        let root = self.path("work/store/artifacts");
        let mut out = BTreeMap::new();
        let mut todo = vec![root.clone()];
        while let Some(p) = todo.pop() {
            if p.is_dir() {
                todo.extend(std::fs::read_dir(p).unwrap().map(|e| e.unwrap().path()));
            } else {
                let hash = blake3::hash(&std::fs::read(&p).unwrap()).to_hex().to_string();
                out.insert(p.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), hash);
            }
        }
        assert!(!out.is_empty(), "there are artifacts under {}", root.display());
        out
    }
}
