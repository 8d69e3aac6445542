//! Faults that a program could only do to itself, at an exact moment, and disks that are full.
//!
//! Between real processes over real connections, as in `community`; what goes wrong in a process is asked for by
//! `SHOAL_FAULT` (see `shared::faults`), a full disk is a small tmpfs. After each, the run is as if nothing had happened.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::community::{Community, ROUND_WAIT_MAX, Small};
use tests::disk::SmallDisk;
use tests::http;
use tests::judge;
use tests::process::{Program, Signal};
use tests::run::Launch;

/// For a program to say what it was told.
const SAY_MAX: Duration = Duration::from_secs(20);
/// For the host to notice that it can write again; it looks every two seconds.
const WRITE_AGAIN_MAX: Duration = Duration::from_secs(20);

fn check_same(community: &mut Community) {
    judge::recovered_within(community, judge::SAME_LOSS_SHARE_MAX)
        .expect("nothing happened to the loss");
}

fn text(event: &Value) -> &str {
    event["text"].as_str().unwrap_or_default()
}

/// Waits for a `commit` of `round` to be told to a volunteer; whether its own work is in it.
fn hear_commit(volunteer: &mut Program, round: u64) -> bool {
    let told = volunteer.wait_for("the commit", ROUND_WAIT_MAX, |event| {
        event["event"] == "commit" && event["round"].as_u64() >= Some(round)
    });
    let told = told.expect("the host tells of the commit");
    assert_eq!(told["round"], round, "the first commit that is told");
    told["ours"] == true
}

#[test]
fn a_host_killed_between_a_commits_row_and_its_message_tells_it_after_its_restart() {
    let launch = Launch {
        fault: Some("abort-after-commit-row@3"),
        ..Launch::default()
    };
    let names = ["anchovy", "herring"];
    let mut community =
        Community::gather_as(&Small::default(), &names, launch).expect("a community gathers");
    let ended = community.host.program().wait_end(2 * ROUND_WAIT_MAX);
    let ended = ended.expect("the host ends at the third commit");
    assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()));
    let told: Vec<Value> = community
        .events()
        .into_iter()
        .filter(|event| event["event"] == "commit")
        .collect();
    assert!(
        told.iter().all(|event| event["round"].as_u64() < Some(3)),
        "somebody was told: {told:?}"
    );
    community.host.restart().expect("it starts again");
    let run = community.host.api().expect("it answers");
    assert_eq!(run["round"], 3, "the row was the commit: {run:#}");
    for volunteer in &mut community.volunteers {
        assert!(hear_commit(volunteer, 3), "their own work is in it");
    }
    check_same(&mut community);
}

#[test]
fn a_volunteer_that_derives_other_numbers_from_the_seed_is_not_let_in() {
    let mut community =
        Community::gather(&Small::default(), &["herring"]).expect("a community gathers");
    community
        .join_faulty("anchovy", "wrong-seed-hash")
        .expect("a faulty one starts");
    let faulty = community.volunteer("anchovy").expect("it was started");
    let said = faulty.wait_for("a refusal", SAY_MAX, |event| event["event"] == "error");
    let said = said.expect("it says why it ends");
    assert!(text(&said).contains("from the run's seed"), "{said}");
    let ended = faulty.wait_end(SAY_MAX).expect("it ends");
    assert_eq!(ended.code(), Some(11));
    community.volunteers.retain(|one| one.name() != "anchovy");
    community.join("sardine").expect("another one joins");
    check_same(&mut community);
}

#[test]
fn who_computes_nan_is_named_and_the_second_time_loses_its_seat() {
    // A round is 40 forwards and backwards: the first is in round 1, the second in round 3, or in round 2 if a round
    // was begun again for another reason.
    let mut community =
        Community::gather(&Small::default(), &["herring"]).expect("a community gathers");
    community
        .join_faulty("anchovy", "nan-gradient@20,nan-weight@120")
        .expect("a faulty one joins");
    let first = community
        .hear_of("anchovy", "non_finite", ROUND_WAIT_MAX)
        .expect("it is named");
    assert!(
        text(&first).contains("the next time it loses its seat"),
        "{first}"
    );
    let second = community
        .hear_of("anchovy", "non_finite", ROUND_WAIT_MAX)
        .expect("it is named again");
    assert!(text(&second).contains("no seat any more"), "{second}");
    let run = community.host.api().expect("the host answers");
    assert!(
        run["round"].as_u64() >= Some(1),
        "the round of the first was committed after it: {run:#}"
    );
    community
        .wait_for_volunteers("its seat to be taken", SAY_MAX, |listed| {
            let it = listed.iter().find(|one| one["name"] == "anchovy");
            it.is_some_and(|one| {
                let reason = one["reason"].as_str().unwrap_or_default();
                one["state"] == "spare" && reason.contains("not finite")
            })
        })
        .expect("everybody may read why it has no seat");
    community.join("sardine").expect("another one joins");
    check_same(&mut community);
    let run = community.host.api().expect("the host answers");
    let listed = run["volunteers"].as_array().expect("volunteers").iter();
    let state = |name: &str| {
        listed
            .clone()
            .find(|one| one["name"] == name)
            .map(|one| &one["state"])
    };
    assert_eq!(state("anchovy"), Some(&Value::from("spare")), "{run:#}");
}

#[test]
fn a_malformed_frame_closes_the_link_with_a_reason_and_the_run_goes_on() {
    let mut community =
        Community::gather(&Small::default(), &["herring"]).expect("a community gathers");
    community
        .join_faulty("anchovy", "malformed-frame@20")
        .expect("a faulty one joins");
    let first = community
        .hear_of("anchovy", "malformed_frame", ROUND_WAIT_MAX)
        .expect("it is named");
    assert!(
        text(&first).contains("if a second volunteer says so, it is removed"),
        "{first}"
    );
    for (name, words) in [
        (
            "herring",
            "it sent what no correct build sends: message of 8 bytes",
        ),
        ("anchovy", "it closed the link: message of 8 bytes"),
    ] {
        let volunteer = community.volunteer(name).expect("it was started");
        volunteer
            .wait_for(words, SAY_MAX, |event| {
                let reason = event["reason"].as_str().unwrap_or_default();
                event["event"] == "link_lost" && reason.contains(words)
            })
            .expect("both ends say why");
    }
    community.go_on(1).expect("the line-up is formed anew");
    check_same(&mut community);
}

#[test]
fn whoever_sends_two_volunteers_broken_frames_is_removed_for_good() {
    let small = Small {
        seats_min: 3,
        ..Small::default()
    };
    let mut community =
        Community::gather(&small, &["herring", "sprat"]).expect("a community gathers");
    // As many as it takes to reach both: one that the same volunteer gets places the two apart.
    let faults: Vec<String> = (0..10)
        .map(|time| format!("malformed-frame@{}", 20 + 130 * time))
        .collect();
    community
        .join_faulty("anchovy", &faults.join(","))
        .expect("a faulty one joins");
    loop {
        let told = community
            .hear_of("anchovy", "malformed_frame", ROUND_WAIT_MAX)
            .expect("it is named");
        if text(&told).contains("it is removed") && text(&told).contains("the second") {
            break;
        }
    }
    let removed = community.volunteer("anchovy").expect("it was started");
    check_refused(removed);
    // Nor is it let in again with the same key, even when nothing is wrong with it.
    let mut again = community.host.volunteer("anchovy", &[]).expect("it starts");
    check_refused(&mut again);
    community.volunteers.retain(|one| one.name() != "anchovy");
    community.join("sardine").expect("another one joins");
    check_same(&mut community);
}

/// Asserts that a volunteer ends because the host does not want it, and says so.
fn check_refused(volunteer: &mut Program) {
    let said = volunteer.wait_for("a refusal", SAY_MAX, |event| event["event"] == "error");
    let said = said.expect("it says why it ends");
    assert!(text(&said).contains("removed from the run"), "{said}");
    let ended = volunteer.wait_end(SAY_MAX).expect("it ends");
    assert_eq!(ended.code(), Some(11));
}

#[test]
fn a_device_that_fails_at_work_ends_its_volunteer_and_not_the_run() {
    let mut community =
        Community::gather(&Small::default(), &["herring"]).expect("a community gathers");
    community
        .join_faulty("anchovy", "device-panic@60")
        .expect("a faulty one joins");
    community
        .hear_of("anchovy", "left", ROUND_WAIT_MAX)
        .expect("it says good-bye");
    let failed = community.volunteer("anchovy").expect("it was started");
    let said = failed.wait_for("why", SAY_MAX, |event| event["event"] == "error");
    let said = said.expect("it says why it ends");
    assert!(text(&said).contains("the device failed"), "{said}");
    let ended = failed.wait_end(SAY_MAX).expect("it ends");
    assert_eq!(ended.code(), Some(12));
    community.volunteers.retain(|one| one.name() != "anchovy");
    community.join("sardine").expect("another one joins");
    check_same(&mut community);
}

/// A community whose host's store lies on a small disk.
fn gather_on(disk: &SmallDisk) -> Community {
    let small = Small {
        checkpoint_minutes: 0.05,
        ..Small::default()
    };
    let launch = Launch {
        wrapper: disk.wrapper(),
        store: Some(disk.path().join("store")),
        store_seen: Some(disk.seen().join("store")),
        fault: None,
    };
    let names = ["anchovy", "herring"];
    Community::gather_as(&small, &names, launch).expect("a community gathers")
}

fn wait_for_checkpoint(community: &mut Community, after: Option<u64>) -> u64 {
    let newer = |run: &Value| run["checkpoint_round"].as_u64() > after;
    let run = community
        .host
        .wait_until("a checkpoint", ROUND_WAIT_MAX, newer)
        .expect("checkpoints are written");
    run["checkpoint_round"].as_u64().expect("a round")
}

/// Waits until the host says what does not work, with all of `words`.
fn hear_trouble(community: &mut Community, words: &[&str]) {
    let said = community
        .host
        .program()
        .wait_for("trouble", ROUND_WAIT_MAX, |event| {
            let text = text(event);
            event["event"] == "trouble" && words.iter().all(|word| text.contains(word))
        });
    said.expect("the host says what does not work, and what to do");
}

/// Waits until the host says that all works again.
fn hear_no_trouble(community: &mut Community) {
    let host = community.host.program();
    let said = host.wait_for("no trouble", ROUND_WAIT_MAX, |event| {
        event["event"] == "trouble" && event["text"].is_null()
    });
    said.expect("the host says that it works again");
}

/// Asserts that a checkpoint is whole: its manifest can be read, each blob is what its name says.
fn check_checkpoint(store: &Path, round: u64) {
    let path = store.join(format!("manifests/{round}.json"));
    let text = std::fs::read(&path).expect("the manifest is there");
    let manifest: Value = serde_json::from_slice(&text).expect("it is whole");
    let stages = manifest["stages"].as_array().expect("stages");
    assert_eq!(stages.len(), 4, "{manifest}");
    for held in stages {
        let name = held["blob"].as_str().expect("a blob's name");
        let blob = std::fs::read(store.join("blobs").join(name)).expect("the blob is there");
        assert_eq!(blake3::hash(&blob).to_hex().as_str(), name);
    }
}

/// Blobs, whole or half, that no manifest names.
fn unnamed_blobs(store: &Path) -> usize {
    let files = |name: &str| {
        let listed = std::fs::read_dir(store.join(name)).expect("a folder of the store");
        listed.map(|file| file.expect("a file").path())
    };
    let manifests: Vec<String> = files("manifests")
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .collect();
    let is_named = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        manifests.iter().any(|manifest| manifest.contains(&*name))
    };
    files("blobs").filter(|path| !is_named(path)).count()
}

#[test]
fn a_disk_too_full_for_a_checkpoint_costs_that_checkpoint_and_nothing_else() {
    let disk = SmallDisk::mount(24 << 20).expect("this machine mounts a tmpfs");
    let mut community = gather_on(&disk);
    wait_for_checkpoint(&mut community, None);
    // A checkpoint takes 840 kB, the journal's rows a few.
    disk.fill(512 << 10).expect("the disk fills");
    let words = [
        "the last checkpoint was not written",
        "No space left",
        "free some space",
    ];
    hear_trouble(&mut community, &words);
    let run = community.go_on(2).expect("rounds go on");
    let reason = run["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("free some space"), "{reason}");
    let kept = run["checkpoint_round"]
        .as_u64()
        .expect("the old one stands");
    check_checkpoint(&community.host.store(), kept);
    let store = community.host.store();
    community
        .host
        .wait_until("a store of whole checkpoints", SAY_MAX, |_| {
            unnamed_blobs(&store) == 0
        })
        .expect("what there is of the failed one makes room for the journal");
    disk.free().expect("it was filled");
    hear_no_trouble(&mut community);
    let newer = wait_for_checkpoint(&mut community, Some(kept));
    check_checkpoint(&community.host.store(), newer);
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}

#[test]
fn a_full_disk_holds_commits_up_and_loses_none() {
    let disk = SmallDisk::mount(24 << 20).expect("this machine mounts a tmpfs");
    let mut community = gather_on(&disk);
    wait_for_checkpoint(&mut community, None);
    let words = [
        "paused",
        "can't be written",
        "No committed round is lost",
        "free some space",
    ];
    disk.fill(0).expect("the disk fills");
    hear_trouble(&mut community, &words);
    let ready = format!("{}/readyz", community.host.url());
    let refused = http::get(&ready).expect_err("it cannot commit");
    assert!(refused.to_string().contains("503"), "{refused}");
    disk.free().expect("it was filled");
    hear_no_trouble(&mut community);
    community.go_on(1).expect("it goes on by itself");

    disk.fill(0).expect("the disk fills");
    hear_trouble(&mut community, &words);
    let round = community.round().expect("it still answers");
    community.host.program().kill().expect("the host is killed");
    disk.free().expect("it was filled");
    community.host.restart().expect("it starts again");
    let run = community
        .host
        .wait_until("the run", WRITE_AGAIN_MAX, |run| run["round"].is_u64())
        .expect("it answers");
    assert!(run["round"].as_u64() >= Some(round), "{run:#}");
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}
