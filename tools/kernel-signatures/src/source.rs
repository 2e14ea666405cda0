//! Kernel sources as text: comments, include closures and their hash.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The `.cu` files of a kernel folder, sorted by name.
///
/// # Errors
/// Where the folder cannot be read. A missing folder has no kernels.
pub fn kernel_files(kernels: &Path) -> Result<Vec<PathBuf>> {
    if !kernels.exists() {
        return Ok(Vec::new());
    }
    let fail = |e: std::io::Error| Error::new(&kernels.display().to_string(), 0, format!("cannot be listed: {e}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(kernels).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "cu") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The source with every comment replaced by spaces; line breaks stay, so that line numbers hold.
pub fn strip_comments(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' | '\'' => {
                out.push(c);
                while let Some(inner) = chars.next() {
                    out.push(inner);
                    if inner == '\\' {
                        out.extend(chars.next());
                    } else if inner == c || inner == '\n' {
                        break;
                    }
                }
            }
            '/' if chars.peek() == Some(&'/') => {
                while chars.peek().is_some_and(|&next| next != '\n') {
                    chars.next();
                }
                out.push(' ');
            }
            '/' if chars.peek() == Some(&'*') => {
                chars.next();
                out.push(' ');
                let mut last = ' ';
                for inner in chars.by_ref() {
                    if inner == '\n' {
                        out.push('\n');
                    }
                    if last == '*' && inner == '/' {
                        break;
                    }
                    last = inner;
                }
            }
            c => out.push(c),
        }
    }
    out
}

/// Drops what a compiler does not see: comments, and white space except where it parts two words or two equal signs
/// of punctuation, ends a preprocessor line, or stands in a string.
fn normalise(source: &str) -> String {
    let stripped = strip_comments(source).replace("\\\n", " ");
    let mut out = String::with_capacity(stripped.len());
    for line in stripped.lines() {
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let directive = line.starts_with('#');
        if directive && !out.ends_with('\n') {
            out.push('\n');
        }
        let mut gap = true;
        let mut quote = None;
        let mut escaped = false;
        for c in line.chars() {
            if let Some(q) = quote {
                out.push(c);
                if !escaped && c == q {
                    quote = None;
                }
                escaped = !escaped && c == '\\';
                continue;
            }
            if c.is_whitespace() {
                gap = true;
                continue;
            }
            if gap {
                let word = |c: char| c.is_alphanumeric() || c == '_';
                // In a directive `A (x)` and `A(x)` differ.
                if out.chars().next_back().is_some_and(|l| directive && l != '\n' || word(l) && word(c) || l == c) {
                    out.push(' ');
                }
                gap = false;
            }
            if c == '"' || c == '\'' {
                quote = Some(c);
            }
            out.push(c);
        }
        if directive {
            out.push('\n');
        }
    }
    out
}

/// The file named by a `#include "…"` line, if it is one.
pub(crate) fn quoted_include(line: &str) -> Option<&str> {
    let rest = line.trim().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
    rest.strip_prefix('"')?.split('"').next()
}

/// A hash over a kernel and everything it includes (found under `kernels`, or beside the including file), without
/// comments and white space, over the compiler's flags and its version: equal exactly when the compiled text would be.
///
/// A quoted include that is not there is left to the compiler: it may sit in a branch for another one.
///
/// # Errors
/// Where a file cannot be read.
pub fn closure_hash(kernels: &Path, kernel: &Path, flags: &[&str], compiler: &str) -> Result<String> {
    let mut hash = Fnv::new();
    for part in flags.iter().chain([&compiler]) {
        hash.add(part.as_bytes());
        hash.add(&[0]);
    }
    let mut seen = BTreeSet::new();
    add_file(kernels, kernel, &mut seen, &mut hash)?;
    Ok(hash.hex())
}

fn add_file(kernels: &Path, file: &Path, seen: &mut BTreeSet<PathBuf>, hash: &mut Fnv) -> Result<()> {
    if !seen.insert(file.to_path_buf()) {
        return Ok(());
    }
    let source = std::fs::read_to_string(file)
        .map_err(|e| Error::new(&file.display().to_string(), 0, format!("cannot be read: {e}")))?;
    for line in strip_comments(&source).lines() {
        if let Some(name) = quoted_include(line) {
            let beside = file.parent().unwrap_or(kernels).join(name);
            if let Some(found) = [kernels.join(name), beside].into_iter().find(|p| p.is_file()) {
                add_file(kernels, &found, seen, hash)?;
            }
        }
    }
    hash.add(normalise(&source).as_bytes());
    hash.add(&[0]);
    Ok(())
}

/// FNV-1a, 128 bits: against accidents, not against adversaries.
struct Fnv(u128);

impl Fnv {
    fn new() -> Self {
        Self(0x6c62272e07bb014262b821756295c58d)
    }

    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000000001000000000000000000013b);
        }
    }

    fn hex(&self) -> String {
        format!("{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_lines_stay() {
        let source = "a // x\n/* b\n c */ d \"// not\" '\"' /**/ e\n";
        let stripped = strip_comments(source);
        assert_eq!(stripped.lines().count(), source.lines().count());
        assert!(!stripped.contains('x') && !stripped.contains('b'));
        assert!(stripped.contains("\"// not\"") && stripped.contains('e'));
    }

    #[test]
    fn normal_form_ignores_layout_only() {
        let same = ["int  a = b+ c;\n// note\nreturn a;", "int a=b + c; return a;"];
        assert_eq!(normalise(same[0]), normalise(same[1]));
        for (one, other) in [
            ("int a;", "inta;"),
            ("a + +b", "a ++b"),
            ("f(\"a b\")", "f(\"ab\")"),
            ("#define A (x)", "#define A(x)"),
            ("#define A\nb", "#define A b"),
        ] {
            assert_ne!(normalise(one), normalise(other), "{one} / {other}");
        }
    }

    #[test]
    fn hash_follows_includes_flags_and_compiler() {
        let folder = std::env::temp_dir().join(format!("kernel-signatures-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("common")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("k.cu", "#include \"common/a.cuh\"\nint k;\n");
        write("common/a.cuh", "#pragma once\n#include \"common/b.cuh\"\n");
        write("common/b.cuh", "int b; // one\n");
        let hash = |flags: &[&str], version| closure_hash(&folder, &folder.join("k.cu"), flags, version).unwrap();
        let first = hash(&["-O"], "1");
        assert_ne!(first, hash(&["-g"], "1"));
        assert_ne!(first, hash(&["-O"], "2"));
        write("common/b.cuh", "int   b; /* two */\n");
        assert_eq!(first, hash(&["-O"], "1"));
        write("common/b.cuh", "int c;\n");
        assert_ne!(first, hash(&["-O"], "1"));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
