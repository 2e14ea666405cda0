//! Storage of a set's pixels: in memory, in a mapped file, or in other sets.
//!
//! Subsets, splits and unions do not copy pixels: they are lists of indices. Only a request for all images of such a set in one
//! piece copies them.

use std::ops::{Deref, Range};
use std::sync::OnceLock;

use memmap2::Mmap;

use super::dataset::Dataset;

/// Bytes with a stable address.
#[derive(Debug)]
pub(super) enum Bytes {
    /// In memory.
    Owned(Vec<u8>),
    /// In a file: a data set's, or an unnamed one for the pixels of an import.
    Mapped(Mmap),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// The pixels of a set.
#[derive(Debug)]
pub(super) enum Storage {
    /// The images in sequence, in the order of the set.
    Whole(Bytes, Range<usize>),
    /// The images in sequence in another order, with the index of each.
    Ordered(Bytes, Vec<u32>, OnceLock<Vec<u8>>),
    /// Images of other sets: the set and the index of each.
    Of(Vec<Dataset>, Vec<(u32, u32)>, OnceLock<Vec<u8>>),
}

impl Storage {
    /// The bytes of `images` in memory.
    pub fn owned(images: Vec<u8>) -> Self {
        let len = images.len();
        Self::Whole(Bytes::Owned(images), 0..len)
    }

    /// Images of other sets.
    pub fn of(sets: Vec<Dataset>, places: Vec<(u32, u32)>) -> Self {
        Self::Of(sets, places, OnceLock::new())
    }

    /// Bytes of all images of `size` bytes.
    pub fn len(&self, size: usize) -> Option<usize> {
        match self {
            Self::Whole(_, range) => Some(range.len()),
            Self::Ordered(_, order, _) => order.len().checked_mul(size),
            Self::Of(_, places, _) => places.len().checked_mul(size),
        }
    }

    /// Image `index`, of `size` bytes.
    pub fn image(&self, index: usize, size: usize) -> &[u8] {
        match self {
            Self::Whole(bytes, range) => &bytes[range.clone()][index * size..][..size],
            Self::Ordered(bytes, order, _) => &bytes[order[index] as usize * size..][..size],
            Self::Of(sets, places, _) => {
                let (set, index) = places[index];
                sets[set as usize].image(index as usize)
            }
        }
    }

    /// All images in one piece, if they are contiguous.
    pub fn whole(&self) -> Option<&[u8]> {
        match self {
            Self::Whole(bytes, range) => Some(&bytes[range.clone()]),
            Self::Ordered(..) | Self::Of(..) => None,
        }
    }

    /// All images, of `size` bytes each, in one piece: copied into memory, once, unless they are contiguous.
    pub fn gathered(&self, size: usize) -> &[u8] {
        match self {
            Self::Whole(bytes, range) => &bytes[range.clone()],
            Self::Ordered(_, order, all) => all.get_or_init(|| self.copied(order.len(), size)),
            Self::Of(_, places, all) => all.get_or_init(|| self.copied(places.len(), size)),
        }
    }

    fn copied(&self, count: usize, size: usize) -> Vec<u8> {
        let mut images = Vec::with_capacity(count * size);
        (0..count).for_each(|index| images.extend_from_slice(self.image(index, size)));
        images
    }
}
