//! Every reader of outside bytes under mutated inputs: none panics, none takes long, and none takes much memory.
//!
//! A second each in an ordinary run; `ENGINE_FUZZ_SECONDS=600 cargo test --release --lib fuzz -- --nocapture` takes ten minutes
//! each. Seeds are made here, small; a finding becomes a seed.

use std::fs;
use std::io::{Cursor, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use image::{ExtendedColorType, ImageFormat};

use super::{ExportFormat, Format, ImportOptions, export, import, shapes};
use crate::picture::decode_picture;
use crate::weights::numpy_pickle;

/// The longest that one input may take. A lossless WebP of one colour may be 16384 pixels wide in a hundred bytes, which takes
/// seconds to decode on a busy machine.
const LONGEST: Duration = Duration::from_secs(60);
/// The most memory that the process may ever have had: pictures may take 512 MiB each, on every processor.
const MOST_MEMORY: u64 = 6 << 30;

/// A 64-bit linear congruential generator (Knuth).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % end.max(1)
    }

    /// A seed with one to six changes.
    fn mutated(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(6) {
            let len = bytes.len();
            // Headers are short: half of the changes go to the first bytes.
            let reach = if self.below(2) == 0 { len.min(200) } else { len };
            let at = self.below(reach);
            match self.below(10) {
                _ if len == 0 => bytes.push(self.below(256) as u8),
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'/', b'"', b'\n'][self.below(9)],
                2 => bytes[at] = self.below(256) as u8,
                3 => bytes.truncate(at),
                4 => drop(bytes.drain(at..(at + 1 + self.below(16)).min(len))),
                5 => {
                    let piece = bytes[at..(at + 1 + self.below(64)).min(len)].to_vec();
                    let to = self.below(len);
                    bytes.splice(to..to, piece);
                }
                6 => {
                    let number = [0u32, 1, 0xffff, 0x7fff_ffff, 0x8000_0000, u32::MAX, len as u32][self.below(7)];
                    let number = if self.below(2) == 0 { number.to_le_bytes() } else { number.to_be_bytes() };
                    let width = [2, 4][self.below(2)];
                    let end = (at + width).min(len);
                    bytes[at..end].copy_from_slice(&number[..end - at]);
                }
                7 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    bytes.truncate(at);
                    bytes.extend_from_slice(&other[from..]);
                }
                8 => bytes.extend(std::iter::repeat_n(self.below(256) as u8, 1 + self.below(64))),
                _ => {
                    let end = (at + 1 + self.below(32)).min(len);
                    bytes[at..end].fill(self.below(256) as u8);
                }
            }
        }
        bytes
    }
}

/// Runs `read` on mutations of the seeds for as long as the environment says; an error it returns must be one line.
fn fuzz(name: &str, seeds: &[Vec<u8>], mut read: impl FnMut(&[u8]) -> Result<(), String>) {
    let seconds = std::env::var("ENGINE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    for (number, seed) in seeds.iter().enumerate() {
        read(seed).unwrap_or_else(|error| panic!("{name}: seed {number}: {error}"));
    }
    let mut random = Random(u64::from(crc32c::crc32c(name.as_bytes())));
    let (start, mut count, mut sound) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < Duration::from_secs(seconds) {
        let bytes = random.mutated(seeds);
        let began = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        let shown = || format!("{name}, input {count}: {:02x?}", &bytes[..bytes.len().min(4000)]);
        match outcome {
            Ok(Ok(())) => sound += 1,
            Ok(Err(message)) => assert!(!message.contains('\n'), "{message:?} is not one line; {}", shown()),
            Err(_) => panic!("a panic; {}", shown()),
        }
        assert!(began.elapsed() < LONGEST, "took {:?}; {}", began.elapsed(), shown());
        count += 1;
    }
    let memory = peak_memory();
    eprintln!("fuzz: {name}: {count} inputs, {sound} of them sound, in {seconds} s; peak memory {memory:?} bytes");
    assert!(memory.is_none_or(|memory| memory < MOST_MEMORY), "{name}: {memory:?} bytes of memory");
}

/// The most memory that this process has had, where the system says it.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

fn picture(format: ImageFormat, colour: ExtendedColorType) -> Vec<u8> {
    let count = 48 * usize::from(colour.bits_per_pixel() / 8);
    let pixels: Vec<u8> = (0..count).map(|at| (at * at % 251) as u8).collect();
    let mut bytes = Cursor::new(Vec::new());
    image::write_buffer_with_format(&mut bytes, &pixels, 8, 6, colour, format).unwrap();
    bytes.into_inner()
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn zip_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (path, bytes) in members {
        zip.start_file(*path, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn options(format: Option<Format>) -> ImportOptions {
    ImportOptions { format, quiet: true, allow_partial: true, resize: None, ..ImportOptions::default() }
}

/// Imports `bytes` as the file `name` of a folder of its own, or that folder.
fn imported(place: &Path, name: &str, whole_folder: bool, format: Option<Format>, bytes: &[u8]) -> Result<(), String> {
    let path = place.join(name);
    fs::write(&path, bytes).map_err(|error| error.to_string())?;
    let source = if whole_folder { place } else { &path };
    import(source, &options(format)).map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn fuzz_pictures() {
    use ExtendedColorType::{L8, L16, La8, Rgb8, Rgba8};
    let kinds: [(&str, ImageFormat, &[ExtendedColorType]); 6] = [
        ("PNG", ImageFormat::Png, &[L8, La8, Rgb8, Rgba8, L16]),
        ("JPEG", ImageFormat::Jpeg, &[L8, Rgb8]),
        ("WebP", ImageFormat::WebP, &[Rgb8, Rgba8]),
        ("GIF", ImageFormat::Gif, &[Rgb8, Rgba8]),
        ("BMP", ImageFormat::Bmp, &[L8, Rgb8, Rgba8]),
        ("PNM", ImageFormat::Pnm, &[L8, Rgb8]),
    ];
    for (name, format, colours) in kinds {
        let seeds: Vec<Vec<u8>> = colours.iter().map(|colour| picture(format, *colour)).collect();
        fuzz(name, &seeds, |bytes| decode_picture(bytes, [255; 3]).map(|_| ()));
    }
    #[cfg(feature = "formats")]
    {
        let seeds = [L8, Rgb8, L16].map(|colour| picture(ImageFormat::Tiff, colour));
        fuzz("TIFF", &seeds, |bytes| decode_picture(bytes, [255; 3]).map(|_| ()));
    }
}

#[test]
fn fuzz_archives_and_label_files() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) =
        (picture(ImageFormat::Png, ExtendedColorType::L8), picture(ImageFormat::Jpeg, ExtendedColorType::Rgb8));
    let members: [(&str, &[u8]); 5] = [
        ("a/1.png", &a),
        ("b/2.jpg", &b),
        ("a/1.cls", b"1"),
        ("b/2.json", br#"{"label": 0}"#),
        ("labels.csv", b"file,label\na/1.png,x\nb/2.jpg,y\n"),
    ];
    let tar = tar_of(&members);
    let read = |bytes: &[u8]| imported(folder.path(), "archive", false, None, bytes);
    fuzz("tar", std::slice::from_ref(&tar), read);
    fuzz("zip", &[zip_of(&members)], read);
    fuzz("tar.zst", &[zstd::encode_all(&tar[..], 1).unwrap()], read);
    let labelled = tempfile::tempdir().unwrap();
    fs::write(labelled.path().join("1.png"), &a).unwrap();
    fs::write(labelled.path().join("2.png"), &a).unwrap();
    let label_file = |name: &'static str, seeds: &[Vec<u8>]| {
        fuzz(name, seeds, |bytes| imported(labelled.path(), name, true, None, bytes));
        fs::remove_file(labelled.path().join(name)).unwrap();
    };
    label_file("labels.csv", &[b"file,label\n1.png,cat\n\"2.png\",\"a, b\"\n".to_vec(), b"1\t7\n2\t0\n".to_vec()]);
    label_file("metadata.jsonl", &[b"{\"file_name\": \"1.png\", \"label\": 3}\n{\"file_name\": \"2.png\"}\n".to_vec()]);
    label_file("dataset.json", &[br#"{"labels": [["1.png", 6], ["2.png", [0, 1]]]}"#.to_vec()]);
}

#[test]
fn fuzz_published_sets() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let place = folder.path().join(name);
        fs::create_dir_all(&place).unwrap();
        place
    };
    let place = at("idx");
    let idx = |extents: &[u32], bytes: &[u8]| {
        let mut file = vec![0, 0, 8, extents.len() as u8];
        extents.iter().for_each(|extent| file.extend(extent.to_be_bytes()));
        [&file[..], bytes].concat()
    };
    fs::write(place.join("train-labels-idx1-ubyte"), idx(&[2], &[0, 1])).unwrap();
    fuzz("IDX", &[idx(&[2, 2, 2], &[7; 8])], |bytes| {
        imported(&place, "train-images-idx3-ubyte", true, Some(Format::Idx), bytes)
    });
    let place = at("cifar");
    let batch = [&[3][..], &[9; 3072]].concat();
    fuzz("CIFAR-10", &[batch], |bytes| imported(&place, "data_batch_1.bin", true, Some(Format::Cifar10), bytes));
    let pickle = b"\x80\x02}q\x01(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01\
                   K\x02K\x03\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\
                   \x89U\x06\x01\x02\x03\xc8\x05\x06tbU\x06labels](K\x07K\x08eU\x05names](U\x01aU\x01beu.";
    fuzz("pickle", &[pickle.to_vec()], |bytes| numpy_pickle(bytes).map(|_| ()).map_err(|(message, _)| message));
    let place = at("numpy");
    let set = shapes(0, 12);
    let written = export(&set, place.join("seed.npz"), ExportFormat::Npz, None, false).unwrap();
    let small: Vec<u8> = {
        let text = "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2, 2), }\n";
        [b"\x93NUMPY\x01\0", &(text.len() as u16).to_le_bytes()[..], text.as_bytes(), &[0; 32]].concat()
    };
    let seeds = [zip_of(&[("x.npy", &small)]), fs::read(&written[0]).unwrap()];
    fuzz("npz", &seeds, |bytes| imported(&place, "x.npz", false, Some(Format::Numpy), bytes));
    fuzz("npy", &[small], |bytes| imported(&place, "x.npy", false, Some(Format::Numpy), bytes));
    #[cfg(feature = "formats")]
    {
        let place = at("parquet");
        let set = set.subset(&["star".into(), "ring".into()]).unwrap();
        let written = export(&set, place.join("s.parquet"), ExportFormat::Parquet, Some(super::Split::Train), false);
        let seed = fs::read(&written.unwrap()[0]).unwrap();
        fuzz("parquet", &[seed], |bytes| imported(&place, "x.parquet", false, Some(Format::Parquet), bytes));
    }
}

#[test]
fn fuzz_matlab() {
    let folder = tempfile::tempdir().unwrap();
    let seed = super::formats_tests::mat(false, [1, 2]);
    let packed = super::formats_tests::mat(true, [10, 3]);
    fuzz("MATLAB", &[seed, packed], |bytes| {
        imported(folder.path(), "train_32x32.mat", false, Some(Format::Svhn), bytes)
    });
}
