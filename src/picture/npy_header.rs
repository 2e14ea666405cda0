//! The header of NumPy's `.npy` files (NEP 1; versions 1 to 3).
//!
//! Parsed here, because the existing libraries bring a parser generator for this one line, a twentieth of a fresh build.

/// The array description in a `.npy` file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpyHeader {
    /// NumPy's type code: b, i, u, f, c, U, S, M, m, V.
    pub kind: char,
    /// Bytes of an element.
    pub size: usize,
    /// Whether elements are big-endian.
    pub big_endian: bool,
    /// Whether the first index varies fastest, instead of the last.
    pub fortran: bool,
    /// The lengths of the axes; none for a scalar.
    pub shape: Vec<usize>,
    /// The offset of the elements.
    pub start: usize,
}

const DAMAGED: &str = "is damaged: not an array that NumPy wrote";
const RECORDS: &str = "is an array of records, not of numbers";
const OBJECTS: &str = "is an array of Python objects, which are not read";

/// A longer header is damaged: a plain array's is below 128 bytes.
const LONGEST: usize = 1 << 16;

impl NpyHeader {
    /// Reads the header at the start of a file. Allocates no more than its length.
    ///
    /// # Errors
    /// The fault of the file, as the end of a sentence.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let (first, length) = match *bytes {
            [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high, ..] => {
                (10, usize::from(u16::from_le_bytes([low, high])))
            }
            [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b, c, d, ..] => {
                (12, u32::from_le_bytes([a, b, c, d]) as usize)
            }
            _ => return Err(DAMAGED),
        };
        let start = first + length.min(LONGEST);
        let text = bytes.get(first..start).filter(|_| length < LONGEST).ok_or(DAMAGED)?;
        let mut header = Self { kind: ' ', size: 0, big_endian: false, fortran: false, shape: Vec::new(), start };
        header.dictionary(Literal(std::str::from_utf8(text).map_err(|_| DAMAGED)?))?;
        Ok(header)
    }

    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, each key once, in any order.
    fn dictionary(&mut self, mut text: Literal) -> Result<(), &'static str> {
        let mut missing = vec!["descr", "fortran_order", "shape"];
        text.expect('{')?;
        while !text.takes('}') {
            let key = text.string()?;
            missing.remove(missing.iter().position(|known| *known == key).ok_or(DAMAGED)?);
            text.expect(':')?;
            match key {
                "descr" if text.is_next('[') => return Err(RECORDS),
                "descr" => self.element(text.string()?)?,
                "shape" => self.shape = text.tuple()?,
                _ => self.fortran = text.boolean()?,
            }
            if !text.takes(',') && !text.is_next('}') {
                return Err(DAMAGED);
            }
        }
        if missing.is_empty() && text.0.trim().is_empty() { Ok(()) } else { Err(DAMAGED) }
    }

    /// `<f4`, `|u1`, `>i8`, `<U12`, `<M8[ns]`.
    fn element(&mut self, descr: &str) -> Result<(), &'static str> {
        let plain = descr.trim_start_matches(['<', '>', '|', '=']);
        let mut rest = plain.chars();
        self.kind = rest.next().filter(char::is_ascii_alphabetic).ok_or(DAMAGED)?;
        if self.kind == 'O' {
            return Err(OBJECTS);
        }
        let digits = rest.as_str().split('[').next().unwrap_or_default();
        let unit = if self.kind == 'U' { 4 } else { 1 };
        self.size = digits.parse::<usize>().ok().and_then(|size| size.checked_mul(unit)).ok_or(DAMAGED)?;
        self.big_endian = descr.starts_with('>');
        Ok(())
    }

    /// The bytes before the elements of a row-major array: `descr` is a NumPy type such as `<f4`.
    pub fn encode(descr: &str, shape: &[usize]) -> Vec<u8> {
        let mut axes: String = shape.iter().map(|length| format!("{length}, ")).collect();
        if shape.len() > 1 {
            axes.truncate(axes.len() - 2);
        }
        let mut text =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", axes.trim_end_matches(' '));
        // A newline ends the header, whose length with its 10 leading bytes is a multiple of 64.
        let padding = 63 - (10 + text.len()) % 64;
        text.extend(std::iter::repeat_n(' ', padding).chain(['\n']));
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(text.len()).expect("a short header").to_le_bytes());
        bytes.extend(text.bytes());
        bytes
    }
}

/// The rest of a Python literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn is_next(&mut self, c: char) -> bool {
        self.0 = self.0.trim_start();
        self.0.starts_with(c)
    }

    fn takes(&mut self, c: char) -> bool {
        let is_next = self.is_next(c);
        if is_next {
            self.0 = &self.0[c.len_utf8()..];
        }
        is_next
    }

    fn expect(&mut self, c: char) -> Result<(), &'static str> {
        if self.takes(c) { Ok(()) } else { Err(DAMAGED) }
    }

    /// Without escapes: NumPy writes none.
    fn string(&mut self) -> Result<&'a str, &'static str> {
        let quote = if self.takes('"') { '"' } else { '\'' };
        if quote == '\'' {
            self.expect(quote)?;
        }
        let (text, rest) = self.0.split_once(quote).filter(|(text, _)| !text.contains('\\')).ok_or(DAMAGED)?;
        self.0 = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, &'static str> {
        let text = self.0.trim_start();
        let (value, rest) = match (text.strip_prefix("True"), text.strip_prefix("False")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(DAMAGED),
        };
        self.0 = rest;
        Ok(value)
    }

    /// Integers; Python 2 wrote some with a trailing L.
    fn tuple(&mut self) -> Result<Vec<usize>, &'static str> {
        self.expect('(')?;
        let mut values = Vec::new();
        while !self.takes(')') {
            let text = self.0.trim_start();
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            values.push(text[..end].parse().map_err(|_| DAMAGED)?);
            self.0 = text[end..].strip_prefix('L').unwrap_or(&text[end..]);
            if !self.takes(',') && !self.is_next(')') {
                return Err(DAMAGED);
            }
        }
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.bytes());
        bytes
    }

    #[test]
    fn headers_that_numpy_writes_are_read() {
        let parsed = |text: &str| NpyHeader::parse(&file(text)).unwrap();
        let header = parsed("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }   \n");
        let wanted =
            NpyHeader { kind: 'f', size: 4, big_endian: false, fortran: false, shape: vec![2, 3], start: header.start };
        assert_eq!(header, wanted);
        let other = parsed("{\"shape\": (7L,), 'fortran_order': True, 'descr': '>U12'}");
        assert_eq!((other.kind, other.size, other.big_endian, other.fortran), ('U', 48, true, true));
        assert_eq!(other.shape, [7]);
        assert_eq!(parsed("{'descr': '|b1', 'fortran_order': False, 'shape': (), }").shape, [0; 0]);
        assert_eq!(parsed("{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (3,), }").size, 8);
    }

    #[test]
    fn what_is_written_is_read_and_aligned() {
        for shape in [vec![], vec![5], vec![60_000, 32, 32, 3]] {
            let bytes = NpyHeader::encode("<f4", &shape);
            let header = NpyHeader::parse(&bytes).unwrap();
            assert_eq!((header.start, header.start % 64), (bytes.len(), 0));
            assert_eq!((header.shape, header.kind, header.size, header.fortran), (shape, 'f', 4, false));
        }
    }

    #[test]
    fn others_are_refused_in_words() {
        let refused = |text: &str| NpyHeader::parse(&file(text)).unwrap_err();
        assert_eq!(refused("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), OBJECTS);
        assert_eq!(refused("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }"), RECORDS);
        for text in [
            "",
            "{",
            "{}",
            "{'descr': '<f4', 'fortran_order': False}",
            "{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1 2)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
            "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} + 1",
            "{'descr': '<f99999999999999999999', 'fortran_order': False, 'shape': (1,)}",
            "{'descr': 'é4', 'fortran_order': False, 'shape': (1,)}",
        ] {
            assert_eq!(refused(text), DAMAGED, "{text}");
        }
        for bytes in [&b"\x93NUMPY\x01\x00\xff\xff{"[..], b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", b"\x93NUMPY", b""] {
            assert_eq!(NpyHeader::parse(bytes).unwrap_err(), DAMAGED);
        }
    }
}
