//! Layout of images on a sheet, alone or beside real ones.

use super::Choice;
use crate::error::{Error, Result};
use crate::picture::{Image, Labels, Layout, beside, grid, labelled_grid};

/// Most pixels of a sheet, below the limit of a picture.
const MAX_SHEET_PIXELS: usize = 1 << 27;
/// White pixels between generated and real images.
const GAP: usize = 24;

/// The layout of a sheet of `count` images `[height, width, _]`, which are drawn smaller if there are many, in `blocks` side by
/// side.
///
/// # Errors
/// [`Error::Config`] for more images than a picture has room for.
pub fn layout(
    choice: &Choice,
    count: usize,
    classes: usize,
    [height, width, _]: [usize; 3],
    blocks: usize,
) -> Result<Layout> {
    let columns = match choice {
        Choice::Each(each) => *each,
        Choice::InTurn => count.min(classes).min(20),
        Choice::One => count.min(if count > 100 { 20 } else { 10 }),
    };
    let pixels = |scale: usize| {
        let (wide, high) = ((width * scale + 4) * columns + 320, (height * scale + 24) * count.div_ceil(columns) + 60);
        (wide * blocks).saturating_mul(high)
    };
    let most = (96 / height.max(width)).clamp(1, 4);
    match (1..=most).rev().find(|&scale| pixels(scale) <= MAX_SHEET_PIXELS) {
        Some(scale) => Ok(Layout { columns, scale, ..Layout::default() }),
        None => Err(Error::config(
            "out",
            format!("{count} images are too many for one grid"),
            "give a folder or a .npy file, or draw fewer with `count`",
        )),
    }
}

/// The sheet of the images, whose classes are `names`; with `real` ones beside them, titled with their source.
///
/// # Errors
/// Those of [`labelled_grid`].
pub fn sheet(
    images: &[Image],
    real: Option<(&str, &[Image])>,
    choice: &Choice,
    layout: Layout,
    names: &[String],
) -> Result<Image> {
    let labels = captions(choice, layout, names);
    let Some((source, real)) = real else {
        return labelled_grid(images, layout, &labels);
    };
    let title = |words: &str| match labels.title.as_str() {
        "" => words.to_string(),
        class => format!("{class}: {words}"),
    };
    let generated = Labels { title: title("generated"), ..labels.clone() };
    // The names of the rows are already left of the generated images.
    let beside_them = Labels { title: title(&format!("real, of {source}")), rows: Vec::new(), ..labels.clone() };
    beside(&[labelled_grid(images, layout, &generated)?, labelled_grid(real, layout, &beside_them)?], GAP)
}

/// The text on a sheet.
fn captions(choice: &Choice, layout: Layout, names: &[String]) -> Labels {
    let title = names.first().cloned().unwrap_or_default();
    match choice {
        Choice::Each(_) => {
            Labels { rows: names.iter().step_by(layout.columns).cloned().collect(), ..Labels::default() }
        }
        Choice::InTurn => Labels { cells: names.to_vec(), ..Labels::default() },
        Choice::One => Labels { title, ..Labels::default() },
    }
}

/// Images side by side, as large as fits a screen.
///
/// # Errors
/// Those of [`grid()`].
pub fn strip(images: &[Image]) -> Result<Image> {
    let columns = images.len().clamp(1, 16);
    let (height, width) = images.first().map_or((1, 1), |image| (image.height(), image.width()));
    let scale = (96 / height.max(width)).min(1920 / (columns * width)).clamp(1, 8);
    grid(images, Layout { columns, scale, ..Layout::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_beside_each_other_at_one_height() {
        let images: Vec<Image> = (0..6).map(|k| Image::filled(32, 32, [40 * k; 3])).collect();
        let names: Vec<String> = (0..6).map(|k| format!("class {}", k / 2)).collect();
        for choice in [Choice::Each(2), Choice::InTurn, Choice::One] {
            let layout = layout(&choice, 6, 3, [32, 32, 3], 2).unwrap();
            let alone = sheet(&images, None, &choice, layout, &names).unwrap();
            let both = sheet(&images, Some(("shapes", &images)), &choice, layout, &names).unwrap();
            assert!(
                both.width() > 2 * layout.columns * 32 * layout.scale && both.width() > alone.width(),
                "{choice:?}"
            );
            // Every row of the left block has the same colours on the right.
            let rows = |x: usize| (0..both.height()).filter_map(|y| both.colour(x, y)).collect::<Vec<_>>();
            let first = rows(both.width() - 14);
            assert!(first.iter().any(|colour| *colour == [40 * (layout.columns as u8 - 1); 3]), "{choice:?}");
        }
    }
}
