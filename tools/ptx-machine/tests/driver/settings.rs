//! The environment's variables: what is not known is said in one line.

use std::ffi::{CStr, OsString};
use std::process::Command;

use ptx_machine::driver::code::*;
use ptx_machine::driver::model::{A100, B200, H100, H200, MODELS, Model, RTX4090};
use ptx_machine::driver::settings::Settings;
use ptx_machine::driver::*;

fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
    Settings::read(variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))))
}

#[test]
fn known_values_are_taken() {
    let folder = std::env::temp_dir();
    let (file, folder) = (folder.join("counts"), folder.to_str().unwrap());
    let settings = read(&[
        ("PATH", "/bin"),
        ("PTX_MACHINE_DEVICE", "h100, a100"),
        ("PTX_MACHINE_CHECKS", "off"),
        ("PTX_MACHINE_STEPS", "5"),
        ("PTX_MACHINE_CORES", "3"),
        ("PTX_MACHINE_DRIVER", "13.0"),
        ("PTX_MACHINE_REPLACE", folder),
        ("PTX_MACHINE_COUNT", file.to_str().unwrap()),
    ])
    .unwrap();
    assert_eq!((settings.models, settings.checked, settings.version), (vec![H100, A100], false, 13_000));
    assert_eq!((settings.limits.steps, settings.limits.cores), (5, 3));
    assert_eq!((settings.replace, settings.count, settings.executed), (Some(folder.into()), Some(file), None));
    assert_eq!(settings.profile, None);
    let settings = read(&[("PTX_MACHINE_DEVICE", "rtx4090,b200,h200")]).unwrap();
    assert_eq!(settings.models, [RTX4090, B200, H200]);
    let file = std::env::temp_dir().join("profile.json");
    let settings = read(&[("PTX_MACHINE_DEVICE", "h200"), ("PTX_MACHINE_PROFILE", file.to_str().unwrap())]).unwrap();
    assert_eq!((settings.models, settings.profile), (vec![H200], Some(file)));
    let settings = read(&[("PTX_MACHINE_DEVICE", ""), ("PTX_MACHINE_CHECKS", "on")]).unwrap();
    assert_eq!((settings.models, settings.checked, settings.version), (vec![A100], true, 12_040));
}

#[test]
fn unknown_ones_are_refused_by_name_and_value_with_what_is_allowed() {
    let wrong = [
        ("PTX_MACHINE_DEVICE", "v100", "a100, rtx4090, h100, h200, b200, or a list"),
        ("PTX_MACHINE_DEVICE", "a100,", "a100, rtx4090, h100, h200, b200, or a list"),
        ("PTX_MACHINE_CHECKS", "of", "on or off"),
        ("PTX_MACHINE_STEPS", "many", "1 or more"),
        ("PTX_MACHINE_STEPS", "0", "1 or more"),
        ("PTX_MACHINE_CORES", "65", "from 1 to 64"),
        ("PTX_MACHINE_DRIVER", "12", "such as 12.4"),
        ("PTX_MACHINE_DRIVER", "12.99", "such as 12.4"),
        ("PTX_MACHINE_REPLACE", "/no/such/folder", "a folder that is there"),
        ("PTX_MACHINE_COUNT", "/no/such/folder/file", "a file in a folder that is there"),
        ("PTX_MACHINE_EXECUTED", "/", "a file in a folder that is there"),
        ("PTX_MACHINE_PROFILE", "/no/such/folder/file", "a file in a folder that is there"),
        ("PTX_MACHINE_CHECK", "off", "DEVICE, CHECKS, STEPS, CORES, DRIVER, REPLACE, COUNT, EXECUTED, PROFILE"),
        ("PTX_MACHINE_", "on", "it has DEVICE"),
    ];
    for (name, value, allowed) in wrong {
        let message = read(&[(name, value)]).expect_err(name);
        let known = name.len() > "PTX_MACHINE_".len() && name != "PTX_MACHINE_CHECK";
        let named = if known { format!("{name}={value} is not known") } else { format!("{name} is no variable") };
        assert!(message.starts_with(&named) && message.contains(allowed), "{message}");
        assert_eq!(message.lines().count(), 1);
    }
    let file = std::env::temp_dir().join("profile.json");
    let two =
        read(&[("PTX_MACHINE_DEVICE", "a100,h100"), ("PTX_MACHINE_PROFILE", file.to_str().unwrap())]).unwrap_err();
    assert_eq!(two, "PTX_MACHINE_PROFILE counts on one device; PTX_MACHINE_DEVICE names 2: name one");
    let message = read(&[("PTX_MACHINE_CHECKS", "of\nf")]).unwrap_err();
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn models_agree_with_their_data_sheets() {
    // Bytes of DRAM a second, in both halves of a clock, against the sheets' GB/s; capability; blocks of a multiprocessor.
    let sheets = [
        (A100, 1555, (8, 0), 32),
        (RTX4090, 1008, (8, 9), 24),
        (H100, 3350, (9, 0), 32),
        (H200, 4800, (9, 0), 32),
        (B200, 7672, (10, 0), 32),
    ];
    assert_eq!(sheets.map(|(model, ..)| model), MODELS);
    for (model, gigabytes, capability, blocks) in sheets {
        let found = 2.0 * f64::from(model.memory_clock_khz) * f64::from(model.bus_bits) / 8.0 / 1e6;
        assert!((found / f64::from(gigabytes) - 1.0).abs() < 0.01, "{}: {found}", model.word);
        let [major, minor, most] = [75, 76, 106].map(|which| model.attribute(which));
        assert_eq!((major, minor, most), (Some(capability.0), Some(capability.1), Some(blocks)), "{}", model.word);
        assert_eq!(Model::list(model.word), Some(vec![model]));
    }
}

/// Set in a child.
const CHILD: &str = "PTX_TEST_SETTINGS";

#[test]
fn a_driver_of_wrong_settings_does_not_start() {
    if std::env::var_os(CHILD).is_some() {
        let mut text = std::ptr::null();
        unsafe {
            assert_eq!((cuInit(0), cuDeviceGetCount(&mut 0)), (INVALID_VALUE, NOT_INITIALIZED));
            assert_eq!(cuGetErrorString(INVALID_VALUE, &mut text), SUCCESS);
            let text = CStr::from_ptr(text).to_str().unwrap();
            assert!(text.starts_with("PTX_MACHINE_DEVICE=v100 is not known"), "{text}");
        }
        return;
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "settings::a_driver_of_wrong_settings_does_not_start"])
        .env(CHILD, "1")
        .env("PTX_MACHINE_DEVICE", "v100")
        .status()
        .unwrap();
    assert!(status.success());
}
