//! `voxmill forget`: takes a patient out of a workspace. What was made of its voxels goes from every shelf, what lists it goes or is rewritten, models
//! that saw it stay and are marked. First a plan, with `--yes` the deed, then a search for what must be gone and a receipt.
//!
//! Every step can be done twice, and the tables that say who the patient is go last: killed in its middle, the same command goes on.

mod search;
mod who;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use voxmill_schemas::artifact::{ContentHash, Key, Kind, Manifest};
use voxmill_schemas::spec::size_text;
use voxmill_schemas::tables::Row;
use voxmill_stages::error::Error;
use voxmill_stages::table;

use self::who::{Index, Who};
use self::words::Words;
use crate::cli::{ForgetArgs, print};
use crate::heads::Heads;
use crate::plan::Plan;
use crate::session::{Fault, Session};
use crate::{lineage, publish, questions};

/// Shown by `voxmill forget --help`.
pub const HELP: &str = r#"P is the patient's name in this workspace: `voxmill query FILE "select distinct patient from series"`.

Without --yes it says what it would do, and does nothing. With --yes, in this workspace:
- artifacts made of the patient's files, and sets that they are part of (index, scores),
  go from the disk shelf; the next run makes the sets again, without the patient if its
  files are gone from the archive
- the NVMe shelf and the memory of files already read are emptied: they only save time
- lineage stays, with `forgotten-…` where the patient, its cases, series or files stood
- models that saw the patient, and their splits, stay and lose its names; the models are
  marked: infer, saw and trace say so
- published files of the patient and the report go; what others have put into the
  workspace stays, and is told where it names the patient
Then the whole workspace is searched, and forgotten/ID.json keeps what was done, closed by its hash.

It does not touch the archive, nor what was copied out of the workspace (infer OUT, cache export).

Exit codes: 0 done, or a plan shown; 3 the search found something left; 2 the command is wrong."#;

/// The fact of a model's manifest that names receipts.
pub const MARK: &str = "forgotten";

/// How the names begin that stand where a patient's stood.
pub const STAND_IN: &str = "forgotten-";

/// A published file, and the file of an artifact that it is a link to.
type Linked = (PathBuf, PathBuf);

/// What is to be done.
struct Todo {
    /// Go from the disk shelf; those that tell who the patient is stand last.
    gone: Vec<Manifest>,
    /// Stay without the words: models, and the splits that they were trained by.
    models: Vec<Manifest>,
    words: Words,
    /// Files of the archive as the index named them, where they stand there still.
    in_archive: Vec<PathBuf>,
    /// Files outside the shelves that go: published, reports.
    files: Vec<PathBuf>,
    /// Published files of models that change.
    relinked: Vec<Linked>,
    /// Lineage files with the patient in them.
    lineage: Vec<PathBuf>,
    n_cases: usize,
}

/// Does what was asked and gives the exit code.
pub fn main(plan: &Plan, a: &ForgetArgs) -> Result<u8, Fault> {
    if plan.workspace.ends_with(".voxmill") {
        return Err(Fault::Wrong(
            "this is the workspace of `voxmill convert`: take the patient's files out of the archive and convert again, which removes what was made of them".into(),
        ));
    }
    let session = questions::opened(plan)?;
    let receipt = lineage::unique_name();
    let todo = find(&session, &a.patient, &receipt)?;
    let keys: BTreeSet<Key> = todo.gone.iter().chain(&todo.models).map(|m| m.key).collect();
    let busy = session.store.disk.in_use(&keys)?;
    if !busy.is_empty() {
        return Err(Fault::Wrong(format!(
            "a running process works with {} artifacts of this patient: wait for it to end, or stop it",
            busy.len()
        )));
    }
    if !a.yes {
        tell(a.json, json!({ "done": false, "plan": as_json(&todo) }), &format!("{}\n\nnothing was done: --yes does it", in_words(&todo)));
        return Ok(0);
    }
    let n_bricks = session.store.clear_nvme()?;
    let n_cells = rewrite_lineage(&todo)?;
    Heads::forget(&session.workspace, &keys_of(&todo.gone), &|case| todo.words.in_text(case))?;
    for path in &todo.files {
        remove_file(path)?;
    }
    publish::unlist(&session.workspace.join("out"))?;
    let memo = session.workspace.join("memo");
    match std::fs::remove_dir_all(&memo) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", &memo)(e).into()),
        _ => {}
    }
    for m in &todo.models {
        mark(&session, m, &todo.words, &receipt)?;
    }
    for (published, file) in &todo.relinked {
        publish::link(file, published)?;
    }
    let (sources, others): (Vec<&Manifest>, Vec<&Manifest>) = todo.gone.iter().partition(|m| m.input_keys.is_empty());
    let mut freed_bytes = 0;
    for part in [others, sources] {
        let keys: BTreeSet<Key> = part.iter().map(|m| m.key).collect();
        for key in &keys {
            session.store.disk.unpin(key)?;
        }
        freed_bytes += session.store.disk.remove(&keys)?;
    }
    let left = left_over(&session, &todo)?;
    let done = json!({
        "done": true, "receipt": receipt, "voxmill": env!("CARGO_PKG_VERSION"), "plan": as_json(&todo),
        "freed_bytes": freed_bytes, "nvme_bricks": n_bricks, "lineage_cells": n_cells,
        "left": left.iter().map(|(path, what)| json!({ "file": path.display().to_string(), "what": what })).collect::<Vec<_>>(),
    });
    let path = write_receipt(&session.workspace, &receipt, &done, &todo.words)?;
    let mut text = format!("{}\n\nfreed {}", in_words(&todo), size_text(freed_bytes));
    for (file, what) in left.iter().take(20) {
        text.push_str(&format!("\nLEFT: {} holds {what} of the patient", file.display()));
    }
    if left.len() > 20 {
        text.push_str(&format!("\nLEFT: and {} more; the receipt lists them", left.len() - 20));
    }
    if left.is_empty() {
        text.push_str("; searched every file of the workspace: nothing is left");
    }
    if todo.words.has_short() {
        text.push_str("\nnames of less than five letters were looked for in tables and JSON, and only where they stand by themselves");
    }
    text.push_str(&format!("\nreceipt  {}", path.display()));
    tell(a.json, done, &text);
    Ok(if left.is_empty() { 0 } else { 3 })
}

fn tell(as_json: bool, value: Value, text: &str) {
    print(&if as_json { serde_json::to_string_pretty(&value).expect("plain data") } else { text.to_string() });
}

fn keys_of(manifests: &[Manifest]) -> BTreeSet<Key> {
    manifests.iter().map(|m| m.key).collect()
}

fn fact<'a>(m: &'a Manifest, name: &str) -> &'a str {
    m.facts.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn find(s: &Session, patient: &str, receipt: &str) -> Result<Todo, Fault> {
    let disk = &s.store.disk;
    let manifests = disk.readable_manifests()?;
    let mut indexes = Vec::new();
    for m in manifests.iter().filter(|m| m.files.contains_key("series.parquet")) {
        let dir = disk.dir(&m.key);
        indexes.push(Index { series: rows_at(&dir)?, instances: rows_at(&dir)? });
    }
    let Who { mut words, series, files: mut in_archive } = who::who(patient, &indexes);
    let mut cases: BTreeSet<String> = BTreeSet::new();
    for m in manifests.iter().filter(|m| fact(m, "patient") == patient || series.contains(fact(m, "series"))) {
        cases.extend(m.case.iter().map(|c| c.0.clone()));
        words.extend([fact(m, "study"), fact(m, "series")].map(str::to_string));
    }
    if cases.is_empty() && series.is_empty() {
        let patients: BTreeSet<&str> = indexes.iter().flat_map(|i| &i.series).map(|r| r.patient.as_str()).collect();
        let some = patients.into_iter().take(5).collect::<Vec<_>>().join(", ");
        let known = if some.is_empty() { "its index is gone or was never made".into() } else { format!("it has {some}, …") };
        return Err(Fault::Wrong(format!("this workspace has no patient {patient}: {known}")));
    }
    words.extend(cases.iter().cloned());
    for m in manifests.iter().filter(|m| !fact(m, "patient").is_empty() && fact(m, "patient") != patient) {
        words.remove(fact(m, "study"));
    }
    let words = Words::new(words, receipt);
    let (gone, models) = chosen(s, manifests, &cases, &words)?;
    let (files, relinked) = files_outside(s, &gone, &models, &words)?;
    let mut in_lineage = Vec::new();
    for path in search::files(&s.workspace.join("lineage"))?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "parquet")) {
        if search::holds(&path, &words)? {
            in_lineage.push(path);
        }
    }
    in_archive.retain(|p| p.is_file());
    Ok(Todo {
        gone,
        models,
        words,
        in_archive: in_archive.into_iter().collect(),
        files,
        relinked,
        lineage: in_lineage,
        n_cases: cases.len(),
    })
}

/// Rows of a table as far as this version understands it: one of an older version goes because of the words in it.
fn rows_at<R: Row>(dir: &Path) -> Result<Vec<R>, Fault> {
    let path = dir.join(format!("{}.parquet", R::TABLE));
    if !path.is_file() {
        return Ok(Vec::new());
    }
    Ok(R::from_batch(&table::read(&path)?).unwrap_or_default())
}

/// Artifacts that go (what tells who the patient is stands last), and models that stay without the words.
fn chosen(s: &Session, all: Vec<Manifest>, cases: &BTreeSet<String>, words: &Words) -> Result<(Vec<Manifest>, Vec<Manifest>), Fault> {
    let disk = &s.store.disk;
    let of_case = |m: &Manifest| m.case.as_ref().is_some_and(|c| cases.contains(&c.0));
    let mut gone: BTreeSet<Key> = all.iter().filter(|m| of_case(m)).map(|m| m.key).collect();
    for m in all.iter().filter(|m| m.case.is_none() && m.kind != Kind::Model && m.input_keys.is_empty()) {
        let dir = disk.dir(&m.key);
        for name in m.files.keys().filter(|_| !gone.contains(&m.key)) {
            let path = dir.join(name);
            if words.in_text(name) || (path.is_file() && search::holds(&path, words)?) {
                gone.insert(m.key);
                break;
            }
        }
    }
    // A set goes with its part; a case of somebody else does not go with the index it stood in.
    loop {
        let before = gone.len();
        for m in all.iter().filter(|m| m.kind != Kind::Model) {
            let mut made_of = m.input_keys.values().flatten();
            if m.case.is_none() && made_of.any(|k| gone.contains(k)) {
                gone.insert(m.key);
            }
        }
        if gone.len() == before {
            break;
        }
    }
    // Which part the others played in a training stays known: its split stays, without the words.
    let parts: BTreeSet<Key> =
        all.iter().filter(|m| m.kind == Kind::Model).flat_map(|m| m.input_keys.get("split")).flatten().copied().collect();
    gone.retain(|k| !parts.contains(k));
    let saw = |m: &Manifest| m.input_keys.values().flatten().any(|k| gone.contains(k));
    let named = |m: &Manifest| words.in_json(&serde_json::to_value(m).expect("a manifest is plain data"));
    let (models, rest): (Vec<Manifest>, Vec<Manifest>) =
        all.into_iter().partition(|m| (m.kind == Kind::Model || parts.contains(&m.key)) && (saw(m) || named(m)));
    let mut gone: Vec<Manifest> = rest.into_iter().filter(|m| gone.contains(&m.key)).collect();
    gone.sort_by_key(|m| m.input_keys.is_empty());
    Ok((gone, models))
}

/// What was published of artifacts that go, the report; and what was published of models. What others have put into the workspace is told by the search, not
/// removed.
fn files_outside(s: &Session, gone: &[Manifest], models: &[Manifest], words: &Words) -> Result<(Vec<PathBuf>, Vec<Linked>), Fault> {
    let by_inode = |of: &[Manifest]| -> BTreeMap<(u64, u64), PathBuf> {
        let files = of.iter().flat_map(|m| m.files.keys().map(|f| s.store.disk.dir(&m.key).join(f)));
        files.filter_map(|p| Some((search::inode(&p)?, p))).collect()
    };
    let (gone, models) = (by_inode(gone), by_inode(models));
    let out = s.workspace.join("out");
    let ours = publish::listed(&out)?;
    let (mut removed, mut relinked) = (Vec::new(), Vec::new());
    for path in search::files(&out)? {
        let inode = search::inode(&path);
        let named = || -> Result<bool, Error> {
            let below = path.strip_prefix(&out).unwrap_or(&path);
            Ok(ours.contains(&path) && (words.in_text(&below.to_string_lossy()) || search::holds(&path, words)?))
        };
        if let Some(file) = inode.and_then(|i| models.get(&i)) {
            relinked.push((path, file.clone()));
        } else if inode.is_some_and(|i| gone.contains_key(&i)) || named()? {
            removed.push(path);
        }
    }
    removed.extend(Some(s.workspace.join("report.html")).filter(|p| p.is_file()));
    Ok((removed, relinked))
}

/// Words of the program and of the YAML stand in these columns, whatever a patient is called.
const NOT_OF_PATIENTS: [&str; 22] = [
    "run",
    "pipeline",
    "purpose",
    "voxmill",
    "status",
    "node",
    "stage",
    "kind",
    "port",
    "unit",
    "modality",
    "cpu",
    "device",
    "commit",
    "features",
    "key",
    "content",
    "config_hash",
    "config",
    "part",
    "class",
    "channel",
];

fn out_of_cell(words: &Words, column: &str, text: &str) -> Option<String> {
    if NOT_OF_PATIENTS.contains(&column) { None } else { words.out_of_text(text) }
}

fn rewrite_lineage(todo: &Todo) -> Result<usize, Fault> {
    let mut n = 0;
    for path in &todo.lineage {
        if let Some((bytes, changed)) = table::changed_text(path, &|column, t| out_of_cell(&todo.words, column, t))? {
            table::write_bytes_durably(path, &bytes)?;
            n += changed;
        }
    }
    Ok(n)
}

/// Takes the words out of a model's tables, texts and manifest, and notes the receipt there.
fn mark(s: &Session, m: &Manifest, words: &Words, receipt: &str) -> Result<(), Fault> {
    let dir = s.store.disk.dir(&m.key);
    let mut files = Vec::new();
    for name in m.files.keys() {
        let path = dir.join(name);
        let changed = match path.extension().and_then(|e| e.to_str()) {
            Some("parquet") => table::changed_text(&path, &|column, t| out_of_cell(words, column, t))?.map(|(bytes, _)| bytes),
            _ => None,
        };
        files.extend(changed.map(|bytes| (name.clone(), bytes)));
    }
    let mut new = m.clone();
    for value in new.facts.values_mut() {
        if let Some(without) = words.out_of_json(value) {
            *value = without;
        }
    }
    for case in new.recipe.inputs.values_mut().flatten().filter_map(|i| i.case.as_mut()).chain(&mut new.case) {
        if let Some(without) = words.out_of_text(&case.0) {
            case.0 = without;
        }
    }
    let marks = new.facts.entry(MARK).or_insert_with(|| json!([]));
    if let Some(marks) = marks.as_array_mut() {
        marks.push(receipt.into());
    }
    s.store.disk.rewrite(new, &files)?;
    Ok(())
}

fn left_over(s: &Session, todo: &Todo) -> Result<BTreeMap<PathBuf, &'static str>, Fault> {
    let hashes = |m: &Manifest| m.files.iter().filter(|(name, _)| !name.ends_with(".json")).map(|(_, h)| *h).collect::<Vec<ContentHash>>();
    let mut gone: BTreeSet<ContentHash> = todo.gone.iter().flat_map(hashes).collect();
    // An empty brick is nobody's.
    for m in s.store.disk.readable_manifests()? {
        for hash in hashes(&m) {
            gone.remove(&hash);
        }
    }
    Ok(search::left(&s.workspace, &todo.words, &gone)?)
}

/// `forgotten/ID.json`: what was done, and the hash of that.
fn write_receipt(workspace: &Path, receipt: &str, done: &Value, words: &Words) -> Result<PathBuf, Fault> {
    let folder = workspace.join("forgotten");
    let path = folder.join(format!("{receipt}.json"));
    let mut done = words.out_of_json(done).unwrap_or_else(|| done.clone());
    done["blake3"] = ContentHash::of(done.to_string().as_bytes()).hex().into();
    std::fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
    table::write_bytes_durably(&path, &serde_json::to_vec_pretty(&done).expect("plain data"))?;
    Ok(path)
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

fn as_json(todo: &Todo) -> Value {
    let of = |m: &Manifest| json!({ "stage": m.recipe.stage, "key": m.key, "bytes": m.bytes });
    json!({
        "cases": todo.n_cases,
        "artifacts": todo.gone.iter().map(of).collect::<Vec<_>>(),
        "models_marked": todo.models.iter().filter(|m| m.kind == Kind::Model).map(of).collect::<Vec<_>>(),
        "files": todo.files.len(),
        "lineage_files": todo.lineage.len(),
        "files_in_archive": todo.in_archive.len(),
    })
}

fn in_words(todo: &Todo) -> String {
    let mut stages: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for m in &todo.gone {
        let (n, bytes) = stages.get(m.recipe.stage.as_str()).copied().unwrap_or_default();
        stages.insert(&m.recipe.stage, (n + 1, bytes + m.bytes));
    }
    let many = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let mut out = format!("{} of the patient. From the shelf go", many(todo.n_cases, "case"));
    for (stage, (n, bytes)) in stages {
        out.push_str(&format!("\n  {stage:16} {n:>5}  {}", size_text(bytes)));
    }
    for m in todo.models.iter().filter(|m| m.kind == Kind::Model) {
        out.push_str(&format!("\nthe model {} ({}) saw the patient: it stays, and is marked", m.key, m.recipe.stage));
    }
    if !todo.files.is_empty() {
        out.push_str(&format!("\nof what was published, {} go", many(todo.files.len(), "file")));
    }
    if !todo.lineage.is_empty() {
        out.push_str(&format!("\nlineage loses the names in {}", many(todo.lineage.len(), "file")));
    }
    if let Some(first) = todo.in_archive.first() {
        let folder = first.parent().unwrap_or(first).display();
        let n = many(todo.in_archive.len(), "file");
        out.push_str(&format!(
            "\n{n} of the patient still in the archive (the first in {folder}): the next run reads them again unless they go"
        ));
    }
    out
}
