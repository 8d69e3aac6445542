//! One forward, one backward: what a seat works on next within a step.
//!
//! A seat takes forwards in number order and backwards in number order, whatever the order in which their
//! inputs arrive, and a backward before a forward. It runs ahead by at most as many microbatches as there
//! are seats behind it, plus one, plus what hides the links' delay: more would only fill memory. The last
//! seat needs no gradient from outside, so there each forward is followed by its backward.
//!
//! What has arrived is the caller's knowledge, and so are credit, updates and the step's end: [`Order::next`]
//! asks, [`Order::advance`] is told.
//!
//! Invariant: `backwards <= forwards <= microbatches`, and never more than [`Order::in_flight_max`] between.

use crate::units::Microbatch;

/// What a seat can do with a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Its forward: needs what the seat before sends (at the head: its tokens).
    Forward(Microbatch),
    /// Its backward: needs the gradient from the seat behind (at the last seat: nothing).
    Backward(Microbatch),
}

/// How far one seat is within one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    microbatches: u16,
    in_flight_max: u16,
    forwards: u16,
    backwards: u16,
}

impl Order {
    /// The beginning of a step of so many microbatches, at a seat with so many behind it.
    ///
    /// `extra` microbatches more may be under way than seats take: `ceil(time on the wire behind / time of the
    /// slowest microbatch)`, as far as memory and credit allow.
    #[must_use]
    pub const fn new(seats_behind: u16, extra: u16, microbatches: u16) -> Self {
        let in_flight_max = seats_behind.saturating_add(extra).saturating_add(1);
        Self {
            microbatches,
            in_flight_max,
            forwards: 0,
            backwards: 0,
        }
    }

    /// What to do next, or `None` until more has arrived.
    ///
    /// `has_arrived` tells whether an action's input is there, and whatever else the caller makes it wait for.
    pub fn next(&self, has_arrived: impl Fn(Action) -> bool) -> Option<Action> {
        let backward = Action::Backward(Microbatch(self.backwards));
        let forward = Action::Forward(Microbatch(self.forwards));
        if self.backwards < self.forwards && has_arrived(backward) {
            return Some(backward);
        }
        let may_run_ahead =
            self.forwards < self.microbatches && self.in_flight() < self.in_flight_max;
        (may_run_ahead && has_arrived(forward)).then_some(forward)
    }

    /// Notes that what [`next`](Self::next) gave is done.
    ///
    /// # Panics
    /// If it was not this action's turn.
    pub fn advance(&mut self, action: Action) {
        assert_eq!(
            self.next(|other| other == action),
            Some(action),
            "out of turn in {self:?}"
        );
        match action {
            Action::Forward(_) => self.forwards += 1,
            Action::Backward(_) => self.backwards += 1,
        }
    }

    /// Forwards that are done: the number of the next one.
    #[must_use]
    pub const fn forwards(&self) -> u16 {
        self.forwards
    }

    /// Backwards that are done: the number of the next one.
    #[must_use]
    pub const fn backwards(&self) -> u16 {
        self.backwards
    }

    /// Microbatches whose forward is done and whose backward is not.
    #[must_use]
    pub const fn in_flight(&self) -> u16 {
        self.forwards - self.backwards
    }

    /// Most microbatches that may be in flight.
    #[must_use]
    pub const fn in_flight_max(&self) -> u16 {
        self.in_flight_max
    }

    /// Whether all forwards and backwards of the step are done.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.backwards == self.microbatches
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    /// A pipe whose seats take one tick for anything, and whose links deliver after `delay` ticks more.
    struct Pipe {
        orders: Vec<Order>,
        /// For each seat what has arrived, and when it does.
        arrivals: Vec<BTreeSet<(u32, Action)>>,
        delay: u32,
        now: u32,
    }

    impl Pipe {
        fn new(seats: u16, microbatches: u16, extra: u16, delay: u32) -> Self {
            let order = |seat| Order::new(seats - 1 - seat, extra, microbatches);
            let tokens = (0..microbatches).map(|number| (0, Action::Forward(Microbatch(number))));
            let mut arrivals = vec![BTreeSet::new(); usize::from(seats)];
            arrivals[0].extend(tokens);
            Self {
                orders: (0..seats).map(order).collect(),
                arrivals,
                delay,
                now: 0,
            }
        }

        /// What each seat does in this tick.
        fn tick(&mut self) -> Vec<Option<Action>> {
            let last = self.orders.len() - 1;
            let now = self.now;
            let does = |seat: usize| {
                let here = |action| {
                    let own = seat == last && matches!(action, Action::Backward(_));
                    own || self.arrivals[seat]
                        .iter()
                        .any(|&(at, other)| at <= now && other == action)
                };
                self.orders[seat].next(here)
            };
            let actions: Vec<Option<Action>> = (0..=last).map(does).collect();
            self.now += 1;
            for (seat, action) in actions.iter().enumerate() {
                let Some(action) = *action else { continue };
                self.orders[seat].advance(action);
                let receiver = match action {
                    Action::Forward(_) => Some(seat + 1).filter(|&next| next <= last),
                    Action::Backward(_) => seat.checked_sub(1),
                };
                if let Some(receiver) = receiver {
                    self.arrivals[receiver].insert((self.now + self.delay, action));
                }
            }
            actions
        }

        fn is_done(&self) -> bool {
            self.orders.iter().all(Order::is_done)
        }
    }

    fn check_timeline_with(
        seats: u16,
        microbatches: u16,
        extra: u16,
        delay: u32,
        expected: Expect,
    ) {
        let mut pipe = Pipe::new(seats, microbatches, extra, delay);
        let mut lines: Vec<String> = (0..seats).map(|seat| format!("s{seat} ")).collect();
        while !pipe.is_done() {
            assert!(pipe.now < 1_000, "the pipe stands still");
            for (line, action) in lines.iter_mut().zip(pipe.tick()) {
                line.push_str(&match action {
                    Some(Action::Forward(Microbatch(number))) => format!(" F{number}"),
                    Some(Action::Backward(Microbatch(number))) => format!(" B{number}"),
                    None => " --".to_owned(),
                });
            }
        }
        expected.assert_eq(&(lines.join("\n") + "\n"));
    }

    fn check_timeline(seats: u16, microbatches: u16, expected: Expect) {
        check_timeline_with(seats, microbatches, 0, 0, expected);
    }

    #[test]
    fn one_forward_one_backward_fills_then_drains() {
        check_timeline(
            /*seats*/ 3,
            /*microbatches*/ 4,
            expect![[r#"
                s0  F0 F1 F2 -- -- B0 F3 B1 -- B2 -- B3
                s1  -- F0 F1 -- B0 F2 B1 F3 B2 -- B3 --
                s2  -- -- F0 B0 F1 B1 F2 B2 F3 B3 -- --
            "#]],
        );
    }

    #[test]
    fn a_single_seat_takes_each_microbatch_back_at_once() {
        check_timeline(
            1,
            3,
            expect![[r#"
            s0  F0 B0 F1 B1 F2 B2
        "#]],
        );
    }

    #[test]
    fn running_further_ahead_hides_the_links_delay() {
        check_timeline_with(
            2,
            6,
            /*extra*/ 0,
            /*delay*/ 2,
            expect![[r#"
            s0  F0 F1 -- -- -- -- -- B0 F2 B1 F3 -- -- -- -- B2 F4 B3 F5 -- -- -- -- B4 -- B5
            s1  -- -- -- F0 B0 F1 B1 -- -- -- -- F2 B2 F3 B3 -- -- -- -- F4 B4 F5 B5 -- -- --
        "#]],
        );
        check_timeline_with(
            2,
            6,
            /*extra*/ 2,
            /*delay*/ 2,
            expect![[r#"
            s0  F0 F1 F2 F3 -- -- -- B0 F4 B1 F5 B2 -- B3 -- B4 -- B5
            s1  -- -- -- F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 -- -- --
        "#]],
        );
    }

    #[test]
    #[should_panic(expected = "out of turn")]
    fn a_backward_without_its_forward_is_out_of_turn() {
        Order::new(1, 0, 4).advance(Action::Backward(Microbatch(0)));
    }

    proptest! {
        #[test]
        fn a_seat_works_in_number_order_whatever_arrives_first(
            seats_behind in 0_u16..6,
            extra in 0_u16..4,
            microbatches in 1_u16..12,
            lots in proptest::collection::vec(any::<prop::sample::Index>(), 48),
        ) {
            let mut order = Order::new(seats_behind, extra, microbatches);
            let mut on_the_way: Vec<Action> = (0..microbatches)
                .flat_map(|number| [Action::Forward(Microbatch(number)), Action::Backward(Microbatch(number))])
                .collect();
            let mut arrived = BTreeSet::new();
            let mut forwards = Vec::new();
            let mut backwards = Vec::new();
            for lot in lots {
                // A gradient can arrive only for what went forward.
                let can_come = |action: &Action| match *action {
                    Action::Forward(_) => true,
                    Action::Backward(Microbatch(number)) => usize::from(number) < forwards.len(),
                };
                let coming: Vec<Action> = on_the_way.iter().copied().filter(can_come).collect();
                if !coming.is_empty() {
                    let action = coming[lot.index(coming.len())];
                    on_the_way.retain(|other| *other != action);
                    arrived.insert(action);
                }
                while let Some(action) = order.next(|action| arrived.contains(&action)) {
                    if let Action::Forward(number) = action {
                        prop_assert!(!arrived.contains(&Action::Backward(Microbatch(
                            u16::try_from(backwards.len()).expect("few")
                        ))) || backwards.len() == forwards.len());
                        forwards.push(number.0);
                    }
                    if let Action::Backward(number) = action {
                        backwards.push(number.0);
                    }
                    order.advance(action);
                    prop_assert!(order.in_flight() <= seats_behind + extra + 1);
                }
            }
            let all: Vec<u16> = (0..microbatches).collect();
            prop_assert_eq!(&forwards, &all);
            prop_assert_eq!(&backwards, &all);
            prop_assert!(order.is_done());
        }

        #[test]
        fn a_pipe_of_any_size_ends_and_never_later_than_one_microbatch_at_a_time(
            seats in 1_u16..6,
            microbatches in 1_u16..12,
            extra in 0_u16..4,
            delay in 0_u32..4,
        ) {
            let mut pipe = Pipe::new(seats, microbatches, extra, delay);
            let (seats, microbatches) = (u32::from(seats), u32::from(microbatches));
            let one_at_a_time = microbatches * (2 * seats + 2 * delay * (seats - 1));
            while !pipe.is_done() {
                prop_assert!(pipe.now < one_at_a_time);
                pipe.tick();
            }
            prop_assert!(pipe.now >= 2 * (microbatches + seats - 1));
        }
    }
}
