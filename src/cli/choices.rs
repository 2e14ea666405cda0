//! The values of options that choose one of a few, as the command line names and explains them.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::config::Rule;
use crate::data::{Colour, ExportFormat, Format, LabelKind};
use crate::diffusion::Profile;
use crate::eval::evaluation::MetricKind;
use crate::picture::Fit;

/// `Value = "name" "help"`.
macro_rules! choices {
    ($($type:ident { $($value:ident = $name:literal $help:literal,)* })*) => {
        $(impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$value),*]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                // A new value does not compile until it has a name here.
                Some(match self {
                    $(Self::$value => PossibleValue::new($name).help($help),)*
                })
            }
        })*
    };
}

choices! {
    Profile {
        Fast = "fast" "20 steps, for quick previews",
        Standard = "standard" "50 steps",
        High = "high" "100 steps, for final pictures",
    }
    Fit {
        Crop = "crop" "Scaled to cover the size, then cropped at the centre",
        Pad = "pad" "Scaled to lie within the size, then padded with background",
        Stretch = "stretch" "Each side scaled independently",
    }
    Colour {
        Rgb = "rgb" "Red, green, blue",
        Grey = "grey" "One channel: the luma of ITU-R BT.601",
    }
    LabelKind {
        Fine = "fine" "The finer ones: CIFAR-100's 100 classes",
        Coarse = "coarse" "The coarser ones: CIFAR-100's 20 superclasses",
    }
    Format {
        Cifar10 = "cifar10" "CIFAR-10's binary batches, in a folder or a tar archive",
        Idx = "idx" "A folder of IDX files, the format of MNIST and Fashion-MNIST",
        Cifar10Python = "cifar10-python" "CIFAR-10's Python batches, in a folder or an archive",
        Cifar100 = "cifar100" "CIFAR-100, Python or binary version, in a folder or an archive",
        Svhn = "svhn" "SVHN's cropped digits: MATLAB files",
        Stl10 = "stl10" "STL-10's binary files, in a folder or an archive",
        Parquet = "parquet" "Parquet files with a column `image`, as the datasets library writes them",
        Numpy = "numpy" "A NumPy array or an archive of them",
        Images = "images" "Pictures, in a folder or an archive",
    }
    ExportFormat {
        Png = "png" "A folder of PNG files, `SPLIT/CLASS/000000.png`, with `labels.csv` and `classes.txt`",
        Npz = "npz" "`images` u8 `[N, H, W, C]`, `labels` i64 `[N]`, `split` u8 `[N]` (0 training, 1 validation, 2 test) and `class_names`",
        Parquet = "parquet" "A parquet file for each split, with the columns `image` (PNG) and `label`",
        Edm = "edm" "A zip of `00000/img00000000.png` … and `dataset.json`",
    }
    Rule {
        PytorchFid = "pytorch-fid" "Seitzer's pytorch-fid: half-pixel bilinear without antialias",
        TorchFidelity = "torch-fidelity" "torch-fidelity, and the original TensorFlow code: TensorFlow 1's bilinear",
        CleanFid = "clean-fid" "Parmar's clean-fid: PIL's antialiased bicubic",
    }
    MetricKind {
        Fid = "fid" "The Fréchet distance: FID on InceptionV3's features, FD-NAME on others",
        Kid = "kid" "The kernel distance KID",
        Is = "is" "The Inception Score",
        PrecisionRecall = "precision-recall" "Precision (of the samples) and recall (of the reference)",
        DensityCoverage = "density-coverage" "Density and coverage",
        FidInfinity = "fid-infinity" "The Fréchet distance extrapolated to infinitely many samples",
        Authenticity = "authenticity" "The share of samples that are no nearer to a reference image than its own nearest neighbour (AuthPct)",
        Accuracy = "accuracy" "The share of samples that a classifier assigns to their intended class",
    }
}
