//! The processor's instruction sets that the CPU's ops are compiled for, and the one in force: the best that the processor has, or the one that
//! `ENGINE_CPU` names.

use std::sync::OnceLock;

use pulp::WithSimd;

use crate::error::{Error, Result};

/// An instruction set, with pulp's proof that the processor has it.
#[derive(Clone, Copy, Debug)]
pub enum InstructionSet {
    /// What every processor has.
    Plain,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    /// AVX-512 of a server of 2017: F, BW, CD, DQ, VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    /// The same with `vdpbf16ps`, the product of pairs of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(pulp::x86::V4, PairProducts),
}

/// Proof that the processor has `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct PairProducts(());

/// The values of `ENGINE_CPU`, from the least on.
const NAMES: [&str; 4] = ["plain", "avx2", "avx512", "avx512bf16"];

impl InstructionSet {
    /// As `ENGINE_CPU` names it.
    pub fn name(self) -> &'static str {
        NAMES[self.rank()]
    }

    /// Whether products of bf16 have an instruction of their own.
    pub fn multiplies_bf16(self) -> bool {
        self.rank() == 3
    }

    fn rank(self) -> usize {
        match self {
            Self::Plain => 0,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 1,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => 2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(..) => 3,
        }
    }

    /// All that the processor has, from the least on.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)] // elsewhere than on x86-64
        let mut sets = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            sets.extend(pulp::x86::V3::try_new().map(Self::Avx2));
            let wide = pulp::x86::V4::try_new();
            sets.extend(wide.map(Self::Avx512));
            let pairs = std::arch::is_x86_feature_detected!("avx512bf16").then_some(PairProducts(()));
            sets.extend(wide.zip(pairs).map(|(wide, pairs)| Self::Avx512Bf16(wide, pairs)));
        }
        sets
    }
}

static CHOSEN: OnceLock<InstructionSet> = OnceLock::new();

/// The instruction set in force, settled by the first call.
///
/// # Errors
/// [`Error::Config`] where `ENGINE_CPU` is set to no instruction set, or to one that the processor has not.
pub fn chosen() -> Result<InstructionSet> {
    let name = std::env::var_os("ENGINE_CPU").map(|name| name.to_string_lossy().into_owned());
    let set = named(name.as_deref(), &InstructionSet::available())?;
    Ok(*CHOSEN.get_or_init(|| set))
}

/// [`chosen`].
///
/// # Panics
/// With the text of its error.
#[inline]
pub fn instruction_set() -> InstructionSet {
    match CHOSEN.get() {
        Some(&set) => set,
        None => chosen().unwrap_or_else(|error| panic!("{error}")),
    }
}

/// Runs `f` compiled for the instruction set in force. Only what is inlined into `f` gains: loops written in it, closures, and
/// functions marked `#[inline(always)]`.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    with_simd(f)
}

/// Runs `op` with the widest vectors of the instruction set in force, compiled for it.
#[inline(always)]
pub fn with_simd<Op: WithSimd>(op: Op) -> Op::Output {
    match instruction_set() {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(simd) | InstructionSet::Avx512Bf16(simd, _) => pulp::Simd::vectorize(simd, op),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(simd) => pulp::Simd::vectorize(simd, op),
        InstructionSet::Plain => plain(op),
    }
}

/// As [`with_simd`], with AVX2's vectors at most: for code that need not be compiled for wider ones.
#[inline(always)]
pub fn with_narrow_simd<Op: WithSimd>(op: Op) -> Op::Output {
    match instruction_set() {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512(simd) | InstructionSet::Avx512Bf16(simd, _) => pulp::Simd::vectorize(*simd, op),
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2(simd) => pulp::Simd::vectorize(simd, op),
        InstructionSet::Plain => plain(op),
    }
}

/// Runs `op` with what every processor of this kind has: on ARM its vectors of 128 bits.
#[inline(always)]
fn plain<Op: WithSimd>(op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    return pulp::Simd::vectorize(pulp::Scalar, op);
    #[cfg(not(target_arch = "x86_64"))]
    return pulp::Arch::new().dispatch(op);
}

/// The set of this name among those that there are, from the least on; the last without a name.
fn named(name: Option<&str>, sets: &[InstructionSet]) -> Result<InstructionSet> {
    let found = match name {
        None | Some("") => sets.last(),
        Some(name) => sets.iter().find(|set| set.name() == name.trim()),
    };
    found.copied().ok_or_else(|| {
        let here: Vec<_> = sets.iter().map(|set| set.name()).collect();
        let name = name.unwrap_or_default();
        let message = match NAMES.contains(&name.trim()) {
            true => format!("this processor has no {}", name.trim()),
            false => format!("`{name}` is none of {}", NAMES.join(", ")),
        };
        Error::config("ENGINE_CPU", message, format!("set it to {}, or unset it to use the best", here.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_taken_where_none_is_named() -> Result<()> {
        let sets = InstructionSet::available();
        let ranks: Vec<_> = sets.iter().map(|set| set.rank()).collect();
        assert!(ranks.is_sorted() && ranks[0] == 0);
        assert_eq!(named(None, &sets)?.rank(), *ranks.last().unwrap());
        for set in &sets {
            assert_eq!(named(Some(set.name()), &sets)?.rank(), set.rank());
        }
        assert_eq!(named(Some(" plain "), &sets)?.name(), "plain");
        Ok(())
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        let missing = named(Some("avx512bf16"), &[InstructionSet::Plain]).unwrap_err().to_string();
        assert!(
            missing.contains("this processor has no avx512bf16") && missing.contains("set it to plain"),
            "{missing}"
        );
        let unknown = named(Some("sse9"), &[InstructionSet::Plain]).unwrap_err().to_string();
        assert!(unknown.contains("`sse9`") && unknown.contains("plain, avx2, avx512, avx512bf16"), "{unknown}");
    }
}
