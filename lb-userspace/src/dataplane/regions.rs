//! Which parts of an array map are in use: first fit, with neighbours merged when they become free.
//!
//! Pure bookkeeping. It never touches a map; what it says of a running data plane is rebuilt from the services that the
//! map names.

use std::collections::BTreeMap;

/// The free parts of an array of a fixed size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Regions {
    /// Offset to length; no two touch.
    free: BTreeMap<u32, u32>,
    capacity: u32,
}

impl Regions {
    /// An array of `capacity` elements, all free.
    pub fn new(capacity: u32) -> Self {
        let free = if capacity == 0 { BTreeMap::new() } else { BTreeMap::from([(0, capacity)]) };
        Self { free, capacity }
    }

    /// Elements in all.
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Elements in use.
    pub fn used(&self) -> u32 {
        self.capacity - self.free.values().sum::<u32>()
    }

    /// Takes the first region of `length` elements; an empty one needs no room. `None` where no gap is that long.
    pub fn allocate(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (&offset, &gap) = self.free.iter().find(|&(_, &gap)| gap >= length)?;
        self.take(offset, gap, offset, length);
        Some(offset)
    }

    /// Takes exactly this region; false where a part of it is in use or outside.
    pub fn reserve(&mut self, offset: u32, length: u32) -> bool {
        if length == 0 {
            return true;
        }
        let Some((&start, &gap)) = self.free.range(..=offset).next_back() else { return false };
        let fits = offset.checked_add(length).is_some_and(|end| end <= start + gap);
        if fits {
            self.take(start, gap, offset, length);
        }
        fits
    }

    fn take(&mut self, start: u32, gap: u32, offset: u32, length: u32) {
        self.free.remove(&start);
        if offset > start {
            self.free.insert(start, offset - start);
        }
        let (end, gap_end) = (offset + length, start + gap);
        if end < gap_end {
            self.free.insert(end, gap_end - end);
        }
    }

    /// Gives a region back.
    ///
    /// # Panics
    ///
    /// Where a part of it is free already: two owners of one region would be a defect that corrupts rings.
    pub fn free(&mut self, offset: u32, length: u32) {
        if length == 0 {
            return;
        }
        let (mut start, mut end) = (offset, offset + length);
        assert!(end <= self.capacity, "region {offset}+{length} is outside the array of {}", self.capacity);
        if let Some((&before, &gap)) = self.free.range(..end).next_back() {
            assert!(before + gap <= offset, "region {offset}+{length} is partly free already");
            if before + gap == offset {
                self.free.remove(&before);
                start = before;
            }
        }
        if let Some(gap) = self.free.remove(&end) {
            end += gap;
        }
        self.free.insert(start, end - start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fills_gaps_and_merges() {
        let mut regions = Regions::new(100);
        let (a, b, c) = (regions.allocate(40), regions.allocate(20), regions.allocate(40));
        assert_eq!((a, b, c), (Some(0), Some(40), Some(60)));
        assert_eq!(regions.allocate(1), None);
        regions.free(0, 40);
        regions.free(60, 40);
        assert_eq!(regions.allocate(41), None, "the gaps do not touch");
        regions.free(40, 20);
        assert_eq!(regions, Regions::new(100));
    }

    #[test]
    fn reserves_only_what_is_free() {
        let mut regions = Regions::new(10);
        assert!(regions.reserve(3, 4));
        assert!(!regions.reserve(6, 2) && !regions.reserve(2, 2) && !regions.reserve(9, 2));
        assert!(!regions.reserve(u32::MAX, 2));
        assert!(regions.reserve(0, 3) && regions.reserve(7, 3));
        assert_eq!(regions.used(), 10);
    }

    proptest! {
        /// Against a vector of owners: no element has two, and all of them come back.
        #[test]
        fn never_hands_an_element_out_twice(steps in prop::collection::vec((0u32..12, any::<prop::sample::Index>()), 1..200)) {
            let mut regions = Regions::new(64);
            let mut owners = [false; 64];
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (length, pick) in steps {
                if length == 0 && !held.is_empty() {
                    let (offset, length) = held.swap_remove(pick.index(held.len()));
                    regions.free(offset, length);
                    owners[offset as usize..(offset + length) as usize].fill(false);
                } else if length > 0 {
                    let fits = owners.split(|&used| used).any(|gap| gap.len() >= length as usize);
                    let got = regions.allocate(length);
                    prop_assert_eq!(got.is_some(), fits);
                    if let Some(offset) = got {
                        for owner in &mut owners[offset as usize..(offset + length) as usize] {
                            prop_assert!(!std::mem::replace(owner, true));
                        }
                        held.push((offset, length));
                    }
                }
                prop_assert_eq!(regions.used() as usize, owners.iter().filter(|&&used| used).count());
            }
            for (offset, length) in held {
                regions.free(offset, length);
            }
            prop_assert_eq!(regions, Regions::new(64));
        }
    }
}
