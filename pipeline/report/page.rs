//! The report as one HTML page: no network, no other file, readable by keyboard and screen reader, in light and dark. Every text from outside is escaped.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;
use voxmill_schemas::spec::size_text;

use crate::archive_page::{SCRIPT, STYLE, base64, escape, table};
use crate::report::charts::{self, Line};
use crate::report::{Case, Report, Training, mosaic};

const OWN_STYLE: &str = include_str!("page.css");
/// Cases shown large, the worst first.
const WORST: usize = 6;

pub fn html(r: &Report) -> String {
    let mut out = String::new();
    let title = escape(&r.title);
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}: report</title>\n<style>\n{STYLE}{OWN_STYLE}</style></head>\n<body><main>\n<h1>{title}</h1>\n"
    );
    out += "<dl class=\"about\">";
    for (name, value) in &r.about {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    out += "</dl>\n";
    cards(&mut out, r);
    let _ = writeln!(
        out,
        "<section><h2>Stages</h2><div class=\"scroll plain\" tabindex=\"0\" role=\"region\" aria-label=\"graph of the stages\">{}</div></section>",
        charts::graph(&r.nodes)
    );
    worst(&mut out, r);
    scores(&mut out, r);
    r.trainings.iter().for_each(|t| training(&mut out, t));
    cases(&mut out, r);
    distributions(&mut out, r);
    shelves(&mut out, r);
    provenance(&mut out, r);
    let _ = write!(out, "</main>\n<script>\n{SCRIPT}</script>\n</body></html>\n");
    out
}

/// `0.4 s`, `42 s`, `3 min 5 s`, `2 h 14 min`.
pub fn duration(ms: i64) -> String {
    let s = ms / 1000;
    match s {
        0..10 => format!("{:.1} s", ms as f64 / 1000.0),
        10..120 => format!("{s} s"),
        120..7200 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

fn card(out: &mut String, name: &str, big: &str, small: &str) {
    let _ = write!(out, "<div class=\"card\"><h2>{name}</h2><p class=\"big\">{}</p><p>{}</p></div>", escape(big), escape(small));
}

fn cards(out: &mut String, r: &Report) {
    *out += "<section class=\"cards\" aria-label=\"In short\">";
    let left_out = r.cases.iter().filter(|c| c.quarantined.is_some()).count();
    let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
    r.cases.iter().filter(|c| !c.part.is_empty()).for_each(|c| *parts.entry(&c.part).or_default() += 1);
    let dealt = parts.iter().map(|(part, n)| format!("{n} {part}")).collect::<Vec<_>>().join(", ");
    card(out, "Cases", &r.cases.len().to_string(), &if left_out > 0 { format!("{left_out} left out; {dealt}") } else { dealt });
    let patients: std::collections::BTreeSet<&str> = r.cases.iter().map(|c| c.patient.as_str()).filter(|p| !p.is_empty()).collect();
    card(out, "Patients", &patients.len().to_string(), "as the index names them");
    if let Some((part, mean, n)) = headline(r) {
        card(out, "Mean Dice", &format!("{mean:.3}"), &format!("over {n} cases{part}"));
    }
    let (made, reused): (usize, usize) = r.nodes.iter().fold((0, 0), |(m, re), n| (m + n.made, re + n.reused));
    card(out, "Artifacts of the last runs", &(made + reused).to_string(), &format!("{made} made, {reused} reused"));
    *out += "</section>\n";
}

/// Which part, its mean Dice, over how many cases: of `test` where there is one, else `val`, else of all.
fn headline(r: &Report) -> Option<(String, f64, usize)> {
    for part in ["test", "val", ""] {
        let scored: Vec<f64> = r.cases.iter().filter(|c| part.is_empty() || c.part == part).filter_map(Case::mean_dice).collect();
        if !scored.is_empty() {
            let name = if part.is_empty() { String::new() } else { format!(" of {part}") };
            return Some((name, scored.iter().sum::<f64>() / scored.len() as f64, scored.len()));
        }
    }
    None
}

fn image(p: &mosaic::Picture, alt: &str) -> String {
    format!(
        "<img class=\"mosaic\" alt=\"{}\" loading=\"lazy\" decoding=\"async\" width=\"336\" height=\"112\" src=\"data:image/png;base64,{}\">",
        escape(alt),
        base64(&p.png)
    )
}

fn legend() -> String {
    let one = |(name, [r, g, b]): (&str, [u8; 3])| format!("<span><i style=\"background:rgb({r},{g},{b})\"></i>{name}</span>");
    format!("<p class=\"legend\">{}</p>", mosaic::COLOURS.map(one).join(""))
}

fn worst(out: &mut String, r: &Report) {
    let mut scored: Vec<(&Case, f64)> = r.cases.iter().filter_map(|c| Some((c, c.mean_dice()?))).collect();
    scored.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.name.cmp(&b.0.name)));
    if scored.is_empty() {
        return;
    }
    let _ = write!(out, "<section><h2>The worst predictions first</h2>{}<div class=\"worst\">", legend());
    for (c, dice) in scored.iter().take(WORST) {
        let picture = c.picture.as_ref().map(|p| image(p, &format!("three planes of {} with contours", c.name))).unwrap_or_default();
        let part = if c.part.is_empty() { String::new() } else { format!(" <span class=\"n\">{}</span>", escape(&c.part)) };
        let of_class = |class: &String| Some(format!("{} {:.3}", escape(class), c.scores.get(class)?.dice?));
        let classes = r.classes.iter().filter_map(of_class).collect::<Vec<_>>().join(", ");
        let classes = if c.scores.len() > 1 { format!("<div class=\"n\">{classes}</div>") } else { String::new() };
        let _ = write!(out, "<figure>{picture}<figcaption><b>{dice:.3}</b> {}{part}{classes}</figcaption></figure>", escape(&c.name));
    }
    *out += "</div></section>\n";
}

fn scores(out: &mut String, r: &Report) {
    let parts: std::collections::BTreeSet<&str> = r.cases.iter().filter(|c| !c.scores.is_empty()).map(|c| c.part.as_str()).collect();
    let mut rows = Vec::new();
    for part in &parts {
        for class in &r.classes {
            let of = |c: &Case| (c.part == *part).then(|| c.scores.get(class)?.dice).flatten();
            let name = if part.is_empty() { class.clone() } else { format!("{class}, {part}") };
            rows.push((name, r.cases.iter().filter_map(of).collect::<Vec<_>>()));
        }
    }
    let chart = charts::dots("Dice of every case, by class", &rows);
    if !chart.is_empty() {
        let _ = writeln!(out, "<section><h2>Dice per class</h2>{chart}</section>");
    }
}

fn training(out: &mut String, t: &Training) {
    let _ = write!(out, "<section><h2>Training: {}</h2><div class=\"charts\">", escape(&t.node));
    let line = |name: &str, points: Vec<(f64, f64)>| Line { name: name.into(), points };
    let epochs = |pick: &dyn Fn(&voxmill_schemas::tables::HistoryRow) -> Option<f64>| -> Vec<(f64, f64)> {
        t.history.iter().filter_map(|h| Some((h.epoch as f64, pick(h)?))).collect()
    };
    *out += &charts::lines("Loss of each epoch", "epoch", &[line("loss", epochs(&|h| Some(h.loss)))], None);
    // Of each step only where that shows more than the epochs do.
    if t.steps.len() > 2 * t.history.len() {
        let points = t.steps.iter().map(|s| (s.step as f64, s.loss)).collect();
        *out += &charts::lines("Loss of the steps", "step", &[line("loss", thinned(points))], None);
    }
    let mut dice = vec![line("mean", epochs(&|h| h.val_dice))];
    for (i, class) in t.classes.iter().enumerate() {
        dice.push(line(class, epochs(&|h| h.class_dice.get(i).copied().filter(|v| v.is_finite()))));
    }
    *out += &charts::lines("Validation Dice", "epoch", &dice, Some((0.0, 1.0)));
    *out += "</div><dl class=\"about\">";
    for (name, text) in [
        ("epochs", "epochs"),
        ("steps", "steps"),
        ("parameters", "parameters"),
        ("device", "device"),
        ("best_epoch", "best epoch"),
        ("best_dice", "best Dice"),
    ] {
        let Some(value) = t.facts.get(name).filter(|v| !v.is_null()) else { continue };
        let value = match value {
            Value::String(s) => s.clone(),
            Value::Number(n) if n.is_f64() => format!("{:.4}", n.as_f64().unwrap_or(f64::NAN)),
            other => other.to_string(),
        };
        let _ = write!(out, "<div><dt>{text}</dt><dd>{}</dd></div>", escape(&value));
    }
    *out += "</dl></section>\n";
}

/// Points of a line, at most: more nobody sees.
const POINTS: usize = 600;

/// Neighbours become their mean where there are too many.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let n = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let sum = part.iter().fold((0.0, 0.0), |a, p| (a.0 + p.0, a.1 + p.1));
        (sum.0 / part.len() as f64, sum.1 / part.len() as f64)
    };
    points.chunks(n).map(mean).collect()
}

fn cases(out: &mut String, r: &Report) {
    if r.cases.is_empty() {
        return;
    }
    let has_pictures = r.cases.iter().any(|c| c.picture.is_some());
    let mut columns = vec!["Case", "Patient"];
    columns.extend(has_pictures.then_some("Planes"));
    columns.extend(["Part", "Modality", "Size z×y×x", "Spacing mm"]);
    let class_heads: Vec<String> =
        r.classes.iter().filter(|c| r.cases.iter().any(|k| k.scores.contains_key(*c))).map(|c| escape(c)).collect();
    let scored: Vec<&String> = r.classes.iter().filter(|c| r.cases.iter().any(|k| k.scores.contains_key(*c))).collect();
    columns.extend(class_heads.iter().map(String::as_str));
    columns.extend(["Status"]);
    table(out, "cases", "Cases", &columns, r.cases.len());
    for c in &r.cases {
        let class = if c.quarantined.is_some() { "refused" } else { "converted" };
        let _ = write!(out, "<tr class=\"{class}\"><td>{}<td>{}", escape(&c.name), escape(&c.patient));
        if has_pictures {
            let picture = c.picture.as_ref().map(|p| image(p, &format!("three planes of {}", c.name))).unwrap_or_default();
            let _ = write!(out, "<td>{picture}");
        }
        let size = c.size.iter().map(i64::to_string).collect::<Vec<_>>().join("×");
        let spacing = c.spacing_mm.iter().map(|v| format!("{}", (v * 1000.0).round() / 1000.0)).collect::<Vec<_>>().join(" × ");
        let _ = write!(out, "<td>{}<td>{}<td>{size}<td>{spacing}", escape(&c.part), escape(&c.modality));
        for class in &scored {
            let said = match c.scores.get(*class) {
                Some(s) if s.missed => "missed".into(),
                Some(s) if s.spurious => "spurious".into(),
                Some(s) => s.dice.map_or(String::new(), |d| format!("{d:.3}")),
                None => String::new(),
            };
            let _ = write!(out, "<td>{said}");
        }
        let status = match &c.quarantined {
            Some((node, why)) => format!("<span class=\"verdict\">left out at {}</span><div>{}</div>", escape(node), escape(why)),
            None => "<span class=\"verdict\">ready</span>".into(),
        };
        let _ = writeln!(out, "<td>{status}");
    }
    *out += "</table></div></section>\n";
}

fn distributions(out: &mut String, r: &Report) {
    let axis = |i: usize| -> Vec<f64> { r.cases.iter().filter_map(|c| c.spacing_mm.get(i).copied()).collect() };
    let size = |i: usize| -> Vec<f64> { r.cases.iter().filter_map(|c| c.size.get(i).map(|v| *v as f64)).collect() };
    let mut drawn = String::new();
    for (i, name) in ["z", "y", "x"].iter().enumerate() {
        drawn += &charts::histogram(&format!("Spacing along {name}"), "mm", &axis(i), 24);
    }
    for (i, name) in ["z", "y", "x"].iter().enumerate() {
        drawn += &charts::histogram(&format!("Size along {name}"), "voxels", &size(i), 24);
    }
    // Each picture's own steps, laid on one scale for the set.
    let pictures: Vec<&mosaic::Picture> = r.cases.iter().filter_map(|c| c.picture.as_ref()).collect();
    let low = pictures.iter().map(|p| p.low as f64).fold(f64::INFINITY, f64::min);
    let high = pictures.iter().map(|p| p.high as f64).fold(f64::NEG_INFINITY, f64::max);
    if high > low {
        let mut heights = vec![0.0; 48];
        for p in &pictures {
            let step = (p.high - p.low) as f64 / p.histogram.len().max(1) as f64;
            for (i, share) in p.histogram.iter().enumerate() {
                let value = p.low as f64 + (i as f64 + 0.5) * step;
                heights[(((value - low) / (high - low) * 48.0) as usize).min(47)] += *share as f64;
            }
        }
        drawn += &charts::bars("Values on the planes that are shown, 0.5 % at either end left out", "value", low, high, &heights);
    }
    if !drawn.is_empty() {
        let _ = writeln!(out, "<section><h2>The set</h2><div class=\"charts named\">{drawn}</div></section>");
    }
}

fn shelves(out: &mut String, r: &Report) {
    table(
        out,
        "shelves",
        "Time and shelves",
        &["Stage", "Made", "Reused", "Left out", "Took", "On disk", "From RAM", "From NVMe", "From disk", "Waited for data"],
        r.nodes.len(),
    );
    for n in &r.nodes {
        let all = (n.ram_hits + n.nvme_hits + n.disk_reads).max(1) as f64;
        let share = |hits: i64| if hits == 0 { String::new() } else { format!("{hits} ({:.0} %)", hits as f64 / all * 100.0) };
        let took = if n.made > 0 { duration(n.took_ms) } else { String::new() };
        let waited = match n.waited_ms {
            0 => String::new(),
            ms => format!("{} ({:.0} %)", duration(ms), ms as f64 / n.took_ms.max(1) as f64 * 100.0),
        };
        let _ = writeln!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{took}<td>{}<td>{}<td>{}<td>{}<td>{waited}",
            escape(&n.name),
            n.made,
            n.reused,
            n.quarantined + n.failed,
            size_text(n.bytes),
            share(n.ram_hits),
            share(n.nvme_hits),
            share(n.disk_reads)
        );
    }
    *out += "</table></div></section>\n";
}

fn provenance(out: &mut String, r: &Report) {
    table(out, "runs", "Runs", &["Run", "Purpose", "Status", "Took", "Voxmill", "Seed", "Jobs", "Configuration"], r.runs.len());
    for run in &r.runs {
        let took = run.ended_ms.map_or("running, or killed".into(), |end| duration(end - run.started_ms));
        let config: String = run.config_hash.chars().take(8).collect();
        let cells = [&run.run, &run.purpose, &run.status, &took, &run.voxmill, &run.seed.to_string(), &run.jobs.to_string(), &config]
            .map(|t| escape(t));
        let _ = writeln!(out, "<tr><td>{}", cells.join("<td>"));
    }
    *out += "</table></div></section>\n";
    let _ = writeln!(
        out,
        "<section><h2>The pipeline</h2><details><summary>YAML as it stands now</summary><pre tabindex=\"0\">{}</pre></details></section>",
        lines_escaped(&r.text)
    );
}

/// Line ends stay.
fn lines_escaped(text: &str) -> String {
    text.lines().map(escape).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_thinned_and_short_ones_are_not() {
        let line = |n: usize| -> Vec<(f64, f64)> { (0..n).map(|i| (i as f64, 1.0)).collect() };
        assert_eq!(thinned(line(600)), line(600));
        let thin = thinned(line(1201));
        assert_eq!((thin.len(), thin[0], thin[400]), (401, (1.0, 1.0), (1200.0, 1.0)));
    }

    #[test]
    fn times_are_short() {
        assert_eq!([400, 42_000, 185_000, 8_040_000].map(duration), ["0.4 s", "42 s", "3 min 5 s", "2 h 14 min"]);
    }

    #[test]
    fn hostile_names_stay_text_and_an_empty_pipeline_has_a_page() {
        let evil = "<script>alert(1)</script>";
        let case = Case { name: evil.into(), patient: evil.into(), quarantined: Some((evil.into(), evil.into())), ..Case::default() };
        let r = Report {
            title: evil.into(),
            about: vec![(evil.into(), evil.into())],
            nodes: Vec::new(),
            cases: vec![case],
            classes: vec![evil.into()],
            trainings: Vec::new(),
            runs: Vec::new(),
            text: evil.into(),
        };
        let page = html(&r);
        assert_eq!(page.matches("<script>").count(), 1, "our own");
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing is fetched");
    }
}
