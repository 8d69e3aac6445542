//! Frames: their bytes, and what becomes of bytes that are none.

use bytes::Bytes;
use expect_test::{Expect, expect};
use proptest::collection::vec;
use proptest::prelude::*;

use super::link::name;
use crate::limits::{
    FLOWS_MAX, FRAME_BYTES_MAX, HEADER_BYTES_MAX, MERGE_SLICE_BYTES, REASON_BYTES_MAX,
    STATE_BYTES_MAX,
};
use crate::transport::FlowName;
use crate::units::{Issue, Microbatch, PeerId, PipelineId, Round, StageId, Step};
use crate::wire::frame::{
    Behind, DecodeError, Echo, Frame, Header, Mode, Place, Slot, StepEnd, VERSION,
};
use crate::wire::generate::Sampling;
use crate::wire::merge::Leg;

pub(super) fn place() -> Place {
    Place {
        pipeline: PipelineId(1),
        epoch: Issue {
            incarnation: 2,
            counter: 300,
        },
        round: Round(17),
    }
}

fn slot() -> Slot {
    Slot {
        place: place(),
        step: Step(4),
        microbatch: Microbatch(5),
    }
}

/// Writes a frame, compares its bytes, and reads it back.
pub(super) fn check(header: Header, payload: &'static [u8], expected: Expect) {
    let frame = Frame {
        header,
        payload: Bytes::from_static(payload),
    };
    let bytes = frame.encode();
    expected.assert_eq(&hex::encode(&bytes));
    assert_eq!(Frame::decode(&bytes), Ok(frame));
}

#[test]
fn hello_is_version_kind_peer_and_64_bytes_of_signature() {
    let header = Header::Hello {
        peer: PeerId(7),
        signature: vec![0xab; 64],
    };
    check(
        header,
        b"",
        expect![
            "07000740abababababababababababababababababababababababababababababababababababababababababababababababababababababababababababababababab"
        ],
    );
}

#[test]
fn forward_carries_slot_and_how_the_step_before_ended() {
    let header = Header::Forward {
        slot: slot(),
        mode: Mode::Train,
        microbatches: 8,
        sequences: 4,
        first_sample: 70_000,
        previous: Some(StepEnd {
            scale: 0.5,
            samples_done: 69_984,
        }),
    };
    check(
        header,
        b"tensor",
        expect!["07010102ac02110405000804f0a204010000003fe0a20474656e736f72"],
    );
}

#[test]
fn backward_carries_loss_and_on_the_last_microbatch_the_norm() {
    let header = |mode, norm_squared| Header::Backward {
        slot: slot(),
        mode,
        loss_sum: 1.5,
        norm_squared,
    };
    check(
        header(Mode::Train, Some(0.25)),
        b"gradient",
        expect!["07020102ac0211040500000000000000f83f01000000000000d03f6772616469656e74"],
    );
    check(
        header(Mode::Evaluate, None),
        b"",
        expect!["07020102ac0211040501000000000000f83f00"],
    );
}

#[test]
fn apply_says_how_a_step_ended_and_whether_it_was_the_last() {
    let header = |last| Header::Apply {
        place: place(),
        step: Step(19),
        end: StepEnd {
            scale: 1.0,
            samples_done: 1_000,
        },
        last,
    };
    check(header(true), b"", expect!["07030102ac0211130000803fe80701"]);
    check(
        header(false),
        b"",
        expect!["07030102ac0211130000803fe80700"],
    );
}

#[test]
fn state_is_asked_for_and_sent_by_round_stage_and_offset() {
    let request = Header::StateRequest {
        round: Round(17),
        stage: StageId(3),
        offset: 262_144,
    };
    check(request, b"", expect!["07041103808010"]);
    let chunk = |offset, total| Header::StateChunk {
        round: Round(17),
        stage: StageId(3),
        offset,
        total,
    };
    check(
        chunk(262_144, 262_149),
        b"state",
        expect!["070511038080108580107374617465"],
    );
    check(chunk(262_144, 0), b"", expect!["0705110380801000"]);
}

fn slice(leg: Leg, offset: u64) -> Header {
    Header::Merge {
        attempt: place().epoch,
        stage: StageId(3),
        leg,
        offset,
    }
}

#[test]
fn a_slice_of_a_merge_names_attempt_stage_leg_and_offset() {
    check(
        slice(Leg::Scatter, 262_144),
        b"part",
        expect!["070a02ac02030080801070617274"],
    );
    check(
        slice(Leg::Gather, 0),
        b"average",
        expect!["070a02ac0203010061766572616765"],
    );
    let taken = Header::MergeTaken {
        attempt: place().epoch,
        taken: 300,
    };
    check(taken, b"", expect!["070b02ac02ac02"]);
}

#[test]
fn credit_keepalive_bye_and_received_are_small() {
    let credit = Header::Credit {
        pipeline: PipelineId(1),
        epoch: place().epoch,
        granted: 12,
        behind: Behind {
            wire_us: 300,
            slowest_us: 7,
        },
    };
    check(credit, b"", expect!["07060102ac020cac0207"]);
    let keepalive = |echo| Header::Keepalive {
        stamp_us: 300,
        echo,
    };
    check(keepalive(None), b"", expect!["0707ac0200"]);
    let echo = Echo {
        stamp_us: 200,
        held_us: 5,
    };
    check(keepalive(Some(echo)), b"", expect!["0707ac0201c80105"]);
    let received = Header::Received {
        slot: slot(),
        mode: Mode::Train,
    };
    check(received, b"", expect!["07090102ac0211040500"]);
    check(Header::bye("over"), b"", expect!["0708046f766572"]);
}

/// Encodes without looking, as a faulty peer would, and tells what the reader says.
pub(super) fn refusal(header: Header, payload: &'static [u8]) -> String {
    let frame = Frame {
        header,
        payload: Bytes::from_static(payload),
    };
    Frame::decode(&frame.encode())
        .expect_err("a refusal")
        .to_string()
}

#[test]
fn values_that_no_correct_build_sends_are_refused_with_the_rule() {
    let forward = |microbatches, sequences, scale| Header::Forward {
        slot: slot(),
        mode: Mode::Train,
        microbatches,
        sequences,
        first_sample: 0,
        previous: Some(StepEnd {
            scale,
            samples_done: 0,
        }),
    };
    let backward = |mode, loss_sum, norm_squared| Header::Backward {
        slot: slot(),
        mode,
        loss_sum,
        norm_squared,
    };
    let chunk = |offset, total| Header::StateChunk {
        round: Round(0),
        stage: StageId(0),
        offset,
        total,
    };
    let lines = [
        refusal(
            Header::Hello {
                peer: PeerId(1),
                signature: vec![0; 63],
            },
            b"",
        ),
        refusal(forward(5, 1, 1.0), b"x"),
        refusal(forward(6, 0, 1.0), b"x"),
        refusal(forward(6, 1, 1.5), b"x"),
        refusal(forward(6, 1, f32::NAN), b"x"),
        refusal(forward(6, 1, 1.0), b""),
        refusal(backward(Mode::Train, f64::NAN, None), b"x"),
        refusal(backward(Mode::Train, 0.0, Some(f64::INFINITY)), b"x"),
        refusal(backward(Mode::Train, 0.0, Some(-1.0)), b"x"),
        refusal(backward(Mode::Train, 0.0, None), b""),
        refusal(backward(Mode::Evaluate, 0.0, None), b"x"),
        refusal(chunk(1, 1), b"x"),
        refusal(chunk(u64::MAX, 1), b"x"),
        refusal(chunk(0, 0), b"x"),
        refusal(chunk(0, u64::MAX), b"x"),
        refusal(
            Header::Bye {
                reason: "a".repeat(REASON_BYTES_MAX + 1),
            },
            b"",
        ),
        refusal(
            Header::Bye {
                reason: "a".repeat(HEADER_BYTES_MAX),
            },
            b"",
        ),
        refusal(
            Header::Keepalive {
                stamp_us: 0,
                echo: None,
            },
            b"x",
        ),
        refusal(
            Header::Received {
                slot: slot(),
                mode: Mode::Train,
            },
            b"x",
        ),
        refusal(slice(Leg::Scatter, 0), b""),
        refusal(slice(Leg::Scatter, 0), &[0; MERGE_SLICE_BYTES + 1]),
        refusal(slice(Leg::Gather, STATE_BYTES_MAX), b"x"),
        refusal(
            Header::MergeTaken {
                attempt: place().epoch,
                taken: 0,
            },
            b"x",
        ),
    ];
    expect![[r#"
        hello frame: a signature has 64 bytes
        forward frame: the microbatch is one of the step's
        forward frame: has at least one sequence
        forward frame: the scale lies between 0 and 1
        forward frame: the scale lies between 0 and 1
        forward frame: has a payload
        backward frame: the loss is finite
        backward frame: the norm is finite and not negative
        backward frame: the norm is finite and not negative
        backward frame: has a payload in training, none in evaluation
        backward frame: has a payload in training, none in evaluation
        state chunk frame: the chunk lies within the blob
        state chunk frame: the chunk lies within the blob
        state chunk frame: the chunk lies within the blob
        state chunk frame: a blob is no longer than agreed
        bye frame: a reason is no longer than agreed
        no header can be read: Hit the end of buffer, expected more data
        keepalive frame: has no payload
        received frame: has no payload
        merge frame: has a payload
        merge frame: a slice is no longer than agreed
        merge frame: the offset lies within a stage
        merge taken frame: has no payload"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_frame_of_another_version_or_length_is_refused_before_its_header_is_read() {
    let decode = |bytes: &[u8]| Frame::decode(&Bytes::copy_from_slice(bytes));
    assert_eq!(decode(&[]), Err(DecodeError::Empty));
    assert_eq!(
        decode(&[VERSION + 1, 0xff, 0xff]),
        Err(DecodeError::Version {
            theirs: VERSION + 1
        })
    );
    let len_bytes = FRAME_BYTES_MAX + 1;
    assert_eq!(
        decode(&vec![VERSION; len_bytes]),
        Err(DecodeError::TooLarge { len_bytes })
    );
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let header = Header::bye(&"é".repeat(REASON_BYTES_MAX));
    let frame = Frame::from(header.clone());
    assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    let Header::Bye { reason } = header else {
        unreachable!("bye() makes a bye")
    };
    assert_eq!(reason.len(), REASON_BYTES_MAX);
}

#[test]
fn a_payload_is_not_copied() {
    let frame = Frame {
        header: Header::StateChunk {
            round: Round(0),
            stage: StageId(0),
            offset: 0,
            total: 4,
        },
        payload: Bytes::from_static(b"blob"),
    };
    let bytes = frame.encode();
    let read = Frame::decode(&bytes).expect("a frame");
    let payload_at = bytes.len() - read.payload.len();
    assert_eq!(read.payload.as_ptr(), bytes[payload_at..].as_ptr());
}

fn any_place() -> impl Strategy<Value = Place> {
    let numbers = (any::<u16>(), any::<u32>(), any::<u32>(), any::<u32>());
    numbers.prop_map(|(pipeline, incarnation, counter, round)| Place {
        pipeline: PipelineId(pipeline),
        epoch: Issue {
            incarnation,
            counter,
        },
        round: Round(round),
    })
}

fn any_slot() -> impl Strategy<Value = Slot> {
    (any_place(), any::<u32>(), 0..u16::MAX).prop_map(|(place, step, microbatch)| Slot {
        place,
        step: Step(step),
        microbatch: Microbatch(microbatch),
    })
}

fn any_end() -> impl Strategy<Value = StepEnd> {
    (0.0..=1.0_f32, any::<u64>()).prop_map(|(scale, samples_done)| StepEnd {
        scale,
        samples_done,
    })
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Train), Just(Mode::Evaluate)]
}

fn any_leg() -> impl Strategy<Value = Leg> {
    prop_oneof![Just(Leg::Scatter), Just(Leg::Gather)]
}

fn any_header() -> impl Strategy<Value = Header> {
    prop_oneof![
        (any::<u64>(), vec(any::<u8>(), 64)).prop_map(|(peer, signature)| Header::Hello {
            peer: PeerId(peer),
            signature
        }),
        (
            any_slot(),
            any_mode(),
            1..=u16::MAX,
            any::<u64>(),
            proptest::option::of(any_end())
        )
            .prop_map(|(slot, mode, sequences, first_sample, previous)| {
                Header::Forward {
                    slot,
                    mode,
                    microbatches: slot.microbatch.0 + 1,
                    sequences,
                    first_sample,
                    previous,
                }
            }),
        (
            any_slot(),
            any_mode(),
            -1e9..1e9_f64,
            proptest::option::of(0.0..1e9_f64)
        )
            .prop_map(|(slot, mode, loss_sum, norm_squared)| Header::Backward {
                slot,
                mode,
                loss_sum,
                norm_squared
            }),
        (any_place(), any::<u32>(), any_end(), any::<bool>()).prop_map(
            |(place, step, end, last)| Header::Apply {
                place,
                step: Step(step),
                end,
                last
            }
        ),
        (any::<u32>(), any::<u16>(), 0_u64..1 << 32).prop_map(|(round, stage, offset)| {
            Header::StateRequest {
                round: Round(round),
                stage: StageId(stage),
                offset,
            }
        }),
        (any::<u32>(), any::<u16>(), 0_u64..1 << 31, 64_u64..1 << 31).prop_map(
            |(round, stage, offset, after)| Header::StateChunk {
                round: Round(round),
                stage: StageId(stage),
                offset,
                total: offset + after,
            }
        ),
        any::<[u64; 3]>().prop_map(|[granted, wire_us, slowest_us]| Header::Credit {
            pipeline: PipelineId(1),
            epoch: place().epoch,
            granted,
            behind: Behind {
                wire_us,
                slowest_us
            },
        }),
        (any::<u64>(), proptest::option::of(any::<[u64; 2]>())).prop_map(|(stamp_us, echo)| {
            let echo = echo.map(|[stamp_us, held_us]| Echo { stamp_us, held_us });
            Header::Keepalive { stamp_us, echo }
        }),
        ".*".prop_map(|reason| Header::bye(&reason)),
        (any_slot(), any_mode()).prop_map(|(slot, mode)| Header::Received { slot, mode }),
        (any_place(), any_leg(), any::<u16>(), 0..STATE_BYTES_MAX).prop_map(
            |(place, leg, stage, offset)| Header::Merge {
                attempt: place.epoch,
                stage: StageId(stage),
                leg,
                offset,
            }
        ),
        (any_place(), any::<u64>()).prop_map(|(place, taken)| Header::MergeTaken {
            attempt: place.epoch,
            taken,
        }),
        any::<(u64, bool)>().prop_map(|(bytes, asks)| Header::Arrived { bytes, asks }),
        any_name().prop_map(Header::Flow),
        (any_place(), 0.0..f64::MAX).prop_map(|(place, norm_squared)| Header::MergeNorm {
            attempt: place.epoch,
            norm_squared,
        }),
        (any_place(), 0.0..=1.0_f32).prop_map(|(place, scale)| Header::MergeScale {
            attempt: place.epoch,
            scale,
        }),
        any_text_header(),
    ]
}

fn any_text_header() -> impl Strategy<Value = Header> {
    let text = (any_place(), any::<[u32; 2]>(), 0.0_f32..10.0, 0.1_f32..1.0).prop_map(
        |(place, [position, drawn], temperature, top_p)| Header::Text {
            pipeline: place.pipeline,
            epoch: place.epoch,
            request: place.epoch,
            position,
            drawn,
            sampling: Sampling {
                temperature,
                top_p,
                seed: u64::from(position),
            },
        },
    );
    let drawn =
        (any_place(), any::<u32>(), any::<Option<u32>>()).prop_map(|(place, drawn, token)| {
            Header::Drawn {
                pipeline: place.pipeline,
                epoch: place.epoch,
                request: place.epoch,
                drawn,
                token,
            }
        });
    let forget = any_place().prop_map(|place| Header::Forget {
        pipeline: place.pipeline,
        epoch: place.epoch,
        request: place.epoch,
    });
    prop_oneof![text, drawn, forget]
}

fn any_name() -> impl Strategy<Value = FlowName> {
    (0..FLOWS_MAX).prop_map(name)
}

/// Any frame that a correct build may send.
fn any_frame() -> impl Strategy<Value = Frame> {
    (any_header(), vec(any::<u8>(), 1..64)).prop_map(|(header, payload)| {
        let carries = matches!(
            header,
            Header::Forward { .. }
                | Header::StateChunk { .. }
                | Header::Merge { .. }
                | Header::Text { .. }
                | Header::Flow(_)
                | Header::Backward {
                    mode: Mode::Train,
                    ..
                }
        );
        let payload = if carries { payload } else { Vec::new() };
        Frame {
            header,
            payload: payload.into(),
        }
    })
}

proptest! {
    #[test]
    fn a_frame_reads_back_what_was_written(frame in any_frame()) {
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn any_bytes_are_a_frame_or_refused(mut bytes in vec(any::<u8>(), 0..200), ours in any::<bool>()) {
        if let (true, Some(first)) = (ours, bytes.first_mut()) {
            *first = VERSION;
        }
        if let Ok(frame) = Frame::decode(&Bytes::from(bytes)) {
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }

    #[test]
    fn a_corrupted_frame_is_another_frame_or_refused(
        frame in any_frame(),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = frame.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert_ne!(Frame::decode(&Bytes::copy_from_slice(&bytes)), Ok(frame));
        bytes.truncate(keep.index(bytes.len()));
        if let Ok(read) = Frame::decode(&Bytes::from(bytes)) {
            prop_assert_eq!(Frame::decode(&read.encode()), Ok(read));
        }
    }
}
