use super::*;

const NOW: Time = Time::ZERO;

fn at(seconds: u64) -> Time {
    Time::from_micros(seconds * 1_000_000)
}

/// Both ends of a link, and the transports that they would have: each answers a step as it should.
#[derive(Default)]
struct Two {
    ends: [Flows; 2],
    /// What each transport was told, by number.
    steps: [Vec<(u8, LinkStep)>; 2],
}

impl Two {
    /// Carries out what both want, until they want nothing more.
    fn settle(&mut self, now: Time) {
        loop {
            let acts = [0, 1].map(|end| self.ends[end].poll());
            if acts.iter().all(Option::is_none) {
                return;
            }
            for (end, act) in acts.into_iter().enumerate() {
                match act {
                    None => {}
                    Some(Act::Signal(name, signal)) => {
                        self.ends[1 - end].handle_signal(now, name, signal);
                    }
                    Some(Act::Step(number, step)) => self.carry_out(now, end, number, step),
                }
            }
        }
    }

    fn carry_out(&mut self, now: Time, end: usize, number: u8, step: LinkStep) {
        self.steps[end].push((number, step.clone()));
        let (LinkStep::Offer { generation, .. }
        | LinkStep::Answer { generation, .. }
        | LinkStep::Restart { generation }
        | LinkStep::AnswerRestart { generation, .. }) = step
        else {
            return;
        };
        let flows = &mut self.ends[end];
        // A browser may find a candidate before it has said its description.
        flows.handle_event(now, number, candidate(generation));
        let sdp = format!("of end {end}");
        flows.handle_event(now, number, LinkEvent::Description { generation, sdp });
    }

    fn tell(&mut self, now: Time, number: [u8; 2], event: &LinkEvent) {
        for (flows, number) in self.ends.iter_mut().zip(number) {
            flows.handle_event(now, number, event.clone());
        }
    }

    fn names(&self, end: usize) -> Vec<String> {
        let steps = self.steps[end].iter();
        steps
            .map(|(number, step)| format!("{number} {}", name(step)))
            .collect()
    }
}

fn candidate(generation: u32) -> LinkEvent {
    LinkEvent::Candidate {
        generation,
        candidate: "{}".to_owned(),
    }
}

fn open(generation: u32) -> LinkEvent {
    LinkEvent::Open {
        generation,
        local_fingerprint: String::new(),
        remote_fingerprint: String::new(),
        relayed: false,
    }
}

fn name(step: &LinkStep) -> &'static str {
    match step {
        LinkStep::Offer { .. } => "offer",
        LinkStep::Answer { .. } => "answer",
        LinkStep::Accept { .. } => "accept",
        LinkStep::Candidate { .. } => "candidate",
        LinkStep::Restart { .. } => "restart",
        LinkStep::AnswerRestart { .. } => "answer restart",
        LinkStep::Close => "close",
    }
}

/// Two ends of which the first has opened one more connection.
fn two() -> Two {
    let mut two = Two::default();
    two.ends[0].open(NOW);
    two.settle(NOW);
    two
}

#[test]
fn a_connection_is_opened_over_the_link_and_then_carries_messages() {
    let mut two = two();
    assert_eq!(two.names(0), ["1 offer", "1 accept", "1 candidate"]);
    assert_eq!(two.names(1), ["2 answer", "2 candidate"]);
    assert_eq!(two.ends[0].usable(), [0]);
    two.tell(NOW, [1, 2], &open(1));
    assert_eq!(two.ends[0].usable(), [0, 1]);
    assert_eq!(two.ends[1].usable(), [0, 2]);
    assert!(two.ends.iter().all(|end| end.poll_timeout().is_none()));
    // Both may open some at the same time.
    two.ends[1].open(NOW);
    two.settle(NOW);
    two.tell(NOW, [2, 1], &open(1));
    assert_eq!(two.ends[0].usable(), [0, 1, 2]);
    assert_eq!(two.ends[1].usable(), [0, 1, 2]);
}

#[test]
fn one_that_does_not_open_is_forgotten_and_one_that_breaks_takes_the_link_with_it() {
    let mut two = two();
    let due = two.ends[0].poll_timeout().expect("it may not open");
    assert_eq!(due, NOW + LINK_OPEN_MAX);
    two.ends[0].handle_timeout(due);
    two.settle(due);
    assert_eq!(two.names(0).last().map(String::as_str), Some("1 close"));
    assert!(two.ends[0].ended().is_empty());
    // The other end has it open by then: what it sends by it arrives nowhere.
    two.ends[1].handle_event(due, 2, open(1));
    two.ends[1].handle_event(due, 2, LinkEvent::Down { generation: 1 });
    assert_eq!(two.ends[1].ended(), [2]);
}

#[test]
fn a_broken_path_is_left_alone_until_a_restart_finds_another() {
    for opener_notices in [true, false] {
        let mut two = two();
        two.tell(NOW, [1, 2], &open(1));
        let noticing = usize::from(!opener_notices);
        let number = [1, 2][noticing];
        let disturbed = LinkEvent::Disturbed { generation: 1 };
        two.ends[noticing].handle_event(at(1), number, disturbed);
        assert_eq!(two.ends[noticing].usable(), [0]);
        two.settle(at(1));
        let grace = two.ends[noticing].poll_timeout().expect("it may come back");
        assert_eq!(grace, at(1) + RESTART_GRACE);
        two.ends[noticing].handle_timeout(grace);
        two.settle(grace);
        let restarted = ["1 restart", "1 accept", "1 candidate"];
        assert!(
            two.names(0).ends_with(&restarted.map(str::to_owned)),
            "{:?}",
            two.names(0)
        );
        let answered = ["2 answer restart", "2 candidate"];
        assert!(
            two.names(1).ends_with(&answered.map(str::to_owned)),
            "{:?}",
            two.names(1)
        );
        let resumed = LinkEvent::Resumed {
            generation: 2,
            relayed: false,
        };
        two.tell(at(3), [1, 2], &resumed);
        assert_eq!(two.ends[0].usable(), [0, 1]);
        assert_eq!(two.ends[1].usable(), [0, 2]);
    }
}

#[test]
fn a_restart_that_comes_to_nothing_is_tried_again_and_one_that_is_asked_of_an_open_end_closes_nothing()
 {
    let mut two = two();
    two.tell(NOW, [1, 2], &open(1));
    // Only the end that did not open it notices.
    two.ends[1].handle_event(at(1), 2, LinkEvent::Disturbed { generation: 1 });
    two.ends[1].handle_timeout(at(1) + RESTART_GRACE);
    two.settle(at(2));
    assert_eq!(two.ends[0].usable(), [0, 1], "nothing is amiss there");
    assert_eq!(two.ends[0].poll_timeout(), None);
    let restarts = |two: &Two| two.names(0).iter().filter(|it| *it == "1 restart").count();
    assert_eq!(restarts(&two), 1);
    // ICE gives up at that end once more.
    two.ends[1].handle_event(at(6), 2, LinkEvent::Disturbed { generation: 2 });
    two.settle(at(6));
    assert_eq!(restarts(&two), 2);
    let resumed = LinkEvent::Resumed {
        generation: 3,
        relayed: false,
    };
    two.tell(at(7), [1, 2], &resumed);
    assert_eq!(two.ends[1].usable(), [0, 2]);
}

#[test]
fn a_path_that_does_not_come_back_takes_the_link_with_it() {
    let mut two = two();
    two.tell(NOW, [1, 2], &open(1));
    two.ends[0].handle_event(at(1), 1, LinkEvent::Disturbed { generation: 1 });
    let mut last = at(1);
    while let Some(due) = two.ends[0].poll_timeout() {
        two.ends[0].handle_timeout(due);
        last = due;
    }
    assert_eq!(last, at(1) + FLOW_RESTART_MAX);
    assert_eq!(two.ends[0].ended(), [1]);
    // Though nothing more is carried out until the link is closed, it does not stay open.
    two.ends[0].close();
    two.settle(last);
    assert_eq!(two.names(0).last().map(String::as_str), Some("1 close"));
}

/// What this end opens, and what the other one does, as that calls them.
const OURS: FlowName = FlowName {
    number: 0,
    opened_here: false,
};
const THEIRS: FlowName = FlowName {
    number: 0,
    opened_here: true,
};

#[test]
fn nonsense_opens_nothing() {
    let mut flows = Flows::default();
    let sdp = || "v=0".to_owned();
    for signal in [
        LinkSignal::Answer {
            generation: 1,
            sdp: sdp(),
        },
        LinkSignal::Restart {
            connection: 1,
            generation: 2,
            sdp: sdp(),
        },
        LinkSignal::Disturbed { generation: 1 },
        LinkSignal::Again { generation: 1 },
    ] {
        flows.handle_signal(NOW, OURS, signal.clone());
        flows.handle_signal(NOW, THEIRS, signal);
    }
    // Nobody else offers what this end opens.
    let offer = LinkSignal::Offer {
        generation: 1,
        sdp: sdp(),
    };
    flows.handle_signal(NOW, OURS, offer.clone());
    assert_eq!(flows.poll(), None);
    flows.handle_signal(NOW, THEIRS, offer.clone());
    assert!(flows.poll().is_some());
    flows.handle_signal(NOW, THEIRS, offer.clone());
    assert_eq!(flows.poll(), None, "once");
    for _ in 0..2 * CANDIDATES_EARLY_MAX {
        let early = LinkSignal::Candidate {
            generation: 9,
            candidate: String::new(),
        };
        flows.handle_signal(NOW, THEIRS, early);
    }
    assert_eq!(flows.further[&2].early.len(), CANDIDATES_EARLY_MAX);
    flows.handle_event(NOW, 2, LinkEvent::Down { generation: 1 });
    while flows.poll().is_some() {}
    flows.handle_signal(NOW, THEIRS, offer);
    assert_eq!(flows.poll(), None, "not even when it is over");
}

#[test]
fn a_link_that_is_closed_closes_all() {
    let mut two = two();
    two.tell(NOW, [1, 2], &open(1));
    two.ends[0].close();
    two.settle(NOW);
    assert_eq!(two.names(0).last().map(String::as_str), Some("1 close"));
    assert_eq!(two.ends[0].usable(), [0]);
}
