//! Readers of other people's formats; the data set file; the loader.
