//! Several pipelines in one round: what they trained is merged, and nobody's leaving costs the others their work.

mod levels;

use super::*;
use crate::coordinator::history::{CommitRow, History};
use crate::coordinator::pipeline::Phase;
use crate::limits::OVERTAKEN_WAIT_MIN;
use crate::units::PipelineId;
use crate::wire::leases::Leases;
use crate::wire::signal::{MergeOrder, Resume};

fn several(pipelines: u16) -> RunConfig {
    let mut config = config();
    config.schedule.pipelines_max = pipelines;
    config
}

/// A host whose volunteers each make a pipeline of their own, all at work.
fn desk_of(pipelines: u8) -> Desk {
    desk_with(several(u16::from(pipelines)), pipelines)
}

fn desk_with(config: RunConfig, pipelines: u8) -> Desk {
    let mut desk = Desk::new(config);
    for name in 1..=pipelines {
        desk.join(name);
    }
    // Who came first sat alone until its first round was over.
    desk.pass(TICK);
    desk.ready();
    desk.train(4.0);
    desk.pass(TICK);
    desk.ready();
    assert_eq!(desk.host.pipelines.len(), usize::from(pipelines));
    desk
}

fn ids(desk: &Desk) -> Vec<PipelineId> {
    desk.host.pipelines.ids(|_| true)
}

impl Desk {
    /// A pipeline's head does all its steps, or `steps` of them; whether it has more leases.
    fn steps(&mut self, id: PipelineId, steps: u32) {
        let pipeline = self.host.pipelines.get(id).expect("it is at work");
        let (place, head) = (pipeline.place, pipeline.head());
        let connection = self.host.roster.get(head).and_then(|it| it.connection);
        let connection = connection.expect("it is here");
        for steps in 1..=steps {
            let report = Report {
                place,
                steps,
                loss: 4.0,
                round_loss: 4.0,
                elapsed_us: 1,
                forward_bytes: 0,
                backward_bytes: 0,
            };
            self.say(connection, Up::Report(report));
        }
    }

    /// All seats of a pipeline hold what they trained.
    fn hold(&mut self, id: PipelineId) {
        let pipeline = self.host.pipelines.get(id).expect("it is at work");
        let (place, steps) = (pipeline.place, pipeline.steps_done());
        let (attempt, result) = (pipeline.attempt.expect("begun"), pipeline.result);
        self.say_holds(place, steps, (attempt, result), &format!("{id}"));
    }

    /// All seats of a pipeline have merged, and hold what is called so.
    fn hold_merged(&mut self, id: PipelineId, called: &str) {
        let pipeline = self.host.pipelines.get(id).expect("it is at work");
        let (place, steps, result) = (pipeline.place, pipeline.steps_done(), pipeline.result);
        let attempt = self.order(id).expect("it merges").attempt;
        self.say_holds(place, steps, (attempt, result), called);
    }

    fn say_holds(
        &mut self,
        place: Place,
        steps: u32,
        (attempt, result): (Attempt, Round),
        called: &str,
    ) {
        let pipeline = self.host.pipelines.get(place.pipeline).expect("at work");
        let rows: Vec<_> = pipeline.seats.iter().map(|seat| seat.row).collect();
        for row in rows {
            let held = |stage| Held {
                round: result,
                stage,
                agreed: Digest::of(format!("{stage} {result} {called}").as_bytes()),
                blob: Digest::of(format!("{stage} {result} {} {called}", row.peer).as_bytes()),
            };
            let holds = Holds {
                place,
                attempt,
                steps,
                stages: row.stages.iter().map(held).collect(),
            };
            let connection = self.host.roster.get(row.peer).and_then(|it| it.connection);
            self.say(connection.expect("it is here"), Up::Holds(holds));
        }
    }

    /// What a pipeline's head was told to merge last.
    fn order(&self, id: PipelineId) -> Option<MergeOrder> {
        let head = self.host.pipelines.get(id)?.head();
        let connection = self.host.roster.get(head)?.connection?;
        self.heard(connection, |message| {
            if let Down::Merge(order) = message {
                Some((**order).clone())
            } else {
                None
            }
        })
    }

    fn newest_commit(&self) -> &CommitRow {
        self.host.history().get(self.newest()).expect("a commit")
    }

    /// Everybody trains its round to its end and holds it.
    fn train_all(&mut self) {
        for id in ids(self) {
            self.train_pipeline(id);
        }
    }

    /// One pipeline trains its round to its end and holds it.
    fn train_pipeline(&mut self, id: PipelineId) {
        let target = self.host.pipelines.get(id).expect("at work").steps_target;
        self.steps(id, target);
        self.hold(id);
    }

    /// The connection of a pipeline's head.
    fn head_connection(&self, id: PipelineId) -> ConnectionId {
        let head = self.host.pipelines.get(id).expect("at work").head();
        let connection = self.host.roster.get(head).and_then(|it| it.connection);
        connection.expect("it is here")
    }
}

/// A host with one pipeline at work, and a newcomer's, whose seats are still fetching.
fn one_and_a_newcomer() -> Desk {
    let mut desk = Desk::new(several(2));
    desk.join(1);
    desk.pass(TICK);
    desk.ready();
    desk.join(2);
    let first = ids(&desk)[0];
    desk.train_pipeline(first);
    desk
}

#[test]
fn what_two_pipelines_trained_is_committed_once_all_replicas_agree() {
    let mut desk = desk_of(2);
    let round = desk.newest();
    desk.train_all();
    assert_eq!(desk.newest(), round, "it is not merged yet");
    let [a, b] = ids(&desk)[..] else {
        panic!("two")
    };
    let order = desk.order(a).expect("a merge");
    let batch = u64::from(desk.host.config().training.batch);
    assert_eq!(order.samples, 4 * batch);
    for groups in &order.stages {
        assert_eq!((groups.len(), groups[0].peers.len()), (1, 2));
        assert_eq!(groups[0].samples, [2 * batch, 2 * batch]);
    }
    desk.hold_merged(a, "same");
    assert_eq!(desk.newest(), round);
    desk.hold_merged(b, "same");
    assert_eq!(desk.newest(), round.next());
    let commit = desk.newest_commit();
    assert_eq!((commit.members.len(), commit.samples()), (2, 4 * batch));
    // Both go on at once, in the same line-ups.
    let phases: Vec<Phase> = desk.host.pipelines.iter().map(|it| it.phase).collect();
    assert_eq!(phases, [Phase::Training, Phase::Training]);
    let history = History::replay(&desk.rows).expect("a history");
    assert_eq!(history.audit(desk.host.lowest_open_sample()), Ok(()));
    // A stage's state is to be had of either, each with what it carries.
    let stage = crate::units::StageId(0);
    let fetch = desk.host.fetch(round.next(), stage, PeerId(0));
    assert_eq!(fetch.sources.len(), 2);
    assert_ne!(fetch.sources[0], fetch.sources[1]);
}

#[test]
fn a_pipeline_that_is_lost_in_the_merge_costs_its_own_round_alone() {
    let mut desk = desk_of(2);
    let round = desk.newest();
    desk.train_all();
    let [a, b] = ids(&desk)[..] else {
        panic!("two")
    };
    let lost = desk.order(a).expect("a merge").attempt;
    let b_head = desk.host.pipelines.get(b).expect("it is there").head();
    let connection = desk.host.roster.get(b_head).and_then(|it| it.connection);
    let open = desk.host.lowest_open_sample();
    desk.say(
        connection.expect("it is here"),
        Up::Leave { may_return: false },
    );
    let commit = desk.newest_commit().clone();
    assert_eq!(commit.round, round.next(), "a went on alone, at once");
    assert_eq!(commit.members.len(), 1);
    assert_ne!(commit.attempt, lost);
    // What b trained is trained again.
    assert!(desk.host.lowest_open_sample() >= open);
    let history = History::replay(&desk.rows).expect("a history");
    assert_eq!(history.audit(desk.host.lowest_open_sample()), Ok(()));
}

#[test]
fn of_three_pipelines_two_go_on_and_a_late_result_of_the_void_attempt_has_no_effect() {
    let mut desk = desk_of(3);
    let round = desk.newest();
    desk.train_all();
    let [a, b, c] = ids(&desk)[..] else {
        panic!("three")
    };
    let void = desk.order(a).expect("a merge").attempt;
    desk.hold_merged(a, "of three");
    let head = desk.host.pipelines.get(c).expect("it is there").head();
    let connection = desk.host.roster.get(head).and_then(|it| it.connection);
    desk.say(
        connection.expect("it is here"),
        Up::Leave { may_return: false },
    );
    let next = desk.order(a).expect("a merge");
    assert!(next.attempt > void);
    assert_eq!(next.stages[0][0].peers.len(), 2);
    let place = desk.host.pipelines.get(b).expect("it is there").place;
    desk.say_holds(place, 2, (void, round.next()), "of three");
    assert_eq!(desk.newest(), round);
    desk.hold_merged(a, "of two");
    desk.hold_merged(b, "of two");
    assert_eq!(desk.newest(), round.next());
    assert_eq!(desk.newest_commit().attempt, next.attempt);
}

#[test]
fn who_holds_something_else_than_most_gets_what_they_agree_on() {
    let mut desk = desk_of(3);
    let round = desk.newest();
    desk.train_all();
    let [a, b, c] = ids(&desk)[..] else {
        panic!("three")
    };
    let epoch = |desk: &Desk, id| desk.host.pipelines.get(id).map(|it| it.place.epoch);
    let before = [a, b, c].map(|id| epoch(&desk, id));
    desk.hold_merged(a, "same");
    desk.hold_merged(b, "other");
    desk.hold_merged(c, "same");
    assert_eq!(desk.newest(), round.next());
    assert_eq!(desk.newest_commit().members.len(), 3, "all trained it");
    desk.pass(TICK);
    let after = [a, b, c].map(|id| epoch(&desk, id));
    assert_eq!((after[0], after[2]), (before[0], before[2]));
    assert_ne!(after[1], before[1], "b is seated anew, and fetches");
    let b_head = desk.host.pipelines.get(b).expect("it is there").head();
    let holds_it = |peer| {
        desk.host
            .roster
            .get(peer)
            .map(|it| it.blob_of(round.next(), crate::units::StageId(0)).is_some())
    };
    assert_eq!(holds_it(b_head), Some(false));
}

#[test]
fn one_against_one_tries_again_and_then_goes_on_without_the_newer() {
    let mut desk = desk_of(2);
    let round = desk.newest();
    desk.train_all();
    let [a, b] = ids(&desk)[..] else {
        panic!("two")
    };
    let epochs = [a, b].map(|id| desk.host.pipelines.get(id).expect("there").place.epoch);
    for _ in 0..2 {
        assert_eq!(desk.newest(), round);
        desk.hold_merged(a, "one");
        desk.hold_merged(b, "other");
    }
    assert_eq!(desk.newest(), round.next(), "one of them went on alone");
    let older = epochs.into_iter().min();
    assert_eq!(Some(desk.newest_commit().members[0].place.epoch), older);
}

#[test]
fn the_fastest_pipelines_last_step_ends_the_round_for_all() {
    let mut desk = desk_of(2);
    let [a, b] = ids(&desk)[..] else {
        panic!("two")
    };
    let round = desk.newest();
    desk.steps(b, 1);
    desk.steps(a, 2);
    desk.hold(a);
    let pipeline = desk.host.pipelines.get(b).expect("it is there");
    let connection = desk
        .host
        .roster
        .get(pipeline.head())
        .and_then(|it| it.connection);
    let place = pipeline.place;
    let closed = desk.heard(connection.expect("here"), |message| {
        matches!(message, Down::Close { place: at } if *at == place).then_some(())
    });
    assert!(closed.is_some());
    // It ends with the step before, or with the one that it is in.
    desk.hold(b);
    desk.hold_merged(a, "same");
    desk.hold_merged(b, "same");
    assert_eq!(desk.newest(), round.next());
    let steps: Vec<usize> = desk
        .newest_commit()
        .members
        .iter()
        .map(|it| it.steps.len())
        .collect();
    assert_eq!(steps, [2, 1]);
}

#[test]
fn a_merge_that_stands_still_goes_on_without_who_owes_most() {
    let mut desk = desk_of(2);
    let round = desk.newest();
    desk.train_all();
    let [a, _] = ids(&desk)[..] else {
        panic!("two")
    };
    desk.hold_merged(a, "same");
    desk.pass(crate::limits::MERGE_MAX + Span::from_secs(30));
    assert!(desk.newest() > round);
    let commit = desk.host.history().get(round.next()).expect("a commit");
    assert_eq!(commit.members.len(), 1);
    assert_eq!(commit.members[0].place.pipeline, a);
}

#[test]
fn a_host_that_restarts_in_a_merge_begins_it_anew_with_what_they_hold() {
    let mut desk = desk_of(2);
    let round = desk.newest();
    desk.train_all();
    desk.hold_merged(PipelineId(0), "before");
    let before: Vec<_> = desk.host.pipelines.iter().cloned().collect();
    let old = desk.order(PipelineId(0)).expect("a merge").attempt;
    let config = desk.host.config().clone();
    let mut desk = Desk::over(config, desk.rows, false);
    for pipeline in before {
        let seat = pipeline.seats[0].clone();
        let name = u8::try_from(seat.row.session).expect("a name");
        desk.join_as(name, |join| {
            join.resume = Some(Resume {
                peer: seat.row.peer,
                place: Some(pipeline.place),
                attempt: pipeline.attempt,
                report: pipeline.report,
                leases: Leases::pack(&pipeline.leases),
                holds: seat.holds.clone(),
                merged: seat.merged.clone(),
            });
        });
    }
    assert_eq!(desk.host.pipelines.len(), 2);
    let order = desk.order(PipelineId(0)).expect("a merge");
    assert!(order.attempt > old);
    desk.hold_merged(PipelineId(0), "same");
    desk.hold_merged(PipelineId(1), "same");
    assert_eq!(desk.newest(), round.next());
    let history = History::replay(&desk.rows).expect("a history");
    assert_eq!(history.audit(desk.host.lowest_open_sample()), Ok(()));
}

#[test]
fn the_last_steps_of_a_run_are_shared_out_and_not_exceeded() {
    let mut config = several(2);
    let batch = u64::from(config.training.batch);
    config.training.samples = 5 * batch;
    let mut desk = Desk::new(config);
    desk.join(1);
    desk.join(2);
    for _ in 0..8 {
        desk.pass(TICK);
        desk.ready();
        for id in ids(&desk) {
            let pipeline = desk.host.pipelines.get(id);
            let target = pipeline.filter(|it| it.phase == Phase::Training);
            if let Some(target) = target.map(|it| it.steps_target) {
                desk.steps(id, target);
                desk.hold(id);
            }
        }
        for id in desk.host.pipelines.ids(|it| it.phase == Phase::Merging) {
            desk.hold_merged(id, "same");
        }
    }
    let merged = desk
        .host
        .history()
        .commits()
        .any(|it| it.members.len() == 2);
    assert!(merged, "they trained beside each other");
    assert_eq!(desk.host.history().samples(), 5 * batch);
}

#[test]
fn two_that_cannot_connect_are_no_replicas_of_each_other() {
    let mut desk = desk_of(2);
    let [a, b] = ids(&desk)[..] else {
        panic!("two")
    };
    desk.train_all();
    let head = |desk: &Desk, id| desk.host.pipelines.get(id).expect("at work").head();
    let (one, other) = (head(&desk, a), head(&desk, b));
    let connection = desk.host.roster.get(one).and_then(|it| it.connection);
    let place = desk.host.pipelines.get(a).map(|it| it.place);
    desk.say(
        connection.expect("it is here"),
        Up::Suspect {
            place,
            peer: other,
            suspicion: crate::wire::signal::Suspicion::Unreachable,
        },
    );
    // It answers, so the way between the two is at fault; the round is the one's alone.
    desk.pass(TICK);
    assert_eq!(desk.newest_commit().members.len(), 1);
    desk.rounds(2);
    assert_eq!(desk.host.pipelines.len(), 1, "they are not paired again");
}

#[test]
fn a_late_result_of_a_void_attempt_does_not_take_the_place_of_what_a_seat_trained() {
    let mut desk = desk_of(2);
    let round = desk.newest();
    desk.train_all();
    let [a, b] = ids(&desk)[..] else {
        panic!("two")
    };
    let void = desk.order(a).expect("a merge").attempt;
    let place = desk.host.pipelines.get(a).expect("at work").place;
    let head = desk.host.pipelines.get(b).expect("at work").head();
    let connection = desk.host.roster.get(head).and_then(|it| it.connection);
    desk.slow_disk();
    desk.say(
        connection.expect("it is here"),
        Up::Leave { may_return: false },
    );
    // While the row is on its way to the disk, a's seats say what they had merged.
    desk.say_holds(place, 2, (void, round.next()), "late");
    desk.sync();
    assert_eq!(desk.newest(), round.next());
    let after = desk.host.pipelines.get(a).expect("it goes on");
    assert_eq!(after.place.epoch, place.epoch, "in the same line-up");
}

#[test]
fn after_a_restart_nobody_is_leased_what_another_pipeline_may_bring_back() {
    let desk = desk_of(2);
    let before: Vec<_> = desk.host.pipelines.iter().cloned().collect();
    let config = desk.host.config().clone();
    let mut desk = Desk::over(config, desk.rows, false);
    for pipeline in &before {
        let row = pipeline.seats[0].row;
        let name = u8::try_from(row.session).expect("a name");
        desk.join_as(name, |join| {
            join.resume = Some(Resume {
                peer: row.peer,
                place: Some(pipeline.place),
                attempt: pipeline.attempt,
                report: pipeline.report,
                leases: Leases::pack(&pipeline.leases),
                holds: None,
                merged: None,
            });
        });
    }
    let mut leased: Vec<_> = desk
        .host
        .pipelines
        .iter()
        .flat_map(|it| it.leased_samples())
        .collect();
    assert_eq!(desk.host.pipelines.len(), 2, "both go on");
    let count = leased.len();
    leased.sort();
    leased.dedup();
    assert_eq!(leased.len(), count, "nothing is leased twice");
}

#[test]
fn a_line_up_that_fetches_for_longer_than_a_round_takes_is_waited_for_at_the_next() {
    let mut desk = one_and_a_newcomer();
    let round = desk.newest();
    let [a, b] = ids(&desk)[..] else {
        panic!("the newcomer has a line-up")
    };
    let phase = |desk: &Desk, id| desk.host.pipelines.get(id).expect("there").phase;
    assert_eq!(phase(&desk, b), Phase::Forming);
    // It is still fetching when the round is over: the first time nobody waits.
    desk.train_pipeline(a);
    assert_eq!(desk.newest(), round.next());
    desk.train_pipeline(a);
    assert_eq!(
        desk.newest(),
        round.next(),
        "the second time the round waits"
    );
    desk.ready();
    assert_eq!(phase(&desk, b), Phase::Training);
    assert_eq!(desk.host.pipelines.get(b).expect("there").steps_target, 1);
    desk.steps(b, 1);
    desk.hold(b);
    for id in [a, b] {
        desk.hold_merged(id, "same");
    }
    assert_eq!(desk.newest(), round.next().next());
    let steps = desk.newest_commit().members.iter().map(|it| it.steps.len());
    assert_eq!(steps.collect::<Vec<_>>(), [2, 1]);
    // It has caught up: from now on it is a pipeline like others.
    assert_eq!([a, b].map(|id| phase(&desk, id)), [Phase::Training; 2]);
    assert!(!desk.host.is_overtaken(b));
}

#[test]
fn a_merge_that_failed_at_a_seat_is_tried_again_at_once_and_then_goes_on_without_it() {
    let mut desk = desk_of(2);
    let round = desk.newest();
    desk.train_all();
    let [a, b] = ids(&desk)[..] else {
        panic!("two")
    };
    let fail = |desk: &mut Desk| {
        let attempt = desk.order(b).expect("a merge").attempt;
        let place = desk.host.pipelines.get(b).expect("at work").place;
        let connection = desk.head_connection(b);
        desk.say(connection, Up::MergeFailed { place, attempt });
        attempt
    };
    desk.hold_merged(a, "first");
    let first = fail(&mut desk);
    let second = desk.order(a).expect("another merge");
    assert!(second.attempt > first);
    assert_eq!(
        second.stages[0][0].peers.len(),
        2,
        "nobody is left out the first time"
    );
    desk.hold_merged(a, "second");
    assert_eq!(desk.newest(), round);
    assert_eq!(fail(&mut desk), second.attempt);
    assert_eq!(desk.newest(), round.next());
    assert_eq!(desk.newest_commit().members.len(), 1);
    assert_eq!(desk.newest_commit().members[0].place.pipeline, a);
}

#[test]
fn who_says_its_result_again_and_again_holds_nobody_up() {
    let mut desk = desk_of(3);
    let round = desk.newest();
    desk.train_all();
    let [a, b, _] = ids(&desk)[..] else {
        panic!("three")
    };
    for _ in 0..8 {
        for id in [a, b] {
            desk.hold_merged(id, "same");
        }
        desk.pass(Span::from_secs(10));
        if desk.newest() > round {
            break;
        }
    }
    assert_eq!(desk.newest(), round.next());
    assert_eq!(desk.newest_commit().members.len(), 2);
}

#[test]
fn a_line_up_that_is_never_ready_is_waited_for_once_and_for_seconds() {
    let mut desk = one_and_a_newcomer();
    let a = ids(&desk)[0];
    desk.train_pipeline(a);
    let round = desk.newest();
    desk.train_pipeline(a);
    assert_eq!(desk.newest(), round, "it is waited for");
    desk.pass(OVERTAKEN_WAIT_MIN + TICK);
    assert_eq!(desk.newest(), round.next());
    // It sits out; who trains goes on at its pace.
    for more in 1..=4 {
        desk.train_pipeline(a);
        assert_eq!(desk.newest().0, round.0 + 1 + more);
    }
}
