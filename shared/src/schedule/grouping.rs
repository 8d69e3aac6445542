//! Which replicas of a stage average with each other, and how much each of them.
//!
//! Up to so many as a group may have are one group. More of them stand in rows and columns: a row's members share all of the
//! stage out, equal parts at equal places of all rows; then a column's members, who own the same part, share that out in
//! the same way, in levels again if they are too many. Every member sends each value about twice however many there are, as in
//! one group (in groups of two once more a level), and meets its row and its columns only.
//!
//! Knows no stages, no peers and no lengths: integers in, integers out. Begin with [`groups`].
//!
//! # Source
//! Rows and columns: the two-dimensional torus all-reduce of arXiv 1811.05233, here for any number of members.

use std::sync::Arc;

/// One replica of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Samples behind what it brings.
    pub samples: u64,
    /// Bytes a second that it sends.
    pub rate: u64,
}

/// Those that average a part with each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which replicas, in the order in which they add up.
    pub members: Vec<usize>,
    /// Samples behind what each of them brings.
    pub samples: Vec<u64>,
    /// How much each averages, in proportion.
    pub shares: Vec<u32>,
}

/// Each replica's groups, in order of levels. `fastest_first` names all replicas and decides who stands beside whom.
///
/// # Panics
/// If a group may have fewer than two members.
pub fn groups(
    replicas: &[Replica],
    fastest_first: &[usize],
    group_max: usize,
) -> Vec<Vec<Arc<Group>>> {
    assert!(group_max >= 2, "a group of one never ends");
    let mut levels = vec![Vec::new(); replicas.len()];
    let all = fastest_first.iter().map(|who| (*who, replicas[*who]));
    deal(&all.collect::<Vec<_>>(), group_max, &mut levels);
    levels
}

/// Adds one level for each of these, and the further ones that it takes.
fn deal(fastest_first: &[(usize, Replica)], group_max: usize, levels: &mut [Vec<Arc<Group>>]) {
    let count = fastest_first.len();
    if count <= group_max {
        let mut members = fastest_first.to_vec();
        members.sort_unstable_by_key(|(who, _)| *who);
        let rates: Vec<u64> = members.iter().map(|(_, it)| it.rate).collect();
        return join(&members, shares(&rates), levels);
    }
    let rows = count.div_ceil(group_max);
    let columns: Vec<&[(usize, Replica)]> = fastest_first.chunks_exact(rows).collect();
    // The slowest that make no whole column own nothing of their row's.
    let rest = fastest_first.chunks_exact(rows).remainder();
    // A column's parts are equal, so its slowest member says how large.
    let rates = columns
        .iter()
        .map(|column| column.iter().map(|(_, it)| it.rate).min());
    let rates: Vec<u64> = rates.map(Option::unwrap_or_default).collect();
    let of_columns = shares(&rates);
    let mut row_samples = Vec::new();
    for row in 0..rows {
        let mut members: Vec<_> = columns.iter().map(|column| column[row]).collect();
        let mut shares = of_columns.clone();
        if let Some(member) = rest.get(row) {
            members.push(*member);
            shares.push(0);
        }
        row_samples.push(members.iter().map(|(_, it)| it.samples).sum::<u64>());
        join(&members, shares, levels);
    }
    for (column, _) in columns
        .iter()
        .zip(&of_columns)
        .filter(|(_, share)| **share > 0)
    {
        let mut members = column.to_vec();
        for ((_, replica), samples) in members.iter_mut().zip(&row_samples) {
            replica.samples = *samples;
        }
        deal(&members, group_max, levels);
    }
}

fn join(members: &[(usize, Replica)], shares: Vec<u32>, levels: &mut [Vec<Arc<Group>>]) {
    let group = Arc::new(Group {
        members: members.iter().map(|(who, _)| *who).collect(),
        samples: members.iter().map(|(_, it)| it.samples).collect(),
        shares,
    });
    for (who, _) in members {
        levels[*who].push(Arc::clone(&group));
    }
}

/// How much each of those who send so fast is to average, so that all have sent everything at the same time.
///
/// Of a stage of length L, cut among n, member j sends L - p_j of its own changes and (n - 1) p_j of averages: in all
/// L + (n - 2) p_j. With two it is always L, and what they average is all the same.
fn shares(rates: &[u64]) -> Vec<u32> {
    /// A stage's length here.
    const WHOLE: u128 = 1 << 16;
    let members = rates.len() as u128;
    if members < 3 {
        return vec![1; rates.len()];
    }
    let mut averaging: Vec<usize> = (0..rates.len()).collect();
    loop {
        // T = (n - 2 + |averaging|) L / (sum of their rates): who has not sent its L by then averages nothing.
        let sum: u128 = averaging
            .iter()
            .map(|who| u128::from(rates[*who].max(1)))
            .sum();
        let parts = WHOLE * (members - 2 + averaging.len() as u128);
        let sends = |who: &usize| parts * u128::from(rates[*who].max(1)) / sum;
        let enough: Vec<usize> = averaging
            .iter()
            .copied()
            .filter(|who| sends(who) > WHOLE)
            .collect();
        if enough.len() == averaging.len() || enough.is_empty() {
            let mut shares = vec![0; rates.len()];
            for who in &averaging {
                let share = sends(who).saturating_sub(WHOLE) / (members - 2);
                shares[*who] = u32::try_from(share).unwrap_or(u32::MAX);
            }
            return shares;
        }
        averaging = enough;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_sends_faster_averages_more_and_all_are_done_at_once() {
        assert_eq!(shares(&[7, 1]), [1, 1], "two send the same either way");
        assert_eq!(shares(&[5, 5, 5, 5]), [16384; 4]);
        // Sent in all by rates 3:2:2 is L + p: 12/7 L, 8/7 L, 8/7 L.
        let cut = shares(&[3, 2, 2]);
        assert_eq!(cut, [46811, 9362, 9362]);
        let [fast, slow, none] = shares(&[10, 9, 1])[..] else {
            panic!("three")
        };
        assert_eq!(none, 0, "the slowest only sends what it changed");
        assert!(fast > slow && (fast + slow).abs_diff(1 << 16) < 4);
    }

    fn members(levels: &[Arc<Group>]) -> Vec<&[usize]> {
        levels.iter().map(|group| &group.members[..]).collect()
    }

    #[test]
    fn five_of_whom_two_may_meet_stand_in_rows_and_columns() {
        let replicas = [10, 20, 30, 40, 50].map(|samples| Replica { samples, rate: 1 });
        let levels = groups(&replicas, &[4, 3, 2, 1, 0], 2);
        // Three rows of one column; the two slowest own nothing. Then three who own all.
        assert_eq!(members(&levels[4]), [&[4, 1][..], &[4, 2], &[3, 4]]);
        assert_eq!(levels[4][0].samples, [50, 20]);
        assert_eq!(levels[4][0].shares, [1, 0]);
        assert_eq!(levels[4][1].samples, [70, 30]);
        assert_eq!(
            levels[4][2].samples,
            [50, 100],
            "row of 3 and 0, all others"
        );
        assert_eq!(members(&levels[1]), [[4, 1]]);
        assert_eq!(members(&levels[2]), [&[2][..], &[4, 2]]);
    }

    #[test]
    fn a_thousand_pipelines_take_three_levels_and_meet_few() {
        let replica = Replica {
            samples: 1,
            rate: 9,
        };
        let replicas = vec![replica; 1_000];
        let order: Vec<usize> = (0..1_000).collect();
        let levels = groups(&replicas, &order, 16);
        let met = |levels: &Vec<Arc<Group>>| -> usize {
            levels.iter().map(|group| group.members.len() - 1).sum()
        };
        assert_eq!(levels.iter().map(Vec::len).max(), Some(3));
        assert_eq!(levels.iter().map(met).max(), Some(33));
    }

    proptest! {
        /// Exact arithmetic, so that any order gives the same: sums of samples for each part of what is whole.
        #[test]
        fn every_part_is_averaged_of_everybody_once(
            replicas in proptest::collection::vec((0..1_000_u64, 1..100_u64), 1..80),
            group_max in 2..9_usize,
        ) {
            let replicas: Vec<Replica> = replicas
                .into_iter()
                .map(|(samples, rate)| Replica { samples, rate })
                .collect();
            let order: Vec<usize> = (0..replicas.len()).rev().collect();
            let levels = groups(&replicas, &order, group_max);
            // Who is behind what each brings to each level, by level.
            let mut behind: BTreeMap<usize, BTreeSet<usize>> =
                (0..replicas.len()).map(|who| (who, BTreeSet::from([who]))).collect();
            let deepest = levels.iter().map(Vec::len).max().unwrap_or_default();
            for level in 0..deepest {
                let mut next = BTreeMap::new();
                for (who, groups) in levels.iter().enumerate() {
                    let Some(group) = groups.get(level) else { continue };
                    prop_assert!(group.members.len() <= group_max && group.members.contains(&who));
                    let mut all = BTreeSet::new();
                    for (member, samples) in group.members.iter().zip(&group.samples) {
                        let of: u64 = behind[member].iter().map(|it| replicas[*it].samples).sum();
                        prop_assert_eq!(of, *samples);
                        let before = all.len();
                        all.extend(&behind[member]);
                        prop_assert_eq!(all.len(), before + behind[member].len(), "nobody twice");
                        prop_assert_eq!(&levels[*member][level], group);
                    }
                    next.insert(who, all);
                }
                behind.extend(next);
            }
            for (who, groups) in levels.iter().enumerate() {
                // Whoever owns nothing goes no further.
                let last = groups.last().expect("a level");
                let own = last.members.iter().position(|it| *it == who).expect("itself");
                prop_assert!(behind[&who].len() == replicas.len() || last.shares[own] == 0);
                prop_assert!(last.shares.iter().any(|share| *share > 0));
                // Nobody is met twice.
                let met: Vec<usize> = groups
                    .iter()
                    .flat_map(|group| &group.members)
                    .copied()
                    .filter(|it| *it != who)
                    .collect();
                prop_assert_eq!(met.iter().collect::<BTreeSet<_>>().len(), met.len());
            }
        }
    }
}
