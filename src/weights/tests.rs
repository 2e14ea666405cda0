//! Files written by PyTorch (`tools/goldens/weights.py`), and crafted files.

use super::*;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<WeightFile> {
    WeightFile::parse(Path::new("given.pth"), bytes)
}

fn refused(bytes: &[u8]) -> String {
    let text = parse(bytes).unwrap_err().to_string();
    assert!(text.starts_with("given.pth: ") && text.contains("; ") && !text.contains('\n'), "{text}");
    text
}

/// A zip archive of stored entries, as `torch.save` writes it except for the padding.
fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let mut common = vec![0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc.sum().to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        directory.extend(b"PK\x01\x02\0\0\0\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend(b"PK\x03\x04\0\0");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(*bytes);
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

/// An archive around `pickle` with one storage `0` of `values`.
fn around(pickle: &[u8], values: &[f32]) -> Vec<u8> {
    let storage: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    archive(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &storage)])
}

/// The format of `torch.save` before 1.6, around a pickle without storages.
fn stream(object: &[u8]) -> Vec<u8> {
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\
                 \x80\x02}(X\x0d\0\0\0little_endian\x88u.";
    [head, object, b"\x80\x02]."].concat()
}

/// The pickle of `{"w": tensor}`, with parts that a test can corrupt.
fn tensor(storage: &str, len: i32, offset: i32, shape: &[i32], strides: &[i32]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage".to_vec();
    pickle.extend(format!("c{}\n", storage.replace('.', "\n")).as_bytes());
    pickle.extend(b"X\x01\0\0\x000X\x03\0\0\0cpu");
    let int = |pickle: &mut Vec<u8>, value: i32| {
        pickle.push(b'J');
        pickle.extend(value.to_le_bytes());
    };
    int(&mut pickle, len);
    pickle.extend(b"tQ");
    int(&mut pickle, offset);
    for sizes in [shape, strides] {
        pickle.push(b'(');
        sizes.iter().for_each(|&size| int(&mut pickle, size));
        pickle.push(b't');
    }
    pickle.extend(b"\x89ccollections\nOrderedDict\n)RtRs.");
    pickle
}

/// Pseudorandom numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end
    }
}

#[test]
fn both_containers_and_safetensors_hold_the_same_arrays() {
    let plain = parse(&golden("weights.safetensors")).unwrap();
    assert!(plain.arrays().len() >= 24);
    for name in ["weights-zip.pth", "weights-stream.pth", "weights-checkpoint.pth"] {
        let file = parse(&golden(name)).unwrap();
        assert_eq!(file.arrays().keys().collect::<Vec<_>>(), plain.arrays().keys().collect::<Vec<_>>(), "{name}");
        for (array, expected) in plain.arrays() {
            assert_eq!(&file.arrays()[array], expected, "{name}: {array}");
        }
    }
    let is = |name: &str, shape: &[usize], values: &[f32]| {
        let array = &plain.arrays()[name];
        assert_eq!((array.shape.as_slice(), array.values.as_slice()), (shape, values), "{name}");
    };
    is("shared.columns", &[5, 2], &[0., 5., 1., 6., 2., 7., 3., 8., 4., 9.]);
    is("expanded", &[2, 3], &[1.5, 1.5, 1.5, 2.5, 2.5, 2.5]);
    is("f16", &[3], &[0.5, -65504.0, 5.9604645e-8]);
    is("f64", &[2], &[0.1, 0.0]);
    is("i64", &[2], &[1_099_511_627_776.0, -3.0]);
    is("scalar", &[], &[3.25]);
    is("empty", &[0, 4], &[]);
    is("1.num_batches_tracked", &[], &[0.0]);
}

#[test]
fn files_are_opened_by_their_bytes_and_errors_name_them() {
    let folder = tempfile::tempdir().unwrap();
    // The file's name does not matter.
    let path = folder.path().join("x.safetensors");
    std::fs::write(&path, golden("weights-zip.pth")).unwrap();
    let file = WeightFile::open(&path).unwrap();
    assert_eq!((file.path(), file.arrays()["scalar"].values[0]), (path.as_path(), 3.25));
    let missing = WeightFile::open(folder.path().join("none.pth")).unwrap_err().to_string();
    assert!(missing.contains("none.pth: cannot open"), "{missing}");
    std::fs::write(&path, b"").unwrap();
    assert!(WeightFile::open(&path).unwrap_err().to_string().contains("no bytes"));
    assert!(WeightFile::open(folder.path()).is_err());
}

#[test]
fn names_are_matched_strictly_and_all_that_is_wrong_is_told_at_once() {
    let file = parse(&around(&tensor("torch.FloatStorage", 4, 0, &[2, 2], &[2, 1]), &[1., 2., 3., 4.])).unwrap();
    assert_eq!(file.matched(&[("w", &[2, 2])]).unwrap(), [&[1f32, 2., 3., 4.]]);
    // A counter may be expected but missing.
    let counted = file.matched(&[("bn.num_batches_tracked", &[]), ("w", &[2, 2])]).unwrap();
    assert_eq!((counted[0].len(), counted[1].len()), (0, 4));
    let error = file.matched(&[("fc.weight", &[1]), ("fc.bias", &[1])]).unwrap_err().to_string();
    assert!(error.contains("2 missing: fc.weight, fc.bias; 1 unexpected: w"), "{error}");
    let error = file.matched(&[("w", &[4])]).unwrap_err().to_string();
    assert!(error.contains("1 of another shape: w (has [2, 2], expected [4])"), "{error}");
    // Or present but not expected.
    let golden = parse(&golden("weights-zip.pth")).unwrap();
    let expected: Vec<(&str, &[usize])> = golden.arrays().iter().map(|(k, v)| (k.as_str(), &v.shape[..])).collect();
    let without: Vec<_> = expected.iter().copied().filter(|(name, _)| !is_counter(name)).collect();
    assert!(without.len() < expected.len());
    golden.matched(&without).unwrap();
}

#[test]
fn a_pickle_that_would_run_a_command_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let marker = folder.path().join("ran");
    let command = format!("touch {}", marker.display());
    let call = |global: &str, end: &str| {
        let mut pickle = b"\x80\x02".to_vec();
        pickle.extend(global.as_bytes());
        pickle.extend(b"X");
        pickle.extend((command.len() as u32).to_le_bytes());
        pickle.extend(command.as_bytes());
        pickle.extend(end.as_bytes());
        pickle
    };
    let attacks = [
        (call("cposix\nsystem\n(", "tR."), "posix.system"),
        (call("cos\nsystem\n(", "tR."), "os.system"),
        (call("cbuiltins\neval\n(", "tR."), "builtins.eval"),
        (call("ctorch\nload\n(", "tR."), "torch.load"),
        (call("ctorch.serialization\nload\n(", "tR."), "torch.serialization.load"),
        (call("c__builtin__\ngetattr\n(", "tR."), "__builtin__.getattr"),
        (call("(", "iposix\nsystem\n."), "0x69"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.".to_vec(), "posix.system"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nX\x01\0\0\0x\x85R.".to_vec(), "RebuildTensorV2 does not go with"),
        (b"\x80\x02}X\x01\0\0\0x\x85R.".to_vec(), "a dictionary is called: refused, nothing was run"),
        (b"\x80\x02\x82\x01.".to_vec(), "operation 0x82"),
    ];
    for (pickle, reason) in &attacks {
        for file in [around(pickle, &[]), stream(pickle)] {
            let text = refused(&file);
            assert!(text.contains(reason), "{reason}: {text}");
            assert!(!reason.contains('.') || reason.contains(' ') || text.contains("nothing was run"), "{text}");
            assert!(text.contains("byte "), "{text}");
        }
    }
    assert!(!marker.exists());
}

#[test]
fn archives_that_claim_more_than_they_have_are_refused() {
    let good = around(&tensor("torch.FloatStorage", 1, 0, &[1], &[1]), &[5.0]);
    parse(&good).unwrap();
    let directory = good.windows(4).position(|bytes| bytes == b"PK\x01\x02").unwrap();
    let with = |changes: &[(usize, &[u8])]| {
        let mut file = good.clone();
        for (at, bytes) in changes {
            file[directory + at..][..bytes.len()].copy_from_slice(bytes);
        }
        refused(&file)
    };
    // A zip bomb: few bytes that claim to become many. They are not unpacked.
    let bomb = with(&[(10, &[8, 0]), (24, &[0, 0, 0, 0xf0])]);
    assert!(bomb.contains("a/data.pkl of the archive is compressed") && bomb.contains("4026531840"), "{bomb}");
    assert!(with(&[(24, &[0, 0, 0, 0xf0])]).contains("compressed"));
    let huge = with(&[(20, &[0, 0, 0, 0xf0]), (24, &[0, 0, 0, 0xf0])]);
    assert!(huge.contains("claims 4026531840 bytes") && huge.contains("beyond the file's end"), "{huge}");
    assert!(with(&[(20, &[255; 4])]).contains("damaged"));
    assert!(with(&[(8, &[1, 0])]).contains("encrypted"));
    assert!(with(&[(16, &[1, 2, 3, 4])]).contains("checksum"));
    assert!(with(&[(42, &[9, 0, 0, 0])]).contains("beyond the file's end"));
    assert!(refused(&archive(&[("a/x", b"")])).contains("no data.pkl"));
    assert!(refused(&archive(&[("a/data.pkl", b"."), ("a/constants.pkl", b".")])).contains("TorchScript"));
    assert!(refused(&archive(&[("a/data.pkl", b"."), ("a/data.pkl", b".")])).contains("two entries"));
    assert!(refused(&archive(&[("a/data.pkl", b"."), ("a/byteorder", b"big")])).contains("big-endian"));
    assert!(refused(&archive(&[("a/data.pkl", b"\x80\x02}..")])).contains("follow the pickle"));
}

#[test]
fn tensors_that_do_not_fit_their_storage_are_refused() {
    let values = [1.0, 2.0, 3.0, 4.0];
    let float = "torch.FloatStorage";
    let fault = |storage, len, offset, shape: &[i32], strides: &[i32]| {
        refused(&around(&tensor(storage, len, offset, shape, strides), &values))
    };
    for (offset, shape, strides) in
        [(0, &[5][..], &[1][..]), (4, &[1], &[1]), (1, &[4], &[1]), (0, &[2, 2], &[3, 1]), (0, &[2], &[i32::MAX])]
    {
        let text = fault(float, 4, offset, shape, strides);
        assert!(text.contains("w of shape") && text.contains("beyond the 4 elements of storage 0"), "{text}");
    }
    // Repeating an element costs the file nothing, but needs memory.
    for shape in [[1 << 30, 1 << 30, 1 << 30], [1 << 20, 1, 1]] {
        let text = fault(float, 4, 0, &shape, &[0, 0, 0]);
        assert!(text.contains("more numbers than the file has bytes"), "{text}");
    }
    assert!(fault(float, 5, 0, &[4], &[1]).contains("has 16 bytes where w says 5 elements"));
    assert!(fault("torch.DoubleStorage", 4, 0, &[4], &[1]).contains("has 16 bytes"));
    assert!(fault(float, -1, 0, &[4], &[1]).contains("does not describe a storage"));
    for (offset, shape, strides) in [(0, &[-4][..], &[1][..]), (0, &[4], &[-1]), (-1, &[4], &[1]), (0, &[4], &[1, 1])] {
        assert!(fault(float, 4, offset, shape, strides).contains("RebuildTensorV2 does not go with"));
    }
    assert!(fault("torch.UntypedStorage", 4, 0, &[4], &[1]).contains("asks for torch.UntypedStorage"));
    assert!(fault("torch.ComplexFloatStorage", 4, 0, &[4], &[1]).contains("asks for torch.ComplexFloatStorage"));
    // In a pickle stream the storage must exist with that length.
    let pickle = tensor(float, 1, 0, &[1], &[1]);
    assert!(refused(&stream(&pickle)).contains("storage 0 of w is not in the file"));
    let with = |len: u64, bytes: &[u8]| {
        let file = stream(&pickle);
        [&file[..file.len() - 1], b"X\x01\0\0\x000a.", &len.to_le_bytes(), bytes].concat()
    };
    assert_eq!(parse(&with(1, &7f32.to_le_bytes())).unwrap().arrays()["w"].values, [7.0]);
    assert!(refused(&with(2, &[0; 8])).contains("does not have its 1 elements"));
    assert!(refused(&with(1, &[0; 3])).contains("beyond the file's end"));
    assert!(refused(&with(1, &[0; 5])).contains("1 bytes follow the last storage"));
}

#[test]
fn what_is_not_a_dictionary_of_tensors_is_told() {
    assert!(refused(&around(b"\x80\x02].", &[])).contains("it holds a list, not a dictionary"));
    assert!(refused(&around(b"\x80\x02}X\x01\0\0\0wK\x05s.", &[])).contains("w is a number, not a tensor"));
    assert!(refused(&around(b"\x80\x02}K\x01K\x05s.", &[])).contains("name is a number"));
    assert!(refused(b"<html>").contains("a web page"));
    assert!(refused(b"\x80\x04K\x05.").contains("a pickle that torch.save did not write"));
    assert!(refused(b"GIF89a").contains("neither a file of torch.save nor safetensors"));
    // Ordered dictionaries as written by Python 2, and nesting too deep for recursion.
    assert_eq!(parse(&around(b"\x80\x02ccollections\nOrderedDict\n]\x85R.", &[])).unwrap().arrays().len(), 0);
    let deep = [b"\x80\x02".as_slice(), &[b')'; 1], &[0x85; 300_000], b"."].concat();
    assert!(refused(&around(&deep, &[])).contains("it holds a tuple"));
    // A list that is copied 501 times.
    let list = [b"\x80\x02]".as_slice(), &b"K\x01K\x01\x86a".repeat(2000), b"\x85q\x01"].concat();
    let copies = [list, b"ccollections\nOrderedDict\nh\x01R".repeat(501), b".".to_vec()].concat();
    assert!(refused(&around(&copies, &[])).contains("more than 1000000 entries"));
    let many = [b"\x80\x02".as_slice(), &[b'N'; 1_000_001], b"."].concat();
    assert!(refused(&around(&many, &[])).contains("more than 1000000 values"));
}

#[test]
fn files_that_are_cut_short_are_refused_at_every_length() {
    for name in ["weights-zip.pth", "weights-stream.pth", "weights.safetensors"] {
        let file = golden(name);
        for len in 0..file.len() {
            let text = refused(&file[..len]);
            assert!(text.len() < 600, "{name} cut to {len}: {text}");
        }
    }
}

#[test]
fn damaged_files_never_panic_and_never_make_more_than_they_hold() {
    let mut dice = Dice(1);
    let mut sound = 0;
    let pickle_of = |file: &[u8]| {
        let archive = archive::Archive::open(file).unwrap();
        let name = archive.names().find(|name| name.ends_with("/data.pkl")).unwrap();
        archive.get(name).unwrap().to_vec()
    };
    let zip = golden("weights-zip.pth");
    let pickle = pickle_of(&zip);
    for round in 0..6000 {
        // A pickle in an archive with valid checksums, or any byte of a file.
        let mut bytes = match round % 4 {
            0 => pickle.clone(),
            1 => zip.clone(),
            2 => golden_stream(),
            _ => golden_safetensors(),
        };
        for _ in 0..=dice.below(4) {
            let at = dice.below(bytes.len());
            match dice.below(4) {
                0 => bytes[at] = dice.below(256) as u8,
                1 => bytes[at] ^= 1 << dice.below(8),
                2 => bytes[at] = [0, 0xff, b'.', b'(', b'R', b'h'][dice.below(6)],
                _ => {
                    let from = dice.below(bytes.len());
                    let len = dice.below(bytes.len() - from.max(at)).min(16);
                    bytes.copy_within(from..from + len, at);
                }
            }
        }
        let bytes = if round % 4 == 0 { around(&bytes, &[1.0; 10]) } else { bytes };
        match parse(&bytes) {
            Ok(file) => {
                sound += 1;
                assert!(file.arrays().values().map(|array| array.values.len()).sum::<usize>() <= bytes.len());
            }
            Err(error) => assert!(error.to_string().len() < 4000, "{error}"),
        }
    }
    // Weights of a stream or of safetensors may be any bytes.
    assert!(sound > 100, "{sound}");
}

fn golden_stream() -> Vec<u8> {
    static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    FILE.get_or_init(|| golden("weights-stream.pth")).clone()
}

fn golden_safetensors() -> Vec<u8> {
    static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    FILE.get_or_init(|| golden("weights.safetensors")).clone()
}

fn safetensors_of(arrays: &[(&str, &[f32])]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> =
        arrays.iter().map(|(_, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
    let views = arrays.iter().zip(&bytes).map(|((name, values), bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![values.len()], bytes);
        (name.to_string(), view.unwrap())
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()
}

#[test]
fn the_prefixes_of_wrappers_are_left_out_and_said() {
    for prefix in ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."] {
        let (a, b) = (format!("{prefix}a.weight"), format!("{prefix}b"));
        let file = parse(&safetensors_of(&[(&a, &[1.0, 2.0]), (&b, &[3.0])])).unwrap();
        assert_eq!(file.arrays().keys().collect::<Vec<_>>(), ["a.weight", "b"], "{prefix}");
        assert_eq!(file.wrapper(), Some(prefix));
        file.matched(&[("a.weight", &[2]), ("b", &[1])]).unwrap();
    }
    // If only some names have it, it is part of the names.
    let file = parse(&safetensors_of(&[("module.a", &[1.0]), ("b", &[3.0])])).unwrap();
    assert_eq!((file.wrapper(), file.arrays().len()), (None, 2));
    assert!(file.arrays().contains_key("module.a"));
}

#[test]
fn what_is_no_number_is_named() {
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let message = refused(&safetensors_of(&[("a", &[1.0]), ("stem.weight", &[0.5, 0.5, bad])]));
        assert!(message.contains(&format!("stem.weight has {shown} at element 2")), "{message}");
    }
}
