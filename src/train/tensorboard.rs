//! Writes TensorBoard's event files directly: the format is simple.
//!
//! A file is a sequence of TFRecords: length (u64), its masked CRC-32C, the data and their masked CRC-32C; all little-endian. The
//! data of a record is a protobuf `Event` (tensorflow/core/util/event.proto) with a `Summary` (summary.proto) of one value: a
//! scalar, a PNG or a histogram. Each record is one write, so a killed run leaves at most one torn record at the end, which
//! readers drop.
//!
//! A run resumed after step s writes a new file, which begins with a `SessionLog` of status START at step s + 1: readers then
//! discard that step and later ones from earlier files. Values of step s itself that already exist are not written again.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::picture::{Image, encode_png};

/// Prefix of the names of event files.
const PREFIX: &str = "events.out.tfevents.";
/// The longest record that is read back; a sheet of samples is far smaller.
const LONGEST_RECORD: u64 = 1 << 28;
/// Cells of a histogram.
const CELLS: usize = 64;

/// The event files of a run's folder; this session's file is created with its first event.
#[derive(Debug)]
pub(super) struct Events {
    folder: PathBuf,
    /// The step after which the run resumes.
    last: u64,
    /// Tags that have a value at that step.
    present: BTreeSet<String>,
    file: Option<(PathBuf, File)>,
}

impl Events {
    /// Reads the files of earlier sessions in `folder`, which stay valid up to step `last`.
    pub fn open(folder: &Path, last: u64) -> Result<Self> {
        let mut present = BTreeSet::new();
        for path in event_files(folder)? {
            let mut file = BufReader::new(File::open(&path).map_err(Error::io(&path, "open"))?);
            scan(&mut file, last, &mut present);
        }
        Ok(Self { folder: folder.to_path_buf(), last, present, file: None })
    }

    /// Writes a number.
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        self.value(tag, step, |summary| summary.float(2, value as f32))
    }

    /// Writes a picture.
    pub fn image(&mut self, tag: &str, step: u64, image: &Image) -> Result<()> {
        let png = encode_png(image, &[])?;
        self.value(tag, step, |summary| {
            summary.message(4, |proto| {
                proto.number(1, image.height() as u64);
                proto.number(2, image.width() as u64);
                proto.number(3, image.channels() as u64);
                proto.bytes(4, &png);
            });
        })
    }

    /// Writes a histogram with cells of equal width from minimum to maximum. Values that are not finite are left out.
    pub fn histogram(&mut self, tag: &str, step: u64, values: &[f32]) -> Result<()> {
        let finite = || values.iter().filter(|value| value.is_finite()).map(|value| f64::from(*value));
        let (least, greatest) = finite().fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        if least > greatest {
            return Ok(());
        }
        // A single value still needs a cell with some width.
        let width = ((greatest - least) / CELLS as f64).max(least.abs() * 1e-6).max(1e-12);
        let mut cells = [0.0; CELLS];
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for value in finite() {
            cells[(((value - least) / width) as usize).min(CELLS - 1)] += 1.0;
            (count, sum, squares) = (count + 1.0, sum + value, squares + value * value);
        }
        let limits: Vec<f64> = (1..=CELLS).map(|cell| least + width * cell as f64).collect();
        self.value(tag, step, |summary| {
            summary.message(5, |proto| {
                for (field, number) in [(1, least), (2, greatest), (3, count), (4, sum), (5, squares)] {
                    proto.double(field, number);
                }
                proto.doubles(6, &limits);
                proto.doubles(7, &cells);
            });
        })
    }

    /// Syncs the events to disk.
    pub fn sync(&self) -> Result<()> {
        match &self.file {
            Some((path, file)) => file.sync_data().map_err(Error::io(path, "write")),
            None => Ok(()),
        }
    }

    fn value(&mut self, tag: &str, step: u64, write: impl FnOnce(&mut Proto)) -> Result<()> {
        if step == self.last && self.present.contains(tag) {
            return Ok(());
        }
        self.write(step, |event| {
            event.message(5, |summary| {
                summary.message(1, |value| {
                    value.bytes(1, tag.as_bytes());
                    write(value);
                });
            });
        })
    }

    fn write(&mut self, step: u64, fill: impl FnOnce(&mut Proto)) -> Result<()> {
        if self.file.is_none() {
            self.file = Some(self.begin()?);
        }
        if let Some((path, file)) = &mut self.file {
            file.write_all(&record(&event(now(), step, fill))).map_err(Error::io(path, "write"))?;
        }
        Ok(())
    }

    /// The file of this session. Readers sort files by name, so it must not sort before an older one, whatever the clock says.
    fn begin(&self) -> Result<(PathBuf, File)> {
        let old = event_files(&self.folder)?;
        let newest = old
            .last()
            .and_then(|path| path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok());
        let seconds = (now() as u64).max(newest.unwrap_or(0));
        let path = self.folder.join(format!("{PREFIX}{seconds:010}.{:06}.engine", old.len()));
        let made = File::options().create_new(true).write(true).open(&path);
        let mut file = made.map_err(Error::io(&path, "create"))?;
        let mut bytes = record(&event(now(), 0, |event| event.bytes(3, b"brain.Event:2")));
        if self.last > 0 || !old.is_empty() {
            // SessionLog, status START.
            bytes.extend(record(&event(now(), self.last + 1, |event| event.message(7, |log| log.number(1, 1)))));
        }
        file.write_all(&bytes).map_err(Error::io(&path, "write"))?;
        Ok((path, file))
    }
}

/// Adds the tags that a file has at step `last`, or removes them if a session begins before it.
fn scan(file: &mut impl Read, last: u64, present: &mut BTreeSet<String>) {
    while let Some(record) = read_record(file) {
        match parse_event(&record) {
            Some(Seen::Start { step }) if step <= last => present.clear(),
            Some(Seen::Value { step, tag }) if step == last => {
                present.insert(tag);
            }
            _ => {}
        }
    }
}

/// The event files of a folder in reading order.
fn event_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "list"))? {
        let entry = entry.map_err(Error::io(folder, "list"))?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) && entry.path().is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn event(wall_time: f64, step: u64, fill: impl FnOnce(&mut Proto)) -> Vec<u8> {
    let mut event = Proto::default();
    event.double(1, wall_time);
    event.number(2, step);
    fill(&mut event);
    event.0
}

/// A checksum masked by rotation and addition, as in LevelDB.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Data as a framed record.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()].concat()
}

/// The next record's data; None at the end, or at a torn or damaged record.
fn read_record(file: &mut impl Read) -> Option<Vec<u8>> {
    let mut head = [0; 12];
    file.read_exact(&mut head).ok()?;
    let (length, check) = head.split_at(8);
    let matches = |bytes: &[u8], check: &[u8]| masked_crc(bytes).to_le_bytes() == *check;
    let bytes = u64::from_le_bytes(length.try_into().ok()?);
    if !matches(length, check) || bytes > LONGEST_RECORD {
        return None;
    }
    let mut data = Vec::new();
    // Allocates only as much memory as there are bytes, whatever the length claims.
    file.take(bytes + 4).read_to_end(&mut data).ok()?;
    let check = data.split_off(data.len().checked_sub(4)?);
    (data.len() as u64 == bytes && matches(&data, &check)).then_some(data)
}

/// The relevant part of an earlier event.
#[derive(Debug, PartialEq)]
enum Seen {
    /// A session that began with this step.
    Start { step: u64 },
    /// A value.
    Value { step: u64, tag: String },
}

fn parse_event(data: &[u8]) -> Option<Seen> {
    let (mut step, mut seen) = (0, None);
    for (field, value) in fields(data) {
        match (field, value) {
            (2, Field::Number(number)) => step = number,
            (7, Field::Bytes(_)) => seen = Some(None),
            (5, Field::Bytes(summary)) => {
                let value = fields(summary).find_map(|(field, value)| match value {
                    Field::Bytes(value) if field == 1 => Some(value),
                    _ => None,
                })?;
                seen = fields(value).find_map(|(field, tag)| match tag {
                    Field::Bytes(tag) if field == 1 => Some(Some(String::from_utf8_lossy(tag).into_owned())),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(match seen? {
        None => Seen::Start { step },
        Some(tag) => Seen::Value { step, tag },
    })
}

/// A protobuf field's value, as far as needed.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of a message up to its end or to the first unreadable one.
fn fields(mut data: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let key = varint(&mut data)?;
        let value = match key & 7 {
            0 => Field::Number(varint(&mut data)?),
            1 => data.split_off(..8).map(|_| Field::Other)?,
            2 => {
                let length = usize::try_from(varint(&mut data)?).ok()?;
                Field::Bytes(data.split_off(..length)?)
            }
            5 => data.split_off(..4).map(|_| Field::Other)?,
            _ => return None,
        };
        Some((key >> 3, value))
    })
}

fn varint(data: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = *data.split_off_first()?;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A protobuf message under construction; zeros are written too.
#[derive(Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.key(field, 0);
        self.varint(number);
    }

    fn double(&mut self, field: u64, number: f64) {
        self.key(field, 1);
        self.0.extend(number.to_le_bytes());
    }

    fn float(&mut self, field: u64, number: f32) {
        self.key(field, 5);
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// Packed.
    fn doubles(&mut self, field: u64, numbers: &[f64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.bytes(field, &bytes);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Proto)) {
        let mut inner = Proto::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(folder: &Path) -> Vec<Seen> {
        let mut all = Vec::new();
        for path in event_files(folder).unwrap() {
            let bytes = std::fs::read(path).unwrap();
            let mut rest = bytes.as_slice();
            while let Some(record) = read_record(&mut rest) {
                all.extend(parse_event(&record));
            }
            assert!(rest.is_empty());
        }
        all
    }

    #[test]
    fn checksums_have_the_known_answers() {
        // RFC 3720, appendix B.4.
        let ascending: Vec<u8> = (0..32).collect();
        for (bytes, crc) in [
            (&[0; 32][..], 0x8a91_36aa_u32),
            (&[0xff; 32], 0x62a8_ab43),
            (&ascending, 0x46dd_794e),
            (b"123456789", 0xe306_9283),
        ] {
            assert_eq!(crc32c::crc32c(bytes), crc);
            assert_eq!(masked_crc(bytes), crc.rotate_right(15).wrapping_add(0xa282_ead8));
        }
        // The first record of a file that TensorFlow wrote: an Event of version 2 at time 0.
        let data = [&[9, 0, 0, 0, 0, 0, 0, 0, 0, 0x1a, 13][..], b"brain.Event:2"].concat();
        let bytes = record(&data);
        assert_eq!(bytes[..8], 24u64.to_le_bytes());
        assert_eq!(bytes[8..12], [0xa3, 0x7f, 0x4b, 0x22], "the well-known head of a record of 24 bytes");
        assert_eq!(read_record(&mut bytes.as_slice()).unwrap(), data);
    }

    #[test]
    fn messages_have_protobufs_bytes() {
        let mut proto = Proto::default();
        proto.number(2, 300);
        proto.float(2, 1.5);
        proto.message(5, |inner| inner.bytes(1, b"ab"));
        assert_eq!(proto.0, [0x10, 0xac, 2, 0x15, 0, 0, 0xc0, 0x3f, 0x2a, 4, 0x0a, 2, b'a', b'b']);
        let mut bytes = &[0xff; 9][..];
        assert_eq!(varint(&mut bytes), None);
    }

    #[test]
    fn a_resumed_run_begins_a_session_and_repeats_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::open(folder.path(), 0).unwrap();
        assert!(values(folder.path()).is_empty(), "no file before the first event");
        for step in 1..=6 {
            events.scalar("loss", step, 0.5).unwrap();
        }
        events.image("samples", 4, &Image::filled(3, 2, [1, 2, 3])).unwrap();
        let whole = std::fs::read(&event_files(folder.path()).unwrap()[0]).unwrap();
        let value = |tag: &str, step: u64| Seen::Value { step, tag: tag.into() };

        let mut events = Events::open(folder.path(), 4).unwrap();
        events.image("samples", 4, &Image::filled(3, 2, [1, 2, 3])).unwrap();
        events.scalar("loss", 4, 0.5).unwrap();
        events.scalar("validation", 4, 0.5).unwrap();
        events.scalar("loss", 5, 0.5).unwrap();
        let seen = values(folder.path());
        assert_eq!(seen[7..], [Seen::Start { step: 5 }, value("validation", 4), value("loss", 5)]);
        // From an earlier checkpoint: values of later sessions do not count.
        let mut events = Events::open(folder.path(), 3).unwrap();
        events.scalar("validation", 4, 0.5).unwrap();
        let mut events = Events::open(folder.path(), 4).unwrap();
        events.image("samples", 4, &Image::filled(3, 2, [1, 2, 3])).unwrap();
        events.scalar("validation", 4, 0.5).unwrap();
        let seen = values(folder.path());
        assert_eq!(
            seen[10..],
            [Seen::Start { step: 4 }, value("validation", 4), Seen::Start { step: 5 }, value("samples", 4)]
        );
        assert_eq!(event_files(folder.path()).unwrap().len(), 4);

        // A file torn or damaged anywhere is read up to that place and never panics.
        let scanned = |bytes: &[u8]| {
            let mut present = BTreeSet::new();
            scan(&mut &bytes[..], 4, &mut present);
            present.len()
        };
        assert_eq!(scanned(&whole), 2);
        for len in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[len] ^= 0x20;
            assert!(scanned(&whole[..len]) <= 2 && scanned(&damaged) <= 2);
        }
    }

    #[test]
    fn any_numbers_make_a_histogram() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::open(folder.path(), 0).unwrap();
        for (step, values) in
            [&[][..], &[f32::NAN], &[0.0], &[3e38, -3e38], &[1.0, 1.0], &[0.25, -0.5, f32::INFINITY]].iter().enumerate()
        {
            events.histogram("weights", step as u64 + 1, values).unwrap();
        }
        assert_eq!(values(folder.path()).len(), 4);
    }
}
