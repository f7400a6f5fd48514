//! What is wrong or doubtful about a loss, before anything is trained with it.

use super::{FocalAlpha, FocalForm, HeadWeights, Loss};
use crate::stage::Finding;

impl Loss {
    /// What is wrong or doubtful for `classes` classes (background included; `None` while they are not known) and `heads` heads (1 without deep
    /// supervision).
    pub fn findings(&self, classes: Option<usize>, heads: usize) -> Vec<Finding> {
        let mut out = Vec::new();
        let weights = [
            ("dice", self.dice),
            ("focal", self.focal),
            ("cross_entropy", self.cross_entropy),
            ("generalised_dice", self.generalised_dice),
            ("tversky", self.tversky),
            ("hausdorff", self.hausdorff),
            ("boundary", self.boundary),
        ];
        for (name, w) in weights {
            if !(w >= 0.0 && w.is_finite()) {
                out.push(Finding::error(&format!("loss.{name}"), format!("its weight is {w}"), "give 0 or more"));
            }
        }
        out.extend(self.ramps.findings(&weights));
        // Both ends of all ramps, and where each begins and ends: between them weights are straight lines and positive.
        let idle = |epoch: u64| {
            let l = self.at(epoch);
            [l.dice, l.focal, l.cross_entropy, l.generalised_dice, l.tversky, l.hausdorff, l.boundary].iter().all(|w| *w == 0.0)
        };
        let ends = self.ramps.named().into_iter().filter_map(|(_, r)| r.as_ref()).flat_map(|r| [r.after, r.after + r.epochs]);
        if weights.iter().all(|(_, w)| *w == 0.0) {
            out.push(Finding::error("loss", "every loss has weight 0", "give one a weight, such as dice: 0.7, focal: 0.3"));
        } else if weights[..5].iter().all(|(_, w)| *w == 0.0) {
            let name = if self.hausdorff > 0.0 { "hausdorff" } else { "boundary" };
            let message = format!("a {name} loss alone does not train: it looks at rims only");
            out.push(Finding::warning(&format!("loss.{name}"), message, "add dice or cross_entropy"));
        } else if let Some(epoch) = [0.0].into_iter().chain(ends).map(|e: f64| e.max(0.0).ceil() as u64).find(|e| idle(*e)) {
            let message = format!("in epoch {} every loss has weight 0: nothing would be learnt", epoch + 1);
            out.push(Finding::error("loss.ramps", message, "let one ramp end above 0 where the other does not"));
        }
        for (name, v) in [("alpha", self.alpha), ("beta", self.beta)] {
            if !(v >= 0.0 && v.is_finite()) || self.alpha + self.beta <= 0.0 {
                let help = "give 0 or more to both and more than 0 to one; ½ and ½ is Dice";
                out.push(Finding::error(&format!("loss.{name}"), format!("{name} is {v}"), help));
            }
        }
        self.lists(classes, &mut out);
        let mut want = |ok: bool, field: &str, v: f64, help: &str| {
            if !ok {
                out.push(Finding::error(&format!("loss.{field}"), format!("{field} is {v}"), help));
            }
        };
        want(self.gamma >= 0.0 && self.gamma.is_finite(), "gamma", self.gamma, "give 0 or more, usually 2");
        want(self.smooth > 0.0 && self.smooth.is_finite(), "smooth", self.smooth, "give a small number above 0, MONAI uses 1e-5");
        let above = self.smooth_above();
        want(above >= 0.0 && above.is_finite(), "smooth_above", above, "give 0 or more");
        want(
            (0.0..1.0).contains(&self.label_smoothing),
            "label_smoothing",
            self.label_smoothing,
            "give 0 or more and less than 1, such as 0.1",
        );
        want(
            self.hausdorff_power > 0.0 && self.hausdorff_power <= 8.0,
            "hausdorff_power",
            self.hausdorff_power,
            "give a number above 0, usually 2",
        );
        if self.focal > 0.0 && self.focal_form == FocalForm::Softmax && !self.include_background && classes.is_none_or(|c| c == 2) {
            let help = "use focal_form: sigmoid or include_background: true";
            out.push(match classes {
                Some(_) => Finding::error(
                    "loss.focal_form",
                    "softmax over the one class that is left without the background is always 1, so this loss is always 0",
                    help,
                ),
                None => Finding::warning("loss.focal_form", "with a single class beside the background this loss is always 0", help),
            });
        }
        if let Some(HeadWeights::List(w)) = &self.head_weights
            && (w.len() != heads || w.iter().any(|v| !(*v >= 0.0 && v.is_finite())) || w.iter().sum::<f64>() <= 0.0)
        {
            out.push(Finding::error(
                "loss.head_weights",
                format!("{w:?} for {heads} head(s)"),
                "give one weight a head, full resolution first (deep_supervision + 1 of them), or a convention: halves, nnunet, monai",
            ));
        }
        out
    }

    /// Lists with a number a class.
    fn lists(&self, classes: Option<usize>, out: &mut Vec<Finding>) {
        let alpha = match &self.focal_alpha {
            Some(FocalAlpha::Each(list)) => Some(list),
            Some(FocalAlpha::Same(a)) => {
                if !(0.0..=1.0).contains(a) {
                    out.push(Finding::error(
                        "loss.focal_alpha",
                        format!("it is {a}"),
                        "give a number from 0 to 1, or a list with one a class",
                    ));
                }
                None
            }
            None => None,
        };
        for (field, list) in [("class_weights", self.class_weights.as_ref()), ("focal_alpha", alpha)] {
            let Some(w) = list else { continue };
            let field = format!("loss.{field}");
            if w.len() < 2 || w.iter().any(|v| !(*v >= 0.0 && v.is_finite())) || w.iter().sum::<f64>() <= 0.0 {
                out.push(Finding::error(
                    &field,
                    format!("the weights are {w:?}"),
                    "give one number of 0 or more a class, background first",
                ));
            } else if let Some(n) = classes.filter(|n| *n != w.len()) {
                let message = format!("{} numbers for {n} classes, background included", w.len());
                out.push(Finding::error(&field, message, "give one number a class, background first"));
            } else if !self.include_background && self.cross_entropy == 0.0 && w[1..].iter().all(|w| *w == 0.0) {
                let message = "only the background has a weight, and it does not count: this loss is always 0";
                out.push(Finding::error(&field, message, "give a class a weight, or include_background: true"));
            }
        }
        let idle = |class: usize| self.class_weight(class) == 0.0;
        if let Some(w) = &self.class_weights {
            for class in (0..w.len()).filter(|c| idle(*c)) {
                let message = format!("class {class} has weight 0: its losses are always 0");
                out.push(Finding::warning("loss.class_weights", message, "give it a weight if it is to be learnt"));
            }
        }
    }
}
