//! The presets that come with the engine: YAML files in `presets/`, embedded.

/// A named configuration.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name that `--preset` takes.
    pub name: &'static str,
    /// A one-line description of its purpose.
    pub description: &'static str,
    /// The YAML text: the differences from [`Config::default`](super::Config::default).
    pub yaml: &'static str,
}

/// All presets; the first is the default of `engine train`.
pub fn presets() -> &'static [Preset] {
    &[
        Preset {
            name: "quickstart",
            description: "about 1 M parameters on the built-in shapes: minutes on a laptop's CPU",
            yaml: include_str!("presets/quickstart.yaml"),
        },
        Preset {
            name: "dit-cifar10",
            description: "diffusion transformer with grouped-query attention on CIFAR-10, 19.1 M parameters",
            yaml: include_str!("presets/dit-cifar10.yaml"),
        },
        Preset {
            name: "dit-fashion",
            description: "diffusion transformer on Fashion-MNIST, 28x28 grey",
            yaml: include_str!("presets/dit-fashion.yaml"),
        },
        Preset {
            name: "ddpm-cifar10",
            description: "DDPM's U-Net on CIFAR-10 without labels, 15.8 M parameters",
            yaml: include_str!("presets/ddpm-cifar10.yaml"),
        },
        Preset {
            name: "ddpm-cifar10-paper",
            description: "the network of Ho et al. 2020 on CIFAR-10, 35.7 M parameters",
            yaml: include_str!("presets/ddpm-cifar10-paper.yaml"),
        },
        Preset {
            name: "unet-fashion",
            description: "class-conditioned U-Net on Fashion-MNIST, 28x28 grey, 32.1 M parameters",
            yaml: include_str!("presets/unet-fashion.yaml"),
        },
        Preset {
            name: "unet-fashion-small",
            description: "the same with 2.5 M parameters: 17 minutes on two CPU cores",
            yaml: include_str!("presets/unet-fashion-small.yaml"),
        },
        Preset {
            name: "pets",
            description: "cats and dogs of CIFAR-10 with linear attention, 7.2 M parameters: samples and classifies them",
            yaml: include_str!("presets/pets.yaml"),
        },
        Preset {
            name: "pets-small",
            description: "the same with 1.2 M parameters: half an hour on two CPU cores",
            yaml: include_str!("presets/pets-small.yaml"),
        },
        Preset {
            name: "resnet18-cifar10",
            description: "ResNet-18 classifier for CIFAR-10, 11.2 M parameters: a backbone, and for evaluation",
            yaml: include_str!("presets/resnet18-cifar10.yaml"),
        },
        Preset {
            name: "resnet-dit",
            description: "diffusion transformer on CIFAR-10 over a frozen pretrained ResNet-18, 4.4 M parameters",
            yaml: include_str!("presets/resnet-dit.yaml"),
        },
        Preset {
            name: "dit-original",
            description: "what it is compared with: a small transformer on patches, 50 noise steps, 0.6 M parameters",
            yaml: include_str!("presets/dit-original.yaml"),
        },
    ]
}
