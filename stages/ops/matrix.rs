//! The little linear algebra that affines need, in float64 and in the order of operations that numpy and LAPACK have, because rounding decides ties.

/// Row-major 4×4 matrix on homogeneous coordinates.
pub type Affine = [[f64; 4]; 4];

pub const IDENTITY: Affine = [[1., 0., 0., 0.], [0., 1., 0., 0.], [0., 0., 1., 0.], [0., 0., 0., 1.]];

pub fn multiply(a: &Affine, b: &Affine) -> Affine {
    std::array::from_fn(|r| std::array::from_fn(|c| (0..4).map(|k| a[r][k] * b[k][c]).sum()))
}

pub fn apply(a: &Affine, p: [f64; 3]) -> [f64; 3] {
    std::array::from_fn(|r| a[r][0] * p[0] + a[r][1] * p[1] + a[r][2] * p[2] + a[r][3])
}

pub fn translation(t: [f64; 3]) -> Affine {
    let mut out = IDENTITY;
    (0..3).for_each(|r| out[r][3] = t[r]);
    out
}

/// A⁻¹·B by elimination with partial pivoting. Pivots are inverted once and multiplied with, as OpenBLAS does. Not finite when A is singular.
pub fn solve(a: &Affine, b: &Affine) -> Affine {
    let (mut a, mut b) = (*a, *b);
    for k in 0..4 {
        let pivot = (k..4).fold(k, |best, r| if a[r][k].abs() > a[best][k].abs() { r } else { best });
        a.swap(k, pivot);
        b.swap(k, pivot);
        let inverse = 1.0 / a[k][k];
        for r in k + 1..4 {
            let f = a[r][k] * inverse;
            if f != 0.0 {
                (k..4).for_each(|c| a[r][c] -= f * a[k][c]);
                (0..4).for_each(|c| b[r][c] -= f * b[k][c]);
            }
        }
    }
    for r in (0..4).rev() {
        for c in 0..4 {
            for k in r + 1..4 {
                b[r][c] -= a[r][k] * b[k][c];
            }
            b[r][c] *= 1.0 / a[r][r];
        }
    }
    b
}

/// The rotation (or reflection) nearest to the 3×3 part of `a`: its polar factor, by Newton's iteration R ← (R + R⁻ᵀ)/2 (Higham). Equals P·Q of the
/// singular value decomposition P·S·Q for a matrix of full rank.
pub fn polar_factor(a: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let mut r = *a;
    for _ in 0..100 {
        let it = inverse_transposed(&r);
        let next: [[f64; 3]; 3] = std::array::from_fn(|i| std::array::from_fn(|j| 0.5 * (r[i][j] + it[i][j])));
        let moved = (0..9).map(|k| (next[k / 3][k % 3] - r[k / 3][k % 3]).abs()).fold(0.0, f64::max);
        r = next;
        if !(moved > 1e-15) {
            break;
        }
    }
    r
}

fn inverse_transposed(m: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let cofactor = |r: usize, c: usize| {
        let (r1, r2, c1, c2) = ((r + 1) % 3, (r + 2) % 3, (c + 1) % 3, (c + 2) % 3);
        m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1]
    };
    let det = (0..3).map(|c| m[0][c] * cofactor(0, c)).sum::<f64>();
    std::array::from_fn(|r| std::array::from_fn(|c| cofactor(r, c) / det))
}

/// The rotation part of M with its columns made perpendicular: R = M·U⁻¹ where UᵀU = MᵀM and U is upper triangular with a positive diagonal (Cholesky).
/// The first column keeps its direction, the second stays in the plane of the first two.
pub fn without_shear(m: &[[f64; 3]; 3]) -> [[f64; 3]; 3] {
    let gram = |i: usize, j: usize| (0..3).map(|r| m[r][i] * m[r][j]).sum::<f64>();
    // Rows of L, the transposed of U.
    let mut l = [[0.0f64; 3]; 3];
    for j in 0..3 {
        l[j][j] = (gram(j, j) - (0..j).map(|k| l[j][k] * l[j][k]).sum::<f64>()).sqrt();
        for i in j + 1..3 {
            l[i][j] = (gram(i, j) - (0..j).map(|k| l[i][k] * l[j][k]).sum::<f64>()) / l[j][j];
        }
    }
    // The inverse of U = Lᵀ by back substitution, then M·U⁻¹.
    let mut inverse = [[0.0; 3]; 3];
    for c in 0..3 {
        for r in (0..=c).rev() {
            let right = if r == c { 1.0 } else { 0.0 };
            inverse[r][c] = (right - (r + 1..=c).map(|k| l[k][r] * inverse[k][c]).sum::<f64>()) * (1.0 / l[r][r]);
        }
    }
    std::array::from_fn(|r| std::array::from_fn(|c| (0..3).map(|k| m[r][k] * inverse[k][c]).sum()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn solve_undoes_multiply() {
        let a = [[0.0, 2.0, 0.1, 5.0], [0.7, 0.0, 0.3, -4.0], [0.2, 0.1, 3.0, 9.0], [0., 0., 0., 1.]];
        let b = [[1.0, 2.0, 3.0, 4.0], [0.5, 1.0, 0.0, 1.0], [0.0, 1.0, 2.0, 3.0], [0., 0., 0., 1.]];
        let back = multiply(&a, &solve(&a, &b));
        assert!((0..16).all(|k| (back[k / 4][k % 4] - b[k / 4][k % 4]).abs() < 1e-12), "{back:?}");
    }

    #[test]
    fn polar_factor_and_without_shear_are_orthonormal() {
        let m = [[0.9, 0.2, -0.3], [-0.1, 0.8, 0.4], [0.2, -0.5, 2.0]];
        for r in [polar_factor(&m), without_shear(&m)] {
            for i in 0..3 {
                for j in 0..3 {
                    let dot: f64 = (0..3).map(|k| r[k][i] * r[k][j]).sum();
                    assert!((dot - f64::from(i == j)).abs() < 1e-12);
                }
            }
        }
    }
}
