//! A part of a stage's merge, put together from slices.
//!
//! Memory is taken by bytes received, never by what a peer announces. A slice fits by its offset and length, or it is
//! refused; the same slice again has no effect.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::limits::MERGE_SLICE_BYTES;

/// A part that has come, or is on its way.
#[derive(Clone, Debug)]
pub(super) struct Part {
    bytes: usize,
    /// By offset.
    slices: BTreeMap<u64, Bytes>,
}

impl Part {
    /// One of that length, of which nothing is here. An empty one is whole at once.
    pub(super) fn expected(bytes: usize) -> Self {
        Self {
            bytes,
            slices: BTreeMap::new(),
        }
    }

    /// Slices that it is cut into.
    pub(super) fn count(bytes: usize) -> u64 {
        bytes.div_ceil(MERGE_SLICE_BYTES) as u64
    }

    /// The slices of a whole part, with their offsets.
    pub(super) fn cut(part: &Bytes) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        let offsets = (0..part.len()).step_by(MERGE_SLICE_BYTES);
        offsets.map(|offset| {
            let end = part.len().min(offset + MERGE_SLICE_BYTES);
            (offset as u64, part.slice(offset..end))
        })
    }

    /// All of it is here: our own.
    ///
    /// # Panics
    /// If it is not as long as expected.
    pub(super) fn fill(&mut self, part: &Bytes) {
        assert_eq!(part.len(), self.bytes, "a part is as long as it is cut");
        self.slices = Self::cut(part).collect();
    }

    /// Takes a slice. `false` if it was here already.
    pub(super) fn take(&mut self, offset: u64, slice: Bytes) -> Result<bool, &'static str> {
        let first = usize::try_from(offset).ok();
        let expected = first
            .filter(|first| first.is_multiple_of(MERGE_SLICE_BYTES) && *first < self.bytes)
            .map(|first| (self.bytes - first).min(MERGE_SLICE_BYTES));
        if expected != Some(slice.len()) {
            return Err("a slice that is not cut as agreed");
        }
        match self.slices.get(&offset) {
            Some(known) if *known == slice => Ok(false),
            Some(_) => Err("a slice that differs from what it sent before"),
            None => {
                self.slices.insert(offset, slice);
                Ok(true)
            }
        }
    }

    /// Whether all of it is here.
    pub(super) fn is_whole(&self) -> bool {
        self.slices.len() as u64 == Self::count(self.bytes)
    }

    /// The part, which is whole.
    pub(super) fn whole(&self) -> Bytes {
        debug_assert!(self.is_whole(), "asked for once it is");
        match self.slices.first_key_value() {
            Some((_, only)) if self.slices.len() == 1 => only.clone(),
            Some(_) | None => {
                let slices: Vec<Bytes> = self.slices.values().cloned().collect();
                slices.concat().into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_what_comes_twice_is_nothing() {
        let whole = Bytes::from(vec![7; MERGE_SLICE_BYTES + 3]);
        let mut part = Part::expected(whole.len());
        let slices: Vec<(u64, Bytes)> = Part::cut(&whole).collect();
        let (offset, last) = slices[1].clone();
        for (offset, slice) in [
            (1, slices[0].1.clone()),
            (0, last.clone()),
            (offset, slices[0].1.clone()),
            (2 * offset, last.clone()),
            (u64::MAX, last.clone()),
        ] {
            assert!(part.take(offset, slice).is_err(), "at {offset}");
        }
        assert_eq!(part.take(offset, last.clone()), Ok(true));
        assert_eq!(part.take(offset, last), Ok(false));
        assert!(
            part.take(offset, Bytes::from_static(b"abc")).is_err(),
            "other bytes"
        );
        assert!(!part.is_whole());
        assert_eq!(part.take(0, slices[0].1.clone()), Ok(true));
        assert!(part.is_whole());
        assert_eq!(part.whole(), whole);
    }

    proptest! {
        #[test]
        fn slices_in_any_order_make_the_part(
            bytes in 0..4 * MERGE_SLICE_BYTES,
            first in any::<prop::sample::Index>(),
        ) {
            let whole: Bytes = (0..bytes).map(|byte| byte.to_le_bytes()[1]).collect();
            let mut slices: Vec<(u64, Bytes)> = Part::cut(&whole).collect();
            if !slices.is_empty() {
                let first = first.index(slices.len());
                slices.rotate_left(first);
            }
            let mut part = Part::expected(bytes);
            for (offset, slice) in slices {
                prop_assert!(!part.is_whole());
                prop_assert_eq!(part.take(offset, slice), Ok(true));
            }
            prop_assert!(part.is_whole());
            prop_assert_eq!(part.whole(), whole);
        }
    }
}
