//! What a benchmark found: tables and goals on the standard output, and for `cargo xtask bench` as pieces of a page.

use std::{env, fmt::Write as _, fs, path::PathBuf};

use crate::svg;

/// Where `cargo xtask bench` collects the pieces; without it they are printed only.
const DIR: &str = "DISTLOCK_BENCH_DIR";

/// A benchmark's findings, in the order in which they are told.
#[derive(Debug)]
pub struct Report {
    name: &'static str,
    page: String,
    goals: String,
    plots: Vec<(String, String)>,
}

/// A row of the table of goals.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "not published")]
pub struct Goal<'a> {
    /// What is measured.
    pub what: &'a str,
    /// What it should be.
    pub target: &'a str,
    /// What it is.
    pub measured: String,
    /// What others reach.
    pub peer: &'a str,
    /// Whether it is as it should be.
    pub hit: bool,
}

impl Report {
    /// Begins a page's section. `name` is the benchmark's.
    #[must_use]
    pub fn new(name: &'static str, about: &str) -> Self {
        println!("{about}");
        let page = format!("## `{name}`\n\n{about}\n");
        Self { name, page, goals: String::new(), plots: Vec::new() }
    }

    /// Adds a paragraph.
    pub fn say(&mut self, text: &str) {
        println!("\n{text}");
        let _ = write!(self.page, "\n{text}\n");
    }

    /// Adds a table of texts, which stand to the left, and figures.
    pub fn table(&mut self, title: &str, head: &[&str], rows: &[Vec<String>]) {
        let count = |cell: &str| cell.chars().count();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column).map(|cell| count(cell)));
            cells.chain([count(head[column]), 4]).max().unwrap_or_default()
        };
        let is_text = |column: usize| {
            let word = |row: &Vec<String>| {
                row[column].starts_with(|c: char| c.is_alphabetic() || c == '`')
            };
            column == 0 || rows.iter().any(word)
        };
        let line = |cells: &[String]| {
            let mut line = String::from("|");
            for (column, cell) in cells.iter().enumerate() {
                let space = " ".repeat(width(column).saturating_sub(count(cell)));
                let (before, after) = if is_text(column) { ("", &*space) } else { (&*space, "") };
                let _ = write!(line, " {before}{cell}{after} |");
            }
            line
        };
        let mut text = format!("\n**{title}**\n\n");
        let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
        let _ = writeln!(text, "{}", line(&head));
        let rule = |column| match is_text(column) {
            true => "-".repeat(width(column)),
            false => format!("{}:", "-".repeat(width(column) - 1)),
        };
        let rules: Vec<_> = (0..head.len()).map(rule).collect();
        let _ = writeln!(text, "{}", line(&rules));
        for row in rows {
            let _ = writeln!(text, "{}", line(row));
        }
        print!("{text}");
        self.page += &text;
    }

    /// Adds a row to the table of goals.
    pub fn goal(&mut self, goal: &Goal<'_>) {
        let Goal { what, target, measured, peer, hit } = goal;
        let hit = if *hit { "hit" } else { "**missed**" };
        let row = format!("| {what} | {target} | {measured} | {peer} | {hit} |");
        println!("\n{row}");
        let _ = writeln!(self.goals, "{row}");
    }

    /// Adds a plot: a bar for each figure, on a scale of powers of ten where they differ much.
    pub fn bars(&mut self, file: &str, title: &str, bars: &[(String, f64)]) {
        let file = format!("{}-{file}.svg", self.name);
        let _ = write!(self.page, "\n![{title}](benchmarks/{file})\n");
        self.plots.push((file, svg::bars(title, bars)));
    }

    /// Leaves the pieces where `cargo xtask bench` looks for them.
    ///
    /// # Panics
    /// When they cannot be written.
    pub fn finish(self) {
        let Some(dir) = env::var_os(DIR).map(PathBuf::from) else { return };
        let file = |name: &str| dir.join(name);
        fs::write(file(&format!("{}.md", self.name)), self.page).expect("a place for the page");
        fs::write(file(&format!("{}.goals", self.name)), self.goals).expect("a place for goals");
        for (name, plot) in self.plots {
            fs::write(file(&name), plot).expect("a place for the plot");
        }
    }
}
