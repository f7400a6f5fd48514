//! What users see while a run goes on: a bar a node on a terminal, plain lines otherwise, JSON lines for machines, nothing when quiet.
//! All of it goes to stderr; stdout belongs to results.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use voxmill_schemas::artifact::Scope;
use voxmill_stages::stage::Progress;

use crate::run::{NodeEnd, Summary};

/// Who is watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Bars,
    Lines,
    Json,
    Quiet,
}

impl Style {
    pub fn choose(quiet: bool, json: bool) -> Self {
        match (quiet, json) {
            (_, true) => Style::Json,
            (true, _) => Style::Quiet,
            _ if std::io::stderr().is_terminal() && std::env::var_os("CI").is_none() => Style::Bars,
            _ => Style::Lines,
        }
    }
}

/// The display of a run.
pub struct Progressing {
    pub style: Style,
    /// What failed, and what is doubtful of a case, is said at the end by whoever asked for the run.
    pub is_told_later: bool,
    bars: MultiProgress,
    width: usize,
    started: Instant,
}

/// The display of one node.
pub struct Bar<'a> {
    of: &'a Progressing,
    name: String,
    scope: Scope,
    n: usize,
    bar: Option<ProgressBar>,
    bytes: AtomicU64,
    started: Instant,
    inside: Mutex<Inside>,
}

/// What a stage has told of itself.
#[derive(Default)]
struct Inside {
    /// When the first step was told and which it was: a training that goes on begins in the middle.
    first: Option<(Instant, u64)>,
    done: u64,
    of: u64,
    said: String,
    /// When a line was last written.
    written: Option<Instant>,
}

impl Progressing {
    /// `names`: of the nodes that will run, to line them up.
    pub fn new<'n>(style: Style, names: impl Iterator<Item = &'n str>) -> Self {
        let width = names.map(str::len).max().unwrap_or(0);
        Self { style, is_told_later: false, bars: MultiProgress::new(), width, started: Instant::now() }
    }

    pub fn node(&self, name: &str, scope: Scope, n: usize) -> Bar<'_> {
        let bar = (self.style == Style::Bars).then(|| {
            let bar = self.bars.add(ProgressBar::new(n as u64));
            // What a training says beside its bar needs the room.
            let counted = if scope == Scope::Case { "{bar:24} {pos:>4}/{len} cases" } else { "{bar:10} {pos:>4}/{len}" };
            let template = format!("  {{prefix:{}}} {counted}  {{wide_msg}}", self.width);
            bar.set_style(ProgressStyle::with_template(&template).expect("the template is a constant").progress_chars("━╸ "));
            bar.set_prefix(name.to_string());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        self.event(&serde_json::json!({"event": "node", "node": name, "of": n}));
        Bar { of: self, name: name.into(), scope, n, bar, bytes: AtomicU64::new(0), started: Instant::now(), inside: Mutex::default() }
    }

    pub fn node_failed(&self, end: &NodeEnd) {
        let why = end.failed.as_deref().unwrap_or_default();
        self.event(&serde_json::json!({"event": "failed", "node": end.name, "why": why}));
        if self.style != Style::Json && !self.is_told_later {
            self.line(&format!("  {:w$} failed: {why}", end.name, w = self.width));
        }
    }

    /// A line above the bars. Failures are shown even when quiet.
    pub fn line(&self, text: &str) {
        match self.style {
            Style::Bars => {
                let _ = self.bars.println(text);
            }
            _ => eprintln!("{text}"),
        }
    }

    /// `at`: milliseconds since the run began.
    fn event(&self, value: &serde_json::Value) {
        if self.style == Style::Json {
            let mut value = value.clone();
            value["at"] = (self.started.elapsed().as_millis() as u64).into();
            eprintln!("{value}");
        }
    }

    pub fn summary(&self, s: &Summary, code: u8) {
        let nodes: Vec<_> = s.nodes.iter().map(|n| serde_json::json!({
            "node": n.name, "made": n.made, "reused": n.reused, "left_out": n.left_out, "quarantined": n.quarantined, "failed": n.failed,
            "took_ms": n.took_ms, "published": n.published,
        })).collect();
        self.event(&serde_json::json!({"event": "end", "exit_code": code, "nodes": nodes}));
    }
}

impl Bar<'_> {
    pub fn case_done(&self) {
        if let Some(bar) = &self.bar
            && self.scope == Scope::Case
        {
            bar.inc(1);
            bar.set_message(self.rate());
        }
    }

    /// What a stage reports from inside.
    pub fn news(&self, p: Progress) {
        match p {
            Progress::Bytes(n) => {
                self.bytes.fetch_add(n, Ordering::Relaxed);
            }
            Progress::Steps { done, of } => {
                let mut inside = self.inside.lock().expect("printing does not panic");
                inside.first.get_or_insert_with(|| (Instant::now(), done));
                (inside.done, inside.of) = (done, of);
                if let Some(bar) = &self.bar
                    && self.scope == Scope::Set
                {
                    bar.set_length(of);
                    bar.set_position(done);
                    bar.set_message(inside.text());
                }
                self.of.event(&serde_json::json!({"event": "steps", "node": self.name, "done": done, "of": of}));
            }
            Progress::Say(text) => {
                self.of.event(&serde_json::json!({"event": "say", "node": self.name, "text": text}));
                let mut inside = self.inside.lock().expect("printing does not panic");
                inside.said = text;
                if let Some(bar) = &self.bar {
                    bar.set_message(inside.text());
                } else if self.of.style == Style::Lines {
                    // A line each second at most: logs of a long training stay readable.
                    let last = inside.written.unwrap_or(self.started);
                    if last.elapsed() >= Duration::from_secs(1) {
                        inside.written = Some(Instant::now());
                        eprintln!("  {:w$} {}", self.name, inside.said, w = self.of.width);
                    }
                }
            }
            Progress::Waited(_) => {}
            Progress::Saved { epoch, step, .. } => {
                self.of.event(&serde_json::json!({"event": "checkpoint", "node": self.name, "epoch": epoch, "step": step}));
            }
            Progress::Warn(text) => self.warn(&text),
        }
    }

    pub fn warn(&self, text: &str) {
        self.of.event(&serde_json::json!({"event": "warning", "node": self.name, "text": text}));
        if matches!(self.of.style, Style::Bars | Style::Lines) && !self.of.is_told_later {
            self.of.line(&format!("  {:w$} warning: {text}", self.name, w = self.of.width));
        }
    }

    /// `1.2 GB/s, 8 s left`; empty before anything is known.
    fn rate(&self) -> String {
        let s = self.started.elapsed().as_secs_f64();
        let bytes = self.bytes.load(Ordering::Relaxed) as f64;
        let mut parts = Vec::new();
        // Below that it reads `0 MB/s`.
        if bytes / 1e6 / s >= 0.5 && s > 0.05 {
            parts.push(format!("{:.0} MB/s", bytes / 1e6 / s));
        }
        if let Some(bar) = &self.bar
            && self.scope == Scope::Case
        {
            let (done, of) = (bar.position() as f64, self.n as f64);
            parts.extend(if done > 0.0 { left(s / done * (of - done)) } else { None });
        }
        parts.join(", ")
    }

    pub fn finish(&self, end: &NodeEnd) {
        let mut parts = Vec::new();
        let mut count = |n: usize, what: &str| {
            if n > 0 {
                parts.push(format!("{n} {what}"));
            }
        };
        count(end.made, "made");
        count(end.reused, "reused");
        count(end.left_out, "left out");
        count(end.quarantined.len(), "quarantined");
        let text = |rest: &str| format!("{}  {}  {rest}", parts.join(", "), seconds(self.started.elapsed().as_secs_f64()));
        match (&self.bar, self.of.style) {
            (Some(bar), _) => {
                bar.set_length(bar.length().unwrap_or(0).max(1));
                bar.set_position(bar.length().unwrap_or(1));
                let said = self.inside.lock().expect("printing does not panic").said.clone();
                bar.abandon_with_message(text(&if said.is_empty() { self.rate() } else { said }).trim_end().to_string());
            }
            (None, Style::Lines) => eprintln!("  {:w$} {}", self.name, text(&self.rate()).trim_end(), w = self.of.width),
            _ => self.of.event(&serde_json::json!({"event": "done", "node": self.name, "made": end.made, "reused": end.reused,
                "left_out": end.left_out, "quarantined": end.quarantined.len(), "took_ms": self.started.elapsed().as_millis() as u64})),
        }
    }

    /// A node that ends before its work is done: the bar stays where it stands.
    pub fn stopped(&self, end: &NodeEnd, is_cancelled: bool) {
        let what = if is_cancelled { "stopped" } else { "failed" };
        let inside = self.inside.lock().expect("printing does not panic");
        let took = seconds(self.started.elapsed().as_secs_f64());
        if let Some(bar) = &self.bar {
            bar.abandon_with_message(format!("{what}  {took}  {}", inside.said).trim_end().to_string());
        } else if self.of.style == Style::Lines && is_cancelled {
            let (done, of) = if inside.of > 0 { (inside.done, inside.of) } else { ((end.made + end.reused) as u64, self.n as u64) };
            eprintln!("  {:w$} stopped after {done} of {of}  {took}", self.name, w = self.of.width);
        } else if is_cancelled {
            self.of.event(&serde_json::json!({"event": "stopped", "node": self.name, "done": inside.done, "of": inside.of}));
        }
    }
}

impl Inside {
    /// `12 min left  epoch 3/30  loss 0.412`: what was said last, after the time that the steps so far let expect.
    fn text(&self) -> String {
        let pace = self.first.filter(|(_, n)| self.done > *n).map(|(at, n)| at.elapsed().as_secs_f64() / (self.done - n) as f64);
        let left = pace.and_then(|pace| left(pace * self.of.saturating_sub(self.done) as f64));
        let parts: Vec<String> = left.into_iter().chain((!self.said.is_empty()).then(|| self.said.clone())).collect();
        parts.join("  ")
    }
}

/// `85 s left`, `12 min left`, `3 h 20 min left`; nothing in the last second.
fn left(s: f64) -> Option<String> {
    let minutes = (s / 60.0).ceil() as u64;
    match s {
        s if s < 1.0 => None,
        s if s < 100.0 => Some(format!("{s:.0} s left")),
        _ if minutes < 100 => Some(format!("{minutes} min left")),
        _ => Some(format!("{} h {:02} min left", minutes / 60, minutes % 60)),
    }
}

/// Why something is wrong without its name before it, where the name was already said.
pub fn without_name<'a>(what: &str, why: &'a str) -> &'a str {
    why.strip_prefix(what).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(why)
}

/// `0.3 s`, `12 s`, `3 min 05 s`.
pub fn seconds(s: f64) -> String {
    if s < 10.0 {
        format!("{s:.1} s")
    } else if s < 60.0 {
        format!("{s:.0} s")
    } else {
        format!("{} min {:02} s", (s / 60.0) as u64, s as u64 % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_is_short_and_never_nothing() {
        let all: Vec<Option<String>> = [0.3, 12.4, 99.0, 130.0, 12_000.0].map(left).into();
        assert_eq!(
            all,
            [None, Some("12 s left"), Some("99 s left"), Some("3 min left"), Some("3 h 20 min left")].map(|t| t.map(String::from))
        );
    }

    #[test]
    fn a_name_is_said_once() {
        assert_eq!(without_name("se-1", "se-1: the volume has no labels"), "the volume has no labels");
        assert_eq!(without_name("se-1", "se-12: the volume has no labels"), "se-12: the volume has no labels");
    }

    #[test]
    fn what_is_said_stays_beside_the_time_left() {
        let began = Instant::now().checked_sub(Duration::from_secs(10));
        let inside = Inside { first: began.map(|at| (at, 20)), done: 30, of: 40, said: "epoch 3/4  loss 0.412".into(), written: None };
        assert_eq!(inside.text(), "10 s left  epoch 3/4  loss 0.412");
    }
}
