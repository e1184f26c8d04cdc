//! Places that are linked to each other: lists without memory of their own.

use alloc::vec::Vec;

/// The number of a place that there is not.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The neighbours of a place in the list that it is in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    earlier: u32,
    later: u32,
}

impl Links {
    pub(super) const NONE: Self = Self {
        earlier: NOWHERE,
        later: NOWHERE,
    };
}

/// What can be in a list, in one at a time.
pub(super) trait Linked {
    fn links(&mut self) -> &mut Links;
}

/// The ends of a list of places, the earliest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    first: u32,
    last: u32,
}

impl List {
    pub(super) const EMPTY: Self = Self {
        first: NOWHERE,
        last: NOWHERE,
    };

    pub(super) const fn first(&self) -> u32 {
        self.first
    }

    pub(super) const fn last(&self) -> u32 {
        self.last
    }

    pub(super) fn push<T: Linked>(&mut self, places: &mut [T], at: u32) {
        let Some(place) = places.get_mut(at as usize) else {
            return;
        };
        *place.links() = Links {
            earlier: self.last,
            later: NOWHERE,
        };
        match places.get_mut(self.last as usize) {
            Some(last) => last.links().later = at,
            None => self.first = at,
        }
        self.last = at;
    }

    pub(super) fn remove<T: Linked>(&mut self, places: &mut [T], at: u32) {
        let Some(place) = places.get_mut(at as usize) else {
            return;
        };
        let Links { earlier, later } = core::mem::replace(place.links(), Links::NONE);
        match places.get_mut(earlier as usize) {
            Some(place) => place.links().later = later,
            None => self.first = later,
        }
        match places.get_mut(later as usize) {
            Some(place) => place.links().earlier = earlier,
            None => self.last = earlier,
        }
    }
}

/// Places of which those that are free are found in constant time.
#[derive(Clone, Debug)]
pub(super) struct Places<T> {
    places: Vec<T>,
    free: Vec<u32>,
}

impl<T> Places<T> {
    pub(super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    /// A free place; `None` if there are as many as can be counted.
    pub(super) fn take(&mut self, new: impl FnOnce() -> T) -> Option<u32> {
        if let Some(at) = self.free.pop() {
            return Some(at);
        }
        let at = u32::try_from(self.places.len()).ok()?;
        if at == NOWHERE {
            return None;
        }
        self.places.push(new());
        Some(at)
    }

    pub(super) fn give_back(&mut self, at: u32) {
        self.free.push(at);
    }

    pub(super) fn get(&self, at: u32) -> Option<&T> {
        self.places.get(at as usize)
    }

    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.places.get_mut(at as usize)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.places)
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.places
    }
}
