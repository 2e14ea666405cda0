//! Many small pictures on one sheet.

use super::Image;
use super::image::check_size;
use super::text::{draw_text, fitted, text_width};
use crate::{Error, Result};

const PAPER: [u8; 3] = [255; 3];
const INK: [u8; 3] = [38, 38, 42];
const TEXT: f32 = 15.0;
const TITLE: f32 = 19.0;
const MARGIN: usize = 10;

/// The layout of pictures on a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Pictures per row, above 0.
    pub columns: usize,
    /// White pixels between pictures (of the sheet, not of the pictures).
    pub padding: usize,
    /// Each picture's pixel becomes a square of this many pixels, above 0.
    pub scale: usize,
}

impl Default for Layout {
    /// Ten in a row, 4 pixels apart, each pixel drawn 3x3.
    fn default() -> Self {
        Self { columns: 10, padding: 4, scale: 3 }
    }
}

/// The captions of a labelled sheet; empty ones take no room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// At the top left.
    pub title: String,
    /// Left of each row, from the top.
    pub rows: Vec<String>,
    /// Above each column, from the left.
    pub columns: Vec<String>,
    /// Below each picture, row by row.
    pub cells: Vec<String>,
}

/// Pictures of one size in a grid with `layout.columns` per row, on white.
///
/// # Errors
/// [`Error::Shape`] if there is no picture, their sizes differ, or the sheet would be too large.
pub fn grid(images: &[Image], layout: Layout) -> Result<Image> {
    labelled_grid(images, layout, &Labels::default())
}

/// Pictures of one size in a single row.
///
/// # Errors
/// As [`grid`].
pub fn strip(images: &[Image], padding: usize, scale: usize) -> Result<Image> {
    grid(images, Layout { columns: images.len().max(1), padding, scale })
}

/// Pictures of any sizes in a row, aligned at the top, on white.
///
/// # Errors
/// [`Error::Shape`] if there is no picture or the result would be too large.
pub fn beside(images: &[Image], padding: usize) -> Result<Image> {
    let Some(height) = images.iter().map(Image::height).max() else {
        return Err(Error::shape("picture row", "no pictures; give at least one"));
    };
    let width = images.iter().fold(0, |width: usize, image| width.saturating_add(image.width()));
    let width = width.saturating_add(padding.saturating_mul(images.len() - 1));
    check_size(width, height)?;
    let mut row = Image::filled(width, height, PAPER);
    let mut x = 0;
    for image in images {
        row.paste(image, x, 0);
        x += image.width() + padding;
    }
    Ok(row)
}

/// As [`grid`], with a title, captions of rows and columns, and captions below each picture. Captions that are too long are cut.
///
/// # Errors
/// As [`grid`].
pub fn labelled_grid(images: &[Image], layout: Layout, labels: &Labels) -> Result<Image> {
    let Some(first) = images.first() else {
        return Err(Error::shape("picture grid", "no pictures; give at least one"));
    };
    if layout.columns == 0 || layout.scale == 0 {
        let message = format!("{} columns at scale {}; give both above 0", layout.columns, layout.scale);
        return Err(Error::shape("picture grid", message));
    }
    if let Some((index, other)) = images.iter().enumerate().find(|(_, image)| image.size() != first.size()) {
        let message =
            format!("picture {index} is {} and the first {}; all must be of one size", other.size(), first.size());
        return Err(Error::shape("picture grid", message));
    }
    let columns = layout.columns.min(images.len());
    let rows = images.len().div_ceil(columns);

    let words = [&labels.rows, &labels.columns, &labels.cells].iter().any(|list| !list.is_empty());
    let margin = if words || !labels.title.is_empty() { MARGIN } else { layout.padding };
    let line = TEXT as usize + 4;
    let widest = labels.rows.iter().take(rows).map(|label| text_width(&fitted(label, TEXT, 300), TEXT)).max();
    let left = margin + widest.map_or(0, |width| width.min(300) + 8);
    let title = if labels.title.is_empty() { 0 } else { TITLE as usize + 10 };
    let head = if labels.columns.is_empty() { 0 } else { line };
    let foot = if labels.cells.is_empty() { 0 } else { line };

    let cell_width = first.width().saturating_mul(layout.scale);
    let cell_height = first.height().saturating_mul(layout.scale);
    let step_x = cell_width.saturating_add(layout.padding);
    let step_y = cell_height.saturating_add(layout.padding).saturating_add(foot);
    let top = margin + title + head;
    let width = columns.saturating_mul(step_x).saturating_sub(layout.padding).saturating_add(left + margin);
    let height = rows.saturating_mul(step_y).saturating_sub(layout.padding).saturating_add(top + margin);
    // A small sheet is widened for its title, up to a limit.
    let width = if title > 0 { width.max(2 * margin + text_width(&labels.title, TITLE).min(640)) } else { width };
    check_size(width, height)?;

    let mut sheet = Image::filled(width, height, PAPER);
    draw_text(&mut sheet, margin, margin, &fitted(&labels.title, TITLE, width - 2 * margin), TITLE, INK);
    let cell_size = caption_size(&labels.cells, cell_width);
    let column_size = caption_size(&labels.columns, cell_width);
    for (index, image) in images.iter().enumerate() {
        let (x, y) = (left + index % columns * step_x, top + index / columns * step_y);
        sheet.paste(&image.upscale(layout.scale)?, x, y);
        if let Some(label) = labels.cells.get(index) {
            centred(&mut sheet, x, y + cell_height + 1, cell_width, label, cell_size);
        }
    }
    for (column, label) in labels.columns.iter().take(columns).enumerate() {
        centred(&mut sheet, left + column * step_x, margin + title, cell_width, label, column_size);
    }
    for (row, label) in labels.rows.iter().take(rows).enumerate() {
        let label = fitted(label, TEXT, 300);
        let x = (left - 8).saturating_sub(text_width(&label, TEXT));
        let y = top + row * step_y + cell_height.saturating_sub(TEXT as usize) / 2;
        draw_text(&mut sheet, x, y, &label, TEXT, INK);
    }
    Ok(sheet)
}

/// The font size at which every caption fits `room` pixels, common to the sheet; the smallest if none does.
fn caption_size(captions: &[String], room: usize) -> f32 {
    let fits =
        |size: &f32| captions.iter().all(|caption| text_width(&fitted(caption, *size, usize::MAX), *size) <= room);
    [TEXT, 13.0, 11.0].into_iter().find(fits).unwrap_or(11.0)
}

/// A centred caption in `room` pixels from `x`, cut if it is wider.
fn centred(sheet: &mut Image, x: usize, y: usize, room: usize, caption: &str, size: f32) {
    let caption = fitted(caption, size, room);
    draw_text(sheet, x + room.saturating_sub(text_width(&caption, size)) / 2, y, &caption, size, INK);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn colours(count: usize) -> Vec<Image> {
        (0..count).map(|i| Image::filled(8, 6, [i as u8 * 20, 100, 50])).collect()
    }

    #[test]
    fn pictures_land_row_by_row() {
        let sheet = grid(&colours(5), Layout { columns: 3, padding: 2, scale: 2 }).unwrap();
        assert_eq!((sheet.width(), sheet.height()), (3 * 16 + 4 * 2, 2 * 12 + 3 * 2));
        assert_eq!(sheet.colour(0, 0), Some([255; 3]));
        for (index, (x, y)) in [(2, 2), (20, 2), (38, 2), (2, 16), (20, 16)].into_iter().enumerate() {
            assert_eq!(sheet.colour(x, y), Some([index as u8 * 20, 100, 50]));
            assert_eq!(sheet.colour(x + 15, y + 11), Some([index as u8 * 20, 100, 50]));
        }
        // The place after the last one stays white.
        assert_eq!(sheet.colour(38, 16), Some([255; 3]));
    }

    #[test]
    fn fewer_pictures_than_columns_make_a_narrow_sheet() {
        let sheet = grid(&colours(2), Layout { columns: 10, padding: 0, scale: 1 }).unwrap();
        assert_eq!((sheet.width(), sheet.height()), (16, 6));
        assert_eq!(strip(&colours(3), 1, 1).unwrap().width(), 3 * 8 + 4);
    }

    #[test]
    fn grey_and_colour_mix() {
        let grey = Image::new(8, 6, 1, vec![7; 48]).unwrap();
        let sheet = strip(&[grey, Image::filled(8, 6, [1, 2, 3])], 0, 1).unwrap();
        assert_eq!((sheet.colour(0, 0), sheet.colour(8, 0)), (Some([7; 3]), Some([1, 2, 3])));
    }

    #[test]
    fn labels_take_room_and_leave_ink() {
        let plain = grid(&colours(4), Layout { columns: 2, padding: 2, scale: 8 }).unwrap();
        let labels = Labels {
            title: "ten classes".into(),
            rows: vec!["airplane".into(), "a very long name of a class that nobody would ever choose for one".into()],
            columns: vec!["t = 999".into(), "0".into()],
            cells: vec!["1".into(), "deer".into(), "\u{1F600}\n".into()],
        };
        let sheet = labelled_grid(&colours(4), Layout { columns: 2, padding: 2, scale: 8 }, &labels).unwrap();
        assert!(sheet.width() > plain.width() + 60 && sheet.height() > plain.height() + 60);
        assert!(sheet.width() < plain.width() + 360);
        let ink = sheet.pixels().chunks(3).filter(|p| p.iter().all(|v| *v < 90)).count();
        assert!(ink > 300, "{ink}");
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        let layout = Layout::default();
        let mixed = [Image::filled(8, 6, [0; 3]), Image::filled(6, 8, [0; 3])];
        for error in [
            grid(&[], layout).unwrap_err(),
            grid(&mixed, layout).unwrap_err(),
            grid(&colours(1), Layout { columns: 0, ..layout }).unwrap_err(),
            grid(&colours(1), Layout { scale: usize::MAX, ..layout }).unwrap_err(),
            grid(&colours(1), Layout { scale: 1 << 20, ..layout }).unwrap_err(),
        ] {
            assert!(error.to_string().starts_with("picture"), "{error}");
        }
    }
}
