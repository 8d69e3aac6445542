//! Faults that a test asks for: what goes wrong in this process, and at which occasion.
//!
//! *Feature `faults`*, which no release is built with. What a machine does to a program (a signal, a cable, a full
//! disk) needs none of this; what only a program could do to itself, at an exact moment, is here. A program reads
//! [`VARIABLE`] once, at its start ([`arm`]), and asks at each point whether it is time ([`is_due`]).
//!
//! `SHOAL_FAULT=nan-weight@20,nan-weight@60` asks for that fault at its 20th and at its 60th occasion, counted in this
//! process; without `@` it is the first one. A name that is none is an error: a test must not pass by a typo.
//!
//! | name | program | an occasion, and what happens at it |
//! | --- | --- | --- |
//! | `abort-after-commit-row` | `shoal-host` | the row of a commit is synced, and nobody was told yet: the process aborts |
//! | `wrong-seed-hash` | `shoal join` | the numbers that follow from the seed are derived: they are others, as on a machine that computes otherwise |
//! | `nan-weight` | `shoal join` | a forward of a microbatch in training: before it, a weight of the seat becomes NaN |
//! | `nan-gradient` | `shoal join` | the same before a backward |
//! | `device-panic` | `shoal join` | a backward: the device fails, as a GPU does that is lost |
//! | `malformed-frame` | `shoal join` | a message on a channel for tensors: bytes that are no frame leave in its place |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The environment variable that asks for faults.
pub const VARIABLE: &str = "SHOAL_FAULT";

/// Where something can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Between the synced row of a commit and the message that tells it.
    AbortAfterCommitRow,
    /// When the seed's hash is derived.
    WrongSeedHash,
    /// Before a forward.
    NanWeight,
    /// Before a backward.
    NanGradient,
    /// At a backward.
    DevicePanic,
    /// When a message is sent.
    MalformedFrame,
}

impl Point {
    const ALL: [Self; 6] = [
        Self::AbortAfterCommitRow,
        Self::WrongSeedHash,
        Self::NanWeight,
        Self::NanGradient,
        Self::DevicePanic,
        Self::MalformedFrame,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::AbortAfterCommitRow => "abort-after-commit-row",
            Self::WrongSeedHash => "wrong-seed-hash",
            Self::NanWeight => "nan-weight",
            Self::NanGradient => "nan-gradient",
            Self::DevicePanic => "device-panic",
            Self::MalformedFrame => "malformed-frame",
        }
    }
}

/// A fault that nobody can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{VARIABLE}: '{text}' is no fault; write NAME or NAME@OCCASION, where NAME is one of: {}",
    names()
)]
pub struct FaultError {
    /// What was asked for.
    pub text: String,
}

fn names() -> String {
    Point::ALL.map(Point::name).join(", ")
}

/// Which faults were asked for, and how often each point was passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    wanted: BTreeMap<Point, BTreeSet<u64>>,
    passed: BTreeMap<Point, u64>,
}

impl Plan {
    fn parse(text: &str) -> Result<Self, FaultError> {
        let mut plan = Self::default();
        for fault in text.split(',').filter(|fault| !fault.is_empty()) {
            let unknown = || FaultError {
                text: fault.to_owned(),
            };
            let (name, occasion) = fault.split_once('@').unwrap_or((fault, "1"));
            let point = Point::ALL.into_iter().find(|point| point.name() == name);
            let occasion: u64 = occasion.parse().map_err(|_| unknown())?;
            if occasion == 0 {
                return Err(unknown());
            }
            let wanted = plan.wanted.entry(point.ok_or_else(unknown)?).or_default();
            wanted.insert(occasion);
        }
        Ok(plan)
    }

    fn pass(&mut self, point: Point) -> bool {
        let passed = self.passed.entry(point).or_default();
        *passed += 1;
        self.wanted
            .get(&point)
            .is_some_and(|wanted| wanted.contains(passed))
    }
}

static PLAN: OnceLock<Mutex<Plan>> = OnceLock::new();

/// Takes what [`VARIABLE`] holds, if anything. The first call counts.
///
/// # Errors
/// It names a fault that there is not.
pub fn arm(text: Option<&str>) -> Result<(), FaultError> {
    let plan = Plan::parse(text.unwrap_or_default())?;
    PLAN.get_or_init(|| Mutex::new(plan));
    Ok(())
}

/// Passes a point; whether the fault is due now. Never in a program that was not armed.
pub fn is_due(point: Point) -> bool {
    PLAN.get().is_some_and(|plan| {
        plan.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pass(point)
    })
}

#[cfg(test)]
mod tests {
    use super::{Plan, Point};

    #[test]
    fn a_fault_comes_at_the_occasions_that_were_named_and_at_no_other() {
        let mut plan = Plan::parse("nan-weight@2,nan-weight@4,malformed-frame").expect("it fits");
        let due: Vec<bool> = (0..5).map(|_| plan.pass(Point::NanWeight)).collect();
        assert_eq!(due, [false, true, false, true, false]);
        assert!(plan.pass(Point::MalformedFrame));
        assert!(!plan.pass(Point::MalformedFrame));
        assert!(!plan.pass(Point::NanGradient));
        assert_eq!(Plan::parse(""), Ok(Plan::default()));
    }

    #[test]
    fn a_name_that_is_none_is_refused_with_those_there_are() {
        for text in ["nan-wait", "nan-weight@", "nan-weight@0", "nan-weight@x"] {
            let error = Plan::parse(text).expect_err(text).to_string();
            assert!(
                error.contains(text) && error.contains("nan-gradient"),
                "{error}"
            );
        }
    }

    #[test]
    fn every_fault_is_told_in_the_table_above() {
        for point in Point::ALL {
            let row = format!("//! | `{}` |", point.name());
            assert!(include_str!("faults.rs").contains(&row), "{row}");
        }
    }
}
