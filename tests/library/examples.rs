//! The programs of `tools/examples`, run.

use engine::prelude::*;

use crate::emulator;

#[path = "../../tools/examples/custom_sampler.rs"]
#[allow(dead_code)]
mod custom_sampler;
#[path = "../../tools/examples/own_op.rs"]
#[allow(dead_code)]
mod own_op;
#[path = "../../tools/examples/sample.rs"]
#[allow(dead_code)]
mod sample;
#[test]
fn a_model_draws_in_ten_lines() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("garments.png");
    sample::draw(out.to_str().unwrap()).unwrap();
    let (image, _) = engine::picture::read_png(&out).unwrap();
    assert!(image.width() > 5 * 28 && image.height() > 2 * 28);
}

#[test]
fn a_kernel_is_launched() {
    assert_eq!(own_op::launch_kernel::rows(emulator::device()).unwrap(), [2.0, 2.5, 0.0, 0.5]);
}

#[test]
fn an_own_op_has_the_same_gradient_on_the_cpu_and_by_kernels() {
    let (loss, gradient) = own_op::loss_and_gradient(&Context::cpu()).unwrap();
    // Rows 2, 0, 2 of the table are 5 6, 1 2, 5 6; the gradient of the mean of squares is 2 y / 6.
    assert!((loss - 127.0 / 6.0).abs() < 1e-5, "{loss}");
    let expected = [1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0, 10.0 / 3.0, 4.0];
    assert!(gradient.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5), "{gradient:?}");
    let kernels = own_op::loss_and_gradient(&Context::new(Device::Accelerator(emulator::device()))).unwrap();
    assert!(kernels.1.iter().zip(&gradient).all(|(kernel, cpu)| (kernel - cpu).abs() < 1e-6), "{kernels:?}");
}

#[test]
fn an_own_sampler_draws_garments() {
    let values = custom_sampler::draw(&[1, 8], 10).unwrap();
    // Trousers and a bag: bright on a dark ground.
    for image in values.chunks(28 * 28) {
        let dark = image.iter().filter(|&&value| value < -0.9).count();
        let bright = image.iter().filter(|&&value| value > 0.0).count();
        assert!(dark > 150 && bright > 60, "{dark} dark, {bright} bright pixels");
    }
    // Another plan than DDIM's on the same times gives other images.
    let model = Model::load("unet-fashion-small", &Context::cpu(), DType::F32).unwrap();
    let mut request = model.request([1, 8]);
    (request.batch, request.sampling.num_steps, request.sampling.guidance) = (2, 10, 1.0);
    assert_ne!(model.sample(&request).unwrap().concat(), values);
}
