//! Two ends of one link, and what they say to each other.

use proptest::prelude::*;

use super::*;
use crate::limits::{
    RESTART_ANSWER_MAX, RESTART_GRACE, RESTART_MAX, RESTARTS_MAX, SILENCE_MAX, SILENCE_MIN,
};
use crate::units::Span;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(key: &SigningKey) -> Digest {
    Digest(key.verifying_key().to_bytes())
}

/// Two ends, joined by a network that answers each step at once.
struct Pair {
    ends: [(Link, SigningKey); 2],
    log: Vec<String>,
    /// Whether the host in between shows each end its own certificates.
    intercepted: bool,
    /// Whether packets get from one end to the other. The host always carries signals.
    path: bool,
    /// Whether each end's process is there.
    alive: [bool; 2],
    /// The connection that each end's transport holds open, and whether the next path it finds is relayed.
    open: [Option<u32>; 2],
    relayed: bool,
}

impl Pair {
    fn new() -> Self {
        let (low, high) = (key(1), key(2));
        Self {
            ends: [
                (
                    Link::new(PeerId(1), PeerId(2), Some(public(&high))),
                    low.clone(),
                ),
                (
                    Link::new(PeerId(2), PeerId(1), Some(public(&low))),
                    high.clone(),
                ),
            ],
            log: Vec::new(),
            intercepted: false,
            path: true,
            alive: [true; 2],
            open: [None; 2],
            relayed: false,
        }
    }

    /// Two ends with an open link between them, and nothing in the log.
    fn open() -> Self {
        let mut pair = Self::new();
        pair.ends[0].0.want(Time::ZERO);
        pair.settle(Time::ZERO);
        pair.log.clear();
        pair
    }

    /// The ICE of `sides` notices that nothing gets through, and does not find a path by itself.
    fn break_path(&mut self, sides: &[usize], now: &mut Time) {
        self.path = false;
        for &side in sides {
            let generation = self.ends[side].0.generation;
            self.event(*now, side, LinkEvent::Disturbed { generation });
        }
        *now = *now + RESTART_GRACE;
        for &side in sides {
            self.ends[side].0.handle_timeout(*now);
        }
    }

    /// Lets time pass up to the next thing that either end waits for. `false` when there is none.
    fn tick(&mut self, now: &mut Time) -> bool {
        let alive = (0..2).filter(|side| self.alive[*side]);
        let next = alive.filter_map(|side| self.ends[side].0.poll_timeout());
        let Some(at) = next.min() else { return false };
        *now = at.max(*now);
        for side in 0..2 {
            if self.alive[side] {
                self.ends[side].0.handle_timeout(*now);
            }
        }
        self.settle(*now);
        true
    }

    fn lost(&self) -> usize {
        self.log
            .iter()
            .filter(|line| line.ends_with("is lost"))
            .count()
    }

    fn is_up(&self) -> bool {
        self.ends.iter().all(|(link, _)| link.is_up())
    }

    fn settle(&mut self, now: Time) {
        while let Some((side, output)) =
            (0..2).find_map(|side| Some((side, self.ends[side].0.poll_output()?)))
        {
            self.log.push(format!("{side} {}", name(&output)));
            self.carry_out(now, side, output);
        }
    }

    fn carry_out(&mut self, now: Time, side: usize, output: LinkOutput) {
        let intercepted = self.intercepted;
        let fingerprint = |of: usize| match intercepted {
            true => format!("AA:{}", 7 + side + of),
            false => format!("AA:{of}"),
        };
        let open = |generation| LinkEvent::Open {
            generation,
            local_fingerprint: fingerprint(side),
            remote_fingerprint: fingerprint(1 - side),
            relayed: false,
        };
        if !self.alive[side] {
            return;
        }
        let described = |generation| LinkEvent::Description {
            generation,
            sdp: format!("a=fingerprint:sha-256 {}", fingerprint(side)),
        };
        match output {
            LinkOutput::Step(LinkStep::Offer { generation, .. }) => {
                self.open[side] = None;
                self.event(now, side, described(generation));
            }
            LinkOutput::Step(LinkStep::Answer { generation, .. }) => {
                self.open[side] = None;
                self.event(now, side, described(generation));
                if self.path {
                    self.open[side] = Some(generation);
                    let open = open(generation);
                    self.event(now, side, open);
                }
            }
            LinkOutput::Step(
                LinkStep::Restart { generation } | LinkStep::AnswerRestart { generation, .. },
            ) => {
                self.event(now, side, described(generation));
            }
            LinkOutput::Step(LinkStep::Accept { generation, .. }) if self.open[side].is_some() => {
                let path = self.path;
                for side in [side, 1 - side].into_iter().filter(|_| path) {
                    let relayed = self.relayed;
                    self.event(
                        now,
                        side,
                        LinkEvent::Resumed {
                            generation,
                            relayed,
                        },
                    );
                }
            }
            LinkOutput::Step(LinkStep::Accept { generation, .. }) if self.path => {
                self.open[side] = Some(generation);
                let open = open(generation);
                self.event(now, side, open);
            }
            LinkOutput::Step(LinkStep::Close) => self.open[side] = None,
            LinkOutput::Signal(signal) if self.alive[1 - side] => {
                self.ends[1 - side].0.handle_signal(now, signal);
            }
            LinkOutput::Hello(signature) if self.path => {
                self.ends[1 - side].0.handle_hello(now, &signature);
            }
            LinkOutput::Keepalive
                if self.path && self.alive[1 - side] && self.open[1 - side].is_some() =>
            {
                self.ends[1 - side].0.heard(now);
            }
            LinkOutput::Step(_)
            | LinkOutput::Signal(_)
            | LinkOutput::Hello(_)
            | LinkOutput::Keepalive
            | LinkOutput::Disturbed
            | LinkOutput::Up { .. }
            | LinkOutput::Bye(_)
            | LinkOutput::Lost(..) => {}
        }
    }

    fn event(&mut self, now: Time, side: usize, event: LinkEvent) {
        let (link, identity) = &mut self.ends[side];
        link.handle_event(now, event, identity);
    }
}

fn name(output: &LinkOutput) -> &'static str {
    match output {
        LinkOutput::Step(LinkStep::Offer {
            relay_only: false, ..
        }) => "makes an offer",
        LinkOutput::Step(LinkStep::Offer { .. }) => "makes a relayed offer",
        LinkOutput::Step(LinkStep::Restart { .. }) => "restarts",
        LinkOutput::Step(LinkStep::AnswerRestart { .. }) => "restarts as asked",
        LinkOutput::Step(LinkStep::Answer { .. }) => "makes an answer",
        LinkOutput::Step(LinkStep::Accept { .. }) => "takes the answer",
        LinkOutput::Step(LinkStep::Candidate { .. }) => "adds a candidate",
        LinkOutput::Step(LinkStep::Close) => "closes",
        LinkOutput::Signal(LinkSignal::Again { .. }) => "asks for an offer",
        LinkOutput::Signal(LinkSignal::Offer { .. }) => "sends the offer",
        LinkOutput::Signal(LinkSignal::Answer { .. }) => "sends the answer",
        LinkOutput::Signal(LinkSignal::Candidate { .. }) => "sends a candidate",
        LinkOutput::Signal(LinkSignal::Disturbed { .. }) => "asks for a restart",
        LinkOutput::Signal(LinkSignal::Restart { .. }) => "sends the restart",
        LinkOutput::Hello(_) => "signs",
        LinkOutput::Keepalive => "keeps alive",
        LinkOutput::Up { relayed: false } => "is up",
        LinkOutput::Up { relayed: true } => "is up, relayed",
        LinkOutput::Disturbed => "is disturbed",
        LinkOutput::Bye(_) => "says good-bye",
        LinkOutput::Lost(..) => "is lost",
    }
}

#[test]
fn both_ends_wanting_it_open_one_connection() {
    let mut pair = Pair::new();
    pair.ends[0].0.want(Time::ZERO);
    pair.ends[1].0.want(Time::ZERO);
    pair.settle(Time::ZERO);
    assert!(
        pair.ends.iter().all(|(link, _)| link.is_up()),
        "{:#?}",
        pair.log
    );
    expect_test::expect![[r#"
        0 makes an offer
        0 sends the offer
        1 asks for an offer
        1 makes an answer
        1 sends the answer
        0 takes the answer
        0 signs
        1 signs
        0 is up
        1 is up"#]]
    .assert_eq(&pair.log.join("\n"));
}

#[test]
fn the_higher_end_alone_gets_its_link_by_asking() {
    let mut pair = Pair::new();
    pair.ends[1].0.want(Time::ZERO);
    pair.settle(Time::ZERO);
    assert!(
        pair.ends.iter().all(|(link, _)| link.is_up()),
        "{:#?}",
        pair.log
    );
}

#[test]
fn someone_in_between_with_other_certificates_is_not_believed() {
    let mut pair = Pair::new();
    pair.intercepted = true;
    pair.ends[0].0.want(Time::ZERO);
    pair.settle(Time::ZERO);
    assert!(
        pair.ends.iter().all(|(link, _)| !link.is_up()),
        "{:#?}",
        pair.log
    );
}

#[test]
fn an_end_that_never_answers_is_given_up_after_the_last_try() {
    let mut link = Link::new(PeerId(1), PeerId(2), None);
    let mut now = Time::ZERO;
    link.want(now);
    let mut lost = None;
    while let Some(at) = link.poll_timeout() {
        now = at;
        link.handle_timeout(now);
        while let Some(output) = link.poll_output() {
            if let LinkOutput::Lost(suspicion, _) = output {
                lost = Some(suspicion);
            }
        }
    }
    assert_eq!(lost, Some(Suspicion::Unreachable));
    assert_eq!(
        now.since(Time::ZERO),
        LINK_OPEN_MAX.times(u64::from(LINK_TRIES_MAX))
    );
}

#[test]
fn silence_is_noticed_within_its_bounds() {
    let mut pair = Pair::new();
    pair.ends[0].0.want(Time::ZERO);
    pair.settle(Time::ZERO);
    let link = &mut pair.ends[0].0;
    for second in 1..20 {
        link.heard(Time::ZERO + Span::from_secs(second));
    }
    let last = Time::ZERO + Span::from_secs(19);
    let silent_at = link.pulse.silent_at();
    assert!(silent_at >= last + SILENCE_MIN && silent_at <= last + SILENCE_MAX);
    let mut now = silent_at;
    link.handle_timeout(now);
    assert!(link.is_up(), "it may be the path: a restart is tried first");
    while link.is_up() {
        now = link.poll_timeout().unwrap();
        link.handle_timeout(now);
    }
    assert!(now > last + SILENCE_MIN && now <= last + SILENCE_MAX);
}

#[test]
fn a_path_that_breaks_is_mended_without_losing_the_link() {
    let mut pair = Pair::open();
    let mut now = Time::ZERO + Span::from_secs(5);
    pair.break_path(&[0, 1], &mut now);
    // It will go through a relay; direct packets are swallowed.
    (pair.path, pair.relayed) = (true, true);
    pair.settle(now);
    expect_test::expect![[r#"
        0 is disturbed
        0 restarts
        0 keeps alive
        0 sends the restart
        1 is disturbed
        1 asks for a restart
        1 keeps alive
        1 restarts as asked
        1 sends the answer
        0 takes the answer
        0 is up, relayed
        1 is up, relayed"#]]
    .assert_eq(&pair.log.join("\n"));
    assert!(pair.is_up());
    assert!(pair.ends.iter().all(|(link, _)| link.trouble.is_none()));
    assert_eq!(pair.ends[0].0.connection, 1, "the connection is the same");
    assert!(
        pair.ends[0].0.pulse.silent_at() > now,
        "it counts from here"
    );
}

#[test]
fn a_path_that_comes_back_by_itself_is_not_restarted() {
    let mut pair = Pair::open();
    let (now, generation, relayed) = (Time::ZERO, 1, false);
    for side in 0..2 {
        pair.event(now, side, LinkEvent::Disturbed { generation });
    }
    let resumed = LinkEvent::Resumed {
        generation,
        relayed,
    };
    pair.event(now, 0, resumed);
    pair.ends[1].0.heard(now);
    pair.settle(now);
    let expected = ["0 is disturbed", "0 is up", "1 is disturbed", "1 is up"];
    assert_eq!(pair.log, expected);
}

#[test]
fn either_end_alone_can_have_a_link_mended() {
    for side in 0..2 {
        let mut pair = Pair::open();
        let generation = pair.ends[side].0.generation;
        let mut now = Time::ZERO;
        pair.break_path(&[side], &mut now);
        pair.path = true;
        pair.settle(now);
        let ups = pair
            .log
            .iter()
            .filter(|line| line.ends_with("is up"))
            .count();
        assert_eq!((ups, pair.lost()), (2, 0), "{:#?}", pair.log);
        assert_eq!(pair.ends[side].0.generation, generation + 1);
    }
}

#[test]
fn a_link_is_mended_too_where_ice_says_nothing_and_a_frame_comes_through() {
    let mut pair = Pair::open();
    pair.path = false;
    let mut now = Time::ZERO;
    while !pair
        .log
        .iter()
        .any(|line| line.ends_with("takes the answer"))
    {
        assert!(pair.tick(&mut now));
    }
    assert!(pair.ends.iter().all(|(link, _)| link.trouble.is_some()));
    pair.ends[0].0.heard(now);
    pair.ends[1].0.heard(now);
    pair.settle(now);
    assert!(pair.ends.iter().all(|(link, _)| link.trouble.is_none()));
    assert_eq!(pair.lost(), 0);
}

#[test]
fn a_path_that_stays_broken_is_given_up_and_the_next_one_is_relayed() {
    let mut pair = Pair::open();
    for (link, _) in &mut pair.ends {
        link.set_relays(true);
    }
    let mut now = Time::ZERO;
    pair.break_path(&[0, 1], &mut now);
    pair.settle(now);
    while pair.lost() < 2 {
        assert!(pair.tick(&mut now));
    }
    assert_eq!(
        now,
        Time::ZERO + RESTART_GRACE + RESTART_MAX,
        "both ends answer through the host"
    );
    pair.log.clear();
    // Direct packets are swallowed still: the relayed try finds a path.
    (pair.path, pair.relayed) = (true, true);
    pair.ends[1].0.want(now);
    pair.settle(now);
    assert_eq!(pair.log[1], "0 makes a relayed offer");
    assert!(pair.is_up());
}

#[test]
fn an_end_that_is_gone_is_suspected_as_soon_as_it_does_not_answer() {
    for gone in 0..2 {
        let mut pair = Pair::open();
        pair.alive[gone] = false;
        let mut now = Time::ZERO;
        pair.break_path(&[0, 1], &mut now);
        pair.settle(now);
        while pair.lost() == 0 {
            assert!(pair.tick(&mut now));
        }
        assert_eq!(now, Time::ZERO + RESTART_GRACE + RESTART_ANSWER_MAX);
    }
}

#[test]
fn tries_to_open_go_directly_then_through_a_relay_then_directly() {
    for relays in [true, false] {
        let mut link = Link::new(PeerId(1), PeerId(2), None);
        link.set_relays(relays);
        link.want(Time::ZERO);
        let mut tries = Vec::new();
        loop {
            while let Some(output) = link.poll_output() {
                if let LinkOutput::Step(LinkStep::Offer { relay_only, .. }) = output {
                    tries.push(relay_only);
                }
            }
            let Some(at) = link.poll_timeout() else { break };
            link.handle_timeout(at);
        }
        assert_eq!(tries, [false, relays, false]);
    }
}

#[test]
fn a_restart_that_names_another_certificate_closes_the_link() {
    for side in 0..2 {
        let mut pair = Pair::open();
        pair.intercepted = true;
        let mut now = Time::ZERO;
        pair.break_path(&[side], &mut now);
        pair.path = true;
        pair.settle(now);
        assert!(pair.log.contains(&"1 closes".to_owned()), "{:#?}", pair.log);
        let resumed = pair
            .log
            .iter()
            .any(|line| line.contains("restarts as asked"));
        assert!(!resumed, "{:#?}", pair.log);
    }
}

#[test]
fn a_restart_of_a_connection_that_is_gone_opens_a_new_one() {
    let mut pair = Pair::open();
    pair.ends[1].0.handle_bye("test");
    let mut now = Time::ZERO;
    pair.break_path(&[0, 1], &mut now);
    pair.path = true;
    pair.settle(now);
    assert!(pair.is_up(), "{:#?}", pair.log);
    assert!(pair.ends[0].0.connection > 1);
    assert!(
        pair.log.contains(&"0 is lost".to_owned()),
        "its owner must know"
    );
}

#[test]
fn a_path_that_breaks_again_and_again_is_not_kept() {
    let mut pair = Pair::open();
    let mut now = Time::ZERO;
    for _ in 0..RESTARTS_MAX {
        pair.break_path(&[0, 1], &mut now);
        pair.path = true;
        pair.settle(now);
        assert!(pair.is_up());
    }
    pair.break_path(&[0, 1], &mut now);
    assert!(!pair.is_up());
}

#[test]
fn news_of_an_older_generation_has_no_effect() {
    let mut pair = Pair::open();
    let mut now = Time::ZERO;
    pair.break_path(&[0, 1], &mut now);
    pair.path = true;
    pair.settle(now);
    pair.log.clear();
    let stale = [
        LinkSignal::Disturbed { generation: 1 },
        LinkSignal::Again { generation: 9 },
        LinkSignal::Answer {
            generation: 1,
            sdp: String::new(),
        },
    ];
    for signal in stale {
        pair.ends[0].0.handle_signal(Time::ZERO, signal);
    }
    let (connection, generation, sdp) = (1, 2, String::new());
    let restart = LinkSignal::Restart {
        connection,
        generation,
        sdp,
    };
    pair.ends[1].0.handle_signal(Time::ZERO, restart);
    pair.event(
        Time::ZERO,
        0,
        LinkEvent::Resumed {
            generation: 1,
            relayed: true,
        },
    );
    pair.settle(Time::ZERO);
    assert!(pair.is_up());
    assert_eq!(pair.log, [""; 0]);
    // It may have ended before it was told of its restart.
    pair.event(Time::ZERO, 0, LinkEvent::Down { generation: 1 });
    assert!(!pair.ends[0].0.is_up());
}

proptest! {
    #[test]
    fn whatever_happened_two_ends_that_want_a_link_get_it_once_there_is_a_path(
        events in prop::collection::vec((0u8..8, 0usize..2), 0..40),
    ) {
        let mut pair = Pair::new();
        let mut now = Time::ZERO;
        for (event, side) in events {
            let generation = pair.ends[side].0.generation;
            match event {
                0 => pair.ends[side].0.want(now),
                1 => pair.path = !pair.path,
                2 => pair.event(now, side, LinkEvent::Disturbed { generation }),
                3 => pair.event(now, side, LinkEvent::Down { generation }),
                4 => pair.ends[side].0.handle_bye("test"),
                5 => now = now + Span::from_secs(2),
                _ => {
                    pair.tick(&mut now);
                }
            }
            pair.settle(now);
        }
        pair.path = true;
        for _ in 0..40 {
            pair.ends[0].0.want(now);
            pair.ends[1].0.want(now);
            pair.settle(now);
            pair.tick(&mut now);
        }
        prop_assert!(pair.is_up(), "{:#?}", pair.log);
        let [low, high] = &pair.ends;
        prop_assert_eq!(low.0.connection, high.0.connection);
        prop_assert_eq!(low.0.generation, high.0.generation);
    }
}
