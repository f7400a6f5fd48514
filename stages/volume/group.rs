//! A volume as an OME-Zarr 0.5 group: array `0` `[c, z, y, x]`, labels in `labels/labels/0` `[z, y, x]`, geometry and the rest in `zarr.json`.
//! A prediction has no channels: its group holds labels alone and has no `ome`, its label image is a whole OME-Zarr image.

use std::fs;
use std::path::Path;

use voxmill_schemas::artifact::Key;
use voxmill_schemas::zarr_attrs::{GroupMeta, LAYOUT, Ome, Own};

use super::Volume;
use super::array::{self, ArrayFile, Fault};
use super::layout::{Dtype, Layout};
use super::step::Outline;
use super::stored::StoredVolume;
use crate::error::Error;
use crate::store::link;

pub(super) const IMAGE: &str = "0";
pub(super) const LABELS: &str = "labels/labels/0";

impl Fault {
    /// Names the artifact; a folder that is none (a draft) is named by its path.
    pub(super) fn of(self, dir: &Path, key: Option<Key>) -> Error {
        match (self, key.or_else(|| Key::from_hex(dir.file_name()?.to_str()?))) {
            (Fault::Io(e), _) => e,
            (Fault::Damaged(what), Some(key)) => Error::Damaged { key, what },
            (Fault::Damaged(what), None) => Error::Zarr { doing: "read", path: dir.to_path_buf(), source: what.into() },
        }
    }
}

impl Volume {
    /// Reads an artifact whole, every chunk checked against its crc32c.
    pub fn read(dir: &Path) -> Result<Volume, Error> {
        let key = dir.file_name().and_then(|n| Key::from_hex(n.to_str()?));
        StoredVolume::open_as(dir, key)?.whole()
    }

    /// Writes an OME-Zarr 0.5 group into a draft. `unchanged`: the artifact whose image array (`[c, z, y, x]`) is the same; it is hard-linked, not written.
    pub fn write(&self, draft: &Path, unchanged: Option<&Path>) -> Result<(), Error> {
        self.write_sharing(draft, unchanged, None)
    }

    /// As [`Volume::write`], and `unchanged_labels` is the artifact whose label array (`[z, y, x]`) is the same.
    pub fn write_sharing(&self, draft: &Path, unchanged: Option<&Path>, unchanged_labels: Option<&Path>) -> Result<(), Error> {
        self.check(self.voxels.len())?;
        let outline = Outline::of(self);
        let has_image = !self.channels.is_empty();
        write_head(draft, &outline, has_image)?;
        if has_image {
            let layout = Layout {
                is_time: self.about.repeats.is_some(),
                ..Layout::new(self.voxels.kind(), Some(self.channels.len()), self.geometry.size)
            };
            share_or_write(draft, IMAGE, unchanged, &layout, self.voxels.as_bytes())?;
        }
        match &self.labels {
            Some(labels) => write_labels(draft, &outline, &labels.voxels, unchanged_labels, has_image),
            None => Ok(()),
        }
    }

    /// - `n_voxels`: how many the image has, in memory or written already
    pub(super) fn check(&self, n_voxels: usize) -> Result<(), Error> {
        let g = &self.geometry;
        let refuse = |why: String| Err(Error::Geometry { what: "volume".into(), why });
        let Some(n) = g.size.checked_count().filter(|n| *n > 0) else { return refuse(format!("its size {} holds no voxel", g.size)) };
        if self.channels.is_empty() && self.labels.is_none() {
            return refuse("it has neither channels nor labels".into());
        }
        if n.checked_mul(self.channels.len()) != Some(n_voxels) {
            return refuse(format!("{n_voxels} voxels do not fill {} channels of {}", self.channels.len(), g.size));
        }
        if let Some(l) = self.labels.as_ref().filter(|l| l.voxels.len() != n) {
            return refuse(format!("{} label voxels do not fill {}", l.voxels.len(), g.size));
        }
        if g.is_degenerate() || self.about.source.is_degenerate() {
            return refuse("its axes do not span space".into());
        }
        Ok(())
    }
}

/// The group's `zarr.json`.
/// - `has_image`: array `0` stands beside it
pub(super) fn write_head(draft: &Path, o: &Outline, has_image: bool) -> Result<(), Error> {
    let own = Own::new(o.geometry, o.channels.clone(), o.classes.clone(), o.about.clone());
    // OME-Zarr has no word for a group that holds labels alone: an `ome` without `multiscales` would be neither image nor plate.
    let ome = has_image.then(|| Ome::image(&o.geometry, o.about.repeats.as_ref()));
    array::write_json(&draft.join("zarr.json"), &GroupMeta::new(ome, Some(own)))
}

/// - `labels`: `[z, y, x]`; `unchanged`: the artifact whose label array is the same
pub(super) fn write_labels(draft: &Path, o: &Outline, labels: &[u8], unchanged: Option<&Path>, has_image: bool) -> Result<(), Error> {
    let folder = draft.join("labels/labels");
    fs::create_dir_all(&folder).map_err(Error::io("make folder", &folder))?;
    array::write_json(&draft.join("labels/zarr.json"), &GroupMeta::new(Some(Ome::labels_group()), None))?;
    let classes = o.classes.clone().unwrap_or_default();
    let ome = Ome::labels(&o.geometry, &classes, has_image);
    array::write_json(&folder.join("zarr.json"), &GroupMeta::new(Some(ome), None))?;
    share_or_write(draft, LABELS, unchanged, &Layout::new(Dtype::U8, None, o.geometry.size), labels)
}

fn share_or_write(draft: &Path, name: &'static str, unchanged: Option<&Path>, layout: &Layout, voxels: &[u8]) -> Result<(), Error> {
    let to = draft.join(name);
    // Of a lazy volume there is no array to share.
    let Some(unchanged) = unchanged.filter(|u| u.join(name).is_dir()) else { return array::write(&to, layout, voxels) };
    // Only the same shape and type can be the same array; another is a mistake of the caller that must not end as a broken artifact.
    if ArrayFile::open(unchanged, name).map_err(|f| f.of(unchanged, None))?.layout != *layout {
        return array::write(&to, layout, voxels);
    }
    share(&unchanged.join(name), &to)
}

/// Gives a draft the files of an array.
pub(super) fn share(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir_all(to).map_err(Error::io("make folder", to))?;
    let entries = fs::read_dir(from).and_then(|d| d.collect::<Result<Vec<_>, _>>()).map_err(Error::io("list", from))?;
    entries.iter().try_for_each(|e| link(&e.path(), &to.join(e.file_name())))
}

/// The group's own attributes, sane by themselves.
pub(super) fn read_own(dir: &Path) -> Result<Own, Fault> {
    let meta: GroupMeta = array::read_json(dir, "zarr.json")?;
    let own = meta.attributes.voxmill.ok_or_else(|| Fault::Damaged("zarr.json has no attributes of voxmill".into()))?;
    if own.layout != LAYOUT {
        return Err(Fault::Damaged(format!("zarr.json has layout {}, this program has {LAYOUT}", own.layout)));
    }
    if own.grid.is_degenerate() {
        return Err(Fault::Damaged("zarr.json has axes that do not span space".into()));
    }
    let z = &own.about.z_positions_mm;
    if !z.is_empty() && (z.len() != own.grid.size.z || !z.windows(2).all(|w| w[0] < w[1]) || !z.iter().all(|z| z.is_finite())) {
        return Err(Fault::Damaged(format!(
            "zarr.json has {} positions of slices that do not rise over {} slices",
            z.len(),
            own.grid.size.z
        )));
    }
    Ok(own)
}

/// Opens the labels and checks that they have the shape that the attributes give them.
pub(super) fn open_labels(dir: &Path, own: &Own) -> Result<Option<ArrayFile>, Fault> {
    let labels = own.classes.as_ref().map(|_| ArrayFile::open(dir, LABELS)).transpose()?;
    let size = own.grid.size;
    if let Some(l) = labels.as_ref().map(|a| &a.layout).filter(|l| l.size != size || l.channels.is_some() || l.dtype != Dtype::U8) {
        return Err(Fault::Damaged(format!("the label array has {} {}, zarr.json says uint8 {size}", l.dtype.name(), l.size)));
    }
    Ok(labels)
}
