//! A kernel's body: registers, labels, instructions and their operands.

use std::collections::HashMap;

use super::variable::type_bytes;
use super::*;

/// The most operands of an instruction, and of a vector.
const MAX_OPERANDS: usize = 16;

/// The deepest nesting of `{ … }`.
const MAX_DEPTH: usize = 64;

/// Registers that were declared together: `%r<60>` or a single one.
#[derive(Clone, Copy)]
struct Declared {
    first: Reg,
    /// None: one register of exactly this name.
    count: Option<u32>,
}

#[derive(Default)]
struct Names<'t> {
    /// One map for each open `{`.
    registers: Vec<HashMap<&'t str, Declared>>,
    variables: HashMap<String, VariableRef>,
    labels: HashMap<&'t str, u32>,
    /// Uses of labels that came before their definition: instruction, operand, name, line.
    open: Vec<(usize, usize, &'t str, u32)>,
    /// The place of what follows.
    place: Option<u32>,
    /// Numbers of places.
    known: HashMap<Place, u32>,
    /// The place that was stated last for a location: a caller's `.loc` stands before those of what is inlined there.
    last: HashMap<Location, u32>,
}

impl Names<'_> {
    fn register(&self, word: &str) -> Option<Reg> {
        let digits = word.len() - word.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        for scope in self.registers.iter().rev() {
            if let Some(Declared { first, count: None }) = scope.get(word) {
                return Some(*first);
            }
            // A name of a range may end with digits itself.
            for length in 1..=digits.min(7) {
                let (prefix, index) = word.split_at(word.len() - length);
                if let Some(Declared { first, count: Some(count) }) = scope.get(prefix)
                    && let Ok(index) = index.parse::<u32>()
                    && index < *count
                    && (length == 1 || !word[word.len() - length..].starts_with('0'))
                {
                    return Some(first + index);
                }
            }
        }
        None
    }
}

impl<'t> Parser<'t> {
    pub(super) fn body(&mut self, entry: &mut Entry) -> Result<()> {
        let mut names = Names { registers: vec![HashMap::new()], ..Names::default() };
        for (index, variable) in self.module.variables.iter().enumerate() {
            names.variables.insert(variable.name.clone(), VariableRef::Module(index as u32));
        }
        while !names.registers.is_empty() {
            match self.next()? {
                Token::Mark(b'}') => {
                    names.registers.pop();
                }
                Token::Mark(b'{') => {
                    if names.registers.len() == MAX_DEPTH {
                        return self.fault("braces nested too deep");
                    }
                    names.registers.push(HashMap::new());
                }
                Token::Dot("reg") => self.registers(entry, &mut names)?,
                Token::Dot(space @ ("local" | "shared")) => {
                    let variable = self.variable(space, false)?;
                    let index = VariableRef::Entry(entry.variables.len() as u32);
                    names.variables.insert(variable.name.clone(), index);
                    entry.variables.push(variable);
                }
                Token::Dot("loc") => self.location(entry, &mut names)?,
                Token::Dot("pragma") => self.pragma()?,
                Token::Dot(other) => {
                    self.at -= 1;
                    return self.fault(format!("unsupported directive .{other} in a kernel"));
                }
                Token::Word(word) if self.peek() == Some(Token::Mark(b':')) => {
                    self.at += 1;
                    if names.labels.insert(word, entry.body.len() as u32).is_some() {
                        return self.fault(format!("a second label {word}"));
                    }
                }
                _ => {
                    self.at -= 1;
                    self.instruction(entry, &mut names)?;
                }
            }
        }
        for (instruction, operand, label, line) in std::mem::take(&mut names.open) {
            match names.labels.get(label) {
                Some(&at) => entry.body[instruction].operands[operand] = Operand::Label(at),
                None => return self.fault_at(line, format!("unknown name {label}")),
            }
        }
        Ok(())
    }

    fn registers(&mut self, entry: &mut Entry, names: &mut Names<'t>) -> Result<()> {
        let kind = self.dot()?;
        let width = match (kind, type_bytes(kind)) {
            ("pred", _) => Width::Pred,
            (_, Some(2)) => Width::B16,
            (_, Some(4)) => Width::B32,
            (_, Some(8)) => Width::B64,
            _ => return self.fault(format!("no registers of type .{kind}")),
        };
        loop {
            let name = self.word()?;
            let count = if self.takes(b'<') {
                let count = self.number_to(MAX_REGISTERS as u64)? as u32;
                self.expect(b'>')?;
                Some(count)
            } else {
                None
            };
            let first = entry.registers.len() as Reg;
            if entry.registers.len() + count.unwrap_or(1) as usize > MAX_REGISTERS {
                return self.fault(format!("more than {MAX_REGISTERS} registers"));
            }
            match count {
                Some(count) => {
                    entry.registers.extend((0..count).map(|index| Register { name: format!("{name}{index}"), width }))
                }
                None => entry.registers.push(Register { name: name.into(), width }),
            }
            let scope = names.registers.last_mut().expect("the body's own scope");
            if scope.insert(name, Declared { first, count }).is_some() {
                return self.fault(format!("a second declaration of {name}"));
            }
            if !self.takes(b',') {
                break;
            }
        }
        self.expect(b';')
    }

    /// `.loc 1 24 5` and perhaps `, function_name $L, inlined_at 1 108 77`.
    fn location(&mut self, entry: &mut Entry, names: &mut Names<'t>) -> Result<()> {
        let location = |parser: &mut Self| -> Result<Location> {
            let file = parser.number_to(u64::from(u32::MAX))? as u32;
            let line = parser.number_to(u64::from(u32::MAX))? as u32;
            let column = parser.number_to(u64::from(u32::MAX))? as u32;
            Ok(Location { file, line, column })
        };
        let at = location(self)?;
        let mut inlined_at = None;
        while self.takes(b',') {
            match self.word()? {
                "function_name" => {
                    self.word()?;
                    if self.takes(b'+') {
                        self.number()?;
                    }
                }
                "inlined_at" => inlined_at = Some(location(self)?),
                other => return self.fault(format!("unknown {other} of .loc")),
            }
        }
        let mut number = |place: Place| {
            *names.known.entry(place).or_insert_with(|| {
                entry.places.push(place);
                entry.places.len() as u32 - 1
            })
        };
        let caller = inlined_at.map(|at| match names.last.get(&at) {
            Some(&caller) => caller,
            None => number(Place { at, caller: None }),
        });
        let place = number(Place { at, caller });
        names.last.insert(at, place);
        names.place = Some(place);
        Ok(())
    }

    fn instruction(&mut self, entry: &mut Entry, names: &mut Names<'t>) -> Result<()> {
        let line = self.line();
        let guard = if self.takes(b'@') {
            let negated = self.takes(b'!');
            let word = self.word()?;
            match names.register(word) {
                Some(reg) if entry.registers[reg as usize].width == Width::Pred => Some((reg, negated)),
                _ => return self.fault_at(line, format!("{word} is no predicate")),
            }
        } else {
            None
        };
        let mut opcode = self.word()?.to_string();
        while let Some(Token::Dot(modifier)) = self.peek() {
            self.at += 1;
            opcode.push('.');
            opcode.push_str(modifier);
        }
        let mut operands = Vec::new();
        if !self.takes(b';') {
            loop {
                if operands.len() == MAX_OPERANDS {
                    return self.fault("too many operands");
                }
                let position = (entry.body.len(), operands.len());
                let operand = self.operand(entry, names, Some(position))?;
                operands.push(operand);
                if !self.takes(b',') {
                    break;
                }
            }
            self.expect(b';')?;
        }
        entry.body.push(Instruction { guard, opcode, operands, line, place: names.place });
        Ok(())
    }

    /// One operand; with `position`, a name that is not known yet is a label.
    fn operand(&mut self, entry: &Entry, names: &mut Names<'t>, position: Option<(usize, usize)>) -> Result<Operand> {
        match self.peek() {
            Some(Token::Number(_) | Token::Mark(b'-' | b'~')) => self.constant(),
            Some(Token::Mark(b'!')) => {
                self.at += 1;
                let word = self.word()?;
                match names.register(word) {
                    Some(reg) => Ok(Operand::NotReg(reg)),
                    None => self.fault(format!("unknown register {word}")),
                }
            }
            Some(Token::Mark(b'{')) if position.is_some() => {
                self.at += 1;
                let mut parts = Vec::new();
                loop {
                    if parts.len() == MAX_OPERANDS {
                        return self.fault("a vector too long");
                    }
                    parts.push(self.operand(entry, names, None)?);
                    if !self.takes(b',') {
                        break;
                    }
                }
                self.expect(b'}')?;
                Ok(Operand::Vector(parts))
            }
            Some(Token::Mark(b'[')) if position.is_some() => {
                self.at += 1;
                self.address(entry, names)
            }
            Some(Token::Word(word)) => {
                let line = self.line();
                self.at += 1;
                self.name(word, line, names, position)
            }
            Some(other) => self.fault(format!("an operand expected, found {}", shown(other))),
            None => self.fault("the text ends within an instruction"),
        }
    }

    fn name(
        &mut self,
        word: &'t str,
        line: u32,
        names: &mut Names<'t>,
        position: Option<(usize, usize)>,
    ) -> Result<Operand> {
        if word == "_" {
            return Ok(Operand::Sink);
        }
        if let Some(reg) = names.register(word) {
            if self.takes(b'|') {
                let second = self.word()?;
                return match names.register(second) {
                    Some(second) => Ok(Operand::Pair(reg, second)),
                    None => self.fault(format!("unknown register {second}")),
                };
            }
            return Ok(Operand::Reg(reg));
        }
        if word.starts_with('%') {
            return self.special(word).map(Operand::Special);
        }
        if let Some(&variable) = names.variables.get(word) {
            return Ok(Operand::Variable(variable));
        }
        match (names.labels.get(word), position) {
            (Some(&at), Some(_)) => Ok(Operand::Label(at)),
            (None, Some((instruction, operand))) => {
                names.open.push((instruction, operand, word, line));
                Ok(Operand::Sink)
            }
            (_, None) => self.fault_at(line, format!("unknown name {word}")),
        }
    }

    /// The operand behind `[`.
    fn address(&mut self, entry: &Entry, names: &Names<'t>) -> Result<Operand> {
        let base = match self.next()? {
            Token::Number(text) => match integer(text) {
                Some(value) => {
                    self.expect(b']')?;
                    return Ok(Operand::Address(Base::Absolute, value as i64));
                }
                None => return self.fault(format!("{text} is no address")),
            },
            Token::Word(word) => match (names.register(word), names.variables.get(word)) {
                (Some(reg), _) => Base::Reg(reg),
                (None, Some(&variable)) => Base::Variable(variable),
                (None, None) => match entry.params.iter().find(|param| param.name == word) {
                    Some(param) => Base::Param(param.offset),
                    None => return self.fault(format!("unknown name {word}")),
                },
            },
            other => return self.fault(format!("an address expected, found {}", shown(other))),
        };
        let offset = if self.takes(b'+') || self.peek() == Some(Token::Mark(b'-')) {
            match self.constant()? {
                Operand::Int(value) => value as i64,
                _ => return self.fault("an address wants an integer offset"),
            }
        } else {
            0
        };
        self.expect(b']')?;
        Ok(Operand::Address(base, offset))
    }

    fn special(&mut self, word: &str) -> Result<Special> {
        let mut dimension = || -> Result<u8> {
            match self.dot()? {
                "x" => Ok(0),
                "y" => Ok(1),
                "z" => Ok(2),
                other => self.fault(format!("{word} has no .{other}")),
            }
        };
        Ok(match word {
            "%tid" => Special::Tid(dimension()?),
            "%ntid" => Special::Ntid(dimension()?),
            "%ctaid" => Special::Ctaid(dimension()?),
            "%nctaid" => Special::Nctaid(dimension()?),
            "%laneid" => Special::LaneId,
            "%warpid" => Special::WarpId,
            "%nwarpid" => Special::NWarpId,
            "%lanemask_eq" => Special::LaneMask(MaskOf::Equal),
            "%lanemask_lt" => Special::LaneMask(MaskOf::Less),
            "%lanemask_le" => Special::LaneMask(MaskOf::LessEqual),
            "%lanemask_gt" => Special::LaneMask(MaskOf::Greater),
            "%lanemask_ge" => Special::LaneMask(MaskOf::GreaterEqual),
            "%clock" => Special::Clock,
            "%clock64" => Special::Clock64,
            "%smid" => Special::SmId,
            "%nsmid" => Special::NSmId,
            "%dynamic_smem_size" => Special::DynamicShared,
            "%total_smem_size" => Special::TotalShared,
            other => return self.fault(format!("unknown register {other}")),
        })
    }
}
