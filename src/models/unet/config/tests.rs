//! Tests of the sizes.

use super::DownsamplePadding::Same;
use super::*;

#[test]
fn levels_halve_and_round_up() {
    let config = UnetConfig { image_size: 28.into(), channels: vec![64, 128, 256, 512], ..UnetConfig::default() };
    assert_eq!(config.sizes(), [28, 14, 7, 4].map(ImageSize::from));
    let wide = UnetConfig { image_size: [18, 32].into(), ..config };
    assert_eq!(wide.sizes(), [[18, 32], [9, 16], [5, 8], [3, 4]].map(ImageSize::from));
    let config = UnetConfig::default();
    config.validate().unwrap();
    assert_eq!([0, 1, 2].map(|level| config.has_attention(level)), [false, true, true]);
    assert_eq!(config.interface().num_labels(), 0);
}

#[test]
fn each_bad_size_names_its_key_and_advice() {
    let base = UnetConfig::default;
    let cases: [(&str, &str, UnetConfig); 16] = [
        ("model.image_size", "1…1024", UnetConfig { image_size: 0.into(), ..base() }),
        ("model.image_channels", "1 for grey", UnetConfig { image_channels: 2, ..base() }),
        ("model.channels", "[64, 128, 256]", UnetConfig { channels: vec![], ..base() }),
        ("model.channels", "1…4096", UnetConfig { channels: vec![64, 0], ..base() }),
        ("model.channels", "at most 4", UnetConfig { image_size: 8.into(), channels: vec![8; 5], ..base() }),
        (
            "model.channels",
            "a width of 8 pixels",
            UnetConfig { image_size: [64, 8].into(), channels: vec![8; 5], ..base() },
        ),
        (
            "model.channels",
            "a height of 8 pixels",
            UnetConfig { image_size: [8, 64].into(), channels: vec![8; 5], ..base() },
        ),
        (
            "model.downsample_padding",
            "symmetric",
            UnetConfig { image_size: [32, 18].into(), attention_sizes: vec![], downsample_padding: Same, ..base() },
        ),
        ("model.norm_groups", "give 6 or 9", UnetConfig { channels: vec![18], image_size: 16.into(), ..base() }),
        ("model.num_heads", "give 2 or 4", UnetConfig { num_heads: 3, ..base() }),
        ("model.attention_sizes", "32, 16, 8", UnetConfig { attention_sizes: vec![4], ..base() }),
        ("model.time_embedding_dim", "even", UnetConfig { time_embedding_dim: 127, ..base() }),
        ("model.dropout", "0.1 is usual", UnetConfig { dropout: 1.0, ..base() }),
        ("model.num_classes", "0…65535", UnetConfig { num_classes: usize::MAX, ..base() }),
        ("model.null_label", "false", UnetConfig { null_label: true, ..base() }),
        ("model.res_blocks", "1…16", UnetConfig { res_blocks: 0, ..base() }),
    ];
    for (key, advice, config) in cases {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with(key) && message.contains(advice), "{message}");
    }
}
