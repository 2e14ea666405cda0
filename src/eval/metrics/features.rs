//! A feature matrix, or some of its rows.

use std::ops::Range;

use faer::Mat;

use crate::error::{Error, Result};

/// Features of images, `[count, width]`: all rows of a matrix, or some of them.
#[derive(Clone, Copy, Debug)]
pub struct Features<'a> {
    values: &'a [f32],
    width: usize,
    rows: Option<&'a [usize]>,
}

impl<'a> Features<'a> {
    /// The rows of `values`, each `width` wide.
    ///
    /// # Errors
    /// [`Error::Shape`] for incomplete rows, and for values that are not finite: no metric is defined for them.
    pub fn new(values: &'a [f32], width: usize) -> Result<Self> {
        if width == 0 || !values.len().is_multiple_of(width) {
            let message = format!("{} values do not make whole rows of {width} features", values.len());
            return Err(Error::shape("features", message));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let message = format!("feature {} of image {} is {}", at % width, at / width, values[at]);
            return Err(Error::shape("features", message));
        }
        Ok(Self { values, width, rows: None })
    }

    /// Some of the rows, in this order.
    ///
    /// # Panics
    /// Later, if one of `rows` is out of range, or this is already a part.
    pub fn part(self, rows: &'a [usize]) -> Self {
        assert!(self.rows.is_none(), "a part of a part");
        Self { rows: Some(rows), ..self }
    }

    /// The number of images.
    pub fn count(&self) -> usize {
        self.rows.map_or(self.values.len() / self.width, <[usize]>::len)
    }

    /// Features of an image.
    pub fn width(&self) -> usize {
        self.width
    }

    /// An image's features.
    pub fn row(&self, index: usize) -> &'a [f32] {
        let row = self.rows.map_or(index, |rows| rows[index]);
        &self.values[row * self.width..][..self.width]
    }

    /// The mean of the rows.
    pub fn mean(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.width];
        for index in 0..self.count() {
            mean.iter_mut().zip(self.row(index)).for_each(|(mean, &x)| *mean += f64::from(x));
        }
        let count = self.count().max(1) as f64;
        mean.iter_mut().for_each(|mean| *mean /= count);
        mean
    }

    /// Rows `range`, less `origin`, as the columns of a matrix `[width, rows]`.
    pub(super) fn columns(&self, range: Range<usize>, origin: &[f64]) -> Mat<f64> {
        let mut columns = Mat::zeros(self.width, range.len());
        for (column, index) in range.enumerate() {
            let to = columns.col_as_slice_mut(column);
            to.iter_mut().zip(self.row(index)).zip(origin).for_each(|((to, &x), &origin)| *to = f64::from(x) - origin);
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_none_are_refused() {
        assert!(Features::new(&[1.0; 5], 2).unwrap_err().to_string().contains("do not make whole rows"));
        assert!(Features::new(&[], 0).is_err());
        let message = Features::new(&[1.0, 2.0, 3.0, f32::NAN], 2).unwrap_err().to_string();
        assert!(message.contains("feature 1 of image 1 is NaN"), "{message}");
    }

    #[test]
    fn parts_and_means() {
        let values = [1.0, 2.0, 3.0, 6.0, 5.0, 7.0];
        let features = Features::new(&values, 2).unwrap();
        assert_eq!((features.count(), features.mean()), (3, vec![3.0, 5.0]));
        let part = features.part(&[2, 0]);
        assert_eq!((part.row(0), part.mean()), (&[5.0, 7.0][..], vec![3.0, 4.5]));
        let columns = part.columns(1..2, &[1.0, 1.0]);
        assert_eq!((columns[(0, 0)], columns[(1, 0)]), (0.0, 1.0));
    }
}
