use shared::config::run::RunConfig;
use shared::units::{PipelineId, Round, StageId, StageRange};
use shared::wire::report::{DataReport, RoundReport, VolunteerState};
use shared::wire::signal::{RefuseCode, VolunteerKind};

use super::*;
use crate::messages::ranges;

fn plain(text: &str) -> String {
    text.replace('\u{a0}', " ")
}

fn rows(found: &Preflight, settings: &Settings) -> Vec<Row> {
    let model = RunConfig::preset("tiny").unwrap().model;
    preflight(found, settings, &model)
}

fn find(rows: &[Row], what: &str) -> Row {
    let row = rows.iter().find(|row| row.what == what);
    row.unwrap().clone()
}

#[test]
fn a_preflight_has_the_same_rows_from_its_beginning_to_its_end() {
    let settings = Settings::default();
    let begun = rows(&Preflight::default(), &settings);
    let whole = Preflight {
        webgpu: Some(WebGpu::Adapter {
            name: "a GPU".to_owned(),
            software: false,
            shader_f16: true,
            buffer_bytes_max: 1 << 30,
        }),
        device: Some("WebGPU".to_owned()),
        memory_bytes: Some(2_000_000_000),
        block_us: Some(1_000),
        reach: Some(Reachability {
            webrtc: true,
            reflexive: true,
            ..Reachability::default()
        }),
        cost: Some(Cost {
            up_bytes_hour: 120e6,
            down_bytes_hour: 130e6,
            first_bytes: 5e6,
        }),
        ..Preflight::default()
    };
    let whole = rows(&whole, &settings);
    let names = |rows: &[Row]| rows.iter().map(|row| row.what).collect::<Vec<_>>();
    assert_eq!(names(&begun), names(&whole));
    let open = |rows: &[Row]| rows.iter().filter(|row| row.mark == Mark::Open).count();
    assert_eq!((open(&begun), open(&whole)), (begun.len() - 2, 0));
    assert_eq!(
        plain(&find(&whole, "Data").text),
        "About 120 MB up and 130 MB down an hour, copies of the model’s state included; 5.0 MB at first."
    );
}

#[test]
fn who_sees_my_address_is_said_before_anything_else_is_known() {
    let open = rows(&Preflight::default(), &Settings::default());
    assert!(find(&open, "Privacy").text.contains("see your IP address"));
    let relayed = Settings {
        relay_only: true,
        ..Settings::default()
    };
    let relayed = rows(&Preflight::default(), &relayed);
    assert!(find(&relayed, "Privacy").text.starts_with("Only the host"));
}

#[test]
fn the_share_that_is_lent_follows_the_settings() {
    let row = |throttle_percent, only_on_mains| {
        let settings = Settings {
            throttle_percent,
            only_on_mains,
            ..Settings::default()
        };
        plain(&find(&rows(&Preflight::default(), &settings), "Share").text)
    };
    assert!(row(100, false).starts_with("Works all of the time."));
    assert_eq!(
        row(40, true),
        "Works 40 % of the time and rests in between, on mains power only."
    );
}

#[test]
fn reachability_is_direct_relayed_or_none() {
    let row = |host, reflexive, relay, relay_only| {
        let reach = Reachability {
            webrtc: true,
            host,
            reflexive,
            relay,
            ..Reachability::default()
        };
        let row = connection(&reach, relay_only);
        (row.mark, row.text)
    };
    let begins = |(mark, text): (Mark, String), expected, begin: &str| {
        assert_eq!(mark, expected, "{text}");
        assert!(text.starts_with(begin), "{text}");
    };
    begins(row(true, true, true, false), Mark::Good, "Directly");
    begins(
        row(true, false, true, false),
        Mark::Note,
        "Through a relay:",
    );
    begins(row(true, false, false, false), Mark::Note, "Only from");
    begins(row(false, false, false, false), Mark::Bad, "Nobody can");
    begins(row(true, true, true, true), Mark::Good, "Through a relay,");
    begins(row(true, true, false, true), Mark::Bad, "No relay");
}

#[test]
fn servers_that_do_not_help_are_named() {
    let urls = ["stun:a.example", "turn:b.example"].map(str::to_owned);
    let mut reach = Reachability {
        webrtc: true,
        host: true,
        ..Reachability::default()
    };
    assert!(
        connection(&reach, false).text.contains("names no server"),
        "what has no servers blames none"
    );
    reach.note_servers(&urls, &["turn:b.example?transport=udp".to_owned()]);
    let text = connection(&reach, false).text;
    assert!(text.starts_with("Only from your own network"), "{text}");
    assert!(text.contains("No answer from stun:a.example."), "{text}");
    assert!(text.contains("Turned away by turn:b.example"), "{text}");
}

#[test]
fn a_browser_without_webgpu_is_offered_the_cpu() {
    for reason in [
        NoWebGpu::NotOffered,
        NoWebGpu::NoAdapter,
        NoWebGpu::NoTimestamps,
    ] {
        let found = Preflight {
            webgpu: Some(WebGpu::Absent { reason }),
            device: Some("CPU (SIMD)".to_owned()),
            ..Preflight::default()
        };
        let row = find(&rows(&found, &Settings::default()), "Processor");
        assert_eq!(row.mark, Mark::Note);
        assert!(
            row.text.contains("on the CPU (SIMD), more slowly"),
            "{row:?}"
        );
    }
}

#[test]
fn accepted_work_is_told_from_commits() {
    let mut work = Accepted::default();
    assert!(accepted(&work).starts_with("Nothing of yours"));
    work.microbatches = 412;
    work.stages = vec![StageRange { first: 2, end: 4 }];
    work.first_round = Some(Round(17));
    work.last_round = Some(Round(21));
    assert_eq!(
        plain(&accepted(&work)),
        "Your work on stages 2-3: 412 microbatches accepted, in rounds 17 to 21."
    );
    work.microbatches = 1;
    work.first_round = Some(Round(21));
    assert_eq!(
        plain(&accepted(&work)),
        "Your work on stages 2-3: 1 microbatch accepted, in round 21."
    );
}

#[test]
fn work_of_earlier_seats_is_not_called_todays() {
    let of = |stages: &[u16]| worked_on(&ranges(stages.iter().map(|&stage| StageId(stage))));
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[2]).as_deref(), Some("stage 2"));
    assert_eq!(of(&[1, 2, 3]).as_deref(), Some("stages 1-3"));
    assert_eq!(of(&[0, 1, 3]).as_deref(), Some("stages 0-1 and 3"));
    assert_eq!(of(&[0, 2, 4, 5]).as_deref(), Some("stages 0, 2 and 4-5"));
}

#[test]
fn savings_are_told_only_when_something_was_sent() {
    assert_eq!(saved(&Traffic::default()), None);
    let traffic = Traffic {
        boundary_bytes: 17_408,
        dense_bytes: 131_072,
        ..Traffic::default()
    };
    assert_eq!(
        plain(&saved(&traffic).unwrap()),
        "Activations and gradients took 17 kB. At full width in f16 they would have taken 131 kB: 7.5 times as much."
    );
}

#[test]
fn what_is_read_aloud_does_not_change_with_each_step() {
    assert_eq!(
        sense("Training, 3 steps into the round."),
        sense("Training, 14 steps into the round.")
    );
    assert_ne!(sense("Training."), sense("Paused: on battery."));
}

#[test]
fn every_phase_has_a_sentence_even_without_a_reason() {
    let mut snapshot = Snapshot::default();
    assert_eq!(reason(&snapshot), "Getting ready.");
    snapshot.phase = Phase::Spare;
    assert!(reason(&snapshot).contains("takes over when somebody leaves"));
    snapshot.reason = "paused: on battery".to_owned();
    assert_eq!(reason(&snapshot), "Paused: on battery.");
}

#[test]
fn an_end_says_what_happened_and_what_to_do() {
    let refused = Ended::Refused {
        code: RefuseCode::Full,
        text: "the host holds as many volunteers as it can".to_owned(),
        remedy: "try again later".to_owned(),
    };
    let (title, text) = ended(&refused);
    assert_eq!(title, "The host did not let you in");
    assert_eq!(
        text,
        "The host holds as many volunteers as it can. Try again later."
    );
}

#[test]
fn time_to_go_follows_the_last_rounds() {
    let config = RunConfig::preset("tiny").unwrap();
    let round = |round: u32| RoundReport {
        round: Round(round),
        loss: 3.0,
        validation_loss: None,
        samples: u64::from(round) * 100,
        seconds: if round < 20 { 500.0 } else { 10.0 },
        pipelines: 1,
    };
    let mut report = RunReport {
        name: String::new(),
        build: "0.1.0".to_owned(),
        wire_version: 2,
        parameters: 0,
        format: config.format,
        model: config.model,
        data: DataReport {
            files: 1,
            bytes: 1,
            train_tokens: 1,
            validation_tokens: 1,
            tokenizer: "bytes".to_owned(),
        },
        state: "training".to_owned(),
        reason: String::new(),
        round: Round(30),
        safe_round: Round(30),
        checkpoint_round: None,
        pipelines: 1,
        steps: 0,
        samples: 3_000,
        lowest_open_sample: 0,
        samples_total: 6_000,
        tokens: 0,
        loss: None,
        validation_loss: None,
        rounds: (1..=30).map(round).collect(),
        volunteers: vec![],
        wire_bytes_per_token: 0,
        dense_f16_bytes_per_token: 0,
        sample: None,
        takes_prompts: true,
        proposal: None,
    };
    assert_eq!(plain(&to_go(&report).unwrap()), "about 5 min 0 s to go");
    report.samples = 6_000;
    assert_eq!(to_go(&report), None, "it is there");
    report.samples = 100;
    report.rounds.truncate(1);
    assert_eq!(to_go(&report), None, "one round has no speed");
}

#[test]
fn what_is_not_kept_is_told_with_what_it_means() {
    assert_eq!(
        not_kept("the browser has no more room for this page"),
        "No copy of your stages is kept on this computer: the browser has no more room for this page. The work goes on; \
         but after a reload this tab has to fetch its stages anew."
    );
}

#[test]
fn neighbours_are_called_as_the_run_calls_them() {
    let volunteer = |name: &str, first, end| VolunteerReport {
        name: name.to_owned(),
        kind: VolunteerKind::Native,
        state: VolunteerState::Seated,
        stages: Some(StageRange { first, end }),
        pipeline: Some(PipelineId(0)),
        reason: String::new(),
        microbatches: 0,
    };
    let spare = VolunteerReport {
        stages: None,
        ..volunteer("spare", 0, 0)
    };
    let elsewhere = VolunteerReport {
        pipeline: Some(PipelineId(1)),
        ..volunteer("of another pipeline", 0, 2)
    };
    let listed = [
        spare,
        elsewhere,
        volunteer("tail", 3, 4),
        volunteer("head", 0, 2),
        volunteer("own", 2, 3),
    ];
    let mut seat = Seat {
        stages: StageRange { first: 2, end: 3 },
        of: 4,
        pipeline: 0,
        previous: None,
        next: None,
        steps: 0,
    };
    let names = |seat: &Seat| neighbours(&listed, seat).map(|name| name.unwrap_or_default());
    assert_eq!(names(&seat), ["head", "tail"]);
    seat.stages = StageRange { first: 0, end: 2 };
    assert_eq!(names(&seat), ["", "own"]);
}
