//! Frames of one series → volumes. A series may hold several (localizer planes, echoes, phases, b-values, time points) and one volume may be spread over
//! several acquisitions: what always separates comes first, what separates only where positions collide after it.

use std::collections::BTreeMap;

use voxmill_schemas::geometry::Lps;

use super::geometry::plane;
use super::header::Header;
use super::order::{SAME_DIRECTION, SAME_POSITION_MM, same_spacing};

/// One frame of a file of the series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Index into the headers.
    pub file: usize,
    pub frame: usize,
}

/// The frames of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Sorted.
    pub members: Vec<Member>,
    /// Why it cannot be one grid although its slices might say so.
    pub refused: Option<String>,
}

/// What always separates two frames.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Hard {
    sop_class: String,
    rows: u32,
    columns: u32,
    samples: u32,
    image_type: Vec<String>,
    frame_of_reference: String,
    echo_time_us: Option<i64>,
    echo_number: Option<i64>,
    b_value_milli: Option<i64>,
}

/// Splits the frames of one series. The order of the headers must not depend on file names.
pub fn split(headers: &[Header]) -> Vec<Group> {
    let mut cells: BTreeMap<Hard, Vec<Member>> = BTreeMap::new();
    let mut groups = Vec::new();
    for (file, h) in headers.iter().enumerate() {
        if h.frames.len() != h.n_frames as usize || ![0, h.n_frames].contains(&h.n_frame_groups) {
            let why = if h.n_frame_groups == 0 {
                format!("{} frames without a position each (a cine loop or projection runs over time, not over depth)", h.n_frames)
            } else {
                format!("{} frames, but functional groups for {}", h.n_frames, h.n_frame_groups)
            };
            groups.push(Group { members: vec![Member { file, frame: 0 }], refused: Some(why) });
            continue;
        }
        for frame in 0..h.frames.len() {
            cells.entry(hard(h, frame)).or_default().push(Member { file, frame });
        }
    }
    for members in cells.into_values() {
        for plane in by_plane(headers, members) {
            groups.extend(by_time(headers, plane));
        }
    }
    for g in &mut groups {
        g.members.sort();
        // Tiles of one picture are slices of a volume, which the plane attributes of the file do not describe.
        if g.members.iter().any(|m| headers[m.file].image_type.iter().any(|t| t == "MOSAIC")) {
            g.refused = Some("a Siemens mosaic holds its slices as tiles of one picture, which is not read yet".into());
        }
    }
    groups.sort_by_key(|g| {
        let first = |m: &Member| (headers[m.file].instance_number, m.file, m.frame);
        g.members.iter().map(first).min()
    });
    groups
}

fn hard(h: &Header, frame: usize) -> Hard {
    let f = &h.frames[frame];
    let image_type = if f.frame_type.is_empty() { &h.image_type } else { &f.frame_type };
    let milli = |v: f64| (v * 1000.0).round() as i64;
    Hard {
        sop_class: h.sop_class.clone(),
        rows: h.rows,
        columns: h.columns,
        samples: h.samples,
        image_type: image_type.iter().take(4).cloned().collect(),
        frame_of_reference: h.frame_of_reference.clone(),
        echo_time_us: f.echo_time_ms.map(milli),
        echo_number: f.echo_number,
        b_value_milli: f.b_value.map(milli),
    }
}

/// Clusters of frames in planes of one orientation and pixel spacing. Frames without geometry stay together.
fn by_plane(headers: &[Header], members: Vec<Member>) -> Vec<Vec<Member>> {
    type Kind = (Option<[f64; 6]>, Option<[f64; 2]>);
    let mut clusters: Vec<(Kind, Vec<Member>)> = Vec::new();
    for m in members {
        let f = &headers[m.file].frames[m.frame];
        let near = |(o, s): &Kind| {
            let same_direction = match (o, &f.orientation) {
                (Some(a), Some(b)) => a.iter().zip(b).all(|(a, b)| (a - b).abs() <= SAME_DIRECTION),
                (a, b) => a.is_none() && b.is_none(),
            };
            let same_pixels = match (*s, f.spacing_mm) {
                (Some(a), Some(b)) => same_spacing(a, b),
                (a, b) => a.is_none() && b.is_none(),
            };
            same_direction && same_pixels
        };
        match clusters.iter_mut().find(|(kind, _)| near(kind)) {
            Some((_, c)) => c.push(m),
            None => clusters.push(((f.orientation, f.spacing_mm), vec![m])),
        }
    }
    clusters.into_iter().map(|(_, c)| c).collect()
}

/// Where positions collide, several volumes lie on one another: separate them by what tells them apart.
fn by_time(headers: &[Header], members: Vec<Member>) -> Vec<Group> {
    let Some(places) = places(headers, &members) else { return vec![Group { members, refused: None }] };
    let most = repeats(&places, &members);
    if most <= 1 {
        return vec![Group { members, refused: None }];
    }
    let parts_by = |key: &dyn Fn(&Member) -> Option<i64>| -> Option<Vec<Vec<Member>>> {
        let mut parts: BTreeMap<Option<i64>, Vec<Member>> = BTreeMap::new();
        members.iter().for_each(|m| parts.entry(key(m)).or_default().push(*m));
        let parts: Vec<_> = parts.into_values().collect();
        (parts.len() > 1 && parts.iter().all(|p| repeats(&places, p) == 1)).then_some(parts)
    };
    let header = |m: &Member| &headers[m.file];
    let frame = |m: &Member| &headers[m.file].frames[m.frame];
    let n_dimensions = members.iter().map(|m| frame(m).dimensions.len()).max().unwrap_or(0);
    let milli = |v: Option<f64>| v.map(|v| (v * 1000.0).round() as i64);
    let stacks: Vec<&Option<String>> =
        members.iter().map(|m| &frame(m).stack).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    // Those that name a volume come first; files as a whole after them (a time series of multi-frame files); clocks last.
    type SortKey<'a> = Box<dyn Fn(&Member) -> Option<i64> + 'a>;
    let mut keys: Vec<SortKey> = vec![
        Box::new(|m| frame(m).temporal_index.or(header(m).temporal_position)),
        Box::new(|m| header(m).acquisition_number),
        Box::new(|m| milli(frame(m).trigger_ms)),
        Box::new(|m| Some(m.file as i64)),
        Box::new(|m| milli(header(m).acquisition_time_s)),
        Box::new(|m| milli(header(m).content_time_s)),
    ];
    for d in 0..n_dimensions {
        keys.push(Box::new(move |m| frame(m).dimensions.get(d).copied()));
    }
    keys.push(Box::new(|m| stacks.iter().position(|s| **s == frame(m).stack).map(|i| i as i64)));
    for key in &keys {
        if let Some(parts) = parts_by(key).filter(|p| p.len() == most) {
            return complete(parts);
        }
    }
    // Two scans of different length over one region: each acquisition is a volume of its own.
    if let Some(parts) = parts_by(&keys[1]).filter(|p| p.iter().all(|p| p.len() >= 3)) {
        return parts.into_iter().map(|members| Group { members, refused: None }).collect();
    }
    // Nothing names the volumes, but every position is there equally often: the n-th repeat belongs to the n-th volume.
    let mut at: BTreeMap<usize, Vec<Member>> = BTreeMap::new();
    members.iter().for_each(|m| at.entry(places[m]).or_default().push(*m));
    if at.values().all(|repeats| repeats.len() == most) {
        let mut parts = vec![Vec::new(); most];
        for repeats in at.values_mut() {
            let seconds = |v: Option<f64>| v.unwrap_or(f64::NEG_INFINITY);
            repeats.sort_by(|a, b| {
                let key =
                    |m: &Member| (frame(m).temporal_index.or(header(m).temporal_position), header(m).instance_number, m.file, m.frame);
                let clock =
                    |m: &Member| [seconds(header(m).acquisition_time_s), seconds(frame(m).trigger_ms), seconds(header(m).content_time_s)];
                let by_clock =
                    || clock(a).iter().zip(&clock(b)).map(|(a, b)| a.total_cmp(b)).find(|o| o.is_ne()).unwrap_or(std::cmp::Ordering::Equal);
                key(a).0.cmp(&key(b).0).then_with(by_clock).then_with(|| key(a).cmp(&key(b)))
            });
            parts.iter_mut().zip(&*repeats).for_each(|(part, m)| part.push(*m));
        }
        return complete(parts);
    }
    let few = at.values().map(Vec::len).min().unwrap_or(0);
    let why = format!("{} slices at {} positions: some positions are there {few} times, others {most} times", members.len(), at.len());
    vec![Group { members, refused: Some(why) }]
}

/// A repeat that lacks positions the others have is not a shorter volume but an incomplete one.
fn complete(parts: Vec<Vec<Member>>) -> Vec<Group> {
    let full = parts.iter().map(Vec::len).max().unwrap_or(0);
    let told = |p: &Vec<Member>| {
        (p.len() < full).then(|| format!("incomplete: {} slices where the other volumes of this series have {full}", p.len()))
    };
    parts.into_iter().map(|members| Group { refused: told(&members), members }).collect()
}

/// Number of the position of each frame along the normal, from the lowest; `None` where a frame has no geometry.
fn places(headers: &[Header], members: &[Member]) -> Option<BTreeMap<Member, usize>> {
    let normal = plane(headers[members.first()?.file].frames[members[0].frame].orientation?).ok()?.normal;
    let mut along = Vec::new();
    for m in members {
        along.push((Lps(headers[m.file].frames[m.frame].position?).dot(normal), *m));
    }
    along.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut out = BTreeMap::new();
    let (mut place, mut last) = (0, along[0].0);
    for (at, m) in along {
        if at - last > SAME_POSITION_MM {
            place += 1;
        }
        last = at;
        out.insert(m, place);
    }
    Some(out)
}

/// How often the most frequent position is there.
fn repeats(places: &BTreeMap<Member, usize>, members: &[Member]) -> usize {
    let mut count: BTreeMap<usize, usize> = BTreeMap::new();
    members.iter().for_each(|m| *count.entry(places[m]).or_default() += 1);
    count.into_values().max().unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dicom::header::FrameHeader;

    fn slice(z: f64, number: i64) -> Header {
        let frame = FrameHeader {
            position: Some([0.0, 0.0, z]),
            orientation: Some([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            spacing_mm: Some([1.0, 1.0]),
            ..FrameHeader::default()
        };
        Header { n_frames: 1, rows: 4, columns: 4, samples: 1, instance_number: Some(number), frames: vec![frame], ..Header::default() }
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
        h.iter_mut().for_each(|h| h.temporal_position = None);
        assert!(split(&h)[0].refused.as_ref().unwrap().contains("others 3 times"));
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
    fn a_cine_loop_is_refused() {
        let mut h = slice(0.0, 1);
        h.n_frames = u32::MAX;
        assert!(split(&[h])[0].refused.as_ref().unwrap().contains("without a position"));
    }
}
