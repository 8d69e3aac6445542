//! Transfers that a test answers: by holders that have the blob, another one, or nothing.

use proptest::prelude::*;

use super::*;
use crate::units::{Round, StageId};

fn peer(peer: u64, blob: &[u8]) -> Source {
    Source::Peer {
        peer: PeerId(peer),
        blob: Digest::of(blob),
    }
}

fn store(blob: &[u8]) -> Source {
    Source::Store {
        path: "blobs/x".to_owned(),
        blob: Digest::of(blob),
    }
}

fn fetch(blob: &[u8], sources: Vec<Source>) -> Transfer {
    let held = Held {
        round: Round(3),
        stage: StageId(1),
        agreed: Digest::default(),
        blob: Digest::of(blob),
    };
    Transfer::new(Time::ZERO, Fetch { held, sources })
}

/// A blob of so many pieces and some bytes.
fn blob(pieces: usize) -> Vec<u8> {
    (0..STATE_CHUNK_BYTES * pieces + 17)
        .map(|i| (i / 7).to_le_bytes()[0])
        .collect()
}

/// What a holder does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// It answers.
    Right,
    /// It answers with other bytes.
    Wrong,
    /// It answers so often, then its link breaks.
    Leaves(usize),
    /// It answers nothing.
    Silent,
    /// It says that the blob is longer.
    Longer,
    /// It says another length each time.
    Fickle,
}

/// A transfer, its holders, and what was asked of whom.
struct Served {
    transfer: Transfer,
    holders: BTreeMap<PeerId, Holds>,
    now: Time,
    waiting: Vec<(PeerId, u64)>,
    asked: Vec<(PeerId, u64)>,
    arrived: BTreeSet<u64>,
}

impl Served {
    fn new(transfer: Transfer, holders: &[(u64, Holds)]) -> Self {
        Self {
            transfer,
            holders: holders
                .iter()
                .map(|(peer, holds)| (PeerId(*peer), *holds))
                .collect(),
            now: Time::ZERO,
            waiting: Vec::new(),
            asked: Vec::new(),
            arrived: BTreeSet::new(),
        }
    }

    /// Carries out what the transfer wants; returns what ends it, or needs somebody else.
    fn settle(&mut self) -> Option<FetchOutput> {
        while let Some(output) = self.transfer.poll_output() {
            match output {
                FetchOutput::Link(peer) => self.transfer.handle_link(self.now, peer),
                FetchOutput::Request { peer, offset } => {
                    self.asked.push((peer, offset));
                    self.waiting.push((peer, offset));
                }
                last @ (FetchOutput::Download(_)
                | FetchOutput::Complete(_)
                | FetchOutput::Exhausted) => return Some(last),
            }
            let of = |peer: PeerId| self.waiting.iter().filter(|(of, _)| *of == peer).count();
            let most = self.holders.keys().map(|peer| of(*peer)).max();
            // Where one lied about the length, what was asked of all may still be on its way.
            let most_ahead = STATE_CHUNKS_AHEAD as usize * if self.is_lied_to() { 2 } else { 1 };
            assert!(most <= Some(most_ahead), "{most:?}");
        }
        None
    }

    fn is_lied_to(&self) -> bool {
        let lies = |it: &Holds| matches!(it, Holds::Longer | Holds::Fickle);
        self.holders.values().any(lies)
    }

    /// Answers request `at` of those that wait; time passes where nobody answers.
    fn answer(&mut self, at: usize, blob: &[u8]) {
        let (peer, offset) = self.waiting.remove(at);
        let first = usize::try_from(offset).unwrap();
        let mut blob = blob.to_vec();
        let longer = match self.holders.get(&peer) {
            Some(Holds::Longer) => 1,
            Some(Holds::Fickle) => 1 + self.asked.len() % 3,
            Some(Holds::Right | Holds::Wrong | Holds::Leaves(_) | Holds::Silent) | None => 0,
        };
        blob.extend(vec![0; longer * STATE_CHUNK_BYTES]);
        let mut piece = blob[first..blob.len().min(first + STATE_CHUNK_BYTES)].to_vec();
        match self.holders.get_mut(&peer) {
            Some(Holds::Silent) => return,
            Some(Holds::Leaves(0)) | None => {
                self.waiting.retain(|(of, _)| *of != peer);
                return self.transfer.handle_lost(self.now, peer);
            }
            Some(Holds::Leaves(left)) => *left -= 1,
            Some(Holds::Wrong) => piece[0] ^= 1,
            Some(Holds::Right | Holds::Longer | Holds::Fickle) => {}
        }
        self.arrived.insert(offset);
        let total = blob.len() as u64;
        self.transfer
            .handle_piece(self.now, peer, offset, total, &piece);
    }

    /// Answers everything, which of the waiting ones first as `pick` says; returns what ends it.
    fn serve(&mut self, blob: &[u8], mut pick: impl FnMut(usize) -> usize) -> Option<FetchOutput> {
        loop {
            let last = self.settle();
            if last.is_some() {
                return last;
            }
            if self.waiting.is_empty() {
                self.now = self.transfer.poll_timeout()?;
                self.transfer.handle_timeout(self.now);
            } else {
                self.answer(pick(self.waiting.len()), blob);
            }
        }
    }

    fn asked_of(&self, peer: u64) -> usize {
        let of = self.asked.iter().filter(|(of, _)| *of == PeerId(peer));
        of.count()
    }
}

#[test]
fn pieces_in_any_order_make_the_blob() {
    let blob = blob(20);
    let transfer = fetch(&blob, vec![peer(7, &blob)]);
    let mut served = Served::new(transfer, &[(7, Holds::Right)]);
    let last = served.serve(&blob, |waiting| waiting - 1);
    assert_eq!(last, Some(FetchOutput::Complete(Bytes::from(blob))));
}

#[test]
fn a_source_with_another_blob_is_not_believed() {
    let blob = blob(0);
    let transfer = fetch(&blob, vec![peer(7, &blob), store(&blob)]);
    let mut served = Served::new(transfer, &[(7, Holds::Wrong)]);
    let last = served.serve(&blob, |_| 0);
    assert_eq!(last, Some(FetchOutput::Download("blobs/x".to_owned())));
    served.transfer.handle_download(Time::ZERO, None);
    assert_eq!(served.settle(), Some(FetchOutput::Exhausted));
}

#[test]
fn a_silent_source_is_left_for_the_next() {
    let mut transfer = fetch(b"x", vec![peer(7, b"x"), peer(8, b"y")]);
    assert_eq!(transfer.poll_output(), Some(FetchOutput::Link(PeerId(7))));
    assert_eq!(transfer.poll_output(), None, "the other has another blob");
    transfer.handle_timeout(transfer.poll_timeout().unwrap());
    assert_eq!(transfer.poll_output(), Some(FetchOutput::Link(PeerId(8))));
    assert_eq!(transfer.held().blob, Digest::of(b"y"));
}

#[test]
fn holders_of_one_blob_serve_it_together_and_no_piece_twice() {
    let blob = blob(60);
    let sources = (1..=4).map(|number| peer(number, &blob)).collect();
    let holders: Vec<(u64, Holds)> = (1..=4).map(|peer| (peer, Holds::Right)).collect();
    let mut served = Served::new(fetch(&blob, sources), &holders);
    let last = served.serve(&blob, |_| 0);
    assert_eq!(last, Some(FetchOutput::Complete(Bytes::from(blob))));
    assert_eq!(served.asked.len(), 61);
    let of = [1, 2, 3, 4].map(|peer| served.asked_of(peer));
    assert!(of[..3].iter().all(|asked| *asked > 15), "{of:?}");
    assert_eq!(of[3], 0, "three are enough");
}

#[test]
fn who_leaves_or_falls_silent_loses_its_pieces_to_the_others_and_no_more() {
    let blob = blob(60);
    for gone in [Holds::Leaves(5), Holds::Silent] {
        let sources = (1..=4).map(|number| peer(number, &blob)).collect();
        let holders = [
            (1, Holds::Right),
            (2, gone),
            (3, Holds::Right),
            (4, Holds::Right),
        ];
        let mut served = Served::new(fetch(&blob, sources), &holders);
        let last = served.serve(&blob, |_| 0);
        assert_eq!(last, Some(FetchOutput::Complete(Bytes::from(blob.clone()))));
        // Asked again is at most what was on its way from it.
        let again = served.asked.len() - 61;
        assert!(
            (1..=STATE_CHUNKS_AHEAD as usize).contains(&again),
            "{gone:?}: {again}"
        );
        // The fourth takes its place; where the others have time they have done it all by then.
        assert!(served.asked_of(4) > 0 || gone == Holds::Silent);
    }
}

#[test]
fn a_liar_among_several_costs_no_more_than_asking_each_alone() {
    let blob = blob(30);
    let sources = (1..=3).map(|number| peer(number, &blob)).collect();
    let holders = [(1, Holds::Wrong), (2, Holds::Right), (3, Holds::Right)];
    let mut served = Served::new(fetch(&blob, sources), &holders);
    let last = served.serve(&blob, |_| 0);
    assert_eq!(last, Some(FetchOutput::Complete(Bytes::from(blob))));
    // Together, then of the liar, then of the next.
    assert_eq!(served.asked.len(), 3 * 31);
}

#[test]
fn who_lies_about_the_length_drives_no_honest_holder_away() {
    let blob = blob(30);
    let sources: Vec<Source> = (1..=3).map(|number| peer(number, &blob)).collect();
    for liar in [Holds::Longer, Holds::Fickle] {
        let holders = [(1, liar), (2, Holds::Right), (3, Holds::Silent)];
        let mut served = Served::new(fetch(&blob, Vec::clone(&sources)), &holders);
        // The liar answers first.
        let last = served.serve(&blob, |_| 0);
        assert_eq!(last, Some(FetchOutput::Complete(Bytes::from(blob.clone()))));
    }
}

fn any_holds() -> impl Strategy<Value = Holds> {
    prop_oneof![
        Just(Holds::Right),
        Just(Holds::Wrong),
        Just(Holds::Silent),
        Just(Holds::Longer),
        Just(Holds::Fickle),
        (0..20_usize).prop_map(Holds::Leaves),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn one_that_has_it_is_enough_whoever_else_is_asked(
        others in proptest::collection::vec(any_holds(), 0..5),
        at in any::<prop::sample::Index>(),
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 1..20),
    ) {
        let blob = blob(25);
        let mut holds = others;
        let at = at.index(holds.len() + 1);
        holds.insert(at, Holds::Right);
        let holders: Vec<(u64, Holds)> = (1..).zip(holds).collect();
        let sources = holders.iter().map(|(number, _)| peer(*number, &blob)).collect();
        let mut served = Served::new(fetch(&blob, sources), &holders);
        let mut picks = picks.iter().cycle();
        let pick = |waiting| picks.next().expect("without end").index(waiting);
        let last = served.serve(&blob, pick);
        prop_assert_eq!(last, Some(FetchOutput::Complete(Bytes::from(blob))));
    }
}
