//! Checks shared by several configurations. Each error gives the key and advice.

use crate::image_size::ImageSize;
use crate::{Error, Result};

/// Each value (key, value, most) must lie between 1 and `most`.
pub(super) fn within(limits: &[(&str, usize, usize)]) -> Result<()> {
    for &(key, value, most) in limits {
        if !(1..=most).contains(&value) {
            let message = format!("{value} is outside 1…{most}");
            return Err(Error::config(format!("model.{key}"), message, "give a value in that range"));
        }
    }
    Ok(())
}

/// The height and the width of images must lie between 1 and `most`.
pub(super) fn sides(size: ImageSize, most: usize) -> Result<()> {
    within(&[("image_size", size.height, most), ("image_size", size.width, most)])
}

/// `divisor` must divide both sides of the images; the advice lists common divisors.
pub(super) fn divides_sides(key: &str, divisor: usize, size: ImageSize) -> Result<()> {
    if size.is_square() {
        return divides(key, divisor, "image_size", size.height);
    }
    let named = [("height", size.height), ("width", size.width)];
    let Some((side, pixels)) = named.iter().find(|(_, pixels)| !pixels.is_multiple_of(divisor)) else { return Ok(()) };
    let message = format!("{divisor} does not divide the {side} of model.image_size, {pixels}");
    let common = |d: &usize| size.height.is_multiple_of(*d) && size.width.is_multiple_of(*d);
    let below = (1..divisor).rev().find(common);
    let above = (divisor + 1..=size.height.min(size.width)).find(common);
    let choices: Vec<String> = below.iter().chain(&above).map(usize::to_string).collect();
    let advice = format!("give {}, or change model.image_size", choices.join(" or "));
    Err(Error::config(format!("model.{key}"), message, advice))
}

/// Checks that images are grey or RGB.
pub(super) fn colours(channels: usize) -> Result<()> {
    if matches!(channels, 1 | 3) {
        return Ok(());
    }
    let message = format!("{channels} colour channels");
    Err(Error::config("model.image_channels", message, "give 1 for grey or 3 for RGB"))
}

/// Checks the number of classes, which may be 0, and the null label, which needs classes.
pub(super) fn labels(num_classes: usize, null_label: bool) -> Result<()> {
    if num_classes > 65_535 {
        let message = format!("{num_classes} is outside 0…65535");
        return Err(Error::config("model.num_classes", message, "give a value in that range"));
    }
    if null_label && num_classes == 0 {
        let message = "a model without classes has no use for a null label";
        return Err(Error::config("model.null_label", message, "set it to false, or model.num_classes above 0"));
    }
    Ok(())
}

/// The width of the sinusoidal time embedding must be even.
pub(super) fn even(width: usize) -> Result<()> {
    if width.is_multiple_of(2) {
        return Ok(());
    }
    let message = format!("{width} is odd, but sines and cosines come in pairs");
    Err(Error::config("model.time_embedding_dim", message, "give an even width"))
}

/// `divisor` must divide `whole`; the advice gives the nearest divisors.
pub(super) fn divides(key: &str, divisor: usize, whole_key: &str, whole: usize) -> Result<()> {
    if whole.is_multiple_of(divisor) {
        return Ok(());
    }
    let below = (1..divisor.min(whole)).rev().find(|d| whole.is_multiple_of(*d)).unwrap_or(1);
    let above = (divisor + 1..=whole).find(|d| whole.is_multiple_of(*d));
    let advice = match above {
        Some(above) => format!("give {below} or {above}, or change model.{whole_key}"),
        None => format!("give {below}, or change model.{whole_key}"),
    };
    Err(Error::config(format!("model.{key}"), format!("{divisor} does not divide model.{whole_key} = {whole}"), advice))
}
