//! One readable page on what became of an archive: counts that reconcile, every series with a picture, every refusal with its slices and millimetres. The page
//! stands alone: no network, no other file. Text of an archive is hostile and is escaped, all of it.

use std::collections::BTreeMap;
use std::fmt::Write;

use voxmill_schemas::tables::{ArchiveRow, FileRow};

use crate::convert::told::{Files, Tally};
use crate::thumbs::MOST;

pub const STYLE: &str = include_str!("archive_page.css");
pub const SCRIPT: &str = include_str!("archive_page.js");

/// What the page says.
pub struct Page<'a> {
    pub title: &'a str,
    /// How it was made: name, value.
    pub about: &'a [(String, String)],
    pub files: Files,
    pub images: Tally,
    /// `None`: labels were not asked for.
    pub labels: Option<Tally>,
    /// `None`: there are none.
    pub nifti: Option<Tally>,
    pub rows: &'a [ArchiveRow],
    pub verdicts: &'a [FileRow],
    /// Row → PNG of its middle slice.
    pub thumbs: &'a BTreeMap<usize, Vec<u8>>,
    /// Whether files and series go by pseudonyms.
    pub is_hidden: bool,
}

pub fn html(p: &Page) -> String {
    let mut out = String::new();
    let title = escape(p.title);
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n<main>\n<h1>{title}</h1>\n"
    );
    out += "<dl class=\"about\">";
    for (name, value) in p.about {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
    }
    out += "</dl>\n";
    counts(&mut out, p);
    refusals(&mut out, p.rows);
    series(&mut out, p);
    files(&mut out, p.verdicts);
    if p.is_hidden {
        out += "<p>Patients, series and files go by pseudonyms. <code>--name-file FILE</code> writes which file of the archive each one is, for \
                whoever ran the conversion.</p>\n";
    }
    let _ = write!(out, "</main>\n<script>\n{SCRIPT}</script>\n</html>\n");
    out
}

fn counts(out: &mut String, p: &Page) {
    let f = &p.files;
    let card = |name: &str, all: u64, parts: &[(&str, u64)]| {
        let sum = parts.iter().map(|(what, n)| format!("{n} {what}")).collect::<Vec<_>>().join(" + ");
        format!("<div class=\"card\"><h2>{name}</h2><p class=\"big\">{all}</p><p>= {sum}</p></div>")
    };
    let tally = |name: &str, t: &Tally| {
        let parts = [("converted", t.converted as u64), ("refused", t.refused as u64), ("left out", t.left_out as u64)];
        card(name, t.all as u64, &parts)
    };
    *out += "<section class=\"cards\" aria-label=\"Counts\">";
    *out += &card("Files seen", f.seen, &[("indexed", f.indexed), ("skipped", f.skipped), ("failed", f.failed)]);
    *out += &tally("Image volumes", &p.images);
    if let Some(labels) = &p.labels {
        *out += &tally("Label files", labels);
    }
    if let Some(nifti) = &p.nifti {
        *out += &tally("NIfTI files", nifti);
    }
    *out += "</section>\n";
    if !f.classes.is_empty() {
        let list = f.classes.iter().map(|(what, n)| format!("<li>{n} × {}</li>", escape(what))).collect::<String>();
        let _ = writeln!(out, "<section><h2>Skipped files, by what they are</h2><ul class=\"classes\">{list}</ul></section>");
    }
}

fn refusals(out: &mut String, rows: &[ArchiveRow]) {
    let refused: Vec<&ArchiveRow> = rows.iter().filter(|r| r.verdict == "refused").collect();
    if refused.is_empty() {
        return;
    }
    let _ = write!(out, "<section><h2>Refused, and why</h2><ul class=\"refused\">");
    // Volumes of one series that fail for one reason are one line.
    let mut lines: Vec<(&ArchiveRow, usize)> = Vec::new();
    for r in refused {
        match lines.last_mut() {
            Some((first, n)) if first.series == r.series && first.why == r.why => *n += 1,
            _ => lines.push((r, 1)),
        }
    }
    for (r, n) in lines {
        let why = escape(r.why.as_deref().unwrap_or("no reason was given"));
        let more = if n > 1 { format!(" <span class=\"n\">({n} volumes)</span>") } else { String::new() };
        let _ = write!(out, "<li><b>{}</b> <code>{}</code>{more} {why}</li>", escape(&r.modality), escape(&name(r)));
    }
    *out += "</ul></section>\n";
}

fn series(out: &mut String, p: &Page) {
    let has_text = p.rows.iter().any(|r| r.description.is_some());
    let mut columns = vec!["Slice", "Patient", "Series", "Kind", "Modality"];
    columns.extend(has_text.then_some("Description"));
    columns.extend(["Files", "Size z×y×x", "Spacing mm", "Values", "Verdict", "Notes"]);
    table(out, "series", "Series", &columns, p.rows.len());
    for (i, r) in p.rows.iter().enumerate() {
        let picture = match p.thumbs.get(&i) {
            Some(png) => format!("<img alt=\"middle slice\" loading=\"lazy\" src=\"data:image/png;base64,{}\">", base64(png)),
            None => String::new(),
        };
        let size = r.size_zyx.iter().map(i64::to_string).collect::<Vec<_>>().join("×");
        let spacing = r.spacing_zyx_mm.iter().map(|v| format!("{}", (v * 1000.0).round() / 1000.0)).collect::<Vec<_>>().join(" × ");
        let channels = if r.channels.len() > 1 { format!(", {} channels", r.channels.len()) } else { String::new() };
        let values = r.dtype.as_ref().map(|d| format!("{d} {}{channels}", r.unit.as_deref().unwrap_or_default())).unwrap_or_default();
        let mut notes: Vec<String> = r.why.iter().cloned().chain(r.notes.iter().cloned()).collect();
        notes.extend(r.labels_why.iter().map(|w| format!("labels: {w}")));
        if !r.labels.is_empty() {
            notes.push(format!("labels: {}", r.labels.join(", ")));
        }
        let _ = write!(out, "<tr class=\"{}\"><td>{picture}", r.verdict.replace(' ', "-"));
        let _ = write!(out, "<td><code>{}</code><td><code>{}</code>", escape(&r.patient), escape(&name(r)));
        let _ = write!(out, "<td class=\"kind\">{}", escape(&r.kind));
        let mut cell = |text: &str| out.push_str(&format!("<td>{}", escape(text)));
        cell(&r.modality);
        if has_text {
            cell(r.description.as_deref().unwrap_or_default());
        }
        cell(&r.n_instances.to_string());
        cell(&size);
        cell(&spacing);
        cell(&values);
        let _ = write!(out, "<td><span class=\"verdict\">{}</span><td>", escape(&r.verdict));
        for file in &r.files {
            let _ = write!(out, "<div><a href=\"{}\">{}</a></div>", escape(&link(file)), escape(file.rsplit('/').next().unwrap_or(file)));
        }
        for n in notes {
            let _ = write!(out, "<div>{}</div>", escape(&n));
        }
        *out += "\n";
    }
    *out += "</table></div>";
    if p.thumbs.len() == MOST {
        let _ = write!(out, "<p>Pictures of the first {MOST} volumes.</p>");
    }
    *out += "</section>\n";
}

fn files(out: &mut String, verdicts: &[FileRow]) {
    let told: Vec<&FileRow> = verdicts.iter().filter(|f| f.verdict != "indexed").collect();
    if told.is_empty() {
        return;
    }
    // The table of files has them all; a page must stay a page.
    let shown = told.iter().filter(|f| f.verdict == "failed").chain(told.iter().filter(|f| f.verdict != "failed")).take(MOST_FILES);
    table(out, "files", "Files that were skipped or failed", &["File", "Verdict", "Why"], told.len());
    for f in shown {
        let _ = writeln!(out, "<tr class=\"{}\"><td>{}<td>{}<td>{}", f.verdict, escape(&f.path), f.verdict, escape(&f.why));
    }
    *out += "</table></div>";
    if told.len() > MOST_FILES {
        let _ = write!(out, "<p>and {} more: see files.parquet</p>", told.len() - MOST_FILES);
    }
    *out += "</section>\n";
}

/// Rows of the table of files on the page.
const MOST_FILES: usize = 2000;

pub fn table(out: &mut String, id: &str, title: &str, columns: &[&str], n: usize) {
    let heads: String = columns.iter().map(|c| format!("<th scope=\"col\"><button type=\"button\">{c}</button>")).collect();
    let _ = write!(
        out,
        "<section><h2 id=\"{id}-title\">{title} <span class=\"n\">({n})</span></h2>\n\
         <p><label>Filter <input type=\"search\" data-of=\"{id}\" placeholder=\"any text\"></label> \
         <span role=\"status\" aria-live=\"polite\" id=\"{id}-shown\"></span></p>\n\
         <div class=\"scroll\"><table id=\"{id}\" aria-labelledby=\"{id}-title\"><thead><tr>{heads}</thead><tbody>\n"
    );
}

fn name(r: &ArchiveRow) -> String {
    if r.volume > 0 { format!("{} volume {}", r.series, r.volume) } else { r.series.clone() }
}

/// A path as a relative link.
fn link(path: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'-' | b'_');
    path.bytes().map(|b| if is_plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0u32, |w, b| w << 8 | *b as u32) << (8 * (3 - three.len()));
        for k in 0..4 {
            out.push(if k <= three.len() { DIGITS[(word >> (18 - 6 * k)) as usize & 63] as char } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy")];
        cases.iter().for_each(|(plain, coded)| assert_eq!(base64(plain.as_bytes()), *coded));
    }

    #[test]
    fn hostile_text_stays_text() {
        let row = ArchiveRow {
            description: Some("<script>alert(1)</script>".into()),
            series: "\"><img src=x onerror=alert(1)>".into(),
            files: vec!["a\" onclick=\"x/b.nii.gz".into()],
            verdict: "refused".into(),
            ..ArchiveRow::default()
        };
        let file = FileRow { path: "<b>".into(), verdict: "failed".into(), why: "'".into() };
        let page = html(&Page {
            title: "t",
            about: &[],
            files: Files::default(),
            images: Tally::default(),
            labels: None,
            nifti: None,
            rows: &[row],
            verdicts: &[file],
            thumbs: &BTreeMap::new(),
            is_hidden: true,
        });
        assert_eq!(page.matches("<script>").count(), 1, "our own");
        assert!(!page.contains("<img src=x") && !page.contains("onclick=\"x") && !page.contains("<b>\""));
    }
}
