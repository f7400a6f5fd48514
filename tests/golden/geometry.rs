//! Geometry, intensity and metrics against MONAI. MONAI's arrays are `[channel, i, j, k]` with a RAS affine from (i, j, k), as nibabel has it: i is our x, k our z,
//! so arrays are transposed on the way in and out and affines are those of `Geometry::affine_ras_xyz`.

use serde_json::Value;
use voxmill_schemas::geometry::{Geometry, Zyx};
use voxmill_schemas::region::Region;
use voxmill_stages::ops::crop::{Fill, bounding_box, centered, cut, grow};
use voxmill_stages::ops::orient::{Axcodes, Turn};
use voxmill_stages::ops::resample::{Interpolation, Outside, resample_to, sample};
use voxmill_stages::ops::respace::respaced;
use voxmill_stages::ops::{intensity, matrix, metrics, smooth, tone};

use crate::read::{Tensor, cases, cases_if_any, tensors, worst};

const LIMIT: f64 = 1e-5;

/// What stands beyond the edge, in the words of torch or scipy.
fn outside(case: &Value) -> Outside {
    match case["padding"].as_str().unwrap_or("border") {
        "border" | "nearest" => Outside::Edge,
        "zeros" => Outside::Fade,
        "reflection" => Outside::Reflect,
        other => panic!("{case}: no padding {other}"),
    }
}

fn flag(case: &Value, key: &str) -> bool {
    case[key].as_bool().unwrap_or(false)
}

fn name(case: &Value) -> &str {
    case["case"].as_str().expect("a case has a name")
}

fn number(v: &Value) -> f64 {
    v.as_f64().unwrap_or_else(|| panic!("{v} is a number"))
}

/// A list, or one number for every axis.
fn triple(v: &Value) -> [f64; 3] {
    match v.as_array() {
        Some(list) => std::array::from_fn(|a| number(list.get(a).unwrap_or_else(|| list.last().expect("a value an axis")))),
        None => [number(v); 3],
    }
}

/// MONAI's (i, j, k) in our order.
fn zyx<T: Copy>([i, j, k]: [T; 3]) -> Zyx<T> {
    Zyx::new(k, j, i)
}

fn size(t: &Tensor) -> Zyx<usize> {
    zyx([t.shape[1], t.shape[2], t.shape[3]])
}

/// `[c, i, j, k]` → `[c, z, y, x]`; the same turn leads back.
fn transposed<T: Copy>(values: &[T], from: [usize; 3]) -> Vec<T> {
    let [a, b, c] = from;
    let channels = values.len() / (a * b * c);
    let mut out = Vec::with_capacity(values.len());
    for ch in 0..channels {
        for k in 0..c {
            for j in 0..b {
                out.extend((0..a).map(|i| values[((ch * a + i) * b + j) * c + k]));
            }
        }
    }
    out
}

fn volume(t: &Tensor) -> Vec<f32> {
    transposed(&t.f32(), [t.shape[1], t.shape[2], t.shape[3]])
}

fn geometry(t: &Tensor, affine: &Tensor) -> Geometry {
    Geometry::from_affine_ras_xyz(size(t), std::array::from_fn(|r| std::array::from_fn(|c| affine.values[r * 4 + c])))
}

fn assert_same(case: &str, got: &[f32], wanted: &Tensor, limit: f64) {
    let n = size(wanted);
    let difference = worst(&transposed(got, [n.z, n.y, n.x]), &wanted.values);
    assert!(difference <= limit, "{case}: differs by {difference:e}, allowed {limit:e}");
}

/// As [`assert_same`], against the largest value of the result: formulas that MONAI runs in float32 carry its rounding, about 6e-8 of that value, everywhere.
fn assert_close(case: &str, got: &[f32], wanted: &Tensor) {
    let scale = wanted.values.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    let difference = got.iter().zip(&wanted.values).map(|(a, b)| (*a as f64 - b).abs()).fold(0.0, f64::max);
    assert!(difference <= LIMIT * scale && got.len() == wanted.values.len(), "{case}: differs by {difference:e} of values up to {scale}");
}

fn assert_same_grid(case: &str, got: &Geometry, out: &Tensor, affine: &Tensor) {
    let wanted = geometry(out, affine);
    assert_eq!(got.size, wanted.size, "{case}: size");
    let difference = worst(
        &got.affine_ras_xyz().concat().iter().map(|v| *v as f32).collect::<Vec<_>>(),
        &affine.values.iter().map(|v| *v as f32 as f64).collect::<Vec<_>>(),
    );
    assert!(difference <= LIMIT, "{case}: {got:?} is not {wanted:?}");
}

/// Half-way between two voxels of a turned grid the last bits of MONAI's matrices decide; everywhere else the closest voxel is one and the same.
fn assert_same_outside_ties(case: &str, got: &[f32], wanted: &Tensor, from: &Geometry, to: &Geometry) {
    let wanted = volume(wanted);
    for (i, (a, b)) in got.iter().zip(&wanted).enumerate() {
        let i = i % to.size.count();
        let at = Zyx::new(i / (to.size.y * to.size.x), i / to.size.x % to.size.y, i % to.size.x).map(|v| v as f64);
        let is_tie = from.to_index(to.to_lps(at)).to_array().iter().any(|p| (p.rem_euclid(1.0) - 0.5).abs() < 1e-6);
        assert!(a == b || is_tie, "{case}: {a} is not {b} at {at}");
    }
}

#[test]
fn spacing_is_that_of_monai() {
    for case in cases("spacing_") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let (input, out) = (&t["in"], &t["out"]);
        let (how, is_label) = match &case["mode"] {
            Value::String(m) if m == "bilinear" => (Interpolation::Linear, false),
            Value::String(m) if m == "nearest" => (Interpolation::Nearest, true),
            Value::Number(n) if n.as_u64() == Some(3) => (Interpolation::Cubic, false),
            other => panic!("{id}: no interpolation {other}"),
        };
        let from = geometry(input, &t["affine_in"]);
        let to = respaced(&from, zyx(triple(&case["pixdim"])), false).expect("a grid");
        assert_same_grid(id, &to, out, &t["affine_out"]);
        let got = resample_to(&volume(input), &from, &to, how, outside(&case));
        if is_label && case["oblique"] == true {
            assert_same_outside_ties(id, &got, out, &from, &to);
        } else {
            // A dozen voxels beyond the volume scipy's spline still rings by 1e-7 of the range, ours is flat there.
            let range = if how == Interpolation::Cubic { out.values.iter().fold(1.0f64, |m, v| m.max(v.abs())) } else { 1.0 };
            assert_same(id, &got, out, if is_label { 0.0 } else { LIMIT * range });
        }
    }
}

#[test]
fn orientation_is_that_of_monai() {
    for case in cases("orientation_") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let from = geometry(&t["in"], &t["affine_in"]);
        let codes = Axcodes::parse(case["axcodes"].as_str().expect("three letters")).expect("three letters");
        let turn = Turn::toward(&from, codes).expect("a grid");
        assert_same_grid(id, &turn.geometry(&from), &t["out"], &t["affine_out"]);
        assert_same(id, &turn.apply(&volume(&t["in"]), from.size), &t["out"], 0.0);
    }
}

#[test]
fn pad_or_crop_is_that_of_monai() {
    for case in cases("pad_or_crop_") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let from = geometry(&t["in"], &t["affine_in"]);
        let region = centered(from.size, zyx(triple(&case["size"]).map(|n| n as usize)));
        assert_same_grid(id, &from.crop(region), &t["out"], &t["affine_out"]);
        let got = cut(&volume(&t["in"]), from.size, region, Fill::Value(number(&case["value"]) as f32));
        assert_same(id, &got, &t["out"], 0.0);
    }
}

#[test]
fn padding_is_that_of_monai() {
    for case in cases_if_any("pad_spatial_").into_iter().chain(cases_if_any("pad_divisible_")) {
        let (id, t) = (name(&case), tensors(name(&case)));
        let from = geometry(&t["in"], &t["affine_in"]);
        let size = match case.get("k") {
            Some(k) => from.size.zip(zyx(triple(k))).map(|(n, k)| n.next_multiple_of(k as usize)),
            None => from.size.zip(zyx(triple(&case["size"]))).map(|(n, to)| n.max(to as usize)),
        };
        let fill = match case["mode"].as_str() {
            Some("edge") => Fill::Edge,
            Some("reflect") => Fill::Reflect,
            _ => Fill::Value(number(&case["value"]) as f32),
        };
        let region = centered(from.size, size);
        assert_same_grid(id, &from.crop(region), &t["out"], &t["affine_out"]);
        assert_same(id, &cut(&volume(&t["in"]), from.size, region, fill), &t["out"], 0.0);
    }
}

/// MONAI's `k_divisible`: half of what is missing to a multiple goes before the box, the rest after it.
fn multiple(region: Region, k: Zyx<usize>) -> Region {
    let size = region.size.zip(k).map(|(n, k)| n.next_multiple_of(k));
    let before = size.zip(region.size).map(|(to, n)| ((to - n) / 2) as i64);
    Region { start: region.start.zip(before).map(|(s, b)| s - b), size }
}

#[test]
fn crop_foreground_is_that_of_monai() {
    for case in cases("crop_foreground") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let from = geometry(&t["in"], &t["affine_in"]);
        let above = number(&case["above"]) as f32;
        let margin = zyx(triple(&case["margin"]).map(|n| n as usize));
        let values = volume(&t["in"]);
        let k = case["k_divisible"].as_u64().map_or(Zyx::splat(1), |k| Zyx::splat(k as usize));
        let grown = grow(bounding_box(&values, from.size, |v| v > above).expect("some foreground"), margin);
        // MONAI's allow_smaller: the box ends with the image, else it sticks out and is padded with 0; what makes it divisible comes after and may stick out.
        let box_ends = match case["allow_smaller"].as_bool() {
            Some(false) => grown,
            _ => grown.intersect(&Region::whole(from.size)).expect("a box around voxels of the image"),
        };
        let region = multiple(box_ends, k);
        assert_same_grid(id, &from.crop(region), &t["out"], &t["affine_out"]);
        assert_same(id, &cut(&values, from.size, region, Fill::Value(0.0)), &t["out"], 0.0);
    }
}

/// MONAI's `Affine`: from an output index (i, j, k) to an input index, about the middle of both arrays.
fn centred_map(rotate: [f64; 3], scale: [f64; 3], translate: [f64; 3], from: Zyx<usize>, to: Zyx<usize>) -> matrix::Affine {
    let turn = |a: usize, b: usize, angle: f64| {
        let mut m = matrix::IDENTITY;
        (m[a][a], m[a][b], m[b][a], m[b][b]) = (angle.cos(), -angle.sin(), angle.sin(), angle.cos());
        m
    };
    let mut stretch = matrix::IDENTITY;
    scale.into_iter().enumerate().for_each(|(a, s)| stretch[a][a] = s);
    let middle = |n: Zyx<usize>| [n.x, n.y, n.z].map(|n| (n as f64 - 1.0) / 2.0);
    [
        matrix::translation(middle(from)),
        turn(1, 2, rotate[0]),
        turn(2, 0, rotate[1]),
        turn(0, 1, rotate[2]),
        matrix::translation(translate),
        stretch,
        matrix::translation(middle(to).map(|c| -c)),
    ]
    .iter()
    .fold(matrix::IDENTITY, |all, m| matrix::multiply(&all, m))
}

/// MONAI's grid of places is float32 here: a place off by 1e-6 voxels moves a value by as much of the difference between neighbours.
#[test]
fn affine_is_that_of_monai() {
    for case in cases("affine_transform") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let (input, out) = (&t["in"], &t["out"]);
        let (from, to) = (size(input), size(out));
        let map = centred_map(triple(&case["rotate"]), triple(&case["scale"]), triple(&case["translate_voxels"]), from, to);
        let got = sample(&volume(input), &map, from, to, Interpolation::Linear, outside(&case));
        let got = transposed(&got, to.to_array());
        assert_close(id, &got, out);
    }
}

#[test]
fn windows_are_those_of_monai() {
    for case in cases("scale_intensity_range") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let of = |key: &str| number(&case[key]) as f32;
        let mut got = volume(&t["in"]);
        intensity::window(&mut got, of("a_min"), of("a_max"), of("b_min"), of("b_max"), case["clip"].as_bool().expect("clip"));
        assert_same(id, &got, &t["out"], LIMIT);
    }
}

#[test]
fn percentile_windows_are_those_of_monai() {
    for case in cases("scale_percentiles") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let of = |key: &str| number(&case[key]);
        let mut got = volume(&t["in"]);
        let block = if flag(&case, "channel_wise") { size(&t["in"]).count() } else { got.len() };
        let at = |percent: f64, end: f64| {
            if flag(&case, "relative") { of("b_min") + (of("b_max") - of("b_min")) * percent / 100.0 } else { end }
        };
        let (to_low, to_high) = (at(of("lower"), of("b_min")) as f32, at(of("upper"), of("b_max")) as f32);
        for got in got.chunks_exact_mut(block) {
            let ends = intensity::percentiles(got.iter().copied(), &[of("lower"), of("upper")]).expect("finite values");
            intensity::window(got, ends[0] as f32, ends[1] as f32, to_low, to_high, flag(&case, "clip"));
        }
        let n = size(&t["out"]);
        assert_close(id, &transposed(&got, [n.z, n.y, n.x]), &t["out"]);
    }
}

#[test]
fn normalisation_is_that_of_monai() {
    for case in cases("normalize") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let mut got = volume(&t["in"]);
        let block = if flag(&case, "channel_wise") { size(&t["in"]).count() } else { got.len() };
        let keep = |v: f32| !flag(&case, "nonzero") || v != 0.0;
        for (c, got) in got.chunks_exact_mut(block).enumerate() {
            let (mean, std, _) = intensity::mean_std(got, |_, v| keep(v));
            let given = |key: &str| case.get(key).map(|v| v.as_array().map_or_else(|| number(v), |list| number(&list[c])));
            match (given("subtrahend"), given("divisor")) {
                (None, None) => {
                    intensity::zscore(got, |_, v| keep(v));
                }
                (mean_given, std_given) => {
                    let (mean, std) = (mean_given.unwrap_or(mean) as f32, std_given.unwrap_or(std) as f32);
                    intensity::Map::Normalize { mean, std, nonzero: flag(&case, "nonzero") }.apply(got);
                }
            }
        }
        assert_same(id, &got, &t["out"], LIMIT);
    }
}

#[test]
fn gaussian_smoothing_is_that_of_monai() {
    for case in cases("gaussian_smooth") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let got = smooth::gaussian(&volume(&t["in"]), size(&t["in"]), zyx(triple(&case["sigma"])), smooth::Edge::Zero);
        let n = size(&t["out"]);
        assert_close(id, &transposed(&got, [n.z, n.y, n.x]), &t["out"]);
    }
}

#[test]
fn contrast_is_that_of_monai() {
    for case in cases("adjust_contrast") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let mut got = t["in"].f32();
        tone::gamma(&mut got, number(&case["gamma"]) as f32, flag(&case, "invert_image"), flag(&case, "retain_stats"));
        assert_close(id, &got, &t["out"]);
    }
}

/// Where MONAI says NaN or infinity for a mask without a voxel, ours says `None` (or a Dice of 0 for a missed structure).
#[test]
fn metrics_are_those_of_monai() {
    for case in cases("metrics") {
        let (id, t) = (name(&case), tensors(name(&case)));
        let spacing = zyx(triple(&case["spacing_mm"]));
        let (pred, truth) = (&t["pred"], &t["truth"]);
        let (batches, classes, n) = (pred.shape[0], pred.shape[1], [pred.shape[2], pred.shape[3], pred.shape[4]]);
        let voxels = n.iter().product::<usize>();
        let mask =
            |t: &Tensor, k: usize| transposed(&t.values[k * voxels..][..voxels].iter().map(|v| (*v > 0.5) as u8).collect::<Vec<_>>(), n);
        for k in 0..batches * classes {
            let (a, b) = (mask(pred, k), mask(truth, k));
            let d = metrics::surface_distances(&a, &b, 1, zyx(n), spacing);
            let got = [
                ("dice", metrics::dice(&a, &b, 1)),
                ("hd95_mm", d.hd95_mm()),
                ("hd_mm", d.hd_mm()),
                ("assd_mm", d.assd_mm()),
                ("nsd_2mm", d.nsd(2.0)),
            ];
            for (metric, got) in got {
                let wanted = t[metric].values[k];
                match got {
                    Some(v) if wanted.is_finite() => assert!((v - wanted).abs() <= LIMIT, "{id} {metric} {k}: {v} is not {wanted}"),
                    Some(v) => assert!(metric == "dice" && v == 0.0, "{id} {metric} {k}: {v} where MONAI has {wanted}"),
                    None => assert!(!wanted.is_finite(), "{id} {metric} {k}: nothing where MONAI has {wanted}"),
                }
            }
        }
    }
}
