//! Turns a volume so that its indices grow toward chosen directions of the patient. Nothing is interpolated: axes are reversed and exchanged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};

use crate::error::Error;
use crate::ops::orient::{Axcodes, Turn};
use crate::stage::{Cx, Extent, Facts, Finding, Info, Inputs, Stage, default_memory_bytes};
use crate::volume::{Volume, Voxels};

/// Turns a volume and its labels so that the indices of x, y and z grow toward the wanted directions.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Orient {
    /// Three letters: toward where x, y and z grow, in this order. R right, L left, A front, P back, S head, I feet of the patient. A volume turned to `RAS` is
    /// one that nibabel (index order i = x, j = y, k = z) calls ('R', 'A', 'S'), as MONAI's `Orientation(axcodes="RAS")` makes it; `LPS` is DICOM's own order.
    /// Oblique grids get the closest axes and stay oblique.
    pub to: String,
}

impl Orient {
    fn apply(&self, v: Volume) -> Result<Volume, Error> {
        let to = Axcodes::parse(&self.to).ok_or_else(|| Error::Input {
            what: "to".into(),
            found: self.to.clone(),
            expected: EXPECTED.into(),
        })?;
        let turn = Turn::toward(&v.geometry, to)?;
        if turn == Turn::NONE {
            return Ok(v);
        }
        let size = v.geometry.size;
        let voxels = match &v.voxels {
            Voxels::U8(x) => Voxels::U8(turn.apply(x, size)),
            Voxels::I16(x) => Voxels::I16(turn.apply(x, size)),
            Voxels::U16(x) => Voxels::U16(turn.apply(x, size)),
            Voxels::F32(x) => Voxels::F32(turn.apply(x, size)),
        };
        let mut labels = v.labels;
        if let Some(l) = &mut labels {
            l.voxels = turn.apply(&l.voxels, size);
        }
        Ok(Volume { geometry: turn.geometry(&v.geometry), voxels, labels, ..v })
    }
}

const EXPECTED: &str = "three letters, one of each pair R L, A P, S I";

impl Stage for Orient {
    const INFO: Info = Info {
        name: "orient",
        version: 2,
        scope: Scope::Case,
        ports: &[Port { name: "volume", kind: Kind::Volume, required: true, about: "what is turned, labels included" }],
        gives: Kind::Volume,
        summary: "turn a volume so that its axes run in chosen directions of the patient",
        example: "uses: orient\nfrom: masks\nwith: { to: RAS }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        match Axcodes::parse(&self.to) {
            Some(_) => Vec::new(),
            None => vec![Finding::error("to", format!("`{}` names no orientation", self.to), format!("{EXPECTED}: RAS, LPS"))],
        }
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let input = inputs.one("volume");
        let v = Volume::read(&input.dir)?;
        v.check_regular()?;
        cx.bytes(input.manifest.bytes);
        cx.check_cancelled()?;
        let before = v.geometry;
        let v = self.apply(v)?;
        let unchanged = (v.geometry == before).then_some(input.dir.as_path());
        v.write_sharing(cx.draft, unchanged, unchanged)?;
        Ok(v.facts())
    }

    /// The volume twice.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        Extent::of(inputs, "volume").map_or_else(|| default_memory_bytes(inputs), |e| 2 * (e.bytes + e.label_bytes) + e.voxels)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::{About, Labels};

    #[test]
    fn channels_and_labels_turn_together_and_keep_their_type() {
        let geometry = Geometry::axis_aligned(Zyx::new(1, 2, 3), Zyx::new(3.0, 2.0, 1.0));
        let about = About {
            modality: "CT".into(),
            unit: "HU".into(),
            patient: "p".into(),
            study: "s".into(),
            series: "t".into(),
            volume: 0,
            ..About::of(geometry)
        };
        let labels = Labels { classes: [("Bone".to_string(), 1)].into_iter().collect(), voxels: vec![0, 1, 2, 3, 4, 5] };
        let v = Volume { geometry, channels: vec!["CT".into()], voxels: Voxels::I16(vec![0, 1, 2, 3, 4, 5]), labels: Some(labels), about };
        let turned = Orient { to: "RAS".into() }.apply(v.clone()).unwrap();
        assert_eq!(turned.voxels, Voxels::I16(vec![5, 4, 3, 2, 1, 0]), "x and y are reversed");
        assert_eq!(turned.labels.unwrap().voxels, [5, 4, 3, 2, 1, 0]);
        assert_eq!(turned.about.source, geometry, "the grid on which it was assembled is remembered");
        assert_eq!(Orient { to: "LPS".into() }.apply(v.clone()).unwrap(), v);
        assert_eq!(Orient { to: "RAX".into() }.check().len(), 1);
    }
}
