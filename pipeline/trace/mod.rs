//! `voxmill trace`: from an artifact back to the DICOM instances it was made from and forward to models and predictions, by the manifests in the
//! store. What is found is a [`Trace`]; `show.rs` draws it.

pub mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use voxmill_schemas::artifact::{Key, Manifest};
use voxmill_schemas::tables::{InstanceRow, Row, SeriesRow};
use voxmill_stages::error::Error;
use voxmill_stages::store::{Limits, Store};
use voxmill_stages::table::{self, Source};

use crate::heads::Heads;
use crate::questions::quoted;
use crate::session::{Fault, store_dir};

/// Cases of one step that are shown one by one where no case is asked for.
const SHOWN: usize = 3;
/// Artifacts named when a question is ambiguous.
const CANDIDATES: usize = 12;

/// A thing on the way and what lies behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// Equal for the same thing wherever it stands.
    pub id: String,
    pub title: String,
    /// Drawn in full somewhere above.
    pub seen: bool,
    pub next: Vec<Tree>,
}

/// The two directions from one artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    pub start: Tree,
    pub made_from: Vec<Tree>,
    pub went_into: Vec<Tree>,
}

/// Every artifact of a workspace and how they hang together.
pub struct Web {
    store: Store,
    manifests: BTreeMap<Key, Arc<Manifest>>,
    went_into: BTreeMap<Key, Vec<Key>>,
    /// Newest artifacts with the name of their node.
    current: BTreeMap<Key, String>,
}

impl Web {
    pub fn open(workspace: &Path) -> Result<Self, Fault> {
        let disk_dir = store_dir(workspace);
        if !disk_dir.is_dir() {
            return Err(Fault::Wrong(format!("{} is no workspace that something was run in: it has no store", workspace.display())));
        }
        let store = Store::open(&Limits { disk_dir, ..Limits::default() })?;
        let manifests: BTreeMap<Key, Arc<Manifest>> = store.disk.manifests()?.into_iter().map(|m| (m.key, Arc::new(m))).collect();
        let mut went_into: BTreeMap<Key, Vec<Key>> = BTreeMap::new();
        for m in manifests.values() {
            let inputs: BTreeSet<&Key> = m.input_keys.values().flatten().collect();
            inputs.into_iter().for_each(|i| went_into.entry(*i).or_default().push(m.key));
        }
        Ok(Self { store, manifests, went_into, current: Heads::all(workspace) })
    }

    /// The artifacts that a key's first digits, a case or the path of a file mean.
    pub fn find(&self, what: &str) -> Result<Vec<Key>, Fault> {
        let digits = what.to_ascii_lowercase();
        if digits.len() >= 4 && digits.len() <= 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            let found: Vec<Key> = self.manifests.keys().filter(|k| k.hex().starts_with(&digits)).copied().collect();
            match found.len() {
                0 => {}
                1 => return Ok(found),
                _ => return Err(self.ambiguous(what, &found)),
            }
        }
        let of_case = |m: &&Arc<Manifest>| m.case.as_ref().is_some_and(|c| c.0 == what);
        let cases: Vec<Key> = self.newest(self.manifests.values().filter(of_case).map(|m| m.key).collect());
        if !cases.is_empty() {
            return Ok(self.first_ones(&cases));
        }
        let path = Path::new(what);
        if path.is_file() {
            return self.of_file(path);
        }
        let cases: BTreeSet<&str> = self.manifests.values().filter_map(|m| Some(m.case.as_ref()?.0.as_str())).collect();
        let some = cases.iter().take(CANDIDATES).copied().collect::<Vec<_>>().join(", ");
        let more = if cases.len() > CANDIDATES { ", …" } else { "" };
        Err(Fault::Wrong(format!(
            "nothing here is called {what}: give the first digits of a key (4 at least), the path of a file, or a case ({some}{more})"
        )))
    }

    /// Those that stand for the last run, or all where none does.
    fn newest(&self, found: Vec<Key>) -> Vec<Key> {
        let current: Vec<Key> = found.iter().filter(|k| self.current.contains_key(k)).copied().collect();
        if current.is_empty() { found } else { current }
    }

    /// Those that are made from none of the others.
    fn first_ones(&self, found: &[Key]) -> Vec<Key> {
        let is_first = |k: &&Key| !self.manifests[*k].input_keys.values().flatten().any(|i| found.contains(i));
        found.iter().filter(is_first).copied().collect()
    }

    /// A published file, or an instance of an archive: both are known by the hash of their bytes.
    fn of_file(&self, path: &Path) -> Result<Vec<Key>, Fault> {
        let mut hasher = blake3::Hasher::new();
        std::fs::File::open(path).and_then(|f| hasher.update_reader(f).map(|_| ())).map_err(Error::io("read", path))?;
        let hash = hasher.finalize();
        let holds = |m: &&Arc<Manifest>| m.files.values().any(|h| h.0 == *hash.as_bytes());
        let found = self.newest(self.manifests.values().filter(holds).map(|m| m.key).collect());
        match found.len() {
            0 => {}
            1 => return Ok(found),
            // One file, hard-linked into several artifacts: the one that made it is the first.
            _ => match self.first_ones(&found)[..] {
                [first] => return Ok(vec![first]),
                ref firsts => return Err(self.ambiguous(&path.display().to_string(), firsts)),
            },
        }
        let hex = hash.to_hex().to_string();
        let place = quoted(&std::fs::canonicalize(path).map_err(Error::io("find", path))?.to_string_lossy());
        for source in self.manifests.values().filter(|m| m.input_keys.is_empty()) {
            let sql = format!("select distinct series from {} where content = '{hex}' or path = {place}", InstanceRow::TABLE);
            let series = self.ask(source, &sql);
            if series.is_empty() {
                continue;
            }
            let is_of = |m: &&Arc<Manifest>| series_of(m).is_some_and(|s| series.iter().any(|row| row[0] == s));
            let volumes = self.newest(self.manifests.values().filter(is_of).map(|m| m.key).collect());
            return Ok(if volumes.is_empty() { vec![source.key] } else { self.first_ones(&volumes) });
        }
        Err(Fault::Wrong(format!("{} is neither a file of an artifact nor of an archive that was indexed here", path.display())))
    }

    fn ambiguous(&self, what: &str, found: &[Key]) -> Fault {
        let lines: Vec<String> = found.iter().take(CANDIDATES).map(|k| format!("  {}  {}", &k.hex()[..16], self.title(k))).collect();
        let more = if found.len() > CANDIDATES { format!("\n  and {} more", found.len() - CANDIDATES) } else { String::new() };
        Fault::Wrong(format!("{what} means {} artifacts, give more digits of one:\n{}{more}", found.len(), lines.join("\n")))
    }

    pub fn trace(&self, start: Key) -> Trace {
        let case = self.manifests[&start].case.clone();
        let mut series = BTreeSet::new();
        self.collect_series(&start, &mut series);
        let made_from = self.behind(&start, &series, &mut BTreeSet::new());
        let mut visited = BTreeSet::from([start]);
        let went_into = self.ahead(&start, case.as_ref().map(|c| c.0.as_str()), &mut visited);
        Trace { start: self.leaf(&start), made_from, went_into }
    }

    fn leaf(&self, key: &Key) -> Tree {
        Tree { id: key.hex()[..16].into(), title: self.title(key), seen: false, next: Vec::new() }
    }

    /// `node: stage case key  what it is`
    fn title(&self, key: &Key) -> String {
        let Some(m) = self.manifests.get(key) else { return format!("{key}  (no longer in the store)") };
        let node = self.current.get(key).map(|n| format!("{n}: ")).unwrap_or_default();
        let case = m.case.as_ref().map(|c| format!(" {c}")).unwrap_or_default();
        let older = if self.current.contains_key(key) { "" } else { "  (not of the newest run)" };
        let marked = if m.facts.contains_key(crate::forget::MARK) { "  (a patient that it saw was forgotten)" } else { "" };
        format!("{node}{}{case}  {key}{}{older}{marked}", m.recipe.stage, what_it_is(m))
    }

    /// Series of the volumes on the way back.
    fn collect_series(&self, start: &Key, series: &mut BTreeSet<String>) {
        let mut todo = vec![*start];
        let mut visited = BTreeSet::new();
        while let Some(key) = todo.pop() {
            let Some(m) = self.manifests.get(&key).filter(|_| visited.insert(key)) else { continue };
            series.extend(series_of(m).map(str::to_string));
            todo.extend(m.input_keys.values().flatten());
        }
    }

    /// `series`: those whose instances a source lists. Below the volume of a case they are its own, not those of every case that a model on the way saw.
    fn behind(&self, key: &Key, series: &BTreeSet<String>, visited: &mut BTreeSet<(Key, BTreeSet<String>)>) -> Vec<Tree> {
        let Some(m) = self.manifests.get(key) else { return Vec::new() };
        if m.input_keys.is_empty() {
            return self.instances(m, series);
        }
        let own: BTreeSet<String> = series_of(m).map(str::to_string).into_iter().collect();
        let series = if own.is_empty() { series } else { &own };
        let mut out = Vec::new();
        for (port, keys) in &m.input_keys {
            for (i, up) in keys.iter().enumerate() {
                if i == SHOWN && keys.len() > SHOWN + 1 {
                    let title = format!("{port}: {} more of {} cases", keys.len() - SHOWN, keys.len());
                    out.push(Tree { id: format!("{key}-{port}"), title, seen: false, next: Vec::new() });
                    break;
                }
                let is_source = self.manifests.get(up).is_some_and(|m| m.input_keys.is_empty());
                let is_new = visited.insert((*up, if is_source { series.clone() } else { BTreeSet::new() }));
                let next = if is_new { self.behind(up, series, visited) } else { Vec::new() };
                let leaf = self.leaf(up);
                out.push(Tree { title: format!("{port} ← {}", leaf.title), seen: !is_new, next, ..leaf });
            }
        }
        out
    }

    /// What a source tells of these series, where it has an index; labels that were drawn on them as well.
    fn instances(&self, m: &Manifest, series: &BTreeSet<String>) -> Vec<Tree> {
        let drawn_on = series.iter().map(|s| format!("or array_has(\"references\", {}) ", quoted(s))).collect::<String>();
        let list = series.iter().map(|s| quoted(s)).collect::<Vec<_>>().join(", ");
        if list.is_empty() {
            let sql = format!("select count(*), count(distinct series) from {}", InstanceRow::TABLE);
            let all = self.ask(m, &sql);
            let line = |r: &Vec<String>| Tree {
                id: format!("{}-all", m.key),
                title: format!("{} instances of {} series", r[0], r[1]),
                seen: false,
                next: Vec::new(),
            };
            return all.iter().map(line).collect();
        }
        let (all, of) = (SeriesRow::TABLE, InstanceRow::TABLE);
        let sql = format!(
            "select s.series, s.modality, s.kind, i.n, i.path from \
             (select distinct series, modality, kind from {all} where series in ({list}) {drawn_on}) s join \
             (select series, count(*) as n, min(path) as path from {of} group by series) i on s.series = i.series order by s.kind, s.series"
        );
        let line = |r: &Vec<String>| Tree {
            id: format!("{}-{}", m.key, blake3::hash(r[0].as_bytes()).to_hex().get(..8).unwrap_or_default()),
            title: format!(
                "{} {}: {} instance{} of series {}{}",
                r[1],
                r[2],
                r[3],
                if r[3] == "1" { "" } else { "s" },
                r[0],
                if r[4].is_empty() { String::new() } else { format!(", {}{}", if r[3] == "1" { "" } else { "the first " }, r[4]) }
            ),
            seen: false,
            next: Vec::new(),
        };
        self.ask(m, &sql).iter().map(line).collect()
    }

    /// Rows of an answer as text; empty where the artifact has no such tables.
    fn ask(&self, m: &Manifest, sql: &str) -> Vec<Vec<String>> {
        let answer = (|| -> Result<_, Error> {
            let files: BTreeMap<String, PathBuf> = table::files(&self.store.disk.dir(&m.key))?;
            let tables = files.into_iter().map(|(stem, path)| (stem, Source::Files(vec![path]))).collect();
            table::show::cells(&table::query(tables, sql)?, "")
        })();
        answer.unwrap_or_default()
    }

    fn ahead(&self, key: &Key, case: Option<&str>, visited: &mut BTreeSet<Key>) -> Vec<Tree> {
        let all = self.went_into.get(key).map_or(&[][..], Vec::as_slice);
        let shown = self.newest(all.to_vec());
        let mut steps: BTreeMap<(String, String), Vec<Key>> = BTreeMap::new();
        for k in &shown {
            let m = &self.manifests[k];
            let node = self.current.get(k).cloned().unwrap_or_default();
            steps.entry((m.recipe.stage.clone(), format!("{node} {}", m.recipe.config))).or_default().push(*k);
        }
        let mut out = Vec::new();
        for ((stage, _), mut keys) in steps {
            keys.sort_by(|a, b| self.manifests[a].case.cmp(&self.manifests[b].case));
            let mine = |k: &Key| case.is_some() && self.manifests[k].case.as_ref().map(|c| c.0.as_str()) == case;
            let (mut full, mut rest): (Vec<Key>, Vec<Key>) = keys.iter().partition(|k| mine(k));
            if full.is_empty() {
                full = rest.drain(..if rest.len() > SHOWN + 1 { SHOWN } else { rest.len() }).collect();
            }
            for k in full {
                let is_new = visited.insert(k);
                let next = if is_new { self.ahead(&k, case, visited) } else { Vec::new() };
                out.push(Tree { seen: !is_new, next, ..self.leaf(&k) });
            }
            if !rest.is_empty() {
                let title = format!("{stage} of {} other case{}", rest.len(), if rest.len() == 1 { "" } else { "s" });
                out.push(Tree { id: format!("{key}-{stage}-others"), title, seen: false, next: Vec::new() });
            }
        }
        if shown.len() < all.len() {
            let title = format!("{} more, not of the newest run", all.len() - shown.len());
            out.push(Tree { id: format!("{key}-older"), title, seen: false, next: Vec::new() });
        }
        out
    }
}

fn series_of(m: &Manifest) -> Option<&str> {
    m.facts.get("series")?.as_str()
}

/// Size and spacing of a volume, from its facts.
fn what_it_is(m: &Manifest) -> String {
    let axis = |fact: &str, digits: usize| -> Option<String> {
        let v = m.facts.get(fact)?;
        let one = |name: &str, at: usize| v.get(name).or_else(|| v.get(at))?.as_f64().map(|n| format!("{n:.digits$}"));
        Some([one("z", 0)?, one("y", 1)?, one("x", 2)?].join("×"))
    };
    match (axis("size", 0), axis("spacing_mm", 2)) {
        (Some(size), Some(spacing)) => format!("  {size} voxels of {spacing} mm"),
        _ => String::new(),
    }
}

/// The workspace that is meant: of a file, as given, or of the only pipeline in this folder.
pub fn workspace(file: Option<&Path>, workspace: Option<&Path>, load: impl Fn(&Path) -> Option<PathBuf>) -> Result<PathBuf, Fault> {
    match workspace {
        Some(w) => Ok(w.to_path_buf()),
        None => only(file, load, |a, b| a == b),
    }
}

/// What a pipeline gives: the one that is named, or the only one in this folder. Several that give the same are as good as one.
pub fn only<T>(file: Option<&Path>, load: impl Fn(&Path) -> Option<T>, same: impl Fn(&T, &T) -> bool) -> Result<T, Fault> {
    if let Some(file) = file {
        return load(file).ok_or(Fault::Told(2));
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(".")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| PathBuf::from(e.file_name()))
        .filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"))
        .collect();
    files.sort();
    let mut found: Vec<(PathBuf, T)> = Vec::new();
    for file in files {
        if let Some(new) = load(&file).filter(|new| !found.iter().any(|(_, known)| same(known, new))) {
            found.push((file, new));
        }
    }
    match found.len() {
        1 => Ok(found.remove(0).1),
        0 => Err(Fault::Wrong("no pipeline in this folder: say --file PIPELINE".into())),
        _ => {
            let names = found.iter().map(|(file, _)| file.display().to_string()).collect::<Vec<_>>().join(", ");
            Err(Fault::Wrong(format!("several pipelines in this folder ({names}): say which with --file")))
        }
    }
}
