//! Agreement with MONAI and PyTorch. Reads the folder `VOXMILL_GOLDEN` (default: this one): `manifest.json` and one safetensors file a case.
//! Every case of the manifest is either compared or named in `NOT_YET` with the reason; a case nobody knows fails the test.

mod geometry;
mod model;
mod read;
