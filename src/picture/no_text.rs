//! Text in pictures, in a build without the feature `plots`, which has no font: there is none.

use super::Image;

/// Width in pixels of text.
pub(super) fn text_width(_text: &str, _size: f32) -> usize {
    0
}

/// Draws nothing.
pub(super) fn draw_text(_image: &mut Image, _x: usize, _y: usize, _text: &str, _size: f32, _colour: [u8; 3]) {}

/// The part of a text that has room: none.
pub(super) fn fitted(_text: &str, _size: f32, _room: usize) -> String {
    String::new()
}
