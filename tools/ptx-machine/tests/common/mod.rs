//! A kernel by its body: parsed, decoded and run on memory of its own.

// Each test file compiles this module for itself and uses its own part of it.
#![allow(dead_code)]

use ptx_machine::count::{Counters, Counts, Footprint, Place, Sums, Touches};
use ptx_machine::exec::{Grid, Limits, run, run_observed};
use ptx_machine::fault::Report;
use ptx_machine::ir::Program;
use ptx_machine::memory::DeviceMemory;
use ptx_machine::parse::parse;

pub const REGISTERS: &str = ".reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .b64 %d<32>;";

/// A module with one entry `k` of `pointers` pointers and then `words` words, and this body.
pub fn module(pointers: usize, words: usize, body: &str) -> String {
    let kinds = std::iter::repeat_n("u64", pointers).chain(std::iter::repeat_n("u32", words));
    let params: Vec<String> = kinds.enumerate().map(|(i, kind)| format!(".param .{kind} p{i}")).collect();
    let loads: String = (0..pointers)
        .map(|i| format!("ld.param.u64 %d{}, [p{i}];\n", 20 + i))
        .chain((0..words).map(|i| format!("ld.param.u32 %r{}, [p{}];\n", 40 + i, pointers + i)))
        .collect();
    format!(
        ".version 8.4\n.target sm_80\n.address_size 64\n\
         .file 1 \"/a/project/kernels/body.cu\"\n\
         .extern .shared .align 16 .b8 dynamic[];\n\
         .visible .entry k({})\n{{\n{REGISTERS}\n{loads}{body}\nret;\n}}\n",
        params.join(", ")
    )
}

pub struct Kernel {
    pub program: Program,
    pub memory: DeviceMemory,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub buffers: Vec<(u64, usize)>,
    pub words: Vec<u32>,
    pub limits: Limits,
    launches: u64,
}

impl Kernel {
    /// From a whole module, its first entry.
    pub fn of(text: &str) -> Self {
        Self::entry(text, 0)
    }

    /// From a whole module, one of its entries.
    pub fn entry(text: &str, number: usize) -> Self {
        let module = parse("test.ptx", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let mut memory = DeviceMemory::new(0, 64 << 20, true).unwrap();
        let globals: Vec<u64> = module
            .variables
            .iter()
            .map(|variable| {
                let address = memory.allocate(variable.size.max(1)).unwrap();
                if let Some(init) = &variable.init {
                    // SAFETY: just allocated.
                    unsafe { std::ptr::copy_nonoverlapping(init.as_ptr(), memory.at(address), init.len()) };
                    memory.mark_written(address, init.len() as u64);
                }
                address
            })
            .collect();
        let program =
            Program::build(&module, &module.entries[number], &globals).unwrap_or_else(|error| panic!("{error}"));
        let limits = Limits { steps: 1 << 20, cores: 2 };
        Self {
            program,
            memory,
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared: 0,
            buffers: Vec::new(),
            words: Vec::new(),
            limits,
            launches: 0,
        }
    }

    pub fn new(pointers: usize, words: usize, body: &str) -> Self {
        Self::of(&module(pointers, words, body))
    }

    pub fn grid(mut self, blocks: u32, threads: u32) -> Self {
        (self.grid, self.block) = ([blocks, 1, 1], [threads, 1, 1]);
        self
    }

    pub fn shared(mut self, bytes: u32) -> Self {
        self.dynamic_shared = bytes;
        self
    }

    pub fn word(mut self, word: u32) -> Self {
        self.words.push(word);
        self
    }

    /// A buffer with this in it.
    pub fn buffer<T: Copy>(mut self, values: &[T]) -> Self {
        let bytes = size_of_val(values);
        let address = self.memory.allocate(bytes as u64).unwrap();
        // SAFETY: just allocated.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr().cast::<u8>(), self.memory.at(address), bytes) };
        self.memory.mark_written(address, bytes as u64);
        self.buffers.push((address, bytes));
        self
    }

    /// A buffer that nobody has written.
    pub fn unwritten(mut self, bytes: usize) -> Self {
        let address = self.memory.allocate(bytes as u64).unwrap();
        self.buffers.push((address, bytes));
        self
    }

    fn params(&self) -> Vec<u8> {
        let mut params = Vec::new();
        self.buffers.iter().for_each(|(address, _)| params.extend(address.to_le_bytes()));
        self.words.iter().for_each(|word| params.extend(word.to_le_bytes()));
        params
    }

    fn launched<'g>(&'g self, params: &'g [u8]) -> Grid<'g> {
        Grid {
            program: &self.program,
            memory: &self.memory,
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic_shared,
            params,
            launch: self.launches,
            beside: None,
            limits: self.limits,
        }
    }

    pub fn run(&mut self) -> Result<(), Box<Report>> {
        self.launches += 1;
        run(&self.launched(&self.params()))
    }

    /// Runs it and counts; with `touches`, this is launch `number` and those from 1 on count as before it.
    pub fn count(&mut self, touches: Option<(&Touches, u32)>) -> (Sums, Footprint) {
        self.launches += 1;
        let base = self.memory.span().0;
        let place = touches.map(|(touches, launch)| Place { touches, base, launch, first: 1 });
        let params = self.params();
        let counted = run_observed(&self.launched(&params), || Counts::new(&self.program, place));
        let counted = counted.unwrap_or_else(|report| panic!("{report}"));
        Sums::of(&self.program, counted)
    }

    /// The counters of the operations of one line of the PTX.
    pub fn of_line(&self, sums: &Sums, line: u32) -> Counters {
        let mut all = Counters::default();
        let operations = sums.operations(&self.program);
        operations.filter(|(index, _)| self.program.lines[*index].ptx == line).for_each(|(_, one)| all += one);
        all
    }

    pub fn read<T: Copy + Default>(&self, buffer: usize) -> Vec<T> {
        let (address, bytes) = self.buffers[buffer];
        let mut values = vec![T::default(); bytes / size_of::<T>()];
        // SAFETY: within the buffer.
        unsafe {
            std::ptr::copy_nonoverlapping(self.memory.at(address), values.as_mut_ptr().cast::<u8>(), bytes);
        }
        values
    }
}

/// `%r0` = the thread's number in its block, `%d0` = 4 times it, `%d1` = 4 times its number in the grid.
pub const THREAD: &str = "mov.u32 %r0, %tid.x;\nmul.wide.u32 %d0, %r0, 4;\nmov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\n\
                          mad.lo.s32 %r3, %r1, %r2, %r0;\nmul.wide.u32 %d1, %r3, 4;\n";
