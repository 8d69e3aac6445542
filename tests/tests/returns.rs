//! Everybody is gone at once and comes back: what lies on the volunteers' own disks, and what if it is of no use.
//!
//! Between real processes, as in `community`. A volunteer keeps its states in a folder beside its identity; here the
//! processes are killed in mid-round and the folders are looked at, damaged, exchanged or filled before the next start.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tests::community::{Community, ROUND_WAIT_MAX, Small, losses};
use tests::disk::SmallDisk;
use tests::judge;
use tests::shelf::{self, KeptState};

/// Who takes part.
const NAMES: [&str; 2] = ["anchovy", "herring"];
/// Stages of the small model.
const STAGES: usize = 4;
/// For a volunteer to start and say something.
const SAY_MAX: Duration = Duration::from_secs(60);

fn gather(small: &Small) -> Community {
    Community::gather(small, &NAMES).expect("a community gathers")
}

fn join_again(community: &mut Community) {
    for name in NAMES {
        community.join(name).expect("a volunteer starts again");
    }
}

/// What all of them keep.
fn kept(community: &Community) -> Vec<KeptState> {
    let all = NAMES.map(|name| shelf::kept(&community.host.identity(name)));
    all.into_iter()
        .flat_map(|states| states.expect("states are kept"))
        .collect()
}

/// Kills all volunteers, and gives the run once the host knows: what they said last may still have made a round.
fn kill_volunteers(community: &mut Community) -> Value {
    community.kill_volunteers().expect("all are killed");
    community
        .wait_for_volunteers("everybody's loss", SAY_MAX, |listed| {
            listed.iter().all(|one| one["state"] == "away")
        })
        .expect("the host notices");
    community.host.api().expect("the host answers")
}

/// The newest round in the store; 0, which follows from the seed, if there is none.
fn stored(run: &Value) -> u64 {
    run["checkpoint_round"].as_u64().unwrap_or(0)
}

/// Flips one bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).expect("it is there");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("it is written");
}

/// Cuts the second half of a file off, as a disk does whose machine lost its power.
fn truncate(path: &Path) {
    let bytes = fs::read(path).expect("it is there");
    fs::write(path, &bytes[..bytes.len() / 2]).expect("it is written");
}

/// Asserts that the run, whose newest committed round is `newest`, goes on from round `from` and from no other.
fn check_goes_on_from(community: &mut Community, run: &Value, from: u64, newest: u64) {
    let rounds = run["rounds"].as_array().expect("it lists its rounds");
    let before = rounds.iter().find(|row| row["round"] == from);
    let before = before.map_or(Some(0), |row| row["samples"].as_u64());
    let mut rewinds = Vec::new();
    let commit = loop {
        let event = community
            .host
            .program()
            .wait_for("a commit", ROUND_WAIT_MAX, |event| {
                event["event"] == "commit" && event["round"].as_u64() > Some(newest)
                    || event["event"] == "rewind"
            })
            .expect("the run goes on");
        if event["event"] == "commit" {
            break event;
        }
        rewinds.push(event["to"].as_u64());
    };
    let expected = (from < newest).then_some(Some(from));
    assert_eq!(rewinds, Vec::from_iter(expected), "of {newest} rounds");
    let samples = before.map(|before| before + 80);
    assert_eq!(commit["samples"].as_u64(), samples, "{commit}");
}

/// Waits for a volunteer to say that this state of its own is damaged; it is let in all the same.
fn hear_damage(community: &mut Community, name: &str, state: &KeptState) {
    let words = format!("stage {} of round {} is damaged", state.stage, state.round);
    let volunteer = community.volunteer(name).expect("it was started");
    volunteer
        .wait_for(&words, SAY_MAX, |event| {
            let text = event["text"].as_str().unwrap_or_default();
            event["event"] == "trouble" && text.contains(&words)
        })
        .expect("it says what is damaged");
    volunteer
        .wait_for("a welcome", SAY_MAX, |event| event["event"] == "welcome")
        .expect("it is let in");
    assert!(!state.path.exists(), "it is removed");
}

#[test]
fn a_run_whose_processes_were_all_killed_goes_on_from_the_newest_round_on_its_volunteers_disks() {
    // The first round goes to the store, and none after it in the time of this test.
    let mut community = gather(&Small::default());
    let is_newer = |run: &Value| run["safe_round"].as_u64() > Some(1);
    let run = community.reach_mid_round(is_newer).expect("they train");
    let safe = run["safe_round"].as_u64().expect("a round");
    community.kill_all().expect("all are killed");
    community.host.restart().expect("the host starts again");
    let run = community.host.api().expect("it answers");
    let newest = run["round"].as_u64().expect("a round");
    let from = shelf::newest_whole(&kept(&community), STAGES, newest);
    assert!(
        from > stored(&run),
        "the store has the newest round: {run:#}"
    );
    // Whoever is killed just after a commit may not have written the round yet; what was safe is on their disks.
    assert!(
        from >= safe,
        "round {from} of {newest} was kept, {safe} was safe"
    );
    join_again(&mut community);
    check_goes_on_from(&mut community, &run, from, newest);
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}

#[test]
fn a_damaged_state_is_told_and_had_from_another_volunteers_disk() {
    let mut community = gather(&Small::default());
    let is_safe =
        |run: &Value| run["round"].as_u64() >= Some(2) && run["safe_round"] == run["round"];
    community.reach_mid_round(is_safe).expect("they train");
    let run = kill_volunteers(&mut community);
    let newest = run["round"].as_u64().expect("a round");
    let whole = shelf::newest_whole(&kept(&community), STAGES, newest);
    let state = |name: &str, stage: u64| {
        let states = shelf::kept(&community.host.identity(name)).expect("states are kept");
        let mut states = states.into_iter().filter(|state| state.round == whole);
        states.find(|state| state.stage == stage)
    };
    // Of a safe round both have all stages; where a commit came in between, they may not.
    let flipped = state(NAMES[0], 0).or(state(NAMES[0], 3)).expect("a state");
    let truncated = state(NAMES[1], 1).or(state(NAMES[1], 2)).expect("a state");
    flip(&flipped.path);
    truncate(&truncated.path);
    let mut sound = kept(&community);
    sound.retain(|state| state.path != flipped.path && state.path != truncated.path);
    let from = shelf::newest_whole(&sound, STAGES, newest).max(stored(&run));
    join_again(&mut community);
    hear_damage(&mut community, NAMES[0], &flipped);
    hear_damage(&mut community, NAMES[1], &truncated);
    check_goes_on_from(&mut community, &run, from, newest);
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}

#[test]
fn a_state_that_is_damaged_on_all_disks_takes_the_run_back_to_its_store() {
    let small = Small {
        checkpoint_minutes: 0.05,
        ..Small::default()
    };
    let mut community = gather(&small);
    let is_ahead = |run: &Value| {
        let stored = run["checkpoint_round"].as_u64();
        stored >= Some(1) && run["round"].as_u64() > stored
    };
    community.reach_mid_round(is_ahead).expect("they train");
    let run = kill_volunteers(&mut community);
    let newest = run["round"].as_u64().expect("a round");
    let stored = stored(&run);
    let states = kept(&community);
    let last_stage = STAGES as u64 - 1;
    let hit = |state: &&KeptState| state.stage == last_stage && state.round > stored;
    for state in states.iter().filter(hit) {
        flip(&state.path);
    }
    join_again(&mut community);
    check_goes_on_from(&mut community, &run, stored, newest);
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}

#[test]
fn states_of_another_run_are_neither_used_nor_removed() {
    let other = Small {
        seed: 8,
        ..Small::default()
    };
    let mut other = gather(&other);
    other.reach(3).expect("the other run trains");
    other.kill_volunteers().expect("all are killed");
    let mut community = gather(&Small::default());
    community.reach(3).expect("they train");
    let run = kill_volunteers(&mut community);
    // All that they have is the other run's, in its own folder and under this run's name.
    for name in NAMES {
        let identity = community.host.identity(name);
        let own = shelf::runs(&identity).expect("a run's folder");
        let foreign = shelf::runs(&other.host.identity(name)).expect("a run's folder");
        let moved = shelf::folder(&identity).join(foreign[0].file_name().expect("a name"));
        assert_ne!(own[0], moved, "two runs share a folder");
        fs::remove_dir_all(&own[0]).expect("it was there");
        for folder in [&own[0], &moved] {
            fs::create_dir(folder).expect("a folder");
            for state in shelf::kept(&other.host.identity(name)).expect("states are kept") {
                let file = state.path.file_name().expect("a name");
                fs::copy(&state.path, folder.join(file)).expect("it is copied");
            }
        }
    }
    let newest = run["round"].as_u64().expect("a round");
    join_again(&mut community);
    check_goes_on_from(&mut community, &run, stored(&run), newest);
    for name in NAMES {
        let runs = shelf::runs(&community.host.identity(name)).expect("folders");
        assert_eq!(runs.len(), 2, "the other run's states are not removed");
    }
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}

#[test]
fn who_can_keep_nothing_says_so_and_trains_on() {
    let disk = SmallDisk::mount(8 << 20).expect("this machine mounts a tmpfs");
    let mut community = Community::gather(&Small::default(), &[]).expect("a host starts");
    // Room for a key, not for a state.
    disk.fill(64 << 10).expect("the disk fills");
    let identity = disk.seen().join("anchovy.key");
    let identity = identity.to_str().expect("a path of text");
    community
        .join_with("anchovy", &["--identity-path", identity])
        .expect("a volunteer starts");
    // Where the folder should be, a file is.
    let file = shelf::folder(&community.host.identity("herring"));
    fs::write(file, "in the way").expect("it is written");
    community.join("herring").expect("a volunteer starts");
    for (name, words) in [("anchovy", "No space left"), ("herring", "Not a directory")] {
        let volunteer = community.volunteer(name).expect("it was started");
        let said = volunteer.wait_for("trouble", ROUND_WAIT_MAX, |event| {
            let text = event["text"].as_str().unwrap_or_default();
            event["event"] == "trouble" && text.contains("not kept over a restart")
        });
        let said = said.expect("it says that nothing is kept");
        let text = said["text"].as_str().expect("in words");
        assert!(
            text.contains(words) && text.contains("training goes on"),
            "{text}"
        );
    }
    let run = community.go_on(2).expect("training goes on");
    assert!(losses(&run).expect("it has losses").len() >= 2);
    assert_eq!(shelf::kept(Path::new(identity)).unwrap_or_default(), []);
    disk.free().expect("it was filled");
    community.go_on(2).expect("training goes on");
    let states = shelf::kept(Path::new(identity)).expect("there is room now");
    assert!(!states.is_empty(), "nothing is kept");
    judge::recovered(&mut community).expect("the run is as if nothing had happened");
}
