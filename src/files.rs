//! Atomic writes, and detection of file types by their first bytes.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Writes `bytes` to a temporary file, syncs it, and renames it to `path`; creates missing folders. After an error the old file at
/// `path` is unchanged.
///
/// # Errors
/// [`Error::Io`] with the path and the operating system's error.
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "is not a file's name", "give a file, as in samples/grid.png"));
    };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(Error::io(folder, "create the folder"))?;
    }
    let mut beside = name.to_os_string();
    beside.push(format!(".{}.part", std::process::id()));
    let beside = path.with_file_name(beside);
    let written = File::create(&beside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, path));
    written.map_err(|error| {
        // The first error is the one that matters; the leftover may not even exist.
        let _ = fs::remove_file(&beside);
        Error::io(path, "write")(error)
    })?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // Otherwise a crash of the machine may lose the rename; not every file system allows it.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

/// The type of a file that starts with `bytes`, of which 512 suffice: "a zip archive". For messages about unexpected files.
pub fn describe(bytes: &[u8]) -> &'static str {
    let is_text =
        || !bytes.is_empty() && bytes.iter().all(|&byte| byte >= 0x20 || matches!(byte, b'\t' | b'\n' | b'\r'));
    match bytes {
        [] => "an empty file",
        [0x89, b'P', b'N', b'G', ..] => "a PNG picture",
        [0xff, 0xd8, 0xff, ..] => "a JPEG picture",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "a WebP picture",
        [b'G', b'I', b'F', b'8', ..] => "a GIF picture",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "a TIFF picture",
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => "a BMP picture",
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => "an AVIF picture",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "a HEIC picture or a video",
        [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', ..] => "a JPEG XL picture",
        [0, 0, 0, 12, b'j', b'P', ..] => "a JPEG 2000 picture",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop file",
        [b'P', b'K', 3 | 5, 4 | 6, ..] => "a zip archive",
        [0x1f, 0x8b, ..] => "gzip data",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "Zstandard data",
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => "bzip2 data",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz data",
        [b'7', b'z', 0xbc, 0xaf, ..] => "a 7z archive",
        [b'R', b'a', b'r', b'!', ..] => "a rar archive",
        [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "a NumPy array",
        [b'P', b'A', b'R', b'1', ..] => "a parquet file",
        [b'M', b'A', b'T', b'L', b'A', b'B', ..] => "a MATLAB file",
        [0x89, b'H', b'D', b'F', ..] => "an HDF5 file",
        [0x80, 2..=5, ..] => "a pickle",
        [0, 0, 8 | 9 | 11..=14, 1..=4, ..] => "an IDX file",
        [b'%', b'P', b'D', b'F', ..] => "a PDF document",
        [0x7f, b'E', b'L', b'F', ..] => "a program",
        _ if bytes.get(257..262) == Some(b"ustar") => "a tar archive",
        _ if bytes.get(8) == Some(&b'{') && bytes.len() > 9 && bytes[5..8] == [0; 3] => "a safetensors file",
        _ => {
            let start = bytes.trim_ascii_start();
            match start {
                [b'<', ..] => "a web page or XML",
                [b'{' | b'[', ..] if is_text() => "JSON text",
                _ if is_text() => "text",
                _ => "a file of no known kind",
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_what_a_file_is() {
        let tar = [&[b'a'; 257][..], b"ustar\0", &[0; 200]].concat();
        let told: [(&[u8], &str); 8] = [
            (b"PK\x03\x04", "a zip archive"),
            (b"\x93NUMPY\x01", "a NumPy array"),
            (&tar, "a tar archive"),
            (b"", "an empty file"),
            (b" <html>", "a web page or XML"),
            (b"hello\n", "text"),
            (b"\x10\0\0\0\0\0\0\0{\"a\"", "a safetensors file"),
            (&[1, 2, 3], "a file of no known kind"),
        ];
        for (bytes, expected) in told {
            assert_eq!(describe(bytes), expected);
        }
    }

    #[test]
    fn writes_whole_files_into_new_folders_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c.bin");
        for bytes in [b"first".as_slice(), b"second"] {
            write_atomically(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn refusals_name_the_path_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("blocked");
        fs::create_dir_all(blocked.join("inner")).unwrap();
        let error = write_atomically(&blocked, b"x").unwrap_err().to_string();
        assert!(error.contains("blocked: cannot write: "), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::write(folder.path().join("file"), b"").unwrap();
        let error = write_atomically(folder.path().join("file/x.png"), b"x").unwrap_err().to_string();
        assert!(error.contains("cannot create the folder"), "{error}");
        assert!(write_atomically("..", b"x").unwrap_err().to_string().contains("not a file's name"));
    }
}
