//! Drawings of the report as SVG: the graph of the pipeline, lines of a training, bars of a distribution, dots of scores. Colours come from the page's style
//! sheet, so light and dark hold; each drawing has a title that says in words what it shows.

use std::fmt::Write;

use crate::archive_page::escape;
use crate::report::{Node, page};

/// A line of a chart.
pub struct Line {
    pub name: String,
    /// x, y
    pub points: Vec<(f64, f64)>,
}

/// Place of the plot inside a chart's 640 × 240.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 614.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 206.0;

fn frame(out: &mut String, title: &str, class: &str) {
    let title = escape(title);
    let _ = write!(
        out,
        "<svg class=\"chart {class}\" viewBox=\"0 0 640 240\" role=\"img\" aria-label=\"{title}\"><title>{title}</title><text class=\"name\" x=\"10\" y=\"18\">{title}</text>"
    );
}

/// Round numbers that cover a range, at most six.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    if high <= low || !(high - low).is_finite() {
        return vec![low];
    }
    let rough = (high - low) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= rough).unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    (first..).map(|i| i as f64 * step).take_while(|v| *v <= high + step * 1e-9).collect()
}

fn number(v: f64) -> String {
    let text = if v != 0.0 && (v.abs() < 1e-3 || v.abs() >= 1e6) { format!("{v:.1e}") } else { format!("{:.3}", v) };
    if text.contains('.') && !text.contains('e') { text.trim_end_matches('0').trim_end_matches('.').to_string() } else { text }
}

/// Lines over one axis. `y_range`: fixed, or from the values.
pub fn lines(title: &str, x_name: &str, lines: &[Line], y_range: Option<(f64, f64)>) -> String {
    let all = || lines.iter().flat_map(|l| &l.points).filter(|(_, y)| y.is_finite());
    if all().next().is_none() {
        return String::new();
    }
    let span = |pick: fn(&(f64, f64)) -> f64| {
        let (low, high) = all().map(pick).fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if low == high { (low - 0.5, high + 0.5) } else { (low, high) }
    };
    let (x0, x1) = span(|p| p.0);
    let (y0, y1) = y_range.unwrap_or_else(|| span(|p| p.1));
    let at = |(x, y): (f64, f64)| {
        (LEFT + (x - x0) / (x1 - x0) * (RIGHT - LEFT), BOTTOM - ((y - y0) / (y1 - y0)).clamp(0.0, 1.0) * (BOTTOM - TOP))
    };
    let mut out = String::new();
    frame(&mut out, title, "lines");
    for t in ticks(y0, y1) {
        let y = at((x0, t)).1;
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/><text x=\"{}\" y=\"{:.1}\" class=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            number(t)
        );
    }
    for t in ticks(x0, x1) {
        let x = at((t, y0)).0;
        let _ = write!(out, "<text x=\"{x:.1}\" y=\"{}\" class=\"middle\">{}</text>", BOTTOM + 16.0, number(t));
    }
    let _ = write!(out, "<text x=\"{RIGHT}\" y=\"{}\" class=\"end\">{}</text>", BOTTOM + 30.0, escape(x_name));
    for (i, line) in lines.iter().enumerate() {
        let mut path = String::new();
        for p in line.points.iter().filter(|p| p.1.is_finite()) {
            let (x, y) = at(*p);
            let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { "M" } else { "L" });
        }
        let _ = write!(out, "<path class=\"line c{}\" d=\"{path}\"/>", i % 6);
        // One point is no line.
        if let [p] = line.points[..] {
            let (x, y) = at(p);
            let _ = write!(out, "<circle class=\"dot c{}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>", i % 6);
        }
        let x = LEFT + 8.0 + 130.0 * i as f64;
        let _ = write!(
            out,
            "<path class=\"line c{}\" d=\"M{x} 232h16\"/><text x=\"{}\" y=\"236\">{}</text>",
            i % 6,
            x + 20.0,
            escape(&line.name)
        );
    }
    out += "</svg>";
    out
}

/// How often values occur, in `bins` equal steps.
pub fn histogram(title: &str, unit: &str, values: &[f64], bins: usize) -> String {
    let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(*v), b.max(*v)));
    if values.is_empty() {
        return String::new();
    }
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    let mut counts = vec![0.0; bins];
    values.iter().for_each(|v| counts[(((v - low) / (high - low) * bins as f64) as usize).min(bins - 1)] += 1.0);
    bars(title, unit, low, high, &counts)
}

/// Bars of given heights over a range.
pub fn bars(title: &str, unit: &str, low: f64, high: f64, heights: &[f64]) -> String {
    let most = heights.iter().copied().fold(0.0, f64::max);
    if heights.is_empty() || most <= 0.0 {
        return String::new();
    }
    let mut out = String::new();
    frame(&mut out, title, "bars");
    let width = (RIGHT - LEFT) / heights.len() as f64;
    for (i, h) in heights.iter().enumerate().filter(|(_, h)| **h > 0.0) {
        let height = h / most * (BOTTOM - TOP);
        let _ = write!(
            out,
            "<rect class=\"bar\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"/>",
            LEFT + width * i as f64,
            BOTTOM - height,
            (width - 1.0).max(0.5)
        );
    }
    for t in ticks(low, high) {
        let x = LEFT + (t - low) / (high - low) * (RIGHT - LEFT);
        let _ = write!(out, "<text x=\"{x:.1}\" y=\"{}\" class=\"middle\">{}</text>", BOTTOM + 16.0, number(t));
    }
    let _ = write!(
        out,
        "<path class=\"axis\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/><text x=\"{RIGHT}\" y=\"{}\" class=\"end\">{}</text></svg>",
        BOTTOM + 30.0,
        escape(unit)
    );
    out
}

/// Scores from 0 to 1, a row of dots for each name and a stroke at its mean.
pub fn dots(title: &str, rows: &[(String, Vec<f64>)]) -> String {
    let rows: Vec<_> = rows.iter().filter(|(_, v)| !v.is_empty()).collect();
    if rows.is_empty() {
        return String::new();
    }
    let height = 34.0 * rows.len() as f64 + 30.0;
    let title = escape(title);
    let mut out =
        format!("<svg class=\"chart dots\" viewBox=\"0 0 640 {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>");
    // Room for the longest name and its mean.
    let longest = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let left = ((longest + 7) as f64 * 7.2).clamp(120.0, 340.0);
    let at = |v: f64| left + v.clamp(0.0, 1.0) * (RIGHT - left);
    for t in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] {
        let x = at(t);
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{x:.1} 4V{}\"/><text x=\"{x:.1}\" y=\"{}\" class=\"middle\">{}</text>",
            height - 24.0,
            height - 8.0,
            number(t)
        );
    }
    for (i, (name, values)) in rows.iter().enumerate() {
        let y = 20.0 + 34.0 * i as f64;
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let _ = write!(out, "<text x=\"{}\" y=\"{}\" class=\"end\">{} {mean:.3}</text>", left - 8.0, y + 4.0, escape(name));
        for (k, v) in values.iter().enumerate() {
            // Dots of equal scores stand beside each other.
            let dy = (k * 7 % 13) as f64 - 6.0;
            let _ = write!(out, "<circle class=\"dot c{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"/>", i % 6, at(*v), y + dy);
        }
        let _ = write!(out, "<path class=\"mean\" d=\"M{:.1} {}V{}\"/>", at(mean), y - 11.0, y + 11.0);
    }
    out += "</svg>";
    out
}

/// The pipeline from left to right: a node stands one column behind the last of those it takes from.
pub fn graph(nodes: &[Node]) -> String {
    const WIDE: f64 = 150.0;
    const HIGH: f64 = 58.0;
    let mut column = vec![0usize; nodes.len()];
    for (i, n) in nodes.iter().enumerate() {
        column[i] = n.from.iter().map(|up| column[*up] + 1).max().unwrap_or(0);
    }
    let mut filled = vec![0usize; column.iter().max().map_or(0, |m| m + 1)];
    let place: Vec<(f64, f64)> = column
        .iter()
        .map(|c| {
            let row = filled[*c];
            filled[*c] += 1;
            (12.0 + *c as f64 * (WIDE + 46.0), 12.0 + row as f64 * (HIGH + 26.0))
        })
        .collect();
    let width = 24.0 + filled.len() as f64 * (WIDE + 46.0) - 46.0;
    let height = 24.0 + filled.iter().max().copied().unwrap_or(0) as f64 * (HIGH + 26.0) - 26.0;
    // Smaller than this it is scrolled, not shrunk.
    let min_width = width * 0.7;
    let mut out = format!(
        "<svg class=\"graph\" style=\"min-width:{min_width}px\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"the stages and what flows between them\">\
         <title>The stages and what flows between them</title>"
    );
    for (i, n) in nodes.iter().enumerate() {
        for up in &n.from {
            let ((x0, y0), (x1, y1)) = (place[*up], place[i]);
            let (x0, y0, x1, y1) = (x0 + WIDE, y0 + HIGH / 2.0, x1, y1 + HIGH / 2.0);
            let bend = ((x1 - x0) / 2.0).max(20.0);
            let _ = write!(out, "<path class=\"edge\" d=\"M{x0} {y0}C{} {y0} {} {y1} {x1} {y1}\"/>", x0 + bend, x1 - bend);
        }
    }
    for (n, (x, y)) in nodes.iter().zip(&place) {
        let state = match n {
            Node { failed: 1.., .. } => "failed",
            Node { quarantined: 1.., .. } => "warned",
            Node { made: 0, reused: 0, .. } => "idle",
            _ => "done",
        };
        let mut said: Vec<String> = Vec::new();
        for (count, word) in [(n.made, "made"), (n.reused, "reused"), (n.quarantined, "left out"), (n.failed, "failed")] {
            said.extend((count > 0).then(|| format!("{count} {word}")));
        }
        let counts = if said.is_empty() { "not run".to_string() } else { said.join(", ") };
        let took = if n.made > 0 { page::duration(n.took_ms) } else { String::new() };
        let _ = write!(
            out,
            "<g class=\"node {state}\"><title>{0}: {1}; {counts}</title><rect x=\"{x}\" y=\"{y}\" width=\"{WIDE}\" height=\"{HIGH}\" rx=\"8\"/>\
             <text x=\"{2}\" y=\"{3}\" class=\"name\">{0}</text><text x=\"{4}\" y=\"{3}\" class=\"end quiet\">{took}</text>\
             <text x=\"{2}\" y=\"{5}\" class=\"quiet\">{1}</text><text x=\"{2}\" y=\"{6}\">{counts}</text></g>",
            escape(&n.name),
            n.stage,
            x + 10.0,
            y + 18.0,
            x + WIDE - 10.0,
            y + 33.0,
            y + 49.0
        );
    }
    out += "</svg>";
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(3.0, 47.0), [10.0, 20.0, 30.0, 40.0]);
        assert_eq!(ticks(5.0, 5.0), [5.0]);
        assert_eq!([0.25, 100.0, 0.00002, 0.0].map(number), ["0.25", "100", "2.0e-5", "0"]);
    }

    #[test]
    fn nothing_to_draw_draws_nothing() {
        let empty = Line { name: "a".into(), points: vec![(1.0, f64::NAN)] };
        assert_eq!(lines("t", "x", &[empty], None), "");
        assert_eq!(histogram("t", "mm", &[], 8) + &dots("t", &[("a".into(), vec![])]) + &bars("t", "HU", 0.0, 1.0, &[0.0]), "");
    }

    #[test]
    fn names_are_escaped_and_edges_are_drawn() {
        let node = |name: &str, from: &[usize]| Node { name: name.into(), from: from.to_vec(), made: 1, ..Node::default() };
        let svg = graph(&[node("<a>", &[]), node("b", &[0]), node("c", &[0, 1])]);
        assert!(!svg.contains("<a>") && svg.matches("class=\"edge\"").count() == 3, "{svg}");
    }
}
