//! Every committed PTX file is read and decoded.

use std::path::Path;

use ptx_machine::ir::Program;
use ptx_machine::parse::parse;

#[test]
fn every_prebuilt_kernel_is_understood() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/prebuilt");
    let more = std::env::var_os("PTX_MACHINE_CORPUS").map(std::path::PathBuf::from);
    let mut kernels = 0;
    for folder in std::iter::once(folder).chain(more) {
        for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_none_or(|extension| extension != "ptx") {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let module = parse(&name, &text).unwrap_or_else(|error| panic!("{error}"));
            let globals = vec![0x7000_0000_0000; module.variables.len()];
            for entry in &module.entries {
                let program = Program::build(&module, entry, &globals).unwrap_or_else(|error| panic!("{error}"));
                kernels += 1;
                if std::env::var_os("PTX_MACHINE_SHOW").is_some() {
                    println!(
                        "{}: {} operations, {} units, {} registers, doubtful {:?}",
                        entry.name,
                        program.code.len(),
                        program.units,
                        program.registers,
                        program.doubtful
                    );
                }
            }
        }
    }
    assert!(kernels >= 168, "{kernels}");
}
