//! Images as the left side of a product: a row is a window of a convolution, by taps, then by channels. Nothing is copied: a tile of the
//! product finds each tap of each of its windows by a pointer.

/// Windows over images `[batch, source, channels]`, which are resized to `size` by nearest neighbour, with zeros outside.
#[derive(Clone, Copy)]
pub(crate) struct Windows<'a, T> {
    pub images: &'a [T],
    /// What a window sees outside the image: zeros, `channels` of them at least.
    pub zeros: &'a [T],
    pub batch: usize,
    /// Height and width of the images.
    pub source: [usize; 2],
    /// Height and width after the resize.
    pub size: [usize; 2],
    /// Rows and columns of windows in an image.
    pub out: [usize; 2],
    /// Each tap's row and column, of the window that begins at the image's first pixel; any, in any order, the same one more than once.
    pub taps: &'a [[isize; 2]],
    /// Rows and columns between windows.
    pub stride: usize,
    pub channels: usize,
}

impl<T> Windows<'_, T> {
    /// All windows.
    pub fn rows(&self) -> usize {
        self.batch * self.out[0] * self.out[1]
    }

    /// # Panics
    /// Where the images or zeros have other sizes.
    pub fn check(&self) {
        let [height, width] = self.source;
        assert_eq!(self.images.len(), self.batch * height * width * self.channels, "images of another size");
        assert!(self.zeros.len() >= self.channels, "too few zeros");
    }

    /// Where the channels of each tap of the windows `first..first + count` begin: `table[tap * width + window]`.
    #[inline(always)]
    pub fn find(&self, first: usize, count: usize, width: usize, table: &mut [*const T]) {
        let [rows, columns] = self.out;
        let (mut image, mut row, mut column) = (first / (rows * columns), first / columns % rows, first % columns);
        let is_resized = self.source != self.size;
        for i in 0..count {
            let [top, left] = [row, column].map(|at| (at * self.stride).cast_signed());
            for (tap, &[y, x]) in self.taps.iter().enumerate() {
                // Below zero is far outside.
                let [mut y, mut x] = [top + y, left + x].map(isize::cast_unsigned);
                let is_inside = y < self.size[0] && x < self.size[1];
                if is_resized && is_inside {
                    (y, x) = (y * self.source[0] / self.size[0], x * self.source[1] / self.size[1]);
                }
                table[tap * width + i] = if is_inside {
                    let pixel = (image * self.source[0] + y) * self.source[1] + x;
                    self.images.as_ptr().wrapping_add(pixel * self.channels)
                } else {
                    self.zeros.as_ptr()
                };
            }
            column += 1;
            if column == columns {
                (row, column) = (row + 1, 0);
            }
            if row == rows {
                (image, row) = (image + 1, 0);
            }
        }
    }
}

/// The taps of a window of `kernel` rows and columns with `pad` rows and columns of zeros before the image, row by row.
pub(crate) fn taps(kernel: [usize; 2], pad: [usize; 2]) -> Vec<[isize; 2]> {
    let along = |axis: usize| (0..kernel[axis]).map(move |tap| tap.cast_signed() - pad[axis].cast_signed());
    along(0).flat_map(|y| along(1).map(move |x| [y, x])).collect()
}
