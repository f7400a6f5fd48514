//! Weights of losses that change over the epochs, such as Kervadec's boundary loss, which comes in while Dice goes out.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Loss;
use crate::stage::Finding;

/// A ramp a loss; the weight of that loss is multiplied by it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ramps {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dice: Option<Ramp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub focal: Option<Ramp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generalised_dice: Option<Ramp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tversky: Option<Ramp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cross_entropy: Option<Ramp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boundary: Option<Ramp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hausdorff: Option<Ramp>,
}

/// A straight line over whole epochs, level before and after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ramp {
    /// Factor in the first epoch.
    pub from: f64,
    /// Factor once the ramp has ended.
    pub to: f64,
    /// How many epochs it takes from one to the other.
    pub epochs: f64,
    /// How many epochs go by before it begins.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub after: f64,
}

impl Ramp {
    /// The factor in `epoch`, counted from 0.
    pub fn at(&self, epoch: u64) -> f64 {
        let way = ((epoch as f64 - self.after) / self.epochs).clamp(0.0, 1.0);
        self.from + (self.to - self.from) * way
    }
}

impl Loss {
    /// The loss of `epoch`, counted from 0, its ramps worked into the weights.
    pub fn at(&self, epoch: u64) -> Loss {
        let r = &self.ramps;
        let weight = |w: f64, ramp: &Option<Ramp>| ramp.as_ref().map_or(w, |ramp| w * ramp.at(epoch));
        Loss {
            dice: weight(self.dice, &r.dice),
            focal: weight(self.focal, &r.focal),
            generalised_dice: weight(self.generalised_dice, &r.generalised_dice),
            tversky: weight(self.tversky, &r.tversky),
            cross_entropy: weight(self.cross_entropy, &r.cross_entropy),
            boundary: weight(self.boundary, &r.boundary),
            hausdorff: weight(self.hausdorff, &r.hausdorff),
            ramps: Ramps::default(),
            ..self.clone()
        }
    }
}

impl Ramps {
    pub(super) fn named(&self) -> [(&'static str, &Option<Ramp>); 7] {
        [
            ("dice", &self.dice),
            ("focal", &self.focal),
            ("generalised_dice", &self.generalised_dice),
            ("tversky", &self.tversky),
            ("cross_entropy", &self.cross_entropy),
            ("boundary", &self.boundary),
            ("hausdorff", &self.hausdorff),
        ]
    }

    /// Ramps that are no ramps, and those of losses without a weight. `weights` are those of the losses by name.
    pub(super) fn findings(&self, weights: &[(&str, f64)]) -> Vec<Finding> {
        let mut out = Vec::new();
        for (name, ramp) in self.named() {
            let Some(ramp) = ramp else { continue };
            let at = format!("loss.ramps.{name}");
            let ok = |v: f64| v >= 0.0 && v.is_finite();
            if !(ok(ramp.from) && ok(ramp.to) && ok(ramp.after) && ramp.epochs > 0.0 && ramp.epochs.is_finite()) {
                let found = format!("from {} to {} over {} epochs after {}", ramp.from, ramp.to, ramp.epochs, ramp.after);
                out.push(Finding::error(&at, found, "give factors of 0 or more and more than 0 epochs"));
            }
            if weights.iter().any(|(n, w)| *n == name && *w == 0.0) {
                out.push(Finding::warning(
                    &at,
                    format!("{name} has no weight to multiply"),
                    format!("give loss.{name} a weight, such as 1"),
                ));
            }
        }
        out
    }
}
