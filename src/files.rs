//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::{Error, Result};

/// Writes `bytes` to a file beside `path`, syncs it, and renames it to `path`; missing folders are made. On failure what
/// was at `path` before is untouched.
///
/// # Errors
/// [`Error::Io`] with the path and what the operating system refused.
pub fn write_atomically(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let Some(name) = path.file_name() else {
        return Err(Error::file(path, "is not a file's name", "name a file, as in samples/grid.png"));
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
        // The error that matters is the first one; the leftover may not even exist.
        let _ = fs::remove_file(&beside);
        Error::io(path, "write")(error)
    })?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        // Without this a crash of the machine may forget the rename; not every file system allows it.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
