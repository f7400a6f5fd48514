//! A trained model as one folder that needs neither us nor the pipeline: the network as ONNX, a card in JSON, and a short Python script that answers with it as
//! [`super::predict`] does. What a lower precision costs is measured on cases before anything is written.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use voxmill_schemas::region::Region;

use super::card::{Card, WEIGHTS};
use crate::error::Error;
use crate::model::onnx::{Graph, Precision, Ranges, Session};
use crate::model::{Device, Predictor, Window, slide, weights};
use crate::ops::{metrics, regrid};
use crate::sample::cut::{OUTSIDE, Source};
use crate::store::Store;
use crate::table;

pub const ONNX: &str = "model.onnx";
pub const BUNDLE: &str = "bundle.json";
pub const SCRIPT: &str = "predict.py";
/// Goes up when a reader of the older one could not use it.
const FORMAT: u32 = 1;
/// Cases whose values set the ranges of int8.
const CALIBRATED_ON: usize = 8;

/// What stands in `bundle.json` beside the model's own card.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bundle {
    pub format: u32,
    pub precision: Precision,
    pub card: Card,
    pub window: Window,
    /// The nodes between the archive and the network, in the words of the pipeline.
    pub preprocessing: Value,
    /// What the precision costs, by class; empty for fp32. No case is named: a bundle leaves the house.
    pub measured: Vec<Measured>,
}

/// Mean Dice over the cases in which a class stands, to float32's answer and to the file's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub class: String,
    pub cases: usize,
    /// Against the labels of the cases; nothing where no case has the class.
    pub dice_fp32: Option<f64>,
    pub dice: Option<f64>,
    /// Between the two answers.
    pub agreement: Option<f64>,
}

/// A model artifact and how it shall be written.
pub struct Order<'a> {
    pub model: &'a Path,
    pub precision: Precision,
    pub window: Option<Window>,
    pub preprocessing: Value,
    /// Preprocessed as in training, best the ones that validated it. int8 takes its ranges from the first of them.
    pub cases: &'a [Source],
}

/// Writes the three files into `out`, an empty folder. `go_on` is asked before every batch of windows.
pub fn write(o: &Order, store: &Store, out: &Path, go_on: &mut dyn FnMut() -> Result<(), Error>) -> Result<Bundle, Error> {
    let card = Card::read(o.model)?;
    let device = Device::cpu();
    let (file, outputs) = (o.model.join(WEIGHTS), card.n_outputs());
    // Reads and checks the weights as inference does.
    let predictor = Predictor::load(&card.network, card.channels.len(), outputs, &file, &device)?;
    let graph = || Graph::of(&card.network, weights::read(&file, u64::MAX)?, card.channels.len(), outputs);
    let window = o.window.clone().unwrap_or(Window { batch: 2, ..Window::of(card.patch) });
    let mut ranges = Ranges::new();
    if o.precision == Precision::Int8 {
        if o.cases.is_empty() {
            let (found, expected) =
                ("none".into(), "at least one case that the training validated with, to measure the ranges of int8 on".into());
            return Err(Error::Input { what: "validation cases".into(), found, expected });
        }
        let session = Session::new(graph()?, Precision::Fp32, Ranges::new(), &device)?;
        for case in o.cases.iter().take(CALIBRATED_ON) {
            answer(case, &card, &window, store, &mut |images, n| {
                go_on()?;
                session.measure(images, n, window.size, &mut ranges)
            })?;
        }
    }
    // By class: to the truth in float32, to the truth as the file answers, between the two.
    let mut dice: Vec<[Vec<f64>; 3]> = card.classes.iter().map(|_| Default::default()).collect();
    if o.precision != Precision::Fp32 {
        let session = Session::new(graph()?, o.precision, ranges.clone(), &device)?;
        for case in o.cases {
            let full = answer(case, &card, &window, store, &mut |images, n| {
                go_on()?;
                predictor.forward(images, n, window.size)
            })?;
            let less = answer(case, &card, &window, store, &mut |images, n| {
                go_on()?;
                session.forward(images, n, window.size)
            })?;
            let truth = case.volume.labels()?.unwrap_or_default();
            for (all, id) in dice.iter_mut().zip(card.classes.values()) {
                for (all, (a, b)) in all.iter_mut().zip([(&full, &truth), (&less, &truth), (&less, &full)]) {
                    all.extend(metrics::dice(a, b, *id).filter(|_| a.len() == b.len()));
                }
            }
        }
    }
    let mean = |v: &[f64]| (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64);
    let of_class = |(class, [full, less, between]): (&String, &[Vec<f64>; 3])| Measured {
        class: class.clone(),
        cases: between.len(),
        dice_fp32: mean(full),
        dice: mean(less),
        agreement: mean(between),
    };
    let is_less = o.precision != Precision::Fp32 && !o.cases.is_empty();
    let measured = if is_less { card.classes.keys().zip(&dice).map(of_class).collect() } else { Vec::new() };
    let bundle =
        Bundle { format: FORMAT, precision: o.precision, card: card.clone(), window, preprocessing: o.preprocessing.clone(), measured };
    // The file can be told from any other without its folder.
    let metadata = [("voxmill", serde_json::to_string(&bundle).expect("a bundle is plain data"))];
    let save = |name: &str, bytes: &[u8]| table::write_bytes_durably(&out.join(name), bytes);
    save(ONNX, &graph()?.to_onnx(o.precision, &ranges, &metadata)?)?;
    save(BUNDLE, &serde_json::to_vec_pretty(&bundle).expect("a bundle is plain data"))?;
    save(SCRIPT, include_bytes!("predict.py"))?;
    Ok(bundle)
}

/// The class of every voxel of a case on its own grid.
fn answer(
    case: &Source,
    card: &Card,
    window: &Window,
    store: &Store,
    look: &mut dyn FnMut(Vec<f32>, usize) -> Result<Vec<f32>, Error>,
) -> Result<Vec<u8>, Error> {
    let size = case.volume.geometry.size;
    let patch = case.volume.read(Region::whole(size), OUTSIDE, store)?;
    let logits = slide(&patch.voxels, card.channels.len(), size, card.n_outputs(), window, look)?;
    Ok(regrid::argmax(&logits, card.n_outputs()))
}
