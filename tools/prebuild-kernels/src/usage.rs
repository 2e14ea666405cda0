//! What `ptxas -v` says of each entry.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub kernel: String,
    pub registers: u32,
    /// Bytes of spill stores and loads together.
    pub spills: u32,
    /// Static shared memory.
    pub shared: u32,
    /// Bytes of the stack frame, which lies in local memory.
    pub stack: u32,
}

/// The entries, in ptxas's order.
pub fn usages(text: &str) -> Vec<Usage> {
    let mut all: Vec<Usage> = Vec::new();
    // Functions that entries call have properties too, which come under their own name.
    let mut of_entry = false;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            all.push(Usage { kernel: rest.split('\'').next().unwrap_or_default().into(), ..Usage::default() });
            of_entry = true;
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            of_entry = all.last().is_some_and(|usage| usage.kernel == name.trim());
        } else if let Some(usage) = all.last_mut().filter(|_| of_entry) {
            // In front of each unit stands its number: `Used 32 registers, 64 bytes smem, …`.
            let before = |unit: &str| -> u32 {
                let number = line.split_once(unit).and_then(|(head, _)| head.split_whitespace().next_back());
                number.and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            usage.registers += before(" registers");
            usage.spills += before(" bytes spill stores") + before(" bytes spill loads");
            usage.shared += before(" bytes smem");
            usage.stack += before(" bytes stack frame");
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ptxas() {
        let text = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'a_fwd' for 'sm_80'\n\
            ptxas info    : Function properties for a_fwd\n    \
                16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem, 412 bytes cmem[0]\n\
            ptxas info    : Function properties for helper\n    \
                32 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n\
            ptxas info    : Compiling entry function 'b' for 'sm_80'\n\
            ptxas info    : Used 12 registers, 380 bytes cmem[0]\n";
        let usage = |kernel: &str, registers, spills, shared, stack| {
            let kernel = kernel.into();
            Usage { kernel, registers, spills, shared, stack }
        };
        assert_eq!(usages(text), [usage("a_fwd", 40, 20, 512, 16), usage("b", 12, 0, 0, 0)]);
    }
}
