//! Rows of tensors that are held in bf16 and computed in f32: widened into scratch that stays in the first cache, rounded once. Rows
//! of f32 and f64 are used where they lie.

use pulp::Simd;

use super::float::{Float, Held};
use super::vector::dispatch;

/// Whether values are computed as they are held.
pub(crate) const fn is_own<E: Held>() -> bool {
    size_of::<E>() == size_of::<E::Float>()
}

/// Scratch that [`read`] or [`write()`] needs for `len` elements.
pub(crate) const fn room<E: Held>(len: usize) -> usize {
    if is_own::<E>() { 0 } else { len }
}

/// `to[i] = from[i]`.
pub(crate) fn widen<E: Held>(to: &mut [E::Float], from: &[E]) {
    assert_eq!(to.len(), from.len(), "widen: lengths differ");
    dispatch(
        #[inline(always)]
        || to.iter_mut().zip(from).for_each(|(to, &from)| *to = from.get()),
    );
}

/// `to[i]` = the nearest to `from[i]`.
pub(crate) fn round<E: Held>(to: &mut [E], from: &[E::Float]) {
    assert_eq!(to.len(), from.len(), "round: lengths differ");
    dispatch(
        #[inline(always)]
        || to.iter_mut().zip(from).for_each(|(to, &from)| *to = E::of(from)),
    );
}

/// The elements as floats: `from` itself, or widened into `scratch`, of at least [`room`].
pub(crate) fn read<'a, E: Held>(from: &'a [E], scratch: &'a mut [E::Float]) -> &'a [E::Float] {
    if is_own::<E>() {
        return bytemuck::cast_slice(from);
    }
    let values = &mut scratch[..from.len()];
    widen(values, from);
    values
}

/// Runs `f` on the elements as floats: on `to` itself, or on `scratch`, of at least [`room`], which is rounded into it afterwards. With
/// `reads`, `f` finds there what `to` holds.
pub(crate) fn write<E: Held, R>(
    to: &mut [E],
    reads: bool,
    scratch: &mut [E::Float],
    f: impl FnOnce(&mut [E::Float]) -> R,
) -> R {
    if is_own::<E>() {
        return f(bytemuck::cast_slice_mut(to));
    }
    let values = &mut scratch[..to.len()];
    if reads {
        widen(values, to);
    }
    let result = f(values);
    round(to, values);
    result
}

/// [`write()`] with scratch of its own.
pub(crate) fn write_alone<E: Held, R>(to: &mut [E], reads: bool, f: impl FnOnce(&mut [E::Float]) -> R) -> R {
    E::Float::with_scratch(room::<E>(to.len()), |scratch| write(to, reads, scratch, f))
}

/// A vector at `from`, in f32.
///
/// # Safety
/// Its elements are readable.
#[inline(always)]
pub(crate) unsafe fn load<E: Held<Float = f32>, S: Simd>(from: *const E) -> S::f32s {
    // SAFETY: as the caller promises; vectors of 16 are those of AVX-512, and of `S`.
    unsafe {
        if is_own::<E>() {
            return from.cast::<S::f32s>().read_unaligned();
        }
        #[cfg(target_arch = "x86_64")]
        if S::F32_LANES == 16 {
            use std::arch::x86_64::*;
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            return std::mem::transmute_copy(&_mm512_slli_epi32::<16>(halves));
        }
        let mut values = [0f32; 16];
        for (lane, value) in values.iter_mut().enumerate().take(S::F32_LANES) {
            *value = from.add(lane).read_unaligned().get();
        }
        values.as_ptr().cast::<S::f32s>().read_unaligned()
    }
}

/// Writes a vector of f32 to `to`, each element rounded once.
///
/// # Safety
/// Its elements may be written.
#[inline(always)]
pub(crate) unsafe fn store<E: Held<Float = f32>, S: Simd>(to: *mut E, value: S::f32s) {
    // SAFETY: as the caller promises; vectors of 16 are those of AVX-512, and of `S`.
    unsafe {
        if is_own::<E>() {
            return to.cast::<S::f32s>().write_unaligned(value);
        }
        #[cfg(target_arch = "x86_64")]
        if S::F32_LANES == 16 {
            use std::arch::x86_64::*;
            // As `tensor::rounded` has it.
            let values: __m512 = std::mem::transmute_copy(&value);
            let bits = _mm512_castps_si512(values);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
            let bits = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x40_0000));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits)));
            return;
        }
        let mut values = [0f32; 16];
        values.as_mut_ptr().cast::<S::f32s>().write_unaligned(value);
        for (lane, &value) in values.iter().enumerate().take(S::F32_LANES) {
            to.add(lane).write_unaligned(E::of(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use pulp::NullaryFnOnce;

    use super::*;
    use crate::device::instructions::{InstructionSet, VectorSet};

    /// Copies `from`, a vector at a time.
    struct Through<'a, S>(S, &'a [bf16], &'a mut [f32]);

    impl<S: Simd> NullaryFnOnce for Through<'_, S> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self(_, from, to) = self;
            for at in (0..from.len()).step_by(S::F32_LANES) {
                // SAFETY: whole vectors of both.
                unsafe {
                    let values = load::<bf16, S>(from.as_ptr().add(at));
                    to.as_mut_ptr().add(at).cast::<S::f32s>().write_unaligned(values);
                }
            }
        }
    }

    #[test]
    fn vectors_are_widened_as_single_values_are() {
        let from: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let expected: Vec<f32> = from.iter().map(|x| x.get()).collect();
        for set in InstructionSet::available() {
            let mut to = vec![0.0; from.len()];
            match set.vectors {
                VectorSet::Plain => pulp::Scalar.vectorize(Through(pulp::Scalar, &from, &mut to)),
                #[cfg(target_arch = "x86_64")]
                VectorSet::Avx2(simd) => simd.vectorize(Through(simd, &from, &mut to)),
                #[cfg(target_arch = "x86_64")]
                VectorSet::Avx512(simd) | VectorSet::Avx512Bf16(simd, _) => {
                    simd.vectorize(Through(simd, &from, &mut to));
                }
            }
            assert!(bits(&to) == bits(&expected), "{}", set.name());
        }
    }

    /// Rounds `from`, a vector at a time.
    struct Rounded<'a, S>(S, &'a [f32], &'a mut [bf16]);

    impl<S: Simd> NullaryFnOnce for Rounded<'_, S> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self(_, from, to) = self;
            for at in (0..from.len()).step_by(S::F32_LANES) {
                // SAFETY: whole vectors of both.
                unsafe {
                    let values = from.as_ptr().add(at).cast::<S::f32s>().read_unaligned();
                    store::<bf16, S>(to.as_mut_ptr().add(at), values);
                }
            }
        }
    }

    #[test]
    fn vectors_are_rounded_as_single_values_are() {
        // Every upper half with lower halves around a tie: NaNs, infinities and denormals among them.
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        let from: Vec<f32> =
            (0..=u16::MAX).flat_map(|high| lower.map(|low| f32::from_bits((high as u32) << 16 | low))).collect();
        let expected: Vec<u16> = from.iter().map(|&x| bf16::of(x).to_bits()).collect();
        for set in InstructionSet::available() {
            let mut to = vec![bf16::ZERO; from.len()];
            match set.vectors {
                VectorSet::Plain => pulp::Scalar.vectorize(Rounded(pulp::Scalar, &from, &mut to)),
                #[cfg(target_arch = "x86_64")]
                VectorSet::Avx2(simd) => simd.vectorize(Rounded(simd, &from, &mut to)),
                #[cfg(target_arch = "x86_64")]
                VectorSet::Avx512(simd) | VectorSet::Avx512Bf16(simd, _) => {
                    simd.vectorize(Rounded(simd, &from, &mut to));
                }
            }
            assert!(to.iter().map(|x| x.to_bits()).eq(expected.iter().copied()), "{}", set.name());
        }
    }

    #[test]
    fn rows_are_used_where_they_lie_or_rounded_once() {
        let (mut own, mut brief) = ([1.0f32, 2.0, 3.0], [1.0f32, 2.0, 3.0].map(bf16::of));
        assert_eq!(read(&own, &mut []).as_ptr(), own.as_ptr());
        assert_eq!(read(&brief, &mut [0.0; 4]), [1.0, 2.0, 3.0]);
        let third = |values: &mut [f32]| values.iter_mut().for_each(|value| *value /= 3.0);
        write(&mut own, true, &mut [], third);
        write_alone(&mut brief, true, third);
        assert_eq!(own, [1.0 / 3.0, 2.0 / 3.0, 1.0]);
        assert_eq!(brief, [1.0f32 / 3.0, 2.0 / 3.0, 1.0].map(bf16::of));
    }
}
