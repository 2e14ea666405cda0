//! The grammar of a kernel file's entries, and the dialect's prohibitions.

use std::path::Path;

use crate::source::quoted_include;
use crate::{Argument, ArgumentKind, Element, Error, Result, Scalar, Signature, strip_comments};

const FORM: &str = "an entry reads: extern \"C\" __global__ void __launch_bounds__(N) name(args) { body<T>(args); }";

/// Words that no kernel file may use, with what to use instead.
const FORBIDDEN: &[(&str, &str)] = &[
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

/// Reads the entries of one kernel source.
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
    let mut entries: Vec<Signature> = Vec::new();
    let source = strip_comments(source);
    let mut lines = source.lines().enumerate();
    while let Some((index, text)) = lines.next() {
        let line = index + 1;
        let fail = |message: String| Error::new(file, line, message);
        if text.trim_start().starts_with('#') {
            if !common {
                check_include(text).map_err(fail)?;
            }
            continue;
        }
        let mut tokens = tokenize(text);
        if tokens.iter().any(|token| token == "__global__") {
            while !ends_entry(&tokens)
                && let Some((_, text)) = lines.next()
            {
                tokens.extend(tokenize(text));
            }
        }
        let is_word = |word: &str| tokens.iter().any(|t| t == word);
        if !common && let Some((word, instead)) = FORBIDDEN.iter().find(|(word, _)| is_word(word)) {
            return Err(fail(format!("`{word}` is not allowed here: {instead}")));
        }
        if !is_word("__global__") {
            if is_word("extern") && tokens.iter().any(|t| t == "\"C\"") {
                return Err(fail(format!("extern \"C\" without __global__; {FORM}")));
            }
            continue;
        }
        if common {
            return Err(fail("common/ holds no entries: move this one into its op's file".into()));
        }
        let entry = Cursor { tokens: &tokens, at: 0 }.entry(&module, line).map_err(fail)?;
        if let Some(other) = entries.iter().find(|other| other.name == entry.name) {
            return Err(fail(format!("entry {} is already on line {}", entry.name, other.line)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Whether the lines of an entry so far hold its body, or can have none.
fn ends_entry(tokens: &[String]) -> bool {
    let count = |sign: &str| tokens.iter().filter(|token| *token == sign).count();
    match count("{") {
        0 => count(";") > 0 || count("__global__") > 1,
        opened => opened <= count("}"),
    }
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

/// Words, string literals, and single signs.
fn tokenize(line: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        let mut token = String::from(c);
        if c == '"' {
            while let Some(inner) = chars.next() {
                token.push(inner);
                match inner {
                    '\\' => token.extend(chars.next()),
                    '"' => break,
                    _ => {}
                }
            }
        } else if is_word_char(c) {
            while let Some(next) = chars.next_if(|&n| is_word_char(n)) {
                token.push(next);
            }
        }
        tokens.push(token);
    }
    tokens
}

fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_identifier(token: &str) -> bool {
    token.chars().all(is_word_char) && token.starts_with(|c: char| !c.is_ascii_digit())
}

struct Cursor<'a> {
    tokens: &'a [String],
    at: usize,
}

type Parsed<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", String::as_str)
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
        let constant = self.accept("const");
        let kind = self.identifier("an argument's type")?;
        let kind = if self.accept("*") {
            let element = Element::from_kernel_name(kind).ok_or_else(|| {
                format!("a pointer to `{kind}` is not allowed: use f32, bf16, u8, u16, i32 or u32 (and `const` first)")
            })?;
            if !self.accept("__restrict__") {
                return Err(format!("a pointer argument is written `{kind}* __restrict__ name`"));
            }
            ArgumentKind::Pointer { writable: !constant, element }
        } else {
            let scalar = Scalar::from_name(kind).filter(|_| !constant).ok_or_else(|| {
                format!("an argument of type `{kind}` is not allowed: scalars are i32, u32, u64 and f32")
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
        if self.accept("<") {
            while !self.accept(">") {
                if matches!(self.next(), "" | "(" | "{" | ";") {
                    return Err(format!("the template arguments do not end; {FORM}"));
                }
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
        self.expect("}")?;
        match self.peek() {
            "" => Ok(()),
            found => Err(format!("`{found}` after the entry; {FORM}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "extern \"C\" __global__ void __launch_bounds__(256) add_fwd_f32(f32* __restrict__ y, \
                        const bf16* __restrict__ x, u32 n, f32 scale) { add_fwd<f32, 4>(y, x, n, scale); }";

    fn entry(line: &str) -> Result<Vec<Signature>> {
        parse(&format!("#include \"common/types.cuh\"\n{line}\n"), "kernels/add.cu")
    }

    #[test]
    fn reads_an_entry() {
        let entries = entry(GOOD).unwrap();
        let [found] = entries.as_slice() else { panic!("{entries:?}") };
        assert_eq!((found.name.as_str(), found.module.as_str()), ("add_fwd_f32", "add"));
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
        let over_lines =
            format!("{}\n{GOOD}", GOOD.replace(", ", ",\n    ").replace("{ ", "{\n    ").replace("f32(", "f64("));
        let [first, second] = &entry(&over_lines).unwrap()[..] else { panic!("two entries") };
        assert_eq!((first.name.as_str(), first.line, second.line), ("add_fwd_f64", 2, 11));
        assert_eq!((&first.arguments, &second.arguments), (&found.arguments, &found.arguments));
    }

    #[test]
    fn refuses_the_rest_with_its_line() {
        for (from, to, message) in [
            ("extern \"C\" ", "", "expected `extern`"),
            ("__global__ void", "void", "without __global__"),
            ("void __", "int __", "expected `void`"),
            ("(256)", "(100)", "multiple of 32"),
            ("(256)", "(2048)", "multiple of 32"),
            ("(256)", "(THREADS)", "multiple of 32"),
            ("(256)", "(256, BLOCKS)", "number of blocks"),
            ("(256)", "(256, 0)", "number of blocks"),
            (" __launch_bounds__(256)", "", "expected `__launch_bounds__`"),
            (" add_fwd_f32", " sub_fwd_f32", "start with its file's name"),
            (" add_fwd_f32", " adder_f32", "start with its file's name"),
            (" add_fwd_f32", " add_Fwd", "lower case"),
            ("f32* __restrict__ y", "float* __restrict__ y", "pointer to `float`"),
            ("f32* __restrict__ y", "u64* __restrict__ y", "pointer to `u64`"),
            ("f32* __restrict__ y", "f32* y", "__restrict__ name"),
            ("f32* __restrict__ y", "f32** __restrict__ y", "__restrict__ name"),
            ("f32* __restrict__ y", "f32& y", "expected an argument's name"),
            ("u32 n", "const u32 n", "scalars are"),
            ("u32 n", "int n", "scalars are"),
            ("u32 n", "Params n", "scalars are"),
            ("u32 n", "u32 n[4]", "expected `)`"),
            ("u32 n", "u32 type", "Rust keyword"),
            ("u32 n", "u32 y", "two arguments"),
            ("(y, x, n, scale)", "(y, x, scale)", "once and in order"),
            ("(y, x, n, scale)", "(x, y, n, scale)", "once and in order"),
            ("(y, x, n, scale)", "(f(y), x, n, scale)", "names and constants only"),
            ("{ add_fwd<f32, 4>(y, x, n, scale); }", "{", "expected the body's name"),
            ("{ add_fwd<f32, 4>(y, x, n, scale); }", ";", "expected `{`"),
            ("; }", "; return; }", "expected `}`"),
            ("; }", "; };", "after the entry"),
            ("y, x, n, scale); }", "y, x, n, scale); asm(\"\"); }", "`asm` is not allowed"),
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
        ] {
            let error = entry(line).expect_err(line);
            assert!(error.message.contains(message), "{line}: {error}");
        }
        let common = |text| parse(text, "kernels/common/add.cuh");
        assert_eq!(common("DEV void f() { asm volatile(\"\"); }").unwrap(), []);
        assert!(common(GOOD).unwrap_err().message.contains("common/ holds no entries"));
    }
}
