//! All line-ups of a few volunteers: which of them keep within a time, and which of those moves the least state.
//!
//! A line-up is built seat after seat. What is still possible after some seats follows from who sits already, who came
//! last and how far it reaches, so one entry for each such state is enough: 2^n sets, n last ones, a bit for each
//! end. Nothing is left out, so what is found is the best there is.
//!
//! Invariant: none is found here only if there is none.

use super::search::{Cover, Problem, Reach};

/// Volunteers that are tried in all ways.
pub(super) const VOLUNTEERS_MAX: usize = 10;
/// Stages whose ends fit a word, beside the beginning.
const STAGES_MAX: u16 = 63;

/// Whether a problem is small enough.
pub(super) fn is_small(volunteers: usize, stages: u16) -> bool {
    volunteers <= VOLUNTEERS_MAX && stages <= STAGES_MAX
}

/// Ends that can be reached, by set of volunteers and the last of them; a bit for each stage.
struct Ends {
    volunteers: usize,
    bits: Vec<u64>,
}

impl Ends {
    fn of(&self, set: usize, last: usize) -> u64 {
        self.bits[set * self.volunteers + last]
    }

    /// Ends that can be reached before `who` joins `set` as the last.
    fn before(&self, problem: &Problem<'_>, set: usize, who: usize, limit_us: u64) -> u64 {
        let without = set & !(1 << who);
        if without == 0 {
            return 1;
        }
        let others = (0..self.volunteers).filter(|&last| without >> last & 1 == 1);
        let followed = others.filter(|&last| problem.border_us(last, who) <= limit_us);
        followed.fold(0, |ends, last| ends | self.of(without, last))
    }
}

/// A line-up of the fewest seats in which nothing takes longer than `limit_us`.
///
/// # Errors
/// The furthest stage that one from the head reaches.
pub(super) fn within(problem: &Problem<'_>, reach: &Reach, limit_us: u64) -> Result<Cover, u16> {
    let volunteers = problem.volunteers();
    let mut ends = Ends {
        volunteers,
        bits: vec![0; volunteers << volunteers],
    };
    let mut furthest = 0;
    let mut best: Option<(u32, usize, usize)> = None;
    for set in 1..1_usize << volunteers {
        for who in (0..volunteers).filter(|&who| set >> who & 1 == 1) {
            let mut begins = ends.before(problem, set, who, limit_us);
            let mut reached = 0;
            while begins != 0 {
                let first = begins.trailing_zeros();
                begins &= begins - 1;
                // The beginning of all is bit 0; no seat begins at the end of all.
                if let Some(end) = reach[who].get(first as usize) {
                    reached |= bits_after(first, u32::from(*end));
                }
            }
            ends.bits[set * volunteers + who] = reached;
            furthest = furthest.max(63 - (reached | 1).leading_zeros());
            let is_whole = reached >> problem.stages() & 1 == 1;
            let seats = set.count_ones();
            if is_whole
                && seats as usize >= problem.seats_min()
                && best.is_none_or(|(fewest, ..)| seats < fewest)
            {
                best = Some((seats, set, who));
            }
        }
    }
    match best {
        Some((_, set, last)) => Ok(trace(problem, reach, limit_us, &ends, set, last)),
        None => Err(u16::try_from(furthest).expect("a stage's number")),
    }
}

/// Bits above `first` up to and with `end`.
fn bits_after(first: u32, end: u32) -> u64 {
    let up_to = |bit: u32| u64::MAX >> (63 - bit);
    up_to(end) & !up_to(first)
}

/// Finds the seats again, from the last to the head.
fn trace(
    problem: &Problem<'_>,
    reach: &Reach,
    limit_us: u64,
    ends: &Ends,
    mut set: usize,
    mut last: usize,
) -> Cover {
    let mut cover = Cover::new();
    let mut end = problem.stages();
    loop {
        let who = u16::try_from(last).expect("few volunteers");
        cover.push((who, end));
        let begins = ends.before(problem, set, last, limit_us);
        let first = (0..end)
            .find(|&first| begins >> first & 1 == 1 && reach[last][usize::from(first)] >= end);
        end = first.expect("an end that was reached has a beginning");
        set &= !(1 << last);
        if set == 0 {
            cover.reverse();
            return cover;
        }
        let before = (0..ends.volunteers).find(|&other| {
            set >> other & 1 == 1
                && problem.border_us(other, last) <= limit_us
                && ends.of(set, other) >> end & 1 == 1
        });
        last = before.expect("an end that was reached was reached by somebody");
    }
}

/// Bytes to move, seats, and where it came from: the one before and its end.
type Moved = (u64, u16, u16);

/// The line-up that moves the least state, and of those one of the fewest seats, with nothing slower than `limit_us`.
pub(super) fn least_moved(problem: &Problem<'_>, reach: &Reach, limit_us: u64) -> Option<Cover> {
    let (volunteers, stages) = (problem.volunteers(), usize::from(problem.stages()));
    let at = |set: usize, last: usize, end: usize| (set * volunteers + last) * (stages + 1) + end;
    let mut moved: Vec<Option<Moved>> = vec![None; (volunteers << volunteers) * (stages + 1)];
    let mut best: Option<(u64, u32, usize, usize)> = None;
    for set in 1..1_usize << volunteers {
        for who in (0..volunteers).filter(|&who| set >> who & 1 == 1) {
            let without = set & !(1 << who);
            for first in 0..stages {
                let (bytes, from) = if without == 0 {
                    match first {
                        0 => (0, 0),
                        _ => break,
                    }
                } else {
                    let others = (0..volunteers).filter(|&other| {
                        without >> other & 1 == 1 && problem.border_us(other, who) <= limit_us
                    });
                    let cheapest = others
                        .filter_map(|other| Some((moved[at(without, other, first)]?.0, other)))
                        .min();
                    match cheapest {
                        Some(cheapest) => cheapest,
                        None => continue,
                    }
                };
                for end in first + 1..=usize::from(reach[who][first]) {
                    let bytes = bytes + problem.lacks(who, first, end);
                    let entry = &mut moved[at(set, who, end)];
                    if entry.is_none_or(|(known, ..)| bytes < known) {
                        let index =
                            |of: usize| u16::try_from(of).expect("few volunteers and stages");
                        *entry = Some((bytes, index(from), index(first)));
                    }
                }
            }
            let seats = set.count_ones();
            if let Some((bytes, ..)) = moved[at(set, who, stages)]
                && seats as usize >= problem.seats_min()
                && best.is_none_or(|(known, fewest, ..)| (bytes, seats) < (known, fewest))
            {
                best = Some((bytes, seats, set, who));
            }
        }
    }
    let (_, _, mut set, mut last) = best?;
    let mut cover = Cover::new();
    let mut end = stages;
    while set != 0 {
        let (_, from, first) = moved[at(set, last, end)].expect("it was reached");
        let index = |of: usize| u16::try_from(of).expect("few volunteers and stages");
        cover.push((index(last), index(end)));
        set &= !(1 << last);
        (last, end) = (usize::from(from), usize::from(first));
    }
    cover.reverse();
    Some(cover)
}
