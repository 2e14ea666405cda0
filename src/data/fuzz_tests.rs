//! Fuzz tests of every reader of external bytes: no input may panic, take long, or take much memory.
//!
//! One second each in an ordinary run, measured as CPU time of the reading thread. For ten minutes each:
//!
//! ```text
//! ENGINE_FUZZ_SECONDS=600 cargo test --profile fast --lib fuzz_ -- --nocapture --test-threads 1
//! ```
//!
//! The mutated inputs are the files in `tests/seeds/READER/`; its README gives their origin. A failing input is saved, and becomes
//! a seed together with its fix.

use std::fs;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use super::{Format, ImportOptions, import};
use crate::picture::{decode_picture, is_decoding};
use crate::weights::numpy_pickle;

/// The longest CPU time for one input. A lossless WebP of one colour may be 16384 pixels wide in a hundred bytes, which takes
/// seconds to decode.
const LONGEST: Duration = Duration::from_secs(60);
/// The peak memory limit of the process: pictures may take 512 MiB each, on every processor.
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

/// The seeds of a reader, by name; those that end in `.gz` are decompressed.
fn seeds(reader: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds").join(reader);
    let mut paths: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: &PathBuf| {
        let (name, stored) = (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap());
        if !name.ends_with(".gz") {
            return (name, stored);
        }
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut bytes).unwrap();
        (name, bytes)
    };
    paths.iter().map(read).collect()
}

/// CPU time of this thread.
#[cfg(unix)]
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid output location.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "the system has no clock of a thread's CPU time");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Elapsed time, if there is no such clock.
#[cfg(not(unix))]
fn thread_time() -> Duration {
    static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    START.elapsed()
}

/// Runs `read` on the seeds of `reader` and then on mutations of them for as long as the environment says. A seed must be read,
/// unless its name says that it is refused or once failed; an error must be one line.
fn fuzz(reader: &str, read: impl FnMut(&[u8]) -> Result<(), String> + Send) {
    static QUIET: Once = Once::new();
    // A decoder panic that `decode_picture` catches is not a finding.
    QUIET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !is_decoding() {
                before(info)
            }
        }));
    });
    // A single thread, so that its clock covers all of the reading.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| run(reader, read));
}

fn run(reader: &str, mut read: impl FnMut(&[u8]) -> Result<(), String>) {
    let seconds = std::env::var("ENGINE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let (mut inputs, named) = (Vec::new(), seeds(reader));
    for (name, seed) in named {
        let may_fail = name.starts_with("found-") || name.starts_with("refused-");
        read(&seed).unwrap_or_else(|error| {
            assert!(may_fail, "{reader}: seed {name}: {error}");
            assert!(!error.contains('\n'), "{reader}: seed {name}: {error:?} is not one line");
        });
        inputs.push(seed);
    }
    assert!(!inputs.is_empty(), "{reader} has no seeds");
    let mut random = Random(u64::from(crc32c::crc32c(reader.as_bytes())));
    let (start, mut count, mut sound, mut slowest) = (thread_time(), 0u64, 0u64, Duration::ZERO);
    while thread_time() - start < Duration::from_secs(seconds) {
        let bytes = random.mutated(&inputs);
        let began = thread_time();
        let outcome = catch_unwind(AssertUnwindSafe(|| read(&bytes)));
        let took = thread_time() - began;
        slowest = slowest.max(took);
        let fault = match outcome {
            Ok(Err(message)) if message.contains('\n') => Some(format!("{message:?} is not one line")),
            Err(_) => Some("a panic".into()),
            _ if took > LONGEST => Some(format!("took {took:?}")),
            Ok(outcome) => {
                sound += u64::from(outcome.is_ok());
                None
            }
        };
        if let Some(fault) = fault {
            let kept = std::env::temp_dir().join(format!("engine-found-{reader}-{:08x}", crc32c::crc32c(&bytes)));
            fs::write(&kept, &bytes).unwrap();
            panic!("{reader}, input {count}: {fault}; the input is {}", kept.display());
        }
        count += 1;
    }
    let memory = peak_memory();
    eprintln!(
        "fuzz: {reader}: {count} inputs, {sound} of them sound, in {seconds} s; the slowest took {slowest:?}; peak memory of \
         the process {} MiB",
        memory.map_or("unknown".into(), |bytes| (bytes >> 20).to_string())
    );
    assert!(memory.is_none_or(|memory| memory < MOST_MEMORY), "{reader}: {memory:?} bytes of memory");
}

/// Peak memory of this process, if the system reports it.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

fn options(format: Option<Format>) -> ImportOptions {
    ImportOptions { format, allow_partial: true, resize: None, ..ImportOptions::default() }
}

/// The place of a reader's input: a file in its own folder, with the other files that it needs.
struct Place {
    folder: tempfile::TempDir,
    name: &'static str,
    /// Whether the folder is the source, not the file.
    whole: bool,
    format: Option<Format>,
}

impl Place {
    fn file(name: &'static str, format: Option<Format>) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), name, whole: false, format }
    }

    fn folder(name: &'static str, format: Option<Format>, beside: &[(&str, &[u8])]) -> Self {
        let place = Self { whole: true, ..Self::file(name, format) };
        beside.iter().for_each(|(name, bytes)| fs::write(place.folder.path().join(name), bytes).unwrap());
        place
    }

    /// Imports `bytes` from this place.
    fn import(&self, bytes: &[u8]) -> Result<(), String> {
        let path = self.folder.path().join(self.name);
        fs::write(&path, bytes).map_err(|error| error.to_string())?;
        let source = if self.whole { self.folder.path() } else { &path };
        import(source, &options(self.format)).map(|_| ()).map_err(|error| error.to_string())
    }
}

/// The seed of a reader called `name`, decompressed.
fn seed(reader: &str, name: &str) -> Vec<u8> {
    seeds(reader).into_iter().find(|(found, _)| found == name).expect("is committed").1
}

fn idx(extents: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, extents.len() as u8];
    extents.iter().for_each(|extent| file.extend(extent.to_be_bytes()));
    [&file[..], bytes].concat()
}

/// A test of a reader of single pictures.
macro_rules! pictures {
    ($($test:ident $reader:literal)*) => {$(
        #[test]
        fn $test() {
            fuzz($reader, |bytes| decode_picture(bytes, [255; 3]).map(|_| ()));
        }
    )*};
}

pictures! {
    fuzz_png "png"
    fuzz_jpeg "jpeg"
    fuzz_gif "gif"
    fuzz_bmp "bmp"
    fuzz_pnm "pnm"
}

#[cfg(feature = "formats")]
pictures! {
    fuzz_tiff "tiff"
    fuzz_webp "webp"
}

/// A test of a reader of archives.
macro_rules! archives {
    ($($test:ident $reader:literal)*) => {$(
        #[test]
        fn $test() {
            let place = Place::file("archive", Some(Format::Images));
            fuzz($reader, |bytes| place.import(bytes));
        }
    )*};
}

archives! {
    fuzz_tar "tar"
    fuzz_tar_gz "tar-gz"
    fuzz_zip "zip"
    fuzz_webdataset "webdataset"
}

#[cfg(feature = "formats")]
archives! {
    fuzz_tar_zst "tar-zst"
}

/// A test of a label file with this name, beside two pictures.
macro_rules! label_files {
    ($($test:ident $reader:literal $name:literal)*) => {$(
        #[test]
        fn $test() {
            let picture = seed("png", "grey.png");
            let place = Place::folder($name, None, &[("1.png", &picture), ("2.png", &picture)]);
            fuzz($reader, |bytes| place.import(bytes));
        }
    )*};
}

label_files! {
    fuzz_labels_csv "labels-csv" "labels.csv"
    fuzz_metadata_jsonl "metadata-jsonl" "metadata.jsonl"
    fuzz_dataset_json "dataset-json" "dataset.json"
}

#[test]
fn fuzz_idx() {
    let place = Place::folder(
        "train-images-idx3-ubyte",
        Some(Format::Idx),
        &[("train-labels-idx1-ubyte", &idx(&[2], &[0, 1]))],
    );
    fuzz("idx", |bytes| place.import(bytes));
}

#[test]
fn fuzz_emnist_mapping() {
    let (images, labels) = (idx(&[2, 2, 2], &[7; 8]), idx(&[2], &[0, 1]));
    let beside: [(&str, &[u8]); 4] = [
        ("emnist-letters-train-images-idx3-ubyte", &images),
        ("emnist-letters-train-labels-idx1-ubyte", &labels),
        ("emnist-letters-test-images-idx3-ubyte", &images),
        ("emnist-letters-test-labels-idx1-ubyte", &labels),
    ];
    let place = Place::folder("emnist-letters-mapping.txt", Some(Format::Idx), &beside);
    fuzz("emnist-mapping", |bytes| place.import(bytes));
}

#[test]
fn fuzz_cifar_10() {
    let place = Place::folder("data_batch_1.bin", Some(Format::Cifar10), &[]);
    fuzz("cifar-10", |bytes| place.import(bytes));
}

#[test]
fn fuzz_cifar_100() {
    let test = seed("cifar-100", "train.bin.gz");
    let place = Place::folder("train.bin", Some(Format::Cifar100), &[("test.bin", &test)]);
    fuzz("cifar-100", |bytes| place.import(bytes));
}

#[test]
fn fuzz_cifar_10_python() {
    let place = Place::folder("data_batch_1", Some(Format::Cifar10Python), &[]);
    fuzz("cifar-10-python", |bytes| place.import(bytes));
}

#[test]
fn fuzz_cifar_100_python() {
    let test = seed("cifar-100-python", "protocol-2.gz");
    let place = Place::folder("train", Some(Format::Cifar100), &[("test", &test)]);
    fuzz("cifar-100-python", |bytes| place.import(bytes));
}

#[test]
fn fuzz_pickle() {
    fuzz("pickle", |bytes| numpy_pickle(bytes).map(|_| ()).map_err(|(message, _)| message));
}

#[test]
fn fuzz_svhn() {
    let place = Place::file("train_32x32.mat", Some(Format::Svhn));
    fuzz("svhn", |bytes| place.import(bytes));
}

#[test]
fn fuzz_stl_10() {
    let test = vec![0; 3 * 96 * 96];
    let beside: [(&str, &[u8]); 3] = [("train_y.bin", &[1, 10]), ("test_X.bin", &test), ("test_y.bin", &[2])];
    let place = Place::folder("train_X.bin", Some(Format::Stl10), &beside);
    fuzz("stl-10", |bytes| place.import(bytes));
}

#[test]
fn fuzz_npy() {
    let place = Place::file("x.npy", Some(Format::Numpy));
    fuzz("npy", |bytes| place.import(bytes));
}

#[test]
fn fuzz_npz() {
    let place = Place::file("x.npz", Some(Format::Numpy));
    fuzz("npz", |bytes| place.import(bytes));
}

#[cfg(feature = "formats")]
#[test]
fn fuzz_parquet() {
    let place = Place::file("x.parquet", Some(Format::Parquet));
    fuzz("parquet", |bytes| place.import(bytes));
}

#[test]
fn every_seed_is_small_and_belongs_to_a_reader() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/seeds");
    let source = include_str!("fuzz_tests.rs");
    for entry in fs::read_dir(root).unwrap().map(|entry| entry.unwrap()) {
        let reader = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            assert!(source.contains(&format!("\"{reader}\"")), "nobody reads the seeds of {reader}");
            for seed in fs::read_dir(entry.path()).unwrap().map(|seed| seed.unwrap()) {
                let len = seed.metadata().unwrap().len();
                assert!(len <= 4096, "{} has {len} bytes", seed.path().display());
            }
        }
    }
}
