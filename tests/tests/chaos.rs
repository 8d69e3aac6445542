//! Two minutes in which something happens every 15 seconds: to headless volunteers, to a tab, to the host.
//!
//! `cargo xtask chaos` in short, with its rules; see [`tests::chaos`]. The loss is held to that of a short run to which
//! nothing happens. Needs the built web client (`cargo xtask web`); without root nobody is cut off.

use std::io::Write as _;
use std::time::Duration;

use tests::chaos::{Asked, run};

#[test]
fn a_run_to_which_something_happens_every_15_seconds_commits_on_loses_nothing_and_learns_as_well() {
    let asked = Asked {
        seed: 7,
        time: Duration::from_secs(120),
        every: Duration::from_secs(15),
        natives: 4,
        tabs: 1,
        pipelines: 1,
        compared_samples: Some(2_400),
        logs: None,
    };
    let mut out = std::io::stderr();
    let mut say = |line: &str| drop(writeln!(out, "{line}"));
    let report = run(&asked, &mut say).expect("everybody starts, and something goes on");
    assert!(report.is_sound(), "{report:#?}");
    // Nothing was skipped that could be done, and all of it was seen.
    assert_eq!(
        report.faults.values().sum::<usize>() + report.left_out.values().sum::<usize>(),
        7
    );
    assert!(report.faults.len() >= 4, "{report:#?}");
    assert!(
        report.commits >= 10 && report.states_compared > 0,
        "{report:#?}"
    );
}
