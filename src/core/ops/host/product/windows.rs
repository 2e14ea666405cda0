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
    /// Rows and columns of taps.
    pub kernel: [usize; 2],
    pub stride: usize,
    /// Rows and columns of zeros before the first pixel.
    pub pad: [usize; 2],
    pub channels: usize,
}

impl<T> Windows<'_, T> {
    /// All windows.
    pub fn rows(&self) -> usize {
        self.batch * self.out[0] * self.out[1]
    }

    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// # Panics
    /// Where the images or zeros have other sizes.
    pub fn check(&self) {
        let [height, width] = self.source;
        assert_eq!(self.images.len(), self.batch * height * width * self.channels, "images of another size");
        assert!(self.zeros.len() >= self.channels, "too few zeros");
    }

    /// The pixel of the image that a place in a window along `axis` shows; None outside.
    #[inline(always)]
    fn along(&self, axis: usize, window: usize, tap: usize) -> Option<usize> {
        let at = (window * self.stride + tap).checked_sub(self.pad[axis]).filter(|&at| at < self.size[axis])?;
        Some(if self.source[axis] == self.size[axis] { at } else { at * self.source[axis] / self.size[axis] })
    }

    /// Where the channels of each tap of the windows `first..first + count` begin: `table[tap * width + window]`.
    #[inline(always)]
    pub fn find(&self, first: usize, count: usize, width: usize, table: &mut [*const T]) {
        for (i, row) in (first..first + count).enumerate() {
            let (image, row, column) =
                (row / (self.out[0] * self.out[1]), row / self.out[1] % self.out[0], row % self.out[1]);
            for ky in 0..self.kernel[0] {
                let y = self.along(0, row, ky);
                for kx in 0..self.kernel[1] {
                    let tap = ky * self.kernel[1] + kx;
                    table[tap * width + i] = match (y, self.along(1, column, kx)) {
                        (Some(y), Some(x)) => {
                            let pixel = (image * self.source[0] + y) * self.source[1] + x;
                            self.images.as_ptr().wrapping_add(pixel * self.channels)
                        }
                        _ => self.zeros.as_ptr(),
                    };
                }
            }
        }
    }
}
