//! Tells the program which commit it is built from, where it is built from a repository: lineage keeps it. Links it for x86-64 Linux at a fixed address:
//! elsewhere in memory a quarter of a million places in it have to be written anew at every start, four fifths of the time that a short command takes;
//! libraries, stack and heap stay where the system puts them.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=pipeline/build.rs");
    let git = |args: &[&str]| -> Option<String> {
        let out = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(out.stdout).ok()?.trim().to_string();
        (out.status.success() && !text.is_empty()).then_some(text)
    };
    // A file that is not there would have cargo run this every time.
    for name in ["HEAD".to_string(), git(&["symbolic-ref", "HEAD"]).unwrap_or_default()] {
        if let Some(path) = git(&["rev-parse", "--git-path", &name]).filter(|p| !name.is_empty() && Path::new(p).is_file()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    if let Some(commit) = git(&["rev-parse", "HEAD"]) {
        println!("cargo::rustc-env=VOXMILL_COMMIT={commit}");
    }
    let is = |(key, value): (&str, &str)| std::env::var(key).is_ok_and(|v| v == value);
    if [("CARGO_CFG_TARGET_OS", "linux"), ("CARGO_CFG_TARGET_ENV", "gnu"), ("CARGO_CFG_TARGET_ARCH", "x86_64")].into_iter().all(is) {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
