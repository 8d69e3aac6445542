//! Who is linked to, and who makes room, where there are as many links as there may be.

use super::*;
use crate::limits::{FETCH_SILENCE_MAX, LINKS_MAX};

/// As many links as there may be, all to strangers.
fn full(alone: &mut Alone) {
    for stranger in 100.. {
        if alone.peer.links.len() == LINKS_MAX {
            return;
        }
        alone.signal(stranger, LinkSignal::Again { generation: 0 });
    }
}

#[test]
fn neighbours_and_sources_replace_links_of_no_use() {
    let mut alone = Alone::joined(1);
    alone.link(7);
    full(&mut alone);
    alone.outputs();
    alone.after(Span::from_micros(1));
    alone.signal(100, LinkSignal::Again { generation: 0 });
    alone.copy(0, 8);
    alone.seat(Some(9), Some(10));
    let is_linked = |alone: &Alone, peer| alone.peer.links.contains_key(&PeerId(peer));
    assert!([8, 9, 10].iter().all(|peer| is_linked(&alone, *peer)));
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
    let outputs = alone.outputs();
    // Those that were not used for longest.
    for gone in [7, 101, 102] {
        assert!(outputs.contains(&Output::Link(PeerId(gone), LinkStep::Close)));
        assert!(!is_linked(&alone, gone));
    }
    let byes = outputs.iter().filter(|output| {
        let Output::Frame(to, frame) = output else {
            return false;
        };
        *to == PeerId(7) && frame.header.kind() == "bye"
    });
    assert_eq!(byes.count(), 1, "the link that was up");
    assert!(alone.peer.stats().links.is_empty(), "nor is it counted on");
}

#[test]
fn strangers_replace_no_link_that_is_of_use() {
    let mut alone = Alone::joined(1);
    alone.seat(Some(9), Some(10));
    alone.copy(0, 8);
    alone.link(7);
    full(&mut alone);
    alone.after(Span::from_secs(1));
    alone.frame(7, state_request(0));
    let stranger = |alone: &mut Alone, number| {
        alone.signal(number, LinkSignal::Again { generation: 0 });
        assert!(alone.peer.links.contains_key(&PeerId(number)), "{number}");
    };
    for number in 1_000..1_200 {
        stranger(&mut alone, number);
    }
    let linked = |alone: &Alone| [7, 8, 9, 10].map(|it| alone.peer.links.contains_key(&PeerId(it)));
    assert_eq!(linked(&alone), [true; 4]);
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
    // Who has not asked for anything for a while takes nothing.
    alone.now = alone.now + FETCH_SILENCE_MAX;
    for number in 2_000..2_200 {
        stranger(&mut alone, number);
    }
    assert_eq!(linked(&alone), [false, true, true, true]);
}

#[test]
fn where_all_links_are_of_use_a_stranger_gets_none() {
    let mut alone = Alone::joined(1);
    alone.link(7);
    alone.frame(7, state_request(0));
    for (stage, source) in (0..).zip(200..263) {
        alone.copy(stage, source);
    }
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
    let is_linked = |alone: &Alone, peer| alone.peer.links.contains_key(&PeerId(peer));
    alone.signal(100, LinkSignal::Again { generation: 0 });
    assert!(!is_linked(&alone, 100) && is_linked(&alone, 7));
    // A source goes before who takes from us, a neighbour before both.
    alone.copy(63, 263);
    assert!(is_linked(&alone, 263) && !is_linked(&alone, 7));
    alone.copy(64, 264);
    assert!(!is_linked(&alone, 264));
    alone.seat(Some(9), Some(10));
    assert!(is_linked(&alone, 9) && is_linked(&alone, 10));
    assert_eq!(alone.peer.links.len(), LINKS_MAX);
}

#[test]
fn a_link_that_made_room_is_offered_under_a_new_number() {
    let mut alone = Alone::joined(1);
    for _ in 0..3 {
        alone.link(7);
    }
    let before = alone.peer.links[&PeerId(7)].generation();
    full(&mut alone);
    alone.after(Span::from_micros(1));
    for number in 100..163 {
        alone.signal(number, LinkSignal::Again { generation: 0 });
    }
    alone.signal(99, LinkSignal::Again { generation: 0 });
    assert!(!alone.peer.links.contains_key(&PeerId(7)));
    alone.outputs();
    alone.seat(Some(7), None);
    let offered = alone.outputs().into_iter().find_map(|output| {
        let Output::Link(PeerId(7), LinkStep::Offer { generation, .. }) = output else {
            return None;
        };
        Some(generation)
    });
    assert!(offered.unwrap() > before, "{offered:?} after {before}");
}
