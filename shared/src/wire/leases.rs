//! The leases of one round in few words: what a head brings back after its connection broke.
//!
//! Steps of a round mostly have samples that follow each other, so a run of them is one range. A round of thousands
//! of steps fits a message so.
//!
//! Invariant: whatever a stranger wrote unpacks to whole steps within a limit, or to nothing.

use serde::{Deserialize, Serialize};

use super::frame::Place;
use super::signal::Lease;
use crate::units::{SampleRange, Step};

/// Leases of the steps from 0 on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// Samples of the steps, in order; one range for steps that follow each other.
    pub samples: Vec<SampleRange>,
    /// Whether the round ends with the last of them.
    pub last: bool,
}

impl Leases {
    /// Packs leases that stand in order of steps, from step 0 on.
    pub fn pack<'a>(leases: impl IntoIterator<Item = &'a Lease>) -> Self {
        let mut packed = Self::default();
        for lease in leases {
            packed.last |= lease.last;
            let samples = lease.samples;
            if let Some(run) = packed.samples.last_mut()
                && run.end() == samples.first
                && let Some(count) = run.count.checked_add(samples.count)
            {
                run.count = count;
            } else {
                packed.samples.push(samples);
            }
        }
        packed
    }

    /// The leases of a round at `place` whose steps have `batch` samples; `None` if they are not whole steps, more than
    /// `steps_max`, or no numbers of samples.
    pub fn unpack(&self, place: Place, batch: u32, steps_max: u32) -> Option<Vec<Lease>> {
        let mut leases: Vec<Lease> = Vec::new();
        for run in &self.samples {
            let end = run.first.checked_add(u64::from(run.count))?;
            if batch == 0 || run.count == 0 || !run.count.is_multiple_of(batch) {
                return None;
            }
            let mut first = run.first;
            while first < end {
                let step = u32::try_from(leases.len()).ok()?;
                if step >= steps_max {
                    return None;
                }
                leases.push(Lease {
                    place,
                    step: Step(step),
                    samples: SampleRange {
                        first,
                        count: batch,
                    },
                    last: false,
                });
                first += u64::from(batch);
            }
        }
        if let Some(lease) = leases.last_mut() {
            lease.last = self.last;
        }
        Some(leases)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::units::{Issue, PipelineId, Round};

    const PLACE: Place = Place {
        pipeline: PipelineId(0),
        epoch: Issue {
            incarnation: 1,
            counter: 2,
        },
        round: Round(3),
    };

    fn leases(firsts: &[u64], last: bool) -> Vec<Lease> {
        let numbered = (0..).zip(firsts);
        let lease = |(step, &first): (u32, &u64)| Lease {
            place: PLACE,
            step: Step(step),
            samples: SampleRange { first, count: 8 },
            last: last && step as usize + 1 == firsts.len(),
        };
        numbered.map(lease).collect()
    }

    #[test]
    fn a_long_round_in_order_is_one_range() {
        let firsts: Vec<u64> = (0..100_000).map(|step| 16 + 8 * step).collect();
        let packed = Leases::pack(&leases(&firsts, true));
        assert_eq!(packed.samples.len(), 1);
        assert_eq!(
            packed.unpack(PLACE, 8, 100_000),
            Some(leases(&firsts, true))
        );
        assert_eq!(packed.unpack(PLACE, 8, 99_999), None);
        assert_eq!(packed.unpack(PLACE, 7, 200_000), None);
        let huge = Leases {
            samples: vec![SampleRange {
                first: u64::MAX - 3,
                count: 8,
            }],
            last: false,
        };
        assert_eq!(huge.unpack(PLACE, 8, 10), None);
    }

    proptest! {
        #[test]
        fn leases_unpack_to_what_was_packed(
            firsts in proptest::collection::vec(0_u64..6, 0..12),
            last in any::<bool>(),
        ) {
            let firsts: Vec<u64> = firsts.into_iter().map(|first| first * 8).collect();
            let leases = leases(&firsts, last);
            prop_assert_eq!(Leases::pack(&leases).unpack(PLACE, 8, 12), Some(leases));
        }
    }
}
