//! `voxmill replay`: the batch of a training step made again from the table of patches that the model's artifact holds and from the volumes that the training
//! read: the same reading, the same augmentation, so the same bits.

use std::path::Path;

use serde_json::Value;
use voxmill_schemas::artifact::{CaseId, Key, Kind, Manifest};
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;
use voxmill_schemas::tables::{PatchRow, Row};
use voxmill_stages::error::Error;
use voxmill_stages::nifti::{self, Options};
use voxmill_stages::ops::augment::{Augment, Sample};
use voxmill_stages::sample::cut::{self, Source};
use voxmill_stages::sample::plan::PatchAt;
use voxmill_stages::table::{self, show};
use voxmill_stages::volume::{StoredVolume, Voxels};

use crate::cli::{ReplayArgs, ReplayFormat, print};
use crate::forget;
use crate::plan::Plan;
use crate::questions::{known, nodes_of, opened, rows};
use crate::report::mosaic;
use crate::session::{Fault, Session};
use crate::thumbs::png_indexed;

/// Pixels of a plane.
const EDGE: usize = 256;

/// Shown by `voxmill replay --help`.
pub const HELP: &str = r#"Writes STEP-SLOT.nii.gz (the channels as the network saw them) and STEP-SLOT-labels.nii.gz
for every patch of the step, in replayed/NODE-KEY unless told. Spacing is the volume's; a
turned or bent patch has no place in the patient, so the files begin at 0. With --format png,
STEP-SLOT.png: the middle planes of the first channel, the labels as contours.

Which steps had a case:
  voxmill query FILE "select step, slot, augment from patches where \"case\" = 'CASE'"

Exit codes: 0 done, 1 a volume is no longer on the shelf (run the pipeline again), 2 no such step or model."#;

pub fn main(plan: &Plan, a: &ReplayArgs) -> Result<(), Fault> {
    let session = opened(plan)?;
    let model = model_called(&session, plan, &a.model)?;
    let patches = patches_of(&session, &model, a.step)?;
    // All or nothing: half a batch is none.
    let sources = patches.iter().map(|p| source_of(&session, &model, &p.case)).collect::<Result<Vec<_>, _>>()?;
    let out = match &a.output {
        Some(out) => out.clone(),
        // Steps of two models have the same names.
        None => {
            let node = nodes_of(&session, std::slice::from_ref(&model))?.remove(&model.key);
            Path::new("replayed").join(format!("{}-{}", node.unwrap_or_else(|| model.recipe.stage.clone()), model.key))
        }
    };
    std::fs::create_dir_all(&out).map_err(Error::io("make folder", &out))?;
    for (p, source) in patches.iter().zip(&sources) {
        let at = patch_at(p)?;
        let sample = cut::cut(source, &at, &session.store)?;
        let name = |what: &str| out.join(format!("{}-{}{what}.nii.gz", p.step, p.slot));
        let geometry = Geometry::axis_aligned(sample.size, source.volume.geometry.spacing_mm());
        let Sample { voxels, labels, channels, size, .. } = sample;
        if a.format == ReplayFormat::Png {
            let first = &voxels[..size.count()];
            let drawn = mosaic::draw_voxels(size, geometry.spacing_mm(), first, labels.as_deref().unwrap_or_default(), EDGE);
            let png = png_indexed(&drawn.pixels, EDGE, drawn.pixels.len() / EDGE, &mosaic::palette());
            let path = out.join(format!("{}-{}.png", p.step, p.slot));
            table::write_bytes_durably(&path, &png)?;
            continue;
        }
        nifti::write(&name(""), &geometry, channels, &Voxels::F32(voxels), &Options::default())?;
        if let Some(labels) = labels {
            nifti::write(&name("-labels"), &geometry, 1, &Voxels::U8(labels), &Options::default())?;
        }
    }
    print(&show::as_table(&[PatchRow::to_batch(&patches)])?);
    print(&out.display().to_string());
    Ok(())
}

pub fn model_called(s: &Session, plan: &Plan, what: &str) -> Result<Manifest, Fault> {
    let has_patches = |m: &Manifest| m.kind == Kind::Model && m.files.contains_key("patches.parquet");
    let models: Vec<Manifest> = s.store.disk.manifests()?.into_iter().filter(has_patches).collect();
    let keys: Vec<Key> = s.heads(plan, false).read(what).into_values().collect();
    let digits = what.to_ascii_lowercase();
    let is_meant = |m: &&Manifest| keys.contains(&m.key) || (keys.is_empty() && digits.len() >= 4 && m.key.hex().starts_with(&digits));
    match models.iter().filter(is_meant).collect::<Vec<_>>()[..] {
        [m] => Ok(m.clone()),
        _ => {
            let known = known(&models, &nodes_of(s, &models)?);
            Err(Fault::Wrong(format!(
                "no model with a table of its patches is called {what}: give the node that trains it, or digits of its key; {known}"
            )))
        }
    }
}

fn patches_of(s: &Session, model: &Manifest, step: u64) -> Result<Vec<PatchRow>, Fault> {
    let path = s.store.disk.dir(&model.key).join("patches.parquet");
    let files = |path: &Path| [(PatchRow::TABLE.to_string(), table::Source::Files(vec![path.to_path_buf()]))].into();
    let found: Vec<PatchRow> = rows(&table::query(files(&path), &format!("select * from patches where step = {step} order by slot"))?)?;
    if found.is_empty() {
        let last = model.facts.get("steps").and_then(Value::as_u64).unwrap_or(0);
        return Err(Fault::Wrong(format!("the training of {} has no step {step}: it has 1 to {last}", model.key)));
    }
    Ok(found)
}

/// The volume of a case as the training read it.
fn source_of(s: &Session, model: &Manifest, case: &str) -> Result<Source, Fault> {
    for key in model.input_keys.get("cases").into_iter().flatten() {
        if let Some(m) = s.store.disk.manifest(key)?
            && m.case.as_ref().is_some_and(|c| c.0 == case)
        {
            s.store.hold(key)?;
            return Ok(Source { case: CaseId(case.into()), volume: StoredVolume::open(&s.store.disk.dir(key), *key)? });
        }
    }
    if model.facts.contains_key(forget::MARK) && case.starts_with(forget::STAND_IN) {
        return Err(Fault::Wrong(format!(
            "the patient of {case} was forgotten (`voxmill forget`): its voxels are gone, and so is this batch; a step without `{}…` in the column `case` of \
             the table `patches` can be replayed",
            forget::STAND_IN
        )));
    }
    Err(Fault::Stage(Error::Input {
        what: format!("the volume of {case} that the training read"),
        found: "it is no longer on the shelf".into(),
        expected: "the pipeline run again with the settings of the training (`voxmill run`)".into(),
    }))
}

fn patch_at(p: &PatchRow) -> Result<PatchAt, Fault> {
    let augment: Augment = serde_json::from_str(&p.augment).map_err(|e| {
        Fault::Wrong(format!("step {} was drawn by another version of voxmill, which this one does not understand: {e}", p.step))
    })?;
    let size = [p.size_z, p.size_y, p.size_x].map(|n| n.max(0) as usize);
    Ok(PatchAt { case: 0, region: Region { start: Zyx::new(p.start_z, p.start_y, p.start_x), size: Zyx::from_array(size) }, augment })
}
