//! What labels of an image are, wherever they come from: the files that hold them, which image they belong to, and the canvas they are laid on.

mod back;
mod belong;
mod canvas;
mod classes;
mod codes;
mod draw;
mod found;
mod lay;
mod wanted;

pub use back::Back;
pub use belong::{LabelIndex, Target};
pub use canvas::{Canvas, Overlap};
pub use classes::{AllNames, Classes, Every, numbered};
pub use codes::{ClassCodes, CodeSpec};
pub use draw::{Asked, Drawn, FileVerdict, Given, Outcome, Source, Step, draw};
pub use found::Found;
pub use lay::{Align, Laying, Told, nothing_laid};
pub use wanted::{Choose, LABELS, Missing, Wanted};
