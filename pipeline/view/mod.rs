//! `voxmill view`: volumes as a mosaic of three planes each, with contours, as PNG and in terminals that show pictures. What stands behind which labels and which
//! window is looked through is what the report does (`report/shown.rs`, `report/mosaic.rs`); how terminals are told stands in `inline.rs`.

mod inline;

use std::io::IsTerminal;

use voxmill_schemas::artifact::{Key, Kind, Manifest};
use voxmill_stages::error::Error;
use voxmill_stages::stage::Input;
use voxmill_stages::table;

use crate::cache::named_one;
use crate::cli::{ViewArgs, print};
use crate::heads::Heads;
use crate::plan::Plan;
use crate::questions::opened;
use crate::report::mosaic::{self, Drawn, Look};
use crate::report::shown;
use crate::session::{Fault, Session};
use crate::thumbs::png_indexed;

/// Shown by `voxmill view --help`.
pub const HELP: &str = r#"Each volume is a row: the planes across z, y and x through the middle of its labels (of the
volume where it has none), in millimetres of equal size. Green is the truth, red the
prediction, yellow where they agree. An image is shown with the prediction of its case, a
prediction with the image that it is judged on; a case alone is what the report shows of it.

Terminals known to show pictures: kitty and Ghostty (kitty), iTerm2 and WezTerm (iterm), foot and
mlterm (sixel). --inline tells others to.

  voxmill view iso/hippocampus_001
  voxmill view seg --output seg.png
  voxmill view hippocampus_001 --window -160,240

Exit codes: 0 done, 1 what is shown is no longer on the shelf, 2 nothing is called so."#;

/// Rows of a mosaic.
const MOST: usize = 24;

/// What a row shows.
pub struct Row {
    pub label: String,
    pub image: Input,
    pub prediction: Option<Input>,
    pub window: Option<(f64, f64)>,
}

pub fn main(plan: &Plan, a: &ViewArgs) -> Result<(), Fault> {
    let window = a.window.as_deref().map(parsed).transpose()?;
    let session = opened(plan)?;
    let auto = || inline::protocol(|name| std::env::var(name).ok()).filter(|_| std::io::stdout().is_terminal());
    let protocol = a.inline.or_else(|| if a.output.is_some() { None } else { auto() });
    if protocol.is_none() && a.output.is_none() {
        return Err(Fault::Wrong(
            "this is no terminal known to show pictures: say --output FILE.png, or --inline kitty, iterm or sixel".into(),
        ));
    }
    let rows = wanted(&session, plan, &a.what)?;
    let (mut pixels, mut told) = (Vec::new(), Vec::new());
    for row in &rows {
        let look = Look { edge: a.size as usize, window: window.or(row.window), at: None };
        let drawn = mosaic::draw(&session.store, &row.image, row.prediction.as_ref(), look)?;
        pixels.extend_from_slice(&drawn.pixels);
        told.push(sentence(row, &drawn));
    }
    let (height, width) = (rows.len() * a.size as usize, pixels.len() / (rows.len() * a.size as usize));
    if let Some(out) = &a.output {
        table::write_bytes_durably(out, &png_indexed(&pixels, height, width, &mosaic::palette()))?;
    }
    if let Some(protocol) = protocol {
        print(&inline::picture(protocol, &pixels, height, width, &mosaic::palette()));
    }
    print(&told.join("\n"));
    if let Some(out) = &a.output {
        print(&out.display().to_string());
    }
    Ok(())
}

fn parsed(text: &str) -> Result<(f64, f64), Fault> {
    let numbers = text.split_once(',').and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
    let is_right = |(low, high): &(f64, f64)| low.is_finite() && high.is_finite() && low < high;
    numbers
        .filter(is_right)
        .ok_or_else(|| Fault::Wrong(format!("--window {text}: expected two numbers, the lower first, such as -160,240")))
}

/// `iso/c1  33×56×45 voxels, grey from -1000 to 1000 HU`
fn sentence(row: &Row, drawn: &Drawn) -> String {
    let m = &row.image.manifest;
    let axis = |name: &str| m.facts.get("size").and_then(|s| s.get(name)).map_or_else(|| "?".into(), ToString::to_string);
    let size = ["z", "y", "x"].map(axis).join("×");
    let grey = if shown::is_image(m) {
        format!(", grey from {} to {} {}", short(drawn.window.0), short(drawn.window.1), shown::unit(m))
    } else {
        String::new()
    };
    format!("{}  {size} voxels{}", row.label, grey.trim_end())
}

pub fn short(v: f32) -> String {
    let text = format!("{v:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// What is called so, with what is shown behind and upon it.
pub fn wanted(s: &Session, plan: &Plan, what: &str) -> Result<Vec<Row>, Fault> {
    let heads = s.heads(plan, false);
    let first_of = |i: usize| -> Option<Manifest> {
        let key = *heads.read(&plan.nodes[i].name).values().next()?;
        s.store.disk.manifest(&key).ok().flatten()
    };
    let pair = shown::pair(plan, |i| first_of(i).as_ref().is_some_and(shown::is_image));
    let of_case = |i: usize| Some((format!("{}/{what}", plan.nodes[i].name), *heads.read(&plan.nodes[i].name).get(what)?));
    let found = match pair.as_ref().and_then(|p| of_case(p.image)).filter(|_| !what.is_empty()) {
        Some(found) => vec![found],
        None => named_one(s, plan, what)?,
    };
    if found.len() > MOST {
        let some = found.iter().take(3).map(|(label, _)| label.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Fault::Wrong(format!("{what} has {} volumes, and a mosaic holds {MOST}: choose one, such as {some}", found.len())));
    }
    found.into_iter().map(|(label, key)| row(s, plan, &heads, pair.as_ref(), label, &key)).collect()
}

fn row(s: &Session, plan: &Plan, heads: &Heads, pair: Option<&shown::Pair>, label: String, key: &Key) -> Result<Row, Fault> {
    let image = input(s, key)?.ok_or_else(|| {
        Fault::Stage(Error::Input {
            what: label.clone(),
            found: "it is no longer on the shelf".into(),
            expected: "the pipeline run again (`voxmill run`)".into(),
        })
    })?;
    if image.manifest.kind != Kind::Volume {
        return Err(Fault::Wrong(format!("{label} is no volume ({}): view shows volumes", image.manifest.recipe.stage)));
    }
    let case = image.manifest.case.as_ref().map(|c| c.0.clone()).unwrap_or_default();
    let partner = |nodes: &[usize]| -> Result<Option<Input>, Fault> {
        let key = nodes.iter().find_map(|i| heads.read(&plan.nodes[*i].name).get(&case).copied());
        key.map_or(Ok(None), |key| input(s, &key))
    };
    let mut node = plan.nodes.iter().position(|n| heads.read(&n.name).get(&case) == Some(key));
    let (image, prediction) = if shown::is_image(&image.manifest) {
        (image, partner(pair.map_or(&[][..], |p| &p.predictions[..]))?)
    } else {
        // Labels that stand alone: on the image that they are judged on, where there is one.
        node = pair.map(|p| p.image);
        (partner(node.as_slice())?.unwrap_or_else(|| image.clone()), Some(image))
    };
    let unit_of = |i: usize| {
        let key = *heads.read(&plan.nodes[i].name).values().next()?;
        s.store.disk.manifest(&key).ok().flatten().map(|m| shown::unit(&m).to_string())
    };
    let window = shown::window(plan, node, shown::unit(&image.manifest), unit_of);
    Ok(Row { label, image, prediction, window })
}

fn input(s: &Session, key: &Key) -> Result<Option<Input>, Fault> {
    s.store.hold(key)?;
    let manifest = s.store.disk.manifest(key)?;
    Ok(manifest.map(|m| Input { dir: s.store.disk.dir(key), manifest: m.into(), rows: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_two_numbers_that_span_something() {
        assert_eq!(parsed("-160, 240").ok(), Some((-160.0, 240.0)));
        for wrong in ["240,-160", "1", "1,1", "a,b", "nan,3", "0,inf", ""] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
