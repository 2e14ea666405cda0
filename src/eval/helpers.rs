//! An evaluation shared by several processes: rank 0 reads, combines and writes; the others compute on its commands.
//!
//! Features of a picture and samples of a seed do not depend on the process that computes them. Rank 0 has the same rows as a
//! single process, in the same order, for any number of processes, and it alone has the files. A stopped evaluation can resume
//! with another number of processes.

use std::ops::Range;
use std::sync::Arc;

use super::Extractor;
use crate::cluster::{Collective, Moving};
use crate::error::{Error, Result};
use crate::picture::Image;

/// Tag of a feature extraction command; other commands of a team begin with smaller numbers.
pub const EXTRACT: u8 = 32;

/// Bytes before a picture's pixels: width, height, channels.
const HEAD: usize = 12;

/// A rank's part of `count` items.
pub fn share(count: usize, rank: usize, ranks: usize) -> Range<usize> {
    let each = count.div_ceil(ranks);
    (rank * each).min(count)..((rank + 1) * each).min(count)
}

/// Combines the rows of all ranks; each has its [`share`] of `count`, with `width` numbers per row.
///
/// # Errors
/// [`Error::Cluster`] if another process is gone.
pub fn gathered<T: bytemuck::Pod>(team: &dyn Collective, own: Vec<T>, count: usize, width: usize) -> Result<Vec<T>> {
    let (ranks, each) = (team.ranks(), count.div_ceil(team.ranks()) * width);
    let mut padded = own;
    padded.resize(each, T::zeroed());
    let mut all = vec![T::zeroed(); each * ranks];
    team.gather(bytemuck::cast_slice(&padded), bytemuck::cast_slice_mut(&mut all))?;
    // All shares except the last are full, so padding is at the end.
    all.truncate(count * width);
    Ok(all)
}

/// The processes with which an extractor shares its pictures.
pub(super) struct Helpers {
    team: Arc<dyn Collective>,
    /// The index of the extractor in its process.
    number: u8,
}

impl Helpers {
    pub fn ranks(&self) -> usize {
        self.team.ranks()
    }
}

impl Extractor {
    /// Shares the work with the other processes of a team, which call [`Extractor::assist`]: a batch grows by their number.
    /// `number` identifies the extractor within a process.
    pub fn shared_with(mut self, team: &Arc<dyn Collective>, number: u8) -> Self {
        if team.ranks() > 1 {
            self.helpers = Some(Helpers { team: team.clone(), number });
        }
        self
    }

    /// Rank 0's part.
    pub(super) fn extract_together(&mut self, helpers: &Helpers, pictures: &[Image]) -> Result<[Vec<f64>; 2]> {
        let mut bytes = Vec::new();
        for picture in pictures {
            let sizes = [picture.width(), picture.height(), picture.channels()];
            sizes.iter().for_each(|size| bytes.extend((*size as u32).to_le_bytes()));
            bytes.extend_from_slice(picture.pixels());
        }
        let sizes = [bytes.len() as u64, pictures.len() as u64].map(u64::to_le_bytes).concat();
        helpers.team.tell(&[&[EXTRACT, helpers.number][..], &sizes, self.hash().as_bytes()].concat())?;
        helpers.team.broadcast(&mut bytes, 0)?;
        let own = share(pictures.len(), 0, helpers.ranks());
        self.in_rows(helpers.team.as_ref(), &pictures[own], pictures.len())
    }

    /// The number of the extractor in a command.
    pub fn is_asked_of(order: &[u8]) -> Option<u8> {
        match order {
            [EXTRACT, number, ..] => Some(*number),
            _ => None,
        }
    }

    /// Another rank's part of an extraction command.
    ///
    /// # Errors
    /// [`Error::Cluster`] for a command for another network, or if another process is gone; those of [`Extractor::extract`].
    pub fn assist(&mut self, team: &dyn Collective, order: &[u8]) -> Result<()> {
        let unknown = || Error::cluster("rank 0 sent invalid pictures", "start all ranks with the same engine");
        let (words, hash) = order.get(2..).and_then(|rest| rest.split_at_checked(16)).ok_or_else(unknown)?;
        if hash != self.hash().as_bytes() {
            let message = format!("rank {} has another {} than rank 0", team.rank(), self.name());
            return Err(Error::cluster(message, "give all machines the same network's file"));
        }
        let word = |at: usize| words[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
        let (len, count) = (word(0) as usize, word(8) as usize);
        if len > 1 << 36 || count > self.batch() * team.ranks() {
            return Err(unknown());
        }
        let mut bytes = vec![0; len];
        team.broadcast(&mut bytes, 0)?;
        let own = share(count, team.rank(), team.ranks());
        let pictures = pictures(&bytes, own).ok_or_else(unknown)?;
        self.in_rows(team, &pictures, count).map(|_| ())
    }

    /// Features and logits of this rank's pictures, and of all.
    fn in_rows(&mut self, team: &dyn Collective, own: &[Image], count: usize) -> Result<[Vec<f64>; 2]> {
        team.go_on(Moving::Alone);
        let widths = [self.width(), self.classes()];
        let [features, logits] = match own.is_empty() {
            true => [Vec::new(), Vec::new()],
            false => self.extract_alone(own)?,
        };
        Ok([gathered(team, features, count, widths[0])?, gathered(team, logits, count, widths[1])?])
    }
}

/// Some of many encoded pictures, in sequence; None if bytes are missing.
fn pictures(mut bytes: &[u8], own: Range<usize>) -> Option<Vec<Image>> {
    let mut found = Vec::with_capacity(own.len());
    for number in 0..own.end {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let size = |at: usize| head[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word) as usize);
        let (width, height, channels) = (size(0), size(4), size(8));
        let (pixels, rest) = rest.split_at_checked(width.checked_mul(height)?.checked_mul(channels)?)?;
        if own.contains(&number) {
            found.push(Image::new(width, height, channels, pixels.to_vec()).ok()?);
        }
        bytes = rest;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_of_it_in_order() {
        for (count, ranks) in [(0, 3), (1, 4), (7, 2), (9, 4), (64, 4)] {
            let all: Vec<usize> = (0..ranks).flat_map(|rank| share(count, rank, ranks)).collect();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn pictures_of_mixed_sizes_arrive_and_a_piece_of_one_does_not() {
        let image = |size: usize| Image::new(size, 2, 3, vec![size as u8; 6 * size]).unwrap();
        let mut bytes = Vec::new();
        for size in [3, 1, 4] {
            [size, 2, 3].iter().for_each(|x| bytes.extend((*x as u32).to_le_bytes()));
            bytes.extend_from_slice(image(size).pixels());
        }
        let found = pictures(&bytes, 1..3).unwrap();
        assert!(found.len() == 2 && found[0].pixels() == image(1).pixels() && found[1].width() == 4);
        assert!(pictures(&bytes[..bytes.len() - 1], 1..3).is_none());
        assert!(pictures(&[255; 40], 0..1).is_none());
    }
}
