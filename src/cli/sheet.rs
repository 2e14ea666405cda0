//! How images are laid out on one sheet, alone or beside real ones.

use crate::data::{Dataset, Split};
use crate::error::{Error, Result};
use crate::picture::{Image, Labels, Layout, beside, labelled_grid};

/// Most pixels of a sheet, below what a picture may have.
const MAX_SHEET_PIXELS: usize = 1 << 27;
/// White pixels between generated and real images.
const GAP: usize = 24;

/// Which images are drawn.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Choice {
    /// So many of each of the classes, class by class.
    Each(usize),
    /// The classes in turn.
    InTurn,
    /// One label.
    One,
}

/// How a sheet of `count` images `[height, width, _]` is laid out; they are drawn smaller where there are many. `blocks` of
/// them stand side by side.
pub(super) fn layout(
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
    let most = (96 / width).clamp(1, 4);
    match (1..=most).rev().find(|&scale| pixels(scale) <= MAX_SHEET_PIXELS) {
        Some(scale) => Ok(Layout { columns, scale, ..Layout::default() }),
        None => Err(Error::config(
            "--out",
            format!("{count} images are too many for one sheet"),
            "name a folder or a .npy file, or draw fewer with --count",
        )),
    }
}

/// The sheet of the images, whose classes are `names`; with `real` ones, titled by where they are from, beside them.
pub(super) fn sheet(
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
    // The rows' names stand left of the generated images already.
    let beside_them = Labels { title: title(&format!("real, of {source}")), rows: Vec::new(), ..labels.clone() };
    beside(&[labelled_grid(images, layout, &generated)?, labelled_grid(real, layout, &beside_them)?], GAP)
}

/// The words on a sheet.
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

/// A real image for each of the classes (None: any class), from the held-out images where there are any, in the data set's
/// order; where it has too few of a class, they come again.
///
/// # Errors
/// [`Error::Config`] where its images are of other sizes than `shape` `[H, W, C]`, or it lacks a class.
pub(super) fn real_images(dataset: &Dataset, classes: &[Option<String>], shape: [usize; 3]) -> Result<Vec<Image>> {
    const PLACE: &str = "--compare-with";
    let sizes = [dataset.height(), dataset.width(), dataset.channels()];
    let said = |[h, w, c]: [usize; 3]| format!("{h}x{w}x{c}");
    if sizes != shape {
        let message = format!("{} holds images of {}, the model draws {}", dataset.name(), said(sizes), said(shape));
        return Err(Error::config(PLACE, message, "name the data set that it was trained on"));
    }
    let held_out = dataset.split_len(Split::Validation) > 0;
    let indices = dataset.split_indices(if held_out { Split::Validation } else { Split::Train });
    // The images of each class, and at the end those of any.
    let known = dataset.class_names();
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); known.len()];
    for index in indices.clone() {
        if let Some(list) = of_class.get_mut(usize::from(dataset.labels()[index])) {
            list.push(index);
        }
    }
    of_class.push(indices.collect());
    let mut taken = vec![0; of_class.len()];
    classes
        .iter()
        .map(|class| {
            let list = match class {
                Some(name) => known.iter().position(|known| known == name),
                None => Some(known.len()),
            };
            let Some(list) = list.filter(|&list| !of_class[list].is_empty()) else {
                let name = class.as_deref().unwrap_or("any class");
                let message = format!("{} holds no image of {}", dataset.name(), name.escape_debug());
                return Err(Error::config(PLACE, message, format!("its classes are {}", known.join(", "))));
            };
            let index = of_class[list][taken[list] % of_class[list].len()];
            taken[list] += 1;
            Image::new(sizes[1], sizes[0], sizes[2], dataset.image(index).to_vec())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes;

    #[test]
    fn real_images_are_held_out_ones_of_the_asked_classes() {
        let dataset = shapes(3, 200);
        let class = |label: usize| Some(dataset.class_names()[label].clone());
        let asked: Vec<Option<String>> = (0..30).map(|k| class(k % 3)).chain([None]).collect();
        let images = real_images(&dataset, &asked, [32, 32, 3]).unwrap();
        let held_out = dataset.split_indices(Split::Validation);
        let found = |image: &Image| held_out.clone().find(|&index| dataset.image(index) == image.pixels()).unwrap();
        for (k, image) in images[..30].iter().enumerate() {
            assert_eq!(usize::from(dataset.labels()[found(image)]), k % 3);
        }
        assert_eq!(found(&images[30]), held_out.start);
        // Twenty held-out images of ten classes: each class's come again.
        assert_ne!(images[0], images[3]);
        assert!(images[3..30].contains(&images[0]));

        let fault = |classes: &[Option<String>], shape| real_images(&dataset, classes, shape).unwrap_err().to_string();
        assert!(fault(&asked, [28, 28, 1]).contains("holds images of 32x32x3, the model draws 28x28x1"));
        assert!(fault(&[Some("dog".into())], [32, 32, 3]).contains("holds no image of dog; its classes are"));
    }

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
            // Every row of images of the left block has the same colours right.
            let rows = |x: usize| (0..both.height()).filter_map(|y| both.colour(x, y)).collect::<Vec<_>>();
            let first = rows(both.width() - 14);
            assert!(first.iter().any(|colour| *colour == [40 * (layout.columns as u8 - 1); 3]), "{choice:?}");
        }
    }
}
