//! Both ends of a session over a message system that loses, repeats and exchanges packets, by the will of a test.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use shared::limits::SIGNAL_BYTES_MAX;
use shared::units::{Span, Time};
use shared::wire::frame::VERSION;
use shared::wire::gateway::{Fall, GatewayEvent, GatewayOrder, Rise};

use super::back::{self, Back};
use super::front::{self, Front};

const BYTES: usize = 1_000_000;

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Wait(u64),
    GatewaySays,
    HostSays,
    HostRestarts,
    Up(Fault),
    Down(Fault),
}

/// What the message system does to the oldest packet that is on its way.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    Lost,
    Repeated,
    Late,
}

#[derive(Default)]
struct Counts {
    said: u64,
    heard: u64,
}

struct World {
    now: Time,
    drawn: u64,
    front: Front,
    back: Back,
    up: VecDeque<Rise>,
    down: VecDeque<Fall>,
    /// By session and direction.
    counts: BTreeMap<(u64, bool), Counts>,
    /// Packets that arrived in their turn, by session and direction.
    arrived: BTreeMap<(u64, bool), u64>,
    /// Sessions in which a packet arrived out of turn.
    hurt: BTreeSet<u64>,
    overs: u32,
}

impl World {
    fn new() -> Self {
        let now = Time::ZERO;
        Self {
            now,
            drawn: 100,
            front: Front::new(now),
            back: Back::new(now, 1_000),
            up: VecDeque::new(),
            down: VecDeque::new(),
            counts: BTreeMap::new(),
            arrived: BTreeMap::new(),
            hurt: BTreeSet::new(),
            overs: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Wait(millis) => self.now = self.now + Span::from_millis(millis),
            Step::GatewaySays => {
                if let Some(session) = self.front.session().filter(|_| self.front.has_room()) {
                    let counts = self.counts.entry((session, true)).or_default();
                    let connection = counts.said;
                    counts.said += 1;
                    self.front
                        .say(self.now, GatewayEvent::Closed { connection });
                }
            }
            Step::HostSays => {
                if let Some(session) = self.back.session().filter(|_| self.back.has_room()) {
                    let counts = self.counts.entry((session, false)).or_default();
                    let connections = vec![counts.said];
                    counts.said += 1;
                    self.back.say(self.now, GatewayOrder::Close { connections });
                }
            }
            Step::HostRestarts => self.back = Back::new(self.now, 1_000),
            Step::Up(fault) => {
                if let Some(rise) = pick(&mut self.up, fault) {
                    if let Rise::Packet { session, stamp, .. } = &rise {
                        self.arrives(*session, true, stamp.seq);
                    }
                    self.drawn += 1;
                    self.back.handle_rise(self.now, rise, self.drawn, BYTES);
                }
            }
            Step::Down(fault) => {
                if let Some(fall) = pick(&mut self.down, fault) {
                    if let Fall::Packet { session, stamp, .. } = &fall {
                        self.arrives(*session, false, stamp.seq);
                    }
                    self.front.handle_fall(self.now, fall);
                }
            }
        }
        self.front.handle_timeout(self.now);
        self.back.handle_timeout(self.now, true);
        self.carry_out();
    }

    fn arrives(&mut self, session: u64, upwards: bool, seq: u64) {
        let due = self.arrived.entry((session, upwards)).or_default();
        if *due == seq {
            *due += 1;
        } else {
            self.hurt.insert(session);
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.front.poll_output() {
            match output {
                front::Output::Ask { attempt } => self.up.push_back(Rise::Open {
                    attempt,
                    version: VERSION,
                    packet_bytes_max: BYTES,
                }),
                front::Output::Send(rise) => self.up.push_back(rise),
                front::Output::Order(GatewayOrder::Close { connections }) => {
                    let session = self.front.session().expect("orders come in a session");
                    for connection in connections {
                        self.hear(session, false, connection);
                    }
                }
                front::Output::Order(order @ GatewayOrder::Message { .. }) => panic!("{order:?}"),
                front::Output::Over { .. } => self.overs += 1,
                front::Output::Opened { signal_bytes_max } => assert_eq!(signal_bytes_max, 1_000),
                front::Output::Refused { text } => panic!("{text}"),
            }
        }
        while let Some(output) = self.back.poll_output() {
            match output {
                back::Output::Send(fall) => self.down.push_back(fall),
                back::Output::Event(GatewayEvent::Closed { connection }) => {
                    let session = self.back.session().expect("events come in a session");
                    self.hear(session, true, connection);
                }
                back::Output::Event(other) => panic!("{other:?}"),
                back::Output::Over { .. } => self.overs += 1,
            }
        }
    }

    /// What is acted on is the next thing that was said in that session.
    fn hear(&mut self, session: u64, upwards: bool, number: u64) {
        let counts = self.counts.entry((session, upwards)).or_default();
        assert_eq!(number, counts.heard, "acted on out of order");
        assert!(number < counts.said, "acted on and never said");
        counts.heard += 1;
    }

    /// The message system works again, for so many seconds.
    fn heal(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.step(Step::Wait(250));
            while !self.up.is_empty() || !self.down.is_empty() {
                self.step(Step::Up(Fault::None));
                self.step(Step::Down(Fault::None));
            }
        }
    }

    /// Both ends are in one session, in which every packet came in its turn, and it carries what they say.
    fn check_whole(&mut self, rounds: u64) -> u64 {
        let session = self.front.session().expect("a session");
        assert_eq!(self.back.session(), Some(session));
        assert!(
            !self.hurt.contains(&session),
            "it goes on though it was hurt"
        );
        for _ in 0..rounds {
            self.step(Step::GatewaySays);
            self.step(Step::HostSays);
            self.step(Step::Up(Fault::None));
            self.step(Step::Down(Fault::None));
        }
        self.heal(1);
        assert_eq!(self.front.session(), Some(session));
        for upwards in [true, false] {
            let counts = &self.counts[&(session, upwards)];
            assert_eq!(counts.said, counts.heard);
            assert!(counts.said >= rounds);
        }
        session
    }
}

/// The oldest packet, if it arrives now.
fn pick<T: Clone>(queue: &mut VecDeque<T>, fault: Fault) -> Option<T> {
    let packet = queue.pop_front()?;
    match fault {
        Fault::None => Some(packet),
        Fault::Lost => None,
        Fault::Repeated => {
            queue.push_back(packet.clone());
            Some(packet)
        }
        Fault::Late => {
            queue.push_back(packet);
            None
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        30 => Just(Fault::None),
        1 => Just(Fault::Lost),
        1 => Just(Fault::Repeated),
        1 => Just(Fault::Late),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (1..400_u64).prop_map(Step::Wait),
        30 => Just(Step::GatewaySays),
        30 => Just(Step::HostSays),
        1 => Just(Step::HostRestarts),
        60 => fault().prop_map(Step::Up),
        60 => fault().prop_map(Step::Down),
    ]
}

proptest! {
    #[test]
    fn what_is_lost_repeated_or_exchanged_ends_the_session_and_is_never_acted_on_out_of_order(
        steps in proptest::collection::vec(step(), 0..300)
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.heal(15);
        world.check_whole(50);
    }
}

/// Both ends in a session.
fn open() -> World {
    let mut world = World::new();
    world.heal(2);
    world
}

#[test]
fn without_faults_a_session_opens_at_once_and_stays() {
    let mut world = open();
    let session = world.check_whole(3_000);
    world.heal(60);
    assert_eq!(world.front.session(), Some(session));
    assert_eq!(world.overs, 0);
}

#[test]
fn a_lost_packet_is_noticed_within_a_keepalive() {
    let mut world = open();
    let session = world.front.session();
    world.step(Step::GatewaySays);
    world.step(Step::Up(Fault::Lost));
    world.heal(2);
    assert_eq!(world.overs, 2);
    assert_ne!(world.front.session(), session);
    world.heal(1);
    world.check_whole(3_000);
}

#[test]
fn a_host_that_was_started_again_is_known_for_another_one_within_a_keepalive() {
    let mut world = open();
    let session = world.front.session();
    world.step(Step::HostRestarts);
    world.heal(2);
    assert_ne!(world.front.session(), session);
    world.check_whole(3_000);
}

#[test]
fn who_is_silent_is_taken_for_dead_within_the_bound() {
    let mut world = open();
    for second in 1..=5 {
        world.up.clear();
        world.down.clear();
        assert!(world.back.session().is_some(), "{second} s");
        world.step(Step::Wait(1_000));
    }
    assert_eq!((world.front.session(), world.back.session()), (None, None));
    assert!(world.back.is_gone(world.now + Span::from_secs(5)));
}

#[test]
fn another_version_and_a_server_for_short_messages_are_refused_in_words() {
    let refused = |version, packet_bytes_max, carried| {
        let mut back = Back::new(Time::ZERO, 1_000);
        let attempt = 1;
        let open = Rise::Open {
            attempt,
            version,
            packet_bytes_max,
        };
        back.handle_rise(Time::ZERO, open, 7, carried);
        match back.poll_output() {
            Some(back::Output::Send(Fall::Refused { text, .. })) => Some(text),
            Some(back::Output::Send(Fall::Opened { .. })) => None,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(VERSION, 2_024, 2_024), None);
    let text = refused(VERSION, 2_023, 2_023).unwrap();
    assert!(
        text.contains("the gateway's")
            && text.contains("2023 bytes at most")
            && text.contains("max_payload: 2024"),
        "{text}"
    );
    // The host may have come to another server than that which it began with.
    let text = refused(VERSION, 2_024, 2_023).unwrap();
    assert!(
        text.contains("the host's NATS server takes messages of 2023 bytes"),
        "{text}"
    );
    let text = refused(VERSION + 1, 2_024, 2_024).unwrap();
    assert!(text.contains("run both from one release"), "{text}");
}

#[test]
fn a_host_that_reads_longer_messages_than_any_run_has_is_refused_in_words() {
    let opened = |signal_bytes_max| {
        let mut front = Front::new(Time::ZERO);
        front.handle_timeout(Time::ZERO);
        let asked = front.poll_output();
        assert_eq!(asked, Some(front::Output::Ask { attempt: 1 }));
        let opened = Fall::Opened {
            attempt: 1,
            session: 7,
            signal_bytes_max,
        };
        front.handle_fall(Time::ZERO, opened);
        (front.session(), front.poll_output())
    };
    let signal_bytes_max = SIGNAL_BYTES_MAX;
    let open = front::Output::Opened { signal_bytes_max };
    assert_eq!(opened(signal_bytes_max), (Some(7), Some(open)));
    for too_many in [SIGNAL_BYTES_MAX + 1, usize::MAX] {
        let (session, output) = opened(too_many);
        assert_eq!(session, None);
        let Some(front::Output::Refused { text }) = output else {
            panic!("{output:?}");
        };
        assert!(text.contains(&too_many.to_string()), "{text}");
    }
}

#[test]
fn a_host_that_does_not_read_takes_nobody_for_dead_and_still_says_that_it_is_there() {
    let mut world = open();
    for _ in 0..20 {
        world.now = world.now + Span::from_secs(1);
        world.back.handle_timeout(world.now, false);
    }
    let mut said = 0;
    while let Some(output) = world.back.poll_output() {
        assert!(matches!(output, back::Output::Send(Fall::Packet { .. })));
        said += 1;
    }
    assert_eq!(said, 20);
}
