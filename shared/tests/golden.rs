//! What an independent float64 program computed, our stages compute too.

#![cfg(feature = "compute")]

#[path = "../examples/golden/checks.rs"]
#[allow(dead_code, reason = "the example prints what the test only compares")]
mod checks;

use std::path::Path;

use burn::tensor::Device;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

#[test]
fn stages_loss_and_optimizer_agree_with_the_golden_vectors_on_the_cpu() {
    let checks = checks::run(&folder(), &Device::flex(), checks::Tolerances::FLEX);
    let checks = checks.expect("all files are there");
    assert!(checks.len() > 100, "only {} checks", checks.len());
    let failed: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn absent_files_fail() {
    let nowhere = folder().join("nowhere");
    let checks = checks::run(&nowhere, &Device::flex(), checks::Tolerances::FLEX);
    assert!(checks.is_err());
}

#[test]
fn a_figure_that_is_not_a_number_fails() {
    let check = checks::Check {
        name: String::new(),
        figure: f64::NAN,
        tolerance: 1.0,
    };
    assert!(!check.passed());
}
