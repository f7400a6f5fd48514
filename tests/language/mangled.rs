//! Examples with characters lost, doubled and replaced: whatever stands in a file, it is read or refused with a place and a help, never a panic.

use std::path::Path;

use voxmill_stages::STAGES;

const ODD: &[char] = &['{', '[', ':', '#', '"', '\'', '\t', '\n', '&', '*', '$', '-', '!', '|', 'ß', '\u{0}', '0'];

fn check(dir: &Path, text: &str) -> bool {
    let file = dir.join("p.yaml");
    std::fs::write(&file, text).unwrap();
    let Err(problems) = voxmill::load(&file, &[], STAGES) else { return true };
    assert!(!problems.is_empty(), "{text}");
    for p in &problems {
        assert!(!p.message.is_empty() && !p.help.is_empty(), "{p:?}");
        for (place, _) in &p.places {
            assert!(place.start <= place.end && place.source.text.get(place.start..place.end).is_some(), "{p:?}");
        }
    }
    assert!(voxmill::problem::render_as(&problems, false).contains("mistake"));
    false
}

#[test]
fn no_damage_to_a_file_goes_unseen_or_breaks_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let (mut right, mut wrong) = (0, 0);
    for example in ["hippocampus", "knee_ct"] {
        let text = std::fs::read_to_string(format!("examples/{example}.yaml")).unwrap();
        assert!(check(dir.path(), &text));
        let chars: Vec<char> = text.chars().collect();
        for i in 0..chars.len() {
            let (before, after) = (chars[..i].iter().collect::<String>(), chars[i + 1..].iter().collect::<String>());
            let odd = ODD[i % ODD.len()];
            let damaged =
                [format!("{before}{after}"), format!("{before}{odd}{after}"), format!("{before}{odd}{}{after}", chars[i]), before];
            // Each kind of damage at every third place keeps the test short.
            for text in damaged.iter().skip(i % 3).step_by(3) {
                *(if check(dir.path(), text) { &mut right } else { &mut wrong }) += 1;
            }
        }
    }
    // Most damage hits a word; what hits a comment or a number may still be a pipeline.
    assert!(wrong > right, "{wrong} refused, {right} read");
}
