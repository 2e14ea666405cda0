//! The data set file: its content, and invalid files.

use std::fs;

use super::*;

fn small() -> Parts {
    Parts {
        name: "small".into(),
        height: 2,
        width: 3,
        channels: 1,
        class_names: vec!["a".into(), "b\"ü".into()],
        images: (0..18).collect(),
        labels: vec![0, 1, 1],
        train: 2,
        test: 0,
        sources: vec![Source { file: "f".into(), bytes: 3, sha256: "00".into() }],
        notes: vec!["one left out".into()],
    }
}

fn written(folder: &Path) -> PathBuf {
    let path = folder.join("small.safetensors");
    Dataset::from_parts(small()).unwrap().write(&path, true).unwrap();
    path
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let set = Dataset::open(&path).unwrap();
    assert_eq!((set.name(), set.len(), set.height(), set.width(), set.channels()), ("small", 3, 2, 3, 1));
    assert_eq!(set.image(1), [6, 7, 8, 9, 10, 11]);
    assert_eq!(set.split_images(Split::Validation), [12, 13, 14, 15, 16, 17]);
    assert_eq!(set.split_labels_i32(Split::Train), [0, 1]);
    assert_eq!(set.class_names(), ["a", "b\"ü"]);
    assert_eq!((set.sources(), set.notes()), (small().sources.as_slice(), small().notes.as_slice()));
    assert_eq!(set.stored_digests(), Some(&set.digests()));
    assert!(!part_path(&path).exists());
}

#[test]
fn nothing_is_overwritten_without_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let before = fs::read(&path).unwrap();
    let set = Dataset::from_parts(small()).unwrap();
    let error = set.write(&path, false).unwrap_err().to_string();
    assert!(error.contains("already exists; give another file, or replace it with `force`"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    set.write(&path, true).unwrap();
}

#[test]
fn a_failed_write_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("taken");
    fs::create_dir(&path).unwrap();
    assert!(Dataset::from_parts(small()).unwrap().write(&path, true).is_err());
    assert!(!part_path(&path).exists());
}

#[test]
fn contradictory_parts_are_refused() {
    type Change = fn(&mut Parts);
    let cases: [(Change, &str); 8] = [
        (|p| p.labels.clear(), "has 0 images"),
        (|p| p.train = 0, "has 0 training images"),
        (|p| p.test = 2, "has 2 training and 2 test images of 3"),
        (|p| p.channels = 2, "with 2 channels"),
        (|p| p.images.truncate(17), "do not take 17 bytes"),
        (|p| p.labels[2] = 2, "labels[2] is 2, but there are 2 classes"),
        (|p| p.class_names[1] = "a".into(), "two classes are named \"a\""),
        (|p| p.height = usize::MAX, "do not take 18 bytes"),
    ];
    for (change, expected) in cases {
        let mut parts = small();
        change(&mut parts);
        let error = Dataset::from_parts(parts).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_cut_or_foreign_file_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let whole = fs::read(&path).unwrap();
    for len in (0..64).chain((64..whole.len()).step_by(7)) {
        fs::write(&path, &whole[..len]).unwrap();
        let error = Dataset::open(&path).unwrap_err().to_string();
        assert!(error.contains("small.safetensors") && !error.contains('\n'), "{error}");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(Dataset::open(&path).unwrap_err().to_string().contains("something appended"));
    fs::write(&path, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    assert!(Dataset::open(&path).unwrap_err().to_string().contains("`data::import(SRC, out = "));
    assert!(Dataset::open(folder.path()).unwrap_err().to_string().contains("is a folder"));
    assert!(Dataset::open(folder.path().join("absent")).unwrap_err().to_string().contains("cannot open"));
}

#[test]
fn flipped_bytes_never_panic_and_never_pass_verification() {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path());
    let whole = fs::read(&path).unwrap();
    for (i, bit) in (0..whole.len()).map(|i| (i, 1u8 << (i * 5 % 8))) {
        let mut bytes = whole.clone();
        bytes[i] ^= bit;
        fs::write(&path, &bytes).unwrap();
        if let Ok(set) = Dataset::open(&path) {
            let tensors_changed = set.digests() != Dataset::from_parts(small()).unwrap().digests();
            assert!(!tensors_changed || set.verify().is_err(), "byte {i}");
        }
    }
}
