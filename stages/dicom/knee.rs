//! The anatomy of the phantom: one knee drawn by lot, as Hounsfield units and labels of points.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub const FEMUR: u8 = 1;
pub const TIBIA: u8 = 2;

/// Random numbers of one patient, or of one slice of one.
pub struct Dice(ChaCha8Rng);

impl Dice {
    pub fn of(seed: u64, patient: u32, part: u32) -> Dice {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream((patient as u64) << 32 | part as u64);
        Dice(rng)
    }

    /// Uniform in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.0.next_u32() as f64 / (1u64 << 32) as f64)
    }

    /// Mean 0, standard deviation 1: the sum of four uniform 16-bit numbers.
    pub fn normal(&mut self) -> f64 {
        let bits = self.0.next_u64();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f64 / 65536.0 - 2.0 + 2.0 / 65536.0) * 3f64.sqrt()
    }
}

/// One knee, in millimetres: x to the left, y to the back, z to the head, the joint at z = 0.
pub struct Knee {
    pub scale: f64,
    /// Where the leg stands in the field of view.
    shift: [f64; 2],
    /// How the leg leans: shift in x and y for each mm of z.
    lean: [f64; 2],
    /// 1 or −1: the fibula stands on this side.
    side: f64,
    gap_mm: f64,
    cortex_mm: f64,
    cortex_hu: f64,
    marrow_hu: f64,
    muscle_hu: f64,
    pub noise_hu: f64,
}

impl Knee {
    pub fn draw(seed: u64, patient: u32) -> Knee {
        let mut d = Dice::of(seed, patient, 0);
        Knee {
            scale: d.between(0.88, 1.12),
            shift: [d.between(-8.0, 8.0), d.between(-8.0, 8.0)],
            lean: [d.between(-0.06, 0.06), d.between(-0.06, 0.06)],
            side: if patient.is_multiple_of(2) { 1.0 } else { -1.0 },
            gap_mm: d.between(3.5, 6.0),
            cortex_mm: d.between(2.2, 3.6),
            cortex_hu: d.between(900.0, 1300.0),
            marrow_hu: d.between(150.0, 320.0),
            muscle_hu: d.between(40.0, 65.0),
            noise_hu: d.between(8.0, 20.0),
        }
    }

    /// Hounsfield units and label of a point. Shapes are ellipses of a size that changes with height; depths below their surface are approximate.
    pub fn at(&self, [x, y, z]: [f64; 3]) -> (f64, u8) {
        let s = self.scale;
        let z = z / s;
        let x = (x - self.shift[0]) / s - self.lean[0] * z;
        let y = (y - self.shift[1]) / s - self.lean[1] * z;
        // Widens from the calf to the thigh.
        let outside = ellipse(x, y + 3.0, 54.0 + 0.06 * z, 58.0 + 0.06 * z);
        if outside < 0.0 {
            return (-1000.0, 0);
        }
        let half_gap = self.gap_mm / 2.0;
        for (depth, label) in [
            (self.femur(x, y, z - half_gap), FEMUR),
            (tibia(x, y, -z - half_gap), TIBIA),
            (ellipse(x - 24.0 * self.side, y - 17.0, 6.5, 6.5).min(-z - half_gap - 14.0), 0),
            (ellipsoid([x, y + 42.0, z - 16.0], [20.0, 9.0, 19.0]), 0),
        ] {
            if depth >= 0.0 {
                let hu = if depth * s < self.cortex_mm { self.cortex_hu } else { self.marrow_hu };
                return (hu, label);
            }
        }
        // Skin, fat, muscle.
        let hu = match outside {
            d if d < 2.0 => 20.0,
            d if d < 9.0 => -95.0,
            _ => self.muscle_hu,
        };
        (hu, 0)
    }

    /// Depth below the surface of the femur; `h` above its lowest point. Two condyles that run together into a shaft.
    fn femur(&self, x: f64, y: f64, h: f64) -> f64 {
        let condyle = |cx: f64| ellipsoid([x - cx, y - 4.0, h - 24.0], [17.0, 29.0, 24.0]);
        // From 30 mm wide at the condyles to a shaft of 14 mm.
        let waist = ((h - 24.0) / 34.0).clamp(0.0, 1.0);
        let r = 27.0 - 13.0 * waist * (2.0 - waist);
        let shaft = ellipse(x, y - 2.0 + 4.0 * waist, r, 14.0 + 6.0 * (1.0 - waist)).min(h - 22.0);
        condyle(-19.0).max(condyle(19.0)).max(shaft)
    }
}

/// Depth below the surface of the tibia; `h` below its plateau.
fn tibia(x: f64, y: f64, h: f64) -> f64 {
    let waist = (h / 40.0).clamp(0.0, 1.0);
    let ease = waist * (2.0 - waist);
    ellipse(x, y - 2.0 + 4.0 * ease, 38.0 - 25.0 * ease, 25.0 - 11.0 * ease).min(h)
}

/// About how deep a point lies inside an ellipse; negative outside.
fn ellipse(x: f64, y: f64, rx: f64, ry: f64) -> f64 {
    (1.0 - ((x / rx) * (x / rx) + (y / ry) * (y / ry)).sqrt()) * rx.min(ry)
}

fn ellipsoid([x, y, z]: [f64; 3], [rx, ry, rz]: [f64; 3]) -> f64 {
    (1.0 - ((x / rx) * (x / rx) + (y / ry) * (y / ry) + (z / rz) * (z / rz)).sqrt()) * rx.min(ry).min(rz)
}
