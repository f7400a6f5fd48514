//! Args, run, exit code: the only place where the engine meets the table of stages.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(voxmill::cli::main(voxmill_stages::STAGES))
}
