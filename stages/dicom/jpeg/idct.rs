//! Coefficients → samples of a block, with libjpeg's slow but accurate integer transform (jidctint.c, after Loeffler, Ligtenberg and Moschytz).

const BITS: u32 = 13;

const fn fix(v: f64) -> i64 {
    (v * (1 << BITS) as f64 + 0.5) as i64
}

/// - `block`: dequantised in place order, row by row
/// - `out`: 64 samples of 0 … 2^precision − 1
pub fn samples(block: &[i64; 64], precision: u32, out: &mut [u16; 64]) {
    let extra = if precision == 8 { 2 } else { 1 };
    let mut half = [0i64; 64];
    for x in 0..8 {
        let column: [i64; 8] = std::array::from_fn(|y| block[8 * y + x]);
        let done = pass(column, BITS - extra);
        (0..8).for_each(|y| half[8 * y + x] = done[y]);
    }
    let (centre, max) = (1i64 << (precision - 1), (1i64 << precision) - 1);
    for y in 0..8 {
        let row: [i64; 8] = std::array::from_fn(|x| half[8 * y + x]);
        let done = pass(row, BITS + extra + 3);
        (0..8).for_each(|x| out[8 * y + x] = (done[x] + centre).clamp(0, max) as u16);
    }
}

/// One dimension; results are divided by 2^`shift`, rounded.
fn pass(v: [i64; 8], shift: u32) -> [i64; 8] {
    // Even part.
    let z1 = (v[2] + v[6]) * const { fix(0.541196100) };
    let t2 = z1 - v[6] * const { fix(1.847759065) };
    let t3 = z1 + v[2] * const { fix(0.765366865) };
    let (t0, t1) = ((v[0] + v[4]) << BITS, (v[0] - v[4]) << BITS);
    let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];
    // Odd part.
    let (z1, z2, z3, z4) = (v[7] + v[1], v[5] + v[3], v[7] + v[3], v[5] + v[1]);
    let z5 = (z3 + z4) * const { fix(1.175875602) };
    let (z1, z2) = (z1 * const { -fix(0.899976223) }, z2 * const { -fix(2.562915447) });
    let (z3, z4) = (z3 * const { -fix(1.961570560) } + z5, z4 * const { -fix(0.390180644) } + z5);
    let odd = [
        v[1] * const { fix(1.501321110) } + z1 + z4,
        v[3] * const { fix(3.072711026) } + z2 + z3,
        v[5] * const { fix(2.053119869) } + z2 + z4,
        v[7] * const { fix(0.298631336) } + z1 + z3,
    ];
    let round = 1i64 << (shift - 1);
    std::array::from_fn(|k| (if k < 4 { even[k] + odd[k] } else { even[7 - k] - odd[7 - k] } + round) >> shift)
}
