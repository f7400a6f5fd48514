//! Frames of one plane whose positions are there several times → the volumes that lie on one another, each with its reason where it is not whole.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use voxmill_schemas::geometry::Lps;

use super::geometry::plane;
use super::group::{Group, Member};
use super::header::{FrameHeader, Header};
use super::order::{self, Gaps, How, SAME_POSITION_MM, Slice};

/// Tags of dimensions that count places, not volumes: ImagePositionPatient, InStackPositionNumber.
const PLACES: [u32; 2] = [0x0020_0032, 0x0020_9057];
/// More dimensions than any object has.
const MAX_DIMENSIONS: usize = 16;

/// What tells repeats apart, the surest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// All of what a multi-frame object counts besides its positions.
    Dimensions,
    Temporal,
    Acquisition,
    Trigger,
    Stack,
    /// Each multi-frame file, or each concatenation of files.
    Object,
    DimensionsOfObject,
    AcquisitionTime,
    ContentTime,
}

impl By {
    /// Says "volume", where the others only happen to differ from one volume to the next.
    fn is_name(self) -> bool {
        !matches!(self, By::AcquisitionTime | By::ContentTime)
    }
}

const ALL: [By; 9] = [
    By::Dimensions,
    By::Temporal,
    By::Acquisition,
    By::Trigger,
    By::Stack,
    By::Object,
    By::DimensionsOfObject,
    By::AcquisitionTime,
    By::ContentTime,
];

/// One plane of a series with what is asked of each frame again and again.
struct Plane<'a> {
    headers: &'a [Header],
    /// Number of the position of each frame along the normal, from the lowest.
    place: HashMap<Member, usize>,
    n_places: usize,
}

type Key = Vec<Option<i64>>;

/// Separates frames of one plane where their positions collide.
pub fn separate(headers: &[Header], members: Vec<Member>) -> Vec<Group> {
    let parts = by_b_value(headers, members);
    parts.into_iter().flat_map(|members| of_one_contrast(headers, members)).collect()
}

/// Diffusion weights make volumes of their own, unless one of them alone has no positions twice: then each slice has its own (a rounding of the scanner).
fn by_b_value(headers: &[Header], members: Vec<Member>) -> Vec<Vec<Member>> {
    let mut parts: BTreeMap<Option<i64>, Vec<Member>> = BTreeMap::new();
    let milli = |m: &Member| headers[m.file].frames[m.frame].b_value.map(|b| (b * 1000.0).round() as i64);
    members.iter().for_each(|m| parts.entry(milli(m)).or_default().push(*m));
    if parts.len() > 1 && Plane::of(headers, &members).is_some_and(|p| p.most(&members) == 1) {
        return vec![members];
    }
    parts.into_values().collect()
}

fn of_one_contrast(headers: &[Header], members: Vec<Member>) -> Vec<Group> {
    let whole = |members: Vec<Member>| Group { members, ..Group::default() };
    let Some(p) = Plane::of(headers, &members) else { return vec![whole(members)] };
    if p.most(&members) == 1 {
        return p.apart_where_irregular(members);
    }
    if p.are_twins(&members) {
        return vec![whole(members)];
    }
    for by in ALL {
        if !by.is_name() && p.is_minority(&members) {
            // A few positions are there again and nothing says that they are another volume: one picture sent twice, which its pixels will show.
            return vec![whole(members)];
        }
        if let Some(parts) = p.parts(by, &members).filter(|parts| p.are_repeats(parts)) {
            return p.complete(by, parts);
        }
    }
    if p.is_minority(&members) {
        return vec![whole(members)];
    }
    // Two scans of different places that share some of them.
    if let Some(parts) = p.parts(By::Acquisition, &members).filter(|parts| parts.iter().all(|m| m.len() >= 3 && p.most(m) == 1)) {
        return parts.into_iter().map(whole).collect();
    }
    p.by_number(members)
}

impl<'a> Plane<'a> {
    /// `None` where a frame has no geometry.
    fn of(headers: &'a [Header], members: &[Member]) -> Option<Self> {
        let frame = |m: &Member| &headers[m.file].frames[m.frame];
        let normal = plane(frame(members.first()?).orientation?).ok()?.normal;
        let mut along = Vec::with_capacity(members.len());
        for m in members {
            along.push((Lps(frame(m).position?).dot(normal), *m));
        }
        along.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut place = HashMap::with_capacity(members.len());
        let (mut number, mut last) = (0, along[0].0);
        for (at, m) in along {
            if at - last > SAME_POSITION_MM {
                number += 1;
            }
            last = at;
            place.insert(m, number);
        }
        Some(Self { headers, place, n_places: number + 1 })
    }

    fn header(&self, m: &Member) -> &'a Header {
        &self.headers[m.file]
    }

    fn frame(&self, m: &Member) -> &'a FrameHeader {
        &self.headers[m.file].frames[m.frame]
    }

    /// The positions that are there, each with how often. Costs what the members cost, however many positions the plane has.
    fn counts(&self, members: &[Member]) -> Vec<(usize, usize)> {
        let mut places: Vec<usize> = members.iter().map(|m| self.place[m]).collect();
        places.sort_unstable();
        places.chunk_by(|a, b| a == b).map(|same| (same[0], same.len())).collect()
    }

    fn most(&self, members: &[Member]) -> usize {
        self.counts(members).into_iter().map(|(_, n)| n).max().unwrap_or(0)
    }

    /// Frames beyond the first of their position, and positions.
    fn extra(&self, members: &[Member]) -> (usize, usize) {
        let n_positions = self.counts(members).len();
        (members.len() - n_positions, n_positions)
    }

    /// A few positions twice: too few to be a volume.
    fn is_minority(&self, members: &[Member]) -> bool {
        let (extra, positions) = self.extra(members);
        extra > 0 && 2 * extra < positions
    }

    /// Frames of each position that agree in everything that could tell them apart, their number included.
    fn are_twins(&self, members: &[Member]) -> bool {
        let mut of: HashMap<usize, Vec<&Member>> = HashMap::new();
        members.iter().for_each(|m| of.entry(self.place[m]).or_default().push(m));
        let same = |a: &Member, b: &Member| {
            let number = self.header(a).instance_number;
            a.file != b.file && number.is_some() && number == self.header(b).instance_number && self.clock(a) == self.clock(b)
        };
        of.values().all(|m| m.windows(2).all(|w| same(w[0], w[1]) && self.sort_key(w[0]).0 == self.sort_key(w[1]).0))
    }

    fn key(&self, by: By, m: &Member) -> Key {
        let (h, f) = (self.header(m), self.frame(m));
        let milli = |v: Option<f64>| v.map(|v| (v * 1000.0).round() as i64);
        match by {
            By::Dimensions => {
                let counts = |i: &usize| h.dimension_pointers.get(*i).is_none_or(|p| !PLACES.contains(p));
                let n = if h.dimension_pointers.is_empty() { 0 } else { f.dimensions.len().min(MAX_DIMENSIONS) };
                (0..n).filter(counts).map(|i| Some(f.dimensions[i])).collect()
            }
            By::Temporal => vec![f.temporal_index.or(h.temporal_position)],
            By::Acquisition => vec![h.acquisition_number],
            By::Trigger => vec![milli(f.trigger_ms)],
            By::Stack => f.stack.iter().flat_map(|s| s.bytes().take(16).map(|b| Some(b as i64))).collect(),
            By::Object => match &h.concatenation {
                Some(c) => c.uid.bytes().map(|b| Some(b as i64)).collect(),
                None => vec![Some(m.file as i64)],
            },
            By::DimensionsOfObject => [self.key(By::Object, m), self.key(By::Dimensions, m)].concat(),
            By::AcquisitionTime => vec![milli(f.acquired_s.or(h.acquisition_time_s))],
            By::ContentTime => vec![milli(h.content_time_s)],
        }
    }

    /// The frames by one key, `None` where it tells nothing apart.
    fn parts(&self, by: By, members: &[Member]) -> Option<Vec<Vec<Member>>> {
        let mut parts: BTreeMap<Key, Vec<Member>> = BTreeMap::new();
        members.iter().for_each(|m| parts.entry(self.key(by, m)).or_default().push(*m));
        (parts.len() > 1).then(|| parts.into_values().collect())
    }

    /// Whether parts are volumes on one another: in each every position once (but for a picture sent twice), and one position in all of them.
    fn are_repeats(&self, parts: &[Vec<Member>]) -> bool {
        let mut in_parts = vec![0usize; self.n_places];
        parts.iter().all(|part| {
            let counts = self.counts(part);
            counts.iter().for_each(|(place, _)| in_parts[*place] += 1);
            let extra = part.len() - counts.len();
            extra == 0 || 2 * extra < counts.len()
        }) && in_parts.contains(&parts.len())
    }

    /// A repeat that lacks positions the others have is not a shorter volume but an incomplete one; two CT or PET scans may well differ in length.
    fn complete(&self, by: By, parts: Vec<Vec<Member>>) -> Vec<Group> {
        let may_differ =
            by == By::Acquisition && parts.iter().all(|p| p.len() >= 3 && matches!(self.header(&p[0]).modality.as_str(), "CT" | "PT"));
        let n = |p: &[Member]| self.extra(p).1;
        let full = parts.iter().map(|p| n(p)).max().unwrap_or(0);
        let told = |p: &[Member]| {
            let few = n(p);
            (few < full && !may_differ)
                .then(|| format!("incomplete: {} where the other volumes of this series have {full}", order::count(few, "slice")))
        };
        parts.into_iter().map(|members| Group { refused: told(&members), members, ..Group::default() }).collect()
    }

    /// Nothing names the volumes. Where every position is there equally often, the n-th repeat belongs to the n-th volume; else a volume begins where the
    /// positions begin anew, and those that are not whole are refused.
    fn by_number(&self, members: Vec<Member>) -> Vec<Group> {
        let most = self.most(&members);
        let counts: Vec<usize> = self.counts(&members).into_iter().map(|(_, n)| n).collect();
        let mut sorted = members.clone();
        sorted.sort_by(|a, b| self.in_time(a, b));
        if counts.iter().all(|n| *n == most) {
            let mut parts = vec![Vec::with_capacity(counts.len()); most];
            let mut seen = vec![0; self.n_places];
            for m in &sorted {
                let place = self.place[m];
                parts[seen[place]].push(*m);
                seen[place] += 1;
            }
            return self.complete(By::ContentTime, parts);
        }
        if let Some(parts) = self.runs(&sorted) {
            return self.complete(By::ContentTime, parts);
        }
        let few = counts.iter().min().copied().unwrap_or(0);
        let why = format!(
            "{} at {}: some positions are there {}, others {}",
            order::count(members.len(), "slice"),
            order::count(counts.len(), "position"),
            order::count(few, "time"),
            order::count(most, "time")
        );
        vec![Group { members, refused: Some(why), ..Group::default() }]
    }

    /// Cuts frames in order of time where the order of positions begins anew. `None` where no volume shows that order, or where numbers say that a volume
    /// which looks whole was put together from two.
    /// - `sorted`: by time and number
    fn runs(&self, sorted: &[Member]) -> Option<Vec<Vec<Member>>> {
        let n = self.n_places;
        let is_whole = |part: &[Member]| part.len() == n && self.most(part) == 1;
        let pattern =
            [sorted.get(..n), sorted.len().checked_sub(n).map(|from| &sorted[from..])].into_iter().flatten().find(|p| is_whole(p))?;
        let mut rank = vec![0; n];
        pattern.iter().enumerate().for_each(|(i, m)| rank[self.place[m]] = i);
        let mut parts: Vec<Vec<Member>> = Vec::new();
        for m in sorted {
            match parts.last_mut() {
                Some(part) if rank[self.place[part.last().expect("a part begins with a frame")]] < rank[self.place[m]] => part.push(*m),
                _ => parts.push(vec![*m]),
            }
        }
        let is_one_piece = |part: &Vec<Member>| {
            let numbers: Vec<i64> = part.iter().filter_map(|m| self.header(m).instance_number).collect();
            let files = numbers.len() == part.len() && part.iter().all(|m| self.header(m).n_frames == 1);
            !files || numbers.last().zip(numbers.first()).is_some_and(|(b, a)| b.saturating_sub(*a) == n as i64 - 1)
        };
        parts.iter().filter(|p| p.len() == n).all(is_one_piece).then_some(parts)
    }

    fn clock(&self, m: &Member) -> [Option<f64>; 3] {
        let (h, f) = (self.header(m), self.frame(m));
        [f.acquired_s.or(h.acquisition_time_s), f.trigger_ms, h.content_time_s]
    }

    #[allow(clippy::type_complexity)]
    fn sort_key(&self, m: &Member) -> ((Option<i64>, Option<i64>), (Option<i64>, Member)) {
        let (h, f) = (self.header(m), self.frame(m));
        ((f.temporal_index.or(h.temporal_position), h.acquisition_number), (h.instance_number, *m))
    }

    /// Temporal position, then clocks, then numbers.
    fn in_time(&self, a: &Member, b: &Member) -> Ordering {
        in_time((self.sort_key(a).0.0, self.clock(a)), (self.sort_key(b).0.0, self.clock(b)))
            .then_with(|| self.sort_key(a).1.cmp(&self.sort_key(b).1))
    }

    /// Slices that are no regular grid together and one each by acquisition, time point or stack: scans that lie between one another (a table that moved by
    /// a hair, motion that was followed), not one scan with odd gaps.
    fn apart_where_irregular(&self, members: Vec<Member>) -> Vec<Group> {
        let how = How { gaps: Gaps::Refuse, keeps_single: false, takes_unplaced: false };
        let stack = |members: &[Member]| {
            let slices: Vec<Slice> = members.iter().map(|m| Slice::of(self.header(m), m.frame)).collect();
            order::stack(&slices, &how)
        };
        let whole = |members: Vec<Member>| Group { members, ..Group::default() };
        if members.len() < 4 || stack(&members).is_ok() {
            return vec![whole(members)];
        }
        let range = |part: &[Member]| {
            let at = part.iter().map(|m| self.place[m]);
            (at.clone().min().unwrap_or(0), at.max().unwrap_or(0))
        };
        for by in [By::Temporal, By::Dimensions, By::Acquisition, By::Trigger, By::Object, By::Stack] {
            let Some(parts) = self.parts(by, &members).filter(|p| p.iter().all(|p| p.len() >= 2)) else { continue };
            let mut ranges: Vec<(usize, usize)> = parts.iter().map(|p| range(p)).collect();
            ranges.sort();
            let overlap = ranges.windows(2).all(|w| w[1].0 < w[0].1);
            if (overlap || by == By::Stack) && parts.iter().all(|p| stack(p).is_ok()) {
                return parts.into_iter().map(whole).collect();
            }
        }
        vec![whole(members)]
    }
}

fn in_time(a: (Option<i64>, [Option<f64>; 3]), b: (Option<i64>, [Option<f64>; 3])) -> Ordering {
    let seconds = |v: Option<f64>| v.unwrap_or(f64::NEG_INFINITY);
    let clock = || a.1.iter().zip(&b.1).map(|(a, b)| seconds(*a).total_cmp(&seconds(*b))).find(|o| o.is_ne());
    a.0.cmp(&b.0).then_with(|| clock().unwrap_or(Ordering::Equal))
}

/// Numbers repeats of one place in the order of time, and gives each its time where the files tell it.
pub fn put_in_order(headers: &[Header], groups: &mut Vec<Group>) {
    struct When {
        temporal: Option<i64>,
        clock: [Option<f64>; 3],
        number: (Option<i64>, Option<Member>),
    }
    let when = |g: &Group| {
        let earliest = |of: &dyn Fn(&Header, &FrameHeader) -> Option<f64>| {
            g.members.iter().filter_map(|m| of(&headers[m.file], headers[m.file].frames.get(m.frame)?)).reduce(f64::min)
        };
        let clock = [
            earliest(&|h, f| f.acquired_s.or(h.acquisition_time_s)),
            earliest(&|_, f| f.trigger_ms.map(|t| t / 1000.0)),
            earliest(&|h, _| h.content_time_s),
        ];
        let temporal = g
            .members
            .iter()
            .filter_map(|m| headers[m.file].frames.get(m.frame)?.temporal_index.or(headers[m.file].temporal_position))
            .min();
        let number = g.members.iter().map(|m| (headers[m.file].instance_number, Some(*m))).min().unwrap_or_default();
        When { temporal, clock, number }
    };
    let mut timed: Vec<(When, Group)> = std::mem::take(groups).into_iter().map(|g| (when(&g), g)).collect();
    timed.sort_by(|(a, _), (b, _)| in_time((a.temporal, a.clock), (b.temporal, b.clock)).then_with(|| a.number.cmp(&b.number)));
    // The first clock that every repeat has and that moves on is theirs; ContentTime says when a file was made, not when it was measured.
    let moves = |i: &usize| timed.windows(2).all(|w| matches!((w[0].0.clock[*i], w[1].0.clock[*i]), (Some(a), Some(b)) if a < b));
    let clock = [0, 1].into_iter().find(moves).filter(|_| timed.len() > 1);
    let start = clock.and_then(|i| timed[0].0.clock[i]);
    for (repeat, (when, g)) in timed.into_iter().enumerate() {
        // Microseconds: clocks of the day have no more, and their differences no rounding.
        let time_s = clock.and_then(|i| Some(((when.clock[i]? - start?) * 1e6).round() / 1e6));
        groups.push(Group { repeat, time_s, ..g });
    }
}

/// Concatenations of which not every part is there: UID → what is missing.
pub fn missing_parts(headers: &[Header]) -> HashMap<&str, String> {
    let mut parts: BTreeMap<&str, Vec<(i64, &Header)>> = BTreeMap::new();
    for h in headers {
        if let Some(c) = &h.concatenation {
            parts.entry(&c.uid).or_default().push((c.number, h));
        }
    }
    let lacks = |parts: &mut Vec<(i64, &Header)>| -> Option<String> {
        parts.sort_by_key(|(n, _)| *n);
        let of = |h: &Header| h.concatenation.as_ref().map(|c| (c.total, c.offset));
        let total = parts.iter().find_map(|(_, h)| of(h)?.0);
        let named = |n: i64| total.map_or(format!("part {n}"), |t| format!("part {n} of {t}"));
        let mut frames = 0i64;
        for (i, (n, h)) in parts.iter().enumerate() {
            let wanted = i as i64 + 1;
            if *n < wanted {
                return Some(format!("a concatenation of files has {} twice", named(*n)));
            }
            let offset = of(h)?.1.unwrap_or(frames);
            if *n > wanted || offset > frames {
                let frames = if offset > frames { format!(" (frames {} to {offset})", frames + 1) } else { String::new() };
                return Some(format!("{} of a concatenation of files is not in the archive{frames}", named(wanted)));
            }
            frames = frames.saturating_add(h.n_frames as i64);
        }
        let there = parts.len() as i64;
        (total? > there)
            .then(|| format!("{} of a concatenation of files is not in the archive (frames from {} on)", named(there + 1), frames + 1))
    };
    parts.into_iter().filter_map(|(uid, mut parts)| Some((uid, lacks(&mut parts)?))).collect()
}
