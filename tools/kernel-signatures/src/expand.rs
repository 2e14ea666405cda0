//! What the preprocessor makes of an entry: `kernels/common/entry.cuh` writes entries by macros, which are expanded here as a
//! compiler would.

use std::collections::BTreeMap;

use crate::strip_comments;

/// The macros of entries, as every compiler reads them.
const ENTRY_MACROS: &str = include_str!("../../../kernels/common/entry.cuh");

/// A word, a string literal or a single sign, and its line, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub text: String,
    pub line: usize,
}

struct Macro {
    /// `None`: without brackets. `...` is called `__VA_ARGS__`.
    parameters: Option<Vec<String>>,
    body: Vec<Token>,
}

/// Macros by name: those of entries, and a file's own.
pub(crate) struct Macros(BTreeMap<String, Macro>);

impl Macros {
    /// The macros of entries.
    pub(crate) fn of_entries() -> Self {
        let mut macros = Self(BTreeMap::new());
        for (line, text) in lines(&strip_comments(ENTRY_MACROS)) {
            // Of a choice between compilers the last one counts: that is the one for all others.
            if let Some((name, rest)) = definition(&text) {
                macros.insert(name, rest, line);
            }
        }
        macros
    }

    /// Adds the macro of a directive, if it is one.
    ///
    /// # Errors
    /// A name that is taken, `#undef`, and a choice: what a macro stands for must not depend on the place or the compiler.
    pub(crate) fn define(&mut self, directive: &str, line: usize) -> Result<(), String> {
        if let Some((name, rest)) = definition(directive) {
            if self.0.contains_key(name) {
                return Err(format!("`{name}` is the name of a macro already: take another"));
            }
            self.insert(name, rest, line);
            return Ok(());
        }
        match directive.trim_start_matches('#').trim_start().split(|c| !is_word_char(c)).next() {
            Some("include" | "pragma") => Ok(()),
            _ => Err(format!("`{directive}` is not allowed here: a kernel has #include, #define and #pragma only")),
        }
    }

    /// Whether this is a macro that writes entries.
    pub(crate) fn is_of_entries(word: &str) -> bool {
        ["ENTRY", "ENTRIES"].contains(&word) || word.ends_with("KERNEL") || word.ends_with("KERNELS")
    }

    /// `text`: `(parameters) body`, or ` body`.
    fn insert(&mut self, name: &str, text: &str, line: usize) {
        let (parameters, body) = match text.strip_prefix('(').and_then(|text| text.split_once(')')) {
            Some((names, body)) => {
                let names = names.split(',').map(|name| name.trim().replace("...", "__VA_ARGS__"));
                (Some(names.filter(|name| !name.is_empty()).collect()), body)
            }
            None => (None, text),
        };
        self.0.insert(name.into(), Macro { parameters, body: tokenize(body, line) });
    }

    /// The text behind the first token of `rest`, a macro's call, and how many tokens the call has. `None`: it is no call.
    ///
    /// # Errors
    /// A call without end or with another number of arguments.
    pub(crate) fn call(&self, rest: &[Token]) -> Result<Option<(Vec<Token>, usize)>, String> {
        self.call_within(rest, &[])
    }

    fn call_within(&self, rest: &[Token], within: &[&str]) -> Result<Option<(Vec<Token>, usize)>, String> {
        let name = rest[0].text.as_str();
        let Some(definition) = self.0.get(name).filter(|_| !within.contains(&name)) else { return Ok(None) };
        let (text, length) = match &definition.parameters {
            None => (definition.body.clone(), 1),
            Some(_) if rest.get(1).is_none_or(|token| token.text != "(") => return Ok(None),
            Some(parameters) => {
                let (arguments, length) = arguments(rest, parameters)?;
                (substitute(&definition.body, parameters, &arguments), length)
            }
        };
        let within: Vec<&str> = within.iter().copied().chain([name]).collect();
        let mut expanded = Vec::new();
        let mut at = 0;
        while at < text.len() {
            match self.call_within(&text[at..], &within)? {
                Some((inner, length)) => {
                    expanded.extend(inner);
                    at += length;
                }
                None => {
                    expanded.push(text[at].clone());
                    at += 1;
                }
            }
        }
        // What is wrong in it is wrong in the call.
        expanded.iter_mut().for_each(|token| token.line = rest[0].line);
        Ok(Some((expanded, length)))
    }
}

/// The name of a macro that a directive defines, and what is behind it.
fn definition(directive: &str) -> Option<(&str, &str)> {
    let text = directive.strip_prefix('#')?.trim_start().strip_prefix("define")?;
    let name = text.trim_start();
    let end = name.find(|c| !is_word_char(c)).unwrap_or(name.len());
    (name.len() < text.len() && end > 0).then(|| name.split_at(end))
}

/// The arguments of the call that `rest` begins with, and how many tokens the call has.
fn arguments(rest: &[Token], parameters: &[String]) -> Result<(Vec<Vec<Token>>, usize), String> {
    let name = &rest[0].text;
    let mut arguments = vec![Vec::new()];
    let mut depth = 0;
    for (at, token) in rest.iter().enumerate().skip(1) {
        match token.text.as_str() {
            "(" => depth += 1,
            ")" => depth -= 1,
            _ => {}
        }
        let last = parameters.len() == arguments.len() && parameters.last().is_some_and(|p| p == "__VA_ARGS__");
        match token.text.as_str() {
            "(" if depth == 1 => {}
            ")" if depth == 0 && arguments.len() == parameters.len() => return Ok((arguments, at + 1)),
            ")" if depth == 0 => {
                return Err(format!(
                    "{name} takes ({}), and is given another number of arguments: {}",
                    parameters.join(", "),
                    arguments.len()
                ));
            }
            "," if depth == 1 && !last => arguments.push(Vec::new()),
            _ => arguments.last_mut().into_iter().for_each(|argument| argument.push(token.clone())),
        }
    }
    Err(format!("{name}( is not closed"))
}

/// The body with arguments in the place of parameters; `a ## b` is one word.
fn substitute(body: &[Token], parameters: &[String], arguments: &[Vec<Token>]) -> Vec<Token> {
    let mut text: Vec<Token> = Vec::new();
    let mut joins = false;
    let mut at = 0;
    while at < body.len() {
        let token = &body[at];
        if token.text == "#" && body.get(at + 1).is_some_and(|next| next.text == "#") {
            joins = true;
            at += 2;
            continue;
        }
        let mut new = match parameters.iter().position(|parameter| *parameter == token.text) {
            Some(index) => arguments[index].clone(),
            None => vec![token.clone()],
        };
        if joins
            && !new.is_empty()
            && let Some(left) = text.pop()
        {
            new[0].text = left.text + &new[0].text;
        }
        joins = false;
        text.extend(new);
        at += 1;
    }
    text
}

/// The lines of a source without comments, with their numbers; a directive that goes on behind `\` is one line.
pub(crate) fn lines(source: &str) -> impl Iterator<Item = (usize, String)> {
    let mut rest = source.lines().enumerate();
    std::iter::from_fn(move || {
        let (index, text) = rest.next()?;
        let mut text = text.trim().to_string();
        while text.starts_with('#') && text.ends_with('\\') {
            text.pop();
            let Some((_, more)) = rest.next() else { break };
            text.push(' ');
            text.push_str(more.trim());
        }
        Some((index + 1, text))
    })
}

/// Words, string literals, and single signs.
pub(crate) fn tokenize(text: &str, line: usize) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_whitespace() {
            continue;
        }
        let mut text = String::from(c);
        if c == '"' {
            while let Some(inner) = chars.next() {
                text.push(inner);
                match inner {
                    '\\' => text.extend(chars.next()),
                    '"' => break,
                    _ => {}
                }
            }
        } else if is_word_char(c) {
            while let Some(next) = chars.next_if(|&n| is_word_char(n)) {
                text.push(next);
            }
        }
        tokens.push(Token { text, line });
    }
    tokens
}

pub(crate) fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn macros(source: &str) -> Result<Macros, String> {
        let mut macros = Macros::of_entries();
        lines(source)
            .filter(|(_, text)| text.starts_with('#'))
            .try_for_each(|(line, text)| macros.define(&text, line))?;
        Ok(macros)
    }

    fn expanded(source: &str, call: &str) -> Result<String, String> {
        let (text, length) = macros(source)?.call(&tokenize(call, 7))?.expect(call);
        assert!(text.iter().all(|token| token.line == 7));
        assert_eq!(length, tokenize(call, 7).len());
        Ok(text.iter().map(|token| token.text.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn expands_as_a_preprocessor_does() {
        for (source, call, text) in [
            ("#define TWO 1 + 1", "TWO", "1 + 1"),
            ("#define F(a, b) b a", "F((x, y), z<w>)", "z < w > ( x , y )"),
            ("#define NAME(n) x##n##_y n", "NAME(4)", "x4_y 4"),
            ("#define REST(a, ...) a(__VA_ARGS__)", "REST(f, 1, (2, 3), 4)", "f ( 1 , ( 2 , 3 ) , 4 )"),
            ("#define INNER(a) [a]\n#define OUTER(a) INNER(a##_b) OUTER", "OUTER(c)", "[ c_b ] OUTER"),
            ("#define LIST a, b\n#define TAKES(x) f x", "TAKES((LIST))", "f ( a , b )"),
            ("#define LONG(a) \\\n    a; \\\n    a", "LONG(x)", "x ; x"),
            ("#define VALUE (a)\n", "VALUE", "( a )"),
        ] {
            assert_eq!(expanded(source, call).unwrap(), text, "{source}");
        }
        assert_eq!(macros("#define F(a) a").unwrap().call(&tokenize("F;", 1)).unwrap(), None);
        assert_eq!(macros("").unwrap().call(&tokenize("F(1)", 1)).unwrap(), None);
    }

    #[test]
    fn says_what_a_call_lacks() {
        let error = expanded("#define F(a, b) a", "F(1)").unwrap_err();
        assert!(error.contains("F takes (a, b), and is given another number of arguments: 1"), "{error}");
        assert!(expanded("#define F(a) a", "F((1)").unwrap_err().contains("not closed"));
        assert!(
            expanded("", "KERNELS(k_fwd, (32), (Out<T> y))").unwrap_err().contains("KERNELS takes (NAME, BOUNDS, ")
        );
    }

    #[test]
    fn a_macro_stands_for_one_text() {
        for (source, message) in [
            ("#define F 1\n#define F 2", "`F` is the name of a macro already"),
            ("#define ENTRY(x) x", "`ENTRY` is the name of a macro already"),
            ("#define GRID_WAIT", "`GRID_WAIT` is the name of a macro already"),
            ("#undef ENTRY", "`#undef ENTRY` is not allowed here"),
            ("#ifdef __CUDACC__\n#endif", "`#ifdef __CUDACC__` is not allowed here"),
        ] {
            let error = macros(source).err().unwrap_or_default();
            assert!(error.contains(message), "{source}: {error}");
        }
        macros("#pragma unroll 4\n#include \"common/types.cuh\"\n#define EMPTY").unwrap();
        assert!(Macros::is_of_entries("WIDE_TILED_KERNELS") && !Macros::is_of_entries("NAMES"));
    }
}
