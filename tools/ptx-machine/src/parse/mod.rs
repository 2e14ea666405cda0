//! PTX text to a [`Module`]: strict, every name resolved, with bounds on all that a text can ask for.
//!
//! Opcodes and their modifiers are looked at by [`crate::ir`], which refuses what it does not know; directives here.

mod ast;
mod body;
mod lexer;
mod variable;

pub use ast::*;
use lexer::{Lexeme, Token, lex};

/// The newest PTX version that is read.
pub const NEWEST_VERSION: (u32, u32) = (9, 0);

/// The most bytes that a variable may have.
const MAX_VARIABLE_BYTES: u64 = 64 << 20;

/// The most registers of a kernel.
const MAX_REGISTERS: usize = 1 << 17;

type Result<T> = std::result::Result<T, PtxError>;

/// Reads a module. `name` is for messages.
///
/// # Errors
/// The first thing that is not understood, with its line.
pub fn parse(name: &str, text: &str) -> Result<Module> {
    let text = text.trim_end_matches('\0');
    let tokens = lex(name, text)?;
    let mut parser =
        Parser { tokens: &tokens, at: 0, module: Module { name: name.into(), ..Module::default() }, bytes: 0 };
    parser.module()?;
    Ok(parser.module)
}

pub(crate) struct Parser<'t> {
    tokens: &'t [Lexeme<'t>],
    at: usize,
    module: Module,
    /// Bytes of all variables so far.
    bytes: u64,
}

impl<'t> Parser<'t> {
    fn peek(&self) -> Option<Token<'t>> {
        self.tokens.get(self.at).map(|lexeme| lexeme.token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |lexeme| lexeme.line)
    }

    fn fault<T>(&self, message: impl Into<String>) -> Result<T> {
        self.fault_at(self.line(), message)
    }

    fn fault_at<T>(&self, line: u32, message: impl Into<String>) -> Result<T> {
        Err(PtxError { file: self.module.name.clone(), line, message: message.into() })
    }

    fn next(&mut self) -> Result<Token<'t>> {
        match self.tokens.get(self.at) {
            Some(lexeme) => {
                self.at += 1;
                Ok(lexeme.token)
            }
            None => self.fault("the text ends here; more was expected"),
        }
    }

    /// Takes the mark if it is next.
    fn takes(&mut self, mark: u8) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: u8) -> Result<()> {
        if self.takes(mark) {
            return Ok(());
        }
        match self.peek() {
            Some(found) => self.fault(format!("{:?} expected, found {}", char::from(mark), shown(found))),
            None => self.fault(format!("{:?} expected at the end of the text", char::from(mark))),
        }
    }

    fn word(&mut self) -> Result<&'t str> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => {
                self.at -= 1;
                self.fault(format!("a name expected, found {}", shown(other)))
            }
        }
    }

    fn dot(&mut self) -> Result<&'t str> {
        match self.next()? {
            Token::Dot(word) => Ok(word),
            other => {
                self.at -= 1;
                self.fault(format!("a directive or type expected, found {}", shown(other)))
            }
        }
    }

    /// An unsigned number.
    fn number(&mut self) -> Result<u64> {
        match self.next()? {
            Token::Number(text) => match integer(text) {
                Some(value) => Ok(value),
                None => {
                    self.at -= 1;
                    self.fault(format!("{text} is no integer of 64 bits"))
                }
            },
            other => {
                self.at -= 1;
                self.fault(format!("a number expected, found {}", shown(other)))
            }
        }
    }

    fn number_to(&mut self, most: u64) -> Result<u64> {
        let value = self.number()?;
        if value > most { self.fault(format!("{value} is more than {most}")) } else { Ok(value) }
    }

    fn module(&mut self) -> Result<()> {
        self.header()?;
        while self.at < self.tokens.len() {
            let line = self.line();
            let directive = self.dot()?;
            match directive {
                "visible" | "weak" | "extern" => {
                    let outside = directive == "extern";
                    match self.dot()? {
                        "entry" if !outside => self.entry()?,
                        space @ ("global" | "shared" | "const") => self.module_variable(space, outside)?,
                        other => return self.fault_at(line, format!("unsupported directive .{directive} .{other}")),
                    }
                }
                "entry" => self.entry()?,
                "global" | "shared" | "const" => self.module_variable(directive, false)?,
                "file" => {
                    let index = self.number_to(u64::from(u32::MAX))? as u32;
                    let Token::Text(path) = self.next()? else { return self.fault_at(line, ".file wants a path") };
                    self.module.files.insert(index, project_path(path));
                    // An old form states time and size too.
                    while self.takes(b',') {
                        self.number()?;
                    }
                }
                "section" => self.section()?,
                "pragma" => self.pragma()?,
                other => return self.fault_at(line, format!("unsupported directive .{other}")),
            }
        }
        Ok(())
    }

    fn header(&mut self) -> Result<()> {
        if self.next()? != Token::Dot("version") {
            return self.fault_at(1, "a PTX text begins with .version");
        }
        let Token::Number(version) = self.next()? else { return self.fault(".version wants a number") };
        let parts = version.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let Some(version) = parts else { return self.fault(format!("{version} is no version")) };
        if version > NEWEST_VERSION {
            return self.fault(format!("PTX {}.{} is newer than is supported (9.0)", version.0, version.1));
        }
        self.module.version = version;
        if self.next()? != Token::Dot("target") {
            return self.fault(".target expected behind .version");
        }
        let target = self.word()?;
        let digits = target.strip_prefix("sm_").unwrap_or("");
        let plain = digits.trim_end_matches(['a', 'f']);
        let Some(number) = plain.parse().ok().filter(|n| (50..=200).contains(n)) else {
            return self.fault(format!("unknown target {target}"));
        };
        self.module.target = number;
        self.module.specific = plain != digits;
        while self.takes(b',') {
            match self.word()? {
                "debug" | "texmode_independent" => {}
                other => return self.fault(format!("unknown target option {other}")),
            }
        }
        if self.next()? != Token::Dot("address_size") || self.number()? != 64 {
            return self.fault(".address_size 64 expected behind .target");
        }
        Ok(())
    }

    /// `.section .debug_str { … }`: names of inlined functions, not needed here.
    fn section(&mut self) -> Result<()> {
        let name = self.dot()?;
        if !name.starts_with("debug_") {
            return self.fault(format!("unsupported section .{name}"));
        }
        self.expect(b'{')?;
        loop {
            match self.next()? {
                Token::Mark(b'}') => return Ok(()),
                Token::Dot(
                    "b8" | "b16" | "b32" | "b64" | "u8" | "u16" | "u32" | "u64" | "debug_str" | "debug_line",
                )
                | Token::Word(_)
                | Token::Number(_)
                | Token::Mark(b',' | b':' | b'+' | b'-' | b'(' | b')') => {}
                other => return self.fault(format!("unexpected {} in a section", shown(other))),
            }
        }
    }

    fn pragma(&mut self) -> Result<()> {
        match self.next()? {
            // Advice to a compiler about unrolling.
            Token::Text("nounroll" | "used_bytes_mask 15" | "frequency") => self.expect(b';'),
            Token::Text(other) => self.fault(format!("unknown pragma {other:?}")),
            other => self.fault(format!("unexpected {} behind .pragma", shown(other))),
        }
    }

    fn entry(&mut self) -> Result<()> {
        let line = self.line();
        let mut entry = Entry { name: self.word()?.into(), line, ..Entry::default() };
        if self.module.entries.iter().any(|other| other.name == entry.name) {
            return self.fault_at(line, format!("a second entry {}", entry.name));
        }
        if self.takes(b'(') && !self.takes(b')') {
            loop {
                self.parameter(&mut entry)?;
                if !self.takes(b',') {
                    break;
                }
            }
            self.expect(b')')?;
        }
        loop {
            if self.takes(b'{') {
                break;
            }
            match self.dot()? {
                "maxntid" => entry.max_threads = Some(self.dimensions()?),
                "reqntid" => entry.required_threads = Some(self.dimensions()?),
                "minnctapersm" => entry.min_blocks = Some(self.number_to(1 << 16)? as u32),
                "maxnctapersm" => {
                    self.number_to(1 << 16)?;
                }
                "maxnreg" => entry.max_registers = Some(self.number_to(1 << 16)? as u32),
                "pragma" => self.pragma()?,
                other => return self.fault(format!("unsupported directive .{other} of an entry")),
            }
        }
        self.body(&mut entry)?;
        self.module.entries.push(entry);
        Ok(())
    }

    fn dimensions(&mut self) -> Result<[u32; 3]> {
        let mut sizes = [1; 3];
        for (index, size) in sizes.iter_mut().enumerate() {
            if index > 0 && !self.takes(b',') {
                break;
            }
            *size = self.number_to(1 << 20)? as u32;
            if *size == 0 {
                return self.fault("a dimension of zero threads");
            }
        }
        Ok(sizes)
    }
}

/// A token for a message.
fn shown(token: Token<'_>) -> String {
    match token {
        Token::Word(word) | Token::Number(word) => format!("{word:?}"),
        Token::Dot(word) => format!("\".{word}\""),
        Token::Text(text) => format!("the text {text:?}"),
        Token::Mark(mark) => format!("{:?}", char::from(mark)),
    }
}

/// Decimal, `0x`, `0b` or octal, perhaps with a `U` behind.
fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix('U').unwrap_or(text);
    if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        u64::from_str_radix(digits, 16).ok()
    } else if let Some(digits) = text.strip_prefix("0b").or(text.strip_prefix("0B")) {
        u64::from_str_radix(digits, 2).ok()
    } else if text.len() > 1 && text.starts_with('0') {
        u64::from_str_radix(text, 8).ok()
    } else {
        text.parse().ok()
    }
}

/// A source's path from the project's folder on, where it is recognised by `kernels/`.
fn project_path(path: &str) -> String {
    match path.rfind("kernels/") {
        Some(at) if at == 0 || path[..at].ends_with('/') => path[at..].into(),
        _ => path.into(),
    }
}
