//! Data sets on the command line, and the readers on real data, if `../shared/data` exists: all of Fashion-MNIST, CIFAR-10 as
//! JPEG, and the first parts of CIFAR-10's binary batches.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engine::data::{Dataset, ImportOptions, Split, import};
use image::{ExtendedColorType, ImageFormat};

/// The real data `name`, or `None` with a message.
fn real(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: there is no ../shared/data/{name}, so its import is not tested");
    None
}

/// Imports, writes, opens and verifies; prints the times of reading and writing.
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
    for part in ["data_batch_1.bin", "12292000", "30730000", "`allow_partial`"] {
        assert!(error.contains(part), "{error}");
    }
    let (set, _) = through_the_file(&source, &ImportOptions { allow_partial: true, ..ImportOptions::default() });
    assert_eq!((set.len(), set.split_len(Split::Train)), (8829, 7897));
    assert_eq!(set.notes().len(), 6);
    // The official order of labels: batch by batch, each truncated.
    let all = std::fs::read(source.join("train-labels-all-50000.u8")).unwrap();
    let heads =
        [4000, 932, 932, 1101, 932].iter().enumerate().flat_map(|(batch, &count)| &all[batch * 10_000..][..count]);
    assert!(heads.map(|&label| u16::from(label)).eq(set.split_labels(Split::Train).iter().copied()));
    assert_eq!(set.class_names()[6], "frog");
}

/// A run in `folder`; returns its output.
pub fn engine(folder: &Path, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_engine")).current_dir(folder).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// Settings that make `quickstart` small enough for a test.
pub const SMALL: [&str; 22] = [
    "--set",
    "model.hidden_dim=32",
    "--set",
    "model.depth=1",
    "--set",
    "model.num_heads=2",
    "--set",
    "model.num_kv_heads=1",
    "--set",
    "model.time_embedding_dim=16",
    "--set",
    "model.condition_hidden_dim=24",
    "--set",
    "model.class_embedding_dim=16",
    "--set",
    "sampling.num_steps=2",
    "--set",
    "sampling.count_per_class=1",
    "--device",
    "cpu",
    "--steps",
    "2",
];

pub fn encoded(format: ImageFormat, width: u32, height: u32, colour: ExtendedColorType, seed: u8) -> Vec<u8> {
    let count = (width * height) as usize * usize::from(colour.channel_count());
    let pixels: Vec<u8> = (0..count).map(|at| (at as u8).wrapping_mul(3).wrapping_add(seed)).collect();
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::write_buffer_with_format(&mut bytes, &pixels, width, height, colour, format).unwrap();
    bytes.into_inner()
}

#[test]
fn a_folder_of_mixed_photos_trains_and_draws_in_one_command() {
    use ExtendedColorType::{L8, Rgb8, Rgba8};
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    std::fs::create_dir_all(photos.join(".thumbnails")).unwrap();
    let kinds = [
        (ImageFormat::Png, Rgb8, "png"),
        (ImageFormat::Jpeg, Rgb8, "jpg"),
        #[cfg(feature = "formats")]
        (ImageFormat::WebP, Rgb8, "webp"),
        (ImageFormat::Png, L8, "png"),
        (ImageFormat::Bmp, Rgb8, "bmp"),
        (ImageFormat::Png, Rgba8, "png"),
        (ImageFormat::Jpeg, L8, "JPG"),
        (ImageFormat::Pnm, Rgb8, "ppm"),
    ];
    for k in 0..500u32 {
        let (format, colour, ending) = kinds[k as usize % kinds.len()];
        let bytes = encoded(format, 20 + k % 37, 20 + k % 23, colour, k as u8);
        std::fs::write(photos.join(format!("IMG_{k:04}.{ending}")), bytes).unwrap();
    }
    std::fs::write(photos.join("notes.txt"), "on the beach").unwrap();
    std::fs::write(photos.join(".thumbnails/1.png"), "hidden").unwrap();
    let train = |more: &[&str]| {
        let given = [&["train", "--data", "photos", "--out"], more, &SMALL].concat();
        engine(folder.path(), &given)
    };
    let (done, said, told) = train(&["run", "--batch", "16"]);
    assert!(done, "{told}");
    for part in [
        "imported photos as data/imported/photos-",
        "500 images, 1 class",
        "note: there are no class folders: the set is unlabelled",
        "pictures: converted from grey to RGB",
        "pictures: composited on the background",
        "pictures: resized to 32x32 (--fit crop), since they have several sizes",
        "note: skipped 1 file that is not a picture: notes.txt",
        "note: skipped 1 hidden file or folder: .thumbnails",
        "the model follows the data: without classes",
    ] {
        assert!(said.contains(part), "{said:?} lacks {part:?}");
    }
    assert!(
        folder.path().join("run/samples/final.png").exists() && folder.path().join("run/model.safetensors").exists()
    );
    let (done, said, told) = train(&["again", "--batch", "16"]);
    assert!(done && said.contains("imported before: photos"), "{said}{told}");
    // One damaged file.
    std::fs::write(photos.join("IMG_9999.jpg"), &encoded(ImageFormat::Jpeg, 30, 30, Rgb8, 1)[..400]).unwrap();
    let (done, _, told) = train(&["damaged"]);
    assert!(!done && told.contains("IMG_9999.jpg: is cut short") && told.contains("--skip-damaged"), "{told}");
    let (done, said, told) = train(&["damaged", "--skip-damaged"]);
    assert!(done && said.contains("left out 1 damaged picture: IMG_9999.jpg"), "{said}{told}");
}

#[test]
fn the_model_has_the_size_the_channels_and_the_classes_of_its_data() {
    let folder = tempfile::tempdir().unwrap();
    for (class, k) in [("cat", 0), ("cat", 1), ("a dog", 2), ("a dog", 3), ("a dog", 4)] {
        std::fs::create_dir_all(folder.path().join("set").join(class)).unwrap();
        let bytes = encoded(ImageFormat::Png, 48, 48, ExtendedColorType::L8, k);
        std::fs::write(folder.path().join(format!("set/{class}/{k}.png")), bytes).unwrap();
    }
    let train = |more: &[&str]| engine(folder.path(), &[&["train", "--out"], more, &SMALL].concat());
    let (done, said, told) = train(&["run", "--data", "set", "--batch", "2"]);
    assert!(done, "{told}");
    let followed = "the model follows the data: model.image_size 48, model.image_channels 1, model.num_classes 2";
    assert!(said.contains(followed), "{said}");
    let sample =
        |more: &[&str]| engine(folder.path(), &[&["sample", "--model", "run", "--device", "cpu"], more].concat());
    let (done, _, told) = sample(&["--class", "5"]);
    assert!(!done && told.contains("--class: the model has no class `5`; use one of a dog, cat"), "{told}");
    // Labelled samples form a data set; two sets are trained on together.
    let (done, _, told) = sample(&["--count", "4", "--out", "drawn.safetensors"]);
    assert!(done, "{told}");
    let drawn = Dataset::open(folder.path().join("drawn.safetensors")).unwrap();
    assert_eq!(
        (drawn.len(), drawn.class_names(), drawn.labels()),
        (4, &["a dog".to_owned(), "cat".into()][..], &[0, 1, 0, 1][..])
    );
    let (done, said, told) = train(&["both", "--data", "set", "--data", "drawn.safetensors", "--batch", "2"]);
    assert!(done && said.contains("joined 9 images as "), "{said}{told}");
    // User settings are kept.
    let set =
        ["fixed", "--data", "set", "--batch", "2", "--set", "model.image_size=16", "--set", "model.image_channels=3"];
    let (done, said, told) = train(&set);
    assert!(done && said.contains("resized to 16x16") && said.contains("from grey to RGB"), "{said}{told}");
}

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["plan", "--preset", "quickstart"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn what_a_place_has_not_got_is_not_fetched() {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/mirror", listener.local_addr().unwrap());
    // Requests under /mirror/page return a page, all others 404.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let request = lines.next().unwrap_or_default();
            let _ = lines.take_while(|line| !line.is_empty()).count();
            let reply = match request.contains("/mirror/page/") {
                true => "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nsign in",
                false => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            };
            let _ = (&stream).write_all(reply.as_bytes());
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let page = format!("{base}/page");
    let cases: [(&[&str], &str); 4] = [
        (&["fetch", "resnet18", "--out", "backbones", "--base-url", &base], "status 404"),
        (
            &["fetch", "resnet18", "--out", "backbones", "--base-url", &page],
            "it has 7 bytes where the official file has",
        ),
        (&["data", "fetch", "cifar10", "--base-url", &base], "status 404"),
        (&["data", "fetch", "fashion-mnist", "--base-url", &page], "it has 7 bytes where the official file has"),
    ];
    for (arguments, expected) in cases {
        let (done, _, told) = engine(folder.path(), arguments);
        let errors: Vec<&str> = told.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(!done && errors.len() == 1 && errors[0].contains(expected), "{arguments:?}: {told}");
    }
    let mut left = Vec::new();
    let mut folders = vec![folder.path().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { left.push(path) }
        }
    }
    assert!(left.is_empty(), "{left:?}");
}
