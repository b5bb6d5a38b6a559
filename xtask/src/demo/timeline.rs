//! Which rings a service had and when, and so which backends a slot can have belonged to at a time.
//!
//! The agent is asked every now and then, so the moment of a change is known only as a window: from the last question
//! before it to the first answer after it. Inside the window either ring may have been in force, and nothing here may
//! pretend to know better.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result};
use lb_userspace::ring::{self, Candidate};

/// A backend for the rings: its name and weight.
#[derive(Clone, Debug)]
pub(super) struct Weighted {
    /// Its name.
    pub name: String,
    /// Its weight while it takes packets.
    pub weight: u16,
}

/// The rings of one service over time.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    slots: u32,
    backends: Vec<Weighted>,
    epochs: Vec<Epoch>,
    last_asked: Option<Instant>,
}

/// A time with one ring.
#[derive(Clone, Debug)]
struct Epoch {
    /// Which backends the ring holds.
    holds: Vec<bool>,
    /// Owner of each slot.
    owners: Vec<u16>,
    /// The ring was not there before; `None`: from the beginning.
    from: Option<Instant>,
    /// The ring was not there after; `None`: it is there now.
    until: Option<Instant>,
}

impl Timeline {
    /// A service with so many slots and these backends, of whose rings nothing is known yet.
    pub(super) fn new(slots: u32, backends: Vec<Weighted>) -> Self {
        Self { slots, backends, epochs: Vec::new(), last_asked: None }
    }

    /// Slots of the ring.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// Backends by name, for people.
    pub(super) fn names(&self, backends: impl IntoIterator<Item = usize>) -> String {
        let names = backends.into_iter().filter_map(|index| self.backends.get(index));
        names.map(|backend| backend.name.as_str()).collect::<Vec<_>>().join(" or ")
    }

    /// Notes which backends the ring holds, as answered at `answered` to a question asked at `asked`.
    pub(super) fn note(&mut self, asked: Instant, answered: Instant, holds: &[bool]) -> Result<()> {
        let before = self.last_asked.replace(asked);
        if let Some(last) = self.epochs.last_mut() {
            if last.holds == holds {
                return Ok(());
            }
            last.until = Some(answered);
        }
        let candidates: Vec<_> = (0_u16..)
            .zip(self.backends.iter().zip(holds))
            .map(|(index, (backend, &held))| Candidate {
                name: &backend.name,
                index,
                weight: if held { backend.weight.into() } else { 0 },
            })
            .collect();
        let owners = ring::build(&candidates, self.slots).context("cannot build the ring anew")?;
        self.epochs.push(Epoch { holds: holds.to_vec(), owners, from: before, until: None });
        Ok(())
    }

    /// Slots that each backend owns in the ring of now.
    pub(super) fn slots_owned(&self) -> Vec<u32> {
        let mut owned = vec![0; self.backends.len()];
        for &owner in self.epochs.last().map_or(&[][..], |epoch| &epoch.owners) {
            owned[usize::from(owner)] += 1;
        }
        owned
    }

    /// Whether what happened at `time` can be judged: all rings that were in force then are known.
    pub(super) fn covers(&self, time: Instant) -> bool {
        self.last_asked.is_some_and(|asked| asked >= time)
    }

    /// Backends that can have owned a slot at some moment between two others.
    pub(super) fn owners(&self, slot: u32, from: Instant, to: Instant) -> BTreeSet<usize> {
        let in_force = |epoch: &&Epoch| {
            epoch.from.is_none_or(|begin| begin <= to) && epoch.until.is_none_or(|end| end >= from)
        };
        let owners = self.epochs.iter().filter(in_force).filter_map(|epoch| epoch.owners.get(slot as usize));
        owners.map(|&owner| owner.into()).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;

    const SLOTS: u32 = 1009;

    pub(in crate::demo) fn three() -> Timeline {
        let backends = ["a", "b", "c"].map(|name| Weighted { name: name.into(), weight: 100 });
        Timeline::new(SLOTS, backends.into())
    }

    /// A slot of each kind: moves with backend 2, moves although neither of its owners is backend 2, never moves.
    pub(in crate::demo) fn slots() -> [u32; 3] {
        let now = Instant::now();
        let (mut all, mut without) = (three(), three());
        all.note(now, now, &[true; 3]).unwrap();
        without.note(now, now, &[true, true, false]).unwrap();
        let owner = |timeline: &Timeline, slot| *timeline.owners(slot, now, now).first().unwrap();
        let find = |wanted: &dyn Fn(usize, usize) -> bool| {
            (0..SLOTS).find(|&slot| wanted(owner(&all, slot), owner(&without, slot))).unwrap()
        };
        [
            find(&|before, _| before == 2),
            find(&|before, after| before != 2 && before != after),
            find(&|before, after| before == after),
        ]
    }

    #[test]
    fn owners_are_uncertain_only_inside_the_window_of_a_change() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timeline = three();
        timeline.note(at(10), at(11), &[true; 3]).unwrap();
        timeline.note(at(20), at(21), &[true; 3]).unwrap();
        timeline.note(at(30), at(31), &[true, true, false]).unwrap();
        let [moves, _, stays] = slots();
        let owners = |from, to| timeline.owners(moves, at(from), at(to));
        assert_eq!(owners(5, 19), [2].into());
        assert_eq!(owners(22, 25).len(), 2, "the change may have been any time from 20 to 31");
        assert_eq!(owners(5, 60).len(), 2);
        assert!(!owners(32, 60).contains(&2));
        assert_eq!(timeline.owners(stays, at(5), at(60)).len(), 1);
        assert!(timeline.covers(at(30)) && !timeline.covers(at(31)));
    }

    #[test]
    fn the_ring_of_now_is_counted() {
        let now = Instant::now();
        let mut timeline = three();
        assert_eq!(timeline.slots_owned(), [0; 3]);
        timeline.note(now, now, &[true, true, false]).unwrap();
        let owned = timeline.slots_owned();
        assert_eq!((owned[2], owned.iter().sum::<u32>()), (0, SLOTS));
    }
}
