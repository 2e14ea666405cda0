//! A warp's registers as vectors of 32 lanes, and how an operation on lanes is compiled.
//!
//! An operation is compiled three times (baseline x86-64, AVX2 with FMA, AVX-512) and the fastest that the processor has is
//! chosen when a kernel is decoded: an instruction holds the function that executes it.

#![allow(clippy::needless_range_loop, reason = "a lane's number is meant, in several vectors")]

use std::sync::OnceLock;

/// Lanes of a warp.
pub const LANES: usize = 32;

/// Every lane.
pub const ALL: u32 = !0;

/// Bytes that [`Slot`]s count in.
pub const UNIT: usize = 64;

/// Where an operand is: units from the warp's registers on, or, where negative, from the constants on (`!value` units).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(pub i32);

/// The view that a lane-wise operation has of its warp.
#[derive(Debug)]
pub struct Lanes {
    pub registers: *mut u8,
    pub constants: *const u8,
    /// The lanes that execute.
    pub mask: u32,
}

/// The slots of one instruction: a destination and up to three sources.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    pub d: Slot,
    pub a: Slot,
    pub b: Slot,
    pub c: Slot,
}

/// Executes a lane-wise instruction.
///
/// # Safety
/// The slots lie within the warp's registers and constants and are of the operation's widths; the processor has the
/// instructions of the level that the function was chosen for.
pub type Run = unsafe fn(&mut Lanes, &Slots);

/// An operation's functions, by [`level`].
pub type Levels = [Run; 3];

impl Lanes {
    /// The 32 lanes of an operand.
    ///
    /// # Safety
    /// The slot is a `T`'s, within this warp's registers or constants.
    #[inline(always)]
    pub unsafe fn read<T: Copy>(&self, slot: Slot) -> [T; LANES] {
        let (base, units) = if slot.0 < 0 { (self.constants, !slot.0) } else { (self.registers.cast_const(), slot.0) };
        // SAFETY: the caller's promise; slots are aligned to 64 bytes.
        unsafe { *base.add(units as usize * UNIT).cast::<[T; LANES]>() }
    }

    /// One lane of an operand.
    ///
    /// # Safety
    /// As for [`Lanes::read`].
    #[inline(always)]
    pub unsafe fn lane<T: Copy>(&self, slot: Slot, lane: usize) -> T {
        let (base, units) = if slot.0 < 0 { (self.constants, !slot.0) } else { (self.registers.cast_const(), slot.0) };
        // SAFETY: the caller's promise.
        unsafe { *base.add(units as usize * UNIT).cast::<T>().add(lane) }
    }

    /// Writes the executing lanes of a register.
    ///
    /// # Safety
    /// As for [`Lanes::read`], and the slot is a register's.
    #[inline(always)]
    pub unsafe fn write<T: Copy>(&mut self, slot: Slot, values: &[T; LANES]) {
        // SAFETY: the caller's promise.
        let to = unsafe { self.registers.add(slot.0 as usize * UNIT).cast::<T>() };
        if self.mask == ALL {
            // SAFETY: as above.
            unsafe { to.cast::<[T; LANES]>().write(*values) };
        } else {
            let mut rest = self.mask;
            while rest != 0 {
                let lane = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                // SAFETY: as above.
                unsafe { to.add(lane).write(values[lane]) };
            }
        }
    }

    /// Writes one lane, whether it executes or not.
    ///
    /// # Safety
    /// As for [`Lanes::write`].
    #[inline(always)]
    pub unsafe fn set_lane<T: Copy>(&mut self, slot: Slot, lane: usize, value: T) {
        // SAFETY: the caller's promise.
        unsafe { self.registers.add(slot.0 as usize * UNIT).cast::<T>().add(lane).write(value) };
    }

    /// A predicate: one bit a lane.
    ///
    /// # Safety
    /// As for [`Lanes::read`].
    #[inline(always)]
    pub unsafe fn predicate(&self, slot: Slot) -> u32 {
        // SAFETY: the caller's promise.
        unsafe { self.lane::<u32>(slot, 0) }
    }

    /// Writes the executing lanes of a predicate.
    ///
    /// # Safety
    /// As for [`Lanes::write`].
    #[inline(always)]
    pub unsafe fn set_predicate(&mut self, slot: Slot, bits: u32) {
        // SAFETY: the caller's promise.
        unsafe {
            let old = self.lane::<u32>(slot, 0);
            self.set_lane(slot, 0, (old & !self.mask) | (bits & self.mask));
        }
    }

    /// The destination becomes `f` of `a`.
    ///
    /// # Safety
    /// As for [`Run`].
    #[inline(always)]
    pub unsafe fn unary<A: Copy, D: Copy + Default>(&mut self, s: &Slots, f: impl Fn(A) -> D) {
        // SAFETY: the caller's promise, as for `Run`.
        unsafe {
            let a = self.read::<A>(s.a);
            let mut d = [D::default(); LANES];
            for lane in 0..LANES {
                d[lane] = f(a[lane]);
            }
            self.write(s.d, &d);
        }
    }

    /// The destination becomes `f` of `a` and `b`.
    ///
    /// # Safety
    /// As for [`Run`].
    #[inline(always)]
    pub unsafe fn binary<A: Copy, B: Copy, D: Copy + Default>(&mut self, s: &Slots, f: impl Fn(A, B) -> D) {
        // SAFETY: the caller's promise, as for `Run`.
        unsafe {
            let (a, b) = (self.read::<A>(s.a), self.read::<B>(s.b));
            let mut d = [D::default(); LANES];
            for lane in 0..LANES {
                d[lane] = f(a[lane], b[lane]);
            }
            self.write(s.d, &d);
        }
    }

    /// The destination becomes `f` of `a`, `b` and `c`.
    ///
    /// # Safety
    /// As for [`Run`].
    #[inline(always)]
    pub unsafe fn ternary<A: Copy, B: Copy, C: Copy, D: Copy + Default>(
        &mut self,
        s: &Slots,
        f: impl Fn(A, B, C) -> D,
    ) {
        // SAFETY: the caller's promise, as for `Run`.
        unsafe {
            let (a, b, c) = (self.read::<A>(s.a), self.read::<B>(s.b), self.read::<C>(s.c));
            let mut d = [D::default(); LANES];
            for lane in 0..LANES {
                d[lane] = f(a[lane], b[lane], c[lane]);
            }
            self.write(s.d, &d);
        }
    }

    /// The destination, a predicate, becomes `f` of `a` and `b`.
    ///
    /// # Safety
    /// As for [`Run`].
    #[inline(always)]
    pub unsafe fn compare<A: Copy>(&mut self, s: &Slots, f: impl Fn(A, A) -> bool) {
        // SAFETY: the caller's promise, as for `Run`.
        unsafe {
            let (a, b) = (self.read::<A>(s.a), self.read::<A>(s.b));
            let mut bits = 0;
            for lane in 0..LANES {
                bits |= u32::from(f(a[lane], b[lane])) << lane;
            }
            self.set_predicate(s.d, bits);
        }
    }

    /// The destination becomes `a` where the predicate `c` holds, else `b`.
    ///
    /// # Safety
    /// As for [`Run`].
    #[inline(always)]
    pub unsafe fn select<A: Copy + Default>(&mut self, s: &Slots) {
        // SAFETY: the caller's promise, as for `Run`.
        unsafe {
            let (a, b, bits) = (self.read::<A>(s.a), self.read::<A>(s.b), self.predicate(s.c));
            let mut d = [A::default(); LANES];
            for lane in 0..LANES {
                d[lane] = if bits >> lane & 1 != 0 { a[lane] } else { b[lane] };
            }
            self.write(s.d, &d);
        }
    }
}

/// The levels of one operation, from an expression on `lanes` and `slots`.
macro_rules! levels {
    (|$l:ident, $s:ident| $body:expr) => {{
        #[inline(always)]
        #[allow(clippy::redundant_closure_call, reason = "the closure is the operation")]
        unsafe fn body($l: &mut $crate::exec::lanes::Lanes, $s: &$crate::exec::lanes::Slots) {
            // SAFETY: the caller's promise, as for `Run`.
            unsafe { $body }
        }
        unsafe fn baseline(l: &mut $crate::exec::lanes::Lanes, s: &$crate::exec::lanes::Slots) {
            // SAFETY: as above.
            unsafe { body(l, s) }
        }
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt"))]
        unsafe fn wide(l: &mut $crate::exec::lanes::Lanes, s: &$crate::exec::lanes::Slots) {
            // SAFETY: as above.
            unsafe { body(l, s) }
        }
        #[cfg_attr(
            target_arch = "x86_64",
            target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi1,bmi2,lzcnt,popcnt")
        )]
        unsafe fn widest(l: &mut $crate::exec::lanes::Lanes, s: &$crate::exec::lanes::Slots) {
            // SAFETY: as above.
            unsafe { body(l, s) }
        }
        const LEVELS: $crate::exec::lanes::Levels = [baseline, wide, widest];
        LEVELS
    }};
}
pub(crate) use levels;

/// The best level that this processor has: an index into [`Levels`].
pub fn level() -> usize {
    static LEVEL: OnceLock<usize> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let wide = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt");
            let widest = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            usize::from(wide) + usize::from(wide && widest)
        }
        #[cfg(not(target_arch = "x86_64"))]
        0
    })
}
