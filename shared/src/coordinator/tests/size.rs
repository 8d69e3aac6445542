//! What one message costs as the run grows to a hundred thousand volunteers: no more than a search in a tree.
//!
//! Counted are looks, not seconds: every volunteer that is visited one after another, in the roster or among those who
//! keep a state. Found by number, by key or by session is a search in a tree and costs the logarithm by itself.

use std::collections::BTreeMap;

use super::*;
use crate::limits::{KEEPALIVE, PING_TURNS_MAX, PINGS_AT_ONCE};
use crate::transport::LinkSignal;
use crate::units::StageId;
use crate::wire::signal::{LinkFigures, Pause, Suspicion};

/// Sizes of the run.
const SIZES: [u64; 3] = [1_000, 10_000, 100_000];
/// Volunteers that take part by script; the rest of the crowd only answers.
const ACTORS: u8 = 20;
/// Kinds of messages that are weighed.
const KINDS: usize = 15;

/// A run of `count` volunteers that has committed rounds. Whoever is no actor is struck, so that placement, which looks
/// at all who may sit, has the actors to choose from; it keeps nothing, since two copies of a state are all that is ordered.
fn crowded(count: u64) -> (Desk, Vec<ConnectionId>) {
    let mut desk = Desk::new(config());
    let actors: Vec<ConnectionId> = (1..=ACTORS).map(|name| desk.join(name)).collect();
    desk.rounds(2);
    let peer = desk.host.roster.speaker(actors[1]).expect("it joined");
    let mut one = desk.host.roster.get(peer).expect("it joined").clone();
    one.struck = true;
    // It never falls silent.
    one.heard = desk.now + Span::from_secs(3_600);
    one.kept.clear();
    for number in u64::from(ACTORS)..count {
        one.peer = PeerId((1 << 40) + number);
        one.session = 1_000_000 + number;
        let connection = ConnectionId((1 << 40) + number);
        desk.host.roster.join(connection, one.clone());
    }
    assert_eq!(desk.host.volunteer_count() as u64, count);
    (desk, actors)
}

/// What a volunteer says, one of each kind but `join`.
fn messages(desk: &Desk, to: PeerId) -> Vec<Up> {
    let place = desk.place();
    let head = desk.pipeline().head();
    let held = Held {
        round: desk.newest(),
        stage: StageId(0),
        agreed: Digest::default(),
        blob: Digest::default(),
    };
    let capabilities = desk
        .host
        .roster
        .get(to)
        .expect("it joined")
        .capabilities
        .clone();
    vec![
        Up::Pong { nonce: 0 },
        Up::Signal {
            to,
            signal: LinkSignal::Again { generation: 1 },
        },
        Up::Links {
            host_bytes_per_second: None,
            links: vec![
                LinkFigures {
                    peer: to,
                    delay_us: 1,
                    bytes_per_second: None,
                    relayed: false,
                };
                64
            ],
        },
        Up::Report(Report {
            place,
            steps: 1,
            loss: 4.0,
            round_loss: 4.0,
            elapsed_us: 1,
            forward_bytes: 100,
            backward_bytes: 80,
        }),
        Up::Copied { held },
        Up::Missing {
            round: held.round,
            stage: held.stage,
        },
        Up::Update {
            capabilities,
            paused: Some(Pause::Asked),
        },
        Up::Suspect {
            place: Some(place),
            peer: head,
            suspicion: Suspicion::Silent,
        },
        Up::Ask { place: Some(place) },
        Up::NonFinite {
            place,
            stage: StageId(0),
            own: true,
        },
        Up::Evaluated { place, loss: 4.0 },
        Up::MergeFailed {
            place,
            attempt: place.epoch,
        },
        Up::Written {
            place,
            request: place.epoch,
            drawn: 0,
            token: 1,
        },
        Up::NotWritten {
            place,
            request: place.epoch,
            reason: "busy".to_owned(),
        },
        Up::Finish,
        Up::Leave { may_return: true },
    ]
}

/// The most looks that one message of a seat, or of a spare, one join and one broken connection cost.
fn dearest(count: u64) -> (u64, String) {
    let (mut desk, actors) = crowded(count);
    let mut dearest = (0, String::new());
    let mut weigh = |desk: &mut Desk, what: &str, act: &mut dyn FnMut(&mut Desk)| {
        // A line-up that ends is formed anew from all who are here, once a tick: that look is not this message's.
        desk.host.next_look = desk.now + TICK;
        let before = desk.host.roster.looks();
        act(desk);
        let looks = desk.host.roster.looks() - before;
        dearest = dearest.clone().max((looks, what.to_owned()));
    };
    for kind in 0..KINDS {
        for is_seated in [false, true] {
            // Whatever the message before did: there is a line-up at work.
            desk.pass(TICK);
            desk.ready();
            let seats: Vec<ConnectionId> = desk.seats().iter().map(|seat| seat.0).collect();
            let here = |one: &ConnectionId| desk.host.roster.speaker(*one).is_some();
            let mut able = actors.iter().copied().filter(here);
            let speaker = able.find(|one| seats.contains(one) == is_seated);
            let speaker = speaker.expect("enough actors");
            let to = desk.host.roster.speaker(able.next().unwrap_or(speaker));
            let message = messages(&desk, to.expect("it is here")).swap_remove(kind);
            let what = format!("{message:?}");
            weigh(&mut desk, &what, &mut |desk| {
                desk.say(speaker, message.clone());
            });
        }
    }
    weigh(&mut desk, "join", &mut |desk| {
        desk.join(ACTORS + 1);
    });
    weigh(&mut desk, "a connection breaks", &mut |desk| {
        let last = ConnectionId(desk.connections);
        desk.host.handle_closed(desk.now, last);
        desk.settle();
    });
    dearest
}

#[test]
fn what_one_message_costs_grows_no_faster_than_the_logarithm_of_a_hundred_thousand() {
    for count in SIZES {
        let (looks, what) = dearest(count);
        let logarithm = u64::from(count.ilog2() + 1);
        assert!(looks <= logarithm, "{looks} of {count} for {what}");
    }
}

#[test]
fn everybody_is_pinged_once_a_second_and_few_of_many_at_once() {
    for count in [5, 63, 200, 5_000, 50_000] {
        let (mut desk, _) = crowded(count.max(u64::from(ACTORS)));
        let count = desk.host.volunteer_count();
        let (mut pings, mut most) = (BTreeMap::new(), 0);
        let until = desk.now + KEEPALIVE.times(4);
        while desk.now < until {
            desk.sent.clear();
            desk.now = desk.host.poll_timeout().expect("volunteers are here");
            desk.host.handle_timeout(desk.now);
            desk.settle();
            let is_ping = |(_, message): &&(_, Down)| matches!(message, Down::Ping { .. });
            let pinged: Vec<ConnectionId> = desk
                .sent
                .iter()
                .filter(is_ping)
                .map(|(to, _)| *to)
                .collect();
            most = most.max(pinged.len());
            for connection in pinged {
                *pings.entry(connection).or_insert(0) += 1;
                let nonce = desk.now.as_micros();
                desk.host
                    .handle_up(desk.now, connection, Up::Pong { nonce });
            }
        }
        assert_eq!(pings.len(), count);
        assert!(
            pings.values().all(|times| (3..=5).contains(times)),
            "{count}"
        );
        assert!(
            most <= (2 * PINGS_AT_ONCE).max(count / PING_TURNS_MAX + 1),
            "{most} of {count}"
        );
    }
}

#[test]
fn a_tick_looks_at_everybody_a_few_times_and_no_more() {
    for count in SIZES {
        let (mut desk, _) = crowded(count);
        desk.pass(TICK);
        desk.ready();
        let before = desk.host.roster.looks();
        desk.now = desk.now + TICK;
        desk.host.handle_timeout(desk.now);
        let a_volunteer = (desk.host.roster.looks() - before) as f64 / count as f64;
        assert!(a_volunteer <= 8.0, "{a_volunteer} looks at each of {count}");
    }
}
