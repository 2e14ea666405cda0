//! Text to tokens. Every token keeps its line.

use super::PtxError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'t> {
    /// A name: `add`, `%r12`, `$L__BB0_1`, `_ZN3foo`.
    Word(&'t str),
    /// `.word`, without its dot; `::` belongs to it.
    Dot(&'t str),
    /// An integer or a float as it is written.
    Number(&'t str),
    /// A quoted text.
    Text(&'t str),
    /// Anything else of one character.
    Mark(u8),
}

#[derive(Clone, Copy, Debug)]
pub struct Lexeme<'t> {
    pub token: Token<'t>,
    pub line: u32,
}

fn word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$'
}

/// All tokens of `text`.
///
/// # Errors
/// For bytes that PTX does not have, an open comment or an open quotation.
pub fn lex<'t>(name: &str, text: &'t str) -> Result<Vec<Lexeme<'t>>, PtxError> {
    let bytes = text.as_bytes();
    let mut found = Vec::with_capacity(bytes.len() / 4);
    let (mut at, mut line) = (0, 1u32);
    let fault = |line, message: String| PtxError { file: name.into(), line, message };
    while at < bytes.len() {
        let start = at;
        let byte = bytes[at];
        // The end of a run of bytes from `from` on for which `test` holds.
        let run = |from: usize, test: &dyn Fn(u8) -> bool| {
            bytes[from..].iter().position(|&b| !test(b)).map_or(bytes.len(), |length| from + length)
        };
        let token = match byte {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            b' ' | b'\t' | b'\r' => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at = run(at, &|b| b != b'\n');
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(length) = text[at + 2..].find("*/") else {
                    return Err(fault(line, "a comment without an end".into()));
                };
                let end = at + 2 + length + 2;
                line += bytes[at..end].iter().filter(|&&b| b == b'\n').count() as u32;
                at = end;
                continue;
            }
            b'"' => {
                let end = run(at + 1, &|b| b != b'"' && b != b'\n');
                if bytes.get(end) != Some(&b'"') {
                    return Err(fault(line, "a quotation without an end".into()));
                }
                at = end + 1;
                Token::Text(&text[start + 1..end])
            }
            b'.' if bytes.get(at + 1).is_some_and(|&b| word_byte(b)) => {
                at = run(at + 1, &word_byte);
                while bytes[at..].starts_with(b"::") && bytes.get(at + 2).is_some_and(|&b| word_byte(b)) {
                    at = run(at + 2, &word_byte);
                }
                Token::Dot(&text[start + 1..at])
            }
            b'0'..=b'9' => {
                at = run(at, &|b| b.is_ascii_alphanumeric());
                // A decimal point belongs to a number, but only where a digit follows.
                if bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
                    at = run(at + 1, &|b| b.is_ascii_alphanumeric());
                }
                Token::Number(&text[start..at])
            }
            _ if word_byte(byte) || byte == b'%' => {
                at = run(at + 1, &word_byte);
                Token::Word(&text[start..at])
            }
            b'{' | b'}' | b'(' | b')' | b'[' | b']' | b'<' | b'>' | b',' | b';' | b':' | b'@' | b'!' | b'+' | b'-'
            | b'|' | b'=' | b'~' => {
                at += 1;
                Token::Mark(byte)
            }
            _ => return Err(fault(line, format!("unexpected byte {:?}", char::from(byte)))),
        };
        found.push(Lexeme { token, line });
    }
    Ok(found)
}
