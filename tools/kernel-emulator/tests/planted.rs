//! Planted bugs and their correct twins: a test of the tests. Each bug is found in every order, and its message names the
//! thread and the place.

use std::path::Path;
use std::sync::OnceLock;

use kernel_emulator::{Argument, Emulator, Grid, Options, Order, Report, advice, compile_sources};

const ORDERS: [Order; 4] = [Order::Forward, Order::Reverse, Order::Random(1), Order::Random(99)];

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let files = ["planted", "products", "philox"].map(|name| root.join(format!("tests/kernels/{name}.cu")));
        let kernels = root.join("../../kernels");
        let folder = compile_sources(&files, &kernels, Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
        Emulator::load(&folder).unwrap()
    })
}

#[test]
fn a_kernel_that_does_not_compile_is_to_be_fixed() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("refused");
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("refused.cu");
    let source = "#include \"common/entry.cuh\"\n\nENTRY(refused, (64), f32, (Out<T> y), nothing(y))\n";
    std::fs::write(&file, source).unwrap();
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let fault = compile_sources(&[file], &kernels, &folder).unwrap_err();
    assert!(fault.contains("refused.cu") && fault.contains("nothing"), "{fault}");
    assert_eq!(advice(&fault), "fix the kernel; the compiler's message is above");
    let absent = "no C++ compiler (c++ and g++ does not run): install g++ or name one in CXX";
    assert_eq!(advice(absent), "install a C++ compiler (g++ or clang++)");
}

fn ramp(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32 + 1.0).collect()
}

/// Runs `launch(order)` in every order; each must fail and its message contain all of `words`.
fn caught(words: &[&str], launch: impl Fn(&Options) -> Result<Report, String>) {
    for order in ORDERS {
        let error = launch(&Options { order, find_unwritten: false }).expect_err(&format!("{words:?} in {order:?}"));
        println!("{error}");
        for word in words.iter().chain(&["block (", "thread ("]) {
            assert!(error.contains(word), "{order:?}: {error} should name {word}");
        }
    }
}

/// Runs `launch(order)` in every order; it must succeed and leave nothing unwritten in argument 0.
fn passes(launch: impl Fn(&Options) -> Result<Report, String>) {
    for order in ORDERS {
        let report = launch(&Options { order, find_unwritten: true }).unwrap_or_else(|e| panic!("{order:?}: {e}"));
        assert_eq!(report.unwritten(0), None);
    }
}

fn xy(
    kernel: &str,
    grid: Grid,
    n: usize,
    bug: u32,
    options: &Options,
    expect: impl Fn(usize) -> f32,
) -> Result<Report, String> {
    let (x, mut y) = (ramp(n), vec![f32::NAN; n]);
    let report =
        emulator().launch(kernel, grid, [Argument::write(&mut y), Argument::read(&x), Argument::U32(bug)], options);
    match &report {
        Ok(_) => y.iter().enumerate().for_each(|(i, &v)| assert_eq!(v, expect(i), "{kernel} {i}")),
        Err(_) => assert!(y.iter().all(|v| v.is_nan()), "a failed launch changes nothing"),
    }
    report
}

#[test]
fn missing_barrier() {
    let run = |bug| {
        move |o: &Options| {
            xy("planted_barrier", Grid::linear(3, 64), 192, bug, o, |i| (i / 64 * 64 + 64 - i % 64) as f32)
        }
    };
    passes(run(0));
    // Depending on the order the tile is seen unwritten or being written.
    for order in ORDERS {
        let error = run(1)(&Options { order, ..Options::default() }).unwrap_err();
        assert!(error.contains("tile["), "{error}");
        assert!(error.contains("race") || error.contains("no thread of the block has written"), "{error}");
    }
    caught(&["tile[64]", "outside its 64 elements", "planted.cu:"], |o| {
        let (x, mut y) = (ramp(64), vec![0.0; 64]);
        emulator().launch(
            "planted_barrier",
            Grid::linear(1, 64),
            [Argument::write(&mut y), Argument::read(&x), Argument::U32(2)],
            o,
        )
    });
}

#[test]
fn missing_barrier_before_overwriting() {
    let run = |bug| {
        move |o: &Options| xy("planted_overwrite", Grid::linear(1, 64), 64, bug, o, |i| ((i + 2) % 64 + 1) as f32)
    };
    passes(run(0));
    caught(&["race", "tile[", "__syncthreads between"], run(1));
}

#[test]
fn missing_syncwarp() {
    let run = |bug| {
        move |o: &Options| {
            xy("planted_warp_barrier", Grid::linear(1, 64), 64, bug, o, |i| (i / 32 * 32 + 32 - i % 32) as f32)
        }
    };
    passes(run(0));
    for bug in [1, 2] {
        for order in ORDERS {
            let error = run(bug)(&Options { order, ..Options::default() }).unwrap_err();
            assert!(error.contains("tile["), "{error}");
        }
    }
    // The shuffle makes the lanes meet, so the values would be right: only the order of memory is missing.
    caught(&["race", "tile[", "__syncwarp"], run(3));
}

#[test]
fn groups_of_lanes() {
    let run = |bug| {
        move |o: &Options| {
            let x = ramp(32);
            let mut v = x.clone();
            for _ in 0..5 {
                let old = v.clone();
                (0..32).for_each(|t| v[t] = old[t / 8 * 8 + (t + 1) % 8] + old[t / 8 * 8]);
            }
            xy("planted_group_barrier", Grid::linear(1, 32), 32, bug, o, |i| v[i])
        }
    };
    passes(run(0));
    caught(&["race", "tile["], run(1));
}

#[test]
fn asynchronous_copies() {
    let run = |bug: u32| {
        move |o: &Options| {
            let (x, mut y) = (ramp(5 * 128), vec![f32::NAN; 5 * 128]);
            let arguments = [Argument::write(&mut y), Argument::read(&x), Argument::U32(5), Argument::U32(bug)];
            let report = emulator().launch("planted_async", Grid::linear(1, 32).with_shared(1024), arguments, o);
            if report.is_ok() {
                assert!(y.iter().zip(&x).all(|(y, x)| *y == 2.0 * x));
            }
            report
        }
    };
    passes(run(0));
    caught(&["async_wait is missing", "dynamic shared memory"], run(1));
    caught(&["async_wait is missing"], run(3));
    for order in ORDERS {
        let error = run(2)(&Options { order, ..Options::default() }).unwrap_err();
        assert!(["race", "in flight", "has written"].iter().any(|word| error.contains(word)), "{error}");
    }
    for n in [0usize, 1, 5, 30, 32] {
        passes(|o| {
            let (x, mut y) = (ramp(n), vec![f32::NAN; 32]);
            let x_argument = if n == 0 { Argument::Null } else { Argument::read(&x) };
            let report = emulator().launch(
                "planted_async_zero_fill",
                Grid::linear(1, 32),
                [Argument::write(&mut y), x_argument, Argument::U32(n as u32)],
                o,
            );
            (0..32).for_each(|i| assert_eq!(y[i], if i < n { x[i] } else { 0.0 }, "{report:?}"));
            report
        });
    }
}

#[test]
fn unlocked_updates() {
    let run = |bug: u32| {
        move |o: &Options| {
            let (x, mut y, mut partial, mut ticket) = (ramp(1000), vec![0.0f32; 8], vec![f32::NAN; 8], [0u32]);
            let arguments = [
                Argument::write(&mut y[..if bug == 1 { 8 } else { 1 }]),
                Argument::write(&mut partial),
                Argument::write(&mut ticket),
                Argument::read(&x),
                Argument::U32(1000),
                Argument::U32(bug),
            ];
            let report = emulator().launch("planted_sum_blocks", Grid::linear(8, 128), arguments, o);
            if report.is_ok() {
                assert_eq!((y[0], ticket[0]), (500_500.0, 0));
            }
            report
        }
    };
    passes(run(0));
    caught(&["race", "y["], run(1));
    caught(&["race", "y[0]", "block (", "__threadfence"], run(2));
    caught(&["race", "partial["], run(3));
    caught(&["race", "partial["], run(4));
}

#[test]
fn extents_and_constness() {
    let (rows, cols) = (37, 5);
    let run = |bug: u32| {
        move |o: &Options| {
            let (x, mut y) = (ramp(rows * cols), vec![f32::NAN; rows]);
            let arguments = [
                Argument::write(&mut y),
                Argument::read(&x),
                Argument::U32(rows as u32),
                Argument::U32(cols as u32),
                Argument::U32(bug),
            ];
            emulator().launch("planted_row_sums_f32", Grid::linear(2, 32), arguments, o)
        }
    };
    passes(run(0));
    caught(&["planted_row_sums_f32", "reads x[185] (4 bytes)", "outside its 185 elements", "thread (5,0,0)"], run(1));
    caught(&["reads x[", "outside its 185 elements"], run(2));
    caught(&["writes x[", "may only read"], run(4));
    for order in ORDERS {
        let report = run(3)(&Options { order, find_unwritten: true }).unwrap();
        let unwritten = report.unwritten(0).expect("the last row");
        assert_eq!((unwritten.count, unwritten.first), (1, 36));
    }
    let error = run(5)(&Options::default()).unwrap_err();
    assert!(error.contains("reads x[-1]"), "{error}");
    // bf16: two bytes an element, and the neighbours of an odd row are other threads'.
    let bf16: Vec<u16> = ramp(rows * cols).iter().map(|v| (v.to_bits() >> 16) as u16).collect();
    let mut y = vec![0u16; rows];
    let mut launch = |bug| {
        let sizes = [rows as u32, cols as u32, bug].map(Argument::U32);
        let arguments = [Argument::write(&mut y), Argument::read(&bf16)].into_iter().chain(sizes);
        emulator().launch("planted_row_sums_bf16", Grid::linear(2, 32), arguments, &Options::default())
    };
    launch(0).unwrap();
    assert!(launch(1).unwrap_err().contains("reads x[185] (2 bytes)"));
}

#[test]
fn shared_memory() {
    let run = |bug| {
        move |o: &Options| {
            xy("planted_tile", Grid::linear(1, 32).with_shared(128), 32, bug, o, |i| ((i ^ 1) + 1) as f32)
        }
    };
    passes(run(0));
    caught(&["reads dynamic shared memory at byte 68, which no thread of the block has written"], run(1));
    caught(&["reads dynamic shared memory at byte 128", "outside its 128 bytes"], run(2));
}

#[test]
fn divergence() {
    let run = |bug| {
        move |o: &Options| xy("planted_meet", Grid::linear(1, 64), 64, bug, o, |i| if i < 32 { 32.0 } else { 64.0 })
    };
    passes(run(0));
    caught(&["divergent barrier", "thread (40,0,0) has returned"], run(1));
    caught(&["divergent barrier", "planted.cu:"], run(2));
    caught(&["shuffles from lane", "does not take part"], run(3));
    caught(&["divergent warp collective", "a shuffle", "waits at __syncthreads"], run(4));
}

#[test]
fn lanes_at_different_instructions() {
    let run = |bug| {
        move |o: &Options| {
            let mut y = vec![f32::NAN; 64];
            let arguments = [Argument::write(&mut y), Argument::U32(bug)];
            let report = emulator().launch("planted_parted", Grid::linear(1, 64), arguments, o);
            if report.is_ok() {
                // 16 products of ones, and a sum over the block with a two.
                assert!(y.iter().all(|&v| v == 16.0 + 65.0), "{y:?}");
            }
            report
        }
    };
    passes(run(0));
    caught(&["divergent warp collective", "waits at mma", "kernels/planted.cu:"], run(1));
    caught(&["divergent warp collective", "waits at ldmatrix", "kernels/planted.cu:"], run(2));
    caught(&["divergent barrier", "reduce.cuh:", "kernels/planted.cu:"], run(3));
}

/// A GPU cuts off the bits that TF32 has no room for.
#[test]
fn factors_that_are_not_rounded() {
    let run = |bug| {
        move |o: &Options| {
            let mut y = vec![f32::NAN; 32];
            let arguments = [Argument::write(&mut y), Argument::F32(1.0 + 5.0 / 8192.0), Argument::U32(bug)];
            let report = emulator().launch("planted_unrounded", Grid::linear(1, 32), arguments, o);
            if report.is_ok() {
                assert_eq!(y, [8.0 * (1.0 + 8.0 / 8192.0); 32]);
            }
            report
        }
    };
    passes(run(0));
    caught(&["mma of TF32 gets 0x3f801400", "not rounded", "kernels/planted.cu:"], run(1));
}

/// A kernel without an end is one with a fault, not one that the caller waits for.
#[test]
fn endless_kernels() {
    let run = |bug| {
        move |o: &Options| {
            let mut y = vec![0u32; 32];
            emulator().launch("planted_endless", Grid::linear(1, 32), [Argument::write(&mut y), Argument::U32(bug)], o)
        }
    };
    passes(run(0));
    for (bug, words) in [(1, "planted.cu:"), (2, "thread (3,0,0)"), (3, "planted.cu:")] {
        let error = run(bug)(&Options::default()).unwrap_err();
        println!("{error}");
        assert!(error.contains("planted_endless") && error.contains("does not end"), "{error}");
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn undefined_behaviour() {
    let run = |bug: i32| {
        move |o: &Options| {
            let (x, mut y) = ((1..33).collect::<Vec<i32>>(), vec![0; 32]);
            emulator().launch(
                "planted_undefined",
                Grid::linear(1, 32),
                [Argument::write(&mut y), Argument::read(&x), Argument::I32(bug)],
                o,
            )
        }
    };
    passes(run(0));
    caught(&["undefined behaviour", "overflows 'int'", "planted.cu:"], run(1));
    caught(&["undefined behaviour", "shifted by"], run(2));
    caught(&["undefined behaviour", "is outside 'int [4]'"], run(3));
    caught(&["undefined behaviour", "/ 0", "thread (0,0,0)"], run(4));
}

#[test]
fn vector_alignment() {
    // Eight spare elements, so that a 16-byte boundary can be found in them whatever the allocator did.
    let x = ramp(80);
    let start = x.as_ptr().align_offset(16);
    let run = |first: usize, offset: u32| {
        let x = &x;
        move |o: &Options| {
            let mut y = vec![0.0f32; 80];
            let y_start = y.as_ptr().align_offset(16);
            let arguments = [
                Argument::write(&mut y[y_start..y_start + 64]),
                Argument::read(&x[start + first..start + first + 64]),
                Argument::U32(64),
                Argument::U32(offset),
            ];
            emulator().launch("planted_vectors_f32", Grid::linear(1, 32), arguments, o)
        }
    };
    passes(run(0, 0));
    caught(&["misaligned", "16 bytes", "x[", "vector.cuh:"], run(0, 1));
    // A slice that begins between boundaries.
    caught(&["misaligned", "x["], run(2, 0));
    let halves: Vec<u16> = (0..80).collect();
    let start = halves.as_ptr().align_offset(16);
    let mut y = [0u16; 80];
    let y_start = y.as_ptr().align_offset(16);
    let arguments = [
        Argument::write(&mut y[y_start..y_start + 64]),
        Argument::read(&halves[start..start + 64]),
        Argument::U32(64),
        Argument::U32(0),
    ];
    emulator().launch("planted_vectors_bf16", Grid::linear(1, 32), arguments, &Options::default()).unwrap();
    assert_eq!(y[y_start..y_start + 64], halves[start..start + 64]);
}

#[test]
fn cells_of_two_bytes() {
    let run = |bug: u32| {
        move |o: &Options| {
            let mut y = vec![0u16; 32];
            emulator().launch("planted_halves", Grid::linear(1, 32), [Argument::write(&mut y), Argument::U32(bug)], o)
        }
    };
    passes(run(0));
    caught(&["race", "tile["], run(1));
}

#[test]
fn other_primitives() {
    let run = |bug: u32| {
        move |o: &Options| {
            let mut y = vec![0u32; 64];
            let report = emulator().launch(
                "planted_various",
                Grid::linear(2, 64),
                [Argument::write(&mut y), Argument::U32(64), Argument::U32(bug)],
                o,
            );
            if report.is_ok() {
                assert!(y.iter().all(|&v| v == 64 + 32_000 + 10 + 100 + 1), "{y:?}");
            }
            report
        }
    };
    // Both blocks write all of y: a race between blocks; with one block it is clean.
    caught(&["race", "y["], run(0));
    let mut y = vec![0u32; 64];
    emulator()
        .launch(
            "planted_various",
            Grid::linear(1, 64),
            [Argument::write(&mut y), Argument::U32(64), Argument::U32(0)],
            &Options::default(),
        )
        .unwrap();
    assert!(y.iter().all(|&v| v == 64 + 32_000 + 10 + 100 + 1), "{y:?}");
    caught(&["local variable of another thread"], run(1));
    caught(&["stack"], run(2));
    caught(&["__trap"], run(3));
}

#[test]
fn refused_launches() {
    let mut y = vec![0.0f32; 64];
    let x = ramp(64);
    let options = Options::default();
    let launch = |name: &str, threads, arguments: Vec<Argument>| {
        emulator().launch(name, Grid::linear(1, threads), arguments, &options).unwrap_err()
    };
    assert!(launch("no_such", 1, vec![]).contains("no such kernel"));
    assert!(
        launch("planted_barrier", 65, vec![Argument::write(&mut y), Argument::read(&x), Argument::U32(0)])
            .contains("__launch_bounds__")
    );
    assert!(
        launch("planted_barrier", 64, vec![Argument::read(&x), Argument::read(&x), Argument::U32(0)])
            .contains("lent for reading")
    );
    assert!(
        launch("planted_barrier", 64, vec![Argument::write(&mut y), Argument::read(&x), Argument::I32(0)])
            .contains("argument bug: is a u32")
    );
    assert!(
        launch("planted_barrier", 64, vec![Argument::write(&mut y), Argument::read(&x)]).contains("takes 3 arguments")
    );
}
