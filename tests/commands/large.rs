//! Sets larger than the program's memory limit: imported, exported, trained on. `tools/large-set` uses two gigabytes in 512 MB;
//! here it is an eighth of both.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use engine::data::{Dataset, Split};
use image::{ExtendedColorType, ImageEncoder};

/// The memory limit of the program besides files, in KiB: `ulimit -d` refuses more.
const MEMORY: usize = 64 << 10;
/// Bytes of pixels.
const PIXELS: usize = 256 << 20;

/// The output of the program with limited memory.
fn engine(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -d {MEMORY} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_engine")])
        .args(arguments)
        .current_dir(folder)
        // Threads have stacks: as many as on two processors.
        .env("ENGINE_THREADS", "2")
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {told}{}", String::from_utf8_lossy(&output.stderr));
    told
}

/// Images of 32x32x3 as a NumPy array: zeros, stored sparsely, and the first pixels of three images.
fn array(path: &Path, count: usize) {
    let mut head = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 32, 32, 3), }}");
    head.extend(std::iter::repeat_n(' ', 127 - 10 - head.len()));
    head.push('\n');
    let mut file = File::create(path).unwrap();
    file.write_all(b"\x93NUMPY\x01\0\x76\0").unwrap();
    file.write_all(head.as_bytes()).unwrap();
    file.set_len((128 + count * 3072) as u64).unwrap();
    use std::os::unix::fs::FileExt;
    for image in [0, count / 2, count - 1] {
        file.write_all_at(&[7; 3], (128 + image * 3072) as u64).unwrap();
    }
}

#[test]
fn a_set_four_times_the_memory_is_imported_exported_and_trained_on() {
    let place = tempfile::tempdir().unwrap();
    let (folder, count) = (place.path(), PIXELS / 3072);
    array(&folder.join("big.npy"), count);
    engine(folder, &["data", "import", "big.npy", "--out", "big.safetensors"]);
    let set = Dataset::open(folder.join("big.safetensors")).unwrap();
    assert_eq!((set.len(), set.split_len(Split::Train)), (count, count - count / 10));
    let marked = (0..count).filter(|&index| set.image(index).starts_with(&[7; 3])).count();
    assert_eq!(marked, 3);
    drop(set);
    fs::remove_file(folder.join("big.npy")).unwrap();

    let small = "model.hidden_dim=32 model.depth=1 model.num_heads=2 model.num_kv_heads=1 model.patch_size=8 \
                 model.class_embedding_dim=16 model.time_embedding_dim=16 model.condition_hidden_dim=32 training.validation_batches=2 \
                 sampling.num_steps=2 sampling.count_per_class=1 data.validation_fraction=0.01";
    let sets: Vec<&str> = small.split_whitespace().flat_map(|set| ["--set", set]).collect();
    let train =
        ["train", "--data", "big.safetensors", "--device", "cpu", "--steps", "3", "--batch", "4", "--out", "run"];
    engine(folder, &[&train[..], &sets].concat());
    assert!(folder.join("run/model.safetensors").exists());

    // The same pixels are read back from another format.
    engine(folder, &["data", "export", "big.safetensors", "--out", "big.npz"]);
    engine(folder, &["data", "import", "big.npz", "--out", "again.safetensors"]);
    let told = ["big", "again"].map(|name| engine(folder, &["data", "verify", &format!("{name}.safetensors")]));
    let digest = |text: &str| text.lines().find(|line| line.contains("of images")).map(String::from);
    assert!(digest(&told[0]).is_some() && digest(&told[0]) == digest(&told[1]), "{told:?}");
}

#[test]
fn pictures_of_four_times_the_memory_are_imported() {
    let place = tempfile::tempdir().unwrap();
    let (folder, size) = (place.path(), 128);
    let count = PIXELS / (size * size * 3);
    let mut tar = tar::Builder::new(File::create(folder.join("big.tar")).unwrap());
    for index in 0..count {
        let mut png = Vec::new();
        // A few are grey, so that all are converted at the end.
        let (channels, colour) =
            if index % 1000 == 0 { (1, ExtendedColorType::L8) } else { (3, ExtendedColorType::Rgb8) };
        let pixels = vec![(index % 251) as u8; size * size * channels];
        let encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.write_image(&pixels, size as u32, size as u32, colour).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(png.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("{}/{index:05}.png", ["a", "b"][index % 2]), &png[..]).unwrap();
    }
    tar.finish().unwrap();
    engine(folder, &["data", "import", "big.tar", "--out", "big.safetensors"]);
    let set = Dataset::open(folder.join("big.safetensors")).unwrap();
    assert_eq!((set.len(), set.height(), set.channels(), set.class_names().len()), (count, size, 3, 2));
    let whole = |index: usize| set.image(index).iter().all(|value| *value == set.image(index)[0]);
    assert!((0..count).all(whole));
    assert_eq!(fs::read_dir(folder).unwrap().count(), 2, "nothing is left of the scratch file");
}
