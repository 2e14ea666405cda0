//! Sizes of images. In configurations, on command lines and in messages, the height always comes first.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Height and width of images, in pixels.
///
/// A single number means a square, in YAML and JSON as in `ImageSize::from(32)`; else it is `[height, width]`. A square is written
/// as a number.
///
/// ```
/// use engine::image_size::ImageSize;
///
/// let size: ImageSize = serde_json::from_str("[48, 32]")?;
/// assert_eq!((size, size.to_string()), (ImageSize::new(48, 32), "48x32 (height x width)".into()));
/// assert_eq!(serde_json::to_string(&ImageSize::from(32))?, "32");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ImageSize {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl ImageSize {
    /// `height` rows of `width` pixels.
    pub const fn new(height: usize, width: usize) -> Self {
        Self { height, width }
    }

    /// Height and width.
    pub const fn sides(self) -> [usize; 2] {
        [self.height, self.width]
    }

    /// Number of pixels.
    pub const fn pixels(self) -> usize {
        self.height * self.width
    }

    /// Whether the sides are equal.
    pub const fn is_square(self) -> bool {
        self.height == self.width
    }

    /// Half the height and width, rounded up.
    pub const fn halved(self) -> Self {
        Self::new(self.height.div_ceil(2), self.width.div_ceil(2))
    }

    /// In a configuration: `32`, or `[48, 32]`.
    pub fn as_value(self) -> String {
        if self.is_square() { self.height.to_string() } else { format!("[{}, {}]", self.height, self.width) }
    }

    /// With the channels: `32x32x3`, or `48x32x3 (height x width x channels)`.
    pub fn with_channels(self, channels: usize) -> String {
        let order = if self.is_square() { "" } else { " (height x width x channels)" };
        format!("{}x{}x{channels}{order}", self.height, self.width)
    }
}

impl From<usize> for ImageSize {
    fn from(side: usize) -> Self {
        Self::new(side, side)
    }
}

impl From<[usize; 2]> for ImageSize {
    fn from([height, width]: [usize; 2]) -> Self {
        Self::new(height, width)
    }
}

/// `32x32`, or `48x32 (height x width)`.
impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}{}", self.height, self.width, if self.is_square() { "" } else { " (height x width)" })
    }
}

/// On a command line: `32`, or `48x32`.
impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let side = |text: &str| text.trim().parse::<u32>().ok().map(|side| side as usize);
        let size = match text.split_once(['x', 'X', ',']) {
            None => side(text).map(Self::from),
            Some((height, width)) => side(height).zip(side(width)).map(|(height, width)| Self::new(height, width)),
        };
        size.ok_or_else(|| "give a number of pixels such as 32, or HEIGHTxWIDTH such as 48x32".into())
    }
}

impl Serialize for ImageSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.is_square() { self.height.serialize(serializer) } else { self.sides().serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for ImageSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Sides)
    }
}

struct Sides;

impl<'de> Visitor<'de> for Sides {
    type Value = ImageSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number of pixels such as 32, or [height, width] such as [48, 32]")
    }

    fn visit_u64<E: serde::de::Error>(self, side: u64) -> Result<ImageSize, E> {
        let side = usize::try_from(side).map_err(|_| E::invalid_value(Unexpected::Unsigned(side), &self))?;
        Ok(side.into())
    }

    fn visit_i64<E: serde::de::Error>(self, side: i64) -> Result<ImageSize, E> {
        let side = usize::try_from(side).map_err(|_| E::invalid_value(Unexpected::Signed(side), &self))?;
        Ok(side.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<ImageSize, A::Error> {
        let (mut sides, mut len) = ([0; 2], 0);
        while let Some(value) = access.next_element::<serde_json::Value>()? {
            let side = value.as_u64().and_then(|side| usize::try_from(side).ok());
            let Some(side) = side else {
                let found = format!("a list that holds {value}");
                return Err(A::Error::invalid_value(Unexpected::Other(&found), &self));
            };
            if let Some(place) = sides.get_mut(len) {
                *place = side;
            }
            len += 1;
        }
        if len != 2 {
            return Err(A::Error::invalid_value(Unexpected::Other(&format!("a list of {len}")), &self));
        }
        Ok(sides.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_is_a_number_and_others_are_height_and_width() {
        for (size, json) in [(ImageSize::from(32), "32"), (ImageSize::new(48, 32), "[48,32]")] {
            assert_eq!(serde_json::to_string(&size).unwrap(), json);
            assert_eq!(serde_json::from_str::<ImageSize>(json).unwrap(), size);
        }
        assert_eq!(serde_json::from_str::<ImageSize>("[16, 16]").unwrap(), 16.into());
        assert_eq!([ImageSize::from(32).as_value(), ImageSize::new(48, 32).as_value()], ["32", "[48, 32]"]);
        assert_eq!(ImageSize::from(32).to_string(), "32x32");
        assert_eq!(ImageSize::new(48, 32).with_channels(3), "48x32x3 (height x width x channels)");
        assert_eq!(ImageSize::new(7, 4).halved(), ImageSize::new(4, 2));
    }

    #[test]
    fn what_is_no_size_is_refused_with_both_forms() {
        for json in ["\"32\"", "-1", "1.5", "[32]", "[1, 2, 3]", "[32, -1]", "[32, \"x\"]", "null", "{}"] {
            let message = serde_json::from_str::<ImageSize>(json).unwrap_err().to_string();
            assert!(message.contains("[height, width]") && !message.contains('\n'), "{json}: {message}");
        }
    }

    #[test]
    fn command_lines_name_one_side_or_both() {
        assert_eq!("32".parse(), Ok(ImageSize::from(32)));
        assert_eq!("48x32".parse(), Ok(ImageSize::new(48, 32)));
        for text in ["", "x", "48x", "-1", "48x32x3", "a"] {
            assert!(text.parse::<ImageSize>().unwrap_err().contains("HEIGHTxWIDTH"), "{text}");
        }
    }
}
