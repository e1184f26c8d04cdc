//! How much goes on at the same time: now little, so that nothing covers up for what is forgotten,
//! now much.

use std::time::Duration;

use super::dice::Dice;

const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(600);

/// A part of the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) length: Duration,
    /// How many scenes are played at the same time.
    pub(crate) at_once: usize,
    /// Where they are played: indices of cells.
    pub(crate) cells: Vec<usize>,
    /// Whether two may be played on one cell.
    pub(crate) crowded: bool,
}

impl Phase {
    /// Any, where there are so many cells. Within the time `whole`, there are to be several. Where
    /// everything takes long, there is seldom only one scene: `slow`.
    pub(crate) fn any(cells: usize, whole: Duration, slow: bool, dice: &mut Dice) -> Self {
        let alone = if slow { 20 } else { 50 };
        let (at_once, most) = match dice.below(100) {
            number if number < alone => (1, 1 + dice.index(2)),
            number if number < 75 => (2 + dice.index(2), 2 + dice.index(3)),
            _ => (4 + dice.index(9), cells),
        };
        let mut all: Vec<usize> = (0..cells).collect();
        dice.shuffle(&mut all);
        all.truncate(most.max(1));
        let longest = LONGEST.min(whole / 8).max(SHORTEST);
        let spread = u64::try_from((longest - SHORTEST).as_millis()).unwrap_or(0);
        Self {
            length: SHORTEST + Duration::from_millis(dice.below(spread + 1)),
            at_once,
            cells: all,
            crowded: dice.percent(25),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_of_all_kinds_and_many_fit_in_the_time() {
        let mut dice = Dice::new(2);
        let whole = Duration::from_secs(2);
        let phases: Vec<_> = (0..500)
            .map(|_| Phase::any(16, whole, false, &mut dice))
            .collect();
        for phase in &phases {
            assert!(phase.length >= SHORTEST && phase.length <= whole / 8);
            assert!(!phase.cells.is_empty() && phase.cells.iter().all(|&it| it < 16));
        }
        let alone = phases.iter().filter(|it| it.at_once == 1).count();
        assert!((150..350).contains(&alone), "{alone}");
        assert!(
            phases
                .iter()
                .any(|it| it.at_once > 8 && it.cells.len() == 16)
        );
        assert!(phases.iter().any(|it| it.crowded));
        assert_eq!(Phase::any(1, Duration::ZERO, true, &mut dice).cells, [0]);
    }
}
