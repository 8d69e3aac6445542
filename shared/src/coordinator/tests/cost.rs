//! What one volunteer says costs no look at all of them.

use super::*;
use crate::transport::LinkSignal;
use crate::units::StageId;
use crate::wire::signal::{LinkFigures, Pause, Suspicion};

/// Volunteers that are told apart by one byte.
const MANY: u8 = 200;

#[test]
fn no_message_of_a_volunteer_makes_the_host_look_at_all_of_them() {
    let mut desk = Desk::new(config());
    let all: Vec<ConnectionId> = (1..=MANY).map(|name| desk.join(name)).collect();
    desk.pass(TICK);
    desk.ready();
    let place = desk.place();
    let (seat, spare) = (desk.seats()[0].0, all[usize::from(MANY) - 1]);
    assert_ne!(seat, spare);
    let to = desk.host.roster.speaker(all[3]).expect("it joined");
    let head = desk.pipeline().head();
    let figures = LinkFigures {
        peer: to,
        delay_us: 1,
        bytes_per_second: None,
        relayed: false,
    };
    let held = Held {
        round: Round(1),
        stage: StageId(0),
        agreed: Digest::default(),
        blob: Digest::default(),
    };
    let messages = [
        Up::Pong { nonce: 0 },
        Up::Signal {
            to,
            signal: LinkSignal::Again { generation: 1 },
        },
        Up::Links {
            host_bytes_per_second: None,
            links: vec![figures; 64],
        },
        Up::Copied { held },
        Up::Missing {
            round: Round(1),
            stage: StageId(0),
        },
        Up::Update {
            capabilities: desk
                .host
                .roster
                .get(to)
                .expect("it joined")
                .capabilities
                .clone(),
            paused: Some(Pause::Asked),
        },
        Up::Suspect {
            place: Some(place),
            peer: head,
            suspicion: Suspicion::Silent,
        },
        Up::NonFinite {
            place,
            stage: StageId(0),
            own: true,
        },
        Up::Ready {
            place,
            stages: Vec::new(),
        },
        Up::Finish,
        Up::Leave { may_return: true },
    ];
    for speaker in [spare, seat] {
        for message in &messages {
            let before = desk.host.roster.looks();
            desk.say(speaker, message.clone());
            // Only a line-up that ended is formed anew, and that once a tick.
            let looks = desk.host.roster.looks() - before;
            assert_eq!(looks, 0, "{message:?}");
        }
    }
    let before = desk.host.roster.looks();
    desk.join(MANY + 1);
    assert_eq!(desk.host.roster.looks() - before, 0, "somebody joins");
    let before = desk.host.roster.looks();
    desk.host.handle_closed(desk.now, all[10]);
    desk.settle();
    assert_eq!(desk.host.roster.looks() - before, 0, "a connection breaks");
}
