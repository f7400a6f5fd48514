//! Labels back to the study that they were made from: DICOM SEG or RTSTRUCT on the original slices.

use std::collections::BTreeMap;

use voxmill_schemas::geometry::Zyx;
use voxmill_schemas::tables::InstanceRow;
use voxmill_schemas::zarr_attrs::color;

use super::ClassCodes;
use crate::dicom::place::{Grid, Slice, on_grid};
use crate::dicom::source::{self, Series};
use crate::dicom::write::Encoding;
use crate::dicom::write_rtstruct::{RoiOut, RtOut};
use crate::dicom::write_seg::{SegOut, SegmentOut};
use crate::dicom::{Holes, write_rtstruct, write_seg};
use crate::error::Error;
use crate::volume::{Labels, Volume};

/// How they are written.
pub struct Back<'a> {
    /// DICOM SEG, or else RTSTRUCT.
    pub is_seg: bool,
    pub is_labelmap: bool,
    pub holes: Holes,
    pub algorithm_name: &'a str,
    pub series_description: &'a str,
    /// Class → what it is.
    pub codes: &'a BTreeMap<String, ClassCodes>,
}

impl Back<'_> {
    /// The file, and what its reader should know.
    /// - `instances`: of the volume
    pub fn file(&self, volume: &Volume, mut labels: Labels, instances: &[InstanceRow]) -> Result<(Vec<u8>, Option<String>), Error> {
        let elsewhere = |why: String| Error::Geometry { what: "labels".into(), why };
        let about = &volume.about;
        if !volume.geometry.same_grid(&about.source, 1e-3) {
            let (found, wanted) = (volume.geometry.size, about.source.size);
            let why = format!(
                "they lie on a grid of {found}, not on the {wanted} of the original slices: export the output of infer, or of annotate before resampling"
            );
            return Err(elsewhere(why));
        }
        if instances.is_empty() {
            return Err(elsewhere("the index has no instance of its series: export with the index that the case came from".into()));
        }
        let series = source::open(instances)?;
        let grid = Grid::standing(&volume.geometry, &about.z_positions_mm);
        let slices = on_grid(&grid, &series.slices, &about.made_slices).map_err(elsewhere)?;
        let mut size = volume.geometry.size;
        let mut warning = None;
        if !about.made_slices.is_empty() {
            let left_out = without(&mut labels.voxels, &mut size, &about.made_slices);
            warning = (left_out > 0)
                .then(|| format!("{left_out} label voxels lie on slices that gaps: fill made and no file holds; they are left out"));
        }
        let bytes = if self.is_seg { self.seg(&series, &slices, size, &labels) } else { self.rtstruct(&series, &slices, size, &labels) };
        Ok((bytes?, warning))
    }

    fn seg(&self, series: &Series, slices: &[&Slice], size: Zyx<usize>, labels: &Labels) -> Result<Vec<u8>, Error> {
        let segment = |(name, id): (&String, &u8)| {
            let codes = self.codes.get(name).cloned().unwrap_or_default();
            SegmentOut { id: *id, label: name.clone(), category: codes.category.into(), kind: codes.kind.into(), rgb: color(*id) }
        };
        let segments: Vec<SegmentOut> = labels.classes.iter().map(segment).collect();
        write_seg::seg(&SegOut {
            series,
            slices,
            size,
            labels: &labels.voxels,
            segments: &segments,
            is_labelmap: self.is_labelmap,
            is_manual: false,
            algorithm_name: self.algorithm_name,
            series_description: self.series_description,
            encoding: Encoding::ExplicitLittle,
        })
    }

    fn rtstruct(&self, series: &Series, slices: &[&Slice], size: Zyx<usize>, labels: &Labels) -> Result<Vec<u8>, Error> {
        let roi = |(name, id): (&String, &u8)| {
            let kind = self.codes.get(name).map(|c| c.kind.clone().into());
            RoiOut { id: *id, name: name.clone(), kind, rgb: color(*id) }
        };
        let rois: Vec<RoiOut> = labels.classes.iter().map(roi).collect();
        write_rtstruct::rtstruct(&RtOut {
            series,
            slices,
            size,
            labels: &labels.voxels,
            rois: &rois,
            holes: self.holes,
            algorithm_name: self.algorithm_name,
            series_description: self.series_description,
        })
    }
}

/// Takes slices out of `[z, y, x]`; how many voxels of them had a label.
fn without(labels: &mut Vec<u8>, size: &mut Zyx<usize>, made: &[usize]) -> usize {
    let n = size.y * size.x;
    let mut left_out = 0;
    let mut kept = Vec::with_capacity(labels.len());
    for (z, plane) in labels.chunks_exact(n.max(1)).enumerate() {
        if made.contains(&z) {
            left_out += plane.iter().filter(|v| **v > 0).count();
        } else {
            kept.extend_from_slice(plane);
        }
    }
    size.z = kept.len() / n.max(1);
    *labels = kept;
    left_out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_that_were_made_are_taken_out() {
        let (mut labels, mut size) = (vec![1, 0, 2, 2, 0, 3], Zyx::new(3, 1, 2));
        assert_eq!(without(&mut labels, &mut size, &[1]), 2);
        assert_eq!((labels, size), (vec![1, 0, 0, 3], Zyx::new(2, 1, 2)));
    }
}
