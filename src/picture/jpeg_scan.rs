//! Checks that a JPEG file is complete: the markers lead to its end, and its scans hold every block of every row (ITU-T T.81).
//!
//! A decoder fills missing data with one colour, and some programs put an end marker after half a file. So the Huffman codes are
//! walked without decoding coefficients: all of a baseline file, and in a progressive one the first scans of each band of
//! coefficients. Refinement scans cannot be walked without the coefficients, but all of them must be there: every coefficient of
//! every component down to its last bit (T.81, G.1.1.1).

/// A Huffman table: for each length in bits the first code beyond those of that length, and the offset of its values.
#[derive(Clone, Default)]
struct Huffman {
    /// The length and value of the code at the start of each 8 bits; length 0 for longer codes.
    short: Vec<(u8, u8)>,
    /// For lengths 1 to 16: the last code and the offset of the value of code 0, as if it had that length.
    long: Vec<(i32, i32)>,
    values: Vec<u8>,
}

impl Huffman {
    /// From the 16 counts by length and the values.
    fn new(counts: &[u8], values: &[u8]) -> Option<Self> {
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        let values = values.get(..total)?.to_vec();
        let mut short = vec![(0, 0); 256];
        let mut long = Vec::with_capacity(16);
        let (mut code, mut place) = (0i32, 0i32);
        for (length, &count) in (1..).zip(counts) {
            long.push((if count > 0 { code + i32::from(count) - 1 } else { -1 }, place - code));
            for _ in 0..count {
                if length <= 8 {
                    let first = (code as usize) << (8 - length);
                    let value = *values.get(place as usize)?;
                    short.get_mut(first..first + (1 << (8 - length)))?.fill((length as u8, value));
                }
                (code, place) = (code + 1, place + 1);
            }
            code <<= 1;
        }
        Some(Self { short, long, values })
    }
}

/// The bits of a scan, without stuffed bytes.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
}

impl Bits<'_> {
    /// Fills the buffer to at least 16 bits, if there are so many before the next marker.
    fn fill(&mut self) {
        while self.count <= 48 {
            let Some(&byte) = self.bytes.get(self.at) else { return };
            if byte == 0xff {
                if self.bytes.get(self.at + 1) != Some(&0) {
                    return;
                }
                self.at += 1;
            }
            self.at += 1;
            self.held = self.held << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    fn skip(&mut self, count: u32) -> Option<()> {
        if self.count < count {
            self.fill();
        }
        self.count = self.count.checked_sub(count)?;
        Some(())
    }

    /// The next bits, at most 16, as a number.
    fn take(&mut self, count: u32) -> Option<u32> {
        self.skip(count)?;
        Some((self.held >> self.count) as u32 & ((1 << count) - 1))
    }

    /// The value of the next code; None if the bits end, or match no code.
    fn code(&mut self, table: &Huffman) -> Option<u8> {
        if self.count < 16 {
            self.fill();
        }
        let next = |bits: u32| match self.count.checked_sub(bits) {
            Some(rest) => (self.held >> rest) & ((1 << bits) - 1),
            // The last code may be shorter than the lookahead.
            None => (self.held << (bits - self.count)) & ((1 << bits) - 1),
        };
        let (length, value) = *table.short.get(next(8) as usize)?;
        if length > 0 {
            self.count = self.count.checked_sub(u32::from(length))?;
            return Some(value);
        }
        let ahead = next(16) as i32;
        for (length, &(last, offset)) in (1..).zip(&table.long).skip(8) {
            let code = ahead >> (16 - length);
            if code <= last {
                self.count = self.count.checked_sub(length)?;
                return table.values.get(usize::try_from(code + offset).ok()?).copied();
            }
        }
        None
    }

    /// Skips the next restart marker.
    fn restart(&mut self) -> Option<()> {
        (self.held, self.count) = (0, 0);
        let rest = self.bytes.get(self.at..)?;
        let found = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))?;
        self.at += found + 2;
        matches!(rest[found + 1], 0xd0..=0xd7).then_some(())
    }
}

#[derive(Clone, Copy)]
struct Component {
    id: u8,
    across: usize,
    down: usize,
}

/// The state from the segments before a scan.
#[derive(Default)]
struct Frame {
    progressive: bool,
    /// Rows and columns.
    size: (usize, usize),
    components: Vec<Component>,
    /// Four for DC, four for AC.
    tables: [Option<Huffman>; 8],
    restart: usize,
    /// For each component the missing bits of each coefficient, None if no scan has it.
    lacking: Vec<[Option<u8>; 64]>,
}

/// An error unless the file has its end marker and all its rows.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let mut frame = Frame::default();
    let mut at = 2;
    while let Some(rest) = bytes.get(at..) {
        // There may be fill bytes between segments, and some writers leave others.
        let Some(found) = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff)) else {
            break;
        };
        let marker = rest[found + 1];
        at += found + 2;
        let body = match marker {
            0xd9 if frame.is_complete() => return Ok(()),
            0xd9 => return Err("is cut short: a JPEG file whose last scans are missing".into()),
            // Markers without a length: restarts, TEM, a start.
            0x01 | 0xd0..=0xd8 => continue,
            _ => {
                let length = bytes.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
                let Some(body) = length.and_then(|length| bytes.get(at + 2..at + length.max(2))) else { break };
                body
            }
        };
        at += 2 + body.len();
        match marker {
            0xc0..=0xc2 => frame.start(marker, body).ok_or("cannot be decoded: its frame header is damaged")?,
            0xc4 => frame.huffman(body).ok_or("cannot be decoded: its Huffman tables are damaged")?,
            0xdd => frame.restart = body.first_chunk().map_or(0, |&b| usize::from(u16::from_be_bytes(b))),
            0xda => {
                if frame.scan(body, &bytes[at..]) == Some(false) {
                    return Err("is cut short: a JPEG file whose last rows are missing".into());
                }
                frame.note(body);
            }
            _ => {}
        }
    }
    Err("is cut short: a JPEG file without its end marker".into())
}

impl Frame {
    fn start(&mut self, marker: u8, body: &[u8]) -> Option<()> {
        let word = |at: usize| Some(usize::from(u16::from_be_bytes(*body.get(at..)?.first_chunk()?)));
        self.progressive = marker == 0xc2;
        self.size = (word(1)?, word(3)?);
        let component = |c: &[u8]| Component { id: c[0], across: usize::from(c[1] >> 4), down: usize::from(c[1] & 15) };
        self.components = body.get(6..)?.chunks_exact(3).map(component).collect();
        self.lacking = vec![[None; 64]; self.components.len()];
        let sound = self.components.iter().all(|c| (1..=4).contains(&c.across) && (1..=4).contains(&c.down));
        (sound && self.components.len() == usize::from(*body.get(5)?)).then_some(())
    }

    fn huffman(&mut self, mut body: &[u8]) -> Option<()> {
        while let [head, rest @ ..] = body {
            let counts = rest.get(..16)?;
            let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
            let table = Huffman::new(counts, rest.get(16..)?)?;
            *self.tables.get_mut(usize::from((head >> 4) * 4 + (head & 15)))? = Some(table);
            body = rest.get(16 + total..)?;
        }
        Some(())
    }

    /// Records the coefficients of a scan, and their bits.
    fn note(&mut self, head: &[u8]) -> Option<()> {
        let count = usize::from(*head.first()?);
        let [first, last, approximation] = *head.get(1 + 2 * count..)?.first_chunk()?;
        let (range, before, lacking) = match self.progressive {
            true => (usize::from(first)..usize::from(last) + 1, approximation >> 4, approximation & 15),
            false => (0..64, 0, 0),
        };
        for pair in head.get(1..1 + 2 * count)?.chunks_exact(2) {
            let place = self.components.iter().position(|component| component.id == pair[0])?;
            let coefficients = self.lacking.get_mut(place)?.get_mut(range.clone())?;
            // A refinement scan needs the earlier ones.
            coefficients
                .iter_mut()
                .filter(|found| before == 0 || **found == Some(before))
                .for_each(|found| *found = Some(lacking));
        }
        Some(())
    }

    /// Whether the scans so far have every coefficient down to its last bit.
    fn is_complete(&self) -> bool {
        self.lacking.iter().flatten().all(|lacking| *lacking == Some(0))
    }

    /// Whether the scan has all its blocks. None for a scan that is not walked, or that contradicts itself: the decoder reports
    /// that.
    fn scan(&self, head: &[u8], data: &[u8]) -> Option<bool> {
        let count = usize::from(*head.first()?);
        let [first, last, approximation] = *head.get(1 + 2 * count..)?.first_chunk()?;
        if self.progressive && approximation >> 4 != 0 {
            return None;
        }
        let dc_only = self.progressive && first == 0;
        if self.progressive && first > 0 {
            return self.band(head, data, first, last);
        }
        let mut blocks = Vec::new();
        let (across, down) = self.most()?;
        let mut units = (self.size.0.div_ceil(8 * down), self.size.1.div_ceil(8 * across));
        for pair in head.get(1..1 + 2 * count)?.chunks_exact(2) {
            let component = self.components.iter().find(|component| component.id == pair[0])?;
            let dc = self.tables[usize::from(pair[1] >> 4 & 3)].as_ref()?;
            let ac = self.tables[4 + usize::from(pair[1] & 3)].as_ref();
            if !dc_only && ac.is_none() {
                return None;
            }
            // A single component is stored block by block.
            let of_unit = if count == 1 { 1 } else { component.across * component.down };
            if count == 1 {
                units = self.blocks(*component)?;
            }
            blocks.extend(std::iter::repeat_n((dc, ac.filter(|_| !dc_only)), of_unit));
        }
        let mut bits = Bits { bytes: data, at: 0, held: 0, count: 0 };
        let units = units.0 * units.1;
        for unit in 0..units {
            if self.restart > 0 && unit > 0 && unit % self.restart == 0 && bits.restart().is_none() {
                return Some(false);
            }
            if blocks.iter().any(|(dc, ac)| block(&mut bits, dc, *ac).is_none()) {
                return Some(false);
            }
        }
        Some(true)
    }

    /// The largest sampling factors, horizontally and vertically.
    fn most(&self) -> Option<(usize, usize)> {
        let most = |of: fn(&Component) -> usize| self.components.iter().map(of).max();
        Some((most(|c| c.across)?, most(|c| c.down)?))
    }

    /// Rows and columns of blocks of a single component.
    fn blocks(&self, component: Component) -> Option<(usize, usize)> {
        let (across, down) = self.most()?;
        let rows = (self.size.0 * component.down).div_ceil(down);
        let columns = (self.size.1 * component.across).div_ceil(across);
        Some((rows.div_ceil(8), columns.div_ceil(8)))
    }

    /// As [`Frame::scan`], for the first scan of the coefficients `first` to `last` of one component: T.81, G.1.2.2.
    fn band(&self, head: &[u8], data: &[u8], first: u8, last: u8) -> Option<bool> {
        let &[1, id, tables, ..] = head else { return None };
        let component = self.components.iter().find(|component| component.id == id)?;
        let table = self.tables[4 + usize::from(tables & 3)].as_ref()?;
        let (rows, columns) = self.blocks(*component)?;
        let mut bits = Bits { bytes: data, at: 0, held: 0, count: 0 };
        // Remaining blocks of an end-of-band run.
        let mut empty = 0u32;
        for unit in 0..rows * columns {
            if self.restart > 0 && unit > 0 && unit % self.restart == 0 {
                empty = 0;
                if bits.restart().is_none() {
                    return Some(false);
                }
            }
            if empty > 0 {
                empty -= 1;
            } else {
                match band_of_block(&mut bits, table, u32::from(first), u32::from(last)) {
                    Some(more) => empty = more,
                    None => return Some(false),
                }
            }
        }
        Some(true)
    }
}

/// Walks one block's coefficients `first` to `last`; returns the number of following empty blocks. None if the bits end.
fn band_of_block(bits: &mut Bits, table: &Huffman, first: u32, last: u32) -> Option<u32> {
    let mut at = first;
    while at <= last {
        let code = bits.code(table)?;
        let (run, size) = (u32::from(code >> 4), u32::from(code & 15));
        match (run, size) {
            (15, 0) => at += 16,
            (_, 0) => return Some((1 << run) - 1 + bits.take(run)?),
            _ => {
                at += run + 1;
                bits.skip(size)?;
            }
        }
    }
    Some(0)
}

/// Walks one block; None if the bits end.
fn block(bits: &mut Bits, dc: &Huffman, ac: Option<&Huffman>) -> Option<()> {
    let size = bits.code(dc)?;
    bits.skip(u32::from(size.min(16)))?;
    let Some(ac) = ac else { return Some(()) };
    let mut at = 1;
    while at < 64 {
        let code = bits.code(ac)?;
        let (run, size) = (usize::from(code >> 4), u32::from(code & 15));
        match (run, size) {
            (15, 0) => at += 16,
            (_, 0) => break,
            _ => {
                at += run + 1;
                bits.skip(size)?;
            }
        }
    }
    Some(())
}
