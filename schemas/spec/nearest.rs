//! "Did you mean …?": the nearest of the words that would have been right.

/// The nearest word, if one is near enough to be what was meant.
pub fn nearest<'a>(word: &str, right: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    right
        .into_iter()
        .map(|r| {
            let r_lower = r.to_lowercase();
            let typos = strsim::damerau_levenshtein(&lower, &r_lower);
            // Two typos in a long word, one in a short one; a beginning of five letters counts as well (`crop` for `crop_foreground`).
            let near = typos <= (r.chars().count().max(word.chars().count()) / 3).clamp(1, 3);
            let begins = lower.len() >= 4 && (r_lower.starts_with(&lower) || lower.starts_with(&r_lower) && r_lower.len() >= 4);
            (
                if near {
                    typos
                } else if begins {
                    10 + typos
                } else {
                    usize::MAX
                },
                r,
            )
        })
        .filter(|(rank, _)| *rank != usize::MAX)
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, r)| r)
}

/// `did you mean x?`, or the list of what is right: the help line of every unknown word.
pub fn did_you_mean<'a>(word: &str, what: &str, right: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(r) = nearest(word, right.clone()) {
        return format!("did you mean `{r}`?");
    }
    let all: Vec<_> = right.into_iter().collect();
    match all.len() {
        0 => format!("there is no {what} here"),
        1 => format!("the only {what} is {}", all[0]),
        _ => format!("{what}: {}", all.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let stages = ["annotate", "assemble", "crop_foreground", "resample", "window"];
        assert_eq!(nearest("resampel", stages), Some("resample"));
        assert_eq!(nearest("Resample", stages), Some("resample"));
        assert_eq!(nearest("crop", stages), Some("crop_foreground"));
        assert_eq!(nearest("smooth", stages), None);
        assert_eq!(did_you_mean("smooth", "stages", ["orient", "pad"]), "stages: orient, pad");
    }
}
