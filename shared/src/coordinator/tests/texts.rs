//! Texts at the host: who writes them, and what becomes of them when a pipeline is lost, silent or not there at all.

use super::*;
use crate::coordinator::texts::Wanted;
use crate::limits::{
    TEXT_SILENCE_MAX, TEXT_TRIES_MAX, TEXT_WAIT_MAX, TEXTS_AT_HOST_MAX, TEXTS_MAX,
};
use crate::wire::generate::{Generate, Sampling};

fn wanted(tokens: &[u32], count: u32) -> Wanted {
    Wanted {
        tokens: tokens.to_vec(),
        count,
        sampling: Sampling {
            temperature: 0.5,
            top_p: 1.0,
            seed: 9,
        },
    }
}

impl Desk {
    fn want(&mut self, number: u64, wanted: Wanted) {
        self.host.handle_wanted(self.now, number, wanted);
        self.settle();
    }

    /// What heads are told to write since this was asked last.
    fn ordered(&mut self) -> Vec<(ConnectionId, Generate)> {
        let is_order =
            |(_, message): &mut (ConnectionId, Down)| matches!(message, Down::Generate(_));
        let orders = self.sent.extract_if(.., is_order);
        let orders = orders.filter_map(|(to, message)| {
            let Down::Generate(order) = message else {
                return None;
            };
            Some((to, *order))
        });
        orders.collect()
    }

    fn write(&mut self, (to, order): &(ConnectionId, Generate), drawn: u32, token: u32) {
        let up = Up::Written {
            place: order.place,
            request: order.request,
            drawn,
            token,
        };
        self.say(*to, up);
    }

    fn news(&mut self) -> Vec<(u64, TextNews)> {
        std::mem::take(&mut self.news)
    }

    fn given_up(&mut self) -> Vec<(u64, String)> {
        let news = self.news().into_iter();
        let given_up = news.filter_map(|(number, news)| match news {
            TextNews::GivenUp(reason) => Some((number, reason)),
            TextNews::Token(_) | TextNews::Over => None,
        });
        given_up.collect()
    }
}

/// A host with somebody at work.
fn at_work(volunteers: u8) -> Desk {
    let mut desk = Desk::new(config());
    for name in 1..=volunteers {
        desk.join(name);
    }
    desk.rounds(1);
    desk.pass(TICK);
    desk.ready();
    desk.sent.clear();
    desk
}

#[test]
fn a_text_is_written_by_a_head_while_rounds_go_on() {
    let mut desk = at_work(2);
    desk.want(5, wanted(&[1, 2], 3));
    let orders = desk.ordered();
    let [(to, order)] = &orders[..] else {
        panic!("{orders:?}");
    };
    assert_eq!(*to, desk.seats()[0].0);
    assert_eq!(
        (&order.tokens[..], order.drawn, order.count),
        (&[1, 2][..], 0, 3)
    );
    let order = (*to, order.clone());
    desk.write(&order, 0, 7);
    desk.write(&order, 0, 8);
    assert_eq!(desk.news(), [(5, TextNews::Token(7))], "each comes once");
    let round = desk.newest();
    desk.train(4.0);
    desk.pass(TICK);
    assert!(desk.newest() > round);
    desk.write(&order, 1, 256);
    desk.write(&order, 1, 8);
    desk.write(&order, 2, 9);
    let tokens = [TextNews::Token(8), TextNews::Token(9), TextNews::Over];
    assert_eq!(desk.news(), tokens.map(|news| (5, news)));
    desk.write(&order, 3, 9);
    assert_eq!(desk.news(), []);
}

#[test]
fn a_text_whose_pipeline_is_lost_is_gone_on_with_where_it_was() {
    let mut desk = at_work(3);
    desk.want(5, wanted(&[1, 2], 4));
    let first = desk.ordered().remove(0);
    desk.write(&first, 0, 7);
    let may_return = false;
    desk.say(first.0, Up::Leave { may_return });
    // Nobody else has its stages: the run goes back, and the text does not.
    desk.pass(Span::from_secs(20));
    desk.ready();
    desk.pass(TICK);
    let again = desk.ordered().remove(0);
    assert_ne!(again.0, first.0);
    let (tokens, drawn, count) = (&again.1.tokens[..], again.1.drawn, again.1.count);
    assert_eq!((tokens, drawn, count), (&[1, 2, 7][..], 1, 3));
    assert_eq!(again.1.sampling, first.1.sampling);
    // What still comes of the first try is of nobody's interest.
    let late = (again.0, first.1.clone());
    desk.write(&late, 1, 3);
    desk.write(&again, 1, 8);
    let told = [TextNews::Token(7), TextNews::Token(8)].map(|news| (5, news));
    assert_eq!(desk.news(), told);
}

#[test]
fn a_head_that_says_nothing_of_a_text_is_asked_again_and_at_last_it_is_given_up() {
    let mut desk = at_work(1);
    desk.want(5, wanted(&[1], 4));
    for _ in 1..TEXT_TRIES_MAX {
        assert_eq!(desk.ordered().len(), 1);
        // The pipeline is silent of its steps, too, and renewed before.
        desk.pass(TEXT_SILENCE_MAX + TICK);
        desk.ready();
    }
    let (_, last) = desk.ordered().remove(0);
    let head = desk.seats()[0].0;
    let reason = "why".to_owned();
    let up = Up::NotWritten {
        place: last.place,
        request: last.request,
        reason,
    };
    desk.say(head, up);
    let given_up = desk.given_up();
    assert!(given_up[0].1.contains("lost 4 times"), "{given_up:?}");
}

#[test]
fn where_nobody_can_write_it_is_said_why() {
    let mut desk = Desk::new(config());
    desk.want(5, wanted(&[1], 4));
    desk.pass(TEXT_WAIT_MAX + TICK);
    let given_up = desk.given_up();
    let [(5, reason)] = &given_up[..] else {
        panic!("{given_up:?}");
    };
    assert!(
        reason.starts_with("no pipeline of volunteers could take it"),
        "{reason}"
    );
}

#[test]
fn a_pipeline_writes_few_texts_at_a_time_and_a_host_takes_so_many() {
    let mut desk = at_work(1);
    let most = u64::try_from(TEXTS_AT_HOST_MAX).unwrap();
    for number in 0..=most {
        desk.want(number, wanted(&[1], 1));
    }
    let orders = desk.ordered();
    assert_eq!(orders.len(), TEXTS_MAX);
    assert!(desk.given_up()[0].1.contains("as many texts"));
    desk.write(&orders[0], 0, 1);
    assert_eq!(desk.news()[1], (0, TextNews::Over));
    // Whoever loses interest makes room, too, and the head hears of it.
    desk.host.handle_unwanted(desk.now, 1);
    desk.settle();
    let forgets = |(_, message): &(ConnectionId, Down)| matches!(message, Down::Forget { .. });
    assert_eq!(desk.sent.iter().filter(|it| forgets(it)).count(), 1);
    assert_eq!(desk.ordered().len(), 2);
}

#[test]
fn a_text_longer_than_the_context_is_told_from_its_window_on() {
    let mut desk = at_work(1);
    let context = desk.host.config().model.context;
    desk.want(5, wanted(&vec![1; context + 1], 1));
    let (_, order) = desk.ordered().remove(0);
    assert_eq!(order.tokens.len(), context / 2 + 1);
}
