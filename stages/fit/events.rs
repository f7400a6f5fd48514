//! The history of a training as an event file of TensorBoard: TFRecord frames, each a protocol buffer `Event` (tensorflow/core/util/event.proto) that holds
//! scalars. Times are the steps: a file of equal content has equal bytes.

use std::path::Path;

use indexmap::IndexMap;
use voxmill_schemas::tables::{HistoryRow, StepRow};

use crate::error::Error;

/// The file's name inside a model artifact; TensorBoard looks for `tfevents`.
pub const EVENTS: &str = "events.out.tfevents.0.voxmill";

/// The loss of every step; of every epoch loss, learning rate and Dice (mean and of each class).
pub fn write(dir: &Path, steps: &[StepRow], history: &[HistoryRow], classes: &IndexMap<String, u8>) -> Result<(), Error> {
    let mut out = Vec::new();
    frame(&mut out, &event(0, |e| text(e, 3, "brain.Event:2")));
    let mut steps = steps.iter().peekable();
    for row in history {
        while let Some(step) = steps.next_if(|s| s.step <= row.step) {
            frame(&mut out, &scalars(step.step as u64, &[("loss/step".to_string(), step.loss)]));
        }
        let mut told = vec![("loss/train".to_string(), row.loss), ("learning_rate".to_string(), row.lr)];
        told.extend(row.val_dice.map(|d| ("dice/mean".to_string(), d)));
        let of_classes = classes.keys().zip(&row.class_dice).filter(|(_, d)| !d.is_nan());
        told.extend(of_classes.map(|(name, d)| (format!("dice/{name}"), *d)));
        frame(&mut out, &scalars(row.step as u64, &told));
    }
    let path = dir.join(EVENTS);
    std::fs::write(&path, out).map_err(Error::io("write", &path))
}

/// An event with a summary of some values.
fn scalars(step: u64, told: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in told {
        let mut v = Vec::new();
        text(&mut v, 1, tag);
        // simple_value = 2, a float
        v.push((2 << 3) | 5);
        v.extend((*value as f32).to_le_bytes());
        bytes(&mut summary, 1, &v);
    }
    event(step, |e| bytes(e, 5, &summary))
}

/// wall_time = 1 (double), step = 2 (varint), both left out where they are 0, and what `rest` adds.
fn event(step: u64, rest: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    if step > 0 {
        out.push((1 << 3) | 1);
        out.extend((step as f64).to_le_bytes());
        out.push(2 << 3);
        varint(&mut out, step);
    }
    rest(&mut out);
    out
}

fn text(out: &mut Vec<u8>, field: u8, value: &str) {
    bytes(out, field, value.as_bytes());
}

/// A field of given length.
fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push((field << 3) | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A TFRecord: length, its checksum, data, its checksum.
fn frame(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.extend(length);
    out.extend(masked(&length));
    out.extend_from_slice(data);
    out.extend(masked(data));
}

/// The checksum of TFRecord: crc32c, turned and moved so that checksums of data with checksums in it stay good ones.
fn masked(data: &[u8]) -> [u8; 4] {
    let crc = crc32c::crc32c(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_that_tensorboard_reads() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            HistoryRow { epoch: 1, step: 3, lr: 0.5, loss: 1.5, val_dice: None, class_dice: vec![] },
            HistoryRow { epoch: 2, step: 300, lr: 0.25, loss: 0.75, val_dice: Some(0.5), class_dice: vec![0.5, f64::NAN] },
        ];
        let classes = IndexMap::from([("Ball".to_string(), 1), ("Box".to_string(), 2)]);
        write(dir.path(), &[], &rows, &classes).unwrap();
        let file = std::fs::read(dir.path().join(EVENTS)).unwrap();
        let hex: String = file.iter().map(|b| format!("{b:02x}")).collect();
        // What TensorBoard's own RecordWriter and Event make of the same values.
        let want = concat!(
            "0f000000000000006d532b091a0d627261696e2e4576656e743a32fc98512936000000000000004f578cef09000000000000084010032a290a110a0a",
            "6c6f73732f747261696e150000c03f0a140a0d6c6561726e696e675f72617465150000003ff63874e15b000000000000001b01028a090000000000c0",
            "724010ac022a4d0a110a0a6c6f73732f747261696e150000403f0a140a0d6c6561726e696e675f72617465150000803e0a100a09646963652f6d6561",
            "6e150000003f0a100a09646963652f42616c6c150000003f093e7796",
        );
        assert_eq!(hex, want);
    }

    #[test]
    fn every_step_stands_before_the_epoch_that_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let steps: Vec<StepRow> = (1..=4).map(|step| StepRow { epoch: (step + 1) / 2, step, lr: 0.1, loss: step as f64 }).collect();
        let row = |epoch: i64| HistoryRow { epoch, step: 2 * epoch, ..HistoryRow::default() };
        write(dir.path(), &steps, &[row(1), row(2)], &IndexMap::new()).unwrap();
        let file = std::fs::read(dir.path().join(EVENTS)).unwrap();
        let (mut at, mut tags) = (0, Vec::new());
        while at < file.len() {
            let length = u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
            let data = String::from_utf8_lossy(&file[at + 12..at + 12 + length]).into_owned();
            tags.push(["Event", "loss/step", "loss/train"].into_iter().find(|t| data.contains(t)).unwrap());
            at += 16 + length;
        }
        assert_eq!(tags, ["Event", "loss/step", "loss/step", "loss/train", "loss/step", "loss/step", "loss/train"]);
    }
}
