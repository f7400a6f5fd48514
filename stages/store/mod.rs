//! The three shelves.
/// Placeholder of the contract; see the store room.
pub struct Store;
