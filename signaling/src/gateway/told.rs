//! What a gateway is told next: of what waits for its connections, equal messages become one order.
//!
//! The host says a commit, and what is safe, to everybody at once. At a gateway with thousands of volunteers that is one
//! packet then, not thousands. A list is cut where the packet would be too long.
//!
//! Invariant: each connection is told what was said to it, in the order in which it was said. Messages to different
//! connections may overtake each other, as they do at the host's own sockets.

use std::collections::{HashMap, VecDeque};
use std::mem::{Discriminant, discriminant};

use shared::wire::gateway::GatewayOrder;
use shared::wire::signal::{self, Down};

/// For which connection, and what; `None` closes it.
pub type ForSocket = (u64, Option<Down>);

/// Different messages of one kind among which an equal one is looked for: few are told to many.
const ALIKE_MAX: usize = 4;
/// What the number of a connection takes in a list: all digits of the longest one, and a comma.
const CONNECTION_BYTES: usize = 21;
/// What a packet has beside its message and its list: three numbers, and names.
const ENVELOPE_BYTES: usize = 256;

/// Orders for all that was said, in packets of at most `packet_bytes_max` where a message fits into one at all.
#[must_use]
pub fn orders(
    said: impl IntoIterator<Item = ForSocket>,
    packet_bytes_max: usize,
) -> VecDeque<GatewayOrder> {
    let mut sorted = Sorted::default();
    for (connection, message) in said {
        sorted.add(connection, message);
    }
    let mut orders = VecDeque::with_capacity(sorted.orders.len());
    for order in sorted.orders {
        cut(order, packet_bytes_max, &mut orders);
    }
    orders
}

#[derive(Default)]
struct Sorted {
    orders: Vec<GatewayOrder>,
    /// The first order that comes after all those for a connection.
    next: HashMap<u64, usize>,
    /// The newest orders of each kind.
    alike: HashMap<Discriminant<Down>, VecDeque<usize>>,
}

impl Sorted {
    fn add(&mut self, connection: u64, message: Option<Down>) {
        let next = self.next.entry(connection).or_default();
        let end = self.orders.len();
        let Some(message) = message else {
            let connections = vec![connection];
            self.orders.push(GatewayOrder::Close { connections });
            *next = end + 1;
            return;
        };
        let alike = self.alike.entry(discriminant(&message)).or_default();
        for &index in alike.iter().rev().filter(|&&index| index >= *next) {
            if let GatewayOrder::Message {
                connections,
                message: same,
            } = &mut self.orders[index]
                && *same == message
            {
                connections.push(connection);
                *next = index + 1;
                return;
            }
        }
        if alike.len() == ALIKE_MAX {
            alike.pop_front();
        }
        alike.push_back(end);
        *next = end + 1;
        self.orders.push(GatewayOrder::Message {
            connections: vec![connection],
            message,
        });
    }
}

/// An order in as many pieces as packets are needed for its list.
fn cut(order: GatewayOrder, packet_bytes_max: usize, pieces: &mut VecDeque<GatewayOrder>) {
    match order {
        GatewayOrder::Message {
            connections,
            message,
        } if connections.len() > 1 => {
            let taken_bytes = ENVELOPE_BYTES + signal::encode(&message).len();
            let list_bytes_max = packet_bytes_max.saturating_sub(taken_bytes);
            let count_max = (list_bytes_max / CONNECTION_BYTES).max(1);
            let lists = connections.chunks(count_max);
            pieces.extend(lists.map(|connections| GatewayOrder::Message {
                connections: connections.to_vec(),
                message: message.clone(),
            }));
        }
        whole @ (GatewayOrder::Message { .. } | GatewayOrder::Close { .. }) => {
            pieces.push_back(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use shared::limits::GATEWAY_TOLD_AT_ONCE;
    use shared::units::Round;
    use shared::wire::gateway::{Fall, Stamp};

    use super::super::back::packet_bytes;
    use super::*;

    fn safe(round: u32) -> Down {
        let (round, securing) = (Round(round), None);
        Down::Safe { round, securing }
    }

    fn reason(letters: usize) -> Down {
        let text = "a".repeat(letters);
        Down::Reason { text }
    }

    fn packet_len(order: &GatewayOrder) -> usize {
        let packet = Fall::Packet {
            session: u64::MAX,
            stamp: Stamp {
                seq: u64::MAX,
                taken: u64::MAX,
            },
            order: Some(order.clone()),
        };
        signal::encode(&packet).len()
    }

    /// What each connection is told, as it is told.
    fn heard(orders: &VecDeque<GatewayOrder>) -> BTreeMap<u64, Vec<Option<Down>>> {
        let mut heard: BTreeMap<u64, Vec<Option<Down>>> = BTreeMap::new();
        for order in orders {
            let (connections, message) = match order {
                GatewayOrder::Message {
                    connections,
                    message,
                } => (connections, Some(message.clone())),
                GatewayOrder::Close { connections } => (connections, None),
            };
            for connection in connections {
                heard.entry(*connection).or_default().push(message.clone());
            }
        }
        heard
    }

    #[test]
    fn what_everybody_is_told_is_one_packet() {
        let bytes_max = packet_bytes(1 << 16);
        let everybody = 0..GATEWAY_TOLD_AT_ONCE as u64 / 2;
        let said = everybody
            .clone()
            .map(|connection| (connection, Some(safe(1))));
        let again = everybody
            .clone()
            .map(|connection| (connection, Some(safe(2))));
        let connections: Vec<u64> = everybody.collect();
        let told = |round| GatewayOrder::Message {
            connections: connections.clone(),
            message: safe(round),
        };
        assert_eq!(orders(said.chain(again), bytes_max), [told(1), told(2)]);
    }

    #[test]
    fn what_comes_between_keeps_its_place_and_others_share_a_packet_all_the_same() {
        let ping = Down::Ping { nonce: 5 };
        let said = [
            (1, Some(safe(1))),
            (2, Some(ping.clone())),
            (2, Some(safe(1))),
            (3, None),
            (1, Some(safe(2))),
            (4, Some(safe(1))),
            (1, Some(safe(1))),
        ];
        let message = |connections: &[u64], message: &Down| GatewayOrder::Message {
            connections: connections.to_vec(),
            message: message.clone(),
        };
        let expected = [
            message(&[1], &safe(1)),
            message(&[2], &ping),
            message(&[2, 4], &safe(1)),
            GatewayOrder::Close {
                connections: vec![3],
            },
            message(&[1], &safe(2)),
            message(&[1], &safe(1)),
        ];
        assert_eq!(orders(said, packet_bytes(1_000)), expected);
    }

    fn message() -> impl Strategy<Value = Option<Down>> {
        prop_oneof![
            6 => (0..3_u32).prop_map(|round| Some(safe(round))),
            2 => (0..9_u64).prop_map(|nonce| Some(Down::Ping { nonce })),
            2 => prop_oneof![Just(10), Just(1_900)].prop_map(|letters| Some(reason(letters))),
            1 => Just(None),
        ]
    }

    proptest! {
        #[test]
        fn each_connection_is_told_what_was_said_to_it_in_its_order_and_every_packet_fits(
            said in proptest::collection::vec((0..100_u64, message()), 0..400)
        ) {
            let mut expected: BTreeMap<u64, Vec<Option<Down>>> = BTreeMap::new();
            // Numbers as long as they get.
            let said: Vec<ForSocket> = said.into_iter().map(|(number, what)| (u64::MAX - number, what)).collect();
            for (connection, message) in &said {
                expected.entry(*connection).or_default().push(message.clone());
            }
            let bytes_max = packet_bytes(2_000);
            let found = orders(said, bytes_max);
            for order in &found {
                prop_assert!(packet_len(order) <= bytes_max);
            }
            prop_assert_eq!(heard(&found), expected);
        }
    }
}
