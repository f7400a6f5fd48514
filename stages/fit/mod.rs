//! What training and inference share: which cases play which part, the card that makes weights usable, prediction of a whole volume, and the state
//! of a training in hand.

pub mod bundle;
pub mod card;
pub mod checkpoint;
pub mod events;
pub mod parts;
pub mod plans;
pub mod predict;
pub mod training;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod trial;
