//! The processor's instruction sets that the CPU's ops are compiled for, and the one in force: the best that the processor has, or the one that
//! `ENGINE_CPU` names.

use std::sync::OnceLock;

use pulp::WithSimd;

use crate::error::{Error, Result};

/// An instruction set: vectors, and registers for matrices where there are any.
#[derive(Clone, Copy, Debug)]
pub struct InstructionSet {
    /// What the ops are compiled for.
    pub vectors: VectorSet,
    /// What multiplies matrices of bf16.
    pub tiles: Option<TileSet>,
}

/// Vector instructions, with pulp's proof that the processor has them.
#[derive(Clone, Copy, Debug)]
pub enum VectorSet {
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

/// Registers for matrices.
#[derive(Clone, Copy, Debug)]
pub enum TileSet {
    /// Intel's AMX, of a server of 2023.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx(PairProducts, TileProducts),
    /// A scalar model of it, for tests on processors without.
    Model,
}

/// Proof that the processor has `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct PairProducts(());

/// Proof that the processor has `tdpbf16ps`, with tiles of 16 rows of 64 bytes, and that the kernel lets this process use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[derive(Clone, Copy, Debug)]
pub struct TileProducts(());

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl TileProducts {
    /// Whether the processor has tiles of these shapes and their products.
    #[allow(unused_unsafe)] // cpuid is safe in newer versions of Rust
    fn are_there() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const TILES_AND_BF16: u32 = 1 << 24 | 1 << 22;
        // SAFETY: every processor of this kind has the instruction.
        let (most, features, palette) = unsafe { (__cpuid(0).eax, __cpuid_count(7, 0).edx, __cpuid_count(0x1d, 1)) };
        // Palette 1: bytes of a tile and of all, bytes of a row, number of tiles, most rows.
        let fits = palette.eax == 1024 << 16 | 8192 && palette.ebx == 8 << 16 | 64 && palette.ecx & 0xffff == 16;
        most >= 0x1d && features & TILES_AND_BF16 == TILES_AND_BF16 && fits
    }

    /// Asks the processor, then the kernel: it keeps 8 KiB more for each thread that uses tiles, and only where a process asked for it.
    fn try_new() -> Option<Self> {
        const REQUEST_PERMISSION: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: the call only changes what the process may use.
        let allowed = || unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0;
        (Self::are_there() && allowed()).then_some(Self(()))
    }

    /// For tests whose handler does what the instructions say.
    #[cfg(test)]
    pub(crate) fn trapped() -> Self {
        Self(())
    }
}

/// Whether the processor has AMX, and the operating system does not let this process use it.
pub fn amx_is_refused() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return TileProducts::are_there() && TileProducts::try_new().is_none();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return false;
}

/// What whoever asks for bf16 on such a processor is told.
pub const NO_PRODUCTS: &str =
    "this processor has no instruction for products of bf16: a step takes less memory than in f32, and more time";

/// The values of `ENGINE_CPU`, from the least on, and the model, which is never taken unasked.
const NAMES: [&str; 6] = ["plain", "avx2", "avx512", "avx512bf16", "amx", "amx-model"];

impl InstructionSet {
    /// As `ENGINE_CPU` names it.
    pub fn name(self) -> &'static str {
        NAMES[self.rank()]
    }

    /// Whether products of bf16 have instructions of their own.
    pub fn multiplies_bf16(self) -> bool {
        matches!(self.rank(), 3 | 4)
    }

    fn rank(self) -> usize {
        match (self.tiles, self.vectors) {
            (Some(TileSet::Model), _) => 5,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Some(TileSet::Amx(..)), _) => 4,
            (None, VectorSet::Plain) => 0,
            #[cfg(target_arch = "x86_64")]
            (None, VectorSet::Avx2(_)) => 1,
            #[cfg(target_arch = "x86_64")]
            (None, VectorSet::Avx512(_)) => 2,
            #[cfg(target_arch = "x86_64")]
            (None, VectorSet::Avx512Bf16(..)) => 3,
        }
    }

    /// All that the processor has, from the least on.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)] // elsewhere than on x86-64
        let mut sets = vec![VectorSet::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            sets.extend(pulp::x86::V3::try_new().map(VectorSet::Avx2));
            let wide = pulp::x86::V4::try_new();
            sets.extend(wide.map(VectorSet::Avx512));
            let pairs = std::arch::is_x86_feature_detected!("avx512bf16").then_some(PairProducts(()));
            sets.extend(wide.zip(pairs).map(|(wide, pairs)| VectorSet::Avx512Bf16(wide, pairs)));
        }
        #[allow(unused_mut)] // as above
        let mut sets: Vec<_> = sets.into_iter().map(|vectors| Self { vectors, tiles: None }).collect();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Some(VectorSet::Avx512Bf16(wide, pairs)) = sets.last().map(|set| set.vectors) {
            let vectors = VectorSet::Avx512Bf16(wide, pairs);
            sets.extend(TileProducts::try_new().map(|tiles| Self { vectors, tiles: Some(TileSet::Amx(pairs, tiles)) }));
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
    match instruction_set().vectors {
        #[cfg(target_arch = "x86_64")]
        VectorSet::Avx512(simd) | VectorSet::Avx512Bf16(simd, _) => pulp::Simd::vectorize(simd, op),
        #[cfg(target_arch = "x86_64")]
        VectorSet::Avx2(simd) => pulp::Simd::vectorize(simd, op),
        VectorSet::Plain => plain(op),
    }
}

/// As [`with_simd`], with AVX2's vectors at most: for code that need not be compiled for wider ones.
#[inline(always)]
pub fn with_narrow_simd<Op: WithSimd>(op: Op) -> Op::Output {
    match instruction_set().vectors {
        #[cfg(target_arch = "x86_64")]
        VectorSet::Avx512(simd) | VectorSet::Avx512Bf16(simd, _) => pulp::Simd::vectorize(*simd, op),
        #[cfg(target_arch = "x86_64")]
        VectorSet::Avx2(simd) => pulp::Simd::vectorize(simd, op),
        VectorSet::Plain => plain(op),
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

/// The set of this name among those that there are, from the least on; the last without a name. The model is everywhere.
fn named(name: Option<&str>, sets: &[InstructionSet]) -> Result<InstructionSet> {
    let best = sets.last().copied();
    let found = match name.map(str::trim) {
        None | Some("") => best,
        Some("amx-model") => best.map(|best| InstructionSet { tiles: Some(TileSet::Model), ..best }),
        Some(name) => sets.iter().find(|set| set.name() == name).copied(),
    };
    found.ok_or_else(|| {
        let here: Vec<_> = sets.iter().map(|set| set.name()).chain(["amx-model"]).collect();
        let name = name.unwrap_or_default().trim();
        let message = match name {
            "amx" => "this processor has no amx, or the operating system does not let this process use it".into(),
            name if NAMES.contains(&name) => format!("this processor has no {name}"),
            name => format!("`{name}` is none of {}", NAMES.join(", ")),
        };
        let hint = format!("set it to {} (a slow model for tests), or unset it to use the best", here.join(", "));
        Error::config("ENGINE_CPU", message, hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: InstructionSet = InstructionSet { vectors: VectorSet::Plain, tiles: None };

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
        let model = named(Some("amx-model"), &sets)?;
        assert!(model.name() == "amx-model" && !model.multiplies_bf16());
        Ok(())
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (name, words) in [
            ("avx512bf16", "this processor has no avx512bf16"),
            ("amx", "has no amx, or the operating system does not let"),
            ("sse9", "`sse9` is none of plain, avx2, avx512, avx512bf16, amx, amx-model"),
        ] {
            let said = named(Some(name), &[PLAIN]).unwrap_err().to_string();
            assert!(said.contains(words) && said.contains("set it to plain, amx-model (a slow"), "{said}");
        }
    }
}
