//! Host messages: their JSON, and what becomes of text that is none.
//!
//! `up.jsonl` and `down.jsonl` hold every message, one a line, as it crosses the network.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{
    MERGE_GROUP_MAX, MERGE_LEVELS_MAX, ORDER_BYTES_A_STAGE, SIGNAL_BYTES_A_STAGE,
    SIGNAL_BYTES_BASE, SIGNAL_BYTES_MAX, STAGES_MAX,
};
use crate::units::{Digest, Issue, PeerId, PipelineId, Round, StageId, StageRange};
use crate::wire::frame::Place;
use crate::wire::leases::Leases;
use crate::wire::merge::Group;
use crate::wire::signal::{
    Down, Fetch, Held, Holds, MergeOrder, Neighbour, Resume, SeatOrder, SignalError, Source, Up,
    decode, decode_within, encode,
};

const UP: &str = include_str!("up.jsonl");
const DOWN: &str = include_str!("down.jsonl");

/// Reads each line and writes the same text again.
fn check<T: Serialize + DeserializeOwned>(golden: &str) {
    for line in golden.lines() {
        let message: T = decode(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(encode(&message), line);
    }
}

/// The types that stand in a golden file.
fn types_in(golden: &str) -> BTreeSet<String> {
    let type_of = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).expect("JSON");
        message["type"]
            .as_str()
            .expect("a message has a type")
            .to_owned()
    };
    golden.lines().map(type_of).collect()
}

/// The types that a reader knows, by its own word: it names them where it meets another.
fn types_of<T: DeserializeOwned>() -> BTreeSet<String> {
    let Err(SignalError::Malformed { reason }) = decode::<T>(r#"{"type":"?"}"#) else {
        panic!("there is a message of type ?")
    };
    let (_, names) = reason
        .split_once("expected one of")
        .expect("a list of names");
    names
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn messages_to_the_host_are_this_json() {
    check::<Up>(UP);
    assert_eq!(types_in(UP), types_of::<Up>());
}

#[test]
fn messages_from_the_host_are_this_json() {
    check::<Down>(DOWN);
    assert_eq!(types_in(DOWN), types_of::<Down>());
}

#[test]
fn a_message_longer_than_the_limit_is_not_read() {
    let len_bytes = SIGNAL_BYTES_MAX + 1;
    let text = " ".repeat(len_bytes);
    assert_eq!(
        decode::<Up>(&text),
        Err(SignalError::TooLarge {
            len_bytes,
            limit_bytes: SIGNAL_BYTES_MAX
        })
    );
    assert!(decode_within::<Up>(r#"{"type":"finish"}"#, 17).is_ok());
    assert!(decode_within::<Up>(r#"{"type":"finish"}"#, 16).is_err());
}

/// A state with the longest numbers there are.
fn held(round: u32, stage: u16) -> Held {
    Held {
        round: Round(u32::MAX - round),
        stage: StageId(stage),
        agreed: Digest([0xaa; 32]),
        blob: Digest([0xbb; 32]),
    }
}

fn place() -> Place {
    let epoch = Issue {
        incarnation: u32::MAX,
        counter: u32::MAX,
    };
    Place {
        pipeline: PipelineId(u16::MAX),
        epoch,
        round: Round(u32::MAX),
    }
}

fn longest_holds(stages: u16) -> Holds {
    Holds {
        place: place(),
        attempt: place().epoch,
        steps: u32::MAX,
        stages: (0..stages).map(|stage| held(0, stage)).collect(),
    }
}

/// The longest that a volunteer has to say: it holds all stages, of four rounds, and a result, its own and a merged one.
fn longest_join(stages: u16) -> Up {
    let Some(Ok(Up::Join(mut join))) = UP.lines().map(decode).next() else {
        panic!("the first golden message is a join")
    };
    let rounds = (0..4).flat_map(|round| (0..stages).map(move |stage| held(round, stage)));
    join.kept = rounds.collect();
    join.resume = Some(Resume {
        peer: PeerId(u64::MAX),
        place: Some(place()),
        attempt: Some(place().epoch),
        report: None,
        leases: Leases::default(),
        holds: Some(longest_holds(stages)),
        merged: Some(longest_holds(stages)),
    });
    Up::Join(join)
}

/// The longest that a host has to say: a seat of all stages, each to be had from four others and the store.
fn longest_seat(stages: u16) -> Down {
    let sources = |stage: u16| {
        let peers = (0..4).map(move |peer| PeerId(u64::MAX - 4 * u64::from(stage) - peer));
        let blob = held(0, stage).blob;
        let path = format!("/store/blobs/{blob}");
        let store = Source::Store { path, blob };
        let peers = peers.map(move |peer| Source::Peer { peer, blob });
        peers.chain([store])
    };
    let state: Vec<Fetch> = (0..stages)
        .map(|stage| Fetch {
            held: held(0, stage),
            sources: sources(stage).collect(),
        })
        .collect();
    let peers = state
        .iter()
        .flat_map(|fetch| &fetch.sources)
        .filter_map(|source| match source {
            Source::Peer { peer, .. } => Some(*peer),
            Source::Seed | Source::Store { .. } => None,
        });
    let key = Digest([0xcc; 32]);
    Down::Seat(Box::new(SeatOrder {
        place: place(),
        stages: StageRange {
            first: 0,
            end: stages,
        },
        previous: None,
        next: None,
        seats_behind: 0,
        keys: peers.map(|peer| Neighbour { peer, key }).collect(),
        state,
    }))
}

/// A merge of as many pipelines as there may be, by a seat of all stages.
fn longest_merge(stages: u16) -> Down {
    let peer = Neighbour {
        peer: PeerId(u64::MAX),
        key: Digest([0xcc; 32]),
    };
    let size = usize::from(MERGE_GROUP_MAX);
    let group = Group {
        peers: vec![peer; size],
        samples: vec![u64::MAX; size],
        shares: vec![u32::MAX; size],
    };
    Down::Merge(Box::new(MergeOrder {
        place: place(),
        attempt: place().epoch,
        result: Round(u32::MAX),
        samples: u64::MAX,
        stages: vec![vec![group; MERGE_LEVELS_MAX as usize]; usize::from(stages)],
    }))
}

#[test]
fn a_run_of_any_number_of_stages_has_room_for_its_longest_messages() {
    for stages in [1, 4, 150, 512] {
        let up_bytes = SIGNAL_BYTES_BASE + usize::from(stages) * SIGNAL_BYTES_A_STAGE;
        let down_bytes = SIGNAL_BYTES_BASE + usize::from(stages) * ORDER_BYTES_A_STAGE;
        let commit = Down::Commit {
            round: Round(u32::MAX),
            place: place(),
            attempt: place().epoch,
            stages: (0..stages).map(|stage| held(0, stage)).collect(),
        };
        let join = encode(&longest_join(stages));
        assert!(join.len() <= up_bytes, "{stages} stages: {}", join.len());
        assert!(decode_within::<Up>(&join, up_bytes).is_ok());
        let orders = [
            encode(&longest_seat(stages)),
            encode(&longest_merge(stages)),
            encode(&commit),
        ];
        for order in orders {
            assert!(order.len() <= down_bytes, "{stages}: {}", order.len());
            assert!(decode::<Down>(&order).is_ok());
        }
    }
    assert_eq!(usize::from(512_u16), STAGES_MAX);
}

#[test]
fn a_deeply_nested_message_is_refused() {
    let text = format!(
        r#"{{"type":"reason","text":{}"#,
        "[".repeat(SIGNAL_BYTES_MAX / 2)
    );
    assert!(matches!(
        decode::<Down>(&text),
        Err(SignalError::Malformed { .. })
    ));
}

proptest! {
    #[test]
    fn any_text_is_a_message_or_refused(text in ".*", kind in "[a-z_]{0,9}") {
        for text in [text.clone(), format!(r#"{{"type":"{kind}",{text}}}"#)] {
            let _either = decode::<Up>(&text);
            let _either = decode::<Down>(&text);
        }
    }

    #[test]
    fn a_corrupted_message_is_another_or_refused(
        line in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        with in any::<char>(),
    ) {
        for golden in [UP, DOWN] {
            let lines: Vec<&str> = golden.lines().collect();
            let mut text: Vec<char> = lines[line.index(lines.len())].chars().collect();
            let at = at.index(text.len());
            text[at] = with;
            let text: String = text.into_iter().collect();
            if let Ok(message) = decode::<Up>(&text) {
                prop_assert_eq!(decode::<Up>(&encode(&message)), Ok(message));
            }
            if let Ok(message) = decode::<Down>(&text) {
                prop_assert_eq!(decode::<Down>(&encode(&message)), Ok(message));
            }
        }
    }
}
