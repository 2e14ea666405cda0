//! Numbers in messages: counted things, and sizes of memory.

use std::fmt::Display;

/// `1 image`, `2 images`, `0 classes`. Only the end of `noun` changes: `training image` is fine, `image of a class` is not.
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    format!("{count} {}", named(noun, count == N::from(1)))
}

/// `image` for one, `images` for several: for a number that is written in another way.
pub fn named(noun: &str, is_one: bool) -> String {
    let ending = match is_one {
        true => "",
        false if ["s", "x", "ch", "sh"].iter().any(|end| noun.ends_with(end)) => "es",
        false => "s",
    };
    format!("{noun}{ending}")
}

/// A size of memory, with one decimal: `20.6 GiB`, `512.0 MiB`, `1.5 KiB`, `400 bytes`.
pub fn memory(bytes: u64) -> String {
    const UNITS: [(u64, &str); 4] = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => counted(bytes, "byte"),
    }
}

/// Two sizes to compare. Where [`memory`] writes them alike they are in bytes.
pub fn memory_pair(one: u64, other: u64) -> [String; 2] {
    let texts = [one, other].map(memory);
    if texts[0] == texts[1] { [one, other].map(|bytes| counted(bytes, "byte")) } else { texts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!([0u64, 1, 2].map(|count| counted(count, "thread")), ["0 threads", "1 thread", "2 threads"]);
        assert_eq!([1usize, 3].map(|count| counted(count, "class")), ["1 class", "3 classes"]);
        assert_eq!(counted(2u32, "batch"), "2 batches");
    }

    #[test]
    fn memory_is_in_the_largest_unit() {
        assert_eq!(
            [145_960_369_624, 22_118_658_048, 1 << 20, 1536, 400, 1].map(memory),
            ["135.9 GiB", "20.6 GiB", "1.0 MiB", "1.5 KiB", "400 bytes", "1 byte"]
        );
        assert_eq!(memory_pair(2_147_483_649, 2_147_483_648), ["2147483649 bytes", "2147483648 bytes"]);
        assert_eq!(memory_pair(3 << 30, 2 << 30), ["3.0 GiB", "2.0 GiB"]);
    }
}
