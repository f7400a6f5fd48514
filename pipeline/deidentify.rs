//! `voxmill deidentify ARCHIVE OUT`: DICOM in, DICOM out, without a pipeline. Every file that is seen gets a verdict, and the counts add up.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::json;
use voxmill_schemas::artifact::Scope;
use voxmill_schemas::tables::DeidentifiedRow;
use voxmill_stages::dicom::deid::archive::{self, Counts, Item};
use voxmill_stages::dicom::deid::{BurnedIn, Dates, Private, Profile, Rules};
use voxmill_stages::dicom::{name_file, survey, walk};
use voxmill_stages::error::Error;
use voxmill_stages::stage::Progress;

use crate::cli::{BurnedInArg, DatesKept, DeidentifyArgs, print};
use crate::convert::place;
use crate::progress::{Progressing, Style};
use crate::run::NodeEnd;
use crate::session::Fault;

pub const HELP: &str = "\
The Basic Application Confidentiality Profile of DICOM PS3.15 (2026c): names, ids, dates, addresses, free text, private and unknown elements go, in nested
sequences too; UIDs and ids become keyed pseudonyms, the same over the whole archive, over later runs, and in every pipeline whose index has the same key.
Pixels, transfer syntax and geometry stay. Reports, plans, documents and waveforms are not written. A second run writes only what is new or different.

Zips, tars and compressed files are looked into, and each of their members is a file of the archive: verdicts, counts and exit codes are those of
`voxmill convert --to dicom`. Whole slides and videos, of which no volume is made, are written as well.

  voxmill deidentify archive out --key-file study.key --new-key --retain-dates shift --retain-characteristics";

const WANTED: &str = "at least one DICOM image, DICOM SEG or RTSTRUCT";
/// Shown before \"and N more\".
const SHOWN: usize = 8;

pub fn archive(a: &DeidentifyArgs, cancel: &AtomicBool) -> Result<u8, Fault> {
    if !a.archive.exists() {
        return Err(Fault::NoFolder { path: a.archive.clone() });
    }
    apart(&a.archive, &a.out)?;
    let profile = profile(a)?;
    let key_file = a.key_file.as_ref().map(|f| f.to_string_lossy().into_owned());
    crate::convert::secrets_apart(a.key_file.as_deref().filter(|_| a.new_key), a.name_file.as_deref(), &a.archive, &[("OUT", &a.out)])?;
    crate::convert::not_empty(&a.archive)?;
    let names = crate::convert::key(a.key_env.as_deref(), key_file.as_deref(), a.new_key)?;
    let found = walk::names(&a.archive).map_err(Error::io("read", &a.archive))?;
    let step = |_| if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) };
    let mut seen = survey::of(found, &names, None, a.name_file.is_some(), &step)?;
    if let Some(file) = &a.name_file {
        name_file::write(file, &a.archive, &seen)?;
    }
    let others = std::mem::take(&mut seen.others);
    let n_nifti = seen.instances.iter().filter(|i| i.transfer_syntax.is_empty()).count() as u64;
    let mut items = archive::items(std::mem::take(&mut seen.instances), str::to_string);
    for o in others {
        // Pipelines have no use for it, an archive of DICOM has: tried like the rest, so it is not counted as skipped before.
        seen.classes.entry(o.class).and_modify(|n| *n -= 1);
        items.push(Item { name: o.file, path: o.path, member: o.member });
    }
    if items.is_empty() {
        return Err(Fault::Stage(Error::Nothing {
            what: "nothing to de-identify".into(),
            found: seen.nothing_usable(),
            expected: WANTED.into(),
        }));
    }
    std::fs::create_dir_all(&a.out).map_err(Error::io("make folder", &a.out))?;
    let _lock = place::lock(&a.out.join(place::LOCK), &|| cancel.load(Ordering::Relaxed))?;
    let rules = Rules::new(profile, names);
    let ui = Progressing::new(Style::choose(a.quiet, false), ["files"].into_iter());
    let bar = (ui.style == Style::Bars).then(|| ui.node("files", Scope::Set, items.len()));
    let (done, of) = (AtomicU64::new(0), items.len() as u64);
    let mut rows = archive::run(&items, &a.out, &rules, &|bytes| {
        let done = done.fetch_add(1, Ordering::Relaxed);
        if let Some(bar) = bar.as_ref().filter(|_| done % 64 == 0) {
            bar.news(Progress::Steps { done, of });
        }
        step(bytes)
    })?;
    if let Some(bar) = bar {
        bar.finish(&NodeEnd { made: rows.len(), ..NodeEnd::default() });
    }
    let mut counts = Counts::of(&rows);
    seen.classes.insert("NIfTI".into(), n_nifti);
    counts.untried(&seen.classes, seen.failed.len() as u64);
    let untried = |(file, why)| DeidentifiedRow { file, verdict: "failed".into(), why, ..DeidentifiedRow::default() };
    rows.extend(seen.failed.into_iter().map(untried));
    rows.sort_by(|a, b| a.file.cmp(&b.file));
    let left_out: Vec<&DeidentifiedRow> = rows.iter().filter(|r| matches!(r.verdict.as_str(), "refused" | "failed")).collect();
    let has_key = a.key_env.is_some() || a.key_file.is_some();
    if a.json {
        let problems: Vec<_> = left_out.iter().map(|r| json!({ "file": r.file, "verdict": r.verdict, "why": r.why })).collect();
        let all = json!({
            "seen": counts.seen,
            "written": counts.verdict("written"),
            "unchanged": counts.verdict("unchanged"),
            "skipped": counts.verdict("skipped"),
            "refused": counts.verdict("refused"),
            "failed": counts.verdict("failed"),
            "skipped_classes": counts.skipped,
            "elements": counts.elements,
            "risks": counts.risks,
            "may_show_face": counts.may_show_face,
            "keyed": has_key,
            "problems": problems,
        });
        print(&serde_json::to_string_pretty(&all).expect("plain data"));
    } else {
        left_out.iter().take(SHOWN).for_each(|r| eprintln!("{} {}: {}", r.verdict, r.file, r.why));
        if left_out.len() > SHOWN {
            eprintln!("and {} more (--json lists all)", left_out.len() - SHOWN);
        }
        if !left_out.is_empty() && a.name_file.is_none() {
            eprintln!("files go by pseudonyms: --name-file FILE writes which files these are, for you alone");
        }
        if !a.quiet {
            counts.report().iter().for_each(|line| print(line));
        }
    }
    if !has_key && !a.quiet {
        eprintln!("warning: pseudonyms are made without a secret: who knows an id can find its pseudonym (--key-file FILE --new-key)");
    }
    Ok(if left_out.is_empty() { 0 } else { 3 })
}

/// The archive is read only, and what is written must not be read as part of it.
fn apart(archive: &Path, out: &Path) -> Result<(), Fault> {
    crate::infer::apart("ARCHIVE", archive, out).map_err(|_| {
        let (archive, out) = (archive.display(), out.display());
        Fault::Wrong(format!("OUT {out} and ARCHIVE {archive} lie in one another: give an OUT that lies elsewhere"))
    })
}

fn profile(a: &DeidentifyArgs) -> Result<Profile, Fault> {
    let mut private = Vec::new();
    for text in &a.private {
        let Some((creator, element)) = text.rsplit_once(':') else {
            return Err(Fault::Wrong(format!("--private {text}: expected CREATOR:ELEMENT, such as \"SIEMENS MR HEADER:0019,xx0C\"")));
        };
        private.push(Private { creator: creator.into(), element: element.into() });
    }
    let profile = Profile {
        retain_uids: a.retain_uids,
        retain_dates: match a.retain_dates {
            None => Dates::Remove,
            Some(DatesKept::Shift) => Dates::Shift,
            Some(DatesKept::Full) => Dates::Full,
        },
        retain_device: a.retain_device,
        retain_institution: a.retain_institution,
        retain_characteristics: a.retain_characteristics,
        keep_descriptors: a.clean_descriptors.clone(),
        private,
        burned_in: match a.burned_in {
            BurnedInArg::Refuse => BurnedIn::Refuse,
            BurnedInArg::Flag => BurnedIn::Flag,
            BurnedInArg::Keep => BurnedIn::Keep,
        },
    };
    match profile.mistakes().into_iter().next() {
        Some((field, message, help)) => Err(Fault::Wrong(format!("--{field}: {message}: expected {help}"))),
        None => Ok(profile),
    }
}
