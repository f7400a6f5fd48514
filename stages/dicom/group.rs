//! Frames of one series → volumes. A series may hold several (localizer planes, echoes, phases, b-values, time points) and one volume may be spread over
//! several acquisitions: what always separates comes first (here), what separates only where positions collide after it (`repeats`).

use std::collections::{BTreeMap, HashMap};

use super::header::Header;
use super::order::{self, SAME_DIRECTION, Slice, same_spacing};
use super::repeats;

/// One frame of a file of the series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Index into the headers.
    pub file: usize,
    pub frame: usize,
}

/// The frames of one volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Sorted. One alone for a file whose frames have no headers of their own.
    pub members: Vec<Member>,
    /// Why it cannot be one grid although its slices might say so.
    pub refused: Option<String>,
    /// A file of many frames without a place each (a loop): its frames follow one another in time.
    pub is_loop: bool,
    /// Number of the volume of this series whose place it shares: volumes of one number are repeats of one place.
    pub repeat_of: usize,
    /// Its place among these repeats, from 0: by temporal position, then time, then number.
    pub repeat: usize,
    /// When it was acquired: seconds since the first of its repeats.
    pub time_s: Option<f64>,
    pub echo_time_ms: Option<f64>,
    pub b_value: Option<f64>,
}

/// What always separates two frames.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hard<'a> {
    sop_class: &'a str,
    size: [u32; 2],
    samples: u32,
    image_type: &'a [String],
    frame_of_reference: &'a str,
    echo_time_us: Option<i64>,
    echo_number: Option<i64>,
    /// Files of which each is an image of its own (projections, screen shots).
    alone: Option<usize>,
}

/// Splits the frames of one series. The order of the headers must not depend on file names.
pub fn split(headers: &[Header]) -> Vec<Group> {
    let mut cells: BTreeMap<Hard, Vec<Member>> = BTreeMap::new();
    let mut families: Vec<Vec<Group>> = Vec::new();
    for (file, h) in headers.iter().enumerate() {
        if !h.has_frame_headers() {
            let (refused, is_loop) = match h.n_frame_groups {
                0 => (None, true),
                n => (Some(format!("{} frames, but functional groups for {n}", h.n_frames)), false),
            };
            families.push(vec![Group { members: vec![Member { file, frame: 0 }], refused, is_loop, ..Group::default() }]);
            continue;
        }
        for frame in 0..h.frames.len() {
            cells.entry(hard(h, file, frame)).or_default().push(Member { file, frame });
        }
    }
    for members in cells.into_values() {
        families.extend(by_plane(headers, members).into_iter().flat_map(|plane| by_place(headers, repeats::separate(headers, plane))));
    }
    let incomplete = repeats::missing_parts(headers);
    let mut groups = Vec::new();
    for (family, mut repeated) in families.into_iter().enumerate() {
        repeats::put_in_order(headers, &mut repeated);
        for g in repeated {
            groups.push(told(headers, &incomplete, Group { repeat_of: family, ..g }));
        }
    }
    // Repeats of one place stand together, in the order of time; places by the lowest number in them.
    type First = Option<(Option<i64>, usize, usize)>;
    let first = |m: &Member| (headers[m.file].instance_number, m.file, m.frame);
    let mut first_in: HashMap<usize, First> = HashMap::new();
    for g in &groups {
        let here = g.members.iter().map(first).min();
        let lowest = first_in.entry(g.repeat_of).or_insert(here);
        *lowest = (*lowest).min(here);
    }
    groups.sort_by_key(|g| (first_in[&g.repeat_of], g.repeat_of, g.repeat));
    // Until here a family has a number of its own, from now on that of its first volume.
    let mut first_of: HashMap<usize, usize> = HashMap::new();
    for (i, g) in groups.iter_mut().enumerate() {
        g.repeat_of = *first_of.entry(g.repeat_of).or_insert(i);
    }
    groups
}

/// What the headers say of a group, and what refuses it whatever its slices say.
fn told(headers: &[Header], incomplete: &HashMap<&str, String>, mut g: Group) -> Group {
    g.members.sort();
    let first = g.members[0];
    let frame = headers[first.file].frames.get(first.frame);
    g.echo_time_ms = frame.and_then(|f| f.echo_time_ms);
    g.b_value = frame.and_then(|f| f.b_value);
    let of_file = |m: &Member| {
        let h = &headers[m.file];
        let part = h.concatenation.as_ref().and_then(|c| incomplete.get(c.uid.as_str()));
        part.or(h.mosaic.as_ref().and_then(|m| m.as_ref().err())).or(h.refused.as_ref()).cloned()
    };
    g.refused = g.refused.or_else(|| g.members.iter().find_map(of_file));
    g
}

fn hard(h: &Header, file: usize, frame: usize) -> Hard<'_> {
    let f = &h.frames[frame];
    let image_type = if f.frame_type.is_empty() { &h.image_type } else { &f.frame_type };
    let micro = |v: f64| (v * 1000.0).round() as i64;
    // Slices of a scanner belong together even where their places are lost; two projections or screen shots never do.
    let is_slice = f.position.is_some() || matches!(h.modality.as_str(), "CT" | "MR" | "PT") && !h.sop_class.starts_with(SECONDARY_CAPTURE);
    Hard {
        sop_class: &h.sop_class,
        size: h.slice_size(),
        samples: h.samples,
        image_type: &image_type[..image_type.len().min(4)],
        frame_of_reference: &h.frame_of_reference,
        echo_time_us: f.echo_time_ms.map(micro),
        echo_number: f.echo_number,
        alone: (!is_slice).then_some(file),
    }
}

const SECONDARY_CAPTURE: &str = "1.2.840.10008.5.1.4.1.1.7";

/// Clusters of frames in planes of one orientation and pixel spacing. Frames without geometry stay together.
fn by_plane(headers: &[Header], members: Vec<Member>) -> Vec<Vec<Member>> {
    type Kind = (Option<[f64; 6]>, Option<[f64; 2]>);
    let near = |(o, s): &Kind, (p, t): &Kind| {
        let same_direction = match (o, p) {
            (Some(a), Some(b)) => a.iter().zip(b).all(|(a, b)| (a - b).abs() <= SAME_DIRECTION),
            (a, b) => a.is_none() && b.is_none(),
        };
        let same_pixels = match (*s, *t) {
            (Some(a), Some(b)) => same_spacing(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        same_direction && same_pixels
    };
    // Clusters by the cell in which three of their cosines lie: whatever is near lies in the same cell or one beside it.
    let cell = |k: &Kind| k.0.map(|o| [o[0], o[1], o[3]].map(|v| (v / (2.0 * SAME_DIRECTION)).floor().clamp(-1e9, 1e9) as i64));
    let bits = |k: &Kind| (k.0.map(|o| o.map(f64::to_bits)), k.1.map(|s| s.map(f64::to_bits)));
    let mut clusters: Vec<(Kind, Vec<Member>)> = Vec::new();
    let mut in_cell: HashMap<Option<[i64; 3]>, Vec<usize>> = HashMap::new();
    let mut known = HashMap::new();
    for m in members {
        let f = &headers[m.file].frames[m.frame];
        let kind = (f.orientation, f.spacing_mm);
        let at = *known.entry(bits(&kind)).or_insert_with(|| {
            let home = cell(&kind);
            let around: Vec<Option<[i64; 3]>> = match home {
                None => vec![None],
                Some([a, b, c]) => (0..27).map(|i| Some([a + i % 3 - 1, b + i / 3 % 3 - 1, c + i / 9 - 1])).collect(),
            };
            let there = around.iter().filter_map(|c| in_cell.get(c)).flatten().copied();
            there.filter(|i| near(&clusters[*i].0, &kind)).min().unwrap_or_else(|| {
                clusters.push((kind, Vec::new()));
                in_cell.entry(home).or_default().push(clusters.len() - 1);
                clusters.len() - 1
            })
        });
        clusters[at].1.push(m);
    }
    clusters.into_iter().map(|(_, c)| c).collect()
}

/// Volumes of one plane that lie on one another: as many slices, from the same first to the same last position.
fn by_place(headers: &[Header], groups: Vec<Group>) -> Vec<Vec<Group>> {
    type Ends = (usize, [[f64; 3]; 2]);
    let mut families: Vec<(Option<Ends>, Vec<Group>)> = Vec::new();
    for g in groups {
        let slices: Vec<Slice> = g.members.iter().map(|m| Slice::of(&headers[m.file], m.frame)).collect();
        let ends = order::ends(&slices).filter(|_| g.refused.is_none()).map(|ends| (g.members.len(), ends));
        let is_here = |other: &Option<Ends>| match (other, &ends) {
            (Some((n, a)), Some((m, b))) => n == m && a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| (a - b).abs() <= 0.01),
            _ => false,
        };
        // Most often it is the place of the volume before.
        match families.iter_mut().rev().find(|(e, _)| is_here(e)) {
            Some((_, family)) => family.push(g),
            None => families.push((ends, vec![g])),
        }
    }
    families.into_iter().map(|(_, family)| family).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::header::{Common, FrameHeader};

    fn slice(z: f64, number: i64) -> Header {
        let frame = FrameHeader {
            position: Some([0.0, 0.0, z]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            spacing_mm: Some([1.0, 1.0]),
            ..FrameHeader::default()
        };
        let common = Common { n_frames: 1, rows: 4, columns: 4, samples: 1, ..Common::default() };
        Header { instance_number: Some(number), frames: vec![frame], ..common.into() }
    }

    fn sizes(headers: &[Header]) -> Vec<usize> {
        split(headers).iter().map(|g| g.members.len()).collect()
    }

    #[test]
    fn one_volume_over_two_acquisitions_is_not_split() {
        let mut h: Vec<_> = (0..6).map(|i| slice(i as f64, i)).collect();
        h.iter_mut().enumerate().for_each(|(i, h)| h.acquisition_number = Some(i as i64 / 3));
        assert_eq!(sizes(&h), [6]);
    }

    #[test]
    fn two_acquisitions_of_one_place_are_two_volumes() {
        let mut h: Vec<_> = (0..8).map(|i| slice((i % 4) as f64, i)).collect();
        h.iter_mut().enumerate().for_each(|(i, h)| h.acquisition_number = Some(i as i64 / 4));
        assert_eq!(sizes(&h), [4, 4]);
    }

    #[test]
    fn repeats_without_a_name_follow_the_instance_number() {
        let h: Vec<_> = (0..12).map(|i| slice((i % 4) as f64, i)).collect();
        let groups = split(&h);
        assert_eq!(groups.len(), 3);
        assert_eq!(groups[1].members.iter().map(|m| m.file).collect::<Vec<_>>(), [4, 5, 6, 7]);
    }

    #[test]
    fn an_incomplete_repeat_is_refused_and_the_others_stay() {
        let mut h: Vec<_> = (0..11).map(|i| slice((i % 4) as f64, i)).collect();
        h.iter_mut().enumerate().for_each(|(i, h)| h.temporal_position = Some(i as i64 / 4));
        let groups = split(&h);
        assert_eq!(groups.iter().map(|g| g.refused.is_some()).collect::<Vec<_>>(), [false, false, true]);
        // By their numbers alone: a volume begins where the positions begin anew.
        h.iter_mut().for_each(|h| h.temporal_position = None);
        let groups = split(&h);
        assert_eq!(groups.iter().map(|g| g.refused.is_some()).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(groups[2].refused.as_ref().unwrap(), "incomplete: 3 slices where the other volumes of this series have 4");
        // One is missing in the middle of each of two volumes, and what is left would make a whole one: nothing is guessed.
        let mut h: Vec<_> = (0..15).filter(|i| ![6, 7, 8, 9].contains(i)).map(|i| slice((i % 4) as f64, i)).collect();
        h.iter_mut().for_each(|h| h.instance_number = h.instance_number.map(|n| n + 1));
        assert!(split(&h)[0].refused.as_ref().unwrap().contains("some positions are there 2 times, others 3 times"));
    }

    #[test]
    fn echoes_planes_and_image_types_are_volumes_of_their_own() {
        let mut h: Vec<_> = (0..12).map(|i| slice((i % 3) as f64, i)).collect();
        h[3..6].iter_mut().for_each(|h| h.frames[0].echo_time_ms = Some(4.6));
        h[6..9].iter_mut().for_each(|h| h.image_type = ["ORIGINAL", "PRIMARY", "P"].map(String::from).into());
        h[9..].iter_mut().for_each(|h| h.frames[0].orientation = Some([1.0, 0.0, 0.0, 0.0, 0.0, -1.0]));
        // The coronal slices differ in z only, which is in their plane: three repeats of one position.
        h[9..].iter_mut().enumerate().for_each(|(i, h)| h.frames[0].position = Some([0.0, i as f64, 0.0]));
        assert_eq!(sizes(&h), [3, 3, 3, 3]);
    }

    #[test]
    fn a_loop_is_no_stack() {
        let mut h = slice(0.0, 1);
        h.n_frames = u32::MAX;
        let groups = split(&[h]);
        assert!(groups[0].is_loop && groups[0].members.len() == 1);
    }

    #[test]
    fn one_picture_sent_twice_stays_with_its_volume() {
        let mut h: Vec<_> = (0..8).map(|i| slice(i as f64, i)).collect();
        h.push(slice(3.0, 9));
        assert_eq!(sizes(&h), [9]);
        // The whole series again, numbers and all.
        let twice: Vec<_> = (0..8).chain(0..8).map(|i| slice(i as f64, i)).collect();
        assert_eq!(sizes(&twice), [16]);
    }

    #[test]
    fn repeats_know_their_place_their_order_and_their_time() {
        let mut h: Vec<_> = (0..12).map(|i| slice((i % 4) as f64, i)).collect();
        // Acquired in the other order than numbered, two seconds apart; a plane of its own beside them.
        h.iter_mut().enumerate().for_each(|(i, h)| h.acquisition_time_s = Some(100.0 - 2.0 * (i / 4) as f64));
        h.push(slice(0.0, 20));
        h[12].frames[0].orientation = Some([1.0, 0.0, 0.0, 0.0, 0.0, -1.0]);
        let told: Vec<_> = split(&h).iter().map(|g| (g.repeat_of, g.repeat, g.time_s)).collect();
        assert_eq!(told, [(0, 0, Some(0.0)), (0, 1, Some(2.0)), (0, 2, Some(4.0)), (3, 0, None)]);
        assert_eq!(split(&h)[0].members[0].file, 8);
    }

    #[test]
    fn scans_that_lie_between_one_another_are_apart_and_one_scan_with_odd_gaps_is_not() {
        let mut h: Vec<_> = (0..12).map(|i| slice((i / 2) as f64 + 0.3 * (i % 2) as f64, i)).collect();
        assert_eq!(sizes(&h), [12]);
        h.iter_mut().enumerate().for_each(|(i, h)| h.acquisition_number = Some(i as i64 % 2));
        assert_eq!(sizes(&h), [6, 6]);
        // One after the other, however far apart: acquisitions of one scan.
        let mut h: Vec<_> = (0..12).map(|i| slice(i as f64 * if i < 6 { 1.0 } else { 2.5 }, i)).collect();
        h.iter_mut().enumerate().for_each(|(i, h)| h.acquisition_number = Some(i as i64 / 6));
        assert_eq!(sizes(&h), [12]);
    }

    #[test]
    fn weights_of_diffusion_are_volumes_that_repeat_one_place() {
        let mut h: Vec<_> = (0..12).map(|i| slice((i % 4) as f64, i)).collect();
        h.iter_mut().enumerate().for_each(|(i, h)| h.frames[0].b_value = Some(if i < 4 { 0.0 } else { 1000.0 }));
        let told: Vec<_> = split(&h).iter().map(|g| (g.members.len(), g.repeat_of, g.b_value)).collect();
        assert_eq!(told, [(4, 0, Some(0.0)), (4, 0, Some(1000.0)), (4, 0, Some(1000.0))]);
    }

    #[test]
    fn a_concatenation_is_one_object_and_a_missing_part_is_named() {
        use crate::dicom::header::Concatenation;
        let part = |number: i64| {
            let frames = (0..4).map(|i| slice((number * 4 + i) as f64, 1).frames.remove(0)).collect();
            let concatenation = Some(Concatenation { uid: "1.2".into(), number, total: Some(3), offset: Some((number - 1) * 4) });
            let mut h = Header { frames, ..slice(0.0, number) };
            (h.n_frames, h.concatenation) = (4, concatenation);
            h
        };
        assert_eq!(sizes(&[part(2), part(1), part(3)]), [12]);
        let refused = |parts: &[Header]| split(parts)[0].refused.clone().unwrap();
        assert_eq!(refused(&[part(1), part(3)]), "part 2 of 3 of a concatenation of files is not in the archive (frames 5 to 8)");
        assert_eq!(refused(&[part(1), part(2)]), "part 3 of 3 of a concatenation of files is not in the archive (frames from 9 on)");
    }

    #[test]
    fn projections_are_images_of_their_own_and_slices_without_a_place_are_not() {
        let mut h: Vec<_> = (0..3).map(|i| slice(0.0, i)).collect();
        h.iter_mut().for_each(|h| h.frames[0].position = None);
        h.iter_mut().for_each(|h| h.modality = "CR".into());
        assert_eq!(sizes(&h), [1, 1, 1]);
        h.iter_mut().for_each(|h| h.modality = "CT".into());
        assert_eq!(sizes(&h), [3]);
    }

    #[test]
    fn many_files_are_grouped_in_a_blink() {
        // Time points of a long series; slices that all face elsewhere; slices with a clock each.
        let mut repeats: Vec<_> = (0..10_000).map(|i| slice((i % 20) as f64, i)).collect();
        repeats.iter_mut().for_each(|h| h.content_time_s = h.instance_number.map(|n| n as f64));
        let turned = |i: i64| {
            let (s, c) = (i as f64 * 0.0005).sin_cos();
            let mut h = slice(i as f64, i);
            h.frames[0].orientation = Some([c, s, 0.0, -s, c, 0.0]);
            h
        };
        let radial: Vec<_> = (0..10_000).map(turned).collect();
        let start = std::time::Instant::now();
        assert_eq!(split(&repeats).len(), 500);
        assert!(split(&radial).len() > 1000);
        // Unoptimised and on a busy machine: what is quadratic takes minutes.
        assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
    }
}
