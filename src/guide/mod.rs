//! The guide: how to train, sample, evaluate and serve, and how to write kernels. It is `src/guide/*.md` in the source.
//!
//! | to | read |
//! |---|---|
//! | see how the parts fit together | [`architecture`] |
//! | train a model | [`training`], on [`your_pictures`], by [`recipes`] |
//! | draw, edit, classify and compare | [`sampling`] |
//! | measure quality | [`evaluation`] |
//! | serve a model over HTTP | [`serving`] |
//! | train on several GPUs or machines | [`several_gpus`] |
//! | write a program with it | [`library`] |
//! | write a kernel | [`adding_an_op`] |
//! | make a kernel faster | [`kernels_without_a_gpu`] |
//! | read the files with other programs | [`file_formats`] |
//! | get the same bits again | [`reproducibility`] |
//! | solve a problem | [`troubleshooting`], [`limits`] |
//! | look up a word | [`glossary`] |
//!
//! A test runs every command of these pages (`tests/commands/guide.rs`).

/// Where the links between pages lead in this documentation; the pages themselves say where they lead among files.
macro_rules! links {
    () => {
        "[Architecture]: crate::guide::architecture\n\
         [Training]: crate::guide::training\n\
         [Sampling]: crate::guide::sampling\n\
         [Your own pictures]: crate::guide::your_pictures\n\
         [Evaluation]: crate::guide::evaluation\n\
         [Several GPUs]: crate::guide::several_gpus\n\
         [Serving]: crate::guide::serving\n\
         [Library]: crate::guide::library\n\
         [Adding an op]: crate::guide::adding_an_op\n\
         [Kernels without a GPU]: crate::guide::kernels_without_a_gpu\n\
         [File formats]: crate::guide::file_formats\n\
         [Reproducibility]: crate::guide::reproducibility\n\
         [Recipes]: crate::guide::recipes\n\
         [Troubleshooting]: crate::guide::troubleshooting\n\
         [Limits]: crate::guide::limits\n\
         [Glossary]: crate::guide::glossary\n\n"
    };
}

/// A page as a module.
macro_rules! page {
    ($name:ident, $file:literal) => {
        #[doc = links!()]
        #[doc = include_str!($file)]
        pub mod $name {}
    };
}

page!(architecture, "architecture.md");
page!(library, "library.md");
page!(training, "training.md");
page!(sampling, "sampling.md");
page!(your_pictures, "your_pictures.md");
page!(evaluation, "evaluation.md");
page!(several_gpus, "several_gpus.md");
page!(serving, "serving.md");
page!(adding_an_op, "adding_an_op.md");
page!(kernels_without_a_gpu, "kernels_without_a_gpu.md");
page!(file_formats, "file_formats.md");
page!(reproducibility, "reproducibility.md");
page!(recipes, "recipes.md");
page!(troubleshooting, "troubleshooting.md");
page!(limits, "limits.md");
page!(glossary, "glossary.md");
