//! A test of the tests: one bug at a time is planted in a copy of the project's kernels, and the op's own cases, run as in
//! `tests/kernels.rs`, must fail with the right reason.
//!
//! A bug is an exact replacement in a source; text that is not found exactly once fails the test, so this list stays current. The
//! emulator's checks have their own list, on kernels made for it: `tools/kernel-emulator/tests`.

#[path = "../common/emulator.rs"]
mod emulator;
#[path = "../common/kinds.rs"]
mod kinds;
mod of_guide;
mod of_ops;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine_core::device::emulator::{EmulatorDevice, Order};
use engine_core::ops::case::Case;
use engine_core::ops::cases;
use engine_core::ops::control::Control;
use engine_core::ops::dropout::dropout;
use engine_core::tape::Tape;
use engine_core::tensor::{Context, DType, Device, Program};

const ORDERS: [Order; 3] = [Order::Forward, Order::Reverse, Order::Random(7)];

/// A memory ordering bug shows as a race, as a read of unwritten memory, or as NaNs, depending on the order.
const RACE: &[&str] = &["race", "has written"];
const OUTSIDE: &[&str] = &["outside its"];
const WRONG: &[&str] = &["relative error"];

struct Bug {
    /// The name of its folder.
    name: &'static str,
    /// The op whose cases must fail.
    op: &'static str,
    dtype: DType,
    /// Relative to `kernels/`.
    file: &'static str,
    from: &'static str,
    to: &'static str,
    /// The message must contain one of these.
    words: &'static [&'static str],
}

fn write_if_changed(path: &Path, text: &str) {
    if fs::read_to_string(path).ok().as_deref() != Some(text) {
        fs::write(path, text).unwrap();
    }
}

/// The op's kernels with the bug, compiled. The copy is kept between runs, so that it is compiled once.
fn plant(bug: &Bug) -> PathBuf {
    let (kernels, out) = (
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels")).to_path_buf(),
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("planted"),
    );
    let copy = out.join(bug.name).join("kernels");
    fs::create_dir_all(copy.join("common")).unwrap();
    let mut planted = false;
    let sources = ["", "common"].iter().flat_map(|folder| fs::read_dir(kernels.join(folder)).unwrap());
    for path in sources.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
        let within = path.strip_prefix(&kernels).unwrap();
        let mut text = fs::read_to_string(&path).unwrap();
        if within == Path::new(bug.file) {
            let found = text.matches(bug.from).count();
            assert_eq!(found, 1, "{}: kernels/{} has {:?} {found} times", bug.name, bug.file, bug.from);
            text = text.replace(bug.from, bug.to);
            planted = true;
        }
        write_if_changed(&copy.join(within), &text);
    }
    assert!(planted, "{}: there is no kernels/{}", bug.name, bug.file);
    // The op's own, and the tape's, which end and add gradients.
    let modules = BTreeSet::from([bug.op, "elementwise", "gradient_sums"]);
    let sources: Vec<_> = modules.iter().map(|module| copy.join(format!("{module}.cu"))).collect();
    kernel_emulator::compile_sources(&sources, &copy, &out).unwrap_or_else(|fault| panic!("{}: {fault}", bug.name))
}

fn is_caught(bug: &Bug) {
    is_caught_by(bug, own_cases(bug), |case, device| {
        let check = |&order| case.check_device(&device(order), bug.dtype).err();
        ORDERS.iter().find_map(check).map(|fault| fault.to_string())
    });
}

/// As [`is_caught`], with factors rounded to TF32.
fn is_caught_in_tf32(bug: &Bug) {
    is_caught_by(bug, own_cases(bug), |case, device| {
        case.check_tf32(&device(Order::Forward)).err().map(|fault| fault.to_string())
    });
}

/// As [`is_caught`], by gradient destinations.
fn is_caught_by_wirings(bug: &Bug) {
    is_caught_by(bug, kinds::smallest_of_each_kind(own_cases(bug)), |case, device| {
        case.check_wirings(&device(Order::Forward), bug.dtype).err().map(|fault| fault.to_string())
    });
}

fn own_cases(bug: &Bug) -> Vec<Case> {
    cases().into_iter().filter(|case| case.op == bug.op && !case.large).collect()
}

fn is_caught_by(bug: &Bug, cases: Vec<Case>, check: impl Fn(&Case, &dyn Fn(Order) -> Device) -> Option<String>) {
    let folder = plant(bug);
    let device = |order| {
        let device = Arc::new(EmulatorDevice::load(&folder).unwrap());
        device.set_order(order);
        device.set_tensor_cores(true);
        Device::Accelerator(device)
    };
    let caught = cases.iter().find_map(|case| check(case, &device));
    let message = caught.unwrap_or_else(|| panic!("{}: no case of {} notices", bug.name, bug.op));
    println!("{}: {message}", bug.name);
    assert!(bug.words.iter().any(|word| message.contains(word)), "{}: not for its reason: {message}", bug.name);
}

#[test]
fn a_missing_syncthreads_is_caught() {
    is_caught(&Bug {
        name: "barrier_before_reading",
        op: "assemble_batch",
        dtype: DType::F32,
        file: "assemble_batch.cu",
        from: "    __syncthreads();\n    u32 e = 4",
        to: "    u32 e = 4",
        words: RACE,
    });
    is_caught(&Bug {
        name: "barrier_before_delta",
        op: "attention",
        dtype: DType::BF16,
        file: "common/attention_keys.cuh",
        from: "        if (WHOLE) __syncthreads();\n        if (active)",
        to: "        if (active)",
        words: RACE,
    });
    is_caught(&Bug {
        name: "barrier_in_block_sum",
        op: "mse_loss",
        dtype: DType::F32,
        file: "common/reduce.cuh",
        from: "    __syncthreads();\n    UNROLL for (u32 n = 0; n < N; n++) v[n] = warp_sum(lane",
        to: "    UNROLL for (u32 n = 0; n < N; n++) v[n] = warp_sum(lane",
        words: RACE,
    });
}

/// Only a kernel with two sums is affected.
#[test]
fn a_missing_syncthreads_before_overwriting_is_caught() {
    is_caught(&Bug {
        name: "barrier_behind_block_sum",
        op: "layer_norm",
        dtype: DType::F32,
        file: "common/reduce.cuh",
        from: "block_sum_partial[n * WARP + lane] : 0.0f);\n    __syncthreads();",
        to: "block_sum_partial[n * WARP + lane] : 0.0f);",
        words: RACE,
    });
}

#[test]
fn a_missing_syncwarp_is_caught() {
    is_caught(&Bug {
        name: "syncwarp",
        op: "attention",
        dtype: DType::F32,
        file: "common/attention_fma.cuh",
        from: "        __syncwarp();\n        tile_accumulate(acc, p, v,",
        to: "        tile_accumulate(acc, p, v,",
        words: RACE,
    });
}

#[test]
fn a_missing_async_wait_is_caught() {
    is_caught(&Bug {
        name: "async_wait",
        op: "linear",
        dtype: DType::BF16,
        file: "common/product.cuh",
        from: "    async_wait<MMA_STAGES - 2>();\n",
        to: "",
        words: &["async_wait is missing", "in flight", "race"],
    });
}

#[test]
fn an_unlocked_update_is_caught() {
    // A sum added by every thread of the block, instead of one.
    is_caught(&Bug {
        name: "every_thread_adds",
        op: "mse_loss",
        dtype: DType::F32,
        file: "mse_loss.cu",
        from: "    if (threadIdx.x == 0) loss[0] = scale",
        to: "    loss[0] += scale",
        words: RACE,
    });
    // A gradient scattered into the table by the items of a batch, instead of gathered by row.
    is_caught(&Bug {
        name: "scattered_gradient",
        op: "embedding",
        dtype: DType::BF16,
        file: "embedding.cu",
        from: "    dtable[element] = sum;",
        to: "    dtable[element % width] += sum;",
        words: RACE,
    });
}

#[test]
fn a_bound_that_is_off_by_one_is_caught() {
    is_caught(&Bug {
        name: "one_thread_too_many",
        op: "embedding",
        dtype: DType::F32,
        file: "embedding.cu",
        from: "if (element >= batch * width)",
        to: "if (element > batch * width)",
        words: OUTSIDE,
    });
    is_caught(&Bug {
        name: "one_sample_too_many",
        op: "tokens",
        dtype: DType::BF16,
        file: "tokens.cu",
        from: "last = min_of(first + SEQUENCES, batch);",
        to: "last = min_of(first + SEQUENCES, batch + 1);",
        words: OUTSIDE,
    });
}

/// The row below an image is the next sample's first, or beyond the last sample.
#[test]
fn a_border_that_is_off_by_one_is_caught() {
    for (name, dtype) in [("border_f32", DType::F32), ("border_bf16", DType::BF16)] {
        is_caught(&Bug {
            name,
            op: "conv2d",
            dtype,
            file: "common/patches.cuh",
            from: "if (y >= at.height || x >= at.width) return nullptr;",
            to: "if (y > at.height || x >= at.width) return nullptr;",
            words: OUTSIDE,
        });
    }
    // Within the extent: the column right of the image is the next row's first.
    is_caught(&Bug {
        name: "border_of_the_gradient",
        op: "conv2d",
        dtype: DType::BF16,
        file: "common/patches.cuh",
        from: "if (y >= at.out_height || x >= at.out_width) continue;",
        to: "if (y >= at.out_height || x > at.out_width) continue;",
        words: &["outside its", "relative error"],
    });
}

#[test]
fn a_wrong_stride_is_caught() {
    is_caught(&Bug {
        name: "stride_of_the_window",
        op: "conv2d",
        dtype: DType::F32,
        file: "common/patches.cuh",
        from: "x = (yx & 0xffffu) * at.stride + tap.x - at.pad_width;",
        to: "x = (yx & 0xffffu) + tap.x - at.pad_width;",
        words: WRONG,
    });
    // Only windows that are not square detect it.
    is_caught(&Bug {
        name: "padding_of_the_other_axis",
        op: "conv2d",
        dtype: DType::F32,
        file: "common/patches.cuh",
        from: "+ tap.x - at.pad_width;",
        to: "+ tap.x - at.pad_height;",
        words: WRONG,
    });
    is_caught(&Bug {
        name: "stride_of_a_depthwise_gradient",
        op: "depthwise_conv2d",
        dtype: DType::F32,
        file: "depthwise_conv2d.cu",
        from: "if (ox % stride != 0 || ox / stride >= cols) continue;",
        to: "if (ox / stride >= cols) continue;",
        words: WRONG,
    });
    // The taps of a gradient with few channels run the other way.
    is_caught(&Bug {
        name: "taps_of_a_thin_gradient",
        op: "conv2d",
        dtype: DType::F32,
        file: "common/thin.cuh",
        from: "(8 - k % 9) * N + k / 9",
        to: "k % 9 * N + k / 9",
        words: WRONG,
    });
    // Within the extent, so that only the values show it.
    is_caught(&Bug {
        name: "stride_of_a_row",
        op: "tokens",
        dtype: DType::F32,
        file: "tokens.cu",
        from: "load_piece(dy + (u64)b * sequence + at, v);",
        to: "load_piece(dy + (u64)b * 4 + at, v);",
        words: WRONG,
    });
}

#[test]
fn a_forgotten_term_is_caught() {
    // A pixel that an odd enlargement uses once more than the others.
    is_caught(&Bug {
        name: "copies_of_a_pixel",
        op: "conv2d",
        dtype: DType::BF16,
        file: "common/patches.cuh",
        from: "ceil_div((x + 1) * at.width, at.source_width) - first_x",
        to: "at.width / at.source_width",
        words: WRONG,
    });
    // A head's columns that a warp has beside its first 16.
    is_caught(&Bug {
        name: "further_columns_of_a_head",
        op: "attention",
        dtype: DType::BF16,
        file: "common/attention_keys.cuh",
        from: "u32 step = warp / 2 + i * (warps / 2);",
        to: "u32 step = warp / 2 + i;",
        words: &["race", "relative error"],
    });
    // The last split of the weight's gradient.
    is_caught(&Bug {
        name: "last_split",
        op: "conv2d",
        dtype: DType::F32,
        file: "gradient_sums.cu",
        from: "for (u32 part = 1; part < sum.parts; part++)",
        to: "for (u32 part = 1; part + 1 < sum.parts; part++)",
        words: WRONG,
    });
    // Of the second sum of a launch, its own first block; and the part behind every eighth.
    is_caught(&Bug {
        name: "first_block_of_a_sum",
        op: "layer_norm",
        dtype: DType::F32,
        file: "gradient_sums.cu",
        from: "            first = begin;",
        to: "            first = 0;",
        words: WRONG,
    });
    is_caught(&Bug {
        name: "parts_of_other_warps",
        op: "depthwise_conv2d",
        dtype: DType::BF16,
        file: "gradient_sums.cu",
        from: "for (u32 part = warp; part < sum.parts; part += WARPS)",
        to: "for (u32 part = warp; part < min_of(sum.parts, WARPS); part += WARPS)",
        words: WRONG,
    });
}

#[test]
fn an_unwritten_tail_is_caught() {
    is_caught(&Bug {
        name: "last_elements",
        op: "mse_loss",
        dtype: DType::F32,
        file: "mse_loss.cu",
        from: "    if (e >= elements) return;",
        to: "    if (e + 4 > elements) return;",
        words: WRONG,
    });
    is_caught(&Bug {
        name: "last_token",
        op: "tokens",
        dtype: DType::BF16,
        file: "tokens.cu",
        from: "    if (at >= sequence) return;\n    bool of_token",
        to: "    if (at + N >= sequence) return;\n    bool of_token",
        words: WRONG,
    });
}

#[test]
fn a_step_number_baked_into_a_kernel_is_caught() {
    is_caught(&Bug {
        name: "constant_step",
        op: "noise_step",
        dtype: DType::F32,
        file: "noise_step.cu",
        from: "step = control[CONTROL_STEP];",
        to: "step = 1;",
        words: WRONG,
    });
    is_caught(&Bug {
        name: "constant_learning_rate",
        op: "adamw",
        dtype: DType::F32,
        file: "adamw.cu",
        from: "f32 rate = control_f32(control, CONTROL_LEARNING_RATE);",
        to: "f32 rate = 1e-3f;",
        words: WRONG,
    });
    // The copy in bf16, of which lanes exchange halves.
    is_caught(&Bug {
        name: "halves_of_a_copy",
        op: "adamw",
        dtype: DType::BF16,
        file: "adamw.cu",
        from: "store16(reinterpret_cast<u32*>(to + half * 4 * WARP + 4 * (lane - half)), words);",
        to: "store16(reinterpret_cast<u32*>(to + half * 4 * WARP + 4 * lane), words);",
        words: &["relative error", "race", "aligned"],
    });
}

/// The mask after each of four runs of a program that draws it: from the control buffer, or, with the bug, from a launch argument.
fn four_draws(graphs: bool, baked_in: bool) -> Vec<Vec<f32>> {
    let context = Context::new(Device::Accelerator(emulator::device()));
    let (x, y) = (context.tensor(&[1f32; 32], [2, 16]).unwrap(), context.zeros([2, 16], DType::F32).unwrap());
    let control = Control::buffer(&context).unwrap();
    let step = Cell::new(0);
    let body = || {
        let tape = Tape::inference(&context);
        let seed = if baked_in { step.get() } else { 0 };
        y.copy_from(dropout(&tape, &tape.constant(&x), 0.5, seed, 0, &control)?.tensor())
    };
    let mut program = Program::plan(&context, body).unwrap();
    program.set_graphs(graphs);
    (0..4u32)
        .map(|number| {
            step.set(u64::from(number));
            let first_item = if baked_in { 0 } else { 2 * number };
            control.upload(&Control { first_item, ..Control::default() }.words()).unwrap();
            program.run(body).unwrap();
            y.download::<f32>().unwrap()
        })
        .collect()
}

/// The comparison of `tests/device/main.rs` for a whole step.
#[test]
fn a_step_number_baked_into_a_launch_is_caught() {
    let right = four_draws(false, false);
    assert!((1..4).all(|number| right[number] != right[0]), "each step draws its own");
    assert_eq!(four_draws(true, false), right);
    let (eager, replayed) = (four_draws(false, true), four_draws(true, true));
    assert_ne!(eager, replayed);
    assert_eq!(eager[..2], replayed[..2], "the capture itself runs with its own step");
    assert!(replayed[1..].iter().all(|mask| *mask == replayed[1]), "a replay repeats the captured argument");
}
