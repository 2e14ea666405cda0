//! The convolution's forward and data gradient: a direct convolution over transposed rows.
//!
//! A task takes an image (or some of its rows). It copies the rows that it reads into `[row][plane][channel][column]`, with the
//! padding as zeros and, where x is resized, with the copies, so that neighbouring outputs of a row find their inputs side by
//! side for every tap and channel: the inner loop is the one of a matrix product (a scalar of the input times two vectors
//! of the weight's output channels), but nothing is copied once per tap. With stride 2 even and odd columns lie in two planes.
//!
//! The data gradient is the same loop over dy: at stride 1 with the taps mirrored, at stride 2 once for each of the four
//! parities of the input's rows and columns, with the taps that reach it.
//!
//! The sum goes by blocks of channels: a block of the weight's panel and the rows that it meets stay in the L1 cache while all
//! tiles pass over them, and the tiles' sums wait in L2. An element of the result is one chain over (block, tap, channel) in
//! ascending order, whatever the tile, the task and the vector width: no bit depends on the machine, the threads or the
//! other images.

use pulp::{NullaryFnOnce, Simd, WithSimd};

use super::Sizes;
use super::tile::Task;
use crate::ops::host::parallel::{self, Shared};
use crate::ops::host::{Float, Held, pack};

/// How the input's rows are copied.
pub(super) struct Rows {
    /// Padded row r comes from here; None is padding.
    pub row: Vec<Option<usize>>,
    /// Column j of plane q, at `q * width + j`, comes from here.
    pub column: Vec<Option<usize>>,
    /// Columns of a plane.
    pub width: usize,
    pub planes: usize,
    pub channels: usize,
    /// Elements between pixels of the input that follow each other in a plane; None where a resized row has to be gathered.
    pub stride: Option<usize>,
    /// Columns of the input.
    pub source_width: usize,
}

impl Rows {
    pub fn pitch(&self) -> usize {
        self.planes * self.channels * self.width
    }

    /// Copies padded rows `first..last` of an image to `to`, which holds zeros where it was never written.
    fn copy<T: Float>(&self, image: &[T], (first, last): (usize, usize), to: &mut [T], avx512: bool) {
        let (channels, pitch) = (self.channels, self.pitch());
        assert!(to.len() >= (last - first) * pitch, "rows do not fit their scratch");
        for r in first..last {
            let Some(row) = self.row[r] else { continue };
            let at = (r - first) * pitch;
            if r > first && self.row[r - 1] == Some(row) {
                to.copy_within(at - pitch..at, at);
                continue;
            }
            let source = &image[row * self.source_width * channels..][..self.source_width * channels];
            for plane in 0..self.planes {
                let columns = &self.column[plane * self.width..][..self.width];
                let Some(start) = columns.iter().position(Option::is_some) else { continue };
                let lanes = columns[start..].iter().take_while(|column| column.is_some()).count();
                let to = &mut to[at + plane * channels * self.width..][..channels * self.width];
                match (self.stride, columns[start]) {
                    (Some(stride), Some(column)) => {
                        transpose(
                            &mut to[start..],
                            self.width,
                            &source[column * channels..],
                            (lanes, stride),
                            channels,
                            avx512,
                        );
                    }
                    _ => T::with_scratch(lanes * channels, |gathered| {
                        for (pixel, column) in
                            gathered.chunks_exact_mut(channels).zip(columns[start..].iter().flatten())
                        {
                            pixel.copy_from_slice(&source[column * channels..][..channels]);
                        }
                        transpose(&mut to[start..], self.width, gathered, (lanes, channels), channels, avx512);
                    }),
                }
            }
        }
    }
}

/// `to[c * pitch + lane] = from[lane * stride + c]` for `lanes` lanes and `channels` channels.
fn transpose<T: Float>(
    to: &mut [T],
    pitch: usize,
    from: &[T],
    (lanes, stride): (usize, usize),
    channels: usize,
    avx512: bool,
) {
    assert!(to.len() >= (channels - 1) * pitch + lanes && from.len() >= (lanes - 1) * stride + channels);
    // SAFETY: the bounds were just checked.
    unsafe { pack::lanes(to.as_mut_ptr(), pitch, from.as_ptr(), (lanes, stride), (channels, 1), avx512) };
}

/// Steps of the sum (taps times channels) in a block: with two vectors of f32 each 18 KB of the weight.
const BLOCK_STEPS: usize = 144;

/// Outputs that share their taps.
pub(super) struct Class {
    /// Per tap: where its channel 0 begins, counted from the output's place in the copied rows, and in the weight.
    pub taps: Vec<(usize, usize)>,
    /// The first output row and column.
    pub first: [usize; 2],
    /// Output rows and columns.
    pub count: [usize; 2],
}

impl Class {
    /// Channels of a block.
    pub fn block(&self) -> usize {
        (BLOCK_STEPS / self.taps.len().max(1)).max(1)
    }

    /// Where the steps of a block of `channels` find their input, counted from the output's place in the block's first channel. A
    /// table: with a loop for the taps around one for the channels the processor would mispredict the end of each short loop.
    pub fn steps(&self, channels: usize, pitch: usize) -> Vec<usize> {
        self.taps.iter().flat_map(|&(tap, _)| (0..channels).map(move |channel| tap + channel * pitch)).collect()
    }
}

/// A convolution as the inner loops see it.
pub(super) struct Direct {
    pub rows: Rows,
    pub classes: Vec<Class>,
    /// Padded rows between neighbouring rows of a class.
    pub row_step: usize,
    /// Padded rows that an output row reads.
    pub reach: usize,
    /// Distance of a class's outputs in the result: 1, or 2 for the parities.
    pub spread: usize,
    /// Height and width of the result.
    pub out: [usize; 2],
    /// Channels of the result.
    pub cout: usize,
    /// Elements of the weight between output channels, and between input channels.
    pub weight_strides: (usize, usize),
}

impl Direct {
    /// Packs panel `j` of a class's weight, block by block: `[tap][channel][panel]`, the classes one after the other.
    fn pack_panel<T: Float>(
        &self,
        packed: Shared<T>,
        weight: &[T],
        panel: usize,
        (number, j): (usize, usize),
        avx512: bool,
    ) {
        let (channels, (lane_stride, step_stride)) = (self.rows.channels, self.weight_strides);
        let panels = self.cout.div_ceil(panel);
        let before: usize = self.classes[..number].iter().map(|class| class.taps.len()).sum();
        let class = &self.classes[number];
        let start = (before * panels + j * class.taps.len()) * channels * panel;
        let lanes = panel.min(self.cout - j * panel);
        for (tap, &(_, from)) in class.taps.iter().enumerate() {
            let from = from + j * panel * lane_stride;
            assert!(from + (lanes - 1) * lane_stride + (channels - 1) * step_stride < weight.len());
            for first in (0..channels).step_by(class.block()) {
                let steps = class.block().min(channels - first);
                // SAFETY: the source was just checked; every tap of every block has its own place in the scratch.
                unsafe {
                    let to = packed.get().add(start + (class.taps.len() * first + tap * steps) * panel);
                    let from = weight.as_ptr().add(from + first * step_stride);
                    pack::strip(to, panel, from, (lanes, lane_stride), (steps, step_stride), avx512);
                }
            }
        }
    }

    pub(super) fn forward(sizes: &Sizes) -> Self {
        let Sizes { kernel, stride, pad, cin, .. } = *sizes;
        let along = |axis: usize, count: usize| -> Vec<Option<usize>> {
            (0..count)
                .map(|i| {
                    i.checked_sub(pad[axis])
                        .filter(|&i| i < sizes.size[axis])
                        .map(|i| i * sizes.source[axis] / sizes.size[axis])
                })
                .collect()
        };
        let reach = |axis: usize| (sizes.out[axis] - 1) * stride + kernel[axis];
        let width = reach(1).div_ceil(stride);
        let columns = along(1, width * stride);
        let column = (0..stride).flat_map(|plane| columns[plane..].iter().step_by(stride).copied()).collect();
        let rows = Rows {
            row: along(0, reach(0)),
            column,
            width,
            planes: stride,
            channels: cin,
            stride: (sizes.source[1] == sizes.size[1]).then_some(stride * cin),
            source_width: sizes.source[1],
        };
        let taps = (0..sizes.taps())
            .map(|tap| {
                let (ky, kx) = sizes.tap(tap);
                (ky * rows.pitch() + kx % stride * cin * width + kx / stride, tap * cin)
            })
            .collect();
        Self {
            rows,
            classes: vec![Class { taps, first: [0, 0], count: sizes.out }],
            row_step: stride,
            reach: kernel[0],
            spread: 1,
            out: sizes.out,
            cout: sizes.cout,
            weight_strides: (sizes.depth(), 1),
        }
    }

    /// From dy to dx̂.
    pub(super) fn input_gradient(sizes: &Sizes) -> Self {
        let Sizes { kernel, stride, pad, cin, cout, .. } = *sizes;
        // Along each axis: row i of x̂ gets, by tap k, row (i + pad - k) / stride of dy where that is whole: at most `before` rows above the first.
        let before = [0, 1].map(|axis| (kernel[axis] - 1).saturating_sub(pad[axis]).div_ceil(stride));
        let after = |axis: usize| (sizes.size[axis] - 1 + pad[axis]) / stride + 1;
        let along = |axis: usize| -> Vec<Option<usize>> {
            (0..before[axis] + after(axis))
                .map(|i| i.checked_sub(before[axis]).filter(|&i| i < sizes.out[axis]))
                .collect()
        };
        let column = along(1);
        let rows = Rows {
            row: along(0),
            width: column.len(),
            column,
            planes: 1,
            channels: cout,
            stride: Some(cout),
            source_width: sizes.out[1],
        };
        // The padded row of tap k for row `stride * j + parity`, counted from j.
        let reached = |axis: usize, parity: usize, k: usize| {
            let at = (parity + pad[axis] + stride * before[axis]).checked_sub(k)?;
            at.is_multiple_of(stride).then_some(at / stride)
        };
        let mut classes = Vec::new();
        for parity in 0..stride * stride {
            let first = [parity / stride, parity % stride];
            let mut taps = Vec::new();
            for tap in 0..sizes.taps() {
                let (ky, kx) = sizes.tap(tap);
                if let (Some(row), Some(column)) = (reached(0, first[0], ky), reached(1, first[1], kx)) {
                    taps.push((row * rows.pitch() + column, tap * cin));
                }
            }
            let count = [0, 1].map(|axis| (sizes.size[axis] + stride - 1 - first[axis]) / stride);
            classes.push(Class { taps, first, count });
        }
        let reach = (stride - 1 + pad[0] + stride * before[0]) / stride + 1;
        Self {
            rows,
            classes,
            row_step: 1,
            reach,
            spread: stride,
            out: sizes.size,
            cout: cin,
            weight_strides: (1, sizes.depth()),
        }
    }

    /// Rows of a class, at most.
    fn class_rows(&self) -> usize {
        self.classes.iter().map(|class| class.count[0]).max().unwrap_or(0)
    }

    /// Columns of a class, at most.
    fn class_columns(&self) -> usize {
        self.classes.iter().map(|class| class.count[1]).max().unwrap_or(0)
    }

    /// The whole result of `batch` images; `input` `[batch, …]`, `finish` says where a task's results go.
    pub(super) fn run<T: Float>(&self, batch: usize, input: &[T], weight: &[T], output: Output<T>) {
        T::dispatch(Run { direct: self, batch, input, weight, output });
    }
}

/// Where results go, and what is added to them.
pub(super) struct Output<'a, T: Held> {
    /// `[batch, out, cout]`, or with `fold` the images that the results are summed into.
    pub(super) data: &'a mut [T],
    /// Added to all pixels: `[cout]`.
    pub(super) bias: Option<&'a [T::Float]>,
    /// Added to an image's pixels: `[batch, cout]`.
    pub(super) channel_add: Option<&'a [T]>,
    /// Added: of the shape of `data`.
    pub(super) residual: Option<&'a [T]>,
    /// Whether the results are added to `data`.
    pub(super) add: bool,
    /// Height and width of `data` where every one of its pixels is the sum of the results that were copied from it.
    pub(super) fold: Option<[usize; 2]>,
}

impl<T: Held> Output<'_, T> {
    /// # Panics
    /// Where an operand is of another size than the result wants.
    fn check(&self, direct: &Direct, batch: usize) {
        let [height, width] = self.fold.unwrap_or(direct.out);
        let (len, cout) = (self.data.len(), direct.cout);
        assert_eq!(len / batch, height * width * cout, "a result of another size");
        assert!(self.residual.is_none_or(|residual| residual.len() == len), "a residual of another size");
        assert!(self.bias.is_none_or(|bias| bias.len() == cout), "a bias of another size");
        assert!(self.channel_add.is_none_or(|add| add.len() == batch * cout), "a sum by channel of another size");
    }
}

/// The term added to the image at `to`, which begins at element `first`: null for none.
fn added<T>(residual: Option<&[T]>, add: bool, to: *mut T, first: usize) -> *const T {
    match residual {
        Some(residual) => residual[first..].as_ptr(),
        None if add => to.cast_const(),
        None => std::ptr::null(),
    }
}

struct Run<'a, T: Held> {
    direct: &'a Direct,
    batch: usize,
    input: &'a [T],
    weight: &'a [T],
    output: Output<'a, T>,
}

impl<T: Float> WithSimd for Run<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { direct, batch, input, weight, output } = self;
        output.check(direct, batch);
        let Output { data, bias, channel_add, residual, add, fold } = output;
        let (panel, channels, cout) = (2 * T::lanes::<S>(), direct.rows.channels, direct.cout);
        let avx512 = S::REGISTER_COUNT == 32 && T::lanes::<S>() * size_of::<T>() == 64;
        let panels = cout.div_ceil(panel);
        let image_in = input.len() / batch;
        let image_out = direct.out[0] * direct.out[1] * cout;
        let image_data = data.len() / batch;

        let taps: usize = direct.classes.iter().map(|class| class.taps.len()).sum();
        T::with_scratch(taps * channels * panel * panels, |packed| {
            let shared = Shared::new(packed);
            let pack = |task: usize| direct.pack_panel(shared, weight, panel, (task / panels, task % panels), avx512);
            let packs = direct.classes.len() * panels;
            parallel::for_each(packs, taps * channels * panel * panels, pack);
            let packed = &*packed;

            // Whole images, or where these are few, some rows of one. The cut changes no bit.
            let threads = parallel::threads();
            let rows = direct.class_rows();
            let blocks = if fold.is_some() { 1 } else { (4 * threads).div_ceil(batch).min(rows.div_ceil(2)).max(1) };
            let block_rows = rows.div_ceil(blocks);
            let out = Shared::new(data);
            let work = |task: usize| {
                let (b, first) = (task / blocks, task % blocks * block_rows);
                let last = (first + block_rows).min(rows);
                if first >= last {
                    return;
                }
                let end = ((last - 1) * direct.row_step + direct.reach).min(direct.rows.row.len());
                let span = (first * direct.row_step, end);
                T::with_scratch((span.1 - span.0) * direct.rows.pitch(), |copied| {
                    copied.fill(T::ZERO);
                    direct.rows.copy(&input[b * image_in..][..image_in], span, copied, avx512);
                    let start = |j: usize, start: &mut [T]| {
                        for (o, start) in (j * panel..cout).zip(start) {
                            *start = bias.map_or(T::ZERO, |v| v[o]) + channel_add.map_or(T::ZERO, |v| v[b * cout + o]);
                        }
                    };
                    // SAFETY: image b lies within the data.
                    let to = unsafe { out.get().add(b * image_data) };
                    let run = |to: *mut T, plus: *const T| {
                        T::with_scratch((last - first) * direct.class_columns() * panel, |sums| {
                            // Here, not further out: only what is inlined into this call is compiled for `S`.
                            simd.vectorize(Task {
                                simd,
                                direct,
                                copied: &*copied,
                                packed,
                                rows: (first, last),
                                sums: sums.as_mut_ptr(),
                                to,
                                plus,
                                start: &start,
                            });
                        });
                    };
                    match fold {
                        None => run(to, added(residual, add, to, b * image_data)),
                        Some(small) => T::with_scratch(image_out, |large| {
                            run(large.as_mut_ptr(), std::ptr::null());
                            // SAFETY: this task alone writes image b.
                            let small_image = unsafe { std::slice::from_raw_parts_mut(to, image_data) };
                            simd.vectorize(Fold {
                                small: small_image,
                                small_size: small,
                                large,
                                large_size: direct.out,
                                cout,
                                add,
                            });
                        }),
                    }
                });
            };
            parallel::for_each(batch * blocks, parallel::GRAIN, work);
        });
    }
}

/// Sums the results that were copied from one pixel.
struct Fold<'a, T> {
    small: &'a mut [T],
    small_size: [usize; 2],
    large: &'a [T],
    large_size: [usize; 2],
    cout: usize,
    add: bool,
}

impl<T: Float> NullaryFnOnce for Fold<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { small, small_size: [h, w], large, large_size: [height, width], cout, add } = self;
        if !add {
            small.fill(T::ZERO);
        }
        for i in 0..height {
            for j in 0..width {
                let to = &mut small[(i * h / height * w + j * w / width) * cout..][..cout];
                let from = &large[(i * width + j) * cout..][..cout];
                to.iter_mut().zip(from).for_each(|(to, &from)| *to += from);
            }
        }
    }
}
