//! Promises of `voxmill run` to its users, kept on the built program and real DICOM.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod bench;
mod bundle;
mod bytes;
mod cache;
mod convert;
mod crash;
mod deidentify;
mod forget;
mod lazy;
mod lineage;
mod networks;
mod openlineage;
mod out;
mod publish;
mod replay;
mod report;
mod reuse;
mod serve;
mod shelves;
mod stack;
mod view;
mod way;
