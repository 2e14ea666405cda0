//! The readers on real data, where `../shared/data` is there: all of Fashion-MNIST, CIFAR-10 as JPEG, and the heads of
//! CIFAR-10's binary batches.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::data::{Dataset, ImportOptions, Split, import};

/// The real data `name`, or `None` and a loud word.
fn real(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: there is no ../shared/data/{name}, so its import is not tested");
    None
}

/// Imports, writes, opens and verifies; says how long reading and writing took.
fn through_the_file(source: &Path, options: &ImportOptions) -> (Dataset, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.safetensors");
    let start = Instant::now();
    import(source, options).unwrap().write(&path, false).unwrap();
    let took = start.elapsed();
    // On Unix the map outlives the temporary folder.
    (Dataset::open(&path).unwrap(), took)
}

#[test]
fn fashion_mnist_is_recognised_byte_for_byte() {
    let Some(source) = real("fashion-mnist") else { return };
    let (set, took) = through_the_file(&source, &ImportOptions::default());
    eprintln!("Fashion-MNIST: 70,000 images in {took:.1?}");
    assert_eq!((set.len(), set.split_len(Split::Train)), (70_000, 60_000));
    assert_eq!((set.height(), set.width(), set.channels()), (28, 28, 1));
    assert_eq!(set.class_names()[usize::from(set.labels()[0])], "Ankle boot");
    let verification = set.verify().unwrap();
    assert!(verification.is_balanced());
    let known = verification.recognised.unwrap();
    assert_eq!((known.title, known.equal.len(), known.different.len()), ("Fashion-MNIST", 4, 0));
}

#[test]
fn a_tar_of_sixty_thousand_jpegs_is_imported() {
    let Some(source) = real("cifar-10-jpeg.tar.gz") else { return };
    let (set, took) = through_the_file(&source, &ImportOptions::default());
    eprintln!("CIFAR-10, JPEG: 60,000 images in {took:.1?}");
    assert_eq!((set.len(), set.split_len(Split::Train)), (60_000, 50_000));
    assert_eq!((set.height(), set.width(), set.channels()), (32, 32, 3));
    assert_eq!((set.class_names()[0].as_str(), set.class_names()[9].as_str()), ("airplane", "truck"));
    let verification = set.verify().unwrap();
    assert!(verification.is_balanced());
    // The same pictures, but compressed: not the published bytes.
    assert_eq!(verification.recognised, None);
}

#[test]
fn short_cifar_batches_are_refused_by_name_and_length_unless_asked_for() {
    let Some(source) = real("cifar-10-subset-bin") else { return };
    let error = import(&source, &ImportOptions::default()).unwrap_err().to_string();
    for part in ["data_batch_1.bin", "12292000", "30730000", "--allow-partial"] {
        assert!(error.contains(part), "{error}");
    }
    let (set, _) = through_the_file(&source, &ImportOptions { allow_partial: true, ..ImportOptions::default() });
    assert_eq!((set.len(), set.split_len(Split::Train)), (8829, 7897));
    assert_eq!(set.notes().len(), 6);
    // The official order of labels: batch by batch, each cut after its head.
    let all = std::fs::read(source.join("train-labels-all-50000.u8")).unwrap();
    let heads =
        [4000, 932, 932, 1101, 932].iter().enumerate().flat_map(|(batch, &count)| &all[batch * 10_000..][..count]);
    assert!(heads.map(|&label| u16::from(label)).eq(set.split_labels(Split::Train).iter().copied()));
    assert_eq!(set.class_names()[6], "frog");
}
