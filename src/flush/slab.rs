//! Places for values that come and go, found again in constant time.
//!
//! A key is never valid again once its value was removed, though its place is reused.

use alloc::vec::Vec;

/// Where a value is, and which of the values that were ever there it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

/// Where a value is that is known to be there: half of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Index(u32);

impl Key {
    pub(super) const fn index(self) -> Index {
        Index(self.index)
    }
}

/// Makes room for one more, and for few beyond: doubling would make idle connections pay for as
/// many that there are not.
pub(super) fn grow<V>(values: &mut Vec<V>) {
    if values.len() == values.capacity() {
        values.reserve_exact(8 + values.len() / 16);
    }
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
struct Place<V> {
    generation: u32,
    value: Option<V>,
}

#[derive(Clone, Debug)]
#[cfg_attr(test, derive(PartialEq, Eq, Hash))]
pub(super) struct Slab<V> {
    places: Vec<Place<V>>,
    free: Vec<u32>,
}

impl<V> Slab<V> {
    pub(super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
        }
    }

    pub(super) fn insert(&mut self, value: V) -> Key {
        if let Some(index) = self.free.pop()
            && let Some(place) = self.places.get_mut(index as usize)
        {
            place.value = Some(value);
            return Key {
                index,
                generation: place.generation,
            };
        }
        // 2^32 values at a time do not fit in memory, so that the index never wraps.
        let index = self.places.len() as u32;
        grow(&mut self.places);
        self.places.push(Place {
            generation: 0,
            value: Some(value),
        });
        Key {
            index,
            generation: 0,
        }
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<V> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let value = place.value.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// The key of the value that is there now.
    pub(super) fn key_at(&self, index: Index) -> Option<Key> {
        let place = self.places.get(index.0 as usize)?;
        place.value.as_ref()?;
        Some(Key {
            index: index.0,
            generation: place.generation,
        })
    }

    pub(super) fn at_mut(&mut self, index: Index) -> Option<&mut V> {
        self.places.get_mut(index.0 as usize)?.value.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &V)> {
        (0u32..).zip(&self.places).filter_map(|(index, place)| {
            let generation = place.generation;
            let value = place.value.as_ref()?;
            Some((Key { index, generation }, value))
        })
    }

    #[cfg(test)]
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.places.iter_mut().filter_map(|it| it.value.as_mut())
    }

    pub(super) fn get(&self, key: Key) -> Option<&V> {
        let place = self.places.get(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        place.value.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut V> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        place.value.as_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_find_the_next_value_in_its_place() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        assert_eq!(slab.remove(a), Some('a'));
        let b = slab.insert('b');
        assert_eq!(a.index, b.index);
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(b), Some(&'b'));
    }
}
