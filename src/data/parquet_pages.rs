//! Checks the memory that the pages of a parquet column may need: a page header declares its decompressed size, up to 2 GiB, and
//! the decoder allocates that. So every header is checked first: no page may be longer than its bytes in the file can become.
//!
//! Headers use Thrift's compact protocol: fields of a type and a number, numbers as varints.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use parquet::basic::Compression;

/// Deepest nesting of structs in a header; parquet's are two deep.
const DEEPEST: u32 = 8;

/// The best compression ratio of a page.
fn ratio(compression: Compression) -> u64 {
    match compression {
        Compression::UNCOMPRESSED => 1,
        // A copy of up to 64 bytes takes three.
        Compression::SNAPPY => 22,
        Compression::GZIP(_) => 1032,
        // Zstandard's; codecs that are not supported have less.
        _ => 1 << 15,
    }
}

/// An error message unless each page of the column chunk at `start`, `len` bytes long, lies within it and declares a possible
/// size.
pub(super) fn check(file: &File, start: u64, len: u64, compression: Compression) -> Result<(), String> {
    let damaged = |error: io::Error| format!("has a damaged page header: {error}");
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start)).map_err(damaged)?;
    let mut left = len;
    while left > 0 {
        let mut header = Header { reader: (&mut reader).take(left), sizes: [None; 2] };
        header.fields(0).map_err(damaged)?;
        let (sizes, rest) = (header.sizes, header.reader.limit());
        let [Some(unpacked), Some(packed)] = sizes.map(|size| size.and_then(|size| u64::try_from(size).ok())) else {
            return Err("has a page header without the page's size".into());
        };
        if packed > rest || unpacked > packed.saturating_mul(ratio(compression)) {
            return Err(format!("has a page of {packed} bytes that is said to become {unpacked}"));
        }
        // No larger than an i32.
        reader.seek_relative(packed as i64).map_err(damaged)?;
        left = rest - packed;
    }
    Ok(())
}

struct Header<R> {
    reader: io::Take<R>,
    /// The page's decompressed and compressed sizes: fields 2 and 3.
    sizes: [Option<i64>; 2],
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: BufRead> Header<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(wrong("a number without an end"))
    }

    fn number(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let mut left = bytes;
        while left > 0 {
            let some = self.reader.fill_buf()?.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if some == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.reader.consume(some);
            left -= some as u64;
        }
        Ok(())
    }

    /// The fields of a struct, up to its end.
    fn fields(&mut self, depth: u32) -> io::Result<()> {
        let mut id = 0i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            id = match head >> 4 {
                0 => self.number()?,
                delta => id + i64::from(delta),
            };
            match (depth, id, head & 15) {
                (0, 2 | 3, 5) => {
                    let size = self.number()?;
                    self.sizes[(id - 2) as usize] = Some(size);
                }
                // The type of a boolean field is its value.
                (.., 1 | 2) => {}
                (.., kind) => self.value(kind, depth)?,
            }
        }
    }

    fn value(&mut self, kind: u8, depth: u32) -> io::Result<()> {
        match kind {
            1..=3 => self.pass(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.pass(8),
            8 => {
                let bytes = self.varint()?;
                self.pass(bytes)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
                // Each takes at least a byte, so this ends with the chunk.
                (0..count).try_for_each(|_| self.value(head & 15, depth + 1))
            }
            12 if depth < DEEPEST => self.fields(depth + 1),
            _ => Err(wrong("an unknown type")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A zigzag varint.
    fn number(value: i64) -> Vec<u8> {
        let mut rest = ((value << 1) ^ (value >> 63)) as u64;
        let mut bytes = Vec::new();
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    /// A page of as many zeros as `packed` says.
    fn page(unpacked: i64, packed: i64) -> Vec<u8> {
        // Its type, its sizes, its own header with a number, a string, a list of two numbers and a boolean.
        let inner = [&[0x5c, 0x15][..], &number(7), &[0x18, 2, b'a', b'b', 0x19, 0x25, 2, 4, 0x11, 0]].concat();
        let head = [&[0x15][..], &number(0), &[0x15], &number(unpacked), &[0x15], &number(packed)].concat();
        // Field 5 comes two after field 3.
        let inner = [&[0x2c][..], &inner[1..]].concat();
        [head, inner, vec![0], vec![0; packed.max(0) as usize]].concat()
    }

    fn checked(pages: &[u8], compression: Compression) -> Result<(), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[9; 5]).unwrap();
        file.write_all(pages).unwrap();
        check(&file, 5, pages.len() as u64, compression)
    }

    #[test]
    fn a_page_is_no_longer_than_its_bytes_can_become() {
        let pages = [page(2200, 100), page(10, 10_000), page(0, 0)].concat();
        checked(&pages, Compression::SNAPPY).unwrap();
        assert!(
            checked(&pages, Compression::UNCOMPRESSED).unwrap_err().contains("100 bytes that is said to become 2200")
        );
        let long = [page(50, 50), page(i64::from(i32::MAX), 1000)].concat();
        assert!(checked(&long, Compression::SNAPPY).unwrap_err().contains("become 2147483647"));
        assert!(checked(&page(-1, 4), Compression::SNAPPY).unwrap_err().contains("without the page's size"));
        for cut in 1..pages.len() {
            if let Ok(()) = checked(&pages[..cut], Compression::SNAPPY) {
                assert!(
                    [page(2200, 100).len(), page(2200, 100).len() + page(10, 10_000).len()].contains(&cut),
                    "{cut}"
                );
            }
        }
        // Unterminated structs, a string and a list longer than everything.
        for bad in [vec![0x1c; 100], vec![0x18, 0xff, 0xff, 0xff, 0xff, 0x0f], vec![0x19, 0xf5, 0xff, 0xff, 0xff, 0x7f]]
        {
            assert!(checked(&bad, Compression::SNAPPY).unwrap_err().contains("damaged page header"));
        }
    }
}
