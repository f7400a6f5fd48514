//! `voxmill cache`: what the shelves hold, whether it is whole, and how to make room. What may go is decided in `store/keep.rs`; here stands what counts
//! as wanted: the newest artifact of every node and case of every pipeline in the workspace.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use voxmill_schemas::artifact::{Key, Manifest};
use voxmill_schemas::spec::size_text;
use voxmill_stages::error::Error;
use voxmill_stages::store::Pin;

use crate::cli::{CacheCommand, print};
use crate::heads::Heads;
use crate::plan::Plan;
use crate::session::{Fault, Session};

/// Shown by `voxmill cache --help`.
pub const HELP: &str = r#"WHAT is a node (iso), a case of a node (iso/case-12) or the first digits of an artifact's key.

`gc` removes what no pipeline in the workspace has as its newest result: leavings of
other settings, of cases that are gone, of damage. It never touches what is pinned, what
a running process works with, or what these were made from.
`verify` reads every byte. A damaged artifact is made again by the next run once --repair
has taken it away; a damaged brick on the NVMe shelf is dropped at once.

Exit codes: 0 all is whole, 3 something is damaged, 2 the command is wrong.

Examples:
  voxmill cache status FILE
  voxmill cache gc FILE --dry-run --older-than 7d
  voxmill cache pin FILE net
  voxmill cache simulate FILE --ram 10%,8GiB
  voxmill cache export FILE ready/case-12 copies"#;

/// Does what was asked and gives the exit code.
pub fn main(plan: &Plan, command: &CacheCommand) -> Result<u8, Fault> {
    if !crate::session::store_dir(&plan.workspace).is_dir() {
        return Err(Fault::Wrong(format!("nothing was run in {} yet: there is no store", plan.workspace.display())));
    }
    if let CacheCommand::Simulate(a) = command {
        return crate::feed::simulated(plan, a, crate::session::cores());
    }
    let session = Session::open(plan, None)?;
    match command {
        CacheCommand::Status { json, .. } => status(&session, plan, *json),
        CacheCommand::Verify { json, repair, .. } => verify(&session, *json, *repair),
        CacheCommand::Gc { json, dry_run, older_than, .. } => gc(&session, *json, *dry_run, older_than.as_deref()),
        CacheCommand::Pin { what, .. } => pin(&session, plan, what),
        CacheCommand::Unpin { what, .. } => unpin(&session, plan, what),
        CacheCommand::Export { what, out, .. } => export(&session, plan, what, out),
        CacheCommand::Simulate(_) => unreachable!("answered above"),
    }
}

fn tell(as_json: bool, value: Value, text: String) {
    print(&if as_json { serde_json::to_string_pretty(&value).expect("plain data") } else { text });
}

fn counted(n: usize, one: &str) -> String {
    format!("{n} {one}{}", if n == 1 { "" } else { "s" })
}

fn status(s: &Session, plan: &Plan, as_json: bool) -> Result<u8, Fault> {
    let disk = &s.store.disk;
    let manifests: BTreeMap<Key, Manifest> = disk.manifests()?.into_iter().map(|m| (m.key, m)).collect();
    let used_bytes = disk.used_bytes()?;
    let heads = s.heads(plan, false);
    let rows: Vec<(String, usize, u64)> = plan
        .nodes
        .iter()
        .map(|n| {
            let found: Vec<&Manifest> = heads.read(&n.name).values().filter_map(|k| manifests.get(k)).collect();
            (n.name.clone(), found.len(), found.iter().map(|m| m.bytes).sum())
        })
        .collect();
    let room = disk.sweep_artifacts(&wanted(s), Duration::ZERO, true)?;
    let (pins, broken) = (disk.pins()?, disk.broken()?);
    let nvme = s.store.nvme_holds(false)?;
    let limit = |bytes: Option<u64>| bytes.map_or("no limit".into(), |b| format!("of {}", size_text(b)));
    let mut text = format!("disk   {} {}, {}\n", size_text(used_bytes), limit(disk.limit_bytes), counted(manifests.len(), "artifact"));
    let width = rows.iter().map(|r| r.0.len()).max().unwrap_or(0);
    for (node, n, bytes) in rows.iter().filter(|r| r.1 > 0) {
        text.push_str(&format!("         {node:width$}  {:>10}  {}\n", size_text(*bytes), counted(*n, "artifact")));
    }
    if !room.removed.is_empty() {
        text.push_str(&format!(
            "       {} in {} that no newest result needs: voxmill cache gc\n",
            size_text(room.freed_bytes),
            counted(room.removed.len(), "artifact")
        ));
    }
    if room.held > 0 {
        text.push_str(&format!("       {} in use by a running process\n", counted(room.held, "artifact")));
    }
    for pin in &pins {
        text.push_str(&format!("       pinned: {} {}\n", pin.key, pin.label));
    }
    if !broken.is_empty() {
        text.push_str(&format!("       {} half there; they count as absent and gc removes them\n", counted(broken.len(), "folder")));
    }
    match &nvme {
        Some(n) => {
            text.push_str(&format!("nvme   {} of {}, {}\n", size_text(n.bytes), size_text(n.limit_bytes), counted(n.entries, "brick")))
        }
        None => text.push_str("nvme   none: cache: { nvme: { dir: FOLDER, limit: 20 GiB } } gives the pipeline one\n"),
    }
    text.push_str("ram    lives with each run");
    let value = json!({
        "disk": {
            "bytes": used_bytes, "limit_bytes": disk.limit_bytes, "artifacts": manifests.len(),
            "nodes": rows.iter().map(|(node, n, bytes)| json!({ "node": node, "artifacts": n, "bytes": bytes })).collect::<Vec<_>>(),
            "removable": { "artifacts": room.removed.len(), "bytes": room.freed_bytes },
            "in_use": room.held,
            "pins": pins.iter().map(|p| json!({ "key": p.key, "label": p.label })).collect::<Vec<_>>(),
            "broken": broken.len(),
        },
        "nvme": nvme.map(|n| json!({ "bytes": n.bytes, "limit_bytes": n.limit_bytes, "bricks": n.entries })),
    });
    tell(as_json, value, text);
    Ok(0)
}

fn verify(s: &Session, as_json: bool, repair: bool) -> Result<u8, Fault> {
    let disk = &s.store.disk;
    let manifests = disk.manifests()?;
    let bytes: u64 = manifests.iter().map(|m| m.bytes).sum();
    let damaged: Vec<(&Manifest, String)> = manifests.iter().filter_map(|m| Some((m, disk.verify(m)?))).collect();
    let broken = disk.broken()?;
    if repair && !damaged.is_empty() {
        disk.remove(&damaged.iter().map(|(m, _)| m.key).collect())?;
    }
    let nvme = s.store.nvme_holds(true)?;
    let mut text = format!("disk   {} in {} read\n", size_text(bytes), counted(manifests.len(), "artifact"));
    for (m, why) in &damaged {
        let case = m.case.as_ref().map(|c| format!(" of {c}")).unwrap_or_default();
        text.push_str(&format!("       damaged: {}{case} {}: {why}\n", m.recipe.stage, m.key));
    }
    for (dir, why) in &broken {
        text.push_str(&format!("       half there: {}: {why}\n", dir.file_name().unwrap_or_default().to_string_lossy()));
    }
    if let Some(n) = &nvme {
        text.push_str(&format!("nvme   {} in {} read", size_text(n.bytes), counted(n.entries, "whole brick")));
        text.push_str(&if n.damaged > 0 { format!(", {} dropped: they were damaged\n", n.damaged) } else { "\n".into() });
    }
    let is_whole = damaged.is_empty() && broken.is_empty();
    text.push_str(match (is_whole, repair) {
        (true, _) => "all is as it was written",
        (false, true) => "what was damaged is off the shelf: the next run makes it again",
        (false, false) => "--repair takes what is damaged off the shelf, and the next run makes it again",
    });
    let value = json!({
        "artifacts": manifests.len(), "bytes": bytes, "repaired": repair && !damaged.is_empty(),
        "damaged": damaged.iter().map(|(m, why)| json!({ "key": m.key, "stage": m.recipe.stage, "case": m.case, "why": why })).collect::<Vec<_>>(),
        "broken": broken.values().collect::<Vec<_>>(),
        "nvme": nvme.map(|n| json!({ "bricks": n.entries, "bytes": n.bytes, "dropped": n.damaged })),
    });
    tell(as_json, value, text);
    Ok(if is_whole && nvme.is_none_or(|n| n.damaged == 0) { 0 } else { 3 })
}

fn gc(s: &Session, as_json: bool, dry_run: bool, older_than: Option<&str>) -> Result<u8, Fault> {
    let age = match older_than {
        None => Duration::ZERO,
        Some(text) => duration(text).ok_or_else(|| Fault::Wrong(format!("--older-than {text}: expected a time such as 7d, 12h or 30m")))?,
    };
    let swept = s.store.disk.sweep_artifacts(&wanted(s), age, dry_run)?;
    let mut by_stage: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for m in &swept.removed {
        let entry = by_stage.entry(&m.recipe.stage).or_default();
        *entry = (entry.0 + 1, entry.1 + m.bytes);
    }
    let (verb, freed) = if dry_run { ("would go", "would free") } else { ("removed", "freed") };
    let mut text = String::new();
    for (stage, (n, bytes)) in &by_stage {
        text.push_str(&format!("{stage:16} {:>10}  {}\n", size_text(*bytes), counted(*n, "artifact")));
    }
    text.push_str(&format!("{} {verb}", counted(swept.removed.len(), "artifact")));
    if swept.broken > 0 {
        text.push_str(&format!(", and {} half there", counted(swept.broken, "folder")));
    }
    text.push_str(&format!(": {freed} {}, {} stay", size_text(swept.freed_bytes), size_text(swept.left_bytes)));
    for (n, why) in [(swept.held, "in use by a running process"), (swept.young, "younger than --older-than")] {
        if n > 0 {
            text.push_str(&format!("\n{} left: {why}", counted(n, "artifact")));
        }
    }
    let value = json!({
        "dry_run": dry_run, "removed": swept.removed.len(), "broken": swept.broken, "freed_bytes": swept.freed_bytes,
        "left_bytes": swept.left_bytes, "in_use": swept.held, "young": swept.young,
        "keys": swept.removed.iter().map(|m| m.key).collect::<Vec<_>>(),
    });
    tell(as_json, value, text);
    Ok(0)
}

fn pin(s: &Session, plan: &Plan, what: &[String]) -> Result<u8, Fault> {
    for (label, key) in named_all(s, plan, what)? {
        s.store.disk.pin(&Pin { key, label: label.clone() })?;
        print(&format!("pinned {label}  {key}"));
    }
    Ok(0)
}

fn unpin(s: &Session, plan: &Plan, what: &[String]) -> Result<u8, Fault> {
    let pins = s.store.disk.pins()?;
    for w in what {
        // By what it was called then, too: its node may have a newer artifact now.
        let digits = w.to_ascii_lowercase();
        let of_node = |label: &str| label == w || label.split_once('/').is_some_and(|(node, _)| node == w);
        let named: Vec<&Pin> =
            pins.iter().filter(|p| of_node(&p.label) || (digits.len() >= 4 && p.key.hex().starts_with(&digits))).collect();
        if named.is_empty() {
            // Says what is wrong with the name, if that is it.
            named_one(s, plan, w)?;
            return Err(Fault::Wrong(format!("{w} is not pinned")));
        }
        for p in named {
            s.store.disk.unpin(&p.key)?;
            print(&format!("unpinned {}  {}", p.label, p.key));
        }
    }
    Ok(0)
}

/// Folders of artifacts as they stand, outside the workspace: OUT/NODE or OUT/NODE/CASE, each written beside and renamed.
fn export(s: &Session, plan: &Plan, what: &str, out: &Path) -> Result<u8, Fault> {
    let named = named_one(s, plan, what)?;
    for (label, key) in &named {
        s.store.hold(key)?;
        let Some(m) = s.store.disk.manifest(key)? else {
            return Err(Fault::Wrong(format!("{label} is no longer on the shelf: run the pipeline again")));
        };
        let to = out.join(label);
        if to.exists() {
            return Err(Fault::Wrong(format!("{} is there already: give another folder, or remove it", to.display())));
        }
        let folder = to.parent().expect("a label has a name").to_path_buf();
        let beside = folder.join(format!(".{}.{}", to.file_name().unwrap_or_default().to_string_lossy(), std::process::id()));
        let _ = std::fs::remove_dir_all(&beside);
        copy(&s.store.disk.dir(key), &m, &beside).inspect_err(|_| drop(std::fs::remove_dir_all(&beside)))?;
        std::fs::rename(&beside, &to).map_err(Error::io("write", &to))?;
        print(&to.display().to_string());
    }
    Ok(0)
}

/// Copies, no links: whoever changes one must not change the artifact.
fn copy(from: &Path, m: &Manifest, to: &Path) -> Result<(), Error> {
    for name in m.files.keys().map(String::as_str).chain(["artifact.json"]) {
        let path = to.join(name);
        let folder: PathBuf = path.parent().expect("below the folder").into();
        std::fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
        std::fs::copy(from.join(name), &path).map_err(Error::io("copy to", &path))?;
        let mut permissions = std::fs::metadata(&path).map_err(Error::io("look at", &path))?.permissions();
        permissions.set_mode(0o644);
        std::fs::set_permissions(&path, permissions).map_err(Error::io("make writable", &path))?;
    }
    Ok(())
}

/// The newest artifact of every node and case of every pipeline and inference in the workspace.
fn wanted(s: &Session) -> BTreeSet<Key> {
    Heads::all(&s.workspace).into_keys().collect()
}

fn named_all(s: &Session, plan: &Plan, what: &[String]) -> Result<Vec<(String, Key)>, Fault> {
    let mut out = Vec::new();
    for w in what {
        out.extend(named_one(s, plan, w)?);
    }
    Ok(out)
}

/// `NODE`, `NODE/CASE` or the first digits of a key → (`NODE/CASE`, key) of each artifact that is meant.
pub(crate) fn named_one(s: &Session, plan: &Plan, what: &str) -> Result<Vec<(String, Key)>, Fault> {
    let heads = s.heads(plan, false);
    let (node, case) = what.split_once('/').map_or((what, None), |(n, c)| (n, Some(c)));
    if plan.nodes.iter().any(|n| n.name == node) {
        let label = |c: &str| if c.is_empty() { node.to_string() } else { format!("{node}/{c}") };
        let all = heads.read(node);
        let found: Vec<_> = all.iter().filter(|(c, _)| case.is_none_or(|case| case == c.as_str())).map(|(c, k)| (label(c), *k)).collect();
        if found.is_empty() {
            let cases = all.keys().filter(|c| !c.is_empty()).take(8).cloned().collect::<Vec<_>>().join(", ");
            let has = if cases.is_empty() { "it was not run yet".to_string() } else { format!("it has {cases}, …") };
            return Err(Fault::Wrong(format!("{node} has nothing called {what}: {has}")));
        }
        return Ok(found);
    }
    let digits = what.to_ascii_lowercase();
    if digits.len() >= 4 && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        let found: Vec<Manifest> = s.store.disk.manifests()?.into_iter().filter(|m| m.key.hex().starts_with(&digits)).collect();
        if let [m] = &found[..] {
            let case = m.case.as_ref().map(|c| format!("/{c}")).unwrap_or_default();
            return Ok(vec![(format!("{}{case}", m.recipe.stage), m.key)]);
        }
        if !found.is_empty() {
            return Err(Fault::Wrong(format!("{what} means {} artifacts: give more digits", found.len())));
        }
    }
    let names = plan.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(Fault::Wrong(format!("nothing here is called {what}: give a node ({names}), NODE/CASE or the first digits of a key")))
}

/// `90s`, `30m`, `12h`, `7d`, `2w`.
fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let n: u64 = text[..at].parse().ok()?;
    let seconds = match text[at..].trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    n.checked_mul(seconds).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let seconds = |t| duration(t).map(|d| d.as_secs());
        assert_eq!(["90s", "30m", "12h", "7d", "2 w"].map(seconds), [90, 1800, 43_200, 604_800, 1_209_600].map(Some));
        assert_eq!(["7", "d", "-7d", "7y", "99999999999999999999d"].map(seconds), [None; 5]);
    }
}
