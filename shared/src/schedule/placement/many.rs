//! TEMPORARY: replaced by the placement of many pipelines.
use std::collections::{BTreeMap, BTreeSet};

use super::{Given, LineUp, NoPlacement, assign};
use crate::units::{PeerId, PipelineId};

/// Line-ups of all pipelines.
///
/// # Errors
/// As `assign`.
pub fn assign_all(
    given: &Given<'_>,
    old: &BTreeMap<PipelineId, LineUp>,
    pipelines_max: u16,
) -> Result<BTreeMap<PipelineId, LineUp>, NoPlacement> {
    if pipelines_max <= 1 {
        let before = old.first_key_value();
        let id = before.map_or(PipelineId(0), |(id, _)| *id);
        return assign(given, before.map(|(_, line_up)| line_up)).map(|it| [(id, it)].into());
    }
    let count =
        (given.volunteers.len() / given.seats_min.max(1)).clamp(1, usize::from(pipelines_max));
    let mut plan = BTreeMap::new();
    let mut used: BTreeSet<PeerId> = BTreeSet::new();
    let mut error = None;
    for number in 0..count {
        let id = PipelineId(u16::try_from(number).expect("few"));
        let own: BTreeSet<PeerId> = old
            .get(&id)
            .into_iter()
            .flat_map(|it| it.seats.iter().map(|s| s.0))
            .collect();
        let of_others: BTreeSet<PeerId> = old
            .iter()
            .filter(|(other, _)| **other != id)
            .flat_map(|(_, it)| it.seats.iter().map(|s| s.0))
            .collect();
        let share = given.volunteers.len().div_ceil(count);
        let mut volunteers: Vec<_> = given
            .volunteers
            .iter()
            .filter(|v| !used.contains(&v.peer) && own.contains(&v.peer))
            .cloned()
            .collect();
        let spare = given.volunteers.iter().filter(|v| {
            !used.contains(&v.peer) && !own.contains(&v.peer) && !of_others.contains(&v.peer)
        });
        for v in spare {
            if volunteers.len() < share.max(given.seats_min) {
                volunteers.push(v.clone());
            }
        }
        match assign(
            &Given {
                volunteers: &volunteers,
                ..*given
            },
            old.get(&id),
        ) {
            Ok(line_up) => {
                used.extend(line_up.seats.iter().map(|s| s.0));
                plan.insert(id, line_up);
            }
            Err(it) => error = error.or(Some(it)),
        }
    }
    match error {
        Some(_) if plan.is_empty() => {
            let before = old.first_key_value();
            let id = before.map_or(PipelineId(0), |(id, _)| *id);
            assign(given, None).map(|it| [(id, it)].into())
        }
        _ => Ok(plan),
    }
}
