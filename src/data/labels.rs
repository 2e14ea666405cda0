//! Label files beside pictures: `labels.csv`, `metadata.csv` and `metadata.jsonl` (Hugging Face's imagefolder),
//! `dataset.json` (StyleGAN's and EDM's), and WebDataset's `.cls` and `.json` members.

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde_json::Value;

use super::dataset::Split;
use super::layout::split_of;
use crate::error::{Error, Result};

/// The longest label file that is read.
pub(super) const LONGEST_LABELS: u64 = 256 << 20;
/// The longest member that holds one label.
pub(super) const LONGEST_LABEL: u64 = 1 << 16;

const FILE_COLUMNS: [&str; 12] = [
    "file_name",
    "filename",
    "file",
    "image",
    "image_path",
    "image_name",
    "filepath",
    "path",
    "img",
    "name",
    "id",
    "image_id",
];
const LABEL_COLUMNS: [&str; 9] =
    ["label", "labels", "class", "class_name", "category", "target", "label_name", "cls", "y"];
const SPLIT_COLUMNS: [&str; 3] = ["split", "set", "subset"];
const ADVICE: &str = "give it the columns file_name and label, or remove it";

/// A class as given in a label file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Label {
    /// By number, unless a class has that name.
    Number(u64),
    /// By number only.
    #[cfg_attr(not(feature = "formats"), allow(dead_code))] // only parquet has numbers
    Index(u64),
    /// By name.
    Name(String),
}

impl Label {
    fn of(text: &str) -> Option<Self> {
        let text = text.trim();
        match text.parse() {
            Ok(number) => Some(Self::Number(number)),
            Err(_) if text.is_empty() => None,
            Err(_) => Some(Self::Name(text.to_owned())),
        }
    }
}

/// A label file's entry for one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its path relative to the label file's folder, possibly without folders or ending.
    pub file: String,
    pub label: Option<Label>,
    pub split: Option<Split>,
}

/// A label file.
#[derive(Debug)]
pub(super) struct LabelFile {
    /// Its path in the source.
    pub path: String,
    pub entries: Vec<Entry>,
}

/// The content of all label files of a source.
#[derive(Debug, Default)]
pub(super) struct Labels {
    files: Vec<LabelFile>,
    /// WebDataset's labels by the member's path without ending.
    keyed: HashMap<String, Label>,
    /// The classes by number, if the source gives them.
    class_names: Option<Vec<String>>,
}

/// The format of a label file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Csv,
    JsonLines,
    DatasetJson,
    /// The class names, one per line.
    Classes,
}

/// The format of the label file at this path; None if it is not one.
pub(super) fn form_of(path: &str) -> Option<Form> {
    match path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase().as_str() {
        "labels.csv" | "label.csv" | "metadata.csv" | "trainlabels.csv" | "train_labels.csv" | "labels.tsv" => {
            Some(Form::Csv)
        }
        "metadata.jsonl" | "labels.jsonl" => Some(Form::JsonLines),
        "dataset.json" => Some(Form::DatasetJson),
        "classes.txt" | "class_names.txt" => Some(Form::Classes),
        _ => None,
    }
}

/// Whether a table is called after its labels: it must have some. One called `metadata` may have only texts.
fn names_labels(path: &str) -> bool {
    !base(path).to_ascii_lowercase().starts_with("metadata")
}

/// Whether a member at this path may hold the label of the picture with the same name.
pub(super) fn is_keyed(path: &str) -> bool {
    let ending = path.rsplit_once('.').map(|(_, ending)| ending);
    matches!(ending, Some("cls" | "json")) && form_of(path).is_none()
}

impl Labels {
    /// Adds a label file. `root` is the source, for errors.
    pub fn add(&mut self, root: &Path, path: &str, form: Form, bytes: &[u8]) -> Result<()> {
        let entries = match form {
            Form::Csv => csv_entries(bytes, names_labels(path)),
            Form::JsonLines => json_lines(bytes, names_labels(path)),
            Form::DatasetJson => dataset_json(bytes),
            Form::Classes => {
                let text = String::from_utf8_lossy(bytes);
                self.name_classes(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(String::from).collect());
                return Ok(());
            }
        };
        let entries = entries.map_err(|message| Error::file(root.join(path), message, ADVICE))?;
        self.files.push(LabelFile { path: path.to_owned(), entries });
        Ok(())
    }

    /// Adds a WebDataset member, if it holds a label.
    pub fn add_keyed(&mut self, path: &str, bytes: &[u8]) {
        let Some((key, ending)) = path.rsplit_once('.') else { return };
        let label = match ending {
            "cls" => std::str::from_utf8(bytes).ok().and_then(Label::of),
            _ => serde_json::from_slice::<Value>(bytes).ok().as_ref().and_then(label_in),
        };
        // A `.cls` is the label itself and takes precedence over a `.json`.
        if let Some(label) = label.filter(|_| ending == "cls" || !self.keyed.contains_key(key)) {
            self.keyed.insert(key.to_owned(), label);
        }
    }

    /// The label of the picture at this path, if it has one.
    #[cfg(feature = "formats")]
    pub fn insert(&mut self, path: &str, label: Option<Label>) {
        self.keyed.extend(label.map(|label| (path.to_owned(), label)));
    }

    /// The classes by number.
    pub fn name_classes(&mut self, names: Vec<String>) {
        self.class_names = Some(names).filter(|names| !names.is_empty());
    }

    /// The classes by number, if the source gives them.
    pub fn class_names(&self) -> Option<&[String]> {
        self.class_names.as_deref()
    }

    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.keyed.is_empty()
    }

    /// Their names in notes.
    pub fn names(&self) -> String {
        match &self.files[..] {
            [] => "its labels".into(),
            files => files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(", "),
        }
    }

    /// The labels of `paths`, and the listed files that do not exist.
    pub fn of(&self, paths: &[&str]) -> (Vec<Option<Said<'_>>>, Vec<&str>) {
        let mut found: Vec<Option<Said>> = vec![None; paths.len()];
        let mut missing = Vec::new();
        let index = |name: &dyn Fn(&str) -> String| {
            let mut index: HashMap<String, Vec<u32>> = HashMap::new();
            paths.iter().zip(0..).for_each(|(path, i)| index.entry(name(path)).or_default().push(i));
            index
        };
        // Most files list whole paths: other ways are tried only if that fails.
        let whole = LazyCell::new(|| index(&normal));
        let stems = LazyCell::new(|| index(&|path| stem(&normal(path)).to_owned()));
        let bases = LazyCell::new(|| index(&|path| base(path).to_owned()));
        let base_stems = LazyCell::new(|| index(&|path| stem(base(path)).to_owned()));
        for file in &self.files {
            let folder = file.path.rfind('/').map_or("", |at| &file.path[..=at]);
            let below = |found: Option<&Vec<u32>>| {
                let mut below =
                    found.into_iter().flatten().map(|&i| i as usize).filter(|&i| paths[i].starts_with(folder));
                below.next().filter(|_| below.next().is_none())
            };
            for entry in &file.entries {
                let path = normal(&format!("{folder}{}", entry.file));
                let at = below(whole.get(&path))
                    .or_else(|| below(stems.get(&path)))
                    .or_else(|| below(bases.get(base(&path))))
                    .or_else(|| below(base_stems.get(base(&path))));
                match at {
                    Some(at) => found[at] = Some(Said { label: entry.label.as_ref(), split: entry.split }),
                    None => missing.push(entry.file.as_str()),
                }
            }
        }
        for (found, path) in found.iter_mut().zip(paths) {
            if let Some(label) = self.keyed.get(stem(path)) {
                found.get_or_insert(Said { label: Some(label), split: None });
            }
        }
        (found, missing)
    }
}

/// The label of a picture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub label: Option<&'a Label>,
    pub split: Option<Split>,
}

/// A path without its ending.
fn stem(path: &str) -> &str {
    let folder = path.rfind('/').map_or(0, |at| at + 1);
    path[folder..].rfind('.').map_or(path, |at| &path[..folder + at])
}

/// A path's last component.
fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// A path without `./` and doubled slashes.
fn normal(path: &str) -> String {
    let path = path.replace('\\', "/");
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect::<Vec<_>>().join("/")
}

fn csv_entries(bytes: &[u8], needs_labels: bool) -> Result<Vec<Entry>, String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let first = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let delimiter =
        [b',', b'\t', b';'].into_iter().max_by_key(|&d| (first.iter().filter(|&&b| b == d).count(), d == b','));
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter.unwrap_or(b','))
        .from_reader(bytes);
    let mut records = Vec::new();
    for (line, record) in reader.byte_records().enumerate() {
        records.push(record.map_err(|e| format!("line {}: {}", line + 1, e.to_string().replace('\n', " ")))?);
    }
    let cell = |record: &csv::ByteRecord, at: usize| -> Option<String> {
        record.get(at).map(|cell| String::from_utf8_lossy(cell).trim().to_owned())
    };
    let Some(head) = records.first() else { return Ok(Vec::new()) };
    let head: Vec<String> =
        (0..head.len()).filter_map(|at| cell(head, at)).map(|cell| cell.to_ascii_lowercase()).collect();
    let find = |known: &[&str]| known.iter().find_map(|name| head.iter().position(|cell| cell == name));
    let split = find(&SPLIT_COLUMNS);
    // The files alone, or with their splits, are no fault: the set is unlabelled.
    let others = head.len() - usize::from(split.is_some());
    let (file, label, skip) = match (find(&FILE_COLUMNS), find(&LABEL_COLUMNS)) {
        (Some(_), None) if needs_labels && others > 1 => {
            return Err(format!("has no column of labels among {}", shown(&head)));
        }
        (Some(file), label) => (file, label, 1),
        // Without a header: the file and its label, in this order.
        (None, None) if head.len() == 2 => (0, Some(1), 0),
        _ => return Err(format!("has no column of the files' names among {}", shown(&head))),
    };
    let split = split.filter(|_| skip == 1);
    let entry = |record: &csv::ByteRecord| {
        let file = cell(record, file).filter(|file| !file.is_empty())?;
        let label = label.and_then(|at| cell(record, at)).and_then(|text| Label::of(&text));
        let split = split.and_then(|at| cell(record, at)).and_then(|text| split_of(&text));
        Some(Entry { file, label, split })
    };
    Ok(records.iter().skip(skip).filter_map(entry).collect())
}

/// The names of columns in a message: they may contain anything, even line breaks.
fn shown(names: &[impl AsRef<str>]) -> String {
    let all: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    all.join(", ").chars().take(200).collect::<String>().escape_debug().collect()
}

fn json_lines(bytes: &[u8], needs_labels: bool) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let (mut has_labels, mut fields) = (false, BTreeSet::new());
    for (number, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_slice(line).map_err(|e| format!("line {}: {e}", number + 1))?;
        let file = FILE_COLUMNS.iter().find_map(|name| value.get(name)?.as_str());
        let Some(file) = file else {
            return Err(format!("line {} has no `file_name`", number + 1));
        };
        let split = value.get("split").and_then(Value::as_str).and_then(split_of);
        has_labels |= LABEL_COLUMNS.iter().any(|name| value.get(name).is_some());
        let names = value.as_object().into_iter().flat_map(|object| object.keys());
        fields.extend(names.filter(|name| !SPLIT_COLUMNS.contains(&name.as_str())).take(20).cloned());
        entries.push(Entry { file: file.to_owned(), label: label_in(&value), split });
    }
    if needs_labels && !has_labels && fields.len() > 1 {
        return Err(format!("has no field of labels among {}", shown(&fields.into_iter().collect::<Vec<String>>())));
    }
    Ok(entries)
}

/// The label in a JSON object.
fn label_in(value: &Value) -> Option<Label> {
    let value = LABEL_COLUMNS.iter().find_map(|name| value.get(name))?;
    label_value(value)
}

fn label_value(value: &Value) -> Option<Label> {
    match value {
        Value::Number(number) => number.as_u64().map(Label::Number),
        Value::String(text) => Label::of(text),
        // One-hot, as in some files.
        Value::Array(numbers) => {
            let ones: Vec<usize> = (0..numbers.len()).filter(|&i| numbers[i].as_f64() == Some(1.0)).collect();
            let zeros = numbers.iter().filter(|number| number.as_f64() == Some(0.0)).count();
            matches!(&ones[..], [_] if zeros + 1 == numbers.len()).then(|| Label::Number(ones[0] as u64))
        }
        _ => None,
    }
}

fn dataset_json(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|e| format!("is not JSON: {e}"))?;
    let entry = |file: &str, label: &Value| -> Result<Entry, String> {
        let read = label_value(label);
        if read.is_none() && !label.is_null() {
            let shown: String = label.to_string().chars().take(60).collect();
            let file: String = file.chars().take(100).collect::<String>().escape_debug().collect();
            return Err(format!("gives {file} the label {shown}, which is not a class"));
        }
        Ok(Entry { file: file.to_owned(), label: read, split: None })
    };
    match value.get("labels") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(pairs)) => {
            let pair = |pair: &Value| match pair.as_array().map(Vec::as_slice) {
                Some([Value::String(file), label]) => entry(file, label),
                _ => Err("has a label that is not [file, class]".to_owned()),
            };
            pairs.iter().map(pair).collect()
        }
        Some(Value::Object(pairs)) => pairs.iter().map(|(file, label)| entry(file, label)).collect(),
        Some(_) => Err("its `labels` is not a list".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(file: &str, label: Option<Label>) -> Entry {
        Entry { file: file.into(), label, split: None }
    }

    fn name(text: &str) -> Option<Label> {
        Some(Label::Name(text.into()))
    }

    #[test]
    fn tables_are_read_with_and_without_a_header() {
        let expected = [entry("a.png", name("cat")), entry("b, c.png", Some(Label::Number(7)))];
        let forms = [
            "file_name,label\na.png,cat\n\"b, c.png\",7\n",
            "\u{feff}Label;FileName\r\ncat;a.png\r\n7;b, c.png\r\n",
            "a.png\tcat\nb, c.png\t7",
        ];
        for form in forms {
            assert_eq!(csv_entries(form.as_bytes(), true).unwrap(), expected, "{form:?}");
        }
        let split = csv_entries(b"id,split,target\n1,train,0\n2,test,\n", true).unwrap();
        assert_eq!(split[0], Entry { file: "1".into(), label: Some(Label::Number(0)), split: Some(Split::Train) });
        assert_eq!((split[1].label.clone(), split[1].split), (None, Some(Split::Validation)));
        assert!(csv_entries(b"a,b,c\n", true).unwrap_err().contains("a, b, c"));
        // Found by fuzzing: a cell with line breaks.
        assert!(!csv_entries(b"\"7\n\n2\t0\n2\t0\x02", true).unwrap_err().contains('\n'));
    }

    #[test]
    fn a_table_of_labels_names_the_column_it_lacks() {
        for (table, columns) in
            [("name;klass\na.png;cat\n", "name, klass"), ("id,breed,split\n1,pug,train\n", "id, breed, split")]
        {
            let fault = csv_entries(table.as_bytes(), true).unwrap_err();
            assert_eq!(fault, format!("has no column of labels among {columns}"));
            // `metadata.csv` may describe pictures otherwise.
            assert!(csv_entries(table.as_bytes(), false).unwrap()[0].label.is_none());
        }
        for table in ["file_name\na.png\n", "file_name,split\na.png,train\n"] {
            assert!(csv_entries(table.as_bytes(), true).unwrap()[0].label.is_none(), "{table}");
        }
        let line = br#"{"file_name": "a.png", "klass": "cat"}"#;
        assert_eq!(json_lines(line, true).unwrap_err(), "has no field of labels among file_name, klass");
        assert!(
            json_lines(line, false).is_ok() && json_lines(br#"{"file_name": "a.png", "label": null}"#, true).is_ok()
        );
        let mut labels = Labels::default();
        let fault = labels.add(Path::new("set"), "labels.csv", Form::Csv, b"name;klass\na.png;cat\n").unwrap_err();
        assert!(fault.to_string().ends_with("give it the columns file_name and label, or remove it"), "{fault}");
        labels.add(Path::new("set"), "metadata.csv", Form::Csv, b"file_name,text\na.png,a cat\n").unwrap();
    }

    #[test]
    fn json_is_read_in_each_of_its_forms() {
        let lines = b"{\"file_name\": \"a.png\", \"text\": \"x\", \"label\": 3}\n\n{\"file_name\": \"b.png\"}\n";
        assert_eq!(json_lines(lines, true).unwrap(), [entry("a.png", Some(Label::Number(3))), entry("b.png", None)]);
        assert!(json_lines(b"{}", true).unwrap_err().contains("line 1 has no `file_name`"));
        let edm = br#"{"labels": [["00000/img00000000.png", 6], ["b.png", [0, 1, 0]], ["c.png", null]]}"#;
        let expected = [
            entry("00000/img00000000.png", Some(Label::Number(6))),
            entry("b.png", Some(Label::Number(1))),
            entry("c.png", None),
        ];
        assert_eq!(dataset_json(edm).unwrap(), expected);
        assert_eq!(dataset_json(br#"{"labels": null}"#).unwrap(), []);
        assert!(dataset_json(br#"{"labels": [["a.png", [0.5, 0.2]]]}"#).unwrap_err().contains("not a class"));
    }

    #[test]
    fn pictures_are_found_by_path_name_or_stem() {
        let mut labels = Labels::default();
        let table = b"file,label\n1,x\ntrain/2.png,y\n3.png,z\n4.png,w\n9.png,v\n";
        labels.add(Path::new("set"), "set/labels.csv", Form::Csv, table).unwrap();
        let paths = ["set/images/1.png", "set/train/2.png", "set/deep/down/3.png", "set/4.png", "other/9.png"];
        let (found, missing) = labels.of(&paths);
        let told: Vec<_> = found.iter().map(|entry| entry.and_then(|entry| entry.label.cloned())).collect();
        assert_eq!(told, [name("x"), name("y"), name("z"), name("w"), None]);
        assert_eq!(missing, ["9.png"], "it lies beside the label file's folder, not below it");
    }
}
