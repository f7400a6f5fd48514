//! What labels of an image are, wherever they come from: the files that hold them, which image they belong to, and the canvas they are laid on.

mod belong;
mod canvas;
mod codes;
mod found;

pub use belong::{Target, filter, nifti_of, texts};
pub use canvas::{Canvas, Overlap};
pub use codes::{ClassCodes, CodeSpec};
pub use found::Found;
