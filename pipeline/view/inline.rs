//! Pictures in terminals: which protocol a terminal speaks, by the environment it sets, and a paletted picture in it.

use std::fmt::Write;

use crate::archive_page::base64;
use crate::cli::Inline;
use crate::thumbs::png_indexed;

/// `None`: none that we know, or a multiplexer in between, which swallows pictures.
pub fn protocol(variable: impl Fn(&str) -> Option<String>) -> Option<Inline> {
    let of = |name: &str| variable(name).unwrap_or_default();
    let (term, program) = (of("TERM"), of("TERM_PROGRAM"));
    if !of("TMUX").is_empty() || !of("STY").is_empty() || term.starts_with("screen") || term.starts_with("tmux") {
        return None;
    }
    if !of("KITTY_WINDOW_ID").is_empty() || term.contains("kitty") || term.contains("ghostty") || program == "ghostty" {
        return Some(Inline::Kitty);
    }
    if ["iTerm.app", "WezTerm"].contains(&program.as_str()) || of("LC_TERMINAL") == "iTerm2" {
        return Some(Inline::Iterm);
    }
    let speaks_sixel = ["foot", "mlterm", "yaft"].iter().any(|t| term.starts_with(t)) || term.contains("sixel");
    speaks_sixel.then_some(Inline::Sixel)
}

/// A picture as a terminal takes it.
/// - `pixels`: `[rows, columns]`, indices into `palette`
pub fn picture(protocol: Inline, pixels: &[u8], rows: usize, columns: usize, palette: &[[u8; 3]]) -> String {
    match protocol {
        Inline::Sixel => sixel(pixels, columns, palette),
        Inline::Iterm => {
            let png = png_indexed(pixels, rows, columns, palette);
            format!("\x1b]1337;File=inline=1;size={};preserveAspectRatio=1:{}\x07", png.len(), base64(&png))
        }
        Inline::Kitty => kitty(&base64(&png_indexed(pixels, rows, columns, palette))),
    }
}

/// Terminal graphics protocol of kitty: transmit and show (`a=T`) a PNG (`f=100`), 4096 characters at a time.
fn kitty(png: &str) -> String {
    let mut out = String::new();
    let mut rest = png;
    while !rest.is_empty() || out.is_empty() {
        let (part, after) = rest.split_at(rest.len().min(4096));
        let first = if out.is_empty() { "a=T,f=100," } else { "" };
        let _ = write!(out, "\x1b_G{first}m={};{part}\x1b\\", u8::from(!after.is_empty()));
        rest = after;
    }
    out
}

/// DEC sixel: colours in percent, then bands of six rows, colour by colour, runs of equal sixels counted.
fn sixel(pixels: &[u8], columns: usize, palette: &[[u8; 3]]) -> String {
    let rows = pixels.len() / columns.max(1);
    let mut out = format!("\x1bPq\"1;1;{columns};{rows}");
    for (i, [r, g, b]) in palette.iter().enumerate() {
        let percent = |v: u8| (v as u32 * 100 + 127) / 255;
        let _ = write!(out, "#{i};2;{};{};{}", percent(*r), percent(*g), percent(*b));
    }
    for band in pixels.chunks(6 * columns.max(1)) {
        let mut met = [false; 256];
        band.iter().for_each(|p| met[*p as usize] = true);
        for colour in (0..=255u8).filter(|c| met[*c as usize]) {
            let _ = write!(out, "#{colour}");
            let bits =
                |x: usize| -> u8 { band.chunks(columns).enumerate().map(|(y, row)| u8::from(row.get(x) == Some(&colour)) << y).sum() };
            let mut x = 0;
            while x < columns {
                let now = bits(x);
                let n = (x..columns).take_while(|k| bits(*k) == now).count();
                let sign = (63 + now) as char;
                let _ = if n > 3 { write!(out, "!{n}{sign}") } else { write!(out, "{}", sign.to_string().repeat(n)) };
                x += n;
            }
            out.push('$');
        }
        out.push('-');
    }
    out.push_str("\x1b\\");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(set: &[(&str, &str)]) -> Option<Inline> {
        protocol(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn terminals_are_known_by_what_they_set() {
        assert_eq!(seen(&[("TERM", "xterm-kitty")]), Some(Inline::Kitty));
        assert_eq!(seen(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")]), Some(Inline::Iterm));
        assert_eq!(seen(&[("TERM", "foot")]), Some(Inline::Sixel));
        assert_eq!(seen(&[("TERM", "xterm-256color")]), None);
        assert_eq!(seen(&[("TERM", "screen-256color"), ("KITTY_WINDOW_ID", "1")]), None, "a multiplexer swallows pictures");
    }

    #[test]
    fn kitty_takes_a_picture_in_parts() {
        let said = kitty(&"A".repeat(5000));
        assert!(said.starts_with("\x1b_Ga=T,f=100,m=1;A") && said.ends_with("A\x1b\\"));
        assert_eq!((said.matches("\x1b_G").count(), said.matches("m=0").count()), (2, 1));
    }

    /// Read back by the rules of the format: every pixel has its colour.
    #[test]
    fn sixels_say_every_pixel() {
        let (rows, columns) = (8, 7);
        let pixels: Vec<u8> = (0..rows * columns).map(|i| (i * i % 3) as u8).collect();
        let said = sixel(&pixels, columns, &[[0, 0, 0], [255, 0, 0], [0, 255, 255]]);
        assert!(said.contains("#1;2;100;0;0") && said.ends_with("-\x1b\\"), "{said}");
        let body = said.split("#2;2;0;100;100").nth(1).expect("the last colour");
        let (mut found, mut x, mut top, mut colour, mut run) = (vec![9u8; rows * columns], 0, 0, 0u8, String::new());
        let mut is_colour = false;
        for c in body.trim_end_matches("\x1b\\").chars() {
            match c {
                '#' | '!' => (is_colour, run) = (c == '#', String::new()),
                '0'..='9' => run.push(c),
                '$' => x = 0,
                '-' => (x, top) = (0, top + 6),
                sign => {
                    if is_colour {
                        colour = run.parse().unwrap_or(9);
                    }
                    let n: usize = if is_colour || run.is_empty() { 1 } else { run.parse().unwrap_or(0) };
                    (is_colour, run) = (false, String::new());
                    for k in 0..n {
                        (0..6).filter(|y| (sign as u8 - 63) >> y & 1 == 1).for_each(|y| found[(top + y) * columns + x + k] = colour);
                    }
                    x += n;
                }
            }
        }
        assert_eq!(found, pixels);
    }
}
