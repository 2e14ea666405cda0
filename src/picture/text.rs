//! Text in pictures: DejaVu Sans, which comes with the engine, drawn with coverage as opacity.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, Glyph, PxScale, ScaleFont, point};

use super::Image;

static FONT: LazyLock<Option<FontRef<'static>>> =
    LazyLock::new(|| FontRef::try_from_slice(dejavu::sans::regular()).ok());

/// The glyphs of `text` on one line from x = 0, and the line's width in pixels.
fn layout(text: &str, size: f32) -> (Vec<Glyph>, f32) {
    let Some(font) = FONT.as_ref() else {
        return (Vec::new(), 0.0);
    };
    let font = font.as_scaled(PxScale::from(size));
    let (mut glyphs, mut x, mut previous) = (Vec::new(), 0.0, None);
    for c in text.chars().filter(|c| !c.is_control()) {
        let id = font.glyph_id(c);
        if let Some(previous) = previous {
            x += font.kern(previous, id);
        }
        glyphs.push(id.with_scale_and_position(size, point(x, font.ascent())));
        x += font.h_advance(id);
        previous = Some(id);
    }
    (glyphs, x)
}

/// Width in pixels of `text` on one line; `size` is the line height in pixels.
pub(super) fn text_width(text: &str, size: f32) -> usize {
    layout(text, size).1.ceil() as usize
}

/// Draws one line of text into an RGB picture, its upper left corner at (`x`, `y`).
pub(super) fn draw_text(image: &mut Image, x: usize, y: usize, text: &str, size: f32, colour: [u8; 3]) {
    let Some(font) = FONT.as_ref() else {
        return;
    };
    for glyph in layout(text, size).0 {
        if let Some(outline) = font.outline_glyph(glyph) {
            let bounds = outline.px_bounds();
            let (left, top) = (x as f32 + bounds.min.x, y as f32 + bounds.min.y);
            outline.draw(|dx, dy, coverage| {
                let (px, py) = (left + dx as f32, top + dy as f32);
                if px >= 0.0 && py >= 0.0 {
                    image.blend(px as usize, py as usize, colour, coverage.clamp(0.0, 1.0));
                }
            });
        }
    }
}

/// `text`, cut and ended with an ellipsis if it is wider than `room` pixels.
pub(super) fn fitted(text: &str, size: f32, room: usize) -> String {
    let text: String = text.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text_width(&text, size) <= room {
        return text;
    }
    let mut kept: Vec<char> = text.chars().collect();
    while kept.pop().is_some() {
        let short = kept.iter().collect::<String>().trim_end().to_string() + "…";
        if text_width(&short, size) <= room {
            return short;
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_font_is_there_and_knows_more_than_ascii() {
        let font = FONT.as_ref().unwrap();
        for c in "azAZ09_-…·äößéčжΩβε₀".chars() {
            assert_ne!(font.glyph_id(c).0, 0, "{c}");
        }
    }

    #[test]
    fn words_leave_ink_where_they_are_drawn() {
        let mut image = Image::filled(80, 20, [255; 3]);
        draw_text(&mut image, 2, 2, "horse", 14.0, [0; 3]);
        let dark = |x: usize| (0..20).any(|y| image.colour(x, y).unwrap()[0] < 128);
        assert!((3..40).any(dark) && !(0..2).any(dark) && !(60..80).any(dark));
        // Drawing beyond an edge is clipped.
        draw_text(&mut image, 70, 15, "horse\n\0", 40.0, [0; 3]);
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(fitted("cat", 14.0, 100), "cat");
        let short = fitted("a very long caption", 14.0, 60);
        assert!(short.ends_with('…') && text_width(&short, 14.0) <= 60, "{short}");
        assert_eq!(fitted("cat", 14.0, 1), "");
    }
}
