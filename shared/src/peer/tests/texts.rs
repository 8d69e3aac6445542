//! Texts at a seat: its turn beside training, what comes twice or never, and what no correct build sends.

use super::*;
use crate::compute::{Portion, Written};
use crate::limits::{TEXT_IDLE_MAX, TEXTS_MAX};
use crate::units::{Microbatch, RequestId};
use crate::wire::generate::{Generate, Sampling};
use crate::wire::payload::encode_forward;

const SAMPLING: Sampling = Sampling {
    temperature: 0.0,
    top_p: 1.0,
    seed: 3,
};

fn request(counter: u32) -> RequestId {
    Issue {
        incarnation: 1,
        counter: 100 + counter,
    }
}

impl Alone {
    fn row_bytes(&self) -> usize {
        let model = &self.config.model;
        self.config.format.row_bytes(model.boundary_width())
    }

    /// So many tokens of a text from the seat before.
    fn text(&mut self, place: Place, (counter, position, drawn): (u32, u32, u32), tokens: usize) {
        let header = Header::Text {
            pipeline: place.pipeline,
            epoch: place.epoch,
            request: request(counter),
            position,
            drawn,
            sampling: SAMPLING,
        };
        let boundary = vec![0; tokens * self.row_bytes()];
        let payload = encode_forward(&vec![1; tokens], 256, &boundary);
        self.frame(9, Frame { header, payload });
    }

    fn drawn(&mut self, place: Place, counter: u32, drawn: u32, token: Option<u32>) {
        let header = Header::Drawn {
            pipeline: place.pipeline,
            epoch: place.epoch,
            request: request(counter),
            drawn,
            token,
        };
        self.frame(10, Frame::from(header));
    }

    /// The jobs for texts that are under way or asked for, each answered with a boundary.
    fn read(&mut self) -> Vec<(u32, u32, usize)> {
        let mut read = Vec::new();
        loop {
            let portions = self.outputs().into_iter().filter_map(|output| {
                let Output::Compute(Job::Generate(portion)) = output else {
                    return None;
                };
                Some(portion)
            });
            let portions: Vec<Portion> = portions.collect();
            if portions.is_empty() {
                return read;
            }
            for portion in portions {
                let bytes = portion.tokens.len() * self.row_bytes();
                let counter = portion.request.counter - 100;
                read.push((counter, portion.position, portion.tokens.len()));
                let done = Done::Generated {
                    request: portion.request,
                    written: Written::Boundary(vec![0; bytes].into()),
                };
                self.peer.handle_done(self.now, done);
            }
        }
    }

    /// Which tokens were told to the seat before since this was asked last.
    fn told_back(&mut self) -> Vec<(u32, Option<u32>)> {
        let outputs = self.outputs().into_iter();
        let drawn = outputs.filter_map(|output| {
            let Output::Frame(PeerId(9), frame) = output else {
                return None;
            };
            let Header::Drawn { drawn, token, .. } = frame.header else {
                return None;
            };
            Some((drawn, token))
        });
        drawn.collect()
    }
}

#[test]
fn a_seat_reads_a_portion_once_and_passes_its_token_on() {
    let (mut alone, place, _) = Alone::at_work();
    alone.text(place, (0, 0, 0), 5);
    assert_eq!(alone.read(), [(0, 0, 5)]);
    alone.text(place, (0, 0, 0), 5);
    assert_eq!(alone.read(), [], "it came before");
    alone.drawn(place, 0, 0, Some(7));
    alone.drawn(place, 0, 0, Some(8));
    assert_eq!(alone.told_back(), [(0, Some(7))], "a token comes once");
    alone.text(place, (0, 5, 1), 1);
    assert_eq!(alone.read(), [(0, 5, 1)]);
    alone.text(place, (0, 5, 1), 1);
    alone.drawn(place, 0, 1, Some(9));
    // A window that moves begins anew.
    alone.text(place, (0, 0, 2), 4);
    assert_eq!(alone.read(), [(0, 0, 4)]);
    assert!(alone.refused().is_empty());
}

#[test]
fn a_text_whose_beginning_a_seat_lacks_is_not_gone_on_with() {
    let (mut alone, place, _) = Alone::at_work();
    alone.text(place, (0, 5, 3), 1);
    assert_eq!(alone.told_back(), [(3, None)]);
    alone.text(place, (1, 0, 0), 5);
    alone.read();
    alone.drawn(place, 1, 0, Some(7));
    alone.outputs();
    alone.text(place, (1, 6, 1), 1);
    assert_eq!(alone.told_back(), [(1, None)], "a token is missing");
    assert!(alone.refused().is_empty());
    // Of another line-up it has no effect at all.
    let other = Place {
        epoch: request(0),
        ..place
    };
    alone.text(other, (2, 0, 0), 5);
    assert_eq!((alone.read(), alone.told_back()), (vec![], vec![]));
}

#[test]
fn one_text_too_many_takes_the_place_of_the_one_that_was_idle_longest() {
    let (mut alone, place, _) = Alone::at_work();
    let count = u32::try_from(TEXTS_MAX).unwrap();
    for counter in 0..=count {
        alone.text(place, (counter, 0, 0), 1);
        alone.after(Span::from_millis(10));
        alone.read();
        alone.drawn(place, counter, 0, Some(1));
    }
    alone.outputs();
    alone.text(place, (0, 1, 1), 1);
    assert_eq!(alone.told_back(), [(1, None)]);
    alone.text(place, (count, 1, 1), 1);
    alone.text(place, (1, 1, 1), 1);
    assert_eq!(alone.told_back(), []);
}

#[test]
fn what_no_correct_build_sends_of_a_text_costs_the_link() {
    let check = |from: u64, send: &dyn Fn(&mut Alone, Place)| {
        let (mut alone, place, _) = Alone::at_work();
        alone.text(place, (0, 0, 0), 5);
        alone.read();
        assert!(alone.refused().is_empty());
        send(&mut alone, place);
        assert_eq!(alone.refused(), [from]);
    };
    check(9, &|alone, place| alone.text(place, (0, 5, 1), 1));
    check(10, &|alone, place| alone.drawn(place, 0, 0, Some(256)));
    check(9, &|alone, place| {
        let tokens = alone.config.model.context + 1;
        alone.text(place, (1, 0, 0), tokens);
    });
    let text = |place: Place, payload: Vec<u8>| Frame {
        header: Header::Text {
            pipeline: place.pipeline,
            epoch: place.epoch,
            request: request(1),
            position: 0,
            drawn: 0,
            sampling: SAMPLING,
        },
        payload: payload.into(),
    };
    check(9, &|alone, place| alone.frame(9, text(place, vec![0; 3])));
    check(10, &|alone, place| {
        let bytes = 1 + alone.row_bytes();
        alone.frame(10, text(place, vec![0; bytes]));
    });
    check(9, &|alone, place| {
        let header = Header::Drawn {
            pipeline: place.pipeline,
            epoch: place.epoch,
            request: request(0),
            drawn: 0,
            token: Some(1),
        };
        alone.frame(9, Frame::from(header));
    });
    // What the device cannot read, either.
    check(9, &|alone, place| {
        alone.text(place, (1, 0, 0), 2);
        let reason = "a scale that is not finite".to_owned();
        alone.peer.handle_done(alone.now, Done::Refused { reason });
    });
}

#[test]
fn a_text_that_nothing_more_comes_of_is_forgotten() {
    let (mut alone, place, _) = Alone::at_work();
    alone.text(place, (0, 0, 0), 5);
    alone.read();
    alone.drawn(place, 0, 0, Some(1));
    alone.outputs();
    let forgets = |alone: &mut Alone| {
        let is_it = |output: &Output| matches!(output, Output::Compute(Job::Forget { .. }));
        alone.outputs().iter().any(is_it)
    };
    alone.after(Span::from_secs(1));
    assert!(!forgets(&mut alone));
    // Its links would be given up for their silence before, here.
    let later = alone.now + TEXT_IDLE_MAX + Span::from_secs(1);
    alone.peer.forget_idle_texts(later);
    alone.peer.handle_timeout(alone.now);
    assert!(forgets(&mut alone));
}

#[test]
fn jobs_of_texts_and_of_training_take_turns() {
    let (mut alone, place, granted) = Alone::at_work();
    let header = Header::Credit {
        pipeline: place.pipeline,
        epoch: place.epoch,
        granted: 64,
        behind: Behind::default(),
    };
    alone.frame(10, Frame::from(header));
    for number in 0..granted.min(3) {
        let slot = Slot {
            place,
            step: Step(0),
            microbatch: Microbatch(u16::try_from(number).unwrap()),
        };
        let frame = alone.forward(slot);
        alone.frame(9, frame);
    }
    for counter in 0..3 {
        alone.text(place, (counter, 0, 0), 4);
    }
    let mut order = String::new();
    loop {
        let jobs = alone.outputs().into_iter().filter_map(|output| {
            let Output::Compute(job) = output else {
                return None;
            };
            Some(job)
        });
        let Some(job) = jobs.last() else { break };
        let done = if let Job::Forward { slot, .. } = job {
            order.push('F');
            Done::Forward {
                slot,
                boundary: Some(vec![0; alone.config.boundary_bytes()].into()),
                loss_sum: None,
            }
        } else if let Job::Generate(portion) = job {
            order.push('t');
            Done::Generated {
                request: portion.request,
                written: Written::Nothing,
            }
        } else {
            order.push('-');
            self::done(job)
        };
        alone.peer.handle_done(alone.now, done);
    }
    let texts_only: String = order.replace('-', "");
    assert_eq!(texts_only, "FtFtFt", "{order}");
}

#[test]
fn a_head_alone_writes_what_the_host_wants_and_says_each_token() {
    let mut alone = Alone::joined(1);
    let place = alone.seat(None, None);
    alone.compute();
    let order = |counter, count, tokens: usize| {
        Down::Generate(Box::new(Generate {
            place,
            request: request(counter),
            tokens: vec![1; tokens],
            drawn: 5,
            count,
            sampling: SAMPLING,
        }))
    };
    let context = alone.config.model.context;
    alone.say(order(0, 3, context));
    alone.say(order(0, 3, context));
    let mut portions = Vec::new();
    let ups = alone.compute_while(|_, job| {
        if let Job::Generate(portion) = job {
            portions.push((portion.position, portion.tokens.len()));
        } else if matches!(job, Job::Forget { .. }) {
            portions.push((0, 0));
        }
    });
    let token = |up: &Up| {
        let Up::Written { drawn, token, .. } = up else {
            return None;
        };
        Some((*drawn, *token))
    };
    let written: Vec<_> = ups.iter().filter_map(token).collect();
    assert_eq!(written, [(5, 5), (6, 6), (7, 7)]);
    // It outgrows the context: half of it is read again.
    let half = context / 2;
    let at = u32::try_from(half).unwrap() + 1;
    assert_eq!(portions, [(0, context), (0, half + 1), (at, 1), (0, 0)]);
    for nonsense in [order(1, 0, 1), order(2, 1, 0)] {
        alone.say(nonsense);
        let ups = alone.compute();
        assert!(ups.iter().any(|up| matches!(up, Up::NotWritten { .. })));
    }
}
