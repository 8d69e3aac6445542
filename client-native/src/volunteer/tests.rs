//! The device's thread, on the CPU: it measures, computes and reports its own death.

use shared::compute::{Compute, Done, Job, StageState};
use shared::driver::Workshop;
use shared::units::{Round, StageRange};
use shared::wire::signal::RefuseCode;

use super::compute::NativeWorkshop;
use super::*;

fn run() -> shared::config::run::RunConfig {
    let text = "[run]\npreset = \"tiny\"\n[model]\nd_model = 16\nheads = 2\nd_ff = 16\ncontext = 8\nrank = 4\n\
                [training]\nbatch = 4\nmicrobatches = 2\n";
    shared::config::written::read(text, &[]).expect("a small run")
}

async fn prepared() -> (
    shared::driver::Prepared<compute::ThreadCompute>,
    mpsc::Receiver<Note>,
) {
    let (notes, heard) = mpsc::channel(16);
    let workshop = NativeWorkshop {
        device: burn::tensor::Device::flex(),
        notes: Notes(notes),
    };
    (workshop.prepare(run()).await.expect("the CPU can"), heard)
}

#[tokio::test]
async fn the_device_is_measured_and_derives_what_the_seed_says() {
    let (prepared, mut heard) = prepared().await;
    let expected = shared::derive::seed_hash(&run().model, run().seed);
    assert_eq!(prepared.seed_hash.0, expected);
    assert!(prepared.speed.block_us > 0);
    assert!(matches!(heard.recv().await, Some(Note::Prepare { .. })));
    assert!(matches!(heard.recv().await, Some(Note::Measured { .. })));
}

#[tokio::test]
async fn jobs_go_to_the_device_and_results_come_back() {
    let (mut prepared, _heard) = prepared().await;
    let states = vec![StageState::Seed; 4];
    let stages = StageRange { first: 0, end: 4 };
    let seat = Job::Seat {
        stages,
        states,
        keeps_texts: false,
    };
    let seated = prepared.compute.run(seat).await;
    assert!(matches!(seated, Done::Seated { agreed } if agreed.len() == 4));
    let snapshot = prepared
        .compute
        .run(Job::Snapshot { round: Round(1) })
        .await;
    assert!(matches!(snapshot, Done::Snapshot { stages, .. } if stages.len() == 4));
}

#[test]
fn every_end_has_its_exit_code() {
    let refused = |code| {
        let (text, remedy) = (String::new(), String::new());
        outcome(Ok(Exit::Refused { code, text, remedy }))
            .expect_err("refused")
            .code
    };
    assert!(outcome(Ok(Exit::Finished)).is_ok());
    assert_eq!(refused(RefuseCode::Version), Code::Version);
    assert_eq!(refused(RefuseCode::SeedHash), Code::Refused);
    assert_eq!(
        outcome(Ok(Exit::HostAway)).expect_err("away").code,
        Code::Network
    );
    assert_eq!(
        outcome(Ok(Exit::RunOver)).expect_err("over").code,
        Code::Over
    );
    assert_eq!(
        outcome(Ok(Exit::Stopped)).expect_err("stopped").code,
        Code::Stopped
    );
}
