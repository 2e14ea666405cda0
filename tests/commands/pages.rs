//! The README and the guide as text: their command blocks, links, and paths.

use std::fs;
use std::path::{Path, PathBuf};

/// Reasons for not running a block. Its `engine` commands are still parsed.
const REASONS: &[(&str, &str)] = &[
    ("network", "downloads something"),
    ("gpu", "needs a GPU"),
    ("cluster", "needs several machines, or a launcher that a test machine lacks"),
    ("checkout", "builds or edits the project"),
    ("long", "takes minutes however small it is made"),
];

/// A page, by its path relative to the project's root.
pub struct Page {
    pub name: String,
    pub text: String,
}

/// How a block of commands is handled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Each command is run, in the page's folder.
    Run,
    /// Each `engine serve` starts a server; the other commands send requests to it.
    Server,
    /// Not run, for one of [`REASONS`].
    Skip,
}

/// A fenced block of commands.
pub struct Block {
    pub mode: Mode,
    pub commands: Vec<Command>,
}

/// A command over one or more lines, without comments.
#[derive(Clone, Debug)]
pub struct Command {
    /// Its first line in the page, from 1.
    pub line: usize,
    pub text: String,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and every page of the guide.
pub fn pages() -> Vec<Page> {
    let guide = fs::read_dir(root().join("src/guide")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        guide.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect();
    paths.push(root().join("README.md"));
    paths.sort();
    let page = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
        Page { name, text: fs::read_to_string(&path).unwrap() }
    };
    paths.into_iter().map(page).collect()
}

/// The positions of a character outside quotes.
fn outside_quotes(text: &str) -> impl Iterator<Item = (usize, char)> + '_ {
    let mut quote = None;
    text.char_indices().filter(move |(_, c)| match (quote, *c) {
        (Some(open), c) => {
            if c == open {
                quote = None;
            }
            false
        }
        (None, '\'' | '"') => {
            quote = Some(*c);
            false
        }
        (None, _) => true,
    })
}

/// A line without its comment.
fn without_comment(line: &str) -> &str {
    let starts = |at: usize| at == 0 || line[..at].ends_with(' ');
    let end = outside_quotes(line).find(|(at, c)| *c == '#' && starts(*at)).map_or(line.len(), |(at, _)| at);
    line[..end].trim_end()
}

/// The shell words, with their quotes.
pub fn words(text: &str) -> Vec<String> {
    let spaces = outside_quotes(text).filter(|(_, c)| c.is_whitespace()).map(|(at, _)| at);
    let mut ends: Vec<usize> = spaces.collect();
    ends.push(text.len());
    let mut start = 0;
    let mut found = Vec::new();
    for end in ends {
        if end > start {
            found.push(text[start..end].to_string());
        }
        start = end + 1;
    }
    found
}

/// The mode of a fence's info string; none for blocks without commands.
fn mode(info: &str) -> Result<Option<Mode>, String> {
    let mut words = info.split_whitespace();
    match words.next() {
        None => return Err("a block without a language: `sh` for commands, `text` for output".into()),
        Some("sh") => {}
        Some(_) => return Ok(None),
    }
    match words.collect::<Vec<_>>()[..] {
        [] => Ok(Some(Mode::Run)),
        ["server"] => Ok(Some(Mode::Server)),
        [reason] if REASONS.iter().any(|(known, _)| *known == reason) => Ok(Some(Mode::Skip)),
        _ => {
            let known: Vec<String> = REASONS.iter().map(|(name, why)| format!("`{name}` ({why})")).collect();
            Err(format!("behind `sh` stands `server`, or why the block is not run: {}", known.join(", ")))
        }
    }
}

impl Page {
    /// Numbered lines outside blocks.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut inside = false;
        let mut found = Vec::new();
        for (at, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().starts_with("```");
            if !inside && !fence {
                found.push((at + 1, line));
            }
            inside ^= fence;
        }
        found
    }

    /// The command blocks, and errors in blocks.
    pub fn blocks(&self) -> (Vec<Block>, Vec<String>) {
        let (mut blocks, mut faults) = (Vec::new(), Vec::new());
        let mut lines = self.text.lines().enumerate().map(|(at, line)| (at + 1, line));
        while let Some((number, line)) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else { continue };
            let body: Vec<(usize, &str)> = lines.by_ref().take_while(|(_, line)| line.trim_start() != "```").collect();
            match mode(info) {
                Err(fault) => faults.push(format!("{}:{number}: {fault}", self.name)),
                Ok(Some(mode)) => blocks.push(Block { mode, commands: commands(&body) }),
                Ok(None) => {
                    let command = body.iter().find(|(_, line)| {
                        ["engine ", "cargo "].iter().any(|start| line.trim_start().starts_with(start))
                    });
                    let fault = |(number, _): &(usize, &str)| {
                        format!(
                            "{}:{number}: a command in a block of `{}`: make it one of `sh`",
                            self.name,
                            info.trim()
                        )
                    };
                    faults.extend(command.filter(|_| info.trim() != "yaml").map(fault));
                }
            }
        }
        (blocks, faults)
    }

    /// The targets of links and pictures, with their lines.
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut found = Vec::new();
        for (number, line) in self.prose() {
            for (at, _) in line.match_indices("](") {
                let target = &line[at + 2..];
                found.push((number, target[..target.find(')').unwrap_or(target.len())].to_string()));
            }
            let definition = line.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
            found.extend(definition.map(|(_, target)| (number, target.trim().to_string())));
        }
        found
    }

    /// Paths of the project in `code`, with their lines.
    pub fn paths(&self) -> Vec<(usize, String)> {
        const FOLDERS: &[&str] = &["src/", "tests/", "tools/", "benches/", "kernels/", "assets/", ".ci/"];
        let mut found = Vec::new();
        for (number, line) in self.prose() {
            let named =
                line.split('`').skip(1).step_by(2).filter(|span| FOLDERS.iter().any(|folder| span.starts_with(folder)));
            let plain = named.filter(|span| !span.contains(['*', '<', '…', ' ', '{']) && !span.contains("my_op"));
            found.extend(plain.map(|span| (number, span.to_string())));
        }
        found
    }

    /// The anchors of the page's headings, in GitHub's form.
    pub fn anchors(&self) -> Vec<String> {
        let headings = self.prose().into_iter().filter(|(_, line)| line.starts_with('#'));
        let kept = |c: char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        headings
            .map(|(_, line)| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                title.chars().filter(|c| kept(*c)).collect::<String>().replace(' ', "-")
            })
            .collect()
    }
}

/// The commands of a block's lines.
fn commands(body: &[(usize, &str)]) -> Vec<Command> {
    let mut found: Vec<Command> = Vec::new();
    let mut goes_on = false;
    for (line, text) in body {
        let text = without_comment(text).trim_start();
        let (text, more) = text.strip_suffix('\\').map_or((text, false), |text| (text.trim_end(), true));
        match found.last_mut() {
            Some(last) if goes_on => last.text = format!("{} {text}", last.text),
            _ if text.is_empty() => {}
            _ => found.push(Command { line: *line, text: text.to_string() }),
        }
        goes_on = more;
    }
    found
}

#[test]
fn commands_lose_their_comments_and_keep_their_quotes() {
    let text = "```sh\n# all of it\nengine a --b 'c # d' \\\n    --e  # f\n\necho x#y\n```\n\n```text\nengine a\n```\n```sh soon\n```\n";
    let page = Page { name: "P.md".into(), text: text.into() };
    let (blocks, faults) = page.blocks();
    let found: Vec<(usize, &str)> = blocks[0].commands.iter().map(|c| (c.line, c.text.as_str())).collect();
    assert_eq!(found, [(3, "engine a --b 'c # d' --e"), (6, "echo x#y")]);
    assert_eq!(words(&blocks[0].commands[0].text), ["engine", "a", "--b", "'c # d'", "--e"]);
    assert!(faults[0].starts_with("P.md:10: a command in a block of `text`"), "{faults:?}");
    assert!(faults[1].starts_with("P.md:12: behind `sh`"), "{faults:?}");
}
