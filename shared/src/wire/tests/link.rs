//! Frames about the link itself: what has arrived, further connections.

use expect_test::expect;

use super::frame::{check, refusal};
use crate::limits::{FLOW_SIGNAL_BYTES_MAX, FLOWS_MAX};
use crate::transport::FlowName;
use crate::wire::frame::Header;

pub(super) fn name(number: u8) -> FlowName {
    FlowName {
        number,
        opened_here: true,
    }
}

fn arrived(bytes: u64) -> Header {
    Header::Arrived { bytes, asks: true }
}

#[test]
fn what_has_arrived_is_a_number_and_a_connection_is_named_by_who_opened_it() {
    check(arrived(300), b"", expect!["0711ac0201"]);
    check(
        Header::Flow(name(3)),
        b"signal",
        expect!["071203017369676e616c"],
    );
}

#[test]
fn a_connection_more_than_agreed_or_without_a_signal_is_refused() {
    let flow = |number| Header::Flow(name(number));
    let refusals = [
        refusal(arrived(7), b"x"),
        refusal(flow(FLOWS_MAX), b"x"),
        refusal(flow(0), b""),
        refusal(flow(0), &[0; FLOW_SIGNAL_BYTES_MAX + 1]),
    ];
    expect![[r#"
        arrived frame: has no payload
        flow frame: a link has few connections
        flow frame: has a signal, no longer than agreed
        flow frame: has a signal, no longer than agreed"#]]
    .assert_eq(&refusals.join("\n"));
}
