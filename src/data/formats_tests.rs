//! Data sets in formats of other programs, made here, and round trips through our own exports.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

use super::{Dataset, ExportFormat, Format, ImportOptions, LabelKind, Parts, Split, export, shapes};

/// Imports with pixels in memory and on disk: sets and errors must be equal, and no file is left behind.
pub(super) fn import(source: impl AsRef<Path>, options: &ImportOptions) -> crate::Result<Dataset> {
    let source = source.as_ref();
    let scratch = tempfile::tempdir().unwrap();
    let on_disk = ImportOptions { scratch: Some(scratch.path().to_path_buf()), ..options.clone() };
    let (here, there) = (super::import(source, options), super::import(source, &on_disk));
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    match (&here, &there) {
        (Ok(here), Ok(there)) => {
            assert!((0..here.len()).all(|index| here.image(index) == there.image(index)));
            assert_eq!((here.labels(), here.class_names()), (there.labels(), there.class_names()));
            assert_eq!((here.notes(), here.sources()), (there.notes(), there.sources()));
            let files = [here, there].map(|set| {
                let file = scratch.path().join("set.safetensors");
                set.write(&file, true).unwrap();
                fs::read(&file).unwrap()
            });
            assert!(files[0] == files[1] && Dataset::open(scratch.path().join("set.safetensors")).is_ok());
        }
        (here, there) => assert_eq!(
            here.as_ref().map(|_| ()).map_err(ToString::to_string),
            there.as_ref().map(|_| ()).map_err(ToString::to_string)
        ),
    }
    here
}

fn whole() -> ImportOptions {
    ImportOptions { validation: 0.0, ..ImportOptions::default() }
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
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

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn refused(source: &Path, options: &ImportOptions, expected: &[&str]) {
    let message = import(source, options).expect_err("must be refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    expected.iter().for_each(|part| assert!(message.contains(part), "{message:?} lacks {part:?}"));
}

/// A pickle of protocol 2 as written by Python 2 for CIFAR: `{"data": u8 [n, 3072], KEY: labels}`.
fn batch(labels: &[(&str, &[u8])], first: u8) -> Vec<u8> {
    let n = labels[0].1.len();
    let mut bytes = b"\x80\x02}q\x01(U\x04data".to_vec();
    bytes.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01");
    bytes.extend([b'K', n as u8, b'M', 0, 12, 0x86]);
    bytes.extend(b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89");
    let data: Vec<u8> =
        (0..n).flat_map(|i| (0..3072).map(move |at| first + i as u8 + if at >= 1024 { 100 } else { 0 })).collect();
    bytes.push(b'T');
    bytes.extend((data.len() as u32).to_le_bytes());
    bytes.extend(data);
    bytes.extend(b"tb");
    for (key, labels) in labels {
        bytes.extend([b'U', key.len() as u8]);
        bytes.extend(key.as_bytes());
        bytes.extend(b"](");
        labels.iter().for_each(|&label| bytes.extend([b'K', label]));
        bytes.push(b'e');
    }
    bytes.extend(b"u.");
    bytes
}

fn names(key: &str, names: &[&str]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}q\x01(".to_vec();
    bytes.extend([b'U', key.len() as u8]);
    bytes.extend(key.as_bytes());
    bytes.extend(b"](");
    for name in names {
        bytes.extend([b'U', name.len() as u8]);
        bytes.extend(name.as_bytes());
    }
    bytes.extend(b"eu.");
    bytes
}

#[test]
fn cifar_10_for_python_is_read_from_its_archive_and_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<(String, Vec<u8>)> = (1..=5u8)
        .map(|k| (format!("cifar-10-batches-py/data_batch_{k}"), batch(&[("labels", &[k % 2, 0])], 10 * k)))
        .chain([
            ("cifar-10-batches-py/test_batch".into(), batch(&[("labels", &[1])], 90)),
            ("cifar-10-batches-py/batches.meta".into(), names("label_names", &["cat", "dog"])),
        ])
        .collect();
    let members: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let archive = file(folder.path(), "cifar-10-python.tar.gz", &gzip(&tar_of(&members)));
    files.iter().for_each(|(name, bytes)| drop(file(folder.path(), &format!("root/{name}"), bytes)));
    for source in [archive, folder.path().join("root"), folder.path().join("root/cifar-10-batches-py")] {
        let set = import(&source, &whole()).unwrap();
        assert_eq!(
            (set.len(), set.split_len(Split::Train), set.class_names()),
            (11, 10, &["cat".to_owned(), "dog".into()][..])
        );
        assert_eq!(
            (set.labels()[0], &set.image(0)[..3], &set.image(1)[..3]),
            (1, &[10, 110, 110][..], &[11, 111, 111][..])
        );
        assert_eq!(set.image(10)[0], 90);
    }
    file(folder.path(), "root/cifar-10-batches-py/data_batch_3", b"\x80\x02cos\nsystem\n)R.");
    refused(&folder.path().join("root"), &whole(), &["data_batch_3", "os.system", "nothing was run"]);
    fs::remove_file(folder.path().join("root/cifar-10-batches-py/data_batch_3")).unwrap();
    refused(&folder.path().join("root"), &whole(), &["has no data_batch_3"]);
}

#[test]
fn cifar_100_is_read_for_python_and_binary_with_fine_and_coarse_labels() {
    let folder = tempfile::tempdir().unwrap();
    let labels: [(&str, &[u8]); 2] = [("fine_labels", &[1, 2]), ("coarse_labels", &[0, 1])];
    for (name, bytes) in [("train", batch(&labels, 5)), ("test", batch(&labels, 9))] {
        file(folder.path(), &format!("cifar-100-python/{name}"), &bytes);
    }
    file(folder.path(), "cifar-100-python/meta", &names("fine_label_names", &["a", "b", "c"]));
    let python = folder.path().join("cifar-100-python");
    let set = import(&python, &whole()).unwrap();
    assert_eq!((set.labels(), set.class_names().len(), set.image(0)[1]), (&[1, 2, 1, 2][..], 3, 105));
    let record = |coarse: u8, fine: u8| [&[coarse, fine][..], &[7; 3072]].concat();
    file(folder.path(), "b/train.bin", &[record(1, 9), record(0, 3)].concat());
    file(folder.path(), "b/test.bin", &record(1, 9));
    let coarse = ImportOptions { labels: LabelKind::Coarse, ..whole() };
    let set = import(folder.path().join("b"), &coarse).unwrap();
    assert_eq!((set.labels(), set.class_names().len(), set.split_len(Split::Train)), (&[1, 0, 1][..], 20, 2));
    assert_eq!(import(folder.path().join("b"), &whole()).unwrap().labels(), [9, 3, 9]);
    file(folder.path(), "b/test.bin", &record(1, 9)[1..]);
    refused(&folder.path().join("b"), &whole(), &["test.bin", "records of 3074"]);
}

#[test]
fn stl_10_is_set_upright() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = vec![0; 3 * 96 * 96];
    // The second pixel of the first column in the file is the first of the second row.
    image[1] = 77;
    for (name, bytes) in [
        ("train_X.bin", image.repeat(2)),
        ("train_y.bin", vec![1, 10]),
        ("test_X.bin", image.clone()),
        ("test_y.bin", vec![2]),
    ] {
        file(folder.path(), &format!("stl10_binary/{name}"), &bytes);
    }
    let set = import(folder.path(), &whole()).unwrap();
    assert_eq!((set.len(), set.labels(), set.split_len(Split::Train)), (3, &[0, 9, 1][..], 2));
    assert_eq!((set.image(0)[96 * 3], set.image(0)[3], set.class_names()[9].as_str()), (77, 0, "truck"));
    file(folder.path(), "stl10_binary/test_y.bin", &[11]);
    refused(folder.path(), &whole(), &["test_y.bin", "label 11"]);
}

/// A MATLAB file of `X`, 2x3x3 pixels of 2 images, and `y`.
fn mat(compressed: bool, labels: [u8; 2]) -> Vec<u8> {
    let element = |kind: u32, body: &[u8]| {
        let mut bytes = [kind.to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let matrix = |name: &[u8], shape: &[i32], data: &[u8]| {
        let small = |body: &[u8]| {
            let mut bytes = (1u32 | (body.len() as u32) << 16).to_le_bytes().to_vec();
            bytes.extend(body);
            bytes.resize(8, 0);
            bytes
        };
        let dimensions: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
        let body =
            [element(6, &[9, 0, 0, 0, 0, 0, 0, 0]), element(5, &dimensions), small(name), element(2, data)].concat();
        element(14, &body)
    };
    let data: Vec<u8> = (0..36).collect();
    let arrays = [matrix(b"X", &[2, 3, 3, 2], &data), matrix(b"y", &[2, 1], &labels)];
    let mut bytes = b"MATLAB 5.0 MAT-file".to_vec();
    bytes.resize(124, b' ');
    bytes.extend(b"\0\x01IM");
    for array in arrays {
        if compressed {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&array).unwrap();
            let body = encoder.finish().unwrap();
            bytes.extend([15u32.to_le_bytes(), (body.len() as u32).to_le_bytes()].concat());
            bytes.extend(body);
        } else {
            bytes.extend(array);
        }
    }
    bytes
}

#[test]
fn svhn_is_read_from_matlab_files() {
    let folder = tempfile::tempdir().unwrap();
    file(folder.path(), "train_32x32.mat", &mat(true, [10, 3]));
    file(folder.path(), "test_32x32.mat", &mat(false, [1, 9]));
    let set = import(folder.path(), &whole()).unwrap();
    assert_eq!((set.height(), set.width(), set.channels(), set.len()), (2, 3, 3, 4));
    assert_eq!((set.labels(), set.split_len(Split::Train)), (&[0, 3, 1, 9][..], 2));
    // X[y, x, c, n] lies at y + 2(x + 3(c + 3n)).
    assert_eq!((&set.image(0)[..6], &set.image(1)[..3]), (&[0, 6, 12, 2, 8, 14][..], &[18, 24, 30][..]));
    let one = import(folder.path().join("train_32x32.mat"), &whole()).unwrap();
    assert_eq!((one.len(), one.split_len(Split::Train)), (2, 2));
    file(folder.path(), "test_32x32.mat", &mat(false, [11, 1]));
    refused(folder.path(), &whole(), &["test_32x32.mat", "label 11"]);
    file(folder.path(), "test_32x32.mat", b"MATLAB 7.3 MAT-file");
    refused(folder.path(), &whole(), &["7.3"]);
    let sound = mat(true, [1, 2]);
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x55;
        let _ = import(file(folder.path(), "test_32x32.mat", &bytes), &whole());
        let _ = import(file(folder.path(), "test_32x32.mat", &sound[..at]), &whole());
    }
}

#[test]
fn emnist_is_set_upright_and_its_parts_are_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let idx = |extents: &[u32], bytes: &[u8]| {
        let mut file = vec![0, 0, 8, extents.len() as u8];
        extents.iter().for_each(|extent| file.extend(extent.to_be_bytes()));
        [&file[..], bytes].concat()
    };
    for part in ["balanced", "letters"] {
        for (split, labels) in [("train", &[0u8, 1][..]), ("test", &[1])] {
            let n = labels.len() as u32;
            let images: Vec<u8> = (0..4 * n as u8).collect();
            file(
                folder.path(),
                &format!("gzip/emnist-{part}-{split}-images-idx3-ubyte.gz"),
                &gzip(&idx(&[n, 2, 2], &images)),
            );
            file(folder.path(), &format!("gzip/emnist-{part}-{split}-labels-idx1-ubyte.gz"), &gzip(&idx(&[n], labels)));
        }
    }
    file(folder.path(), "gzip/emnist-letters-mapping.txt", b"0 65 97\n1 66 98\n");
    refused(folder.path(), &whole(), &["has several sets: balanced, letters", "part = balanced"]);
    let letters = ImportOptions { part: Some("letters".into()), ..whole() };
    let set = import(folder.path(), &letters).unwrap();
    assert_eq!((set.image(0), set.class_names()), (&[0, 2, 1, 3][..], &["A".to_owned(), "B".into()][..]));
    let balanced = ImportOptions { part: Some("balanced".into()), ..whole() };
    assert_eq!(import(folder.path(), &balanced).unwrap().class_names(), ["0", "1"]);
}

fn npy(dtype: &str, shape: &str, fortran: bool, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let text = format!("{{'descr': '{dtype}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\0", &(text.len() as u16).to_le_bytes()[..], text.as_bytes(), data].concat()
}

fn npz(arrays: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in arrays {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn numpy_arrays_are_read_in_every_layout_and_type() {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..24).collect();
    let read = |name: &str, content: &[u8]| import(file(folder.path(), name, content), &whole()).unwrap();
    let alone = read("a.npy", &npy("|u1", "(2, 2, 2, 3)", false, &bytes));
    assert_eq!((alone.image(1), alone.class_names().len()), (&bytes[12..], 1));
    let planes = read("b.npy", &npy("|u1", "(2, 3, 2, 2)", false, &bytes));
    assert_eq!(planes.image(0)[..6], [0, 4, 8, 1, 5, 9]);
    let grey = read("c.npy", &npy("|u1", "(6, 2, 2)", true, &bytes));
    assert_eq!((grey.channels(), grey.image(0)), (1, &[0, 12, 6, 18][..]));
    let floats = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let unit = read("d.npy", &npy("<f4", "(1, 2, 2)", false, &floats(&[0.0, 0.5, 0.25, 1.0])));
    assert_eq!(
        (unit.image(0), unit.notes()[0].as_str()),
        (&[0, 128, 64, 255][..], "images were numbers in [0, 1], scaled to bytes")
    );
    let signed = read("e.npy", &npy("<f4", "(1, 2, 2)", false, &floats(&[-1.0, 0.0, 0.5, 1.0])));
    assert_eq!(signed.image(0), [0, 128, 191, 255]);
    let longs: Vec<u8> = [3i64, 1].iter().flat_map(|v| v.to_be_bytes()).collect();
    let pair = read(
        "f.npz",
        &npz(&[("arr_0", npy("|u1", "(2, 2, 2, 3)", false, &bytes)), ("arr_1", npy(">i8", "(2,)", false, &longs))]),
    );
    assert_eq!((pair.labels(), pair.class_names().len()), (&[3, 1][..], 4));
    let medical = read(
        "g.npz",
        &npz(&[
            ("train_images", npy("|u1", "(4, 2, 2)", false, &bytes[..16])),
            ("train_labels", npy("|u1", "(4, 1)", false, &[0, 1, 1, 0])),
            ("test_images", npy("|u1", "(2, 2, 2)", false, &bytes[16..])),
            ("test_labels", npy("|u1", "(2, 1)", false, &[1, 1])),
        ]),
    );
    assert_eq!((medical.split_len(Split::Train), medical.labels()), (4, &[0, 1, 1, 0, 1, 1][..]));
    let texts = npy("<U3", "(2,)", false, &['d', 'o', 'g', 'c', 'a', 't'].map(|c| u32::from(c).to_le_bytes()).concat());
    let named = read("h.npz", &npz(&[("x", npy("|u1", "(2, 2, 2, 3)", false, &bytes)), ("y", texts)]));
    assert_eq!((named.class_names(), named.labels()), (&["cat".to_owned(), "dog".into()][..], &[1, 0][..]));
}

#[test]
fn bad_numpy_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = [1u8; 12];
    let cases: [(Vec<u8>, &str); 7] = [
        (npy("|u1", "(2, 2, 2)", false, &bytes), "shape [2, 2, 2] has 12 bytes"),
        (npy("|u1", "(12,)", false, &bytes), "no array of images"),
        (npy("|u1", "(1, 2, 3, 2)", false, &bytes), "shape [1, 2, 3, 2]"),
        (npy("|O", "(12,)", false, &bytes), "Python objects"),
        (npy("<f4", "(1, 1, 3)", false, &[0, 0, 0xc0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0]), "NaN"),
        (npy("<f4", "(1, 1, 3)", false, &[0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0]), "neither in [0, 1]"),
        (
            npz(&[("images", npy("|u1", "(3, 2, 2)", false, &bytes)), ("labels", npy("|u1", "(2,)", false, &[0, 1]))]),
            "labels of shape [2] for 3",
        ),
    ];
    for (content, expected) in cases {
        refused(&file(folder.path(), "x.npz", &content), &whole(), &["x.npz", expected]);
    }
    let sound = npz(&[("images", npy("|u1", "(3, 2, 2)", false, &bytes))]);
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 0x41;
        let _ = import(file(folder.path(), "x.npz", &damaged), &whole());
    }
}

/// A set of three splits with class names that are invalid as folder names.
fn awkward() -> Dataset {
    let set = shapes(3, 60);
    let mut parts = Parts {
        name: "awkward".into(),
        height: 32,
        width: 32,
        channels: 3,
        class_names: set.class_names().to_vec(),
        images: set.images().to_vec(),
        labels: set.labels().to_vec(),
        train: 40,
        test: 8,
        ..Parts::default()
    };
    for (at, name) in [(0, "T-shirt/top"), (1, "7"), (2, "a, \"b\""), (3, "..")] {
        parts.class_names[at] = name.into();
    }
    Dataset::from_parts(parts).unwrap()
}

/// Images with their class names, sorted by class.
fn content(set: &Dataset, splits: &[Split]) -> Vec<(String, Vec<u8>)> {
    let of = |i: usize| (set.class_names()[usize::from(set.labels()[i])].clone(), set.image(i).to_vec());
    let mut content: Vec<_> = splits.iter().flat_map(|split| set.split_indices(*split)).map(of).collect();
    content.sort();
    content
}

#[test]
fn every_export_gives_the_same_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let held_out = [Split::Validation, Split::Test];
    for (set, name) in [(awkward(), "awkward"), (shapes(1, 200), "shapes")] {
        for out in ["folder", "set.npz", "set.zip"] {
            let out = folder.path().join(format!("{name}-{out}"));
            let format = ExportFormat::of(&out);
            let written = export(&set, &out, format, None, false).unwrap();
            assert_eq!(written, std::slice::from_ref(&out));
            let back = import(&out, &whole()).unwrap();
            if format == ExportFormat::Edm {
                // The zip has no splits and no class names.
                assert_eq!((back.images(), back.labels()), (set.images(), set.labels()));
                continue;
            }
            assert_eq!(back.class_names(), set.class_names(), "{format:?}");
            assert_eq!(content(&back, &[Split::Train]), content(&set, &[Split::Train]), "{format:?}");
            assert_eq!(content(&back, &held_out), content(&set, &held_out), "{format:?}");
            if format == ExportFormat::Npz {
                assert_eq!((back.images(), back.labels()), (set.images(), set.labels()));
                assert_eq!(back.split_len(Split::Test), set.split_len(Split::Test));
            }
            assert!(export(&set, &out, format, None, false).unwrap_err().to_string().contains("`force`"));
        }
    }
    let out = folder.path().join("train.npz");
    export(&awkward(), &out, ExportFormat::Npz, Some(Split::Train), false).unwrap();
    assert_eq!(import(&out, &whole()).unwrap().len(), 40);
    assert!(export(&shapes(0, 20), &out, ExportFormat::Npz, Some(Split::Test), true).is_err());
}

#[cfg(feature = "formats")]
#[test]
fn parquet_gives_the_same_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let set = awkward();
    let written = export(&set, folder.path().join("set.parquet"), ExportFormat::Parquet, None, false).unwrap();
    let names: Vec<_> = written.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["set-train.parquet", "set-validation.parquet", "set-test.parquet"]);
    let back = import(folder.path(), &whole()).unwrap();
    assert_eq!((back.class_names(), back.split_len(Split::Train)), (set.class_names(), 40));
    assert_eq!(content(&back, &[Split::Validation]), content(&set, &[Split::Validation, Split::Test]));
    assert_eq!(back.split_images(Split::Train), set.split_images(Split::Train), "rows keep their order");
    let one = import(&written[0], &whole()).unwrap();
    assert_eq!((one.images(), one.labels()), (set.split_images(Split::Train), set.split_labels(Split::Train)));
    let sound = fs::read(&written[2]).unwrap();
    let step = sound.len() / 150;
    for at in (0..sound.len()).step_by(step.max(1)).chain(sound.len() - 200..sound.len()) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x55;
        if let Err(error) = import(file(folder.path(), "damaged/x.parquet", &bytes), &whole()) {
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        let _ = import(file(folder.path(), "damaged/x.parquet", &sound[..at]), &whole());
    }
}

#[test]
fn a_format_is_never_taken_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &str); 5] = [
        ("weights.pth", b"\x80\x02}q\x01.", "a pickle, which is not a source"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("page.tar.gz", b"<!doctype html>", "a web page"),
        ("x.rar", b"Rar!\x1a\x07", "a rar archive"),
        ("set.safetensors", b"\x10\0\0\0\0\0\0\0{}", "used as it is"),
    ];
    for (name, bytes, expected) in cases {
        refused(&file(folder.path(), name, bytes), &whole(), &[name, expected]);
    }
    let options = ImportOptions { format: Some(Format::Cifar10), ..whole() };
    refused(&file(folder.path(), "y.bin", b"hello"), &options, &["is text, not a tar or zip archive"]);
}
