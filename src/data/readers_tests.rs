//! The readers on test sources: valid, contradictory, truncated, and with flipped bits.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{ExtendedColorType, ImageEncoder};
use tar::{Builder, EntryType, Header};

use super::formats_tests::import;
use super::{Colour, Dataset, Format, ImportOptions, Split};
use crate::picture::Fit;
use crate::rng::{Philox, Purpose};

const RECORD: usize = 3073;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (path, bytes) in members {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn png(width: u32, height: u32, colour: ExtendedColorType, value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels = vec![value; (width * height) as usize * usize::from(colour.channel_count())];
    image::codecs::png::PngEncoder::new(&mut bytes).write_image(&pixels, width, height, colour).unwrap();
    bytes
}

fn jpeg(value: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pixels = vec![value; 8 * 8 * 3];
    image::codecs::jpeg::JpegEncoder::new(&mut bytes).write_image(&pixels, 8, 8, ExtendedColorType::Rgb8).unwrap();
    bytes
}

fn idx(extents: &[u32], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 8, extents.len() as u8];
    extents.iter().for_each(|extent| file.extend(extent.to_be_bytes()));
    [&file[..], bytes].concat()
}

/// The four files of a small IDX set, the images gzipped.
fn idx_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: Vec<u8>| fs::write(folder.path().join(name), bytes).unwrap();
    put("train-images-idx3-ubyte.gz", gzip(&idx(&[3, 2, 2], &(0..12).collect::<Vec<u8>>())));
    put("train-labels-idx1-ubyte", idx(&[3], &[2, 0, 1]));
    put("t10k-images-idx3-ubyte.gz", gzip(&idx(&[1, 2, 2], &[9; 4])));
    put("t10k-labels-idx1-ubyte", idx(&[1], &[0]));
    folder
}

fn cifar_folder(records: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (b, name) in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
        .iter()
        .enumerate()
    {
        let mut bytes = vec![b as u8; records * RECORD];
        bytes.chunks_exact_mut(RECORD).for_each(|record| record[1025] = 200);
        fs::write(folder.path().join(format!("{name}.bin")), bytes).unwrap();
    }
    folder
}

fn partial() -> ImportOptions {
    ImportOptions { allow_partial: true, ..ImportOptions::default() }
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    path
}

/// The message of a failing import: one line that contains all of `expected`.
fn refused(source: &Path, options: &ImportOptions, expected: &[&str]) {
    let message = import(source, options).expect_err("must be refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    expected.iter().for_each(|part| assert!(message.contains(part), "{message:?} lacks {part:?}"));
}

#[test]
fn idx_files_become_a_set() {
    let folder = idx_folder();
    let set = import(folder.path(), &ImportOptions::default()).unwrap();
    assert_eq!((set.len(), set.height(), set.width(), set.channels()), (4, 2, 2, 1));
    assert_eq!(set.image(1), [4, 5, 6, 7]);
    assert_eq!((set.labels(), set.split_len(Split::Train)), (&[2, 0, 1, 0][..], 3));
    assert_eq!(set.class_names(), ["0", "1", "2"]);
    assert_eq!(set.sources().len(), 4);
}

#[test]
fn bad_idx_files_are_refused() {
    let train = "train-images-idx3-ubyte.gz";
    let whole = idx(&[3, 2, 2], &[0; 12]);
    let cases: [(&str, Vec<u8>, &str); 9] = [
        (train, gzip(&whole[..27]), "declares [3, 2, 2] = 12 bytes after its header and has only 11"),
        (train, gzip(&[&whole[..], &[0]].concat()), "has more"),
        (train, gzip(&idx(&[u32::MAX, u32::MAX, 9], &[])), "more than a file of its size can hold"),
        (train, gzip(&idx(&[u32::MAX, 1, 1], &[])), "more than a file of its size can hold"),
        (train, gzip(&idx(&[3, 4], &[0; 12])), "starts with 0x00000802"),
        (train, gzip(&whole)[..25].to_vec(), "ends too early"),
        (train, gzip(&idx(&[0, 2, 2], &[])), "declares 0 images"),
        ("train-labels-idx1-ubyte", idx(&[2], &[0, 0]), "has 2 labels for the 3 images"),
        ("t10k-images-idx3-ubyte.gz", gzip(&idx(&[1, 1, 4], &[0; 4])), "the training images are 2x2"),
    ];
    for (name, bytes, expected) in cases {
        let folder = idx_folder();
        let path = file(folder.path(), name, &bytes);
        refused(folder.path(), &ImportOptions::default(), &[path.to_str().unwrap(), expected]);
    }
}

#[test]
fn missing_idx_files_are_named() {
    let folder = idx_folder();
    fs::remove_file(folder.path().join("t10k-labels-idx1-ubyte")).unwrap();
    refused(folder.path(), &partial(), &["t10k-images-idx3-ubyte.gz", "has no labels beside it"]);
    fs::remove_file(folder.path().join("t10k-images-idx3-ubyte.gz")).unwrap();
    refused(folder.path(), &ImportOptions::default(), &["has no t10k-images", "`allow_partial`"]);
    let set = import(folder.path(), &ImportOptions { validation: 0.5, ..partial() }).unwrap();
    assert_eq!(set.split_len(Split::Train), 3, "one image of each class stays for training");
    refused(&folder.path().join("train-labels-idx1-ubyte"), &partial(), &["give the folder"]);
}

#[test]
fn a_short_cifar_batch_is_named_with_both_lengths() {
    let folder = cifar_folder(3);
    let batch = folder.path().join("data_batch_1.bin");
    let expected =
        [batch.to_str().unwrap(), "is 9219 bytes long", "30730000", "its 3 whole records with `allow_partial`"];
    refused(folder.path(), &ImportOptions::default(), &expected);
    let set = import(folder.path(), &partial()).unwrap();
    assert_eq!((set.len(), set.split_len(Split::Train)), (18, 15));
    assert_eq!(set.notes()[0], "data_batch_1.bin is short: took its 3 whole records of 10000");
    // Label 4, then planes of 4; the first green byte is 200.
    assert_eq!((set.labels()[12], &set.image(12)[..6]), (4, &[4, 200, 4, 4, 4, 4][..]));
    assert_eq!(set.class_names()[0], "airplane");
}

#[test]
fn bad_cifar_batches_are_refused() {
    let folder = cifar_folder(2);
    let mut bytes = vec![0; 2 * RECORD];
    bytes[RECORD] = 10;
    file(folder.path(), "data_batch_3.bin", &bytes);
    refused(folder.path(), &partial(), &["data_batch_3.bin", "record 1 (byte 3073) has label 10"]);
    file(folder.path(), "data_batch_3.bin", &vec![0; 30_730_001]);
    refused(folder.path(), &partial(), &["data_batch_3.bin", "is 30730001 bytes long"]);
    fs::remove_file(folder.path().join("data_batch_3.bin")).unwrap();
    let set = import(folder.path(), &partial()).unwrap();
    assert!(set.notes().contains(&"there is no data_batch_3.bin".into()));
    file(folder.path(), "data_batch_3.bin", &[]);
    file(folder.path(), "data_batch_2.bin", &[1; RECORD + 5]);
    let set = import(folder.path(), &partial()).unwrap();
    assert!(
        set.notes()
            .iter()
            .any(|note| note.ends_with("took its 1 whole records of 10000 and left 5 bytes of a broken one"))
    );
}

#[test]
fn a_whole_cifar_archive_is_read_in_any_order_and_a_missing_batch_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let batch = |label: u8| vec![label; 10_000 * RECORD];
    let names = ["test_batch", "data_batch_5", "data_batch_4", "data_batch_3", "data_batch_2", "data_batch_1"];
    let batches: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(i, name)| (format!("cifar-10-batches-bin/{name}.bin"), batch(i as u8)))
        .collect();
    let members: Vec<_> = batches.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let path = file(folder.path(), "cifar.tar.gz", &gzip(&tar_of(&members)));
    let set = import(&path, &ImportOptions::default()).unwrap();
    assert_eq!((set.len(), set.split_len(Split::Train)), (60_000, 50_000));
    assert_eq!((set.labels()[0], set.labels()[59_999], set.name()), (5, 0, "cifar"));
    let path = file(folder.path(), "short.tar.gz", &gzip(&tar_of(&members[1..])));
    refused(&path, &ImportOptions::default(), &["short.tar.gz", "has no test_batch.bin"]);
    let path = file(folder.path(), "cut.tar.gz", &gzip(&tar_of(&[("data_batch_1.bin", &[0; RECORD])])));
    refused(&path, &ImportOptions::default(), &["data_batch_1.bin is 3073 bytes long"]);
}

#[test]
fn pictures_are_sorted_by_split_class_and_path() {
    let folder = tempfile::tempdir().unwrap();
    let rgb = ExtendedColorType::Rgb8;
    for (path, value) in [("test/b/1.png", 40), ("train/b/2.png", 30), ("train/b/10.png", 20), ("train/a/x.PNG", 10)] {
        file(folder.path(), path, &png(8, 6, rgb, value));
    }
    file(folder.path(), "train/a/notes.txt", b"hello");
    file(folder.path(), "train/a/._x.png", b"what macOS leaves");
    let set = import(folder.path(), &ImportOptions::default()).unwrap();
    let values: Vec<u8> = (0..set.len()).map(|i| set.image(i)[0]).collect();
    assert_eq!((values, set.labels()), (vec![10, 20, 30, 40], &[0, 1, 1, 1][..]));
    assert_eq!((set.class_names(), set.split_len(Split::Train)), (&["a".to_owned(), "b".to_owned()][..], 3));
    assert_eq!((set.height(), set.width(), set.channels()), (6, 8, 3));
    let expected =
        ["skipped 1 file that is not a picture: train/a/notes.txt", "skipped 1 hidden file or folder: train/a/._x.png"];
    assert_eq!(set.notes(), expected);

    let names = ["./set/train/b/2.png", "./set/train/a/x.png", "./set/train/b/10.png", "./set/test/b/1.png"];
    let values = [30, 10, 20, 40].map(|value| png(8, 6, rgb, value));
    let members: Vec<_> = names.iter().zip(&values).map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    for bytes in [tar_of(&members), gzip(&tar_of(&members))] {
        let from_tar = import(file(folder.path(), "p.tar", &bytes), &ImportOptions::default()).unwrap();
        assert_eq!((from_tar.images(), from_tar.labels()), (set.images(), set.labels()));
    }
}

#[test]
fn a_source_without_a_split_holds_out_a_share_of_each_class() {
    let folder = tempfile::tempdir().unwrap();
    for class in ["10", "9"] {
        for i in 0..20 {
            file(folder.path(), &format!("{class}/{i}.jpg"), &jpeg(i * 10));
        }
    }
    let options = ImportOptions { validation: 0.2, ..ImportOptions::default() };
    let set = import(folder.path(), &options).unwrap();
    assert_eq!(set.class_names(), ["9", "10"], "numbers by value");
    let counts = set.class_counts();
    assert!(counts.iter().all(|class| (class.train, class.validation) == (16, 4)), "{counts:?}");
    assert_eq!(import(folder.path(), &options).unwrap().images(), set.images());
    let other = import(folder.path(), &ImportOptions { seed: 1, ..options }).unwrap();
    assert_ne!(other.images(), set.images());
}

#[test]
fn pictures_of_several_sizes_are_resized_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let rgb = ExtendedColorType::Rgb8;
    file(folder.path(), "a/1.png", &png(8, 8, rgb, 10));
    file(folder.path(), "a/2.png", &png(20, 10, rgb, 99));
    let whole = ImportOptions { validation: 0.0, ..ImportOptions::default() };
    let set = import(folder.path(), &whole).unwrap();
    assert_eq!((set.height(), set.width(), set.image(1)), (32, 32, &[99; 32 * 32 * 3][..]));
    let note = "2 of 2 pictures: resized to 32x32 (`fit = crop`), since they have several sizes, as 8x8 and 10x20 (height x \
                width); `resize` takes another size";
    assert_eq!(set.notes()[0], note);
    let resized = ImportOptions { resize: Some(4.into()), ..whole.clone() };
    let set = import(folder.path(), &resized).unwrap();
    assert_eq!((set.height(), set.width(), set.image(1)), (4, 4, &[99; 48][..]));
    assert_eq!(set.notes()[0], "2 of 2 pictures: resized to 4x4 (`fit = crop`)");
    let padded = import(folder.path(), &ImportOptions { fit: Fit::Pad, background: [1, 2, 3], ..resized }).unwrap();
    assert_eq!((&padded.image(1)[..3], &padded.image(1)[12..15]), (&[1, 2, 3][..], &[99; 3][..]));
    for size in [0, 5000] {
        refused(folder.path(), &ImportOptions { resize: Some(size.into()), ..ImportOptions::default() }, &["resize"]);
    }
    // One size, but a large one.
    fs::remove_file(folder.path().join("a/2.png")).unwrap();
    let small = ImportOptions { keep_size_to: Some(7), fallback_size: 6.into(), ..whole.clone() };
    assert_eq!(import(folder.path(), &small).unwrap().width(), 6);
    assert_eq!(import(folder.path(), &whole).unwrap().width(), 8);
    // One size that is not square: kept, unless a side is not a multiple of what the model needs.
    file(folder.path(), "a/1.png", &png(6, 12, rgb, 10));
    let kept = ImportOptions { keep_size_to: Some(12), keep_multiples_of: 3, ..whole.clone() };
    assert_eq!(import(folder.path(), &kept).unwrap().size().sides(), [12, 6]);
    let other = ImportOptions { keep_multiples_of: 4, fallback_size: [8, 4].into(), ..kept };
    let set = import(folder.path(), &other).unwrap();
    assert_eq!(set.size().sides(), [8, 4]);
    let note = "resized to 8x4 (height x width) (`fit = crop`), since they are 12x6 (height x width), and the model needs \
                multiples of 4";
    assert!(set.notes()[0].contains(note), "{:?}", set.notes());
    let turned = ImportOptions { resize: Some([6, 12].into()), fit: Fit::Pad, ..whole };
    assert_eq!(import(folder.path(), &turned).unwrap().size().sides(), [6, 12]);
}

#[test]
fn grey_among_coloured_becomes_rgb_and_transparent_pixels_lie_on_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let whole = ImportOptions { validation: 0.0, ..ImportOptions::default() };
    file(folder.path(), "a/1.png", &png(8, 8, ExtendedColorType::L8, 50));
    file(folder.path(), "a/2.png", &png(8, 8, ExtendedColorType::Rgba8, 0));
    let set = import(folder.path(), &whole).unwrap();
    assert_eq!((set.channels(), &set.image(0)[..3], &set.image(1)[..3]), (3, &[50; 3][..], &[255; 3][..]));
    let expected = ["1 of 2 pictures: composited on the background", "1 of 2 pictures: converted from grey to RGB"];
    assert_eq!(set.notes()[..2], expected);
    let black = ImportOptions { background: [0; 3], color: Some(Colour::Grey), ..whole.clone() };
    let set = import(folder.path(), &black).unwrap();
    assert_eq!((set.channels(), set.image(1)[0]), (1, 0));
    assert_eq!(set.notes()[1], "1 of 2 pictures: converted from colour to grey");
    let rgb = ImportOptions { color: Some(Colour::Rgb), ..whole.clone() };
    fs::remove_file(folder.path().join("a/2.png")).unwrap();
    assert_eq!(import(folder.path(), &rgb).unwrap().channels(), 3);
    assert_eq!(import(folder.path(), &whole).unwrap().channels(), 1);
}

#[test]
fn damaged_pictures_are_an_error_or_left_out_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = jpeg(50);
    file(folder.path(), "a/1.jpg", &whole);
    file(folder.path(), "a/2.jpg", &whole[..whole.len() - 8]);
    file(folder.path(), "a/3.png", b"not a picture");
    refused(folder.path(), &ImportOptions::default(), &["a/2.jpg: is cut short", "`skip_damaged`"]);
    let skip = ImportOptions { skip_damaged: true, ..ImportOptions::default() };
    let set = import(folder.path(), &skip).unwrap();
    assert_eq!(set.len(), 1);
    let note = set.notes().iter().find(|note| note.starts_with("left out 2 damaged pictures")).unwrap();
    assert!(note.starts_with("left out 2 damaged pictures: a/2.jpg (is cut short"), "{note}");
    assert!(note.contains("a/3.png (is text, not a picture"), "{note}");
    fs::remove_file(folder.path().join("a/1.jpg")).unwrap();
    refused(folder.path(), &skip, &["has no intact pictures: 2 are damaged"]);
}

#[test]
fn flat_folders_names_without_endings_and_strays_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let picture = |value| png(8, 8, ExtendedColorType::L8, value);
    let whole = ImportOptions { validation: 0.0, ..ImportOptions::default() };
    file(folder.path(), "1", &picture(1));
    file(folder.path(), "2.jpg", &picture(2));
    file(folder.path(), "readme", b"hello");
    file(folder.path(), ".cache/3.png", &picture(3));
    let set = import(folder.path(), &whole).unwrap();
    assert_eq!((set.len(), set.class_names()), (2, &["unlabelled".to_owned()][..]));
    let notes = set.notes();
    assert_eq!(notes[0], "there are no class folders: the set is unlabelled");
    assert_eq!(notes[1], "skipped 1 file that is not a picture: readme");
    assert_eq!(notes[2], "skipped 1 hidden file or folder: .cache");
    file(folder.path(), "cat/4.png", &picture(4));
    file(folder.path(), "dog/5.png", &picture(5));
    let set = import(folder.path(), &whole).unwrap();
    assert_eq!((set.len(), set.class_names().len()), (2, 2));
    assert_eq!(set.notes()[0], "left out 2 pictures outside the class folders: 1, 2.jpg");
    file(folder.path(), "dog/deep/6.png", &picture(6));
    refused(folder.path(), &whole, &["dog/deep/6.png: lies deeper than cat/4.png", "`unlabelled`"]);
    let set = import(folder.path(), &ImportOptions { unlabelled: true, ..whole }).unwrap();
    assert_eq!((set.len(), set.class_names().len()), (5, 1));
}

#[test]
fn archives_of_every_form_hold_the_same_set() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = [1, 2, 3].map(|value| png(8, 8, ExtendedColorType::L8, value));
    let members = [
        ("set/a/1.png", &pictures[0][..]),
        ("set/b/2.png", &pictures[1][..]),
        ("set/.ipynb_checkpoints/3.png", &pictures[2][..]),
        ("__MACOSX/set/a/._1.png", b"mac"),
    ];
    let tar = tar_of(&members);
    let zip = |method| {
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (path, bytes) in members {
            zip.start_file(path, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    };
    let forms = [
        ("s.tar", tar.clone()),
        ("s.tar.gz", gzip(&tar)),
        #[cfg(feature = "formats")]
        ("s.tar.zst", zstd::encode_all(&tar[..], 3).unwrap()),
        ("s.zip", zip(zip::CompressionMethod::Stored)),
        ("wrong-name.txt", zip(zip::CompressionMethod::Deflated)),
    ];
    let whole = ImportOptions { validation: 0.0, ..ImportOptions::default() };
    for (name, bytes) in forms {
        let set = import(file(folder.path(), name, &bytes), &whole).unwrap();
        assert_eq!((set.class_names(), set.labels()), (&["a".to_owned(), "b".into()][..], &[0, 1][..]), "{name}");
        assert_eq!((set.image(0)[0], set.image(1)[0]), (1, 2), "{name}");
        let hidden = "skipped 2 hidden files and folders: set/.ipynb_checkpoints/3.png, __MACOSX/set/a/._1.png";
        assert_eq!(set.notes()[0], hidden, "{name}");
        // Truncated, each of them is an error.
        let path = file(folder.path(), &format!("cut-{name}"), &bytes[..bytes.len() * 2 / 3]);
        let error = import(path, &whole).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn label_files_name_the_classes() {
    let folder = tempfile::tempdir().unwrap();
    let picture = |value| png(8, 8, ExtendedColorType::L8, value);
    for (name, value) in [("images/1.png", 1), ("images/2.png", 2), ("images/3.png", 3)] {
        file(folder.path(), name, &picture(value));
    }
    let whole = ImportOptions { validation: 0.0, ..ImportOptions::default() };
    let edm = br#"{"labels": [["images/1.png", 1], ["images/2.png", 0], ["images/3.png", 1]]}"#;
    let forms: [(&str, &[u8]); 3] = [
        ("dataset.json", edm),
        ("labels.csv", b"file,label\n1.png,dog\n2.png,cat\n3.png,dog\n"),
        (
            "images/metadata.jsonl",
            b"{\"file_name\": \"1.png\", \"label\": 1}\n{\"file_name\": \"2.png\", \"label\": 0}\n{\"file_name\": \"3.png\", \"label\": 1}\n",
        ),
    ];
    for (name, bytes) in forms {
        let path = file(folder.path(), name, bytes);
        let set = import(folder.path(), &whole).unwrap();
        let order: Vec<(u8, u16)> = (0..set.len()).map(|i| (set.image(i)[0], set.labels()[i])).collect();
        assert_eq!(order, [(1, 1), (2, 0), (3, 1)], "{name}");
        assert_eq!(set.notes()[0], format!("classes are those of {name}"));
        fs::remove_file(path).unwrap();
    }
    file(folder.path(), "classes.txt", b"bird\ncat\ndog\n");
    file(folder.path(), "labels.csv", b"file,label\n1.png,dog\n2.png,cat\n");
    let set = import(folder.path(), &whole).unwrap();
    assert_eq!((set.class_names().len(), set.labels()), (3, &[2, 1][..]));
    assert_eq!(set.notes()[1], "left out 1 picture without a label: images/3.png");
    file(folder.path(), "labels.csv", b"a,b,c\n1,2,3\n");
    refused(folder.path(), &whole, &["labels.csv", "no column of the files' names"]);
}

#[test]
fn shards_of_a_webdataset_are_one_set() {
    let folder = tempfile::tempdir().unwrap();
    let picture = |value| png(8, 8, ExtendedColorType::L8, value);
    let shard = |first: u8| {
        let (a, b) = (picture(first), picture(first + 1));
        tar_of(&[("0001.png", &a), ("0001.cls", b"1\n"), ("0002.png", &b), ("0002.json", br#"{"label": 0}"#)])
    };
    file(folder.path(), "train-000000.tar", &shard(1));
    file(folder.path(), "train-000001.tar", &shard(3));
    file(folder.path(), "val-000000.tar", &shard(5));
    let set = import(folder.path(), &ImportOptions::default()).unwrap();
    let order: Vec<(u8, u16)> = (0..set.len()).map(|i| (set.image(i)[0], set.labels()[i])).collect();
    assert_eq!(order, [(1, 1), (2, 0), (3, 1), (4, 0), (5, 1), (6, 0)]);
    assert_eq!((set.split_len(Split::Train), set.sources().len()), (4, 3));
}

#[test]
fn misplaced_and_foreign_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), &ImportOptions::default(), &["has no pictures"]);
    let image = png(8, 8, ExtendedColorType::Rgb8, 1);
    file(folder.path(), "a/1.png", &image);
    file(folder.path(), "a/2.jpg", b"not a picture");
    refused(folder.path(), &ImportOptions::default(), &["a/2.jpg", "is text, not a picture"]);
    fs::remove_file(folder.path().join("a/2.jpg")).unwrap();
    refused(&folder.path().join("absent"), &ImportOptions::default(), &["absent: cannot read"]);
    let path = file(folder.path(), "set.zip", b"PK\x03\x04....");
    refused(&path, &ImportOptions::default(), &["is a damaged zip archive"]);
    let path = file(folder.path(), "set.tar", &tar_of(&[("readme", b"hello")]));
    refused(&path, &ImportOptions::default(), &["is an archive without pictures"]);
    for (bytes, expected) in
        [(&image[..], "is a PNG picture, a single file"), (b"\x01\x02\x03", "is a file of no known kind")]
    {
        refused(&file(folder.path(), "thing", bytes), &ImportOptions::default(), &[expected]);
    }
    fs::remove_file(folder.path().join("thing")).unwrap();
    fs::remove_file(folder.path().join("set.zip")).unwrap();
    let path = file(folder.path(), "twice.tar", &tar_of(&[("a/1.png", &image), ("a/1.png", &image)]));
    refused(&path, &ImportOptions::default(), &["a/1.png", "occurs twice"]);
    let resize = ImportOptions { resize: Some(4.into()), format: Some(Format::Idx), ..ImportOptions::default() };
    refused(idx_folder().path(), &resize, &["resize"]);
    let nonsense = ImportOptions { validation: f64::NAN, ..ImportOptions::default() };
    refused(folder.path(), &nonsense, &["validation"]);
}

#[test]
fn links_and_huge_declarations_in_archives_do_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let image = png(8, 8, ExtendedColorType::Rgb8, 1);
    let mut tar = Builder::new(Vec::new());
    let mut link = Header::new_gnu();
    link.set_entry_type(EntryType::Symlink);
    link.set_size(0);
    tar.append_link(&mut link, "a/0.png", "/etc/hostname").unwrap();
    let mut header = Header::new_gnu();
    header.set_size(image.len() as u64);
    // A name that needs its own header.
    let long = format!("a/{}.png", "x".repeat(200));
    tar.append_data(&mut header, &long, image.as_slice()).unwrap();
    tar.append_data(&mut header, "a/../../../escape.png", image.as_slice()).unwrap_err();
    let path = file(folder.path(), "links.tar", &tar.into_inner().unwrap());
    let set = import(&path, &ImportOptions::default()).unwrap();
    assert_eq!((set.len(), set.notes()[0].as_str()), (1, "skipped 1 link, which is not followed: 1 in links.tar"));

    for (kind, size, expected) in [
        (EntryType::Regular, 1u64 << 40, "a/1.png is declared 1099511627776 bytes long"),
        (EntryType::GNULongName, 1 << 40, "an extended header is declared"),
        (EntryType::Regular, 60_000_000, "ends inside a/1.png"),
    ] {
        let mut header = Header::new_gnu();
        header.set_path("a/1.png").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        let path = file(folder.path(), "huge.tar", header.as_bytes());
        let images = ImportOptions { format: Some(Format::Images), ..ImportOptions::default() };
        refused(&path, &images, &["huge.tar", expected]);
    }
}

#[test]
fn a_picture_that_declares_a_huge_size_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = png(8, 8, ExtendedColorType::Rgb8, 1);
    bytes[16..24].copy_from_slice(&[0, 0, 0xf0, 0, 0, 0, 0xf0, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    file(folder.path(), "a/1.png", &bytes);
    refused(folder.path(), &ImportOptions::default(), &["a/1.png", "more than a file of this length can hold"]);
}

/// Every source first whole, then truncated and with flipped bits: never a panic, and an error is one line.
#[test]
fn damaged_sources_never_panic() {
    let image = png(4, 4, ExtendedColorType::Rgb8, 77);
    let pictures = tar_of(&[("train/a/1.png", &image), ("train/b/2.jpg", &jpeg(9)), ("test/a/3.png", &image)]);
    let labels = idx(&[3], &[2, 0, 1]);
    let images = idx(&[3, 2, 2], &[5; 12]);
    let philox = Philox::new(11);
    let resize = ImportOptions { resize: Some(4.into()), format: Some(Format::Images), ..ImportOptions::default() };
    let folder = tempfile::tempdir().unwrap();
    let idx_folder = idx_folder();
    type Try<'a> = Box<dyn Fn(&[u8]) -> crate::Result<Dataset> + 'a>;
    let picture = |name: &'static str, options: &ImportOptions| -> Try<'_> {
        let (folder, options) = (folder.path().to_path_buf(), options.clone());
        Box::new(move |bytes| import(file(&folder, name, bytes), &options))
    };
    let idx_file = |name: &'static str| -> Try<'_> {
        let folder = idx_folder.path().to_path_buf();
        Box::new(move |bytes| {
            file(&folder, name, bytes);
            import(&folder, &ImportOptions::default())
        })
    };
    let single = |name: &'static str| -> Try<'_> {
        let folder = folder.path().join("single");
        let options = resize.clone();
        Box::new(move |bytes| {
            file(&folder, name, bytes);
            import(&folder, &options)
        })
    };
    let sources: [(Vec<u8>, Try<'_>); 7] = [
        (pictures.clone(), picture("p.tar", &resize)),
        (gzip(&pictures), picture("p.tar.gz", &resize)),
        (gzip(&images), idx_file("train-images-idx3-ubyte.gz")),
        (labels, idx_file("train-labels-idx1-ubyte")),
        (gzip(&tar_of(&[("data_batch_1.bin", &[3; 2 * RECORD])])), picture("c.tar.gz", &partial())),
        (jpeg(50), single("a/1.jpg")),
        (image.clone(), single("b/1.png")),
    ];
    for (number, (whole, read)) in sources.iter().enumerate() {
        read(whole).unwrap_or_else(|e| panic!("source {number}: {e}"));
        for i in 0..200u32 {
            let [kind, at, bit, more] = philox.bits4(i, number as u32, 0, Purpose::Probe);
            let mut bytes = whole.clone();
            // Headers are short: half of the changes go to the first bytes.
            let reach = if at % 2 == 0 { bytes.len().min(600) } else { bytes.len() };
            let at = (at >> 1) as usize % reach;
            match kind % 4 {
                0 => bytes.truncate(at),
                1 => bytes[at] = more as u8,
                _ => bytes[at] ^= 1 << (bit % 8),
            }
            if let Err(error) = read(&bytes) {
                assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
        read(whole).unwrap();
    }
}
