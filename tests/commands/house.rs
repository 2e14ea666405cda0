//! House rules that can be checked automatically: imports run downwards, functions and models are short. Those of the ops are in
//! `tests/ops/house.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Top-level modules, highest first; modules in one row never import each other. From `ops` on they are engine-core's, except for
/// those in [`LOW`].
const ROWS: &[&[&str]] = &[
    &["guide", "prelude"],
    &["cli"],
    &["serve", "profile"],
    &["train"],
    &["eval"],
    &["pipeline"],
    &["model_file"],
    &["config"],
    &["models"],
    &["diffusion"],
    &["nn"],
    &["ops"],
    &["tape"],
    &["data"],
    &["tensor"],
    &["device"],
    &["picture", "weights", "cluster"],
    &["names"],
    &["rng", "error", "files", "image_size", "progress"],
    &["words"],
];

/// Modules that use only some of those below them.
const LOW: &[(&str, &[&str])] = &[
    (
        "data",
        &[
            "picture",
            "weights",
            "tensor",
            "device",
            "names",
            "rng",
            "error",
            "files",
            "image_size",
            "progress",
            "words",
        ],
    ),
    ("picture", &["error", "files", "image_size"]),
    ("weights", &["error", "files"]),
    ("cluster", &["error", "files", "words"]),
];

/// Modules that use data sets.
const USE_DATA: &[&str] = &["prelude", "cli", "train", "eval"];

/// Most lines of a function, from its `fn` to its closing brace.
const MOST_LINES: usize = 80;

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(rust_files(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files
}

/// A source without its comment lines.
fn code(source: &str) -> String {
    source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn identifier(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first names of a path, or of each path in a group, over any number of lines.
fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.trim_start().strip_prefix('{') else { return vec![identifier(path)] };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                names.push(identifier(&group[start..at]));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(identifier(&group[start..at]));
                start = at + 1;
            }
            _ => {}
        }
    }
    names
}

/// The top-level modules that code imports with `crate::` or `engine_core::`, or with more `super::` than lead to its own module;
/// `depth` is the number of enclosing modules.
fn imports(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let up = "super::".repeat(depth);
    for root in ["crate::", "engine_core::", &up] {
        for (at, _) in code.match_indices(root) {
            // `$crate::` of a macro is the same crate; `kernel_crate::` and the like are not; longer `super::` chains are handled separately.
            if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                found.extend(first_names(&code[at + root.len()..]));
            }
        }
    }
    found
}

#[test]
fn every_way_to_write_an_import_is_seen() {
    let of = |code: &str| imports(code, 2).into_iter().collect::<Vec<_>>();
    assert_eq!(of("use crate::{a::{b, c},\n    d, e as f};"), ["a", "d", "e"]);
    assert_eq!(of("fn f() -> $crate::a::B { crate::c::d() + kernel_crate::e() }"), ["a", "c"]);
    assert_eq!(of("use engine_core::tensor::Tensor; use super::a; use super::super::b;"), ["b", "tensor"]);
    assert_eq!(of("use super::super::{a, b::c};"), ["a", "b"]);
}

/// The position of a file's code: its top-level module, and the number of enclosing modules. None for the roots.
fn placed(within: &Path) -> Option<(String, usize)> {
    let parts: Vec<&str> = within.iter().map(|part| part.to_str().unwrap()).collect();
    let parts = parts.strip_prefix(&["core"]).unwrap_or(&parts);
    let module = parts[0].trim_end_matches(".rs");
    let depth = parts.len() - usize::from(parts.ends_with(&["mod.rs"]));
    (!["lib", "main"].contains(&module)).then(|| (module.to_string(), depth))
}

#[test]
fn imports_run_downwards() {
    let row = |name: &str| ROWS.iter().position(|row| row.contains(&name));
    let mut faults = Vec::new();
    let modules: BTreeSet<&str> = ROWS.iter().flat_map(|row| row.iter().copied()).collect();
    for file in rust_files(&root().join("src")) {
        let within = file.strip_prefix(root().join("src")).unwrap();
        let Some((module, depth)) = placed(within) else { continue };
        let module = module.as_str();
        assert!(modules.contains(module), "{} belongs to no row: add it to ROWS and to lib.rs", within.display());
        let source = code(&fs::read_to_string(&file).unwrap());
        // Inline tests are one module deeper.
        let (own, tests) = source.split_at(source.find("\nmod tests {").unwrap_or(source.len()));
        let found = &imports(own, depth) | &imports(tests, depth + 1);
        for import in found.iter().filter(|name| modules.contains(name.as_str()) && *name != module) {
            let up = row(import) <= row(module);
            let low = LOW.iter().find(|(name, _)| *name == module);
            let too_high = low.is_some_and(|(_, allowed)| !allowed.contains(&import.as_str()));
            let uses_data = import == "data" && !USE_DATA.contains(&module);
            if up || too_high || uses_data {
                faults.push(format!("{} imports {import}", within.display()));
            }
        }
    }
    assert!(faults.is_empty(), "imports run downwards only:\n{}", faults.join("\n"));
}

/// The functions of formatted source, with their number of lines.
fn functions(source: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = source.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let text = line.trim_start();
        let Some((before, name)) = text.split_once("fn ") else { continue };
        let qualifiers = ["pub", "const", "unsafe", "async", "extern", "\"C\""];
        let qualified = |word: &str| qualifiers.contains(&word) || word.starts_with("pub(") || word.ends_with(')');
        if !before.split_whitespace().all(qualified) || text.ends_with(['}', ';']) {
            continue;
        }
        let indent = &line[..line.len() - text.len()];
        let ends = |line: &&str| {
            line.strip_prefix(indent).is_some_and(|rest| rest == "}" || rest.ends_with(';') && rest.starts_with(')'))
        };
        let length = lines[first..].iter().position(ends).map_or(1, |last| last + 1);
        found.push((identifier(name), length));
    }
    found
}

#[test]
fn lengths_are_from_the_name_to_the_brace() {
    let source = "pub(super) const fn a(\n    x: u8,\n) -> u8 {\n    x\n}\n\ntrait T {\n    fn b(\n        &self,\n    );\n    \
                  fn c(&self) {\n        if x {\n        }\n    }\n}\nlet f: fn () = a;\nfn d() {}\n";
    let found: Vec<(String, usize)> = [("a", 5), ("b", 3), ("c", 4)].map(|(name, n)| (name.to_string(), n)).into();
    assert_eq!(functions(source), found);
}

#[test]
fn functions_fit_on_a_screen() {
    let mut long = BTreeSet::new();
    for folder in ["src", "tools", "benches", "tests"] {
        for file in rust_files(&root().join(folder)) {
            let within = file.strip_prefix(root()).unwrap().to_str().unwrap();
            let source = fs::read_to_string(&file).unwrap();
            let of_file = functions(&source).into_iter().filter(|(_, lines)| *lines > MOST_LINES);
            long.extend(of_file.map(|(name, _)| (within.to_string(), name)));
        }
    }
    assert!(long.is_empty(), "functions of more than {MOST_LINES} lines, which want to be two: {long:?}");
}

/// The string literals of source, with the numbers of their first lines; comments have none.
fn literals(source: &str) -> Vec<(usize, String)> {
    let text: Vec<char> = source.chars().collect();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    let ends = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        (from..text.len()).find(|&at| text[at..].starts_with(&end)).unwrap_or(text.len())
    };
    while at < text.len() {
        let hashes = text[at + 1..].iter().take_while(|c| **c == '#').count();
        let is_word = at > 0 && (text[at - 1].is_alphanumeric() || text[at - 1] == '_');
        let next = match text[at] {
            '/' if text.get(at + 1) == Some(&'/') => ends(at, "\n"),
            '/' if text.get(at + 1) == Some(&'*') => ends(at, "*/"),
            'r' if !is_word && text.get(at + 1 + hashes) == Some(&'"') => {
                let (start, end) = (at + 2 + hashes, format!("\"{}", "#".repeat(hashes)));
                let last = ends(start, &end);
                found.push((line, text[start..last].iter().collect()));
                last + end.len()
            }
            '"' => {
                let mut last = at + 1;
                while text[last] != '"' {
                    last += if text[last] == '\\' { 2 } else { 1 };
                }
                found.push((line, text[at + 1..last].iter().collect()));
                last + 1
            }
            // A character; a lifetime has no closing quote.
            '\'' if text.get(at + 1) == Some(&'\\') => ends(at + 3, "'") + 1,
            '\'' if text.get(at + 2) == Some(&'\'') => at + 3,
            _ => at + 1,
        };
        let next = next.min(text.len());
        line += text[at..next].iter().filter(|c| **c == '\n').count();
        at = next;
    }
    found
}

#[test]
fn literals_are_told_from_comments_and_characters() {
    let source =
        "// \"a\"\nlet x: &'a str = \"b\\\"c\"; /* \"d\" */ let y = ['\"', '\\'', r#\"e\"f\"#];\nfor_\"g\nh\"\n\"i\"";
    let found: Vec<(usize, String)> =
        [(2, "b\\\"c"), (2, "e\"f"), (3, "g\nh"), (5, "i")].map(|(line, text)| (line, text.to_string())).into();
    assert_eq!(literals(source), found);
}

/// Flags of other programs, which layers below the command line may name.
const OTHERS_FLAGS: &[&str] = &["cargo run --release", "-- --nvrtc", "pip download --no-deps"];

/// Layers below the command line name fields; its table makes flags of them (`src/cli/flags.rs`).
#[test]
fn only_the_command_line_names_its_flags() {
    let names_flag = |text: &str| {
        let text = OTHERS_FLAGS.iter().fold(text.to_string(), |text, other| text.replace(other, ""));
        text.match_indices("--").any(|(at, _)| text[at + 2..].starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let mut faults = Vec::new();
    for file in rust_files(&root().join("src")) {
        let within = file.strip_prefix(root().join("src")).unwrap();
        let is_test = |part: &str| part == "tests" || part.ends_with("tests.rs");
        if within.starts_with("cli") || within.iter().any(|part| is_test(part.to_str().unwrap())) {
            continue;
        }
        let source = fs::read_to_string(&file).unwrap();
        let code = &source[..source.find("\nmod tests {").unwrap_or(source.len())];
        let found = literals(code).into_iter().filter(|(_, text)| names_flag(text));
        faults.extend(found.map(|(line, text)| format!("{}:{line}: {text}", within.display())));
    }
    assert!(faults.is_empty(), "name fields in backticks instead, see src/cli/flags.rs:\n{}", faults.join("\n"));
}

/// A model fits beside its paper's equations.
#[test]
fn a_model_is_short() {
    for file in rust_files(&root().join("src/models")) {
        let (name, source) = (file.strip_prefix(root()).unwrap().display(), fs::read_to_string(&file).unwrap());
        let lines: Vec<&str> = source.lines().collect();
        assert!(lines.len() <= 200, "{name} has {} lines; move a part of the model into another file", lines.len());
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("fn forward(")) {
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let length = 1 + lines[at..].iter().position(|line| *line == end).unwrap();
            assert!(length <= 40, "{name}: the forward at line {} has {length} lines", at + 1);
        }
    }
}

/// Paths of the repository that a text names: from one of its top folders to an ending of a source, a page or a script.
fn named_paths(text: &str) -> Vec<&str> {
    const FOLDERS: [&str; 6] = ["kernels/", "src/", "tools/", "tests/", "benches/", "assets/"];
    const ENDINGS: [&str; 8] = [".rs", ".cu", ".cuh", ".md", ".py", ".toml", ".yaml", ".json"];
    let part_of_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let words = text.split(|c: char| !part_of_path(c)).map(|word| word.trim_end_matches('.').trim_start_matches("./"));
    words
        .filter(|word| FOLDERS.iter().any(|f| word.starts_with(f)) && ENDINGS.iter().any(|e| word.ends_with(e)))
        .collect()
}

/// A renamed file is renamed in comments and pages too. Paths within a package may begin at its folder.
#[test]
fn named_files_exist() {
    // Places that examples name: an op that the reader adds, texts of tests.
    const EXAMPLES: [&str; 3] = ["my_op", "kernels/op.cu", "kernels/x.cu"];
    let mut files = Vec::new();
    for folder in ["src", "kernels", "tools", "tests", "benches"] {
        files.extend(texts(&root().join(folder)));
    }
    files.extend(["README.md", "CONTRIBUTING.md", "build.rs"].map(|name| root().join(name)));
    let mut missing = Vec::new();
    for file in files {
        let within = file.strip_prefix(root()).unwrap();
        let Ok(text) = fs::read_to_string(&file) else { continue };
        // Tests of tools name files that only their inputs have.
        let of_tests = within.starts_with("tools") && within.components().any(|part| part.as_os_str() == "tests");
        for (index, line) in text.lines().enumerate().filter(|_| !of_tests) {
            if line.trim() == "#[cfg(test)]" && within.starts_with("tools") {
                break;
            }
            for path in named_paths(line).into_iter().filter(|path| !EXAMPLES.iter().any(|e| path.contains(e))) {
                let mut folders = within.ancestors().map(|folder| root().join(folder).join(path));
                if !folders.any(|place| place.exists()) {
                    missing.push(format!("{}:{}: {path}", within.display(), index + 1));
                }
            }
        }
    }
    assert!(missing.is_empty(), "files that are named and not there:\n{}", missing.join("\n"));
}

/// Sources, pages and scripts below a folder, without what tools put there.
fn texts(folder: &Path) -> Vec<PathBuf> {
    const KINDS: [&str; 5] = ["rs", "cu", "cuh", "md", "py"];
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(texts(&entry));
        } else if entry.extension().is_none_or(|extension| KINDS.iter().any(|kind| extension == *kind)) {
            files.push(entry);
        }
    }
    files
}

#[test]
fn paths_are_found_in_text() {
    let found = named_paths(
        "see `src/core/rng.rs`, ./kernels/linear.cu:3, kernels/prebuilt/x.compute_80.ptx and tests/ (tests/kernels.rs).",
    );
    assert_eq!(found, ["src/core/rng.rs", "kernels/linear.cu", "tests/kernels.rs"]);
}
