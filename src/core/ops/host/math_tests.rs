use super::{f32 as single, f64 as double};

/// Error in units of the last place of the `f32` result.
fn ulps(ours: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if ours.to_bits() == rounded.to_bits() || (ours.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    let exponent = exact.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    (f64::from(ours) - exact).abs() / (exponent - 23.0).exp2()
}

/// The worst error in ulp over `count` points of `[low, high]`.
fn worst(low: f32, high: f32, ours: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
    let count = 200_000;
    let points = (0..=count).map(|i| low + (high - low) * (i as f32 / count as f32));
    points.map(|x| ulps(ours(x), exact(f64::from(x)))).fold(0.0, f64::max)
}

#[test]
fn f32_is_within_a_few_ulp() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for (name, error, limit) in [
        ("exp", worst(-104.0, 88.7, single::exp, f64::exp), 1.5),
        ("exp near 0", worst(-1.0, 1.0, single::exp, f64::exp), 1.5),
        ("tanh", worst(-10.0, 10.0, single::tanh, f64::tanh), 2.0),
        ("tanh near 0", worst(-1e-3, 1e-3, single::tanh, f64::tanh), 2.0),
        ("sigmoid", worst(-80.0, 80.0, single::sigmoid, sigmoid), 3.0),
        ("ln", worst(1e-6, 4.0, single::ln, f64::ln), 1.5),
        ("ln of large", worst(1.0, 1e30, single::ln, f64::ln), 1.5),
        ("ln of small", worst(0.0, 1e-30, single::ln, f64::ln), 1.5),
        ("ln of subnormal", worst(0.0, 1e-38, single::ln, f64::ln), 1.5),
    ] {
        assert!(error <= limit, "{name}: {error} ulp");
    }
}

#[test]
fn f32_sine_and_cosine_are_within_an_ulp_of_one() {
    for reach in [4.0, 100.0, 1000.0, 20_000.0] {
        let count = 100_000;
        for x in (0..=count).map(|i| reach * (2.0 * i as f32 / count as f32 - 1.0)) {
            let (sin, cos) = single::sin_cos(x);
            let error = (f64::from(sin) - f64::from(x).sin()).abs().max((f64::from(cos) - f64::from(x).cos()).abs());
            assert!(error <= 1.2e-7, "{x}: {error}");
        }
    }
    for u in (0..=100_000).map(|i| i as f32 / 100_000.0) {
        let (sin, cos) = single::sin_cos_turns(u);
        let angle = f64::from(u) * std::f64::consts::TAU;
        let error = (f64::from(sin) - angle.sin()).abs().max((f64::from(cos) - angle.cos()).abs());
        assert!(error <= 1.5e-7, "{u} turns: {error}");
    }
}

#[test]
fn f64_is_within_1e_15() {
    let relative = |ours: f64, exact: f64| if ours == exact { 0.0 } else { ((ours - exact) / exact).abs() };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for i in 0..=100_000 {
        let x = (i as f64 / 100_000.0 - 0.5) * 60.0;
        for (name, ours, exact) in [
            ("exp", double::exp(x), x.exp()),
            ("tanh", double::tanh(x), x.tanh()),
            ("tanh near 0", double::tanh(x / 100.0), (x / 100.0).tanh()),
            ("sigmoid", double::sigmoid(x), sigmoid(x)),
            ("ln", double::ln(x.abs()), x.abs().ln()),
            ("ln near 1", double::ln(1.0 + x / 100.0), (1.0 + x / 100.0).ln()),
        ] {
            assert!(relative(ours, exact) <= 1e-15, "{name}({x}): {ours} not {exact}");
        }
        let (sin, cos) = double::sin_cos(x * 100.0);
        assert!((sin - (x * 100.0).sin()).abs() <= 5e-16 && (cos - (x * 100.0).cos()).abs() <= 5e-16, "sin_cos({x})");
    }
}

#[test]
fn the_ends_of_the_range() {
    assert_eq!(single::exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(single::exp(-200.0), 0.0);
    assert_eq!(single::exp(0.0), 1.0);
    assert_eq!(single::exp(100.0), f32::INFINITY);
    assert_eq!(double::exp(f64::NEG_INFINITY), 0.0);
    assert_eq!(double::exp(0.0), 1.0);
    assert_eq!(double::exp(1e9), f64::INFINITY);
    assert_eq!(single::ln(0.0), f32::NEG_INFINITY);
    assert_eq!(single::ln(1.0), 0.0);
    assert_eq!(single::ln(f32::INFINITY), f32::INFINITY);
    assert_eq!(double::ln(0.0), f64::NEG_INFINITY);
    assert_eq!(double::ln(f64::INFINITY), f64::INFINITY);
    assert!(single::ln(-1.0).is_nan() && double::ln(-1.0).is_nan());
    assert!(single::exp(f32::NAN).is_nan() && single::tanh(f32::NAN).is_nan() && single::ln(f32::NAN).is_nan());
    assert!(double::exp(f64::NAN).is_nan() && double::tanh(f64::NAN).is_nan() && double::ln(f64::NAN).is_nan());
    assert_eq!((single::tanh(50.0), single::tanh(-50.0)), (1.0, -1.0));
    assert_eq!((single::sigmoid(200.0), single::sigmoid(-200.0)), (1.0, 0.0));
}
