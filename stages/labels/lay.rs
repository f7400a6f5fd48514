//! Labels of a file → the canvas of an image; what could not be drawn, what was resampled and what looks wrong is told.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Canvas, Found, Wanted};
use crate::dicom::place::{Grid, is_reindexed, nearest_voxels};
use crate::dicom::{Fill, rtstruct};
use crate::error::Error;
use crate::nifti::Image;

/// How a NIfTI label lies on an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Align {
    /// By the affine: reindexed where the axes are flipped or permuted, nearest voxel otherwise.
    #[default]
    Affine,
    /// Voxel for voxel.
    Index,
}

/// How labels are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Laying<'a> {
    pub wanted: Wanted<'a>,
    /// Share (0 to 1) from which on a voxel of a fractional SEG belongs to its segment.
    pub threshold: Option<f64>,
    pub fill: Fill,
    pub align: Align,
}

/// What a case's labels were like. Texts name files as the index does.
#[derive(Default)]
pub struct Told {
    pub warnings: Vec<String>,
    /// Cause → contours that were not drawn.
    pub skipped: BTreeMap<String, usize>,
    pub missing: Vec<String>,
    pub is_resampled: bool,
    /// Slices on which a contour lies inside another one of its ROI.
    pub nested_planes: usize,
}

impl Laying<'_> {
    pub fn lay(&self, file: &Found, grid: &Grid, canvas: &mut Canvas, told: &mut Told) -> Result<(), Error> {
        let of_class = || self.wanted.classes.iter().map(|(name, id)| (name, *id, self.wanted.matches(file, name)));
        match file {
            Found::Seg(s) => {
                let class_of: BTreeMap<u16, u8> = of_class()
                    .flat_map(|(_, id, hits)| hits.into_iter().map(move |i| (i, id)))
                    .map(|(i, id)| (s.segments[i].number, id))
                    .collect();
                let placed = s.lay(grid, &class_of, self.threshold, &mut |id, voxel| canvas.put(id, voxel))?;
                told.is_resampled |= !placed.is_exact;
                let mut warn = |n: usize, text: &str| (n > 0).then(|| told.warnings.push(format!("{n} frames of {} {text}", s.file)));
                warn(placed.frames_outside, "lie beside the image and were left out");
                warn(placed.frames_clipped, "stick out of the image");
                warn(placed.wrong_references, "name a source image on another slice than the one they lie on");
                if !placed.is_exact {
                    told.warnings.push(resampled(&s.file));
                }
            }
            Found::RtStruct(r) => {
                for (name, id, hits) in of_class() {
                    for i in hits {
                        let drawn = rtstruct::draw(&r.rois[i], grid, self.fill, &mut |voxel| canvas.put(id, voxel));
                        let mut warn = |n: usize, text: &str| (n > 0).then(|| told.warnings.push(format!("{name}: {n} {text}")));
                        warn(drawn.skipped.values().sum(), "contours were not drawn");
                        warn(drawn.between_slices, "contours lie between slices and were drawn on the nearest");
                        warn(drawn.wrong_references, "contours name an image on another slice than the one they lie on");
                        warn(drawn.crossing_planes, "slices have contours that overlap in part, which no rule fills for certain");
                        told.nested_planes += drawn.nested_planes;
                        for (why, n) in drawn.skipped {
                            *told.skipped.entry(why).or_default() += n;
                        }
                    }
                }
            }
            Found::Nifti { file, image, layers, .. } => self.lay_nifti(file, image, layers, grid, canvas, told)?,
        }
        Ok(())
    }

    /// - `layers`: `[z, y, x]` of a value each
    fn lay_nifti(
        &self,
        file: &str,
        image: &Image,
        layers: &[Vec<u32>],
        grid: &Grid,
        canvas: &mut Canvas,
        told: &mut Told,
    ) -> Result<(), Error> {
        let wrong = |why: String| Err(Error::Nifti { file: file.into(), why });
        let classes = self.wanted.classes;
        let class_of: BTreeMap<u32, u8> = classes.iter().filter_map(|(n, id)| Some((self.wanted.value(n)?, *id))).collect();
        let mut put = |from: usize, voxel: usize| {
            for id in layers.iter().filter_map(|values| class_of.get(&values[from])) {
                canvas.put(*id, voxel);
            }
        };
        match self.align {
            Align::Index if image.geometry.size != grid.geometry.size => {
                return wrong(format!(
                    "found {} voxels, expected {} as the image: align them by affine",
                    image.geometry.size, grid.geometry.size
                ));
            }
            Align::Index => (0..image.geometry.size.count()).for_each(|v| put(v, v)),
            Align::Affine => {
                if !image.is_placed {
                    return wrong("it has neither sform nor qform: set nifti.align to index if its voxels are those of the image".into());
                }
                if !is_reindexed(&image.geometry, &grid.geometry) {
                    told.is_resampled = true;
                    told.warnings.push(resampled(file));
                }
                nearest_voxels(&image.geometry, &grid.geometry).enumerate().filter_map(|(v, f)| Some((f?, v))).for_each(|(f, v)| put(f, v));
            }
        }
        Ok(())
    }
}

fn resampled(file: &str) -> String {
    format!("{file} lies on a grid of its own and was resampled to the nearest voxel")
}

/// A case whose labels all lie elsewhere would train as one without any.
pub fn nothing_laid(chosen: &[&Found], told: &Told) -> Error {
    let files = chosen.iter().map(|f| f.file()).collect::<Vec<_>>().join(", ");
    let skipped = told.skipped.iter().map(|(why, n)| format!("{n} contours: {why}"));
    let mut why: Vec<String> = told.warnings.iter().cloned().chain(skipped).collect();
    if why.is_empty() {
        why.push("they are empty or lie beside the image".into());
    }
    Error::Labels { what: files, why: format!("none of its labels gives a voxel of the image a class ({})", why.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_without_a_labelled_voxel_is_refused_with_the_reason() {
        let found = Found::RtStruct(rtstruct::RtStruct { file: "plan.dcm".into(), rois: Vec::new(), made: String::new() });
        let told = Told { skipped: BTreeMap::from([("outside the image".into(), 3)]), ..Told::default() };
        let e = nothing_laid(&[&found], &told).to_string();
        assert_eq!(e, "plan.dcm: none of its labels gives a voxel of the image a class (3 contours: outside the image)");
    }
}
