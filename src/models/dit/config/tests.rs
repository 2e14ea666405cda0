//! Tests of the sizes.

use super::*;

#[test]
fn default_is_the_cifar_transformer() {
    let config = DitConfig::default();
    config.validate().unwrap();
    assert_eq!((config.num_patches(), config.num_tokens(), config.patch_dim()), (64, 65, 48));
    assert_eq!((config.head_dim(), config.interface().num_labels()), (48, 11));
    let wide = DitConfig { image_size: [24, 16].into(), ..config };
    assert_eq!((wide.patches(), wide.num_patches(), wide.interface().image_shape()), ([6, 4], 24, [24, 16, 3]));
}

#[test]
fn each_bad_size_names_its_key_and_advice() {
    let base = DitConfig::default;
    let cases: [(&str, &str, DitConfig); 12] = [
        ("model.image_size", "1…1024", DitConfig { image_size: 0.into(), ..base() }),
        ("model.image_channels", "1 for grey", DitConfig { image_channels: 2, ..base() }),
        ("model.patch_size", "give 4 or 8", DitConfig { patch_size: 5, ..base() }),
        ("model.patch_size", "the width of model.image_size, 18", DitConfig { image_size: [24, 18].into(), ..base() }),
        ("model.patch_size", "the height of model.image_size, 18", DitConfig { image_size: [18, 24].into(), ..base() }),
        ("model.patch_size", "give 3 or 6, or change", DitConfig { image_size: [18, 24].into(), ..base() }),
        ("model.image_size", "1…1024", DitConfig { image_size: [32, 2048].into(), ..base() }),
        ("model.num_heads", "give 6 or 8", DitConfig { num_heads: 7, ..base() }),
        ("model.num_kv_heads", "give 2 or 4", DitConfig { num_kv_heads: 3, ..base() }),
        ("model.num_kv_heads", "give 4, or", DitConfig { num_kv_heads: 16, ..base() }),
        ("model.time_embedding_dim", "even", DitConfig { time_embedding_dim: 127, ..base() }),
        ("model.num_classes", "65535", DitConfig { num_classes: usize::MAX, ..base() }),
    ];
    for (key, advice, config) in cases {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with(key) && message.contains(advice), "{message}");
    }
}
