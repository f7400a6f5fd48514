//! `voxmill serve`: the report while a run goes on, and the slices of any volume, in a browser on this machine. Nothing is changed, nothing is kept; `http.rs`
//! says who is answered.

mod http;

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Mutex;

use serde_json::json;
use voxmill_schemas::artifact::Kind;
use voxmill_schemas::geometry::Zyx;
use voxmill_stages::error::chain;
use voxmill_stages::table::show;

use self::http::{Answer, Asked, Server};
use crate::archive_page::{SCRIPT, STYLE, escape, table};
use crate::cli::print;
use crate::plan::Plan;
use crate::questions::{asked, quoted};
use crate::report::mosaic::{self, Look};
use crate::session::{Fault, Session};
use crate::thumbs::png_indexed;
use crate::{report, view};

/// Shown by `voxmill serve --help`.
pub const HELP: &str = r#"Prints an address on 127.0.0.1 with a secret token in it: open it in a browser on this machine,
or through `ssh -L PORT:127.0.0.1:PORT`. The page is the report, looked after every two seconds
while a run goes on; from it every volume of the workspace can be scrolled through. Who does not
know the address sees nothing. Ctrl-C ends it."#;

const LIVE: &str = include_str!("live.html");
const VOLUME: &str = include_str!("volume.html");
/// Pixels of a plane.
const EDGE: usize = 480;
/// For volumes that are looked at; a run beside it has its own.
const MEMORY: &str = "512MiB";

struct Served<'a> {
    plan: &'a Plan,
    file: &'a Path,
    session: Session,
    /// The report as it was last made, with what it was made of.
    page: Mutex<Option<(u64, String)>>,
}

pub fn main(plan: &Plan, file: &Path) -> Result<(), Fault> {
    let session = Session::open(plan, Some(MEMORY))?;
    let server = Server::open().map_err(|e| Fault::Wrong(format!("cannot listen on 127.0.0.1: {e}")))?;
    let served = Served { plan, file, session, page: Mutex::new(None) };
    print(&server.url());
    server.answer(&|asked: &Asked| served.answer(asked).map_err(|e| chain(&e)));
    Ok(())
}

impl Served<'_> {
    fn answer(&self, a: &Asked) -> Result<Option<Answer>, Fault> {
        let html = |body: String| Some(Answer { kind: "text/html; charset=utf-8", body: body.into_bytes() });
        Ok(match a.path.as_str() {
            "" => html(self.report()?),
            "state" => Some(Answer { kind: "application/json", body: self.state()?.to_string().into_bytes() }),
            "volumes" => html(self.volumes()),
            "volume" => match a.value("of") {
                Some(of) => html(self.volume(of)?),
                None => None,
            },
            "slices" => match a.value("of") {
                Some(of) => Some(Answer { kind: "image/png", body: self.slices(of, a)? }),
                None => None,
            },
            _ => None,
        })
    }

    /// Changes with every file of lineage.
    fn version(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for table in ["runs", "executions", "quarantine"] {
            for path in crate::lineage::files(&self.session.workspace, table) {
                path.hash(&mut hasher);
                // The row of a run is rewritten when it ends.
                std::fs::metadata(&path).ok().and_then(|m| m.modified().ok()).hash(&mut hasher);
            }
        }
        hasher.finish()
    }

    fn report(&self) -> Result<String, Fault> {
        let version = self.version();
        let mut held = self.page.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((made_of, page)) = &*held
            && *made_of == version
        {
            return Ok(page.clone());
        }
        let page = if self.session.workspace.join("lineage").is_dir() {
            report::page_of(self.plan, self.file, true)?.replace("</body></html>", &format!("{LIVE}</body></html>"))
        } else {
            let title = escape(&self.plan.name);
            frame(&title, &format!("<h1>{title}</h1><p>Nothing was run yet: this page looks again every two seconds.</p>"), LIVE)
        };
        *held = Some((version, page.clone()));
        Ok(page)
    }

    /// What the newest run is at, in a line.
    fn state(&self) -> Result<serde_json::Value, Fault> {
        let version = self.version().to_string();
        if !self.session.workspace.join("lineage").is_dir() {
            return Ok(json!({ "version": version, "text": "nothing was run yet" }));
        }
        let ask = |sql: String| -> Result<Vec<Vec<String>>, Fault> { Ok(show::cells(&asked(&self.session.workspace, &sql)?, "")?) };
        let last =
            ask(format!("select run, status from runs where pipeline = {} order by started_ms desc limit 1", quoted(&self.plan.name)))?;
        let Some([run, status]) = last.first().map(Vec::as_slice) else {
            return Ok(json!({ "version": version, "text": "nothing was run yet" }));
        };
        let at = ask(format!(
            "select node, count(*) from executions where run = {} group by node order by max(started_ms) desc limit 1",
            quoted(run)
        ))?;
        let at = at.first().map(|row| format!(", last at {} ({} artifacts)", row[0], row[1])).unwrap_or_default();
        // Long before a training ends it has asked for voxels.
        let busy = if status == "running" {
            ask(format!("select node from traffic where run = {} order by at_ms desc limit 1", quoted(run)))?
        } else {
            Vec::new()
        };
        let busy = busy.first().map(|row| format!("; {} reads volumes", row[0])).unwrap_or_default();
        let text = format!("run {run}: {status}{at}{busy}");
        Ok(json!({ "version": version, "text": text }))
    }

    /// Every newest volume, by node and case.
    fn volumes(&self) -> String {
        let heads = self.session.heads(self.plan, false);
        let mut rows = Vec::new();
        for node in self.plan.nodes.iter().filter(|n| n.def.info.gives == Kind::Volume) {
            rows.extend(heads.read(&node.name).into_keys().map(|case| (node.name.as_str(), case)));
        }
        let mut out = format!("<h1>{}</h1><p><a href=\"./\">Report</a></p>", escape(&self.plan.name));
        table(&mut out, "volumes", "Volumes", &["Stage", "Case"], rows.len());
        for (node, case) in rows {
            let link = format!("volume?of={}", encoded(&format!("{node}/{case}")));
            let _ = write!(out, "<tr><td>{}<td><a href=\"{link}\">{}</a>", escape(node), escape(&case));
        }
        out += "</table></div></section>";
        frame("Volumes", &out, &format!("<script>\n{SCRIPT}</script>"))
    }

    fn row(&self, of: &str) -> Result<view::Row, Fault> {
        let mut rows = view::wanted(&self.session, self.plan, of)?;
        match rows.len() {
            1 => Ok(rows.remove(0)),
            n => Err(Fault::Wrong(format!("{of} has {n} volumes: choose one"))),
        }
    }

    fn volume(&self, of: &str) -> Result<String, Fault> {
        let row = self.row(of)?;
        let drawn = mosaic::draw(&self.session.store, &row.image, row.prediction.as_ref(), Look { edge: 8, window: row.window, at: None })?;
        let name = escape(&row.label);
        let mut out = format!(
            "<h1>{name}</h1><p><a href=\"volumes\">Volumes</a></p>\
             <img class=\"planes\" width=\"{}\" height=\"{EDGE}\" alt=\"planes of {name} across z, y and x\" data-of=\"{name}\" src=\"slices?of={}\"><div class=\"sliders\">",
            3 * EDGE,
            encoded(of)
        );
        for (axis, n, at) in [("z", drawn.size.z, drawn.at.z), ("y", drawn.size.y, drawn.at.y), ("x", drawn.size.x, drawn.at.x)] {
            let _ = write!(
                out,
                "<label>Slice {axis} <input type=\"range\" name=\"{axis}\" min=\"0\" max=\"{}\" value=\"{at}\"><output>{at}</output></label>",
                n.saturating_sub(1)
            );
        }
        for (name, text, value) in [("low", "Black", drawn.window.0), ("high", "White", drawn.window.1)] {
            let value = view::short(value);
            let _ = write!(out, "<label>{text} <input type=\"number\" step=\"any\" name=\"{name}\" value=\"{value}\"></label>");
        }
        out += "</div><p>Green is the truth, red the prediction, yellow where both agree. Arrow keys move a slice that has the focus.</p>";
        Ok(frame(&name, &out, VOLUME))
    }

    fn slices(&self, of: &str, a: &Asked) -> Result<Vec<u8>, Fault> {
        let row = self.row(of)?;
        let number = |name: &str| a.value(name).and_then(|v| v.parse::<f64>().ok()).filter(|v| v.is_finite());
        let index = |name: &str| a.value(name).and_then(|v| v.parse::<usize>().ok());
        let window = number("low").zip(number("high")).filter(|(low, high)| low < high).or(row.window);
        let at = index("z").zip(index("y")).zip(index("x")).map(|((z, y), x)| Zyx::new(z, y, x));
        let drawn = mosaic::draw(&self.session.store, &row.image, row.prediction.as_ref(), Look { edge: EDGE, window, at })?;
        Ok(png_indexed(&drawn.pixels, EDGE, drawn.pixels.len() / EDGE, &mosaic::palette()))
    }
}

/// A page in the report's clothes. `title` and `body` are HTML.
fn frame(title: &str, body: &str, after: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n{body}\n</main>\n{after}</body></html>\n"
    )
}

/// For a value in a URL.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) { (b as char).to_string() } else { format!("%{b:02X}") })
        .collect()
}
