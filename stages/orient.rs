//! Turns a volume so that its indices grow toward chosen directions of the patient. Nothing is interpolated: axes are reversed and exchanged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Port, Scope};

use crate::error::Error;
use crate::ops::orient::{Axcodes, Turn};
use crate::stage::{Cx, Facts, Finding, Info, Inputs, Stage};
use crate::volume::{Outline, Step, StoredVolume, streamed_bytes};

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
    fn steps(&self, of: &Outline) -> Result<Vec<Step>, Error> {
        of.check_regular()?;
        let to = Axcodes::parse(&self.to).ok_or_else(|| Error::Input {
            what: "to".into(),
            found: self.to.clone(),
            expected: EXPECTED.into(),
        })?;
        let turn = Turn::toward(&of.geometry, to)?;
        Ok(if turn == Turn::NONE { Vec::new() } else { vec![Step::Turn(turn)] })
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
        let v = StoredVolume::open(&input.dir, input.manifest.key)?;
        cx.bytes(input.manifest.bytes);
        v.then(self.steps(&v.outline())?, cx)
    }

    fn is_step(&self) -> bool {
        true
    }

    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        streamed_bytes(inputs.one("volume"), |of| self.steps(of))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::{Geometry, Zyx};

    use super::*;
    use crate::volume::{About, Labels, Volume, Voxels, apply};

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
        let turn = |to: &str| apply(v.clone(), Orient { to: to.into() }.steps(&Outline::of(&v)).unwrap()).unwrap();
        let turned = turn("RAS");
        assert_eq!(turned.voxels, Voxels::I16(vec![5, 4, 3, 2, 1, 0]), "x and y are reversed");
        assert_eq!(turned.labels.unwrap().voxels, [5, 4, 3, 2, 1, 0]);
        assert_eq!(turned.about.source, geometry, "the grid on which it was assembled is remembered");
        assert_eq!(turn("LPS"), v);
        assert_eq!(Orient { to: "RAX".into() }.check().len(), 1);
    }
}
