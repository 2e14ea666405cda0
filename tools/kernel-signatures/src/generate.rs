//! Rust source of the typed launches.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::{Argument, ArgumentKind, Element, Error, Result, Scalar, Signature};

/// Writes the launches of all kernels: per entry a `static` description, per entry or family a struct with a field per
/// argument, and `ALL`, the table of every entry.
///
/// Entries `x_f32` and `x_bf16` that differ in nothing but `f32` and `bf16` behind some pointers are a family, and share
/// one struct that is generic over the storage type. The text is for an `include!` into the module that has the types
/// which it names in scope.
///
/// # Errors
/// Where two launches would have one name.
pub fn generate(signatures: &[Signature]) -> Result<String> {
    let mut out = String::new();
    let mut names = BTreeMap::new();
    for signature in signatures {
        entry(&mut out, signature);
    }
    for launch in launches(signatures) {
        let first = launch.signature;
        if let Some(other) = names.insert(launch.name.clone(), first) {
            return Err(Error::new(
                &format!("kernels/{}.cu", first.module),
                first.line,
                format!("{} and {} would both be called {}: rename one", first.name, other.name, launch.name),
            ));
        }
        launch.write(&mut out);
    }
    let table: Vec<String> = signatures.iter().map(|s| format!("&{}", constant(&s.name))).collect();
    let _ = writeln!(out, "/// Every entry of every kernel file.");
    let _ = writeln!(out, "pub static ALL: &[&Kernel] = &[{}];", table.join(", "));
    Ok(out)
}

fn constant(name: &str) -> String {
    name.to_uppercase()
}

fn camel_case(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_uppercase() + rest
        })
        .collect()
}

fn entry(out: &mut String, signature: &Signature) {
    let Signature { name, module, line, max_threads, .. } = signature;
    let _ = writeln!(out, "/// `{name}`, on line {line} of `kernels/{module}.cu`.");
    let _ = writeln!(
        out,
        "pub static {}: Kernel = Kernel {{ name: {name:?}, module: {module:?}, max_threads: {max_threads} }};\n",
        constant(name)
    );
}

/// One struct: a family, or an entry by itself.
struct Launch<'a> {
    name: String,
    signature: &'a Signature,
    /// Of a family: the `bf16` entry.
    twin: Option<&'a Signature>,
}

fn launches(signatures: &[Signature]) -> Vec<Launch<'_>> {
    let family = |stem: &str| {
        let find = |suffix: &str| signatures.iter().find(|s| s.name.strip_suffix(suffix) == Some(stem));
        let (f32, bf16) = (find("_f32")?, find("_bf16")?);
        is_family(f32, bf16).then_some((f32, bf16))
    };
    let mut all = Vec::new();
    for signature in signatures {
        let stem = signature.name.strip_suffix("_f32").or(signature.name.strip_suffix("_bf16"));
        match stem.and_then(family) {
            Some((f32, bf16)) if f32 == signature => {
                all.push(Launch { name: camel_case(stem.unwrap_or_default()), signature, twin: Some(bf16) });
            }
            Some(_) => {}
            None => all.push(Launch { name: camel_case(&signature.name), signature, twin: None }),
        }
    }
    all
}

/// Equal but for `f32` in the one and `bf16` in the other behind at least one pointer.
fn is_family(f32: &Signature, bf16: &Signature) -> bool {
    let mut varies = false;
    f32.module == bf16.module
        && f32.arguments.len() == bf16.arguments.len()
        && f32.arguments.iter().zip(&bf16.arguments).all(|(one, other)| {
            let here = is_storage(one, other);
            varies |= here;
            here || one == other
        })
        && varies
}

fn is_storage(f32: &Argument, bf16: &Argument) -> bool {
    use ArgumentKind::Pointer;
    f32.name == bf16.name
        && matches!((f32.kind, bf16.kind), (
            Pointer { writable: one, element: Element::F32 },
            Pointer { writable: other, element: Element::Bf16 },
        ) if one == other)
}

impl Launch<'_> {
    fn write(&self, out: &mut String) {
        let Self { name, signature, twin } = self;
        let pointers = signature.arguments.iter().any(|a| matches!(a.kind, ArgumentKind::Pointer { .. }));
        let (declared, used) = match (pointers, twin.is_some()) {
            (_, true) => ("<'a, T: KernelFloat>", "<'_, T>"),
            (true, false) => ("<'a>", "<'_>"),
            (false, false) => ("", ""),
        };
        let bounds = if twin.is_some() { "<T: KernelFloat>" } else { "" };
        let entries = match twin {
            Some(twin) => format!("`{}` and `{}`", signature.name, twin.name),
            None => format!("`{}`", signature.name),
        };
        let _ =
            writeln!(out, "/// Launches {entries} of `kernels/{}.cu`, which says what they compute.", signature.module);
        let _ = writeln!(out, "#[derive(Debug)]\npub struct {name}{declared} {{");
        for (index, argument) in signature.arguments.iter().enumerate() {
            let varies = twin.is_some_and(|twin| is_storage(argument, &twin.arguments[index]));
            let (doc, kind) = field(argument.kind, varies);
            let _ = writeln!(out, "    /// {doc}\n    pub {}: {kind},", argument.name);
        }
        let _ = writeln!(out, "}}\n\nimpl{bounds} {name}{used} {{");
        let _ = writeln!(out, "    /// Submits the kernel.\n    ///\n    /// # Errors");
        let _ = writeln!(out, "    /// A launch configuration that the kernel cannot take, or a device that refuses.");
        let _ = writeln!(
            out,
            "    pub fn launch(self, accelerator: &dyn Accelerator, config: LaunchConfig) -> Result<()> {{"
        );
        let kernel = match twin {
            Some(twin) => format!("T::pick(&{}, &{})", constant(&signature.name), constant(&twin.name)),
            None => format!("&{}", constant(&signature.name)),
        };
        let _ = writeln!(out, "        let arguments = [");
        for Argument { name, kind } in &signature.arguments {
            let _ = match kind {
                ArgumentKind::Pointer { .. } => writeln!(out, "            self.{name}.argument(),"),
                ArgumentKind::Scalar(scalar) => {
                    let variant = match scalar {
                        Scalar::I32 => "I32",
                        Scalar::U32 => "U32",
                        Scalar::U64 => "U64",
                        Scalar::F32 => "F32",
                    };
                    writeln!(out, "            KernelArgument::{variant}(self.{name}),")
                }
            };
        }
        let _ = writeln!(out, "        ];\n        // SAFETY: the arguments are this kernel's, in its order.");
        let _ = writeln!(out, "        unsafe {{ submit(accelerator, {kernel}, config, &arguments) }}\n    }}\n}}\n");
    }
}

/// A field's doc and Rust type.
fn field(kind: ArgumentKind, varies: bool) -> (String, String) {
    match kind {
        ArgumentKind::Scalar(scalar) => (format!("`{}`", scalar.name()), scalar.name().into()),
        ArgumentKind::Pointer { writable, element } => {
            let source = if varies { "T" } else { element.kernel_name() };
            let rust = if varies { "T" } else { element.rust_name() };
            match writable {
                true => (format!("`{source}*`, written"), format!("SliceMut<'a, {rust}>")),
                false => (format!("`const {source}*`, read"), format!("Slice<'a, {rust}>")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    #[test]
    fn families_share_a_struct() {
        let text = "KERNELS(k_fwd, (128), (Out<T> y, In<f32> w, u32 n), (y, w, n)) {}\nKERNEL(k_sum, (128), (Out<f32> y, u64 n), (y, n)) {}";
        let rust = generate(&parse(text, "k.cu").unwrap()).unwrap();
        for expected in [
            "pub struct KFwd<'a, T: KernelFloat> {",
            "pub y: SliceMut<'a, T>,",
            "pub w: Slice<'a, f32>,",
            "submit(accelerator, T::pick(&K_FWD_F32, &K_FWD_BF16), config, &arguments)",
            "pub struct KSum<'a> {",
            "KernelArgument::U64(self.n),",
            "Kernel { name: \"k_sum\", module: \"k\", max_threads: 128 }",
            "pub static ALL: &[&Kernel] = &[&K_FWD_F32, &K_FWD_BF16, &K_SUM];",
        ] {
            assert!(rust.contains(expected), "{expected}\n{rust}");
        }
        assert!(!rust.contains("KFwdF32"));
    }

    #[test]
    fn what_differs_otherwise_stays_apart() {
        for other in
            ["f32, (Out<T> y, u32 n)", "bf16, (Out<T> y, i32 n)", "bf16, (Out<T> z, u32 n)", "bf16, (In<T> y, u32 n)"]
        {
            let name = if other.contains('z') { "z" } else { "y" };
            let text = format!(
                "ENTRY(k_f32, (128), f32, (Out<T> y, u32 n), b(y, n))\nENTRY(k_bf16, (128), {other}, b({name}, n))"
            );
            let rust = generate(&parse(&text, "k.cu").unwrap()).unwrap();
            assert!(rust.contains("pub struct KF32<'a> {") && rust.contains("pub struct KBf16<'a> {"), "{rust}");
        }
    }

    #[test]
    fn names_do_not_clash() {
        let text = "KERNEL(k_a, (32), (u32 n), (n)) {}\nKERNEL(k__a, (32), (u32 n), (n)) {}";
        let error = generate(&parse(text, "k.cu").unwrap()).unwrap_err();
        assert!(error.to_string().contains("would both be called KA"), "{error}");
    }
}
