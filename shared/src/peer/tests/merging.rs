//! One volunteer that merges its rounds with another one, whose machine a test drives.

use super::*;
use crate::compute::Change;
use crate::limits::{ASK_AFTER, MERGE_SLICES_AHEAD};
use crate::peer::merging::{Ends, MergeOutput, Merging};
use crate::sim::compute::FakeCompute;
use crate::units::Attempt;
use crate::wire::merge::{Group, Leg};
use crate::wire::signal::{Holds, MergeOrder};

const OTHER: u64 = 9;

fn attempt(counter: u32) -> Attempt {
    Issue {
        incarnation: 1,
        counter,
    }
}

/// A volunteer that holds all stages, and one of another pipeline that does too.
struct Two {
    alone: Alone,
    fake: FakeCompute,
    place: Place,
    other: Option<Merging>,
    /// What the other one came to.
    merged: Vec<Snapshot>,
    heard: Vec<Up>,
    jobs: Vec<Job>,
}

impl Two {
    /// Both have a link; ours is at work in its first round.
    fn new() -> Self {
        let mut alone = Alone::joined(1);
        alone.link(OTHER);
        let place = alone.seat(None, None);
        let mut two = Self {
            fake: FakeCompute::new(alone.config.clone()),
            alone,
            place,
            other: None,
            merged: Vec::new(),
            heard: Vec::new(),
            jobs: Vec::new(),
        };
        two.settle();
        two
    }

    /// ... and holds the round's result under attempt 2.
    fn held() -> Self {
        let mut two = Self::new();
        two.train(2);
        two
    }

    /// Trains a round of one step.
    fn train(&mut self, counter: u32) {
        self.alone.begin(self.place, counter);
        let samples = SampleRange {
            first: 0,
            count: self.alone.config.training.batch,
        };
        self.alone.say(Down::Lease(Lease {
            place: self.place,
            step: Step(0),
            samples,
            last: true,
        }));
        self.settle();
        let holds = self.holds();
        assert_eq!(holds.map(|holds| holds.attempt), Some(attempt(counter)));
    }

    /// The newest result that the host was told of.
    fn holds(&self) -> Option<Holds> {
        let holds = |up: &Up| {
            let Up::Holds(holds) = up else { return None };
            Some(holds.clone())
        };
        self.heard.iter().rev().find_map(holds)
    }

    fn order(&self, counter: u32) -> MergeOrder {
        let peers = [1, OTHER].map(|peer| Neighbour {
            peer: PeerId(peer),
            key: public(peer),
        });
        let group = Group {
            peers: peers.into(),
            samples: vec![32, 64],
            shares: vec![1, 1],
        };
        MergeOrder {
            place: self.place,
            attempt: attempt(counter),
            result: self.place.round.next(),
            samples: 96,
            stages: vec![vec![group]; self.alone.config.model.stages],
        }
    }

    fn ends(&self) -> Vec<Ends> {
        let model = &self.alone.config.model;
        let ends = |stage: usize| Ends {
            stage: StageId(u16::try_from(stage).unwrap()),
            values: model.parameter_count_of(stage) as u64,
            start: crate::compute::StageState::Seed,
            end: [Digest::of(b"weights").0, Digest::of(b"moments").0]
                .concat()
                .into(),
            gradient: Bytes::new(),
            residual: Bytes::new(),
        };
        (0..model.stages).map(ends).collect()
    }

    /// The other one is told to merge.
    fn tell_other(&mut self, counter: u32) {
        let format = self.alone.config.merge.format;
        let mut other = Merging::new(
            PeerId(OTHER),
            &self.order(counter),
            format,
            self.ends(),
            None,
        )
        .unwrap();
        other.handle_link(PeerId(1));
        self.other = Some(other);
    }

    fn tell_us(&mut self, counter: u32) {
        self.alone.say(Down::Merge(Box::new(self.order(counter))));
    }

    fn merge(&mut self, counter: u32) -> Holds {
        self.tell_us(counter);
        self.tell_other(counter);
        self.settle();
        let holds = self.holds().unwrap();
        assert_eq!(holds.attempt, attempt(counter));
        holds
    }

    /// Carries everything on at both until nothing is left to do.
    fn settle(&mut self) {
        loop {
            let frames = self.settle_other();
            let outputs = self.alone.outputs();
            if frames.is_empty() && outputs.is_empty() {
                return;
            }
            for frame in frames {
                self.alone.frame(OTHER, frame);
            }
            for output in outputs {
                self.carry_out(output);
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match (output, &mut self.other) {
            (Output::Compute(job), _) => {
                self.jobs.push(job.clone());
                let done = self.fake.run(&job);
                self.alone.peer.handle_done(self.alone.now, done);
            }
            (Output::Tokens { mode, samples }, _) => {
                let row = self.alone.config.model.context + 1;
                let tokens = vec![0; samples.count as usize * row];
                let now = self.alone.now;
                self.alone.peer.handle_tokens(now, mode, samples, &tokens);
            }
            (Output::Host(up), _) => self.heard.push(up),
            (Output::Frame(PeerId(OTHER), frame), Some(other)) => {
                if let Header::Merge {
                    stage, leg, offset, ..
                } = frame.header
                {
                    other.handle_slice(PeerId(1), (stage, leg, offset), frame.payload);
                } else if let Header::MergeTaken { taken, .. } = frame.header {
                    other.handle_taken(PeerId(1), taken);
                }
            }
            _ => {}
        }
    }

    /// What the other one sends.
    fn settle_other(&mut self) -> Vec<Frame> {
        let Some(other) = &mut self.other else {
            return Vec::new();
        };
        let mut fake = FakeCompute::new(self.alone.config.clone());
        while let Some(job) = other.next_job() {
            let done = fake.run(&job);
            other.handle_done(&job, done);
        }
        let mut frames = Vec::new();
        while let Some(output) = other.poll_output() {
            match output {
                MergeOutput::Frame(_, frame) => frames.push(frame),
                MergeOutput::Refuse(_, what) => panic!("it refuses us: {what}"),
                // The other one of a test hears of it no other way.
                MergeOutput::Failed => {}
                MergeOutput::Merged(merged) => {
                    self.merged = merged.into_iter().map(|it| it.snapshot).collect();
                }
            }
        }
        frames
    }

    /// The host commits that attempt, naming blobs of another volunteer; whether ours is in it.
    fn commit(&mut self, counter: u32, mut stages: Vec<Held>) -> bool {
        for held in &mut stages {
            held.blob = Digest::of(b"somebody else's");
        }
        let round = self.place.round.next();
        self.alone.say(Down::Commit {
            round,
            place: self.place,
            attempt: attempt(counter),
            stages,
        });
        let outputs = self.alone.outputs();
        let commit = Event::Commit { round, ours: true };
        let ours = outputs.contains(&Output::Event(commit));
        for output in outputs {
            self.carry_out(output);
        }
        self.settle();
        if ours {
            self.place.round = round;
        }
        ours
    }

    fn suspects(&self) -> Vec<(u64, Suspicion)> {
        let suspect = |up: &Up| {
            let Up::Suspect {
                peer, suspicion, ..
            } = up
            else {
                return None;
            };
            Some((peer.0, *suspicion))
        };
        self.heard.iter().filter_map(suspect).collect()
    }

    /// Names of what is kept of the round after.
    fn kept(&self) -> Vec<Held> {
        let mut kept = self.alone.peer.kept().list();
        kept.retain(|held| held.round == self.place.round.next());
        kept
    }
}

#[test]
fn a_round_that_is_merged_and_committed_is_what_the_next_one_starts_from() {
    let mut two = Two::held();
    let own = two.holds().unwrap();
    let merged = two.merge(3);
    assert_eq!((merged.steps, merged.place), (own.steps, own.place));
    let agreed = |stages: &[Held]| -> Vec<Digest> { stages.iter().map(|it| it.agreed).collect() };
    let others: Vec<Digest> = two.merged.iter().map(|it| it.agreed).collect();
    assert_eq!(agreed(&merged.stages), others);
    assert_ne!(agreed(&merged.stages), agreed(&own.stages));
    assert_eq!(two.kept(), merged.stages);
    two.jobs.clear();
    assert!(two.commit(3, merged.stages.clone()));
    let kept = two.alone.peer.kept().list();
    assert_eq!(kept, merged.stages, "our own blobs, of what is agreed");
    let Some(Job::Seat { states, .. }) = two.jobs.first() else {
        panic!("{:?}", two.jobs)
    };
    assert_eq!(states.len(), merged.stages.len());
    two.train(4);
    two.merge(5);
    let starts = two.jobs.iter().filter_map(|job| {
        let Job::Contribute { change, .. } = job else {
            return None;
        };
        let Change::Round { start, .. } = change else {
            panic!("no gradients are merged")
        };
        let crate::compute::StageState::Blob(blob) = start else {
            panic!("the second round does not start from the seed")
        };
        Some(Digest::of(blob))
    });
    let blobs: Vec<Digest> = merged.stages.iter().map(|held| held.blob).collect();
    assert_eq!(starts.collect::<Vec<_>>(), blobs);
    assert!(two.suspects().is_empty());
    assert!(two.alone.peer.stats().merge.up_bytes > 0);
}

#[test]
fn where_the_others_fell_out_the_seats_own_result_stands_again() {
    let mut two = Two::held();
    let own = two.holds().unwrap();
    two.merge(3);
    two.jobs.clear();
    assert!(!two.commit(4, own.stages.clone()), "no attempt of ours");
    let mut two = Two::held();
    two.merge(3);
    two.jobs.clear();
    assert!(two.commit(2, own.stages.clone()));
    assert_eq!(two.alone.peer.kept().list(), own.stages);
    assert_eq!(two.jobs, Vec::new(), "the compute goes on as it is");
    two.train(5);
}

#[test]
fn a_result_of_a_line_up_that_is_over_is_kept_no_more() {
    let mut two = Two::held();
    two.merge(3);
    assert!(!two.kept().is_empty());
    let place = two.place;
    two.alone.say(Down::Spare { place });
    assert_eq!(two.kept(), []);
}

#[test]
fn after_a_reconnect_the_host_hears_of_both_results_and_nothing_is_computed_twice() {
    let mut two = Two::held();
    let own = two.holds().unwrap();
    let merged = two.merge(3);
    two.alone.peer.handle_host_closed(two.alone.now);
    two.jobs.clear();
    two.heard.clear();
    two.alone.open(2);
    two.settle();
    let join = two.heard.iter().find_map(|up| {
        let Up::Join(join) = up else { return None };
        join.resume.clone()
    });
    let resume = join.unwrap();
    assert_eq!((resume.holds, resume.merged), (Some(own), Some(merged)));
    two.alone.welcome(1, true);
    two.tell_us(3);
    two.settle();
    assert_eq!(two.jobs, Vec::new());
}

#[test]
fn a_link_that_breaks_is_told_and_the_next_attempt_begins_from_the_same_result() {
    let mut two = Two::held();
    let own = two.holds().unwrap();
    two.tell_us(3);
    two.alone
        .frame(OTHER, Frame::from(Header::bye("it breaks")));
    two.settle();
    assert_eq!(two.suspects(), [(OTHER, Suspicion::Silent)]);
    two.alone.link(OTHER);
    two.settle();
    assert_eq!(two.holds().unwrap().attempt, attempt(2), "it waits");
    let merged = two.merge(4);
    two.tell_us(3);
    two.settle();
    assert_eq!(two.holds(), Some(merged.clone()), "older ones are void");
    // A newer one replaces even what is merged.
    let again = two.merge(6);
    assert_eq!(again.stages, merged.stages);
    assert!(two.commit(2, own.stages));
    // Once all is exchanged a link may go.
    assert_eq!(two.suspects().len(), 1);
}

#[test]
fn a_link_that_breaks_after_all_is_exchanged_harms_nobody() {
    let mut two = Two::held();
    two.merge(3);
    two.alone.frame(OTHER, Frame::from(Header::bye("done")));
    two.settle();
    assert_eq!(two.suspects(), []);
}

fn slice(counter: u32, offset: u64) -> Frame {
    Frame {
        header: Header::Merge {
            attempt: attempt(counter),
            stage: StageId(0),
            leg: Leg::Scatter,
            offset,
        },
        payload: Bytes::from_static(b"x"),
    }
}

#[test]
fn slices_of_a_merge_that_the_host_has_not_ordered_wait_for_it() {
    let mut two = Two::held();
    two.tell_other(3);
    let early = two.settle_other();
    assert!(!early.is_empty() && early.len() <= MERGE_SLICES_AHEAD as usize);
    for frame in early {
        two.alone.frame(OTHER, frame);
    }
    two.settle();
    two.alone.after(ASK_AFTER);
    two.settle();
    let place = Some(two.place);
    assert!(two.heard.contains(&Up::Ask { place }), "it asks for it");
    two.tell_us(3);
    two.settle();
    assert_eq!(two.holds().unwrap().attempt, attempt(3));
}

#[test]
fn more_slices_than_may_be_on_their_way_are_refused_and_void_ones_are_nothing() {
    let mut two = Two::held();
    for counter in [3, 7] {
        // It went on to a newer attempt: the older slices count no more.
        for offset in 0..u64::from(MERGE_SLICES_AHEAD) {
            two.alone.frame(OTHER, slice(counter, offset));
        }
    }
    two.alone.frame(OTHER, slice(3, 0));
    two.settle();
    assert_eq!(two.suspects(), []);
    two.alone.frame(OTHER, slice(7, 100));
    two.settle();
    assert_eq!(two.suspects(), [(OTHER, Suspicion::Malformed)]);
    let mut two = Two::held();
    two.merge(5);
    two.alone.frame(OTHER, slice(4, 1));
    two.settle();
    assert_eq!(two.suspects(), [], "of an older attempt");
    two.alone.frame(OTHER, slice(5, 1));
    two.settle();
    assert_eq!(two.suspects(), [(OTHER, Suspicion::Malformed)]);
}

#[test]
fn a_newer_beginning_voids_a_merge_under_way_and_its_result() {
    let mut two = Two::held();
    let own = two.holds().unwrap();
    two.merge(3);
    two.alone.begin(two.place, 8);
    two.settle();
    let again = two.holds().unwrap();
    assert_eq!((again.attempt, &again.stages), (attempt(8), &own.stages));
    assert_eq!(two.kept(), own.stages);
    two.tell_us(7);
    two.settle();
    assert_eq!(two.holds(), Some(again));
    two.merge(9);
}

#[test]
fn a_state_that_is_not_what_the_run_agreed_on_is_told_and_dropped() {
    let mut alone = Alone::joined(1);
    let held = |stage: u16| Held {
        round: Round(1),
        stage: StageId(stage),
        agreed: Digest([1; 32]),
        blob: Digest::of(b"state"),
    };
    let states = (0..2).map(|stage| (held(stage), Bytes::from_static(b"state")));
    alone.peer.handle_kept(states.collect());
    let place = Place {
        pipeline: PipelineId(0),
        epoch: attempt(1),
        round: Round(1),
    };
    let fetch = |stage| Fetch {
        // Another replica's blob: what is agreed counts.
        held: Held {
            blob: Digest::default(),
            ..held(stage)
        },
        sources: Vec::new(),
    };
    alone.say(Down::Seat(Box::new(SeatOrder {
        place,
        stages: StageRange { first: 0, end: 2 },
        previous: None,
        next: None,
        seats_behind: 0,
        state: (0..2).map(fetch).collect(),
        keys: Vec::new(),
    })));
    let asked = alone.outputs().into_iter().any(|output| {
        let Output::Compute(Job::Seat { states, .. }) = output else {
            return false;
        };
        states.len() == 2
    });
    assert!(asked, "both are here");
    let agreed = vec![Digest([1; 32]), Digest([2; 32])];
    alone.peer.handle_done(alone.now, Done::Seated { agreed });
    let (round, stage) = (Round(1), StageId(1));
    assert!(alone.ups().contains(&Up::Missing { round, stage }));
    assert_eq!(alone.peer.kept().list(), [held(0)]);
}
