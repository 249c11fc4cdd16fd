//! The tree is tidy: style that a machine can check is checked here and not in review.
//!
//! Every rule is a function from files to a list of what is wrong, so that each can be shown a bad
//! example below. Strings that a rule looks for are put together by `concat!`: this file is checked
//! too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

const RUST_LINES_MAX: usize = 700;

/// Marks of unfinished work.
const MARKERS: [&str; 7] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("db", "g!"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
];

/// Directories of one machine, which mean nothing on another.
const MACHINE_PATHS: [&str; 3] = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/fa", "rm/")];

const SLEEPS: [&str; 2] = [concat!("sle", "ep("), concat!("sle", "ep_until(")];

/// What excuses a pause in a test: the line says what it polls for.
const POLLS: &str = "// polls:";

const ADR_DIR: &str = "docs/adr/";

#[test]
fn rust_files_are_short() {
    assert_none(tree().iter().flat_map(oversized));
}

#[test]
fn rust_files_start_with_their_documentation() {
    assert_none(tree().iter().flat_map(unheaded));
}

#[test]
fn no_unfinished_work_is_marked() {
    assert_none(tree().iter().flat_map(marked));
}

#[test]
fn white_space_is_clean() {
    assert_none(tree().iter().flat_map(untrimmed));
}

#[test]
fn no_file_names_a_directory_of_one_machine() {
    assert_none(tree().iter().flat_map(machine_paths));
}

#[test]
fn tests_do_not_sleep_for_luck() {
    assert_none(tree().iter().flat_map(sleeps));
}

#[test]
fn markdown_links_resolve() {
    let files = tree();
    let paths = files.iter().map(|file| file.path.as_str()).collect();
    assert_none(files.iter().flat_map(|file| broken_links(file, &paths)));
}

#[test]
fn decisions_are_numbered_and_listed() {
    assert_none(unlisted_adrs(&tree()));
}

struct File {
    /// From the root of the workspace, with `/`.
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }

    fn is_ours(&self) -> bool {
        self.is_rust() || self.is_markdown() || self.path.ends_with(".toml") || self.path.starts_with(".ci/")
    }

    fn is_test(&self) -> bool {
        self.is_rust() && self.path.split('/').any(|part| part == "tests")
    }

    /// `path:line: what` for every line of which `wrong` says something.
    fn lines_where(&self, wrong: impl Fn(&str) -> Option<String>) -> Vec<String> {
        let lines = self.text.split('\n').zip(1..);
        lines.filter_map(|(line, number)| Some(format!("{}:{number}: {}", self.path, wrong(line)?))).collect()
    }
}

fn oversized(file: &File) -> Option<String> {
    let lines = file.text.lines().count();
    (file.is_rust() && lines > RUST_LINES_MAX)
        .then(|| format!("{}: {lines} lines, of at most {RUST_LINES_MAX}", file.path))
}

fn unheaded(file: &File) -> Option<String> {
    (file.is_rust() && !file.text.starts_with("//! "))
        .then(|| format!("{}: does not start with //!", file.path))
}

fn marked(file: &File) -> Vec<String> {
    if !file.is_ours() {
        return Vec::new();
    }
    file.lines_where(|line| {
        let marker = MARKERS.iter().find(|marker| has_word(line, marker))?;
        Some(format!("{marker} is left"))
    })
}

fn untrimmed(file: &File) -> Vec<String> {
    if !file.is_ours() {
        return Vec::new();
    }
    let mut found = file.lines_where(|line| {
        if line.contains('\t') {
            Some("a tab".to_owned())
        } else if line.ends_with(char::is_whitespace) {
            Some("white space at the end".to_owned())
        } else {
            None
        }
    });
    if !file.text.ends_with('\n') || file.text.ends_with("\n\n") {
        found.push(format!("{}: does not end with one line break", file.path));
    }
    found
}

fn machine_paths(file: &File) -> Vec<String> {
    file.lines_where(|line| {
        let path = MACHINE_PATHS.iter().find(|path| has_word(line, path))?;
        Some(format!("names {path}"))
    })
}

fn sleeps(file: &File) -> Vec<String> {
    if !file.is_test() {
        return Vec::new();
    }
    file.lines_where(|line| {
        let call = SLEEPS.iter().find(|call| has_word(line, call))?;
        (!line.contains(POLLS)).then(|| format!("{call}) without a `{POLLS}` comment"))
    })
}

fn broken_links(file: &File, paths: &BTreeSet<&str>) -> Vec<String> {
    if !file.is_markdown() {
        return Vec::new();
    }
    let outside = |target: &&String| {
        !(target.starts_with('#') || target.starts_with("mailto:") || target.contains("://"))
    };
    let targets = link_targets(&file.text);
    targets
        .iter()
        .filter(outside)
        .filter(|target| !resolve(&file.path, target).is_some_and(|path| exists(paths, &path)))
        .map(|target| format!("{}: links to {target}, which is not there", file.path))
        .collect()
}

fn unlisted_adrs(files: &[File]) -> Vec<String> {
    let index_path = format!("{ADR_DIR}README.md");
    let index = files.iter().find(|file| file.path == index_path);
    let linked = index.map(|file| link_targets(&file.text)).unwrap_or_default();
    let mut found = Vec::new();
    let mut numbers = BTreeMap::new();
    for file in files.iter().filter(|file| file.path != index_path) {
        let Some(name) = file.path.strip_prefix(ADR_DIR) else {
            continue;
        };
        match adr_number(name) {
            None => found.push(format!("{}: is not named NNNN-title.md", file.path)),
            Some(number) => {
                if let Some(other) = numbers.insert(number, name) {
                    found.push(format!("{}: has the number of {other}", file.path));
                }
            }
        }
        if !linked.iter().any(|target| target == name) {
            found.push(format!("{}: has no link in {index_path}", file.path));
        }
    }
    found
}

fn adr_number(name: &str) -> Option<&str> {
    let (number, title) = name.strip_suffix(".md")?.split_once('-')?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (number.len() == 4
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && !title.is_empty()
        && title.bytes().all(plain))
    .then_some(number)
}

/// Whether `word` occurs in `line` and is not merely a part of a longer word.
fn has_word(line: &str, word: &str) -> bool {
    let part = |next: Option<char>| next.is_some_and(|c| c.is_alphanumeric() || c == '_');
    // A word that ends in punctuation ends there, whatever follows.
    let open_ended = !part(word.chars().next_back());
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !part(before) && (open_ended || !part(after))
    })
}

/// Where the links of a Markdown text point, fragments removed; code is not searched.
fn link_targets(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            // Every second piece between backticks is code.
            let prose: String = line.split('`').step_by(2).collect();
            let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            let reference = prose.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
            let raw = inline.chain(reference.map(|(_, target)| target));
            targets.extend(raw.map(|target| {
                let target = target.split_whitespace().next().unwrap_or("").trim_matches(['<', '>']);
                match target.split_once('#') {
                    Some((path, _)) if !path.is_empty() => path.to_owned(),
                    _ => target.to_owned(),
                }
            }));
        }
    }
    targets
}

/// `target` as seen from the file `from`, as a path from the root; `None` when it leaves the tree.
fn resolve(from: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Whether `path` is a file of the tree or a directory that holds one.
fn exists(paths: &BTreeSet<&str>, path: &str) -> bool {
    let dir = format!("{path}/");
    path.is_empty() || paths.contains(path) || paths.iter().any(|file| file.starts_with(&dir))
}

/// Every text file that is tracked or about to be.
fn tree() -> Vec<File> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a directory of the workspace");
    let mut paths = git_files(root).unwrap_or_else(|| walked_files(root));
    paths.sort();
    paths.dedup();
    // Binary files are not ours to tidy, and a tracked file may have been deleted since.
    let read = |path: String| {
        let text = fs::read_to_string(root.join(&path)).ok()?;
        Some(File { path, text })
    };
    let files: Vec<File> = paths.into_iter().filter_map(read).collect();
    assert!(files.iter().any(|file| file.path == "tests/tests/tidy.rs"), "the tree is not listed");
    files
}

/// What Git knows of, and new files that it does not ignore; `None` outside a checkout.
fn git_files(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        // Set inside Git's hooks, where they may name another checkout.
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let paths = text.split('\0').filter(|path| !path.is_empty()).map(str::to_owned);
    output.status.success().then(|| paths.collect())
}

fn walked_files(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![String::new()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir)).expect("the directory can be read") {
            let entry = entry.expect("the directory can be read");
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("the file has a type");
            if kind.is_dir() && name != ".git" && name != "target" {
                open.push(format!("{dir}{name}/"));
            } else if kind.is_file() {
                found.push(format!("{dir}{name}"));
            }
        }
    }
    found
}

fn assert_none(found: impl IntoIterator<Item = String>) {
    let found: Vec<String> = found.into_iter().collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

mod the_checks_can_fail {
    use super::*;

    fn file(path: &str, text: impl Into<String>) -> File {
        File { path: path.to_owned(), text: text.into() }
    }

    #[test]
    fn a_long_file_is_found() {
        let long = "//! Long.\n".repeat(RUST_LINES_MAX + 1);
        assert!(oversized(&file("a.rs", &long)).is_some());
        assert!(oversized(&file("a.rs", &long[10..])).is_none());
        assert!(oversized(&file("a.md", long)).is_none());
    }

    #[test]
    fn a_file_without_a_header_is_found() {
        assert!(unheaded(&file("a.rs", "fn main() {}\n")).is_some());
        assert!(unheaded(&file("a.rs", "//! What it is.\n")).is_none());
    }

    #[test]
    fn every_marker_is_found() {
        for marker in MARKERS {
            let text = format!("fn f() {{\n    // {marker} later\n}}\n");
            assert_eq!(marked(&file("src/a.rs", &text)), [format!("src/a.rs:2: {marker} is left")]);
            assert_none(marked(&file("data.csv", text)));
        }
        assert_none(marked(&file("a.md", format!("MAS{}ODONS and my_{}\n", MARKERS[0], MARKERS[4]))));
    }

    #[test]
    fn unclean_white_space_is_found() {
        for text in ["a \n", "\ta\n", "a", "a\n\n", "a\r\n", ""] {
            assert_eq!(untrimmed(&file("a.toml", text)).len(), 1, "{text:?}");
        }
        assert_none(untrimmed(&file("a.toml", "a\n\n  b\n")));
    }

    #[test]
    fn every_machine_path_is_found() {
        for path in MACHINE_PATHS {
            assert_eq!(machine_paths(&file("any", format!("see {path}x\n"))).len(), 1);
            assert_none(machine_paths(&file("any", format!("see a{path}x\n"))));
        }
    }

    #[test]
    fn a_sleeping_test_is_found() {
        for call in SLEEPS {
            let text = format!("//! T.\ntokio::time::{call}MS).await;\n");
            assert_eq!(sleeps(&file("server/tests/http.rs", &text)).len(), 1);
            assert_none(sleeps(&file("server/src/http.rs", &text)));
            let polling = text.replace(";\n", "; // polls: the port answers\n");
            assert_none(sleeps(&file("server/tests/http.rs", polling)));
        }
    }

    #[test]
    fn a_broken_link_is_found() {
        let paths = BTreeSet::from(["README.md", "docs/A.md", "docs/adr/README.md"]);
        let broken = |path: &str, text: &str| broken_links(&file(path, text), &paths).len();
        assert_eq!(broken("README.md", "[a](docs/B.md) and ![b](docs/C.png \"C\")\n"), 2);
        assert_eq!(broken("docs/A.md", "[up](../../x), [root](/docs/A.md)\n[r]: B.md\n"), 3);
        let fine = "[a](A.md#part) [b](../README.md) [c](adr/) [d](#here) [e](https://a.example/b)\n";
        assert_eq!(broken("docs/A.md", fine), 0);
        assert_eq!(broken("docs/A.md", "`[a](b)`\n```\n[a](b)\n```\n"), 0);
    }

    #[test]
    fn a_decision_out_of_line_is_found() {
        let index = || file("docs/adr/README.md", "[One](0001-one.md)\n[Bad](Bad.md)\n");
        let adr = |name: &str| file(&format!("{ADR_DIR}{name}"), "# A\n");
        assert_none(unlisted_adrs(&[index(), adr("0001-one.md")]));
        assert_eq!(unlisted_adrs(&[adr("0001-one.md")]).len(), 1);
        assert_eq!(unlisted_adrs(&[index(), adr("Bad.md")]).len(), 1);
        assert_eq!(unlisted_adrs(&[index(), adr("0002-two.md")]).len(), 1);
        assert_eq!(unlisted_adrs(&[index(), adr("0001-one.md"), adr("0001-again.md")]).len(), 2);
    }

    #[test]
    fn the_walk_outside_git_finds_the_same_kind_of_paths() {
        let files = walked_files(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(files.iter().any(|path| path == "tests/tidy.rs"), "{files:?}");
    }
}
