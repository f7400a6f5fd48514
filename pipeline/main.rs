//! Args, run, exit code: the only place where the engine meets the table of stages.

use std::process::ExitCode;

/// glibc gives the end of a heap back to the system as soon as 128 KiB of it are free, and takes it again page by page for the next brick: a fifth of the
/// time of a conversion. Once a block of some size was freed, it keeps twice that much.
const KEPT_BYTES: usize = 8 << 20;

fn main() -> ExitCode {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT_BYTES)));
    ExitCode::from(voxmill::cli::main(voxmill_stages::STAGES))
}
