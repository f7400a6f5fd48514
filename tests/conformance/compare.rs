//! Two readings of one volume: the same values at the same places of the patient, whatever the order they are stored in.

use voxmill_schemas::geometry::{Geometry, Lps, Zyx};
use voxmill_stages::nifti::Image;
use voxmill_stages::volume::Voxels;

/// Channel `channel` of the reference against ours; `Err` says what differs.
/// - `allowed`: how far values may be from one another, besides a millionth of the largest for float32
pub fn same(geometry: &Geometry, voxels: &Voxels, reference: &Image, channel: usize, limit_mm: f64, allowed: f32) -> Result<(), String> {
    let (ours, n) = (geometry.size, reference.geometry.size);
    if ours.count() != n.count() {
        return Err(format!("{ours} voxels, the reference has {n}"));
    }
    let start = index_of(&reference.geometry, geometry.to_lps(Zyx::splat(0.0)));
    let step = |axis: Lps| index_of(&reference.geometry, reference.geometry.origin + axis);
    let steps = [step(geometry.axes_mm.z), step(geometry.axes_mm.y), step(geometry.axes_mm.x)];
    let at = |z: usize, y: usize, x: usize| {
        let of = |k: usize| start[k] + steps[0][k] * z as i64 + steps[1][k] * y as i64 + steps[2][k] * x as i64;
        [of(0), of(1), of(2)]
    };
    let mut worst_mm = 0f64;
    for corner in 0..8 {
        let pick = |bit: usize, n: usize| if corner >> bit & 1 == 1 { n - 1 } else { 0 };
        let (z, y, x) = (pick(0, ours.z), pick(1, ours.y), pick(2, ours.x));
        let theirs = reference.geometry.to_lps(Zyx::from_array(at(z, y, x).map(|v| v as f64)));
        worst_mm = worst_mm.max((theirs - geometry.to_lps(Zyx::new(z as f64, y as f64, x as f64))).norm());
    }
    if !(worst_mm <= limit_mm) {
        return Err(format!("a corner is {worst_mm:.5} mm off, allowed {limit_mm}\nours {geometry:?}\nreference {:?}", reference.geometry));
    }
    let (mine, theirs) = (voxels.to_f32(), reference.voxels.to_f32());
    let theirs = &theirs[channel * n.count()..(channel + 1) * n.count()];
    let allowed = allowed + 1e-6 * theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut wrong = 0usize;
    let mut first = None;
    let mut i = 0;
    for z in 0..ours.z {
        for y in 0..ours.y {
            for x in 0..ours.x {
                let [a, b, c] = at(z, y, x);
                let is_inside = [a, b, c].iter().zip(n.to_array()).all(|(v, n)| (0..n as i64).contains(v));
                let value = if is_inside { theirs[(a as usize * n.y + b as usize) * n.x + c as usize] } else { f32::NAN };
                if !((mine[i] - value).abs() <= allowed) {
                    wrong += 1;
                    first.get_or_insert((z, y, x, mine[i], value));
                }
                i += 1;
            }
        }
    }
    match first {
        None => Ok(()),
        Some((z, y, x, a, b)) => {
            Err(format!("{wrong} of {} values differ, the first at [{z}, {y}, {x}]: {a}, reference {b}", ours.count()))
        }
    }
}

/// How far the affine is from that of the reference, on the axes of the reference: the largest difference of an entry, mm.
pub fn affine_off(geometry: &Geometry, reference: &Geometry) -> f64 {
    let ours = [geometry.axes_mm.z, geometry.axes_mm.y, geometry.axes_mm.x];
    let theirs = [reference.axes_mm.z, reference.axes_mm.y, reference.axes_mm.x];
    let last = geometry.size.to_array().map(|n| n as f64 - 1.0);
    let mut origin = geometry.origin;
    let mut worst = 0f64;
    for axis in theirs {
        // The axis of ours that runs along it, turned round where it runs against it.
        let along = |k: &usize| ours[*k].dot(axis).abs() / ours[*k].norm();
        let k = (0..3).max_by(|a, b| along(a).total_cmp(&along(b))).unwrap();
        let sign = ours[k].dot(axis).signum();
        if sign < 0.0 {
            origin = origin + ours[k].scale(last[k]);
        }
        worst = (ours[k].scale(sign) - axis).0.iter().fold(worst, |w, v| w.max(v.abs()));
    }
    (origin - reference.origin).0.iter().fold(worst, |w, v| w.max(v.abs()))
}

fn index_of(g: &Geometry, p: Lps) -> [i64; 3] {
    g.to_index(p).map(|v| v.round() as i64).to_array()
}
