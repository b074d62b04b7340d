//! Source files: short enough to read, and nothing left for later.

use std::path::{Path, PathBuf};
use std::process::Command;

use twice_tests::workspace_root;

const LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Spelt in halves, so that this file does not find itself.
const LEFT_OPEN: &[&str] =
    &[concat!("to", "do!("), concat!("unimple", "mented!("), concat!("FIX", "ME"), concat!("TO", "DO")];

/// Rust files of the checkout: tracked, or new and not ignored.
fn rust_files() -> Vec<PathBuf> {
    let output = Command::new("git")
        .current_dir(workspace_root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .output()
        .expect("git runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let files: Vec<PathBuf> =
        listed.lines().map(|line| workspace_root().join(line)).filter(|path| path.is_file()).collect();
    assert!(
        files.len() > 20,
        "only {} files found: does this test still look at the right place?",
        files.len()
    );
    files
}

fn lines_of(path: &PathBuf) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(str::to_owned).collect()
}

/// Lines of each function's text, by the indentation that rustfmt gives its first line and closing brace.
fn function_lengths(lines: &[String]) -> Vec<(usize, usize)> {
    let mut lengths = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('"')).collect();
        let before_name = words.iter().position(|word| *word == "fn");
        let qualifiers = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern"];
        if !before_name.is_some_and(|at| words[..at].iter().all(|word| qualifiers.contains(word))) {
            continue;
        }
        let closing = format!("{}}}", " ".repeat(indent));
        let ends_at_once = |line: &String| line.ends_with(';') || line.ends_with('}');
        if ends_at_once(line) {
            continue;
        }
        if let Some(length) = lines[start..].iter().position(|line| *line == closing) {
            lengths.push((start + 1, length + 1));
        }
    }
    lengths
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let long: Vec<String> = rust_files()
        .iter()
        .map(|path| (path, lines_of(path).len()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{}: {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "over {LINES_MAX} lines: {long:#?}");
}

#[test]
fn no_function_is_longer_than_a_page() {
    let mut long = Vec::new();
    for path in rust_files() {
        for (line, length) in function_lengths(&lines_of(&path)) {
            if length > FUNCTION_LINES_MAX {
                long.push(format!("{}:{line}: {length} lines", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "over {FUNCTION_LINES_MAX} lines: {long:#?}");
}

#[test]
fn nothing_is_left_open_in_the_code() {
    let mut open = Vec::new();
    for path in rust_files() {
        for (number, line) in lines_of(&path).iter().enumerate() {
            if LEFT_OPEN.iter().any(|mark| line.contains(mark)) {
                open.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(open.is_empty(), "left open: {open:#?}");
}

/// Unit tests stand beside the module they test, whose header speaks for them.
fn is_unit_test(path: &Path) -> bool {
    let mut below_src = path.iter().skip_while(|part| *part != "src");
    path.ends_with("tests.rs") || below_src.any(|part| part == "tests")
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = rust_files()
        .iter()
        .filter(|path| !is_unit_test(path))
        .filter(|path| !lines_of(path).first().is_some_and(|line| line.starts_with("//!")))
        .map(|path| path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "no module header: {silent:#?}");
}

#[test]
fn the_length_of_a_function_is_measured_from_its_name_to_its_brace() {
    let text = "impl A {\n    pub async fn b(\n        c: u8,\n    ) -> u8 {\n        if c {\n        }\n        c\n    }\n\n    fn d() {}\n    fn e();\n}";
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert_eq!(function_lengths(&lines), [(2, 7)]);
}
