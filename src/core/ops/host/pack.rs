//! Copies blocks of a matrix into the order in which the product's inner loop reads them.
//!
//! Elements are moved, never computed with, and need no alignment: a pair of bf16 travels as an f32.
//!
//! A *strip* is `lanes` neighbouring rows (or columns) by `depth` steps of the summed dimension, stored `[depth][width]` with
//! `width >= lanes`; what lies between is zero where the caller asks for it.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::float::Float;
use super::product::Factor;
use super::product::matrices::SIDE;

/// One strip: element `(lane, step)` is at `src + lane * lane_stride + step * step_stride`.
///
/// # Safety
/// All those elements for `lane < lanes`, `step < depth` are readable, and `dst` is valid for `depth * width` writes.
#[inline]
pub(crate) unsafe fn strip<T: Float>(
    dst: *mut T,
    width: usize,
    src: *const T,
    (lanes, lane_stride): (usize, usize),
    (depth, step_stride): (usize, usize),
    avx512: bool,
) {
    // SAFETY: as the caller promises.
    unsafe {
        if lanes < width {
            std::ptr::write_bytes(dst, 0, depth * width);
        }
        self::lanes(dst, width, src, (lanes, lane_stride), (depth, step_stride), avx512);
    }
}

/// As [`strip`] without the zeros: only element `step * width + lane` for `lane < lanes` is written.
///
/// # Safety
/// As for [`strip`], and those elements of `dst` may be written.
#[inline]
pub(crate) unsafe fn lanes<T: Float>(
    dst: *mut T,
    width: usize,
    src: *const T,
    (lanes, lane_stride): (usize, usize),
    (depth, step_stride): (usize, usize),
    avx512: bool,
) {
    // SAFETY: every read is at lane < lanes and step < depth, every write at step * width + lane, as the caller promises.
    unsafe {
        if lane_stride == 1 {
            for p in 0..depth {
                copy(src.add(p * step_stride), dst.add(p * width), lanes);
            }
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if avx512 && step_stride == 1 && std::any::TypeId::of::<T>() == std::any::TypeId::of::<f32>() {
            let mut lane = 0;
            while lane < lanes {
                let count = (lanes - lane).min(16);
                avx512::transpose(
                    dst.add(lane).cast(),
                    width,
                    src.add(lane * lane_stride).cast(),
                    count,
                    lane_stride,
                    depth,
                );
                lane += 16;
            }
            return;
        }
        let _ = avx512;
        // Blocks of steps, so that each cache line of the source is used up while it is near.
        for p0 in (0..depth).step_by(16) {
            for lane in 0..lanes {
                for p in p0..(p0 + 16).min(depth) {
                    *dst.add(p * width + lane) = src.add(lane * lane_stride + p * step_stride).read_unaligned();
                }
            }
        }
    }
}

/// A matrix to be packed as strips of `width` lanes, the last one filled up with zeros.
pub(crate) struct Strips<T> {
    /// Lane 0, element 0.
    pub from: *const T,
    pub lanes: usize,
    pub lane_stride: usize,
    /// Elements along the sum; a step has [`Factor::PER_STEP`] of them.
    pub elements: usize,
    pub step_stride: usize,
    pub width: usize,
}
// SAFETY: only `pack_task` reads through the pointer, whose caller answers for it.
unsafe impl<T: Sync> Sync for Strips<T> {}

/// Steps in one task of packing.
const TASK_STEPS: usize = 128;
/// Bytes of one step in one task of packing: long runs, which the prefetchers follow.
const TASK_BYTES: usize = 256;

impl<T: Factor> Strips<T> {
    /// Packed lanes of `depth` steps.
    pub fn len(&self, depth: usize) -> usize {
        self.lanes.next_multiple_of(self.width) * depth
    }

    /// Strips in one task of packing.
    fn task_strips(&self) -> usize {
        (TASK_BYTES / (self.width * size_of::<T::Step>())).max(1)
    }

    /// Tasks that pack `depth` steps.
    pub fn tasks(&self, depth: usize) -> usize {
        self.lanes.div_ceil(self.width).div_ceil(self.task_strips()) * depth.div_ceil(TASK_STEPS)
    }

    /// Runs one of the [`tasks`](Self::tasks) that pack the steps `p0..p0 + depth` into `to`, strip by strip, each `[depth][width]`.
    ///
    /// # Safety
    /// All lanes at these steps are readable, and `to` is valid for writing [`len`](Self::len) lanes, which nobody else uses but
    /// the other tasks.
    #[inline(always)]
    pub unsafe fn pack_task(&self, to: *mut T::Step, (p0, depth): (usize, usize), task: usize, avx512: bool) {
        let &Self { from, lanes, lane_stride, elements, step_stride, width } = self;
        let parts = depth.div_ceil(TASK_STEPS);
        let (strip, step) = (task / parts * self.task_strips(), task % parts * TASK_STEPS);
        let strips = strip..(strip + self.task_strips()).min(lanes.div_ceil(width));
        let steps = step..(step + TASK_STEPS).min(depth);
        // SAFETY: every strip and step is in bounds, as the caller promises.
        unsafe {
            let place = |strip: usize, step: usize| to.add((strip * depth + step) * width);
            let source = |strip: usize, step: usize| {
                from.wrapping_add(strip * width * lane_stride + (p0 + step) * T::PER_STEP * step_stride)
            };
            let left = |step: usize, steps: usize| (elements - (p0 + step) * T::PER_STEP).min(steps * T::PER_STEP);
            if lane_stride == 1 && strips.end * width <= lanes {
                // Step by step: the source is read in long runs.
                for step in steps {
                    for strip in strips.clone() {
                        T::neighbours(place(strip, step), source(strip, step), width, left(step, 1), step_stride);
                    }
                }
                return;
            }
            for s in strips {
                let first = steps.start;
                let lanes = (lanes - s * width).min(width);
                T::strip(
                    place(s, first),
                    width,
                    source(s, first),
                    (lanes, lane_stride),
                    (left(first, steps.len()), step_stride),
                    avx512,
                );
            }
        }
    }
}

impl<T: Factor> Strips<T> {
    /// All of the [`tasks`](Self::tasks), on this thread: the source is read in the longest runs.
    ///
    /// # Safety
    /// As for [`pack_task`](Self::pack_task).
    #[inline(always)]
    pub unsafe fn pack(&self, to: *mut T::Step, (p0, depth): (usize, usize), avx512: bool) {
        let &Self { from, lanes, lane_stride, elements, step_stride, width } = self;
        // SAFETY: as the caller promises.
        unsafe {
            if lane_stride != 1 || !lanes.is_multiple_of(width) {
                return (0..self.tasks(depth)).for_each(|task| self.pack_task(to, (p0, depth), task, avx512));
            }
            for step in 0..depth {
                let at = (p0 + step) * T::PER_STEP;
                for strip in 0..lanes / width {
                    let source = from.wrapping_add(strip * width + at * step_stride);
                    let to = to.add((strip * depth + step) * width);
                    T::neighbours(to, source, width, (elements - at).min(T::PER_STEP), step_stride);
                }
            }
        }
    }

    /// One of the [`tasks`](Self::tasks) of [`pack_rows`](Self::pack_rows).
    ///
    /// # Safety
    /// As for `pack_rows`.
    #[inline(always)]
    pub unsafe fn pack_rows_task(
        &self,
        to: *mut T::Step,
        (p0, depth): (usize, usize),
        pitch: usize,
        task: usize,
        avx512: bool,
    ) {
        let parts = depth.div_ceil(TASK_STEPS);
        let (strip, step) = (task / parts * self.task_strips(), task % parts * TASK_STEPS);
        let strips = strip..(strip + self.task_strips()).min(self.lanes.div_ceil(self.width));
        // SAFETY: as the caller promises.
        unsafe { self.pack_rows(to, (p0, depth), pitch, strips, step..(step + TASK_STEPS).min(depth), avx512) };
    }

    /// As [`pack_task`](Self::pack_task), of some strips and steps, each strip lane by lane: `[width][pitch]`, with zeros after the `depth`
    /// steps of a lane. Lanes are neighbours, the width is 16 or 32, the first step a multiple of 16.
    ///
    /// # Safety
    /// As for `pack_task`; strips are `pitch` times the width apart.
    #[inline(always)]
    pub unsafe fn pack_rows(
        &self,
        to: *mut T::Step,
        (p0, depth): (usize, usize),
        pitch: usize,
        strips: Range<usize>,
        steps: Range<usize>,
        avx512: bool,
    ) {
        let &Self { from, lanes, lane_stride, elements, step_stride, width } = self;
        for first in steps.clone().step_by(SIDE) {
            let count = (steps.end - first).min(SIDE);
            for strip in strips.clone() {
                let here = (lanes - strip * width).min(width);
                // In the first cache, steps across.
                let mut across = MaybeUninit::<[[T::Step; SIDE]; 2 * SIDE]>::uninit();
                let across = across.as_mut_ptr().cast::<T::Step>();
                assert!(width <= 2 * SIDE && size_of::<T::Step>() == 4, "strips of {width}");
                let source = from.wrapping_add(strip * width * lane_stride + (p0 + first) * T::PER_STEP * step_stride);
                let left = (elements - (p0 + first) * T::PER_STEP).min(count * T::PER_STEP);
                // SAFETY: every strip and step is in bounds, as the caller promises.
                unsafe {
                    T::strip(across, width, source, (here, lane_stride), (left, step_stride), avx512);
                    for lane in (0..width).step_by(SIDE) {
                        let to = to.add((strip * width + lane) * pitch + first).cast::<f32>();
                        self::lanes(to, pitch, across.add(lane).cast(), (count, width), (SIDE, 1), avx512);
                    }
                }
            }
        }
        if steps.end == depth {
            for lane in strips.start * width..strips.end * width {
                // SAFETY: as above.
                unsafe { to.add(lane * pitch + depth).write_bytes(0, pitch - depth) };
            }
        }
    }
}

/// Copies `count` neighbours: known lengths become a few vector moves.
///
/// # Safety
/// They are readable, and `to` is valid for writing them.
#[inline(always)]
pub(crate) unsafe fn copy<T>(from: *const T, to: *mut T, count: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        match count {
            32 => std::ptr::copy_nonoverlapping(from, to, 32),
            16 => std::ptr::copy_nonoverlapping(from, to, 16),
            8 => std::ptr::copy_nonoverlapping(from, to, 8),
            _ => std::ptr::copy_nonoverlapping(from, to, count),
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    /// Transposes `lanes` (at most 16) rows of `depth` neighbouring floats into columns of `dst`, `width` apart.
    ///
    /// # Safety
    /// The processor has AVX-512F; bounds as for [`super::strip`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn transpose(
        dst: *mut f32,
        width: usize,
        src: *const f32,
        lanes: usize,
        lane_stride: usize,
        depth: usize,
    ) {
        let lane_mask: __mmask16 = if lanes == 16 { !0 } else { (1 << lanes) - 1 };
        let mut p = 0;
        while p < depth {
            let steps = (depth - p).min(16);
            let step_mask: __mmask16 = if steps == 16 { !0 } else { (1 << steps) - 1 };
            let mut rows = [_mm512_setzero_ps(); 16];
            for (lane, row) in rows.iter_mut().enumerate() {
                if lane < lanes {
                    // SAFETY: masked to the steps that exist.
                    *row = unsafe { _mm512_maskz_loadu_ps(step_mask, src.add(lane * lane_stride + p)) };
                }
            }
            let columns = transpose16(rows);
            for (step, &column) in columns.iter().enumerate() {
                if step < steps {
                    // SAFETY: masked to the lanes that exist.
                    unsafe { _mm512_mask_storeu_ps(dst.add((p + step) * width), lane_mask, column) };
                }
            }
            p += 16;
        }
    }

    /// The transpose of a 16 x 16 matrix: pairs, then quads within 128 bits, then the 128-bit quarters.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn transpose16(r: [__m512; 16]) -> [__m512; 16] {
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut q = t;
        for i in 0..4 {
            let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]].map(|x| _mm512_castps_pd(x));
            q[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
            q[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
            q[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
            q[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
        }
        // q[4 g + j] holds, in its 128-bit quarter h, rows 4g..4g+4 of column 4h + j.
        let mut out = q;
        for j in 0..4 {
            let low = _mm512_shuffle_f32x4::<0b10_00_10_00>(q[j], q[4 + j]);
            let high = _mm512_shuffle_f32x4::<0b11_01_11_01>(q[j], q[4 + j]);
            let low2 = _mm512_shuffle_f32x4::<0b10_00_10_00>(q[8 + j], q[12 + j]);
            let high2 = _mm512_shuffle_f32x4::<0b11_01_11_01>(q[8 + j], q[12 + j]);
            out[j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low, low2);
            out[8 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low, low2);
            out[4 + j] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high, high2);
            out[12 + j] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high, high2);
        }
        out
    }
}
