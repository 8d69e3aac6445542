//! Frames of texts: their bytes, and which are refused.

use bytes::Bytes;
use expect_test::expect;

use super::frame::{check, place, refusal};
use crate::units::Issue;
use crate::wire::frame::{DecodeError, Header};
use crate::wire::generate::Sampling;
use crate::wire::payload::{decode_text, encode_forward};

const REQUEST: Issue = Issue {
    incarnation: 2,
    counter: 5,
};

fn text(temperature: f32, top_p: f32) -> Header {
    Header::Text {
        pipeline: place().pipeline,
        epoch: place().epoch,
        request: REQUEST,
        position: 300,
        drawn: 7,
        sampling: Sampling {
            temperature,
            top_p,
            seed: 9,
        },
    }
}

#[test]
fn a_text_names_line_up_request_position_and_how_it_is_drawn() {
    check(
        text(1.0, 0.5),
        b"tokens",
        expect!["070e0102ac020205ac02070000803f0000003f09746f6b656e73"],
    );
    let (pipeline, epoch) = (place().pipeline, place().epoch);
    let drawn = |token| Header::Drawn {
        pipeline,
        epoch,
        request: REQUEST,
        drawn: 7,
        token,
    };
    check(drawn(Some(300)), b"", expect!["070f0102ac0202050701ac02"]);
    check(drawn(None), b"", expect!["070f0102ac0202050700"]);
    let forget = Header::Forget {
        pipeline,
        epoch,
        request: REQUEST,
    };
    check(forget, b"", expect!["07100102ac020205"]);
}

#[test]
fn a_text_that_no_token_can_be_drawn_from_is_refused() {
    let refusals = [
        refusal(text(-1.0, 0.5), b"x"),
        refusal(text(f32::NAN, 0.5), b"x"),
        refusal(text(f32::INFINITY, 0.5), b"x"),
        refusal(text(1.0, 0.0), b"x"),
        refusal(text(1.0, 1.5), b"x"),
    ];
    for found in refusals {
        assert_eq!(found, "text frame: a token can be drawn so");
    }
    assert_eq!(refusal(text(1.0, 0.5), b""), "text frame: has a payload");
}

#[test]
fn a_text_is_whole_rows_of_a_token_and_its_boundary_and_fits_the_context() {
    let payload = encode_forward(&[1, 2], 256, &[7; 6]);
    let (tokens, boundary) = decode_text(&payload, 2, 256, 3).unwrap();
    assert_eq!(
        (tokens, boundary),
        (vec![1, 2], Bytes::from_static(&[7; 6]))
    );
    let length = |expected_bytes| {
        Err(DecodeError::Length {
            len_bytes: 10,
            expected_bytes,
        })
    };
    assert_eq!(decode_text(&payload, 1, 256, 3), length(5));
    assert_eq!(decode_text(&payload, 2, 256, 4), length(6));
    assert!(decode_text(&Bytes::new(), 2, 256, 3).is_err());
    assert!(decode_text(&payload, 2, 2, 3).is_err(), "an unknown token");
}
