//! What the machine of `tools/ptx-machine` has beyond a driver: sections that it counts, and launches that it does not execute.

use std::ffi::{CString, c_char, c_int, c_uint};

use super::api;
use super::driver::driver;
use crate::error::{Error, Result};

/// The machine, where that is what is loaded as the driver. It counts what it does where `PTX_MACHINE_PROFILE` names a file.
#[derive(Clone, Copy, Debug)]
pub struct PtxMachine {
    mark: unsafe extern "C" fn(*const c_char) -> c_int,
    sample: unsafe extern "C" fn(c_uint) -> c_int,
}

impl PtxMachine {
    /// The machine; None where the driver is a real one.
    ///
    /// # Errors
    /// Where there is no usable driver.
    pub fn find() -> Result<Option<Self>> {
        driver()?;
        // SAFETY: the types are those that tools/ptx-machine declares.
        let (mark, sample) = unsafe { (api::machine("ptxMachineMark"), api::machine("ptxMachineSample")) };
        Ok(mark.zip(sample).map(|(mark, sample)| Self { mark, sample }))
    }

    /// Waits for all work; what is launched from here on belongs to `section`, and to none where that is empty.
    ///
    /// # Errors
    /// A name with a zero byte; what the machine refuses.
    pub fn mark(&self, section: &str) -> Result<()> {
        let refused = || Error::device("ptx-machine", format!("cannot begin to count {section:?}"), "build it again");
        let name = CString::new(section).map_err(|_| refused())?;
        // SAFETY: the name ends with a zero byte.
        if unsafe { (self.mark)(name.as_ptr()) } == 0 { Ok(()) } else { Err(refused()) }
    }

    /// From here on at most `blocks` blocks of a launch are executed and stand for all; 0: every block.
    ///
    /// # Errors
    /// What the machine refuses.
    pub fn sample(&self, blocks: u32) -> Result<()> {
        // SAFETY: a number.
        if unsafe { (self.sample)(blocks) } == 0 {
            return Ok(());
        }
        Err(Error::device("ptx-machine", format!("cannot execute {blocks} blocks of a launch"), "build it again"))
    }
}
