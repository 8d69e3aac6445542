//! What clipping takes of all stages, where gradients are merged: the squared norm goes up the pipe, from the last stage to
//! the first, and what clipping multiplies by comes back down.
//!
//! Stages are added one by one in the same order however they are cut into seats, so all heads of a merge find the
//! same bits, and no two pipelines need to talk about it.

use crate::compute::clip_scale;
use crate::units::PeerId;

/// What goes to a neighbour in the pipe.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Told {
    /// To the seat before: the sum from here to the last stage.
    Norm(PeerId, f64),
    /// To the seat after: what clipping multiplies by.
    Scale(PeerId, f32),
}

/// One seat's place in its pipe during a merge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pipe {
    /// The seat before; none at the head.
    pub previous: Option<PeerId>,
    /// The seat after; none at the last one.
    pub next: Option<PeerId>,
    /// Norm above which gradients are scaled down.
    pub clip: f64,
    /// Samples of the run before the step.
    pub samples_done: u64,
    behind: Option<f64>,
    has_told: bool,
    scale: Option<f32>,
}

impl Pipe {
    /// Nothing is known yet but that nothing is behind the last seat.
    pub fn new(
        (previous, next): (Option<PeerId>, Option<PeerId>),
        clip: f64,
        samples_done: u64,
    ) -> Self {
        Self {
            previous,
            next,
            clip,
            samples_done,
            behind: next.is_none().then_some(0.0),
            has_told: false,
            scale: None,
        }
    }

    /// Scale and samples done, once they are known.
    pub(super) fn update(&self) -> Option<(f32, u64)> {
        Some((self.scale?, self.samples_done))
    }

    /// Whether anything must still come from `peer`.
    pub(super) fn needs(&self, peer: PeerId) -> bool {
        let behind = self.next == Some(peer) && self.behind.is_none();
        behind || self.previous == Some(peer) && self.scale.is_none()
    }

    /// The sum of all stages behind this seat. `false` if it is not `peer`'s to say.
    pub(super) fn handle_norm(&mut self, peer: PeerId, norm_squared: f64) -> bool {
        let is_next = self.next == Some(peer);
        if is_next {
            self.behind.get_or_insert(norm_squared);
        }
        is_next
    }

    /// What all gradients are multiplied by. `false` if it is not `peer`'s to say.
    pub(super) fn handle_scale(&mut self, peer: PeerId, scale: f32) -> Option<Told> {
        // Nobody knows it before our own norm went up.
        let is_due = self.previous == Some(peer) && self.has_told && self.scale.is_none();
        is_due.then(|| self.scale_known(scale))?
    }

    fn scale_known(&mut self, scale: f32) -> Option<Told> {
        self.scale = Some(scale);
        self.next.map(|next| Told::Scale(next, scale))
    }

    /// The squared norms of this seat's stages are known, in order of stages: what that comes to.
    pub(super) fn handle_own(&mut self, norms: &[f64]) -> Option<Told> {
        let behind = self.behind.filter(|_| !self.has_told)?;
        self.has_told = true;
        let sum = norms.iter().rev().fold(behind, |sum, norm| sum + norm);
        match self.previous {
            Some(previous) => Some(Told::Norm(previous, sum)),
            None => self.scale_known(clip_scale(self.clip, sum.sqrt())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the seats of a pipe tell each other, until nothing more is told.
    fn scales(seats: &[&[f64]], clip: f64) -> Vec<Option<f32>> {
        let peer = |at: usize| PeerId(at as u64);
        let at = |at: usize| {
            let previous = at.checked_sub(1).map(peer);
            let next = (at + 1 < seats.len()).then(|| peer(at + 1));
            Pipe::new((previous, next), clip, 7)
        };
        let mut pipes: Vec<Pipe> = (0..seats.len()).map(at).collect();
        for turn in 0..2 * seats.len() {
            let told: Vec<(usize, Told)> = pipes
                .iter_mut()
                .enumerate()
                .filter_map(|(at, pipe)| Some((at, pipe.handle_own(seats[at])?)))
                .collect();
            let mut told = std::collections::VecDeque::from(told);
            while let Some((from, told_now)) = told.pop_front() {
                match told_now {
                    Told::Norm(to, norm) => {
                        assert!(
                            pipes[usize::try_from(to.0).expect("few")]
                                .handle_norm(peer(from), norm)
                        );
                    }
                    Told::Scale(to, scale) => {
                        let to = usize::try_from(to.0).expect("few");
                        let next = pipes[to].handle_scale(peer(from), scale);
                        told.extend(next.map(|next| (to, next)));
                    }
                }
            }
            assert!(turn < 2 * seats.len());
        }
        pipes.iter().map(|pipe| pipe.scale).collect()
    }

    #[test]
    fn all_seats_clip_by_the_norm_over_all_stages_however_they_are_cut() {
        let norms = [0.1, 1e-9, 3.7, 1e9, 0.3];
        let whole = scales(&[&norms], 1.0);
        assert!(whole[0].is_some_and(|scale| scale < 1e-4));
        for cut in 1..norms.len() {
            let (one, other) = norms.split_at(cut);
            assert_eq!(scales(&[one, other], 1.0), [whole[0]; 2], "cut at {cut}");
        }
        let apart: Vec<&[f64]> = norms.chunks(1).collect();
        assert_eq!(scales(&apart, 1.0), [whole[0]; 5]);
        assert_eq!(scales(&[&[0.25], &[0.25]], 1.0), [Some(1.0); 2]);
    }

    #[test]
    fn only_neighbours_say_what_is_theirs_to_say() {
        let (before, after) = (PeerId(1), PeerId(3));
        let mut pipe = Pipe::new((Some(before), Some(after)), 1.0, 0);
        assert!(!pipe.handle_norm(before, 1.0));
        assert_eq!(
            pipe.handle_scale(before, 0.5),
            None,
            "before our norm went up"
        );
        assert!(pipe.handle_norm(after, 1.0));
        assert!(pipe.needs(before) && !pipe.needs(after));
        assert_eq!(pipe.handle_own(&[2.0]), Some(Told::Norm(before, 3.0)));
        assert_eq!(pipe.handle_scale(after, 0.5), None);
        assert_eq!(pipe.update(), None);
        assert_eq!(
            pipe.handle_scale(before, 0.5),
            Some(Told::Scale(after, 0.5))
        );
        assert_eq!(pipe.update(), Some((0.5, 0)));
    }
}
