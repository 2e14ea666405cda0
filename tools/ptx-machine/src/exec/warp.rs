//! A warp: its lanes' places in the program.
//!
//! All lanes at the lowest place execute together; others wait until it is their turn, so that lanes which were apart meet again at
//! the first instruction that both come to. At an instruction that needs the whole warp lanes wait for the others.

use super::lanes::Lanes;

/// Lanes that are at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub pc: u32,
    pub mask: u32,
    /// At an instruction that needs more lanes.
    pub waits: bool,
}

/// A copy of `cp.async` on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub lane: u32,
    /// The lane's group that it belongs to.
    pub group: u32,
    pub from: u64,
    /// Bytes that it reads; the rest is zero.
    pub read: u8,
    pub to: u64,
    pub bytes: u8,
    pub data: [u8; 16],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Ready,
    /// At a barrier of the block.
    Waits {
        barrier: u8,
    },
    Done,
}

#[derive(Debug)]
pub(super) struct Warp {
    pub lanes: Lanes,
    pub index: u32,
    /// Lanes that the block has.
    pub present: u32,
    /// Lanes that have not left the kernel.
    pub alive: u32,
    /// Where `lanes.mask` is.
    pub pc: u32,
    /// Lanes elsewhere.
    pub paths: Vec<Path>,
    /// The lowest place of a path that does not wait.
    pub limit: u32,
    /// Barriers of the warp since the block's last one.
    pub epoch: u32,
    pub state: State,
    /// Lanes behind their `griddepcontrol.wait`.
    pub waited: u32,
    pub copies: Vec<Copy>,
    pub groups: [u32; 32],
    /// Lanes in which each doubtful register was written.
    pub written: Vec<u32>,
}

impl Warp {
    pub fn new() -> Self {
        Self {
            lanes: Lanes { registers: std::ptr::null_mut(), constants: std::ptr::null(), mask: 0 },
            index: 0,
            present: 0,
            alive: 0,
            pc: 0,
            paths: Vec::new(),
            limit: u32::MAX,
            epoch: 0,
            state: State::Done,
            waited: 0,
            copies: Vec::new(),
            groups: [0; 32],
            written: Vec::new(),
        }
    }

    /// Puts the executing lanes aside at `pc` and goes on with those at the lowest place. False: no lane can.
    pub fn select(&mut self, waits: bool) -> bool {
        if self.lanes.mask != 0 {
            self.set_aside(self.pc, self.lanes.mask, waits);
            self.lanes.mask = 0;
        }
        let Some(pc) = self.paths.iter().filter(|path| !path.waits).map(|path| path.pc).min() else {
            self.limit = u32::MAX;
            return false;
        };
        self.pc = pc;
        let mut mask = 0;
        self.paths.retain(|path| {
            let joins = path.pc == pc && !path.waits;
            if joins {
                mask |= path.mask;
            }
            !joins
        });
        self.lanes.mask = mask;
        self.find_limit();
        true
    }

    /// Adds lanes at a place to those that are there already.
    pub fn set_aside(&mut self, pc: u32, mask: u32, waits: bool) {
        match self.paths.iter_mut().find(|path| path.pc == pc && path.waits == waits) {
            Some(path) => path.mask |= mask,
            None => self.paths.push(Path { pc, mask, waits }),
        }
        if !waits {
            self.limit = self.limit.min(pc);
        }
    }

    pub fn find_limit(&mut self) {
        let places = self.paths.iter().filter(|path| !path.waits).map(|path| path.pc);
        self.limit = places.min().unwrap_or(u32::MAX);
    }

    /// The executing lanes take those with them that wait at the same place.
    pub fn gather(&mut self) {
        let pc = self.pc;
        let mut mask = 0;
        self.paths.retain(|path| {
            let here = path.waits && path.pc == pc;
            if here {
                mask |= path.mask;
            }
            !here
        });
        self.lanes.mask |= mask;
    }

    /// The executing lanes leave the kernel.
    pub fn leave(&mut self) {
        self.alive &= !self.lanes.mask;
        self.lanes.mask = 0;
        // Those who waited for them look again.
        for path in &mut self.paths {
            path.waits = false;
        }
        self.find_limit();
    }
}
