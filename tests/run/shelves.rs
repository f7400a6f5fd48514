//! What befalls the shelves while the program runs: whatever is flipped, cut off or deleted, a run ends with the artifacts of an undisturbed one or says
//! what is wrong, and then a repair and another run end with them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::bench::Bench;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((x ^ (x >> 31)) as u128 * n as u128) >> 64) as usize
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut out, mut todo) = (Vec::new(), vec![folder.to_path_buf()]);
    while let Some(folder) = todo.pop() {
        for e in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if e.path().is_dir() { todo.push(e.path()) } else { out.push(e.path()) }
        }
    }
    out.sort();
    out
}

/// Flips a bit of a file, cuts it, empties it or deletes it, in its place; another process may be faster.
fn damage(path: &Path, dice: &mut Dice) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let open = || std::fs::OpenOptions::new().read(true).write(true).open(path);
    let bytes = std::fs::metadata(path)?.len();
    // Artifacts are read-only.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let at = dice.below(bytes.max(1) as usize) as u64;
    match dice.below(4) {
        0 => {
            let (file, mut byte) = (open()?, [0]);
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 1 << dice.below(8)], at)
        }
        1 => open()?.set_len(at),
        2 => open()?.set_len(0),
        _ => std::fs::remove_file(path),
    }
}

/// `voxmill run p.yaml` with a RAM shelf that holds nothing, so that every patch comes from the shelf below.
fn begun(b: &Bench) -> Child {
    let mut c = b.command(&["run", "p.yaml", "--log", "json", "--set", "cache.ram.limit=1KiB"]);
    c.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Damages files until the process ends; gives its exit code and how many faults there were.
fn disturbed(mut child: Child, folders: &[PathBuf], dice: &mut Dice, most: usize) -> (i32, usize) {
    // The ledger is a count and no voxels; a manifest whose facts are changed is found by `cache verify` alone.
    let is_meant = |p: &PathBuf| p.file_name().is_some_and(|n| n != "usage" && n != "artifact.json");
    let mut faults = 0;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return (status.code().unwrap_or(-1), faults);
        }
        let found: Vec<PathBuf> = folders.iter().flat_map(|f| files(f)).filter(is_meant).collect();
        if faults < most && !found.is_empty() {
            faults += damage(&found[dice.below(found.len())], dice).is_ok() as usize;
        }
        std::thread::sleep(Duration::from_millis(8));
    }
}

#[test]
fn dozens_of_faults_of_the_nvme_shelf_during_a_run_change_no_byte() {
    let b = Bench::new(3);
    b.run(&["--set", "cache.ram.limit=1KiB"]).expect(0);
    let calm = b.artifacts();
    let mut faults = 0;
    for seed in 0..3 {
        std::fs::remove_dir_all(b.path("work")).unwrap();
        let (code, n) = disturbed(begun(&b), &[b.path("nvme")], &mut Dice(seed), usize::MAX);
        assert_eq!(code, 0, "seed {seed}");
        assert_eq!(b.artifacts(), calm, "seed {seed}");
        faults += n;
    }
    assert!(faults >= 36, "{faults} faults");
}

/// The folder of an artifact.
fn folder(b: &Bench, key: &str) -> PathBuf {
    b.path("work/store/artifacts").join(&key[..2]).join(key)
}

fn heads(b: &Bench, node: &str) -> BTreeMap<String, String> {
    serde_json::from_slice(&std::fs::read(b.path(&format!("work/heads/small/{node}.json"))).unwrap()).unwrap()
}

#[test]
fn a_damaged_disk_shelf_is_told_or_changes_nothing_and_a_repair_makes_it_whole() {
    let b = Bench::new(3);
    b.run(&[]).expect(0);
    let calm = b.artifacts();
    for seed in 0..12 {
        // Training and all below it are to be made again, from volumes that break meanwhile.
        for node in ["net", "seg", "score", "out"] {
            heads(&b, node).values().for_each(|key| drop(std::fs::remove_dir_all(folder(&b, key))));
        }
        let sources: Vec<PathBuf> =
            ["masks", "iso", "ready"].iter().flat_map(|n| heads(&b, n).into_values()).map(|key| folder(&b, &key)).collect();
        let (code, faults) = disturbed(begun(&b), &sources, &mut Dice(100 + seed), 1);
        assert_eq!(faults, 1, "seed {seed}");
        if code == 0 {
            // What was made of it is right: it was read before, or not at all.
            let now = b.artifacts();
            for node in ["net", "seg", "score"] {
                for key in heads(&b, node).values() {
                    let of = |all: &BTreeMap<String, String>| -> BTreeMap<String, String> {
                        all.iter().filter(|(path, _)| path.contains(key.as_str())).map(|(p, h)| (p.clone(), h.clone())).collect()
                    };
                    assert_eq!(of(&now), of(&calm), "seed {seed}: {node}");
                }
            }
        }
        let repaired = b.voxmill(&["cache", "verify", "p.yaml", "--repair"]);
        assert!([0, 3].contains(&repaired.code), "seed {seed}: {}\n{}", repaired.stdout, repaired.stderr);
        b.run(&[]).expect(0);
        assert_eq!(b.artifacts(), calm, "seed {seed}, exit code {code}");
    }
}

#[test]
fn two_trainings_at_once_share_a_workspace_and_its_shelves() {
    let b = Bench::new(3);
    b.run(&[]).expect(0);
    let calm = b.artifacts();
    std::fs::remove_dir_all(b.path("work")).unwrap();
    let (mut one, mut other) = (begun(&b), begun(&b));
    assert!(one.wait().unwrap().success() && other.wait().unwrap().success());
    assert_eq!(b.artifacts(), calm);
    b.voxmill(&["cache", "verify", "p.yaml"]).expect(0);
}

fn fed(b: &Bench, args: &[&str], ranks: &[(&str, &str)]) -> Value {
    let mut c = b.command(&[&["feed", "p.yaml", "--format", "json"], args].concat());
    let out = c.envs(ranks.iter().copied()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn the_feed_alone_is_measured_and_its_memory_stays_level() {
    let b = Bench::new(3);
    b.voxmill(&["feed", "p.yaml"]).expect(2).says("nothing was run");
    b.run(&["ready", "folds"]).expect(0);
    let told = fed(&b, &["net", "--steps", "10000"], &[]);
    assert_eq!((told["steps"].as_u64(), told["patches"].as_u64()), (Some(10_000), Some(20_000)));
    assert_eq!(told["held_whole"], true);
    let memory = |name: &str| told["memory"][name].as_u64().unwrap();
    let grown = memory("end_bytes").saturating_sub(memory("tenth_bytes"));
    assert!(grown <= 4 << 20, "{grown} bytes more after 10,000 steps than after 1,000: {told}");
    // By bricks, each read from disk: nothing is kept.
    let told = fed(&b, &["--steps", "3000", "--set", "cache.ram.limit=64KiB"], &[]);
    let memory = |name: &str| told["memory"][name].as_u64().unwrap();
    assert!(memory("end_bytes").saturating_sub(memory("tenth_bytes")) <= 4 << 20, "{told}");
    // Two processes make one patch each of a batch of two.
    let two = [("RANK", "1"), ("WORLD_SIZE", "2")];
    assert_eq!(fed(&b, &["--steps", "7"], &two)["patches"], 7);
    let mut c = b.command(&["feed", "p.yaml"]);
    let three = c.env("VOXMILL_RANK", "0").env("VOXMILL_WORLD_SIZE", "3").output().unwrap();
    assert_eq!(three.status.code(), Some(2));
}

#[test]
fn a_simulation_tells_hits_beside_the_optimum() {
    let b = Bench::new(3);
    b.run(&["ready", "folds"]).expect(0);
    let ran = b.voxmill(&["cache", "simulate", "p.yaml", "--ram", "25%,50%,1GiB", "--json"]).expect(0);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    let budgets = told["budgets"].as_array().unwrap();
    assert_eq!(budgets.len(), 3);
    for b in budgets {
        let of = |name: &str| b[name].as_f64().unwrap();
        assert!(of("lru") <= of("hits") && of("hits") >= 0.9 * of("optimum"), "{b}");
        assert!(["disk", "preparing"].contains(&b["bound"].as_str().unwrap()));
    }
    assert_eq!(budgets[2]["hits"], budgets[2]["optimum"]);
    b.voxmill(&["cache", "simulate", "p.yaml", "net"]).expect(0).says("optimum");
    b.voxmill(&["cache", "simulate", "p.yaml", "--ram", "lots"]).expect(2).says("--ram lots");
}
