//! Joins the channels of several volumes of one examination on one grid, that of the first: T1, T2 and FLAIR, or CT and PET. The others are interpolated onto
//! it by the places that their files tell; nothing is registered.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use voxmill_schemas::artifact::{Kind, Manifest, Port, Scope};
use voxmill_schemas::geometry::Geometry;
use voxmill_schemas::tables::SeriesRow;

use crate::error::Error;
use crate::ops::intensity;
use crate::ops::resample::{Interpolation, Outside, resample_to};
use crate::stage::{Cx, Extent, Facts, Finding, Info, Input, Inputs, Partners, Progress, Rows, Stage, Wiring, default_memory_bytes};
use crate::table;
use crate::table::together::{By, check_frames, check_meeting};
use crate::volume::{Volume, Voxels};

/// Stacks the channels of several volumes on the grid of the first; its labels, its place and its names go on, the labels of the others do not (draw labels
/// after stacking). Where another volume ends, its lowest value stands. Pixel padding becomes the lowest value of its volume.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stack {
    /// What belongs together: `study` (one examination), `patient` (several, which must lie in one frame of reference), or `case` (several ways that one series
    /// took through the pipeline). Each port must give exactly one volume for it: choose with `where` in `assemble`.
    #[serde(default)]
    pub by: By,
    /// Names of all channels, in the order of the ports. Left out: those of the volumes, numbered where one comes twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<Vec<String>>,
    /// How values are found on the grid of the first: `linear`, `nearest` or `cubic` (B-spline of order 3). A volume that lies on it already is copied.
    #[serde(default = "linear")]
    pub interpolation: Interpolation,
    /// Take volumes of different frames of reference (DICOM FrameOfReferenceUID), too: the patient may have moved between them, so only where they were
    /// registered before.
    #[serde(default)]
    pub any_frame: bool,
}

fn linear() -> Interpolation {
    Interpolation::Linear
}

const PORTS: [&str; 6] = ["first", "second", "third", "fourth", "fifth", "sixth"];

impl Stage for Stack {
    const INFO: Info = Info {
        name: "stack",
        version: 3,
        scope: Scope::Case,
        ports: &[
            Port { name: "first", kind: Kind::Volume, required: true, about: "the volume whose grid, labels and place stay" },
            Port { name: "second", kind: Kind::Volume, required: true, about: "the volume whose channels come next" },
            Port { name: "third", kind: Kind::Volume, required: false, about: "and the next" },
            Port { name: "fourth", kind: Kind::Volume, required: false, about: "and the next" },
            Port { name: "fifth", kind: Kind::Volume, required: false, about: "and the next" },
            Port { name: "sixth", kind: Kind::Volume, required: false, about: "and the next" },
            Port { name: "series", kind: Kind::Table, required: true, about: "the index, which knows the frames of reference" },
        ],
        gives: Kind::Volume,
        summary: "join the channels of several volumes of one examination on the grid of the first",
        example: "uses: stack\nfrom: { first: t1, second: t2, third: flair, series: series }\nwith: { channels: [T1, T2, FLAIR] }\n",
        absent_in_inference: None,
    };

    fn check(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        if let Some(names) = &self.channels {
            let twice = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n));
            if let Some((_, name)) = twice {
                out.push(Finding::error("channels", format!("{name} stands there twice"), "a name of its own for each channel"));
            }
            if names.iter().any(|n| n.trim().is_empty()) {
                out.push(Finding::error("channels", "a channel has no name", "a name for each channel, in the order of the ports"));
            }
        }
        if self.any_frame {
            out.push(Finding::warning(
                "any_frame",
                "volumes of different frames of reference are laid over one another",
                "leave it out unless they were registered before: the patient may have moved",
            ));
        }
        out
    }

    fn check_node(&self, node: &Wiring) -> Vec<Finding> {
        if self.by == By::Case { node.idle(&["any_frame"], "where all volumes are of one case", "leave it out") } else { Vec::new() }
    }

    fn partners(&self) -> Partners {
        self.by.partners()
    }

    fn rows_of(&self, _port: &str, table: &Rows, of: &Manifest) -> Result<Option<Rows>, Error> {
        self.by.series_of(table, of).map(Some)
    }

    fn run(&self, inputs: &Inputs, cx: &Cx) -> Result<Facts, Error> {
        let ports: Vec<(&str, &Input)> = PORTS
            .iter()
            .filter(|port| inputs.0.contains_key(**port))
            .map(|port| Ok((*port, self.by.only(port, inputs.all(port))?)))
            .collect::<Result<_, Error>>()?;
        let series: Vec<SeriesRow> = table::rows_of(&inputs.one("series").rows.clone().unwrap_or_default())?;
        let first = Volume::read(&ports[0].1.dir)?;
        cx.check_size(first.geometry.size, ports.iter().map(|(_, i)| n_channels(i)).sum())?;
        let mut stacked = Stacked::new(first)?;
        for (port, input) in &ports[1..] {
            cx.check_cancelled()?;
            let v = Volume::read(&input.dir)?;
            if !self.any_frame {
                check_frames(&series, (ports[0].0, &stacked.volume.about), (port, &v.about))?;
            }
            if v.labels.is_some() {
                (cx.progress)(Progress::Warn(format!("labels at port {port} are left out: only those of the first volume stay")));
            }
            stacked.add(port, v, self.interpolation)?;
        }
        ports.iter().for_each(|(_, i)| cx.bytes(i.manifest.bytes));
        let mut v = stacked.volume;
        v.channels = self.names(v.channels)?;
        let lead = Some(ports[0].1.dir.as_path());
        v.write_sharing(cx.draft, None, lead)?;
        Ok(v.facts())
    }

    /// The stack as float32 and a copy of it on the way to the disk, and the largest of those that come in, twice.
    fn memory_bytes(&self, inputs: &Inputs) -> u64 {
        let one = |i: &Input| Extent::of(&Inputs([("one".to_string(), vec![i.clone()])].into()), "one");
        let Some(grid) = inputs.maybe("first").and_then(one) else { return default_memory_bytes(inputs) };
        let all: Vec<&Input> = PORTS.iter().filter_map(|p| inputs.maybe(p)).collect();
        let largest = all.iter().filter_map(|i| one(i)).map(|e| e.bytes.saturating_add(8 * e.voxels)).max().unwrap_or(0);
        let n: usize = all.iter().map(|i| n_channels(i)).sum();
        (grid.size.count() as u64).saturating_mul(8 * n as u64).saturating_add(largest).saturating_add(grid.label_bytes)
    }
}

fn n_channels(i: &Input) -> usize {
    i.manifest.facts.get("channels").and_then(|v| v.as_array()).map_or(1, Vec::len)
}

impl Stack {
    fn names(&self, own: Vec<String>) -> Result<Vec<String>, Error> {
        match &self.channels {
            Some(names) if names.len() == own.len() => Ok(names.clone()),
            Some(names) => Err(Error::Input {
                what: "`channels`".into(),
                found: format!("{} names", names.len()),
                expected: format!("{}, one for each of {}", own.len(), own.join(", ")),
            }),
            None => Ok(numbered(own)),
        }
    }
}

/// Each name once: the second `MR` becomes `MR 2`.
fn numbered(names: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for name in names {
        let mut n = 1;
        let mut new = name.clone();
        while out.contains(&new) {
            n += 1;
            new = format!("{name} {n}");
        }
        out.push(new);
    }
    out
}

/// The first volume, growing.
struct Stacked {
    volume: Volume,
}

impl Stacked {
    fn new(first: Volume) -> Result<Self, Error> {
        let mut volume = checked("first", first)?;
        if let Some(values) = without_padding(&volume) {
            volume.voxels = Voxels::F32(values);
        }
        volume.about.padding = None;
        Ok(Self { volume })
    }

    fn add(&mut self, port: &str, v: Volume, how: Interpolation) -> Result<(), Error> {
        let v = checked(port, v)?;
        let lead = &mut self.volume;
        let n = lead.geometry.size.count();
        let clean = without_padding(&v).map(Voxels::F32);
        let voxels = clean.unwrap_or(v.voxels);
        let voxels = if v.geometry.same_grid(&lead.geometry, 1e-3) {
            voxels
        } else {
            Voxels::F32(laid(&voxels.to_f32(), &v.geometry, &lead.geometry, how, port)?)
        };
        debug_assert_eq!(voxels.len(), n * v.channels.len());
        lead.voxels = joined(std::mem::replace(&mut lead.voxels, Voxels::U8(Vec::new())), voxels);
        lead.channels.extend(v.channels);
        if lead.about.unit != v.about.unit {
            lead.about.unit = "mixed".into();
        }
        Ok(())
    }
}

/// What can be stacked: channels on a regular grid, at one time.
fn checked(port: &str, v: Volume) -> Result<Volume, Error> {
    v.check_regular()?;
    let refuse =
        |found: &str, expected: &str| Error::Input { what: format!("port {port}"), found: found.into(), expected: expected.into() };
    if v.channels.is_empty() {
        return Err(refuse("labels without an image", "a volume with channels"));
    }
    if v.about.repeats.is_some() {
        return Err(refuse("a stack of repeats (time points, b-values)", "one volume of one time"));
    }
    if let Some(why) = &v.about.unknown_geometry {
        return Err(refuse(&format!("a volume of unknown place ({why})"), "one whose files tell where it lies"));
    }
    Ok(v)
}

/// The values with padding at the lowest of what is tissue; `None` where nothing is padding.
fn without_padding(v: &Volume) -> Option<Vec<f32>> {
    let [low, high] = v.about.padding?;
    let is_padding = |x: f32| (low..=high).contains(&(x as f64));
    let mut values = v.voxels.to_f32().into_owned();
    if !values.iter().any(|x| is_padding(*x)) {
        return None;
    }
    let lowest = values.iter().copied().filter(|x| x.is_finite() && !is_padding(*x)).reduce(f32::min).unwrap_or(0.0);
    values.iter_mut().filter(|x| is_padding(**x)).for_each(|x| *x = lowest);
    Some(values)
}

/// `[c, z, y, x]` on another grid; beyond its own stands the lowest value of each channel.
fn laid(values: &[f32], from: &Geometry, to: &Geometry, how: Interpolation, port: &str) -> Result<Vec<f32>, Error> {
    check_meeting(("first", to), (port, from))?;
    let mut out = Vec::new();
    for channel in values.chunks_exact(from.size.count().max(1)) {
        let lowest = intensity::range(channel).map_or(0.0, |(low, _)| low);
        out.extend(resample_to(channel, from, to, how, Outside::Value(lowest)));
    }
    Ok(out)
}

/// One array after the other: of their type where they share it, else float32.
fn joined(a: Voxels, b: Voxels) -> Voxels {
    match (a, b) {
        (Voxels::U8(mut a), Voxels::U8(b)) => {
            a.extend(b);
            Voxels::U8(a)
        }
        (Voxels::I16(mut a), Voxels::I16(b)) => {
            a.extend(b);
            Voxels::I16(a)
        }
        (Voxels::U16(mut a), Voxels::U16(b)) => {
            a.extend(b);
            Voxels::U16(a)
        }
        (Voxels::F16(mut a), Voxels::F16(b)) => {
            a.extend(b);
            Voxels::F16(a)
        }
        (a, b) => {
            let mut out = match a.to_f32() {
                Cow::Borrowed(_) => match a {
                    Voxels::F32(x) => x,
                    _ => Vec::new(),
                },
                Cow::Owned(x) => x,
            };
            out.extend_from_slice(&b.to_f32());
            Voxels::F32(out)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use voxmill_schemas::geometry::Zyx;

    use super::*;
    use crate::volume::{About, Labels};

    fn volume(series: &str, geometry: Geometry, voxels: Voxels) -> Volume {
        let about = About { modality: "MR".into(), unit: "stored".into(), series: series.into(), ..About::of(geometry) };
        Volume { geometry, channels: vec!["MR".into()], voxels, labels: None, about }
    }

    fn grid(n: usize, mm: f64) -> Geometry {
        Geometry::axis_aligned(Zyx::new(1, 1, n), Zyx::new(1.0, 1.0, mm))
    }

    #[test]
    fn volumes_of_one_grid_keep_their_type_and_the_labels_of_the_first() {
        let mut first = volume("a", grid(3, 1.0), Voxels::I16(vec![1, 2, 3]));
        first.labels = Some(Labels { classes: [("Liver".to_string(), 1)].into_iter().collect(), voxels: vec![0, 1, 0] });
        let mut s = Stacked::new(first).unwrap();
        s.add("second", volume("b", grid(3, 1.0), Voxels::I16(vec![4, 5, 6])), Interpolation::Linear).unwrap();
        assert_eq!(s.volume.voxels, Voxels::I16(vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(s.volume.labels.unwrap().voxels, [0, 1, 0]);
        assert_eq!(numbered(s.volume.channels), ["MR", "MR 2"]);
    }

    #[test]
    fn another_grid_is_laid_on_the_first_and_its_lowest_value_stands_beyond_it() {
        // The second has voxels at 0 and 2 mm and ends half a voxel (1 mm) beyond: 3 mm; at 4 mm nothing of it is left.
        let mut s = Stacked::new(volume("a", grid(5, 1.0), Voxels::I16(vec![0; 5]))).unwrap();
        s.add("second", volume("b", grid(2, 2.0), Voxels::U16(vec![10, 30])), Interpolation::Linear).unwrap();
        assert_eq!(s.volume.voxels.to_f32()[5..], [10.0, 20.0, 30.0, 30.0, 10.0]);
    }

    #[test]
    fn padding_becomes_the_lowest_of_what_is_tissue() {
        let mut first = volume("a", grid(3, 1.0), Voxels::I16(vec![-2000, -5, 7]));
        first.about.padding = Some([-2000.0, -2000.0]);
        let s = Stacked::new(first).unwrap();
        assert_eq!((s.volume.voxels, s.volume.about.padding), (Voxels::F32(vec![-5.0, -5.0, 7.0]), None));
    }

    #[test]
    fn volumes_of_other_places_frames_or_times_are_refused() {
        let mut far = grid(3, 1.0);
        far.origin.0[0] += 100.0;
        let mut s = Stacked::new(volume("a", grid(3, 1.0), Voxels::I16(vec![0; 3]))).unwrap();
        let e = s.add("second", volume("b", far, Voxels::I16(vec![0; 3])), Interpolation::Linear).unwrap_err().to_string();
        assert!(e.contains("port second") && e.contains("anywhere"), "{e}");
        let row = |series: &str, frame: Option<&str>| SeriesRow {
            series: series.into(),
            frame_of_reference: frame.map(Into::into),
            ..Default::default()
        };
        let (a, b) = (volume("a", grid(3, 1.0), Voxels::I16(vec![0; 3])), volume("b", grid(3, 1.0), Voxels::I16(vec![0; 3])));
        let frames =
            |x: Option<&str>, y: Option<&str>| check_frames(&[row("a", x), row("b", y)], ("first", &a.about), ("second", &b.about));
        assert!(frames(Some("1"), Some("1")).is_ok() && frames(None, None).is_ok());
        assert!(frames(Some("1"), Some("2")).unwrap_err().to_string().contains("any_frame"));
        assert!(frames(Some("1"), None).is_err());
        let mut timed = volume("b", grid(3, 1.0), Voxels::I16(vec![0; 3]));
        timed.about.repeats = Some(Default::default());
        assert!(checked("second", timed).unwrap_err().to_string().contains("repeats"));
    }

    #[test]
    fn a_port_gives_exactly_one_volume_and_names_fit() {
        let stage: Stack = serde_json::from_value(serde_json::json!({ "channels": ["T1", "T2"] })).unwrap();
        assert!(stage.by.only("second", &[]).unwrap_err().to_string().contains("0 volumes of this study"));
        assert_eq!(stage.names(vec!["MR".into(), "MR".into()]).unwrap(), ["T1", "T2"]);
        assert!(stage.names(vec!["MR".into()]).unwrap_err().to_string().contains("2 names"));
        let twice: Stack = serde_json::from_value(serde_json::json!({ "channels": ["T1", "T1"] })).unwrap();
        assert_eq!(twice.check().len(), 1);
    }
}
