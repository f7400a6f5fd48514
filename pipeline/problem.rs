//! What is wrong with a file, and how it is shown: line, column, the text underlined, a help line.

use std::fmt;
use std::io::IsTerminal;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode};
use voxmill_schemas::spec::{Mistake, Place};

/// A mistake, or as a warning something doubtful.
#[derive(Clone, Debug)]
pub struct Problem {
    pub message: String,
    pub help: String,
    /// What to underline, each with a word beside it (or none); the first is where the problem is.
    pub places: Vec<(Place, String)>,
    pub is_warning: bool,
}

impl From<Mistake> for Problem {
    fn from(m: Mistake) -> Self {
        Self { message: m.message, help: m.help, places: m.places, is_warning: false }
    }
}

/// Sorts problems as a reader meets them: those without a place, then file by file, top to bottom; what is said twice of one place is said once
/// (a number that stands for three axes and fits none).
pub fn sort(problems: &mut Vec<Problem>) {
    let mut files: Vec<String> = Vec::new();
    for (place, _) in problems.iter().filter_map(|p| p.places.first()) {
        if !files.contains(&place.source.name) {
            files.push(place.source.name.clone());
        }
    }
    problems.sort_by_key(|p| p.places.first().map(|(at, _)| (files.iter().position(|f| *f == at.source.name), at.start)));
    let place = |p: &Problem| p.places.first().map(|(at, _)| (at.source.name.clone(), at.start, at.end));
    problems.dedup_by(|b, a| a.message == b.message && a.help == b.help && place(a) == place(b));
}

/// All problems as text for a terminal, in colour where stderr is one and `NO_COLOR` is not set, with their number at the end.
pub fn render(problems: &[Problem]) -> String {
    render_as(problems, std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
}

pub fn render_as(problems: &[Problem], has_colour: bool) -> String {
    let theme = if has_colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_wrap_lines(false).with_context_lines(1).without_syntax_highlighting();
    let mut out = String::new();
    for p in problems {
        let report = Report::of(p);
        handler.render_report(&mut out, &report).expect("writing to a string does not fail");
        if !out.ends_with("\n\n") {
            out.push('\n');
        }
    }
    let warnings = problems.iter().filter(|p| p.is_warning).count();
    let counts = [(problems.len() - warnings, "mistake"), (warnings, "warning")];
    let words: Vec<_> =
        counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}{}", if *n == 1 { "" } else { "s" })).collect();
    out.push_str(&format!("{}\n", words.join(", ")));
    out
}

/// A problem as miette takes it: one source, labels inside it. Places in other files are named in the help.
#[derive(Debug)]
struct Report {
    message: String,
    help: String,
    source: Option<NamedSource<String>>,
    labels: Vec<LabeledSpan>,
    is_warning: bool,
}

impl Report {
    fn of(p: &Problem) -> Self {
        let mut help = p.help.clone();
        let mut labels = Vec::new();
        let first = p.places.first().map(|(place, _)| place);
        for (place, label) in &p.places {
            if first.is_some_and(|f| f.source.name == place.source.name) {
                let label = (!label.is_empty()).then(|| label.clone());
                let length = place.end.saturating_sub(place.start);
                labels.push(if labels.is_empty() {
                    LabeledSpan::new_primary_with_span(label, (place.start, length))
                } else {
                    LabeledSpan::new_with_span(label, (place.start, length))
                });
            } else {
                let (line, column) = place.line_column();
                help.push_str(&format!(" ({label}: {}:{line}:{column})", place.source.name));
            }
        }
        let source = first.map(|f| NamedSource::new(&f.source.name, f.source.text.clone()));
        Self { message: folded(&p.message), help: folded(&help), source, labels, is_warning: p.is_warning }
    }
}

/// Lines of at most 100 characters, broken at spaces only: a path or a key stays whole.
fn folded(text: &str) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        let width = word.chars().count();
        if column > 0 && column + 1 + width > 100 {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += width;
    }
    out
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Report {}

impl Diagnostic for Report {
    fn severity(&self) -> Option<Severity> {
        Some(if self.is_warning { Severity::Warning } else { Severity::Error })
    }
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        (!self.help.is_empty()).then(|| Box::new(&self.help) as Box<dyn fmt::Display>)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|s| s as &dyn SourceCode)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        (!self.labels.is_empty()).then(|| Box::new(self.labels.iter().cloned()) as Box<dyn Iterator<Item = LabeledSpan>>)
    }
}
