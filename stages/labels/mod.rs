//! What labels of an image are, wherever they come from: the files that hold them, which image they belong to, and the canvas they are laid on.

mod belong;
mod canvas;
mod classes;
mod codes;
mod found;
mod lay;
mod wanted;

pub use belong::{LabelIndex, Target};
pub use canvas::{Canvas, Overlap};
pub use classes::{Classes, Every, numbered};
pub use codes::{ClassCodes, CodeSpec};
pub use found::Found;
pub use lay::{Align, Laying, Told, nothing_laid};
pub use wanted::{Choose, LABELS, Missing, Wanted};
