//! `engine data`: import, inspect, verify and fetch data sets.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::bar::shown;
use super::flags;
use super::options::DataFolder;
use super::output::refuse_taken;
use crate::data::{
    BUILTIN, Colour, Dataset, ExportFormat, FetchOptions, Format, ImportOptions, LabelKind, ResolveOptions, Split,
    Verification, export, fetch, import, resolve,
};
use crate::error::{Error, Result};
use crate::image_size::ImageSize;
use crate::names::listed;
use crate::picture::{Fit, Image, Labels, Layout, labelled_grid, write_png};
use crate::words::counted;

/// Import, inspect, verify and fetch data sets.
#[derive(Debug, Args)]
pub struct DataCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a data set file from pictures, or from another data set format.
    ///
    /// SRC is a folder or an archive (.zip, .tar, .tar.gz, .tar.zst) of pictures: all in one folder; as CLASS/x.png; as
    /// train/CLASS/x.jpg and test/CLASS/x.jpg; with labels.csv, metadata.jsonl or dataset.json beside them; or WebDataset
    /// shards. Pictures are PNG, JPEG, WebP, GIF, BMP, TIFF or PNM.
    ///
    /// SRC can also be a published set on disk, as a folder or an archive: CIFAR-10 and CIFAR-100 (binary or Python), MNIST,
    /// Fashion-MNIST, KMNIST, EMNIST (IDX), SVHN (.mat), STL-10 (binary); parquet files of Hugging Face; or NumPy's .npz and .npy.
    ///
    /// If the source has no held-out images, a share of each class is held out.
    Import(Box<Import>),
    /// Show the contents of a data set file.
    Info {
        /// A data set file, or `builtin`.
        file: String,
        /// Only these classes.
        #[arg(long, value_name = "A,B,…")]
        classes: Option<ClassList>,
    },
    /// Check a data set file: all checksums, the class balance, and the checksums of published sets.
    Verify {
        /// A data set file, or `builtin`.
        file: String,
    },
    /// Draw a labelled grid of pictures: a row for each class.
    Show {
        /// A data set file, or `builtin`.
        file: String,
        /// The PNG to write.
        #[arg(long, value_name = "FILE", default_value = "sheet.png")]
        out: PathBuf,
        /// Pictures of each class.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=200))]
        count: u16,
        /// The images to draw: train, validation or test [default: train]
        #[arg(long, value_name = "SPLIT")]
        split: Option<String>,
        /// `--split validation`
        #[arg(long, hide = true, conflicts_with = "split")]
        validation: bool,
        /// Only these classes, in this order.
        #[arg(long, value_name = "A,B,…")]
        classes: Option<ClassList>,
        /// Replace an existing file.
        #[arg(long)]
        force: bool,
    },
    /// Write a data set for other tools: a folder of PNG files, .npz, .parquet, or the .zip of StyleGAN and EDM.
    Export {
        /// A data set file, or `builtin`.
        file: String,
        /// F.npz, F.parquet, F.zip, or a folder.
        #[arg(long, value_name = "F.npz|F.parquet|F.zip|DIR")]
        out: PathBuf,
        /// The format [default: from the ending of the output]
        #[arg(long, value_enum)]
        format: Option<ExportFormat>,
        /// Only these images: train, validation or test [default: all; for a .zip, train]
        #[arg(long, value_name = "SPLIT")]
        split: Option<String>,
        /// Only these classes.
        #[arg(long, value_name = "A,B,…")]
        classes: Option<ClassList>,
        /// Replace existing files.
        #[arg(long)]
        force: bool,
    },
    /// Download and import a published data set: cifar10 or fashion-mnist.
    ///
    /// An interrupted transfer resumes. The files are checked against the official checksums.
    Fetch {
        /// cifar10 or fashion-mnist.
        name: String,
        #[command(flatten)]
        folder: DataFolder,
        /// A mirror that has the official files under their own names.
        #[arg(long, value_name = "URL")]
        base_url: Option<String>,
        /// Fetch again even if the set exists.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
struct Import {
    /// A folder or an archive.
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The data set file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The set's name [default: the source's]
    #[arg(long)]
    name: Option<String>,
    /// The format of the source [default: detected]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Take the complete records of truncated files, and note it.
    #[arg(long)]
    allow_partial: bool,
    #[command(flatten)]
    pictures: PictureArgs,
    /// Which labels of a set that has two kinds of labels
    #[arg(long, value_enum, default_value_t = LabelKind::Fine)]
    labels: LabelKind,
    /// Which of several sets in one folder: EMNIST's balanced, letters, …
    #[arg(long, value_name = "NAME")]
    part: Option<String>,
    /// The share of each class to hold out for validation where the source has no split.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    validation: f64,
    /// Seed for choosing the held-out images.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write only these classes; their labels are 0, 1, … in this order.
    #[arg(long, value_name = "A,B,…")]
    classes: Option<ClassList>,
    /// Replace the data set file if it exists.
    #[arg(long)]
    force: bool,
}

/// How pictures are read.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct PictureArgs {
    /// Resize pictures to N pixels high and wide, or H high and W wide [default: their own size; if sizes differ, 32 or the model's]
    #[arg(long, value_name = "N|HxW")]
    resize: Option<ImageSize>,
    /// How pictures of another aspect ratio are fitted [default: crop]
    #[arg(long, value_enum)]
    fit: Option<Fit>,
    /// Convert all pictures to RGB or grey [default: RGB if any is coloured]
    #[arg(long, value_enum)]
    color: Option<Colour>,
    /// The color under transparent pixels and for padding: white, black, grey or RRGGBB [default: white]
    #[arg(long, value_name = "COLOR")]
    background: Option<Background>,
    /// Skip damaged pictures, and list them
    #[arg(long)]
    skip_damaged: bool,
    /// Import all pictures without classes, whatever their folders
    #[arg(long)]
    unlabelled: bool,
}

impl PictureArgs {
    /// Whether a size is given.
    pub fn is_resized(&self) -> bool {
        self.resize.is_some()
    }

    /// The default import options.
    pub fn options(&self) -> ImportOptions {
        let defaults = ImportOptions::default();
        ImportOptions {
            resize: self.resize,
            fit: self.fit.unwrap_or_default(),
            color: self.color,
            background: self.background.map_or(defaults.background, |Background(colour)| colour),
            skip_damaged: self.skip_damaged,
            unlabelled: self.unlabelled,
            ..defaults
        }
    }
}

/// `--background`: a colour by its name or by its six hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Background(pub [u8; 3]);

impl std::str::FromStr for Background {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = match text.to_ascii_lowercase().as_str() {
            "white" => Some([255; 3]),
            "black" => Some([0; 3]),
            "grey" | "gray" => Some([128; 3]),
            _ => None,
        };
        let digits = text.trim_start_matches('#');
        let number = (digits.len() == 6).then(|| u32::from_str_radix(digits, 16).ok()).flatten();
        let colour = named.or(number.map(|number| [16, 8, 0].map(|shift| (number >> shift) as u8)));
        colour.map(Self).ok_or_else(|| "give white, black, grey or six hexadecimal digits, as ff8800".into())
    }
}

impl DataCommand {
    /// Runs the command; results go to standard output.
    ///
    /// # Errors
    ///
    /// Those of the [`data`](crate::data) module.
    pub fn run(self) -> Result<()> {
        match self.action {
            Action::Import(import) => import.run(),
            Action::Info { file, classes } => {
                print!("{}", info(&keep(open(&file)?, classes.as_ref())?));
                Ok(())
            }
            Action::Verify { file } => {
                let set = open(&file)?;
                print!("{}", verified(&set, &set.verify()?));
                Ok(())
            }
            Action::Show { file, out, count, split, validation, classes, force } => {
                refuse_taken(&out, force)?;
                let split = match split {
                    Some(name) => one_split(&name, "give train, validation or test")?,
                    None if validation => Split::Validation,
                    None => Split::Train,
                };
                show(&keep(open(&file)?, classes.as_ref())?, &out, usize::from(count), split)
            }
            Action::Export { file, out, format, split, classes, force } => {
                let format = format.unwrap_or_else(|| ExportFormat::of(&out));
                let set = keep(open(&file)?, classes.as_ref())?;
                let split = match split.as_deref() {
                    // The zip format has no splits.
                    None => (format == ExportFormat::Edm).then_some(Split::Train),
                    Some("all") => None,
                    Some(name) => Some(one_split(name, "give train, validation, test or all")?),
                };
                let written = export(&set, &out, format, split, force)?;
                written.iter().for_each(|path| println!("wrote {}", path.display()));
                Ok(())
            }
            Action::Fetch { name, folder: DataFolder { data_dir }, base_url, force } => {
                let set = fetch(&name, &FetchOptions { data_dir, base_url, force, progress: shown(false) })?;
                print!("{}", info(&set));
                Ok(())
            }
        }
    }
}

/// `--split` as one split.
fn one_split(name: &str, advice: &str) -> Result<Split> {
    match name {
        "train" => Ok(Split::Train),
        "validation" => Ok(Split::Validation),
        "test" => Ok(Split::Test),
        other => Err(Error::config("--split", format!("{other:?} is not a split"), advice)),
    }
}

impl Import {
    fn run(self) -> Result<()> {
        refuse_taken(&self.out, self.force)?;
        let start = std::time::Instant::now();
        let options = ImportOptions {
            name: self.name,
            format: self.format,
            allow_partial: self.allow_partial,
            labels: self.labels,
            part: self.part,
            validation: self.validation,
            seed: self.seed,
            progress: shown(false),
            scratch: Some(self.out.parent().map(PathBuf::from).unwrap_or_default()),
            ..self.pictures.options()
        };
        let set = keep(import(&self.source, &options)?, self.classes.as_ref())?;
        set.write(&self.out, self.force)?;
        print!("{}", info(&Dataset::open(&self.out)?));
        println!("imported in {:.1} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// A data set file, or the built-in set.
fn open(file: &str) -> Result<Dataset> {
    if file == BUILTIN { resolve(BUILTIN, None, &ResolveOptions::default()) } else { Dataset::open(file) }
}

/// `--classes`: names or numbers separated by commas.
#[derive(Clone, Debug)]
pub(super) struct ClassList(pub Vec<String>);

impl std::str::FromStr for ClassList {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Commas within quotes are part of a name: `"a, b",c`.
        let mut reader = csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(text.as_bytes());
        let names = reader
            .records()
            .filter_map(Result::ok)
            .flat_map(|names| names.iter().map(String::from).filter(|name| !name.is_empty()).collect::<Vec<_>>());
        Ok(Self(names.collect()))
    }
}

/// The requested classes, or all.
fn keep(set: Dataset, classes: Option<&ClassList>) -> Result<Dataset> {
    classes.map_or_else(|| Ok(set.clone()), |ClassList(names)| set.subset(names))
}

fn info(set: &Dataset) -> String {
    let mut lines = vec![
        format!("{}: {}", set.path().map_or("built in".into(), |path| path.display().to_string()), set.name()),
        format!(
            "  {} {}: {} training, {} validation{}",
            counted(set.len(), "image"),
            set.size().with_channels(set.channels()),
            set.split_len(Split::Train),
            set.split_len(Split::Validation),
            match set.split_len(Split::Test) {
                0 => String::new(),
                test => format!(", {test} test"),
            }
        ),
        format!("  {}: {}", counted(set.class_names().len(), "class"), listed(set.class_names())),
    ];
    lines.extend(set.sources().iter().map(|s| format!("  from {} ({} bytes, SHA-256 {})", s.file, s.bytes, s.sha256)));
    lines.extend(set.notes().iter().map(|note| format!("  note: {}", flags::noted(note))));
    lines.join("\n") + "\n"
}

fn verified(set: &Dataset, verification: &Verification) -> String {
    let mut text = info(set);
    let widest = verification.classes.iter().map(|class| class.name.chars().count()).max().unwrap_or(0).max(5);
    let tested = set.split_len(Split::Test) > 0;
    text += &format!("\n  {:widest$}  training  validation{}\n", "class", if tested { "  test" } else { "" });
    for class in &verification.classes {
        let test = if tested { format!("  {:>4}", class.test) } else { String::new() };
        text += &format!("  {:widest$}  {:>8}  {:>10}{test}\n", class.name, class.train, class.validation);
    }
    text += if verification.is_balanced() {
        "  balanced: each class has as many images as the others\n"
    } else {
        "  not balanced: the classes differ in their number of images\n"
    };
    for (tensor, sha256) in &verification.sha256 {
        let equal = if set.path().is_some() { " (as written)" } else { "" };
        text += &format!("  SHA-256 of {tensor}: {sha256}{equal}\n");
    }
    text += &match &verification.recognised {
        Some(known) if known.different.is_empty() => {
            format!("  this is {}: all {} official files, byte for byte\n", known.title, known.equal.len())
        }
        Some(known) => format!(
            "  {} in part: byte for byte {}; not {}\n",
            known.title,
            known.equal.join(", "),
            known.different.join(", ")
        ),
        None => "  none of the published sets whose checksums are known\n".to_owned(),
    };
    text + "sound\n"
}

/// `2000 images, 10 classes`
pub(super) fn counted_set(set: &Dataset) -> String {
    format!("{}, {}", counted(set.len(), "image"), counted(set.class_names().len(), "class"))
}

/// The first `count` images of each class of `split`, a row for each class.
fn show(set: &Dataset, out: &Path, count: usize, split: Split) -> Result<()> {
    let range = set.split_indices(split);
    if range.is_empty() {
        let name = match split {
            Split::Train => "training",
            Split::Validation => "validation",
            Split::Test => "test",
        };
        return Err(Error::config("data show", format!("there are no {name} images"), "give another --split"));
    }
    let mut rows = vec![Vec::new(); set.class_names().len()];
    for index in range {
        let row = &mut rows[usize::from(set.labels()[index])];
        if row.len() < count {
            row.push(index);
        }
    }
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let mut images = Vec::new();
    for index in rows.iter().flat_map(|row| (0..columns).map(|column| row.get(column))) {
        images.push(match index {
            Some(&index) => Image::new(set.width(), set.height(), set.channels(), set.image(index).to_vec())?,
            // A class with fewer images leaves empty cells.
            None => Image::filled(set.width(), set.height(), [255; 3]),
        });
    }
    let labels = Labels {
        title: format!("{}: {}", set.name(), counted_set(set)),
        rows: set.class_names().to_vec(),
        ..Labels::default()
    };
    // Small images are enlarged to be visible.
    let scale = (64 / set.height().max(set.width())).clamp(1, 4);
    let sheet = labelled_grid(&images, Layout { columns, scale, ..Layout::default() }, &labels)?;
    write_png(out, &sheet, &[("Software", "engine"), ("Source", set.name())])?;
    println!("wrote {} ({} of each class)", out.display(), counted(columns, "image"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        data: DataCommand,
    }

    fn run(arguments: &[&str]) -> Result<()> {
        Cli::try_parse_from(["data"].iter().chain(arguments)).unwrap().data.run()
    }

    #[test]
    fn the_built_in_set_is_told_checked_and_shown() {
        let folder = tempfile::tempdir().unwrap();
        let sheet = folder.path().join("sheet.png");
        run(&["info", "builtin"]).unwrap();
        run(&["verify", "builtin"]).unwrap();
        run(&["show", "builtin", "--out", sheet.to_str().unwrap(), "--count", "3"]).unwrap();
        let (sheet, _) = crate::picture::read_png(&sheet).unwrap();
        assert!(sheet.width() > 3 * 64 && sheet.height() > 10 * 64);
    }

    #[test]
    fn one_option_chooses_a_split_and_the_old_one_still_does() {
        let folder = tempfile::tempdir().unwrap();
        let shown = |name: &str, more: &[&str]| {
            let out = folder.path().join(name);
            run(&[&["show", "builtin", "--count", "2", "--out", out.to_str().unwrap()], more].concat()).map(|()| out)
        };
        let pixels = |name: &str, more: &[&str]| std::fs::read(shown(name, more).unwrap()).unwrap();
        let held_out = pixels("a.png", &["--split", "validation"]);
        assert_eq!(pixels("b.png", &["--validation"]), held_out);
        assert_ne!(pixels("c.png", &["--split", "train"]), held_out);
        assert_eq!(pixels("a.png", &["--force"]), pixels("d.png", &[]));
        for (more, part) in [
            (&["--split", "all"][..], "give train, validation or test"),
            (&["--split", "test"], "there are no test images; give another --split"),
        ] {
            let error = shown("e.png", more).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let taken = shown("a.png", &[]).unwrap_err().to_string();
        assert!(taken.contains("a.png: already exists") && taken.ends_with("--force"), "{taken}");
    }

    #[test]
    fn pictures_are_imported_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        for class in ["a", "b"] {
            std::fs::create_dir(folder.path().join(class)).unwrap();
            for i in 0..4 {
                let image = Image::filled(6, 6, [i * 40, 0, 0]);
                write_png(folder.path().join(class).join(format!("{i}.png")), &image, &[]).unwrap();
            }
        }
        let out = folder.path().join("set.safetensors");
        let arguments =
            ["import", folder.path().to_str().unwrap(), "--out", out.to_str().unwrap(), "--validation", "0.25"];
        run(&arguments).unwrap();
        let set = Dataset::open(&out).unwrap();
        assert_eq!((set.split_len(Split::Train), set.split_len(Split::Validation)), (6, 2));
        assert!(run(&arguments).unwrap_err().to_string().contains("--force"));
        run(&[&arguments[..], &["--force"]].concat()).unwrap();
    }

    #[test]
    fn a_class_with_a_comma_is_named_in_quotes() {
        let list = |text: &str| text.parse::<ClassList>().unwrap().0;
        assert_eq!(list("cat, dog,,7"), ["cat", "dog", "7"]);
        assert_eq!(list("\"a, b\",c"), ["a, b", "c"]);
        assert_eq!(list(""), Vec::<String>::new());
    }

    #[test]
    fn a_background_is_a_name_or_six_digits() {
        let colour = |text: &str| text.parse::<Background>().map(|Background(colour)| colour);
        assert_eq!((colour("White"), colour("#ff8000")), (Ok([255; 3]), Ok([255, 128, 0])));
        assert!(colour("12345").is_err() && colour("reddish").is_err());
    }

    #[test]
    fn a_set_is_exported_for_other_tools() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["set.npz", "set.zip", "pictures"] {
            let out = folder.path().join(name);
            run(&["export", "builtin", "--out", out.to_str().unwrap(), "--classes", "star,ring"]).unwrap();
            assert!(out.exists());
        }
        let error = run(&["export", "builtin", "--out", "x.npz", "--split", "all of it"]).unwrap_err().to_string();
        assert!(error.contains("train, validation, test or all"), "{error}");
    }

    #[test]
    fn the_text_of_a_verification() {
        let set = crate::data::shapes(0, 20);
        let text = verified(&set, &set.verify().unwrap());
        assert!(text.contains("checkerboard") && text.contains("balanced") && text.ends_with("sound\n"), "{text}");
    }
}
