//! The grammar of a kernel file's entries, and the dialect's prohibitions.

use std::path::Path;

use crate::expand::{Macros, Token, is_word_char, lines, tokenize};
use crate::source::quoted_include;
use crate::{Argument, ArgumentKind, Element, Error, Result, Scalar, Signature, strip_comments};

const FORM: &str = "an entry is written by a macro of common/entry.cuh: KERNELS(name, (256), (Out<T> y, In<T> x, u32 n), (y, x, n)) { … }";

/// How many of [`FORBIDDEN`] are forbidden in common/, too.
const OF_ENTRIES: usize = 2;

/// Words that no kernel file may use, with what to use instead.
const FORBIDDEN: &[(&str, &str)] = &[
    ("__global__", "write the entry by KERNELS, KERNEL, ENTRIES or ENTRY of common/entry.cuh"),
    ("\"C\"", "write the entry by KERNELS, KERNEL, ENTRIES or ENTRY of common/entry.cuh"),
    ("asm", "inline PTX belongs into a wrapper in common/, with a host model beside it"),
    ("__asm__", "inline PTX belongs into a wrapper in common/, with a host model beside it"),
    ("alignas", "use __align__"),
    ("__shared__", "use SMEM_DYN(name) or SHARED(type, name, dims), which the emulator knows too"),
    ("__expf", "no fast-math"),
    ("__logf", "no fast-math"),
    ("__sinf", "no fast-math"),
    ("__cosf", "no fast-math"),
    ("__powf", "no fast-math"),
    ("__fdividef", "no fast-math"),
];

/// Words that a launch's field cannot be called.
const RUST_KEYWORDS: &[&str] = &[
    "as", "async", "await", "box", "crate", "dyn", "fn", "gen", "impl", "in", "let", "loop", "macro", "match", "mod",
    "move", "mut", "override", "priv", "pub", "ref", "self", "super", "trait", "try", "type", "unsafe", "use", "where",
    "yield", "abstract", "become", "final", "unsized", "typeof", "virtual", "do",
];

/// Reads the entries of one kernel source, which the macros of `kernels/common/entry.cuh` write.
///
/// `file` is its path: the stem is the module, every entry's name starts with it, and a file in `common/` may hold
/// `asm` but no entries.
///
/// # Errors
/// Whatever is outside the dialect, with its line.
pub fn parse(source: &str, file: &str) -> Result<Vec<Signature>> {
    let path = Path::new(file);
    let module = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let common = path.parent().and_then(Path::file_name).is_some_and(|folder| folder == "common");
    let source = strip_comments(source);
    let mut macros = Macros::of_entries();
    let mut tokens: Vec<Token> = Vec::new();
    for (line, text) in lines(&source) {
        let fail = |message: String| Error::new(file, line, message);
        let words = tokenize(&text, line);
        if !text.starts_with('#') {
            tokens.extend(words);
        } else if common {
            let own = path.file_stem().is_some_and(|stem| stem == "entry");
            if !own && words.iter().any(|word| Macros::is_of_entries(&word.text)) {
                return Err(fail("macros that write entries are in common/entry.cuh alone".into()));
            }
        } else {
            check_words(&words, FORBIDDEN).map_err(fail)?;
            check_include(&text).map_err(fail)?;
            macros.define(&text, line).map_err(fail)?;
        }
    }
    let forbidden = if common { &FORBIDDEN[..OF_ENTRIES] } else { FORBIDDEN };
    let mut entries: Vec<Signature> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let fail = |message: String| Error::new(file, tokens[at].line, message);
        let called = macros.call(&tokens[at..]).map_err(fail)?;
        let length = called.as_ref().map_or(1, |(_, length)| *length);
        check_words(&tokens[at..at + length], forbidden).map_err(fail)?;
        // Of a word that is no call nothing is an entry, but what should have been one.
        let text = match called {
            Some((text, _)) => text,
            None if Macros::is_of_entries(&tokens[at].text) => tokens[at..=at].to_vec(),
            None => Vec::new(),
        };
        for entry in entries_of(&text, &module).map_err(fail)? {
            if common {
                return Err(fail("common/ holds no entries: move this one into its op's file".into()));
            }
            if let Some(other) = entries.iter().find(|other| other.name == entry.name) {
                return Err(fail(format!("entry {} is already on line {}", entry.name, other.line)));
            }
            entries.push(entry);
        }
        at += length;
    }
    Ok(entries)
}

/// Refuses what the dialect lacks, as it stands in the file: what a macro of entries makes of it is another matter.
fn check_words(words: &[Token], forbidden: &[(&str, &str)]) -> Parsed<()> {
    match forbidden.iter().find(|(word, _)| words.iter().any(|token| token.text == *word)) {
        Some((word, instead)) => Err(format!("`{word}` is not allowed here: {instead}")),
        None => Ok(()),
    }
}

/// The entries in the text of a macro: `using T = f32; extern "C" __global__ …`.
fn entries_of(text: &[Token], module: &str) -> Parsed<Vec<Signature>> {
    let mut entries = Vec::new();
    let mut storage = "";
    for (at, token) in text.iter().enumerate() {
        let word = |after: usize| text.get(at + after).map_or("", |token| token.text.as_str());
        match token.text.as_str() {
            "using" if word(1) == "T" => storage = word(3),
            word if Macros::is_of_entries(word) => {
                return Err(format!(
                    "{word} is called in a way that nobody reads: write it out, with its arguments; {FORM}"
                ));
            }
            "extern" => entries.push(Cursor { tokens: text, at, storage }.entry(module, token.line)?),
            _ => {}
        }
    }
    Ok(entries)
}

fn check_include(line: &str) -> std::result::Result<(), String> {
    let directive = line.trim_start().trim_start_matches('#').trim_start();
    if !directive.starts_with("include") {
        return Ok(());
    }
    let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let known = quoted_include(line)
        .and_then(|name| name.strip_prefix("common/")?.strip_suffix(".cuh"))
        .is_some_and(|name| !name.is_empty() && plain(name));
    if known { Ok(()) } else { Err(format!("`{}`: only \"common/*.cuh\" may be included", line.trim())) }
}

fn is_identifier(token: &str) -> bool {
    token.chars().all(is_word_char) && token.starts_with(|c: char| !c.is_ascii_digit())
}

struct Cursor<'a> {
    tokens: &'a [Token],
    at: usize,
    /// What `T` stands for.
    storage: &'a str,
}

type Parsed<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |token| token.text.as_str())
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn accept(&mut self, token: &str) -> bool {
        let found = self.peek() == token;
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, token: &str) -> Parsed<()> {
        match self.next() {
            found if found == token => Ok(()),
            "" => Err(format!("expected `{token}`, found the end of the entry; {FORM}")),
            found => Err(format!("expected `{token}`, found `{found}`; {FORM}")),
        }
    }

    fn identifier(&mut self, what: &str) -> Parsed<&'a str> {
        match self.next() {
            token if is_identifier(token) => Ok(token),
            "" => Err(format!("expected {what}, found the end of the entry; {FORM}")),
            token => Err(format!("expected {what}, found `{token}`; {FORM}")),
        }
    }

    fn entry(mut self, module: &str, line: usize) -> Parsed<Signature> {
        for token in ["extern", "\"C\"", "__global__", "void", "__launch_bounds__", "("] {
            self.expect(token)?;
        }
        let bound = self.next();
        let max_threads = bound.parse::<u32>().ok().filter(|n| n % 32 == 0 && (32..=1024).contains(n));
        let max_threads = max_threads.ok_or_else(|| {
            format!("__launch_bounds__({bound}): a literal multiple of 32 from 32 to 1024 is expected")
        })?;
        if self.accept(",") {
            let blocks = self.next();
            if !blocks.parse::<u32>().is_ok_and(|n| (1..=32).contains(&n)) {
                return Err(format!(
                    "__launch_bounds__({bound}, {blocks}): a literal number of blocks from 1 to 32 is expected"
                ));
            }
        }
        self.expect(")")?;
        let name = self.identifier("the entry's name")?;
        let belongs = name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
        if !belongs || name.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(format!("entry `{name}` has to be lower case and start with its file's name, `{module}_`"));
        }
        self.expect("(")?;
        let mut arguments: Vec<Argument> = Vec::new();
        loop {
            let argument = self.argument()?;
            if arguments.iter().any(|other| other.name == argument.name) {
                return Err(format!("two arguments are called `{}`", argument.name));
            }
            arguments.push(argument);
            if !self.accept(",") {
                break;
            }
        }
        self.expect(")")?;
        self.body(&arguments)?;
        Ok(Signature { name: name.into(), module: module.into(), line, max_threads, arguments })
    }

    fn argument(&mut self) -> Parsed<Argument> {
        let kind = self.identifier("an argument's type")?;
        let kind = if matches!(kind, "In" | "Out") {
            self.expect("<")?;
            let target = match self.identifier("what the argument points to")? {
                "T" => self.storage,
                other => other,
            };
            self.expect(">")?;
            let element = Element::from_kernel_name(target).ok_or_else(|| {
                format!("a pointer to `{target}` is not allowed: use T, f32, bf16, u8, u16, i32 or u32")
            })?;
            ArgumentKind::Pointer { writable: kind == "Out", element }
        } else {
            let scalar = Scalar::from_name(kind).ok_or_else(|| {
                format!(
                    "an argument of type `{kind}` is not allowed: scalars are i32, u32, u64 and f32, pointers In<T> (read) and Out<T> \
                     (written)"
                )
            })?;
            ArgumentKind::Scalar(scalar)
        };
        let name = self.identifier("an argument's name")?;
        if RUST_KEYWORDS.contains(&name) || name.starts_with('_') || name.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(format!("`{name}` cannot be a launch's field: use lower case and no Rust keyword"));
        }
        Ok(Argument { name: name.into(), kind })
    }

    /// `{ body<T, 4>(args); }`: one call that is handed every argument once and in order, constants beside them.
    fn body(&mut self, arguments: &[Argument]) -> Parsed<()> {
        self.expect("{")?;
        self.identifier("the body's name")?;
        let mut open = usize::from(self.accept("<"));
        while open > 0 {
            match self.next() {
                "<" => open += 1,
                ">" => open -= 1,
                "" | "(" | "{" | ";" => return Err(format!("the template arguments do not end; {FORM}")),
                _ => {}
            }
        }
        self.expect("(")?;
        let mut handed = Vec::new();
        while !self.accept(")") {
            match self.next() {
                "" | "(" | "{" | ";" => {
                    return Err(format!("the body's arguments are names and constants only; {FORM}"));
                }
                token if arguments.iter().any(|a| a.name == token) => handed.push(token),
                _ => {}
            }
        }
        if !handed.iter().eq(arguments.iter().map(|a| &a.name)) {
            return Err("the body has to be handed each of the entry's arguments once and in order".into());
        }
        self.expect(";")?;
        self.expect("}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "ENTRY(add_fwd, (256), f32, (Out<T> y, In<bf16> x, u32 n, f32 scale), add<Plus<T>, 4>(y, x, n, scale))";

    fn entry(line: &str) -> Result<Vec<Signature>> {
        parse(&format!("#include \"common/types.cuh\"\n{line}\n"), "kernels/add.cu")
    }

    fn names(entries: &[Signature]) -> Vec<&str> {
        entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn reads_an_entry() {
        let entries = entry(GOOD).unwrap();
        let [found] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((found.name.as_str(), found.module.as_str()), ("add_fwd", "add"));
        assert_eq!((found.line, found.max_threads), (2, 256));
        let kinds: Vec<_> = found.arguments.iter().map(|a| (a.name.as_str(), a.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("y", ArgumentKind::Pointer { writable: true, element: Element::F32 }),
                ("x", ArgumentKind::Pointer { writable: false, element: Element::Bf16 }),
                ("n", ArgumentKind::Scalar(Scalar::U32)),
                ("scale", ArgumentKind::Scalar(Scalar::F32)),
            ]
        );
        let with_blocks = entry(&GOOD.replace("(256)", "(256, 4)")).unwrap();
        assert_eq!(with_blocks, entries);
        assert_eq!(entry("DEV void f(int a) {}").unwrap(), []);
        assert_eq!(entry(&format!("// {GOOD}")).unwrap(), []);
        let over_lines = format!("{}\n{GOOD}", GOOD.replace(", ", ",\n    ").replace("fwd", "bwd"));
        let [first, second] = &entry(&over_lines).unwrap()[..] else { panic!("two entries") };
        assert_eq!((first.name.as_str(), first.line, second.line), ("add_bwd", 2, 14));
        assert_eq!((&first.arguments, &second.arguments), (&found.arguments, &found.arguments));
    }

    #[test]
    fn reads_families_and_tiles() {
        let kernels = entry("KERNELS(add_fwd, (64), (Out<T> y, In<T> x), (y, x)) {\n    *y = *x;\n}").unwrap();
        assert_eq!(names(&kernels), ["add_fwd_f32", "add_fwd_bf16"]);
        for (entry, element) in kernels.iter().zip([Element::F32, Element::Bf16]) {
            assert!(
                entry
                    .arguments
                    .iter()
                    .all(|a| matches!(a.kind, ArgumentKind::Pointer { element: e, .. } if e == element))
            );
        }
        let tiled = entry("WIDE_TILED_KERNELS(add, (Out<T> y), (y)) {\n}\n").unwrap();
        assert_eq!(tiled.len(), 10);
        let threads = |name: &str| tiled.iter().find(|entry| entry.name == name).unwrap().max_threads;
        assert_eq!(
            ["add_small_f32", "add_small_bf16", "add_eight_bf16", "add_wide_tf32"].map(threads),
            [256, 128, 256, 256]
        );
        assert_eq!(names(&entry("KERNEL(add, (32), (Out<f32> y), (y)) { *y = 1.0f; }").unwrap()), ["add"]);
        // A file's own macros: a list of parameters, and its names.
        let own =
            "#define FWD (Out<T> y, \\\n    In<T> x)\n#define NAMES (y, x)\nENTRIES(add, (32), FWD, add<4> NAMES)";
        let own = entry(own).unwrap();
        assert_eq!((names(&own), own[0].line), (vec!["add_f32", "add_bf16"], 5));
    }

    #[test]
    fn refuses_the_rest_with_its_line() {
        for (from, to, message) in [
            ("(256)", "(100)", "multiple of 32"),
            ("(256)", "(2048)", "multiple of 32"),
            ("(256)", "(THREADS)", "multiple of 32"),
            ("(256)", "(256, BLOCKS)", "number of blocks"),
            ("(256)", "(256, 0)", "number of blocks"),
            ("(256)", "256", "expected `(`"),
            ("add_fwd,", "sub_fwd,", "start with its file's name"),
            ("add_fwd,", "adder,", "start with its file's name"),
            ("add_fwd,", "add_Fwd,", "lower case"),
            ("Out<T> y", "Out<float> y", "pointer to `float`"),
            ("Out<T> y", "Out<u64> y", "pointer to `u64`"),
            ("Out<T> y", "Out y", "expected `<`"),
            ("Out<T> y", "f32* __restrict__ y", "expected an argument's name"),
            ("Out<T> y", "const f32* y", "of type `const` is not allowed"),
            ("Out<T> y", "Out<T>* y", "expected an argument's name"),
            ("u32 n", "int n", "scalars are"),
            ("u32 n", "Params n", "scalars are"),
            ("u32 n", "u32 n[4]", "expected `)`"),
            ("u32 n", "u32 type", "Rust keyword"),
            ("u32 n", "u32 y", "two arguments"),
            ("(y, x, n, scale)", "(y, x, scale)", "once and in order"),
            ("(y, x, n, scale)", "(x, y, n, scale)", "once and in order"),
            ("(y, x, n, scale)", "(f(y), x, n, scale)", "names and constants only"),
            ("add<Plus<T>, 4>(y, x, n, scale)", "", "expected the body's name"),
            (", f32, (Out", ", (Out", "expected `(`, found `add`"),
            ("scale))", "scale); return)", "expected `}`"),
            ("scale))", "scale); asm(\"\"))", "`asm` is not allowed"),
            ("y, x, n, scale", "y, x, n, __expf(scale)", "no fast-math"),
            ("scale))", "scale)", "not closed"),
            (
                GOOD,
                "ENTRY(add_fwd, (256))",
                "ENTRY takes (NAME, BOUNDS, STORAGE, PARAMETERS, __VA_ARGS__), and is given",
            ),
            (GOOD, "extern \"C\" __global__ void add(f32* y) {}", "common/entry.cuh"),
            (GOOD, "static __global__ void add(f32* y) {}", "common/entry.cuh"),
        ] {
            let line = GOOD.replacen(from, to, 1);
            assert_ne!(line, GOOD, "{from}");
            let error = entry(&line).expect_err(&line);
            assert!(error.message.contains(message), "{line}\n{error}");
            assert_eq!((error.file.as_str(), error.line), ("kernels/add.cu", 2));
            assert!(error.to_string().starts_with("kernels/add.cu:2: "));
        }
        let twice = entry(&format!("{GOOD}\n{GOOD}")).unwrap_err();
        assert!(twice.message.contains("already on line 2"));
    }

    #[test]
    fn refuses_what_the_dialect_lacks() {
        for (line, message) in [
            ("#include <cuda_bf16.h>", "common/*.cuh"),
            ("#include \"types.cuh\"", "common/*.cuh"),
            ("#include \"common/../other.cuh\"", "common/*.cuh"),
            ("#  include \"common/types.h\"", "common/*.cuh"),
            ("struct alignas(16) V { };", "use __align__"),
            ("extern __shared__ f32 tile[];", "SMEM_DYN"),
            ("__shared__ f32 tile[32];", "SHARED"),
            ("DEV f32 f(f32 x) { return __expf(x); }", "no fast-math"),
            ("DEV void f() { asm volatile(\"\"); }", "wrapper in common/"),
            ("#define FAST __expf", "no fast-math"),
            ("#define MINE extern \"C\" __global__ void add() {}", "common/entry.cuh"),
            ("#define E ENTRY\nE(add_fwd, (32), f32, (Out<T> y), f(y))", "write it out"),
            ("ENTRY;", "write it out"),
            ("#undef ENTRY", "not allowed here"),
            ("#if 0", "not allowed here"),
            ("KERNEL(add, (32), (Out<T> y), (y)) {}", "pointer to `void`"),
        ] {
            let error = entry(line).expect_err(line);
            assert!(error.message.contains(message), "{line}: {error}");
        }
        let common = |text| parse(text, "kernels/common/add.cuh");
        assert_eq!(common("DEV void f() { asm volatile(\"\"); }").unwrap(), []);
        assert_eq!(common("#ifdef __CUDACC__\n#define A 1\n#else\n#define A 2\n#endif").unwrap(), []);
        for (text, message) in [
            (GOOD, "common/ holds no entries"),
            ("extern \"C\" __global__ void add() {}", "common/entry.cuh"),
            ("#define MY_ENTRY(NAME) ENTRY(NAME, (32), f32, (Out<T> y), f(y))", "common/entry.cuh alone"),
        ] {
            let error = common(text).expect_err(text);
            assert!(error.message.contains(message), "{text}: {error}");
        }
    }
}
