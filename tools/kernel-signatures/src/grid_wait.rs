//! Programmatic dependent launch (PTX ISA 7.8, CUDA Programming Guide, "Programmatic Dependent Launch and Synchronization"): a grid is
//! put on the device while the grid before it in its stream still runs, so that the time between two grids nearly disappears.
//!
//! Such a grid must wait until the one before it has ended and its writes are visible. Here every kernel does so in its first
//! instruction, and then lets the next grid be put on the device. The two instructions are added to each entry of PTX where the code
//! is for compute capability 9.0 or newer, so that no kernel can lack them; to machine code the macro adds them that writes all entries
//! (`kernels/common/entry.cuh`), asked by [`GRID_WAITS_FLAG`]. Where a grid was launched plainly they do nothing.
//!
//! The wait is transitive because it comes first: a grid ends only after all of its threads have waited, and so after all grids
//! before it.

/// The first compute capability with programmatic dependent launch.
pub const GRID_WAIT_CAPABILITY: (u32, u32) = (9, 0);

/// The compiler's flag for entries that wait, of machine code for compute capability 9.0 or newer.
pub const GRID_WAITS_FLAG: &str = "-DENGINE_GRID_WAITS";

/// Waits for the grids before; then lets the next one be put on the device, as soon as each of this grid's blocks runs.
const WAIT: &str = "griddepcontrol.wait; griddepcontrol.launch_dependents;";

/// The PTX with the wait at the start of each entry, for compute capability 9.0 or newer. Line numbers stay. `None` where the text is
/// not as the compilers write it: an entry has no body, or there is no `.target`.
pub fn ptx_with_grid_waits(ptx: &str) -> Option<String> {
    let mut text = String::with_capacity(ptx.len() + 4096);
    let (mut target, mut head) = (false, false);
    for line in ptx.split_inclusive('\n') {
        if line.starts_with(".target sm_8") {
            let options = line.find(',').map_or("\n", |comma| &line[comma..]);
            text.push_str(".target sm_90");
            text.push_str(options);
            target = true;
            continue;
        }
        target |= line.starts_with(".target sm_");
        if line.contains(".entry ") {
            if head {
                return None;
            }
            head = true;
        }
        match line.find('{').filter(|_| head) {
            Some(opened) => {
                let (before, after) = line.split_at(opened + 1);
                text.push_str(before);
                text.push_str(WAIT);
                text.push_str(after);
                head = false;
            }
            None => text.push_str(line),
        }
    }
    (target && !head).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = ".version 8.4\n.target sm_80\n.visible .entry one(\n\t.param .u64 one_param_0\n)\n.maxntid 32, 1, 1\n{\n\t.reg .b32 \t%r<2>;\n\
                       \t{\n\t}\n\tret;\n}\n.visible .entry two()\n{\n\tret;\n}\n";

    #[test]
    fn each_entry_waits_first_and_lines_stay() {
        let text = ptx_with_grid_waits(PTX).unwrap();
        assert_eq!(text.lines().count(), PTX.lines().count());
        assert_eq!(text.matches("griddepcontrol.wait;").count(), 2);
        let bodies: Vec<&str> = text.lines().filter(|line| line.contains("griddepcontrol")).collect();
        assert!(bodies.iter().all(|line| *line == "{griddepcontrol.wait; griddepcontrol.launch_dependents;"), "{text}");
        assert!(text.contains("\n.target sm_90\n"));
        let own = PTX.replace("sm_80", "sm_90a");
        assert!(ptx_with_grid_waits(&own).unwrap().contains("\n.target sm_90a\n"));
        let debug = PTX.replace("sm_80", "sm_80, debug");
        assert!(ptx_with_grid_waits(&debug).unwrap().contains("\n.target sm_90, debug\n"));
    }

    #[test]
    fn entries_wait_as_ptx_does() {
        let macros = include_str!("../../../kernels/common/entry.cuh");
        assert!(macros.contains(&format!("#define GRID_WAIT asm volatile(\"{WAIT}\" ::: \"memory\");")));
        assert_eq!(macros.matches("__global__").count(), 1);
        let entry = macros.lines().skip_while(|line| !line.contains("__global__")).nth(1).unwrap();
        assert!(entry.trim_start().starts_with("GRID_WAIT __VA_ARGS__;"), "{entry}");
        assert!(macros.contains(&format!("#ifdef {}\n", GRID_WAITS_FLAG.trim_start_matches("-D"))));
    }

    #[test]
    fn text_of_another_form_is_refused() {
        assert_eq!(ptx_with_grid_waits(&PTX.replace(".target", ".tarjet")), None);
        assert_eq!(ptx_with_grid_waits(".target sm_80\n.visible .entry one()\n;\n"), None);
        assert_eq!(ptx_with_grid_waits(".target sm_80\n.visible .entry one();\n.visible .entry two()\n{\n}\n"), None);
    }
}
