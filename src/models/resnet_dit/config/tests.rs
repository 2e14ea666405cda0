//! Tests of the sizes.

use super::*;

#[test]
fn tokens_and_decoder_follow_the_feature_map() {
    let base = ResnetDitConfig::default;
    let squares = |sides: &[usize]| sides.iter().copied().map(ImageSize::from).collect::<Vec<_>>();
    let sizes = |config: ResnetDitConfig| {
        config.validate().unwrap();
        (config.feature_size().sides(), config.feature_channels(), config.decoder_sizes())
    };
    assert_eq!(sizes(base()), ([16, 16], 128, squares(&[32])));
    assert_eq!(sizes(ResnetDitConfig { backbone_layers: 1, ..base() }), ([32, 32], 64, squares(&[])));
    assert_eq!(sizes(ResnetDitConfig { backbone_layers: 4, ..base() }), ([4, 4], 512, squares(&[8, 16, 32])));
    let fashion = ResnetDitConfig { image_size: 28.into(), image_channels: 1, backbone_layers: 3, ..base() };
    assert_eq!(sizes(fashion), ([7, 7], 256, squares(&[14, 28])));
    let large = ResnetDitConfig { image_size: 64.into(), backbone_stem: Stem::Imagenet, ..base() };
    assert_eq!(sizes(large), ([8, 8], 128, squares(&[16, 32, 64])));
    let wide = ResnetDitConfig { image_size: [18, 32].into(), backbone_layers: 3, ..base() };
    assert_eq!(sizes(wide), ([5, 8], 256, vec![[9, 16].into(), [18, 32].into()]));
}

#[test]
fn efficientnets_stages_are_layers() {
    let mut config = ResnetDitConfig { backbone: Some("efficientnet-lite0".into()), ..ResnetDitConfig::default() };
    config.follow_backbone();
    config.validate().unwrap();
    let sizes = |config: &ResnetDitConfig| (config.feature_size().sides(), config.feature_channels());
    assert_eq!(sizes(&config), ([16, 16], 24));
    let deep = ResnetDitConfig { backbone_layers: 7, image_size: 224.into(), backbone_stem: Stem::Imagenet, ..config };
    deep.validate().unwrap();
    assert_eq!(sizes(&deep), ([7, 7], 320));
    let other = ResnetDitConfig { backbone_widths: vec![16], ..deep.clone() };
    assert!(other.validate().unwrap_err().to_string().starts_with("model.backbone_widths and"));
    assert!(ResnetDitConfig { backbone_layers: 8, ..deep }.validate().is_err());
}

#[test]
fn each_bad_size_names_its_key() {
    let base = ResnetDitConfig::default;
    for (key, config) in [
        ("model.backbone_layers", ResnetDitConfig { backbone_layers: 5, ..base() }),
        ("model.backbone_layers", ResnetDitConfig { backbone_layers: 0, ..base() }),
        ("model.backbone_widths", ResnetDitConfig { backbone_widths: vec![64], ..base() }),
        ("model.backbone_blocks", ResnetDitConfig { backbone_blocks: vec![2, 0, 2, 2], ..base() }),
        ("model.num_heads", ResnetDitConfig { num_heads: 3, ..base() }),
        ("model.norm_groups", ResnetDitConfig { norm_groups: 7, ..base() }),
        ("model.time_embedding_dim", ResnetDitConfig { time_embedding_dim: 7, ..base() }),
        ("model.null_label", ResnetDitConfig { null_label: true, ..base() }),
    ] {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with(key), "{message}");
    }
}
