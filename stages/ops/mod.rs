//! Pure functions on arrays: they take slices and give vectors or change slices in place; they open no file and know no stage. Arrays are C order,
//! slowest axis first; results do not depend on the number of threads.

pub mod augment;
pub mod boxes;
pub mod crop;
pub mod distance;
pub mod intensity;
pub mod lanes;
pub mod matrix;
pub mod metrics;
pub mod morphology;
pub mod normalize;
pub mod orient;
pub mod padded;
pub mod plan;
pub mod points;
pub mod regrid;
pub mod resample;
pub mod respace;
pub mod separable;
pub mod smooth;
pub mod spacing;
pub mod spline;
pub mod tone;
pub mod topology;
pub mod warp;
