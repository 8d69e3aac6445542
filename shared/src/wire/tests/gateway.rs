//! Packets between a gateway and the host, as they are written.

use expect_test::{Expect, expect};
use serde::{Deserialize, Serialize};

use crate::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise, Stamp};
use crate::wire::signal::{Down, Up, decode, encode};

fn check<T>(packet: &T, expected: Expect)
where
    T: Serialize + for<'a> Deserialize<'a> + PartialEq + std::fmt::Debug,
{
    let text = encode(packet);
    expected.assert_eq(&text);
    assert_eq!(decode(&text).as_ref(), Ok(packet));
    for end in 0..text.len() {
        assert!(decode::<T>(&text[..end]).is_err());
    }
}

/// Numbers of sessions are drawn from all that there are: none may be rounded.
const SESSION: u64 = u64::MAX - 1;
const STAMP: Stamp = Stamp { seq: 7, taken: 3 };

fn rise(event: Option<GatewayEvent>) -> Rise {
    Rise::Packet {
        session: SESSION,
        stamp: STAMP,
        event,
    }
}

fn fall(order: Option<GatewayOrder>) -> Fall {
    Fall::Packet {
        session: SESSION,
        stamp: STAMP,
        order,
    }
}

#[test]
fn what_a_gateway_says() {
    let open = Rise::Open {
        attempt: 1,
        version: 3,
        packet_bytes_max: 1_048_576,
    };
    check(
        &open,
        expect![[r#"{"open":{"attempt":1,"version":3,"packet_bytes_max":1048576}}"#]],
    );
    check(
        &rise(None),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"event":null}}"#
        ]],
    );
    let connection = 9;
    let message = Up::Pong { nonce: 5 };
    let event = GatewayEvent::Message {
        connection,
        message,
    };
    check(
        &rise(Some(event)),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"event":{"message":{"connection":9,"message":{"type":"pong","nonce":5}}}}}"#
        ]],
    );
    let reason = "no message".to_owned();
    let event = GatewayEvent::Malformed { connection, reason };
    check(
        &rise(Some(event)),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"event":{"malformed":{"connection":9,"reason":"no message"}}}}"#
        ]],
    );
    let event = GatewayEvent::Connected { connection };
    check(
        &rise(Some(event)),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"event":{"connected":{"connection":9}}}}"#
        ]],
    );
    let event = GatewayEvent::Closed { connection };
    check(
        &rise(Some(event)),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"event":{"closed":{"connection":9}}}}"#
        ]],
    );
    check(
        &Rise::Over { session: SESSION },
        expect![[r#"{"over":{"session":18446744073709551614}}"#]],
    );
}

#[test]
fn what_a_gateway_is_told() {
    let attempt = 1;
    let opened = Fall::Opened {
        attempt,
        session: SESSION,
        signal_bytes_max: 69_632,
    };
    check(
        &opened,
        expect![[
            r#"{"opened":{"attempt":1,"session":18446744073709551614,"signal_bytes_max":69632}}"#
        ]],
    );
    let text = "another version".to_owned();
    check(
        &Fall::Refused { attempt, text },
        expect![[r#"{"refused":{"attempt":1,"text":"another version"}}"#]],
    );
    check(
        &fall(None),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"order":null}}"#
        ]],
    );
    let message = Down::Ping { nonce: 5 };
    let connections = vec![9, 4];
    let order = GatewayOrder::Message {
        connections: connections.clone(),
        message,
    };
    check(
        &fall(Some(order)),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"order":{"message":{"connections":[9,4],"message":{"type":"ping","nonce":5}}}}}"#
        ]],
    );
    let order = GatewayOrder::Close { connections };
    check(
        &fall(Some(order)),
        expect![[
            r#"{"packet":{"session":18446744073709551614,"stamp":{"seq":7,"taken":3},"order":{"close":{"connections":[9,4]}}}}"#
        ]],
    );
    check(
        &Fall::Over { session: SESSION },
        expect![[r#"{"over":{"session":18446744073709551614}}"#]],
    );
}
