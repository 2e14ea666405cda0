//! bf16 tensors for ops that compute in f32: an op gets copies, widened when it asks for them and rounded when it ends.
//!
//! Every op has bf16 on the CPU through this. What takes most of a step reads and writes bf16 itself, without copies.

use std::cell::RefCell;
use std::ptr::NonNull;

use half::bf16;
use rayon::prelude::*;

use super::{Tensor, memory, rounded, widened};
use crate::device::instructions::dispatch;

/// Elements of a task.
const TASK: usize = 1 << 14;
/// Pieces of memory that a thread keeps for the next op.
const KEPT: usize = 8;

/// Memory of a copy.
struct Piece {
    pointer: NonNull<u8>,
    bytes: usize,
}

impl Drop for Piece {
    fn drop(&mut self) {
        // SAFETY: allocated with these bytes, by `take`.
        unsafe { memory::release(self.pointer, self.bytes) };
    }
}

/// A bf16 tensor, or a part of one, in f32.
struct Widened {
    tensor: Tensor,
    piece: Piece,
    writes: bool,
}

impl Widened {
    fn values(&self) -> NonNull<f32> {
        self.piece.pointer.cast()
    }
}

#[derive(Default)]
struct Local {
    /// The copies of the op that runs, and of those below it: a thread that waits in an op may run another trainer's.
    ops: Vec<Vec<Widened>>,
    kept: Vec<Piece>,
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::default();
}

/// A running op: its copies are dropped with it, unwritten if it panics.
struct Scope;

impl Scope {
    fn enter() -> Self {
        LOCAL.with_borrow_mut(|local| local.ops.push(Vec::new()));
        Self
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        LOCAL.with_borrow_mut(|local| {
            for copy in local.ops.pop().into_iter().flatten() {
                if local.kept.len() < KEPT {
                    local.kept.push(copy.piece);
                }
            }
        });
    }
}

/// Runs a CPU op that computes in f32: [`Tensor::host`] and [`Tensor::host_mut`] give it bf16 tensors as f32, and what it may have
/// written is rounded, to the nearest with ties to even, when it ends.
pub(crate) fn in_f32<R>(op: impl FnOnce() -> R) -> R {
    let scope = Scope::enter();
    let result = op();
    let copies = LOCAL.with_borrow_mut(|local| local.ops.last_mut().map(std::mem::take)).unwrap_or_default();
    for copy in copies.iter().filter(|copy| copy.writes) {
        // SAFETY: the copy holds these elements, and the op that wrote them has ended.
        let values = unsafe { std::slice::from_raw_parts(copy.values().as_ptr(), copy.tensor.len()) };
        round_into(copy.tensor.host_mut::<bf16>(), values);
    }
    LOCAL.with_borrow_mut(|local| local.ops.last_mut().map(|last| *last = copies));
    drop(scope);
    result
}

/// The running op's copy of a bf16 tensor; None outside of [`in_f32`].
///
/// # Panics
/// Where the op writes to elements that it has in two copies: a bug in the op.
pub(super) fn copy(tensor: &Tensor, writes: bool) -> Option<*mut f32> {
    match LOCAL.with_borrow_mut(|local| local.find(tensor, writes)) {
        Found::NoOp => None,
        Found::Copy(values) => Some(values),
        Found::Room(piece) => {
            // Nothing stays borrowed: while it waits for the others, this thread may run another op.
            let values = piece.pointer.cast::<f32>().as_ptr();
            // SAFETY: the piece has room for these, is nobody else's, and any bits are a float.
            let room = unsafe { std::slice::from_raw_parts_mut(values, tensor.len()) };
            widen_into(room, tensor.host::<bf16>());
            LOCAL.with_borrow_mut(|local| {
                local.ops.last_mut().map(|copies| copies.push(Widened { tensor: tensor.clone(), piece, writes }))
            });
            Some(values)
        }
    }
}

/// What there is for a tensor of which a copy is wanted.
enum Found {
    /// No op runs that computes in f32.
    NoOp,
    Copy(*mut f32),
    /// Memory for a copy.
    Room(Piece),
}

impl Local {
    fn find(&mut self, tensor: &Tensor, writes: bool) -> Found {
        let Some(copies) = self.ops.last_mut() else { return Found::NoOp };
        let (start, end) = (tensor.address(), tensor.address() + tensor.bytes() as u64);
        for copy in copies {
            let (first, last) = (copy.tensor.address(), copy.tensor.address() + copy.tensor.bytes() as u64);
            if first <= start && end <= last {
                copy.writes |= writes;
                let offset = (start - first) as usize / size_of::<bf16>();
                return Found::Copy(copy.values().as_ptr().wrapping_add(offset));
            }
            let apart = end <= first || last <= start;
            assert!(apart || !(writes || copy.writes), "{tensor:?} overlaps a copy that is written");
        }
        let bytes = tensor.len() * size_of::<f32>();
        let kept = &mut self.kept;
        let best = (0..kept.len()).filter(|&i| kept[i].bytes >= bytes).min_by_key(|&i| kept[i].bytes);
        // Where all are too small, one makes room for a larger one.
        let piece = best.map(|i| kept.swap_remove(i)).or_else(|| kept.pop()).filter(|piece| piece.bytes >= bytes);
        Found::Room(piece.unwrap_or_else(|| take(bytes)))
    }
}

fn take(bytes: usize) -> Piece {
    // Whole huge pages, so that other sizes find it large enough.
    let bytes = if bytes >= memory::HUGE_PAGE / 4 { bytes.next_multiple_of(memory::HUGE_PAGE) } else { bytes.max(1) };
    let pointer =
        memory::allocate(bytes).unwrap_or_else(|| panic!("no memory for {bytes} bytes of a bf16 tensor in f32"));
    Piece { pointer, bytes }
}

/// `to[i] = from[i]`, on all threads.
pub(crate) fn widen_into(to: &mut [f32], from: &[bf16]) {
    convert(to, from, widened);
}

/// `to[i]` = the nearest bf16 to `from[i]`, ties to even, on all threads.
pub(crate) fn round_into(to: &mut [bf16], from: &[f32]) {
    convert(to, from, rounded);
}

fn convert<A: Copy + Sync, B: Send>(to: &mut [B], from: &[A], one: impl Fn(A) -> B + Sync) {
    assert_eq!(to.len(), from.len(), "conversion: lengths differ");
    let some = |(to, from): (&mut [B], &[A])| {
        dispatch(
            #[inline(always)]
            || to.iter_mut().zip(from).for_each(|(to, &from)| *to = one(from)),
        );
    };
    if to.len() < 2 * TASK {
        some((to, from));
    } else {
        to.par_chunks_mut(TASK).zip(from.par_chunks(TASK)).for_each(some);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::tensor::Context;

    fn brief(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|&x| rounded(x)).collect()
    }

    #[test]
    fn an_op_computes_in_f32_and_its_results_are_rounded_once() -> Result<()> {
        let context = Context::cpu();
        let x = context.tensor(&brief(&[1.0, 2.0, 3.0, 4.0]), [4])?;
        let y = context.tensor(&brief(&[9.0; 4]), [4])?;
        in_f32(|| {
            // A part of what is there already is a part of its copy.
            let (x, tail, y) = (x.host::<f32>(), x.part(2, [2]).unwrap(), y.host_mut::<f32>());
            assert_eq!(tail.host::<f32>().as_ptr(), x[2..].as_ptr());
            assert_eq!(y, [9.0; 4]);
            y.copy_from_slice(x);
            // Rounded each time, they would leave 1 as it is.
            (0..3).for_each(|_| y.iter_mut().for_each(|y| *y += 1.0 / 512.0));
        });
        assert_eq!(x.download::<bf16>()?, brief(&[1.0, 2.0, 3.0, 4.0]));
        assert_eq!(y.download::<bf16>()?, brief(&[1.0 + 1.0 / 128.0, 2.0, 3.0, 4.0]));
        Ok(())
    }

    #[test]
    fn an_op_that_panics_writes_nothing() -> Result<()> {
        let context = Context::cpu();
        let y = context.tensor(&brief(&[7.0; 3]), [3])?;
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            in_f32(|| {
                y.host_mut::<f32>().fill(1.0);
                panic!("half way");
            });
        }));
        assert!(panic.is_err());
        assert_eq!(y.download::<bf16>()?, brief(&[7.0; 3]));
        // And the next op finds no copy of it.
        in_f32(|| assert_eq!(y.host::<f32>(), [7.0; 3]));
        Ok(())
    }

    #[test]
    #[should_panic(expected = "overlaps a copy that is written")]
    fn two_copies_of_what_is_written_are_refused() {
        let x = Context::cpu().tensor(&brief(&[1.0; 4]), [4]).unwrap();
        let (head, tail) = (x.part(0, [3]).unwrap(), x.part(1, [3]).unwrap());
        in_f32(|| (head.host::<f32>().len(), tail.host_mut::<f32>().len()));
    }

    #[test]
    #[should_panic(expected = "under another dtype")]
    fn outside_of_an_op_bf16_is_bf16() {
        let x = Context::cpu().tensor(&brief(&[1.0]), [1]).unwrap();
        let _ = x.host::<f32>();
    }
}
