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
    bars: MultiProgress,
    width: usize,
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
    said: Mutex<Instant>,
}

impl Progressing {
    /// `names`: of the nodes that will run, to line them up.
    pub fn new<'n>(style: Style, names: impl Iterator<Item = &'n str>) -> Self {
        Self { style, bars: MultiProgress::new(), width: names.map(str::len).max().unwrap_or(0) }
    }

    pub fn node(&self, name: &str, scope: Scope, n: usize) -> Bar<'_> {
        let bar = (self.style == Style::Bars).then(|| {
            let bar = self.bars.add(ProgressBar::new(n as u64));
            let unit = if scope == Scope::Case { "cases" } else { "steps" };
            let template = format!("  {{prefix:{}}} {{bar:24}} {{pos:>4}}/{{len}} {unit}  {{elapsed:>4}}  {{wide_msg}}", self.width);
            bar.set_style(ProgressStyle::with_template(&template).expect("the template is a constant").progress_chars("━╸ "));
            bar.set_prefix(name.to_string());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        self.event(&serde_json::json!({"event": "node", "node": name, "of": n}));
        let now = Instant::now();
        Bar { of: self, name: name.into(), scope, n, bar, bytes: AtomicU64::new(0), started: now, said: Mutex::new(now) }
    }

    pub fn node_failed(&self, end: &NodeEnd) {
        let why = end.failed.as_deref().unwrap_or_default();
        self.event(&serde_json::json!({"event": "failed", "node": end.name, "why": why}));
        if self.style != Style::Json {
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

    fn event(&self, value: &serde_json::Value) {
        if self.style == Style::Json {
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
                if let Some(bar) = &self.bar
                    && self.scope == Scope::Set
                {
                    bar.set_length(of);
                    bar.set_position(done);
                }
                self.of.event(&serde_json::json!({"event": "steps", "node": self.name, "done": done, "of": of}));
            }
            Progress::Say(text) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(text);
                } else if self.of.style == Style::Lines {
                    // A line each second at most: logs of a long training stay readable.
                    let mut last = self.said.lock().expect("printing does not panic");
                    if last.elapsed() >= Duration::from_secs(1) {
                        *last = Instant::now();
                        eprintln!("  {:w$} {text}", self.name, w = self.of.width);
                    }
                } else {
                    self.of.event(&serde_json::json!({"event": "say", "node": self.name, "text": text}));
                }
            }
            Progress::Warn(text) => self.warn(&text),
        }
    }

    pub fn warn(&self, text: &str) {
        self.of.event(&serde_json::json!({"event": "warning", "node": self.name, "text": text}));
        if matches!(self.of.style, Style::Bars | Style::Lines) {
            self.of.line(&format!("  {:w$} warning: {text}", self.name, w = self.of.width));
        }
    }

    /// `1.2 GB/s, 8 s left`; empty before anything is known.
    fn rate(&self) -> String {
        let s = self.started.elapsed().as_secs_f64();
        let bytes = self.bytes.load(Ordering::Relaxed) as f64;
        let mut parts = Vec::new();
        if bytes > 0.0 && s > 0.05 {
            parts.push(format!("{:.0} MB/s", bytes / 1e6 / s));
        }
        if let Some(bar) = &self.bar
            && bar.position() > 0
            && (bar.position() as usize) < self.n
        {
            parts.push(format!("{} left", seconds(s / bar.position() as f64 * (self.n as f64 - bar.position() as f64))));
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
        let text = format!("{}  {}  {}", parts.join(", "), seconds(self.started.elapsed().as_secs_f64()), self.rate());
        match (&self.bar, self.of.style) {
            (Some(bar), _) => {
                bar.set_length(bar.length().unwrap_or(0).max(1));
                bar.set_position(bar.length().unwrap_or(1));
                bar.abandon_with_message(parts.join(", ") + "  " + &self.rate());
            }
            (None, Style::Lines) => eprintln!("  {:w$} {}", self.name, text.trim_end(), w = self.of.width),
            _ => self.of.event(&serde_json::json!({"event": "done", "node": self.name, "made": end.made, "reused": end.reused,
                "left_out": end.left_out, "quarantined": end.quarantined.len(), "took_ms": self.started.elapsed().as_millis() as u64})),
        }
    }
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
