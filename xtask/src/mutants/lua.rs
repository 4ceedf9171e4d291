//! Small errors that a script could have: one place of it, written in another way.

/// A script with one error in it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mutant {
    /// The line, from 1.
    pub(crate) line: usize,
    /// What was done to it, with the line as it was. No other mutant of the script says the same: of equal ones each has its number.
    pub(crate) what: String,
    /// The whole script.
    pub(crate) text: String,
}

/// What stands in the place of what. A number above 1 becomes the next one.
const SWAPS: &[(&str, &str)] = &[
    ("==", "~="),
    ("~=", "=="),
    ("<=", "<"),
    (">=", ">"),
    ("<", "<="),
    (">", ">="),
    ("and", "or"),
    ("or", "and"),
    ("not", ""),
    ("+", "-"),
    ("-", "+"),
    ("0", "1"),
    ("1", "0"),
    ("'0'", "'1'"),
    ("'1'", "'0'"),
];

/// How a line begins that is dropped as a whole.
const CALLS: &[&str] = &[
    "break",
    "call(",
    "extend(",
    "put(",
    "redis.call(",
    "redis.pcall(",
    "return ",
    "tell(",
    "touch(",
];

/// Numbers above this are limits and units, and one more of them is the same.
const LARGEST: u32 = 200;

/// All that can be made of a script by one error.
pub(crate) fn mutants(script: &str) -> Vec<Mutant> {
    let lines: Vec<&str> = script.lines().collect();
    let mut mutants = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        for (what, changed) in of_line(line) {
            let mut text = lines.clone();
            text[index] = &changed;
            mutants.push(Mutant { line: index + 1, what, text: text.join("\n") + "\n" });
        }
    }
    number_equal(&mut mutants);
    mutants
}

/// Adds to what is said of several which of them it is, and of how many: one more of them makes each of them another one.
fn number_equal(mutants: &mut [Mutant]) {
    let said: Vec<String> = mutants.iter().map(|mutant| mutant.what.clone()).collect();
    let equal = |said: &[String], what: &str| said.iter().filter(|other| *other == what).count();
    for (index, mutant) in mutants.iter_mut().enumerate() {
        let all = equal(&said, &said[index]);
        if 1 < all {
            mutant.what += &format!(" ({} of {all})", equal(&said[..=index], &said[index]));
        }
    }
}

/// What is done to a line, and what becomes of it.
fn of_line(line: &str) -> Vec<(String, String)> {
    let code = line.trim();
    let mut changes = Vec::new();
    if is_statement(code) {
        changes.push((format!("without `{code}`"), String::new()));
    }
    if let Some((head, condition, tail)) = condition(line) {
        let negated = format!("{head}not ({condition}){tail}");
        changes.push((format!("not `{condition}`"), negated));
    }
    let tokens = tokens(line);
    for (index, &(start, token)) in tokens.iter().enumerate() {
        let Some(other) = swap(token) else { continue };
        // A sign is no operation.
        let before = line[..start].trim_end();
        if token == "-" && (before.is_empty() || before.ends_with(['(', ',', '=', '{'])) {
            continue;
        }
        let after = &line[start + token.len()..];
        let same = |tokens: &[(usize, &str)]| tokens.iter().filter(|(_, t)| *t == token).count();
        let which = match same(&tokens) {
            1 => format!("`{token}`"),
            _ => format!("`{token}` no. {}", same(&tokens[..=index])),
        };
        let what = match other.as_str() {
            "" => format!("`{code}` without {which}"),
            _ => format!("{which} is `{other}` in `{code}`"),
        };
        changes.push((what, format!("{}{other}{after}", &line[..start])));
    }
    changes
}

/// Whether a line is one statement that the script also reads without.
fn is_statement(code: &str) -> bool {
    let assigns = || {
        let Some((names, _)) = code.split_once(" = ") else { return false };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "_, []*+-/.".contains(c);
        !names.starts_with("local ") && !names.starts_with("for ") && names.chars().all(is_name)
    };
    let one_line_if = code.starts_with("if ") && code.ends_with(" end");
    // What goes on in the next line is no statement by itself.
    let is_whole = !code.ends_with(['(', ',', '{']);
    let calls = || CALLS.iter().any(|call| code.starts_with(call));
    is_whole && !code.starts_with("--") && (one_line_if || calls() || assigns())
}

/// The condition of an `if`, `elseif` or `while`, with what stands before and behind it.
fn condition(line: &str) -> Option<(&str, &str, &str)> {
    let code = line.trim_start();
    let (word, end) = [("if ", " then"), ("elseif ", " then"), ("while ", " do")]
        .into_iter()
        .find(|(word, _)| code.starts_with(word))?;
    let from = line.len() - code.len() + word.len();
    let to = from + line[from..].find(end)?;
    Some((&line[..from], &line[from..to], &line[to..]))
}

fn swap(token: &str) -> Option<String> {
    if let Some((_, other)) = SWAPS.iter().find(|(one, _)| *one == token) {
        return Some((*other).to_owned());
    }
    let number: u32 = token.parse().ok()?;
    (number <= LARGEST).then(|| (number + 1).to_string())
}

/// The tokens of a line of Lua and where each begins; no comments.
fn tokens(line: &str) -> Vec<(usize, &str)> {
    let bytes = line.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &line[at..];
        if rest.starts_with("--") {
            break;
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = match bytes[at] {
            b'\'' => rest[1..].find('\'').map_or(rest.len(), |end| end + 2),
            byte if is_word(char::from(byte)) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ if ["==", "~=", "<=", ">=", ".."].iter().any(|two| rest.starts_with(two)) => 2,
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
        tokens.push((at, &rest[..length]));
        at += length;
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(script: &str) -> Vec<String> {
        mutants(script).into_iter().map(|mutant| mutant.text.trim_end().to_owned()).collect()
    }

    #[test]
    fn every_place_of_a_line_is_written_in_another_way() {
        assert_eq!(
            made("if a == 1 and not b then"),
            [
                "if not (a == 1 and not b) then",
                "if a ~= 1 and not b then",
                "if a == 0 and not b then",
                "if a == 1 or not b then",
                "if a == 1 and  b then",
            ]
        );
        assert_eq!(
            made("local n = string.sub(v, 2 - k)"),
            ["local n = string.sub(v, 3 - k)", "local n = string.sub(v, 2 + k)",]
        );
        assert_eq!(
            made("while seen < LIMIT do"),
            ["while not (seen < LIMIT) do", "while seen <= LIMIT do",]
        );
    }

    #[test]
    fn statements_are_dropped_and_what_is_no_statement_stays() {
        assert_eq!(made("call('DEL', L)"), [""]);
        assert_eq!(made("  owner, k = heads[i], i"), [""]);
        assert_eq!(made("if x then y() end"), ["", "if not (x) then y() end"]);
        for line in ["local a = b", "end", "local done, answer = pcall(", "function f(a)", "else"] {
            assert_eq!(made(line), [""; 0], "{line}");
        }
    }

    #[test]
    fn comments_texts_names_and_signs_are_left_alone() {
        for line in [
            "-- 1 and 0",
            "-- L = 'a'",
            "local a = 'x == 1'",
            "local order = a1",
            "local f = g(-a)",
            "local n = 3600000",
        ] {
            assert_eq!(made(line), [""; 0], "{line}");
        }
        assert_eq!(made("local exact = '1'"), ["local exact = '0'"]);
    }

    #[test]
    fn a_mutant_is_the_whole_script_with_its_line() {
        let mutants = mutants("local a = b\nreturn a\n");
        let [mutant] = &mutants[..] else { panic!("{mutants:?}") };
        assert_eq!((mutant.line, mutant.text.as_str()), (2, "local a = b\n\n"));
        assert_eq!(mutant.what, "without `return a`");
        let twins = super::mutants("local a = b == 1, c == 1");
        assert_eq!(twins[2].what, "`==` no. 2 is `~=` in `local a = b == 1, c == 1`");
    }

    #[test]
    fn the_same_error_of_the_same_line_elsewhere_has_another_number() {
        let said = |script: &str| -> Vec<String> {
            super::mutants(script).into_iter().map(|mutant| mutant.what).collect()
        };
        let once = ["without `return a`", "without `call('DEL', L)`"];
        assert_eq!(said("return a\ncall('DEL', L)"), once);
        let twice = [
            "without `return a` (1 of 2)",
            "without `call('DEL', L)`",
            "without `return a` (2 of 2)",
        ];
        assert_eq!(said("return a\ncall('DEL', L)\n  return a"), twice);
    }
}
