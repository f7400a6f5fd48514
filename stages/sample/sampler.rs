//! All that a training draws its batches from, put together so that others can draw the same: the feed alone, a simulation of the shelves, another program.
//! Several processes share the batches: each cuts its own patches of every step, and together they have what one process would.

use std::ops::Range;

use voxmill_schemas::geometry::Zyx;

use super::cut::Source;
use super::draw::Random;
use super::plan::{Case, Plan};
use crate::error::Error;

/// The cases and the plan of a training.
pub struct Sampler {
    pub sources: Vec<Source>,
    pub cases: Vec<Case>,
    pub seed: u64,
    pub patch: Zyx<usize>,
    /// Patches in a step, over all ranks.
    pub batch: usize,
    /// Steps in an epoch.
    pub steps: u64,
    pub epochs: u64,
    /// Share of patches centred on foreground, 0 to 1.
    pub foreground: f64,
    pub augment: Vec<Random>,
    pub rank: Rank,
}

impl Sampler {
    pub fn plan(&self) -> Plan<'_> {
        Plan {
            seed: self.seed,
            patch: self.patch,
            batch: self.batch,
            steps: self.steps,
            foreground: self.foreground,
            augment: &self.augment,
            cases: &self.cases,
            rank: self.rank,
        }
    }
}

/// Which of several processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// From 0.
    pub rank: u32,
    /// How many there are.
    pub of: u32,
}

impl Rank {
    /// The only one.
    pub const ALONE: Rank = Rank { rank: 0, of: 1 };

    /// As `VOXMILL_RANK` and `VOXMILL_WORLD_SIZE` say, else as `RANK` and `WORLD_SIZE` (torchrun's) do; alone where neither pair is set.
    /// - `variable`: the environment
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Rank, Error> {
        for (rank, of) in [("VOXMILL_RANK", "VOXMILL_WORLD_SIZE"), ("RANK", "WORLD_SIZE")] {
            let (found_rank, found_of) = (variable(rank), variable(of));
            if found_rank.is_none() && found_of.is_none() {
                continue;
            }
            let number = |text: &Option<String>| text.as_ref().and_then(|t| t.trim().parse::<u32>().ok());
            return match (number(&found_rank), number(&found_of)) {
                (Some(rank), Some(of)) if rank < of => Ok(Rank { rank, of }),
                _ => {
                    let said = |text: Option<String>| text.unwrap_or_else(|| "nothing".into());
                    Err(Error::Input {
                        what: format!("{rank} and {of}"),
                        found: format!("{} and {}", said(found_rank), said(found_of)),
                        expected: "a number of processes and, from 0 to below it, which of them this is".into(),
                    })
                }
            };
        }
        Ok(Rank::ALONE)
    }

    /// This process's part of `n` patches, side by side: the parts of all ranks one after another are the whole.
    pub fn part(self, n: usize) -> Range<usize> {
        let at = |rank: u32| (rank as u64 * n as u64 / self.of as u64) as usize;
        at(self.rank)..at(self.rank + 1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_all_ranks_are_the_whole() {
        for n in 0..20 {
            for of in 1..9 {
                let all: Vec<usize> = (0..of).flat_map(|rank| Rank { rank, of }.part(n)).collect();
                assert_eq!(all, (0..n).collect::<Vec<_>>());
                assert!((0..of).all(|rank| Rank { rank, of }.part(n).len().abs_diff(n / of as usize) <= 1));
            }
        }
    }

    #[test]
    fn our_own_variables_go_before_those_of_torchrun_and_half_a_pair_is_refused() {
        let of = |pairs: &'static [(&str, &str)]| {
            Rank::from_environment(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
        };
        assert_eq!(of(&[]).unwrap(), Rank::ALONE);
        assert_eq!(of(&[("RANK", "1"), ("WORLD_SIZE", "4")]).unwrap(), Rank { rank: 1, of: 4 });
        let both = [("RANK", "1"), ("WORLD_SIZE", "4"), ("VOXMILL_RANK", "0"), ("VOXMILL_WORLD_SIZE", "2")];
        assert_eq!(
            Rank::from_environment(|name| both.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string())).unwrap(),
            Rank { rank: 0, of: 2 }
        );
        for wrong in [&[("RANK", "1")][..], &[("RANK", "4"), ("WORLD_SIZE", "4")], &[("VOXMILL_RANK", "x"), ("VOXMILL_WORLD_SIZE", "2")]] {
            let why =
                Rank::from_environment(|name| wrong.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string())).unwrap_err().to_string();
            assert!(why.contains("RANK"), "{why}");
        }
    }
}
