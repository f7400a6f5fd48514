//! Where the labels of a volume are of some classes: a mask for another volume on the same grid.

use super::Volume;
use crate::error::Error;

/// `[z, y, x]`: the voxels of these classes, of any class where none is named.
/// - `at_port`: has the labels, on the grid of `own`; else they are those of `own`
pub fn mask(at_port: Option<&Volume>, own: &Volume, names: &[String]) -> Result<Vec<bool>, Error> {
    let (of, whose) = at_port.map_or((own, "the volume"), |m| (m, "the volume at the port `mask`"));
    let refuse = |found: String, expected: &str| Error::Input { what: "mask".into(), found, expected: expected.into() };
    let labels = of.labels.as_ref().ok_or_else(|| refuse(format!("{whose} has no labels"), "labels"))?;
    if !of.geometry.same_grid(&own.geometry, 1e-3) {
        return Err(refuse(format!("a grid of {} voxels", of.geometry.size), "the grid of the volume: resample both alike"));
    }
    let mut wanted = [false; 256];
    if names.is_empty() {
        wanted[1..].fill(true);
    }
    for name in names {
        let known = || labels.classes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let id = labels.classes.get(name).ok_or_else(|| refuse(format!("no class {name}"), &format!("one of {}", known())))?;
        wanted[*id as usize] = true;
    }
    let mask: Vec<bool> = labels.voxels.iter().map(|l| wanted[*l as usize]).collect();
    if !mask.contains(&true) {
        let named = if names.is_empty() { "any class".into() } else { names.join(", ") };
        return Err(refuse(format!("no voxel of {named}"), "a class with voxels"));
    }
    Ok(mask)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::{About, Labels, Voxels};

    fn labelled(labels: Vec<u8>) -> Volume {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 1, labels.len()), Zyx::splat(1.0));
        let classes = [("Brain".to_string(), 1), ("Skull".to_string(), 2)].into_iter().collect();
        let voxels = Voxels::U8(vec![0; labels.len()]);
        Volume {
            geometry,
            channels: vec!["T1".into()],
            voxels,
            labels: Some(Labels { classes, voxels: labels }),
            about: About::of(geometry),
        }
    }

    #[test]
    fn a_mask_is_of_the_classes_named_or_of_any() {
        let (v, brain) = (labelled(vec![0, 1, 1, 2]), ["Brain".to_string()]);
        assert_eq!(mask(None, &v, &brain).unwrap(), [false, true, true, false]);
        assert_eq!(mask(None, &v, &[]).unwrap(), [false, true, true, true]);
        assert_eq!(mask(Some(&labelled(vec![1, 0, 0, 0])), &v, &brain).unwrap(), [true, false, false, false]);
    }

    #[test]
    fn a_mask_of_nothing_known_is_refused() {
        let v = labelled(vec![0, 1, 1, 2]);
        let said = |at: Option<&Volume>, names: &[String]| mask(at, &v, names).unwrap_err().to_string();
        assert!(said(None, &["Liver".into()]).contains("one of Brain, Skull"));
        assert!(said(Some(&labelled(vec![0; 4])), &[]).contains("no voxel of any class"));
        assert!(said(Some(&labelled(vec![1; 3])), &[]).contains("grid"));
        assert!(said(Some(&Volume { labels: None, ..v.clone() }), &[]).contains("has no labels"));
    }
}
