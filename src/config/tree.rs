//! YAML as a tree with line numbers, and its validated application to a configuration.
//!
//! A configuration is held as JSON while values are set: after each value the whole is deserialized again, so that an error can
//! give the file, the line, the key, and the expected type.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::Config;
use crate::error::nearest;
use crate::models::ModelConfig;
use crate::{Error, Result};

/// Largest configuration text, in bytes.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// A YAML node. Mappings keep their order and the line of each key.
#[derive(Debug)]
pub(super) enum Node {
    Scalar(Value),
    List(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key of a mapping, its line (from 1, 0 if unknown), and its value.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub line: u64,
    pub value: Node,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a mapping")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            entries.push(Entry { key: key.value, line, value: access.next_value()? });
        }
        Ok(Node::Mapping(entries))
    }
}

impl Node {
    /// Parses YAML; `place` is the file's name in errors.
    pub fn parse(text: &str, place: &str) -> Result<Self> {
        if text.len() > MAX_BYTES {
            let message = format!("{} bytes is too long for a configuration", text.len());
            return Err(Error::config(place, message, format!("keep it under {MAX_BYTES} bytes")));
        }
        serde_saphyr::from_str(text).map_err(|error| {
            let place = match error.location() {
                Some(location) if location.line() > 0 => format!("{place}:{}", location.line()),
                _ => place.to_string(),
            };
            let message = one_line(&error.without_snippet().to_string());
            let message = message.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
            Error::config(place, format!("is not valid YAML: {message}"), "`engine presets` shows well-formed ones")
        })
    }

    fn from_json(value: Value) -> Self {
        match value {
            Value::Array(items) => Self::List(items.into_iter().map(Self::from_json).collect()),
            Value::Object(map) => {
                let entry = |(key, value)| Entry { key, line: 0, value: Self::from_json(value) };
                Self::Mapping(map.into_iter().map(entry).collect())
            }
            scalar => Self::Scalar(scalar),
        }
    }

    /// Parses JSON; `place` is its origin in errors.
    pub fn parse_json(text: &str, place: &str) -> Result<Self> {
        if text.len() > MAX_BYTES {
            let message = format!("{} bytes is too long for a configuration", text.len());
            return Err(Error::config(place, message, "the file is damaged or was not written by engine"));
        }
        let value = serde_json::from_str(text).map_err(|error| {
            let message = format!("is not valid JSON: {}", one_line(&error.to_string()));
            Error::config(place, message, "the file is damaged or was not written by engine")
        })?;
        Ok(Self::from_json(value))
    }

    /// As JSON, for a value below a section: mappings are refused, because no key takes one.
    fn into_value(self) -> Option<Value> {
        match self {
            Self::Scalar(value) => Some(value),
            Self::List(items) => items.into_iter().map(Self::into_value).collect::<Option<Vec<_>>>().map(Value::Array),
            Self::Mapping(_) => None,
        }
    }
}

/// Replaces line breaks and control characters with spaces.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A key for error messages: short and on one line.
fn shown(key: &str) -> String {
    let mut short: String = key.chars().take(60).collect();
    if short.len() < key.len() {
        short.push('…');
    }
    one_line(&short)
}

/// The origin of values, for errors.
pub(super) struct Origin<'a> {
    pub place: &'a str,
}

impl Origin<'_> {
    fn at(&self, line: u64, key: &str) -> String {
        match line {
            0 => format!("{}: {key}", self.place),
            line => format!("{}:{line}: {key}", self.place),
        }
    }
}

/// A configuration as JSON, whose values are set one by one.
pub(super) struct Overlay {
    root: Map<String, Value>,
}

impl Overlay {
    /// Starts from `base`.
    pub fn new(base: &Config) -> Result<Self> {
        match serde_json::to_value(base) {
            Ok(Value::Object(root)) => Ok(Self { root }),
            _ => Err(Error::config("configuration", "holds a number that is not finite", "set it to a finite one")),
        }
    }

    /// The result.
    pub fn finish(self) -> Result<Config> {
        serde_json::from_value(Value::Object(self.root)).map_err(|error| {
            Error::config("configuration", one_line(&error.to_string()), "`engine presets` shows whole ones")
        })
    }

    /// Applies a whole document: a mapping of sections. `extra` are further keys allowed at the top, which the caller handles.
    pub fn apply_document(&mut self, document: Node, extra: &[&str], origin: &Origin) -> Result<()> {
        let sections = match document {
            Node::Mapping(sections) => sections,
            Node::Scalar(Value::Null) => return Ok(()),
            _ => {
                let advice = format!("write sections such as `training:` ({})", self.sections().join(", "));
                return Err(Error::config(origin.place, "is not a mapping of sections", advice));
            }
        };
        for section in sections {
            if extra.contains(&section.key.as_str()) {
                continue;
            }
            if !self.root.contains_key(&section.key) {
                return Err(self.unknown(&section.key, origin.at(section.line, &shown(&section.key))));
            }
            match section.value {
                Node::Mapping(entries) => self.apply_section(&section.key, entries, origin)?,
                Node::Scalar(Value::Null) => {}
                _ => {
                    let message = "is a section and cannot be a value itself";
                    let advice = "indent its keys below it, as in `training:` / `  batch_size: 64`";
                    return Err(Error::config(origin.at(section.line, &section.key), message, advice));
                }
            }
        }
        Ok(())
    }

    fn apply_section(&mut self, section: &str, mut entries: Vec<Entry>, origin: &Origin) -> Result<()> {
        let given = |key: &str| entries.iter().any(|e| e.key == key && !matches!(e.value, Node::Scalar(Value::Null)));
        if section == "training" && given("num_epochs") && given("num_steps") {
            let line = entries.iter().find(|e| e.key == "num_steps").map_or(0, |e| e.line);
            let message = "the run's length is given twice, in steps and in epochs";
            return Err(Error::config(origin.at(line, "training.num_steps"), message, "give one of the two"));
        }
        // The model's kind decides which keys are known, so it comes first.
        entries.sort_by_key(|entry| !(section == "model" && entry.key == "kind"));
        // A group of values may only be valid together (a bound and its value), but each type can be checked alone.
        for entry in entries {
            self.apply_value(section, entry, origin)?;
        }
        Ok(())
    }

    /// Sets one value.
    pub fn apply_value(&mut self, section: &str, entry: Entry, origin: &Origin) -> Result<()> {
        let path = format!("{section}.{}", entry.key);
        let place = origin.at(entry.line, &format!("{section}.{}", shown(&entry.key)));
        let known = self.root.get(section).and_then(Value::as_object).is_some_and(|s| s.contains_key(&entry.key));
        if !known {
            return Err(self.unknown(&path, place));
        }
        let Some(value) = entry.value.into_value() else {
            return Err(Error::config(place, "takes a value, not a mapping", format!("write `{path}: VALUE`")));
        };
        let mut changed = self.root.clone();
        if path == "model.kind" {
            changed.insert(section.into(), model_of_kind(&value, &place)?);
        } else if let Some(Value::Object(keys)) = changed.get_mut(section) {
            // The run's length has two alternative keys: a later one replaces an earlier one.
            let other = match path.as_str() {
                "training.num_steps" => Some("num_epochs"),
                "training.num_epochs" => Some("num_steps"),
                _ => None,
            };
            if let (Some(other), false) = (other, value.is_null()) {
                keys.insert(other.into(), Value::Null);
            }
            keys.insert(entry.key, value);
        }
        match serde_json::from_value::<Config>(Value::Object(changed.clone())) {
            Ok(_) => self.root = changed,
            Err(error) => return Err(mistyped(&error.to_string(), place)),
        }
        Ok(())
    }

    fn sections(&self) -> Vec<&str> {
        self.root.keys().map(String::as_str).collect()
    }

    /// The error for an unknown key, with the nearest known one.
    pub fn unknown(&self, path: &str, place: String) -> Error {
        let all: Vec<String> = self
            .root
            .iter()
            .flat_map(|(section, keys)| {
                keys.as_object().into_iter().flatten().map(move |(k, _)| format!("{section}.{k}"))
            })
            .collect();
        let (section, key) = path.split_once('.').unwrap_or(("", path));
        let in_section = all.iter().filter_map(|known| known.strip_prefix(section)?.strip_prefix('.'));
        let advice = if let Some(found) = all.iter().find(|known| known.split_once('.').is_some_and(|(_, k)| k == key))
        {
            format!("it belongs under its section: {found}")
        } else if let Some(near) = nearest(key, in_section) {
            format!("did you mean {section}.{near}?")
        } else if let Some(near) = nearest(path, self.root.keys().map(String::as_str).filter(|_| section.is_empty())) {
            format!("did you mean the section `{near}:`?")
        } else if let Some(near) =
            nearest(path, all.iter().map(String::as_str).filter(|_| !self.root.contains_key(section)))
        {
            format!("did you mean {near}?")
        } else {
            match self.root.get(section).and_then(Value::as_object) {
                Some(keys) => format!("`{section}:` knows {}", keys.keys().cloned().collect::<Vec<_>>().join(", ")),
                None => format!("the sections are {}", self.sections().join(", ")),
            }
        };
        Error::config(place, "is not a known key", advice)
    }
}

/// The `model` section of a newly chosen kind: its defaults.
fn model_of_kind(value: &Value, place: &str) -> Result<Value> {
    let kinds = ModelConfig::kinds();
    let names: Vec<&str> = kinds.iter().map(ModelConfig::kind).collect();
    let wanted = value.as_str().unwrap_or_default();
    match kinds.iter().find(|kind| kind.kind() == wanted) {
        Some(kind) => Ok(serde_json::to_value(kind).unwrap_or(Value::Null)),
        None => {
            let message = format!("no model is of kind {}", shown(&value.to_string()));
            let advice = match nearest(wanted, names.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("the kinds are {}", names.join(", ")),
            };
            Err(Error::config(place, message, advice))
        }
    }
}

/// Serde's type error, in terms of YAML.
fn mistyped(message: &str, place: String) -> Error {
    let message = one_line(message);
    let (found, expected) = message.split_once(", expected ").unwrap_or((&message, "a value of another type"));
    if let Some(name) = found.strip_prefix("unknown variant ") {
        let choices: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let advice = match nearest(name.trim_matches('`'), choices.iter().copied()) {
            Some(near) => format!("did you mean {near}? The choices are {}", choices.join(", ")),
            None => format!("the choices are {}", choices.join(", ")),
        };
        return Error::config(place, format!("{} is not one of its choices", shown(name)), advice);
    }
    let found = found.trim_start_matches("invalid type: ").trim_start_matches("invalid value: ");
    let expected = match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list such as [40, 80]",
        "a string" | "path string" => "a text",
        other => other,
    };
    Error::config(place, format!("{} does not fit", shown(found)), format!("give {expected}"))
}
