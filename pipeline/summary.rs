//! The end of a run in words: what stages report (the table of scores), what is quarantined and why, where the files are, how to go on.

use std::path::Path;

use crate::cli::print;
use crate::progress::{Progressing, Style, seconds, without_name};
use crate::run::Summary;

/// Shown for each node before "and N more".
const SHOWN: usize = 8;

pub fn tell(ui: &Progressing, s: &Summary, file: &Path, code: u8) {
    ui.summary(s, code);
    if ui.style == Style::Json {
        return;
    }
    for n in s.nodes.iter().filter(|n| !n.quarantined.is_empty()) {
        eprintln!("\n{}: {} quarantined", n.name, n.quarantined.len());
        for q in n.quarantined.iter().take(SHOWN) {
            eprintln!("  {}: {}", q.what, without_name(&q.what, &q.why));
        }
        if n.quarantined.len() > SHOWN {
            eprintln!(
                "  and {} more: voxmill query {} \"select what, why from quarantine where node = '{}'\"",
                n.quarantined.len() - SHOWN,
                file.display(),
                n.name
            );
        }
    }
    if s.cancelled {
        eprintln!("\nstopped. Nothing half-made is left; the same command goes on where this run stopped.");
        return;
    }
    if ui.style == Style::Quiet {
        return;
    }
    // A model that was given is no news of this run.
    for n in s.nodes.iter().filter(|n| n.made + n.reused > 0) {
        // A stage that has something to show puts lines of text into its fact `report`.
        for item in &n.items {
            if let Some(lines) = item.manifest.facts.get("report").and_then(|v| v.as_array()) {
                print("");
                lines.iter().filter_map(|l| l.as_str()).for_each(print);
            }
        }
    }
    let places: Vec<_> = s.nodes.iter().filter_map(|n| Some((n, n.published.as_ref()?))).collect();
    if !places.is_empty() && code != 1 {
        print("");
        let width = places.iter().map(|(n, _)| n.name.len()).max().unwrap_or(0);
        for (n, place) in places {
            let files: usize = n.items.iter().map(|i| i.manifest.files.len()).sum();
            print(&format!("{:width$}  {}  ({files} file{})", n.name, place.display(), if files == 1 { "" } else { "s" }));
        }
    }
    let (made, reused): (usize, usize) = s.nodes.iter().fold((0, 0), |(m, r), n| (m + n.made, r + n.reused));
    let took = s.nodes.iter().map(|n| n.took_ms).sum::<u64>() as f64 / 1000.0;
    let end = match code {
        0 => "done",
        3 => "done, with something quarantined",
        _ => "failed",
    };
    eprintln!("\n{end}: {made} made, {reused} reused, {}", seconds(took));
}
