//! Additions of `tools/ptx-machine` to a driver: counted sections, and launches that it executes only in part.

use std::ffi::{CString, c_char, c_int, c_uint};

use super::api;
use super::driver::driver;
use crate::error::{Error, Result};

/// The PTX machine, if it is the loaded driver. It counts if `PTX_MACHINE_PROFILE` gives a file.
#[derive(Clone, Copy, Debug)]
pub struct PtxMachine {
    mark: unsafe extern "C" fn(*const c_char) -> c_int,
    sample: unsafe extern "C" fn(c_uint) -> c_int,
}

impl PtxMachine {
    /// The PTX machine; None for a real driver.
    ///
    /// # Errors
    /// If there is no usable driver.
    pub fn find() -> Result<Option<Self>> {
        driver()?;
        // SAFETY: the types are those declared in tools/ptx-machine.
        let (mark, sample) = unsafe { (api::machine("ptxMachineMark"), api::machine("ptxMachineSample")) };
        Ok(mark.zip(sample).map(|(mark, sample)| Self { mark, sample }))
    }

    /// Waits for all work; later launches belong to `section`, or to none if it is empty.
    ///
    /// # Errors
    /// A name with a zero byte; those of the PTX machine.
    pub fn mark(&self, section: &str) -> Result<()> {
        let refused = || Error::device("ptx-machine", format!("cannot begin to count {section:?}"), "build it again");
        let name = CString::new(section).map_err(|_| refused())?;
        // SAFETY: the name ends with a zero byte.
        if unsafe { (self.mark)(name.as_ptr()) } == 0 { Ok(()) } else { Err(refused()) }
    }

    /// From now on at most `blocks` blocks of a launch are executed and represent all; 0: every block.
    ///
    /// # Errors
    /// Those of the PTX machine.
    pub fn sample(&self, blocks: u32) -> Result<()> {
        // SAFETY: a number.
        if unsafe { (self.sample)(blocks) } == 0 {
            return Ok(());
        }
        Err(Error::device("ptx-machine", format!("cannot execute {blocks} blocks of a launch"), "build it again"))
    }
}
