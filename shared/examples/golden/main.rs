//! Prints how far stages, loss and optimizer are from the golden vectors: `golden [--device flex|wgpu|all]`.
//!
//! `wgpu` takes a hardware GPU, else a software adapter; without either its checks fail. Vectors come from
//! `tests/golden`, or from the folder that `SHOAL_GOLDEN` names. Exits with 1 if any check fails.

mod checks;

use std::path::PathBuf;
use std::process::ExitCode;

use burn::tensor::Device;
use checks::Tolerances;
use shared::model::device::{Adapter, DeviceKind, adapters, cpu};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let names: &[&str] = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["--device", "all"] => &["flex", "wgpu"],
        ["--device", "flex"] => &["flex"],
        ["--device", "wgpu"] => &["wgpu"],
        _ => {
            report("usage: golden [--device flex|wgpu|all]");
            return ExitCode::from(2);
        }
    };
    let folder = std::env::var_os("SHOAL_GOLDEN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden"),
        PathBuf::from,
    );
    let (mut passed, mut failed) = (0, 0);
    for name in names {
        let Some((device, label, tolerances)) = device(name) else {
            report(&format!(
                "{name}: FAILED, no adapter found (Debian: apt install mesa-vulkan-drivers)"
            ));
            failed += 1;
            continue;
        };
        match checks::run(&folder, &device, tolerances) {
            Ok(checks) => {
                for check in checks {
                    let verdict = if check.passed() { "ok    " } else { "FAILED" };
                    let (figure, tolerance) = (check.figure, check.tolerance);
                    report(&format!(
                        "{verdict} {figure:9.2e} <= {tolerance:.0e}  {label}  {}",
                        check.name
                    ));
                    if check.passed() {
                        passed += 1
                    } else {
                        failed += 1
                    }
                }
            }
            Err(error) => {
                report(&format!("FAILED {label}: {error}"));
                failed += 1;
            }
        }
    }
    report(&format!("{passed} passed, {failed} failed"));
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A device for that name: the CPU, or the first hardware adapter, else the first adapter.
fn device(name: &str) -> Option<(Device, String, Tolerances)> {
    if name == "flex" {
        let cpu = cpu();
        return Some((cpu.device, cpu.name, Tolerances::FLEX));
    }
    let by_kind = |adapter: &&Adapter| adapter.kind != DeviceKind::Gpu;
    let adapter = adapters().iter().min_by_key(by_kind)?;
    let opened = adapter.open().ok()?;
    let label = format!("wgpu {}", opened.name);
    Some((opened.device, label, Tolerances::WGPU))
}

#[expect(clippy::print_stdout, reason = "the figures are this program's output")]
fn report(line: &str) {
    println!("{line}");
}
