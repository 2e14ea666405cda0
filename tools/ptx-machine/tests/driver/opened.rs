//! The driver of this process, and a device of it that is in use.

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};
use std::sync::{Mutex, MutexGuard, Once};

use ptx_machine::driver::code::*;
use ptx_machine::driver::*;

use super::common;

/// One test at a time: the driver is the process's.
pub fn driver() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static SET: Once = Once::new();
    let guard = ONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    SET.call_once(|| unsafe {
        std::env::set_var("PTX_MACHINE_DEVICE", "a100,h100");
        std::env::set_var("PTX_MACHINE_STEPS", "100000");
        let mut count = 0;
        assert_eq!(cuDeviceGetCount(&mut count), NOT_INITIALIZED);
        assert_eq!(cuInit(1), INVALID_VALUE);
        assert_eq!(cuInit(0), SUCCESS);
    });
    guard
}

/// A device's primary context, made current; released when dropped.
pub struct Opened {
    device: i32,
    pub context: *mut c_void,
    pub stream: *mut c_void,
}

impl Opened {
    pub fn new(device: i32) -> Self {
        let (mut context, mut stream) = (null_mut(), null_mut());
        unsafe {
            assert_eq!(cuDevicePrimaryCtxRetain(&mut context, device), SUCCESS);
            assert_eq!(cuCtxSetCurrent(context), SUCCESS);
            assert_eq!(cuStreamCreate(&mut stream, 1), SUCCESS);
        }
        Self { device, context, stream }
    }

    pub fn alloc(&self, bytes: usize) -> u64 {
        let mut address = 0;
        assert_eq!(unsafe { cuMemAlloc_v2(&mut address, bytes) }, SUCCESS);
        address
    }

    pub fn load(&self, text: &str) -> Result<*mut c_void, (Code, String)> {
        let text = CString::new(text).unwrap();
        let mut log = vec![0u8; 512];
        let names = [5u32, 6];
        let values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(log.len())];
        let mut module = null_mut();
        match unsafe { cuModuleLoadDataEx(&mut module, text.as_ptr().cast(), 2, names.as_ptr(), values.as_ptr()) } {
            SUCCESS => Ok(module),
            code => {
                let end = log.iter().position(|&byte| byte == 0).unwrap();
                Err((code, String::from_utf8_lossy(&log[..end]).into_owned()))
            }
        }
    }

    pub fn function(&self, body: &str) -> *mut c_void {
        let module = self.load(&common::module(1, 1, body)).unwrap_or_else(|fault| panic!("{fault:?}"));
        let mut function = null_mut();
        assert_eq!(unsafe { cuModuleGetFunction(&mut function, module, c"k".as_ptr()) }, SUCCESS);
        assert_eq!(unsafe { cuFuncLoad(function) }, SUCCESS);
        function
    }

    pub fn launch(
        &self,
        function: *mut c_void,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        address: u64,
        word: u32,
    ) -> Code {
        let (mut address, mut word) = (address, word);
        let params = [(&raw mut address).cast::<c_void>(), (&raw mut word).cast()];
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        unsafe { cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, self.stream, params.as_ptr(), null()) }
    }

    pub fn synchronize(&self) -> Code {
        unsafe { cuStreamSynchronize(self.stream) }
    }

    pub fn capture(&self, mode: u32) {
        assert_eq!(unsafe { cuStreamBeginCapture_v2(self.stream, mode) }, SUCCESS);
    }

    pub fn end(&self) -> (Code, *mut c_void) {
        let mut graph = null_mut();
        let code = unsafe { cuStreamEndCapture(self.stream, &mut graph) };
        (code, graph)
    }

    pub fn words(&self, address: u64, count: usize) -> Vec<u32> {
        let mut values = vec![0u32; count];
        assert_eq!(unsafe { cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, 4 * count) }, SUCCESS);
        values
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        unsafe {
            cuCtxSetCurrent(null_mut());
            cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Adds `word` to each of the first 32 words.
pub const ADD: &str = "mov.u32 %r0, %tid.x; mul.wide.u32 %d0, %r0, 4; add.s64 %d1, %d20, %d0; ld.global.u32 %r1, [%d1];\n\
                   add.s32 %r1, %r1, %r40; st.global.u32 [%d1], %r1;";

pub const ONE: [u32; 3] = [1, 1, 1];
pub const WARP: [u32; 3] = [32, 1, 1];
