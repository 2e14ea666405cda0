//! Damaged PTX is an error with a line or a kernel that runs to an end or a fault: never a panic, and never without a bound.

use std::path::Path;

use ptx_machine::exec::{Grid, Limits, run};
use ptx_machine::ir::Program;
use ptx_machine::memory::DeviceMemory;
use ptx_machine::parse::parse;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

const PIECES: &[&str] = &[
    "0",
    "-1",
    "4294967295",
    "%r1",
    "%rd1",
    "%p1",
    "%f1",
    "[",
    "]",
    "{",
    "}",
    ";",
    ",",
    ".u64",
    ".f32",
    ".v4",
    ".shared",
    "bra",
    "ret",
    "@%p1",
    "@!%p2",
    "bar.sync 0;",
    "0f7FC00000",
    "<",
    ">",
    "%tid.x",
    "_",
    "|",
    ".reg .b32 %x<99999>;",
    "$L__BB0_2",
    "\0",
    "ü",
    "/*",
    "\"",
];

fn damaged(text: &str, random: &mut Random) -> String {
    let mut lines: Vec<String> = text.lines().map(Into::into).collect();
    for _ in 0..1 + random.below(4) {
        let at = random.below(lines.len());
        match random.below(6) {
            0 => {
                lines.remove(at);
            }
            1 => {
                let copy = lines[random.below(lines.len())].clone();
                lines.insert(at, copy);
            }
            2 => {
                let line = &mut lines[at];
                let place = (0..=random.below(line.len() + 1)).rev().find(|&i| line.is_char_boundary(i)).unwrap_or(0);
                line.insert_str(place, PIECES[random.below(PIECES.len())]);
            }
            3 => {
                let mut words: Vec<String> = lines[at].split_whitespace().map(Into::into).collect();
                if !words.is_empty() {
                    let word = random.below(words.len());
                    words[word] = PIECES[random.below(PIECES.len())].into();
                }
                lines[at] = words.join(" ");
            }
            4 => {
                let digit = char::from(b'0' + random.below(10) as u8);
                let places: Vec<usize> =
                    lines[at].char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(i, _)| i).collect();
                if !places.is_empty() {
                    let place = places[random.below(places.len())];
                    lines[at].replace_range(place..=place, &digit.to_string());
                }
            }
            _ => {
                let other = random.below(lines.len());
                lines.swap(at, other);
            }
        }
        if lines.is_empty() {
            break;
        }
    }
    lines.join("\n")
}

/// The names and texts of the `count` shortest of the prebuilt modules: each round reads the whole text.
fn smallest_modules(count: usize) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/prebuilt");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let modules = files.filter(|path| path.extension().is_some_and(|extension| extension == "ptx"));
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path.file_name().unwrap().to_string_lossy().into_owned(), text)
    };
    let mut texts: Vec<_> = modules.map(read).collect();
    texts.sort_by_key(|(name, text)| (text.len(), name.clone()));
    texts.truncate(count);
    assert_eq!(texts.len(), count);
    texts
}

#[test]
fn damaged_text_is_an_error_or_ends() {
    let rounds: usize = std::env::var("PTX_MACHINE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut refused, mut ended, mut faulty) = (0, 0, 0);
    for (file, text) in smallest_modules(7) {
        for _ in 0..rounds {
            let text = damaged(&text, &mut random);
            let module = match parse(&file, &text) {
                Ok(module) => module,
                Err(error) => {
                    assert_eq!(error.to_string().lines().count(), 1, "{error}");
                    refused += 1;
                    continue;
                }
            };
            let mut memory = DeviceMemory::new(0, 16 << 20, true).unwrap();
            let buffer = memory.allocate(1 << 16).unwrap();
            memory.mark_written(buffer, 1 << 16);
            let globals = vec![buffer; module.variables.len()];
            for entry in &module.entries {
                let program = match Program::build(&module, entry, &globals) {
                    Ok(program) => program,
                    Err(error) => {
                        assert_eq!(error.to_string().lines().count(), 1, "{error}");
                        refused += 1;
                        continue;
                    }
                };
                let mut params = vec![0; program.param_bytes as usize];
                for &(offset, size) in &program.param_list {
                    let value = if size == 8 { buffer } else { 3 };
                    params[offset as usize..][..size as usize].copy_from_slice(&value.to_le_bytes()[..size as usize]);
                }
                let limits = Limits { steps: 20_000, cores: 1 };
                let grid = Grid {
                    program: &program,
                    memory: &memory,
                    grid: [2, 1, 1],
                    block: [64, 1, 1],
                    dynamic_shared: 64,
                    params: &params,
                    launch: 1,
                    beside: None,
                    limits,
                };
                match run(&grid) {
                    Ok(()) => ended += 1,
                    Err(_) => faulty += 1,
                }
            }
        }
    }
    println!("{refused} refused, {ended} ended, {faulty} faulty");
    assert!(refused > 0 && ended > 0 && faulty > 0);
}

#[test]
fn texts_that_ask_for_too_much_are_refused() {
    let head = ".version 8.4\n.target sm_80\n.address_size 64\n";
    let body = |text: &str| format!("{head}.visible .entry k()\n{{\n{text}\nret;\n}}\n");
    for text in [
        body(".reg .b32 %r<4000000000>;"),
        body(&".reg .b32 %a<99999>;".replace('a', "x").repeat(2)),
        format!("{head}.global .b8 x[99999999999];"),
        format!("{head}.global .b64 x[999999][999999][999999];"),
        body(&"{".repeat(5000)),
        body(&format!("mov.b32 {{{}}}, 0;", "_,".repeat(5000))),
        body(".local .b8 x[9999999]; .reg .b64 %d<2>; mov.u64 %d0, x;"),
        body(".shared .b8 x[60000000]; .reg .b32 %r<2>; mov.u32 %r0, x;"),
        format!("{head}.visible .entry k(.param .b8 p[40000]) {{ ret; }}"),
        String::new(),
        "\0\0".into(),
        "/*".into(),
    ] {
        let fault =
            parse("t", &text).and_then(|module| Program::build(&module, &module.entries[0], &[0; 8]).map(|_| ()));
        assert!(fault.is_err(), "{}", &text[..text.len().min(200)]);
    }
}
