//! Rules for each Rust file.

use std::path::Path;

use crate::tidy::Finding;

const MAX_LINES: usize = 500;

/// What must not stand in code. In pieces, so that this file may.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("#[", "ignore"), "a test that does not run proves nothing"),
    (concat!("#[", "should_panic"), "assert on the panic or, better, on an error"),
    (concat!("todo", "!("), "no unfinished code"),
    (concat!("unimplemented", "!("), "no unfinished code"),
];

/// Attributes that silence a lint.
const SILENCERS: &[&str] = &["allow(", "expect("];

pub(super) fn check(path: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, text: String| {
        findings.push(Finding { path: path.to_owned(), line, text });
    };
    let lines: Vec<&str> = text.lines().collect();
    if MAX_LINES < lines.len() {
        find(MAX_LINES + 1, format!("{} lines, {MAX_LINES} are enough", lines.len()));
    }
    let says_why = text.starts_with("//! ") || text.starts_with("#![doc = include_str!(");
    if !says_why {
        find(1, "the first line must say with `//!` what the file is for".to_owned());
    }
    for (index, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        for (word, why) in FORBIDDEN {
            if code.contains(word) {
                find(index + 1, format!("`{word}`: {why}"));
            }
        }
        if code.starts_with("#[") || code.starts_with("#![") {
            let attribute = attribute(&lines[index..]);
            let silences = SILENCERS.iter().any(|word| attribute.contains(word));
            if silences && !attribute.contains("reason = ") {
                find(index + 1, "a silenced lint needs a `reason`".to_owned());
            }
        }
    }
    findings
}

/// The attribute that starts the first line, up to its closing bracket.
fn attribute(lines: &[&str]) -> String {
    let mut attribute = String::new();
    let mut depth = 0_usize;
    for c in lines.join("\n").chars() {
        attribute.push(c);
        match c {
            '[' => depth += 1,
            ']' if depth == 1 => break,
            ']' => depth -= 1,
            _ => {}
        }
    }
    attribute
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_found(text: &str) -> Vec<usize> {
        check(Path::new("lib.rs"), text).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_tidy_file_passes() {
        let text = "//! A file.\n#[allow(dead_code, reason = \"why\")]\n";
        assert_eq!(lines_found(text), [0; 0]);
    }

    #[test]
    fn size_and_headline_count() {
        let long = format!("//! A file.\n{}", "\n".repeat(MAX_LINES));
        assert_eq!(lines_found(&long), [MAX_LINES + 1]);
        assert_eq!(lines_found("fn main() {}\n"), [1]);
    }

    #[test]
    fn forbidden_words_are_found() {
        for (word, _) in FORBIDDEN {
            assert_eq!(lines_found(&format!("//! A file.\n    {word}")), [2], "{word}");
            assert_eq!(lines_found(&format!("//! A file.\n    // {word}")), [0; 0], "{word}");
        }
    }

    #[test]
    fn a_silenced_lint_without_a_reason_is_found() {
        let text = "//! A file.\n#![allow(\n    dead_code,\n)]\nreason = 1\n#[expect(dead_code)]\n";
        assert_eq!(lines_found(text), [2, 6]);
        assert_eq!(
            lines_found("//! A file.\n#[allow(\n    x,\n    reason = \"[y]\",\n)]\n"),
            [0; 0]
        );
        assert_eq!(lines_found("//! A file.\n#[cfg_attr(test, allow(dead_code))]\n"), [2]);
    }
}
