//! The repository's files, and Rust text in which comments and strings are blank, so that words found are code.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// A text file, by its path from the repository's root.
pub struct File {
    pub path: String,
    pub text: String,
    /// Rust only: the text with comments, strings and characters blanked, same length.
    pub code: String,
    /// Rust only: byte ranges of `#[cfg(test)]` items.
    tests: Vec<(usize, usize)>,
}

impl File {
    pub fn new(path: &str, text: &str) -> Self {
        let is_rust = Path::new(path).extension().is_some_and(|e| e == "rs");
        let code = if is_rust { masked(text) } else { text.to_owned() };
        let tests = match is_rust {
            true if path.ends_with("/tests.rs") && path.starts_with("src/") => vec![(0, code.len())],
            true => test_items(&code),
            false => Vec::new(),
        };
        Self { path: path.to_owned(), text: text.to_owned(), code, tests }
    }

    pub fn in_tests(&self, at: usize) -> bool {
        self.tests.iter().any(|(from, to)| (*from..*to).contains(&at))
    }

    pub fn line(&self, at: usize) -> usize {
        self.text[..at].matches('\n').count() + 1
    }

    /// `path:line`.
    pub fn place(&self, at: usize) -> String {
        format!("{}:{}", self.path, self.line(at))
    }

    /// Where a word stands as a whole word, tests left out.
    pub fn words(&self, word: &str) -> Vec<usize> {
        let found = self.code.match_indices(word).map(|(at, _)| at);
        found.filter(|at| is_whole(&self.code, *at, word) && !self.in_tests(*at)).collect()
    }

    /// Lines outside tests.
    pub fn lines(&self) -> usize {
        let tests: usize = self.tests.iter().map(|(from, to)| self.text[*from..*to].lines().count()).sum();
        self.text.lines().count() - tests
    }

    /// Lines outside tests that hold code.
    pub fn code_lines(&self) -> usize {
        let mut at = 0;
        let mut count = 0;
        for line in self.code.split_inclusive('\n') {
            count += usize::from(!line.trim().is_empty() && !self.in_tests(at));
            at += line.len();
        }
        count
    }
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What git knows or would take: nothing that was built. Files not yet added count, so that what a clone would fail fails here.
pub fn paths() -> &'static [String] {
    static PATHS: OnceLock<Vec<String>> = OnceLock::new();
    PATHS.get_or_init(|| {
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root())
            .output()
            .expect("git is needed: the checks are about the files that it knows");
        assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout).expect("paths are UTF-8");
        listed.lines().filter(|p| root().join(p).is_file()).map(str::to_owned).collect()
    })
}

/// The text files among them that `wanted` takes.
pub fn files(wanted: impl Fn(&str) -> bool) -> Vec<File> {
    let wanted: Vec<&String> = paths().iter().filter(|p| wanted(p)).collect();
    assert!(!wanted.is_empty(), "no file to look at: the check is vacuous");
    wanted
        .into_iter()
        .filter_map(|path| Some(File::new(path, &std::fs::read_to_string(root().join(path)).ok()?)))
        .collect()
}

pub fn rust(path: &str) -> bool {
    path.starts_with("src/") && Path::new(path).extension().is_some_and(|e| e == "rs")
}

/// The room of a source file: `src/decide/gate.rs` is in `decide`, `src/lib.rs` in none.
pub fn room(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let name = rest.split('/').next()?.trim_end_matches(".rs");
    (name != "lib").then_some(name)
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_whole(code: &str, at: usize, word: &str) -> bool {
    let before = code[..at].chars().next_back();
    let after = code[at + word.len()..].chars().next();
    let ends = |c: Option<char>| c.is_none_or(|c| !is_word(c));
    (!word.starts_with(is_word) || ends(before)) && (!word.ends_with(is_word) || ends(after))
}

/// The word that begins here.
pub fn word_at(code: &str, at: usize) -> &str {
    let rest = &code[at..];
    &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())]
}

/// The end of the bracket that opens here.
pub fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, c) in code[open..].char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return open + at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

fn test_items(code: &str) -> Vec<(usize, usize)> {
    let item = |at: usize| {
        let body = code[at..].find(['{', ';']).map_or(code.len(), |n| at + n);
        (at, if code[body..].starts_with('{') { closing(code, body) } else { body })
    };
    code.match_indices("#[cfg(test)]").map(|(at, _)| item(at)).collect()
}

/// Blanks comments, strings and characters, newlines kept.
fn masked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => until(text, at, "\n", 0),
            b'/' if bytes[at..].starts_with(b"/*") => until(text, at, "*/", 2),
            b'r' if is_raw(bytes, at) => {
                let hashes = bytes[at + 1..].iter().take_while(|b| **b == b'#').count();
                let close = format!("\"{}", "#".repeat(hashes));
                until(text, at + 2 + hashes, &close, close.len())
            }
            b'"' => quoted(bytes, at),
            b'\'' => character(bytes, at),
            _ => at,
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(code).expect("only whole characters are blanked")
}

fn until(text: &str, from: usize, close: &str, more: usize) -> usize {
    text[from..].find(close).map_or(text.len(), |n| from + n + more)
}

fn is_raw(bytes: &[u8], at: usize) -> bool {
    let before = at.checked_sub(1).map(|b| bytes[b]);
    let starts = before.is_none_or(|b| !b.is_ascii_alphanumeric() && b != b'_') || before == Some(b'b');
    starts && bytes[at + 1..].iter().find(|b| **b != b'#') == Some(&b'"')
}

fn quoted(bytes: &[u8], open: usize) -> usize {
    let mut at = open + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// A character's end; a lifetime is none.
fn character(bytes: &[u8], open: usize) -> usize {
    let near = &bytes[open + 1..bytes.len().min(open + 12)];
    let end = match near {
        [b'\\', _, rest @ ..] => rest.iter().position(|b| *b == b'\'').map(|n| n + 2),
        [b'\'', ..] | [] => None,
        _ => near.iter().take(5).position(|b| *b == b'\'').filter(|n| *n == 1 || near[0] >= 0x80),
    };
    end.map_or(open, |n| open + n + 2)
}

#[test]
fn comments_strings_and_tests_are_no_code() {
    let text = "fn a<'a>(x: &'a str) { b('\"', \"json!\", r#\"json! \" \"#); } // json!\n/* json! */\n#[cfg(test)]\nmod tests { json! }\nc";
    let file = File::new("src/x.rs", text);
    assert_eq!(file.code.len(), text.len());
    assert_eq!(file.code.matches("json!").count(), 1);
    assert!(file.words("json!").is_empty());
    assert!(file.code.contains("fn a<'a>(x: &'a str) { b("));
    assert_eq!((file.words("c").len(), file.words("a").len(), file.words("st").len()), (1, 3, 0));
    assert_eq!((file.lines(), file.code_lines()), (3, 2));
}
