//! NVRTC through its C interface, loaded at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use kernel_signatures::{PREBUILT_COMPILER, PREBUILT_FLAGS};
use libloading::Library;

use crate::Result;

type Status = c_int;
type Program = *mut c_void;

/// NVRTC, of the version that the prebuilt PTX is made with unless another is asked for.
pub struct Nvrtc {
    library: Library,
    /// Loaded first, so that NVRTC finds it whatever the loader's path.
    _builtins: Option<Library>,
}

impl Nvrtc {
    /// Loads the library at or below `path`, or from `$VIRTUAL_ENV` or the loader's path.
    ///
    /// # Errors
    /// Where there is none of this version, with what was tried.
    pub fn find(path: Option<&Path>) -> Result<Self> {
        match path {
            Some(path) => Self::find_version(&[path.to_path_buf()], PREBUILT_COMPILER),
            None => Self::find_version(&[], PREBUILT_COMPILER),
        }
    }

    /// Loads the library of a version (`NVRTC 12.8`) at or below one of `paths`; where there are none from `$VIRTUAL_ENV` or the loader's
    /// path.
    ///
    /// # Errors
    /// Where there is none of this version, with what was tried.
    pub fn find_version(paths: &[PathBuf], wanted: &str) -> Result<Self> {
        let mut tried = Vec::new();
        let environment = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from);
        let mut candidates: Vec<PathBuf> = Vec::new();
        for path in paths {
            if path.is_dir() {
                candidates.extend(search(path, "libnvrtc.so.12"));
            } else {
                candidates.push(path.clone());
            }
        }
        if paths.is_empty() {
            candidates.extend(environment.map_or(Vec::new(), |folder| search(&folder, "libnvrtc.so.12")));
            candidates.push("libnvrtc.so.12".into());
        }
        for candidate in candidates {
            match Self::open(&candidate, wanted) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(error) => tried.push(format!("{}: {error}", candidate.display())),
            }
        }
        let tried = if tried.is_empty() { "no libnvrtc.so.12 there".to_string() } else { tried.join("; ") };
        Err(format!(
            "{wanted} is needed ({tried}); pip install 'nvidia-cuda-nvrtc-cu12=={}.*' and name its folder",
            wanted.trim_start_matches("NVRTC ")
        )
        .into())
    }

    fn open(path: &Path, wanted: &str) -> Result<Self> {
        let name = format!("libnvrtc-builtins.so.{}", wanted.trim_start_matches("NVRTC "));
        let builtins = path.parent().map(|folder| folder.join(name)).filter(|p| p.exists());
        // SAFETY: NVIDIA's libraries run no initialisers that touch our state.
        let builtins = builtins.map(|path| unsafe { Library::new(path) }).transpose()?;
        // SAFETY: as above.
        let library = unsafe { Library::new(path)? };
        let nvrtc = Self { library, _builtins: builtins };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: nvrtc.h: `nvrtcResult nvrtcVersion(int *major, int *minor)`.
        let status = unsafe {
            nvrtc.library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status>(b"nvrtcVersion")?(
                &mut major, &mut minor,
            )
        };
        nvrtc.check(status, "nvrtcVersion")?;
        match format!("NVRTC {major}.{minor}") {
            version if version == wanted => Ok(nvrtc),
            version => Err(format!("this is {version}").into()),
        }
    }

    fn check(&self, status: Status, call: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: nvrtc.h: `const char *nvrtcGetErrorString(nvrtcResult)`, a static string.
        let text = unsafe {
            let name =
                self.library.get::<unsafe extern "C" fn(Status) -> *const c_char>(b"nvrtcGetErrorString")?(status);
            CStr::from_ptr(name).to_string_lossy().into_owned()
        };
        Err(format!("{call}: {text}").into())
    }

    /// The PTX of a source for a virtual architecture (`compute_80`), with the flags of the prebuilt one. `include` is the folder of
    /// what it includes. Line tables name files by whole paths.
    ///
    /// # Errors
    /// NVRTC's log, where it refuses the source.
    pub fn compile(&self, path: &Path, include: &Path, arch: &str) -> Result<String> {
        let text = self.make(path, include, PREBUILT_FLAGS, arch, [b"nvrtcGetPTXSize", b"nvrtcGetPTX"])?;
        Ok(String::from_utf8(without_end(text))?)
    }

    /// The machine code of a source for an architecture (`sm_80`), with these flags.
    ///
    /// # Errors
    /// NVRTC's log, where it refuses the source.
    pub fn cubin(&self, source: &Path, include: &Path, flags: &[&str], arch: &str) -> Result<Vec<u8>> {
        self.make(source, include, flags, arch, [b"nvrtcGetCUBINSize", b"nvrtcGetCUBIN"])
    }

    /// The result of `get`, a getter of a size and one of that many bytes, for a compiled source.
    fn make(&self, path: &Path, include: &Path, flags: &[&str], arch: &str, get: [&[u8]; 2]) -> Result<Vec<u8>> {
        let source = CString::new(std::fs::read(path)?)?;
        // Its whole path: the line tables name it as they do what it includes.
        let name = CString::new(path.display().to_string())?;
        let options = flags
            .iter()
            .map(|flag| CString::new(*flag))
            .chain([
                CString::new(format!("--gpu-architecture={arch}")),
                CString::new(format!("--include-path={}", include.display())),
            ])
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status;
        let mut program: Program = ptr::null_mut();
        // SAFETY: nvrtc.h's signatures; every string outlives its call.
        unsafe {
            let status = self.library.get::<Create>(b"nvrtcCreateProgram")?(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            );
            self.check(status, "nvrtcCreateProgram")?;
            let status = self.library.get::<Compile>(b"nvrtcCompileProgram")?(
                program,
                pointers.len() as c_int,
                pointers.as_ptr(),
            );
            let outcome = match self.check(status, "nvrtcCompileProgram") {
                Ok(()) => self.bytes(program, get[0], get[1]),
                Err(error) => {
                    let log = self.bytes(program, b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog")?;
                    let log = String::from_utf8_lossy(&without_end(log)).into_owned();
                    Err(format!("{} for {arch}: {error}\n{}", path.display(), log.trim_end()).into())
                }
            };
            self.library.get::<unsafe extern "C" fn(*mut Program) -> Status>(b"nvrtcDestroyProgram")?(&mut program);
            outcome
        }
    }

    /// # Safety
    /// `program` is live, and the two names are a getter of a size and of so many bytes.
    unsafe fn bytes(&self, program: Program, size: &[u8], get: &[u8]) -> Result<Vec<u8>> {
        let mut length = 0usize;
        // SAFETY: `nvrtcResult f(nvrtcProgram, size_t *)`, then `nvrtcResult g(nvrtcProgram, char *)` into that many bytes.
        unsafe {
            let status =
                self.library.get::<unsafe extern "C" fn(Program, *mut usize) -> Status>(size)?(program, &mut length);
            self.check(status, "size")?;
            let mut bytes = vec![0u8; length];
            let status = self.library.get::<unsafe extern "C" fn(Program, *mut c_char) -> Status>(get)?(
                program,
                bytes.as_mut_ptr().cast(),
            );
            self.check(status, "bytes")?;
            Ok(bytes)
        }
    }
}

/// A text without the zero bytes at its end.
fn without_end(mut text: Vec<u8>) -> Vec<u8> {
    while text.last() == Some(&0) {
        text.pop();
    }
    text
}

/// Files called `name` below `folder`, links not followed.
#[must_use]
pub fn search(folder: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(_) if entry.file_name() == name => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}
