//! The guide, which is also `src/guide/*.md` in the source. A test runs its commands (`tests/commands/guide.rs`).
//!
//! [Training]: crate::guide::training
//! [Your own pictures]: crate::guide::your_pictures
//! [Sampling]: crate::guide::sampling
//! [Evaluation]: crate::guide::evaluation
//! [Serving]: crate::guide::serving
//! [Several GPUs]: crate::guide::several_gpus
//! [Recipes]: crate::guide::recipes
//! [Troubleshooting]: crate::guide::troubleshooting
//! [Reproducibility]: crate::guide::reproducibility
//! [Limits]: crate::guide::limits
//! [Glossary]: crate::guide::glossary
//! [File formats]: crate::guide::file_formats
//! [Library]: crate::guide::library
//! [Architecture]: crate::guide::architecture
//! [Adding an op]: crate::guide::adding_an_op
//! [Kernels without a GPU]: crate::guide::kernels_without_a_gpu
//!
#![doc = include_str!("README.md")]

/// Where the links between pages lead in this documentation; the pages themselves say where they lead among files.
macro_rules! links {
    () => {
        "[Training]: crate::guide::training\n\
         [Your own pictures]: crate::guide::your_pictures\n\
         [Sampling]: crate::guide::sampling\n\
         [Evaluation]: crate::guide::evaluation\n\
         [Serving]: crate::guide::serving\n\
         [Several GPUs]: crate::guide::several_gpus\n\
         [Recipes]: crate::guide::recipes\n\
         [Troubleshooting]: crate::guide::troubleshooting\n\
         [Reproducibility]: crate::guide::reproducibility\n\
         [Limits]: crate::guide::limits\n\
         [Glossary]: crate::guide::glossary\n\
         [File formats]: crate::guide::file_formats\n\
         [Library]: crate::guide::library\n\
         [Architecture]: crate::guide::architecture\n\
         [Adding an op]: crate::guide::adding_an_op\n\
         [Kernels without a GPU]: crate::guide::kernels_without_a_gpu\n\n"
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

page!(training, "training.md");
page!(your_pictures, "your_pictures.md");
page!(sampling, "sampling.md");
page!(evaluation, "evaluation.md");
page!(serving, "serving.md");
page!(several_gpus, "several_gpus.md");
page!(recipes, "recipes.md");
page!(troubleshooting, "troubleshooting.md");
page!(reproducibility, "reproducibility.md");
page!(limits, "limits.md");
page!(glossary, "glossary.md");
page!(file_formats, "file_formats.md");

// For programmers.
page!(library, "library.md");
page!(architecture, "architecture.md");
page!(adding_an_op, "adding_an_op.md");
page!(kernels_without_a_gpu, "kernels_without_a_gpu.md");
