//! The table of the mutants that no test catches, each with the reason.

use std::collections::BTreeSet;

/// The errors of the table, each with the name of its script. Lines are left out: they move with every change of a script.
#[derive(Debug)]
pub(crate) struct Explained(BTreeSet<(String, String)>);

impl Explained {
    /// Reads rows such as ``| `release:24` | without `return 1` | the reason |``.
    pub(crate) fn of_page(page: &str) -> Self {
        Self(page.lines().filter_map(row).collect())
    }

    /// Whether the table has this error of this script.
    pub(crate) fn explains(&self, script: &str, what: &str) -> bool {
        self.0.contains(&(script.to_owned(), what.to_owned()))
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What the table has and these have not.
    pub(crate) fn without<'a>(&self, all: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
        let all: BTreeSet<_> = all.collect();
        let rest = self.0.iter().filter(|(script, what)| !all.contains(&(&**script, &**what)));
        rest.map(|(script, what)| format!("{script}: {what}")).collect()
    }
}

/// The script and the error of a row that has a place, an error and a reason.
fn row(line: &str) -> Option<(String, String)> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").collect();
    let [place, what, reason] = cells[..] else { return None };
    let (script, number) = place.strip_prefix('`')?.strip_suffix('`')?.split_once(':')?;
    let is_row = number.parse::<usize>().is_ok() && !reason.trim().is_empty();
    is_row.then(|| (script.to_owned(), what.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutants::lua;

    const SCRIPT: &str = "return 1\nif a < b then c() end\nreturn 1\n";

    fn explained(rows: &[&str]) -> Explained {
        Explained::of_page(&format!(
            "| place | error | reason |\n|---|---|---|\n{}",
            rows.join("\n")
        ))
    }

    /// What of the script is explained, when it has this name.
    fn found(explained: &Explained, name: &str) -> Vec<String> {
        let all = lua::mutants(SCRIPT).into_iter().map(|mutant| mutant.what);
        all.filter(|what| explained.explains(name, what)).collect()
    }

    #[test]
    fn a_row_is_for_its_script_alone_wherever_the_line_is() {
        let row = "| `poll:99` | `<` is `<=` in `if a < b then c() end` | the same then |";
        let explained = explained(&[row]);
        assert_eq!(found(&explained, "poll"), ["`<` is `<=` in `if a < b then c() end`"]);
        assert_eq!(found(&explained, "renew"), [""; 0]);
    }

    #[test]
    fn of_two_equal_lines_a_row_is_for_one() {
        let one =
            explained(&["| `poll:3` | without `return 1` (2 of 2) | nothing comes after it |"]);
        assert_eq!(found(&one, "poll"), ["without `return 1` (2 of 2)"]);
        // As it was before there was a second one, and as it is when there is a third one.
        for other in ["", " (2 of 3)"] {
            let row = format!("| `poll:3` | without `return 1`{other} | nothing comes after it |");
            assert_eq!(found(&explained(&[&row]), "poll"), [""; 0], "{row}");
        }
    }

    #[test]
    fn what_is_no_row_explains_nothing() {
        for line in [
            "without `return 1` (1 of 2)",
            "| `poll` | without `return 1` (1 of 2) | no line |",
            "| `poll:1` | without `return 1` (1 of 2) |",
            "| `poll:1` | without `return 1` (1 of 2) |  |",
            "| `poll:1` | `if a < b then c() end` | not the whole error |",
        ] {
            assert_eq!(found(&explained(&[line]), "poll"), [""; 0], "{line}");
        }
    }

    #[test]
    fn a_row_without_a_mutant_is_told() {
        let explained = explained(&[
            "| `poll:1` | without `return 1` (1 of 2) | nothing comes after it |",
            "| `poll:1` | without `return 2` | gone since |",
            "| `renew:1` | without `return 1` (1 of 2) | another script |",
        ]);
        let all = lua::mutants(SCRIPT);
        let stale = explained.without(all.iter().map(|mutant| ("poll", &*mutant.what)));
        assert_eq!(stale, ["poll: without `return 2`", "renew: without `return 1` (1 of 2)"]);
    }
}
