//! What decides who sits where, whatever else the machine does: memory. Speeds are measured again and again.

use shared::config::written;
use shared::schedule::placement::StageCosts;
use shared::units::StageRange;
use tests::community::Small;

/// Bytes of memory that a seat over these stages of a small run's model takes.
pub(super) fn memory_of(small: &Small, first: u16, end: u16) -> u64 {
    let run = written::read(&small.config(), &[]).expect("the small run is a run");
    StageCosts::new(&run).memory_of(StageRange { first, end })
}
