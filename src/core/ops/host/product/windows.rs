//! Images as the left side of a product: a row is a window of a convolution, by taps, then by channels.
//!
//! Vectors take one row at a time: nothing is copied, a tile of the product finds each tap of each of its windows by a pointer.
//! Registers for matrices take sixteen rows that are equally far apart: [`Planes`] are copies of a task's part of the images, with
//! the zeros around them, in which they are.

use super::matrices::SIDE;
use crate::ops::host::float::Held;

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

/// How a task's images are copied, the same for all tasks.
///
/// Where a row of windows is a multiple of 16, a plane is the part of the image with the zeros around it. Else there is a plane for each
/// column of the taps, and for each remainder of their rows by the stride: only the pixels that the tap meets, so that windows stay equally
/// far apart from one row of the image to the next.
pub(crate) struct Layout {
    /// The remainder of the rows, and the column, of each plane's first pixel of window (0, 0).
    planes: Vec<[isize; 2]>,
    /// By tap: its plane, and its row and column there, of the window (0, 0).
    taps: Vec<(usize, [isize; 2])>,
    /// The first row of a plane, and how many there are beyond those of the windows' own.
    low: isize,
    beyond: usize,
    /// Rows of a plane from window to window, and rows of the image from row to row of a plane.
    row_step: usize,
    row_stride: usize,
    /// The same of columns.
    column_step: usize,
    column_stride: usize,
    /// Pixels of a plane's row.
    pitch: usize,
}

impl Layout {
    pub fn new<T>(windows: &Windows<T>) -> Self {
        let (stride, width) = (windows.stride, windows.out[1]);
        let signed = stride.cast_signed();
        let along = |axis: usize| windows.taps.iter().map(move |tap| tap[axis]);
        let left = along(1).min().unwrap_or(0);
        if width.is_multiple_of(SIDE) {
            let (low, high) = (along(0).min().unwrap_or(0), along(0).max().unwrap_or(0));
            let right = along(1).max().unwrap_or(0);
            return Self {
                planes: vec![[0, left]],
                taps: windows.taps.iter().map(|&[y, x]| (0, [y - low, x - left])).collect(),
                low,
                beyond: (high - low).cast_unsigned(),
                row_step: stride,
                row_stride: 1,
                column_step: stride,
                column_stride: 1,
                pitch: (width - 1) * stride + (right - left).cast_unsigned() + 1,
            };
        }
        let (low, high) =
            (along(0).min().unwrap_or(0).div_euclid(signed), along(0).max().unwrap_or(0).div_euclid(signed));
        let (mut planes, mut taps) = (Vec::new(), Vec::new());
        for &[y, x] in windows.taps {
            let plane = [y.rem_euclid(signed), x];
            let place = planes.iter().position(|&other| other == plane).unwrap_or_else(|| {
                planes.push(plane);
                planes.len() - 1
            });
            taps.push((place, [y.div_euclid(signed) - low, 0]));
        }
        Self {
            planes,
            taps,
            low,
            beyond: (high - low).cast_unsigned(),
            row_step: 1,
            row_stride: stride,
            column_step: 1,
            column_stride: stride,
            pitch: width,
        }
    }

    /// Rows of a plane for so many rows of windows.
    fn rows(&self, of_windows: usize) -> usize {
        (of_windows - 1) * self.row_step + 1 + self.beyond
    }

    /// Pixels that the windows `first..end` take.
    pub fn pixels<T>(&self, windows: &Windows<T>, rows: (usize, usize)) -> usize {
        let (images, most) = pieces(windows, rows);
        images * self.planes.len() * self.rows(most) * self.pitch
    }
}

/// How many images the windows `first..end` are of, and the most rows of windows of one of them.
fn pieces<T>(windows: &Windows<T>, (first, end): (usize, usize)) -> (usize, usize) {
    let [height, width] = windows.out;
    let (top, bottom) = (first / width, (end - 1) / width);
    let images = bottom / height - top / height + 1;
    (images, if images == 1 { bottom - top + 1 } else { height })
}

/// A task's part of the images. See [`Layout`].
pub(crate) struct Planes {
    from: *const u8,
    /// Where each tap of the first window begins, in bytes, as all distances here.
    taps: Vec<usize>,
    /// Rows and columns of windows in an image.
    out: [usize; 2],
    /// The first image, and the first row of windows of it.
    first: (usize, usize),
    /// From image to image, row to row and window to window.
    image: usize,
    row: usize,
    window: usize,
}

impl Planes {
    /// Copies what the windows `rows.0..rows.1` see.
    ///
    /// # Panics
    /// Where `to` has fewer elements than [`Layout::pixels`] times the channels.
    #[inline(always)]
    pub fn copy<T: Held>(layout: &Layout, windows: &Windows<T>, rows: (usize, usize), to: &mut [T]) -> Self {
        let [height, width] = windows.out;
        let (images, most) = pieces(windows, rows);
        let plane = layout.rows(most) * layout.pitch * windows.channels;
        let first = (rows.0 / width / height, rows.0 / width % height);
        for (image, to) in to.chunks_exact_mut(layout.planes.len() * plane).enumerate().take(images) {
            let top = if image == 0 { first.1 } else { 0 };
            for (to, origin) in to.chunks_exact_mut(plane).zip(&layout.planes) {
                copy_plane(layout, windows, (first.0 + image, top), *origin, to);
            }
        }
        let bytes = |pixels: usize| pixels * windows.channels * size_of::<T>();
        let tap = |&(place, at): &(usize, [isize; 2])| {
            let [y, x] = at.map(isize::cast_unsigned);
            bytes((place * layout.rows(most) + y) * layout.pitch + x)
        };
        assert!(to.len() >= images * layout.planes.len() * plane, "planes in too little memory");
        Self {
            from: to.as_ptr().cast(),
            taps: layout.taps.iter().map(tap).collect(),
            out: windows.out,
            first,
            image: bytes(layout.planes.len() * layout.rows(most) * layout.pitch),
            row: bytes(layout.row_step * layout.pitch),
            window: bytes(layout.column_step),
        }
    }

    /// What offsets of windows and taps count from.
    pub fn first(&self) -> *const u8 {
        self.from
    }

    /// A tap's offset.
    pub fn tap(&self, tap: usize) -> usize {
        self.taps[tap]
    }

    /// The offsets of the windows from `first` on; their distance, if it is one.
    #[inline(always)]
    pub fn find(&self, first: usize, offsets: &mut [usize]) -> Option<usize> {
        let [height, width] = self.out;
        let (mut image, mut row, mut column) = (first / width / height, first / width % height, first % width);
        let base = |image: usize, row: usize| {
            let top = if image == self.first.0 { self.first.1 } else { 0 };
            (image - self.first.0) * self.image + (row - top) * self.row
        };
        let mut at = base(image, row) + column * self.window;
        let follow = self.row == width * self.window;
        let in_line =
            column + offsets.len() <= width || (follow && (row * width + column + offsets.len()) <= height * width);
        for offset in offsets {
            *offset = at;
            at += self.window;
            column += 1;
            if column == width {
                (row, column) = (row + 1, 0);
                if row == height {
                    (image, row) = (image + 1, 0);
                }
                at = base(image, row);
            }
        }
        in_line.then_some(self.window)
    }
}

/// One plane of an image, from the row of windows `top` on.
#[inline(always)]
fn copy_plane<T: Held>(
    layout: &Layout,
    windows: &Windows<T>,
    (image, top): (usize, usize),
    origin: [isize; 2],
    to: &mut [T],
) {
    let (channels, [height, width]) = (windows.channels, windows.size);
    let image = &windows.images[image * windows.source[0] * windows.source[1] * channels..];
    let first = (top * layout.row_step).cast_signed() + layout.low;
    let column = |j: usize| (j * layout.column_stride).cast_signed() + origin[1];
    // The pixels of a row that are in the image.
    let inside = (0..layout.pitch).find(|&j| column(j) >= 0).unwrap_or(layout.pitch);
    let outside = (inside..layout.pitch).find(|&j| column(j).cast_unsigned() >= width).unwrap_or(layout.pitch);
    for (r, to) in to.chunks_exact_mut(layout.pitch * channels).enumerate() {
        let y = (first + r.cast_signed()) * layout.row_stride.cast_signed() + origin[0];
        if y < 0 || y.cast_unsigned() >= height || inside == outside {
            to.fill(T::default());
            continue;
        }
        let y = y.cast_unsigned() * windows.source[0] / height;
        let row = &image[y * windows.source[1] * channels..][..windows.source[1] * channels];
        let (before, rest) = to.split_at_mut(inside * channels);
        let (seen, after) = rest.split_at_mut((outside - inside) * channels);
        before.fill(T::default());
        after.fill(T::default());
        if layout.column_stride == 1 && windows.source[1] == width {
            seen.copy_from_slice(&row[column(inside).cast_unsigned() * channels..][..seen.len()]);
            continue;
        }
        for (j, to) in seen.chunks_exact_mut(channels).enumerate() {
            let x = column(inside + j).cast_unsigned() * windows.source[1] / width;
            to.copy_from_slice(&row[x * channels..][..channels]);
        }
    }
}

/// The taps of a window of `kernel` rows and columns with `pad` rows and columns of zeros before the image, row by row.
pub(crate) fn taps(kernel: [usize; 2], pad: [usize; 2]) -> Vec<[isize; 2]> {
    let along = |axis: usize| (0..kernel[axis]).map(move |tap| tap.cast_signed() - pad[axis].cast_signed());
    along(0).flat_map(|y| along(1).map(move |x| [y, x])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every tap of every window is found in the copies as it is in the images, and windows that are said to be equally far apart are.
    #[test]
    fn copies_show_what_the_images_do() {
        for (source, size, out, stride, pad, batch) in [
            ([32, 32], [32, 32], [32, 32], 1, 1, 2),
            ([5, 16], [5, 16], [5, 16], 1, 1, 3),
            ([7, 7], [7, 7], [7, 7], 1, 1, 5),
            ([3, 10], [3, 10], [3, 10], 1, 2, 4),
            ([9, 33], [9, 33], [5, 16], 2, 1, 2),
            ([9, 7], [9, 7], [4, 3], 2, 1, 3),
            ([8, 8], [16, 16], [16, 16], 1, 1, 2),
            ([3, 5], [6, 10], [6, 10], 1, 1, 2),
            ([4, 1], [4, 1], [4, 1], 1, 1, 20),
        ] {
            let channels = 2;
            let images: Vec<f32> = (0..batch * source[0] * source[1] * channels).map(|i| i as f32 + 1.0).collect();
            let (zeros, taps) = (vec![0.0; channels], taps([3, 3], [pad; 2]));
            let windows =
                Windows { images: &images, zeros: &zeros, batch, source, size, out, taps: &taps, stride, channels };
            let layout = Layout::new(&windows);
            let (all, count) = (windows.rows(), taps.len());
            for rows in [(0, all), (0, all.div_ceil(2)), (all / 3, all), (all / 2, all / 2 + 1)] {
                let mut copies = vec![f32::NAN; layout.pixels(&windows, rows) * channels];
                let planes = Planes::copy(&layout, &windows, rows, &mut copies);
                for first in (rows.0..rows.1).step_by(SIDE) {
                    let here = (rows.1 - first).min(SIDE);
                    let mut table = vec![std::ptr::null(); count * here];
                    windows.find(first, here, here, &mut table);
                    let mut offsets = [0; SIDE];
                    let distance = planes.find(first, &mut offsets[..here]);
                    for (i, &offset) in offsets[..here].iter().enumerate() {
                        assert!(
                            distance.is_none_or(|distance| offset == offsets[0] + i * distance),
                            "{size:?} {rows:?}"
                        );
                        for tap in 0..count {
                            let at = (offset + planes.tap(tap)) / size_of::<f32>();
                            // SAFETY: a pixel of the images, or the zeros.
                            let expected = unsafe { std::slice::from_raw_parts(table[tap * here + i], channels) };
                            assert_eq!(&copies[at..][..channels], expected, "{size:?} {rows:?} {first} {i} {tap}");
                        }
                    }
                }
            }
        }
    }
}
