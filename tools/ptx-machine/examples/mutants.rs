//! How many wrong kernels the cases by op notice: random mutants of single instructions of the committed PTX, each run through
//! `engine doctor` on the machine. Only instructions that `doctor` executes are changed.
//!
//! `cargo run --release -p ptx-machine --example mutants -- ENGINE MACHINE [COUNT [SEED [OP,…]]]`, with the engine's program and the
//! folder that holds the machine's `libcuda.so.1`. Prints the survivors, with their lines, and the share that was caught. With ops
//! named, mutants of others are drawn and not run.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds after which a mutant counts as endless, which is caught.
const PATIENCE: Duration = Duration::from_secs(120);

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// Words of an opcode and what they may be taken for.
const WORDS: &[(&str, &str)] = &[
    ("add", "sub"),
    ("sub", "add"),
    ("min", "max"),
    ("max", "min"),
    ("and", "or"),
    ("or", "and"),
    ("xor", "or"),
    ("shl", "shr"),
    ("lt", "le"),
    ("le", "lt"),
    ("gt", "ge"),
    ("ge", "gt"),
    ("eq", "ne"),
    ("ne", "eq"),
    ("bfly", "down"),
    ("rmi", "rpi"),
    ("rm", "rn"),
];

/// Lines of a text that are no line tables.
fn code_lines(lines: &[&str]) -> Vec<usize> {
    let table = |line: &str| [".loc", ".file"].iter().any(|word| line.trim_start().starts_with(word));
    let end = lines.iter().position(|line| line.trim_start().starts_with(".section")).unwrap_or(lines.len());
    (0..end).filter(|&at| !table(lines[at])).collect()
}

/// One mutant of a line; none where the line has nothing to change.
fn mutated(line: &str, random: &mut Random) -> Option<String> {
    let (opcode, operands) = line.trim().strip_suffix(';')?.split_once(char::is_whitespace)?;
    if opcode.starts_with(['.', '@', '$', '{', '/']) || opcode == "ret" {
        return None;
    }
    let operands: Vec<&str> = operands.trim().split(", ").collect();
    match random.below(4) {
        0 => Some(String::new()),
        1 => {
            let parts: Vec<&str> = opcode.split('.').collect();
            let at = random.below(parts.len());
            let (_, other) = WORDS.iter().find(|(word, _)| *word == parts[at])?;
            let mut parts = parts;
            parts[at] = other;
            let kind = parts.last()?.replace('b', "u");
            if *other == "shr" {
                *parts.last_mut()? = &kind;
            }
            Some(format!("\t{} \t{};", parts.join("."), operands.join(", ")))
        }
        2 => {
            // A number one larger.
            let at = operands.iter().position(|operand| operand.parse::<i64>().is_ok())?;
            let value = operands[at].parse::<i64>().ok()? + 1;
            let mut changed: Vec<String> = operands.iter().map(ToString::to_string).collect();
            changed[at] = value.to_string();
            Some(format!("\t{opcode} \t{};", changed.join(", ")))
        }
        _ => {
            // Two sources in the other order.
            if operands.len() < 3
                || operands[1] == operands[2]
                || operands.iter().any(|operand| operand.contains(['{', '[']))
            {
                return None;
            }
            let commutes = ["add", "mul", "mad", "fma", "and", "or", "xor", "min", "max"];
            if commutes.contains(&opcode.split('.').next()?) {
                return None;
            }
            let mut changed = operands;
            changed.swap(1, 2);
            Some(format!("\t{opcode} \t{};", changed.join(", ")))
        }
    }
}

enum Fate {
    Caught,
    Refused,
    Survived,
}

fn run(engine: &Path, machine: &Path, replace: &Path, op: &str) -> Fate {
    let log = replace.join("log");
    let file = std::fs::File::create(&log).expect("a writable folder");
    let mut child = Command::new(engine)
        .args(["doctor", "--device", "cuda", "--op", op])
        .env("LD_LIBRARY_PATH", machine)
        .env("PTX_MACHINE_REPLACE", replace)
        .env("PTX_MACHINE_STEPS", "3000000")
        .stdout(file)
        .stderr(Stdio::null())
        .spawn()
        .expect("the engine starts");
    let start = Instant::now();
    let success = loop {
        match child.try_wait().expect("a child") {
            Some(status) => break status.success(),
            None if start.elapsed() > PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                break false;
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    match success {
        true => Fate::Survived,
        false if said.contains("ptxas fatal") => Fate::Refused,
        false => Fate::Caught,
    }
}

/// Whether each line of an op's PTX is executed by its cases.
fn executed(engine: &Path, machine: &Path, op: &str) -> HashSet<usize> {
    let file = std::env::temp_dir().join(format!("ptx-executed-{}", std::process::id()));
    let status = Command::new(engine)
        .args(["doctor", "--device", "cuda", "--op", op])
        .env("LD_LIBRARY_PATH", machine)
        .env("PTX_MACHINE_EXECUTED", &file)
        .stdout(Stdio::null())
        .status();
    assert!(status.is_ok_and(|status| status.success()), "the cases of {op} fail without a mutant");
    let text = std::fs::read_to_string(&file).expect("the machine's list of executed lines");
    let _ = std::fs::remove_file(&file);
    let own = format!("ptx of kernels/{op}.cu");
    let lines = text.lines().filter_map(|line| line.split_once(' ')).filter(|(_, module)| *module == own);
    lines.filter_map(|(line, _)| line.parse().ok()).collect()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, machine, rest @ ..] = arguments.as_slice() else {
        eprintln!("mutants ENGINE MACHINE [COUNT [SEED [OP,…]]]");
        std::process::exit(1);
    };
    let (engine, machine) = (PathBuf::from(engine), PathBuf::from(machine));
    let number = |at: usize, default: u64| match rest.get(at).map(|text| text.parse()) {
        None => default,
        Some(Ok(number)) => number,
        Some(Err(_)) => {
            eprintln!("mutants: {:?} is no number; COUNT and SEED are", rest[at]);
            std::process::exit(1);
        }
    };
    let count = number(0, 200) as usize;
    let mut random = Random(number(1, 1).wrapping_mul(0x9e37_79b9) + 1);
    let only: Vec<&str> = rest.get(2).map_or_else(Vec::new, |ops| ops.split(',').collect());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/prebuilt");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("prebuilt PTX").flatten().map(|entry| entry.path()).collect();
    files.sort();
    let replace = std::env::temp_dir().join(format!("ptx-mutants-{}", std::process::id()));
    std::fs::create_dir_all(&replace).expect("a temporary folder");
    let (mut caught, mut made, mut passed) = (0, 0, 0);
    let mut known: HashMap<String, HashSet<usize>> = HashMap::new();
    while made + passed < count {
        let file = &files[random.below(files.len())];
        let text = std::fs::read_to_string(file).expect("a readable file");
        let mut lines: Vec<&str> = text.lines().collect();
        let code = code_lines(&lines);
        let at = code[random.below(code.len())];
        let Some(line) = mutated(lines[at], &mut random) else { continue };
        let (old, op) =
            (lines[at], file.file_name().unwrap_or_default().to_string_lossy().replace(".compute_80.ptx", ""));
        let run_lines = known.entry(op.clone()).or_insert_with(|| executed(&engine, &machine, &op));
        if !run_lines.contains(&(at + 1)) {
            continue;
        }
        if !only.is_empty() && !only.contains(&op.as_str()) {
            // About as many as would be refused are counted too.
            passed += 1;
            continue;
        }
        let entry = lines[..at].iter().rev().find_map(|line| line.strip_prefix(".visible .entry ")).unwrap_or("?");
        lines[at] = &line;
        std::fs::write(replace.join(&op).with_extension("ptx"), lines.join("\n")).expect("a writable folder");
        match run(&engine, &machine, &replace, &op) {
            // Not a kernel at all: another is drawn.
            Fate::Refused => {}
            Fate::Caught => {
                made += 1;
                caught += 1;
            }
            Fate::Survived => {
                made += 1;
                println!("survived: {entry} line {}: {} -> {}", at + 1, old.trim(), line.trim());
            }
        }
        let _ = std::fs::remove_file(replace.join(&op).with_extension("ptx"));
    }
    let _ = std::fs::remove_dir_all(&replace);
    println!("{caught} of {made} mutants caught");
}
