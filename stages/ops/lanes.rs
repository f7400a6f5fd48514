//! The inner loops of resampling on float64, compiled once for AVX-512, once for AVX2 and once for whatever the target has (NEON on aarch64). Nothing is fused
//! into multiply-adds, so every path gives the same bits.

use std::sync::LazyLock;

use super::plan::Voxel;

/// The instructions that a loop may use. Made by [`Lanes::here`] alone, which asks the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(Width);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Plain,
}

impl Lanes {
    /// The widest that this processor has.
    pub fn here() -> Lanes {
        static HERE: LazyLock<Lanes> = LazyLock::new(|| Lanes::all()[0]);
        *HERE
    }

    /// Everything that this processor has, the widest first.
    pub fn all() -> Vec<Lanes> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                all.push(Lanes(Width::Avx512));
            }
            if has!("avx2") {
                all.push(Lanes(Width::Avx2));
            }
        }
        all.push(Lanes(Width::Plain));
        all
    }
}

/// One loop for every width: `body` is compiled for each and the one that `lanes` names is called.
macro_rules! on_lanes {
    ($(#[$doc:meta])* pub fn $name:ident $(<$g:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub fn $name $(<$g: $bound>)? (lanes: $crate::ops::lanes::Lanes, $($arg: $ty),*) {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body $(<$g: $bound>)? ($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            #[allow(clippy::too_many_arguments)]
            fn avx512 $(<$g: $bound>)? ($($arg: $ty),*) { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            #[allow(clippy::too_many_arguments)]
            fn avx2 $(<$g: $bound>)? ($($arg: $ty),*) { body($($arg),*) }
            match lanes.width() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Lanes::all` gives this width only where the processor has the instructions.
                512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                256 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}
pub(super) use on_lanes;

impl Lanes {
    /// Bits of a vector; 0: whatever the target has.
    pub(super) fn width(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Width::Avx512 => 512,
            #[cfg(target_arch = "x86_64")]
            Width::Avx2 => 256,
            Width::Plain => 0,
        }
    }
}

on_lanes! {
    /// Voxels as float64.
    pub fn widen<T: Voxel>(a: &[T], out: &mut [f64]) {
        out.iter_mut().zip(a).for_each(|(o, a)| *o = a.wide());
    }
}

on_lanes! {
    /// a + (b − a)·t.
    pub fn blend_rows<T: Voxel>(a: &[T], b: &[T], t: f64, out: &mut [f64]) {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = a.wide() + (b.wide() - a.wide()) * t);
    }
}

on_lanes! {
    /// a + (b − a)·t as float32.
    pub fn blend_out(a: &[f64], b: &[f64], t: f64, out: &mut [f32]) {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = (a + (b - a) * t) as f32);
    }
}

on_lanes! {
    /// As float32.
    pub fn narrow(a: &[f64], out: &mut [f32]) {
        out.iter_mut().zip(a).for_each(|(o, a)| *o = *a as f32);
    }
}

/// Outputs of a row that are made at once.
pub const GROUP: usize = 8;

/// Where the outputs of a row read, in groups.
#[derive(Clone, Debug)]
pub struct Picks {
    groups: Vec<Pick>,
    /// The last input that is read.
    last: usize,
}

#[derive(Clone, Debug)]
pub struct Pick {
    /// The first input of the group.
    first: usize,
    /// Whether every input that the group reads lies within 16 of the first.
    is_near: bool,
    /// The lower neighbour of each output, counted from `first`.
    low: [i64; GROUP],
    /// The weight of the upper one.
    t: [f64; GROUP],
}

impl Picks {
    /// - taps: the lower neighbour and the weight of the upper one for each output of a row; the last group is filled up with the last of them
    pub fn new(taps: &[(usize, f64)]) -> Self {
        let group = |taps: &[(usize, f64)]| {
            let at = |k: usize| taps[k.min(taps.len() - 1)];
            let first = taps.iter().map(|t| t.0).min().unwrap_or(0);
            let low: [i64; GROUP] = std::array::from_fn(|k| (at(k).0 - first) as i64);
            Pick { first, is_near: low.iter().all(|l| *l < 15), low, t: std::array::from_fn(|k| at(k).1) }
        };
        // The lower neighbour of the last voxel has none above it: its weight is 0, and what stands there is not looked at.
        Self { groups: taps.chunks(GROUP).map(group).collect(), last: taps.iter().map(|t| t.0 + 1).max().unwrap_or(0) }
    }

    /// Values that one row of results takes.
    pub fn padded(&self) -> usize {
        self.groups.len() * GROUP
    }

    /// Values that a row of inputs must have room for.
    pub fn reach(&self) -> usize {
        self.groups.iter().map(|g| g.first + 2 * GROUP).max().unwrap_or(0).max(self.last + 1)
    }

    /// `line[low] + (line[low + 1] − line[low])·t` for each output; a weight of 0 gives `line[low]` whatever stands beside it.
    ///
    /// - line: at least [`Picks::reach`]; out: at least [`Picks::padded`]
    pub fn blend(&self, lanes: Lanes, line: &[f64], out: &mut [f64]) {
        assert!(line.len() >= self.reach() && out.len() >= self.padded(), "room for whole groups");
        match lanes.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Lanes::all` gives this width only where the processor has the instructions; the lengths were just checked.
            Width::Avx512 => unsafe { self.blend_avx512(line, out) },
            _ => blend_groups(lanes, &self.groups, line, out),
        }
    }

    /// # Safety
    /// The processor has AVX-512F; `line` and `out` are as long as [`Picks::blend`] wants them.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn blend_avx512(&self, line: &[f64], out: &mut [f64]) {
        use std::arch::x86_64::*;
        let one = _mm512_set1_epi64(1);
        for (g, out) in self.groups.iter().zip(out.as_chunks_mut::<GROUP>().0) {
            // SAFETY: the arrays of a group hold 8 values; `line` reaches 16 beyond `first`, or to what the group reads.
            let (a, b, t) = unsafe {
                let (low, t) = (_mm512_loadu_epi64(g.low.as_ptr()), _mm512_loadu_pd(g.t.as_ptr()));
                let here = line.as_ptr().add(g.first);
                let high = _mm512_add_epi64(low, one);
                if g.is_near {
                    let (first, second) = (_mm512_loadu_pd(here), _mm512_loadu_pd(here.add(GROUP)));
                    (_mm512_permutex2var_pd(first, low, second), _mm512_permutex2var_pd(first, high, second), t)
                } else {
                    (_mm512_i64gather_pd::<8>(low, here), _mm512_i64gather_pd::<8>(high, here), t)
                }
            };
            let blended = _mm512_add_pd(a, _mm512_mul_pd(_mm512_sub_pd(b, a), t));
            let has_weight = _mm512_cmp_pd_mask::<_CMP_NEQ_UQ>(t, _mm512_setzero_pd());
            // SAFETY: `out` has 8 places.
            unsafe { _mm512_storeu_pd(out.as_mut_ptr(), _mm512_mask_mov_pd(a, has_weight, blended)) };
        }
    }
}

on_lanes! {
    /// [`Picks::blend`] without a permutation of vectors.
    pub fn blend_groups(groups: &[Pick], line: &[f64], out: &mut [f64]) {
        for (g, out) in groups.iter().zip(out.as_chunks_mut::<GROUP>().0) {
            let here = &line[g.first..];
            let a: [f64; GROUP] = std::array::from_fn(|k| here[g.low[k] as usize]);
            let b: [f64; GROUP] = std::array::from_fn(|k| here[g.low[k] as usize + 1]);
            *out = std::array::from_fn(|k| if g.t[k] == 0.0 { a[k] } else { a[k] + (b[k] - a[k]) * g.t[k] });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_width_gives_the_same_bits(
            taps in proptest::collection::vec((0usize..100, 0.0..1.0f64, any::<bool>()), 1..60),
            line in proptest::collection::vec(-3000.0..3000.0f64, 101),
            t in 0.0..1.0f64,
        ) {
            let mut taps: Vec<(usize, f64)> = taps.into_iter().map(|(i, t, zero)| (i, if zero { 0.0 } else { t })).collect();
            if t < 0.5 {
                taps.sort_by_key(|t| t.0);
            }
            let picks = Picks::new(&taps);
            let mut line = line;
            line.resize(picks.reach().max(101), f64::NAN);
            let voxels: Vec<i16> = line.iter().map(|v| *v as i16).collect();
            let run = |lanes: Lanes| {
                let mut out = vec![0.0; picks.padded()];
                picks.blend(lanes, &line, &mut out);
                let mut rows = vec![0.0; 50];
                blend_rows(lanes, &voxels[..50], &voxels[50..100], t, &mut rows);
                let mut narrow = vec![0.0f32; 50];
                blend_out(lanes, &line[..50], &line[50..100], t, &mut narrow);
                out.truncate(taps.len());
                (out, rows, narrow)
            };
            let plain = run(Lanes(Width::Plain));
            for (o, (i, t)) in plain.0.iter().zip(&taps) {
                prop_assert_eq!(*o, if *t == 0.0 { line[*i] } else { line[*i] + (line[i + 1] - line[*i]) * t });
            }
            for lanes in Lanes::all() {
                prop_assert_eq!(&run(lanes), &plain, "{:?}", lanes);
            }
        }
    }
}
