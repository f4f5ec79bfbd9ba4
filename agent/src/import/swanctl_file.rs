//! Reads a `swanctl.conf`, in the syntax of `strongswan.conf(5)`: sections, keys and `include`.

use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::str::Chars;

use zeroize::Zeroizing;

/// Maximum nesting of sections, and of files that include other files (strongSwan has the same
/// limit for included files).
const MAX_DEPTH: usize = 10;
/// Maximum number of octets in all files together.
const MAX_OCTETS: usize = 4 << 20;

/// A section: keys and further sections, in the order of the file. Its values may be secrets, so
/// it has no `Debug`.
#[derive(Default)]
pub(super) struct Section {
    keys: Vec<(String, Value)>,
    sections: Vec<(String, Section)>,
    /// File and line of the section's name.
    pub(super) at: String,
}

/// A value, and the file and line that contain it.
pub(super) struct Value {
    pub(super) text: Zeroizing<String>,
    pub(super) at: String,
}

impl Section {
    /// Returns the value of a key. A key without a value counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.keys().find(|(name, _)| *name == key).map(|(_, value)| value.text.as_str())
    }

    /// Returns the parts of a value that is a comma-separated list.
    pub(super) fn list(&self, key: &str) -> Vec<&str> {
        self.get(key)
            .map(|text| text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect())
            .unwrap_or_default()
    }

    /// Returns the keys that have values, with the values.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.keys.iter().filter(|(_, value)| !value.text.is_empty()).map(|(name, value)| (name.as_str(), value))
    }

    /// Returns the section with this name.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections().find(|(other, _)| *other == name).map(|(_, section)| section)
    }

    /// Returns the sections in this section.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.sections.iter().map(|(name, section)| (name.as_str(), section))
    }

    /// Sets a key. A later value replaces an earlier one.
    fn set(&mut self, key: String, value: Value) {
        match self.keys.iter_mut().find(|(name, _)| *name == key) {
            Some((_, before)) => *before = value,
            None => self.keys.push((key, value)),
        }
    }

    /// Opens a section. Sections with the same name are one section.
    fn open(&mut self, name: String, at: String) -> &mut Section {
        let index = match self.sections.iter().position(|(other, _)| *other == name) {
            Some(index) => index,
            None => {
                self.sections.push((name, Section { at, ..Section::default() }));
                self.sections.len() - 1
            }
        };
        &mut self.sections[index].1
    }
}

/// Reads a file and the files that it includes. Errors name the file and the line, and quote no
/// value.
pub(super) fn read(path: &Path) -> Result<Section, String> {
    let mut root = Section::default();
    let mut left = MAX_OCTETS;
    read_into(&mut root, path, 0, &mut left)?;
    Ok(root)
}

fn read_into(section: &mut Section, path: &Path, depth: usize, left: &mut usize) -> Result<(), String> {
    let octets =
        fs::read(path).map(Zeroizing::new).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let text = std::str::from_utf8(&octets).map_err(|_| format!("{}: not UTF-8", path.display()))?;
    *left = left
        .checked_sub(text.len())
        .ok_or_else(|| format!("{}: the files have more than {MAX_OCTETS} octets", path.display()))?;
    let mut parser = Parser { path, characters: text.chars().peekable(), line: 1, include_depth: depth, left };
    parser.section(section, 0)
}

struct Parser<'a> {
    path: &'a Path,
    characters: Peekable<Chars<'a>>,
    line: usize,
    include_depth: usize,
    left: &'a mut usize,
}

impl Parser<'_> {
    fn at(&self) -> String {
        format!("{}:{}", self.path.display(), self.line)
    }

    fn wrong(&self, problem: &str) -> String {
        format!("{}: {problem}", self.at())
    }

    fn next(&mut self) -> Option<char> {
        let next = self.characters.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    /// Skips blanks, line ends and comments.
    fn skip(&mut self) {
        while let Some(&next) = self.characters.peek() {
            match next {
                '#' => {
                    while self.characters.peek().is_some_and(|next| *next != '\n') {
                        self.next();
                    }
                }
                blank if blank.is_whitespace() => {
                    self.next();
                }
                _ => break,
            }
        }
    }

    /// Reads the content of a section, up to its `}`, or to the end of the file at depth 0.
    fn section(&mut self, section: &mut Section, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("sections are nested too deep"));
        }
        loop {
            self.skip();
            match self.characters.peek() {
                None if depth == 0 => return Ok(()),
                None => return Err(self.wrong("the file ends in a section: a } is missing")),
                Some('}') if depth == 0 => return Err(self.wrong("a } ends no section")),
                Some('}') => {
                    self.next();
                    return Ok(());
                }
                Some(_) => {}
            }
            let at = self.at();
            let name = self.name()?;
            let beside = self.skip_blanks();
            match self.characters.peek() {
                Some('=') => {
                    self.next();
                    let text = self.value()?;
                    section.set(name, Value { text, at });
                }
                // `include` is a directive only if its pattern begins on the same line, after a
                // blank.
                Some(_) if name == "include" && beside => {
                    let pattern = self.value()?;
                    self.include(section, &pattern)?;
                }
                Some(':') => {
                    return Err(self.wrong(&format!("section {name:?} refers to another one: write its keys out, as `swanctl` references are not read")));
                }
                _ => {
                    self.skip();
                    if self.characters.peek() != Some(&'{') {
                        return Err(self.wrong(&format!("after {name:?} comes = or {{")));
                    }
                    self.next();
                    self.section(section.open(name, at), depth + 1)?;
                }
            }
        }
    }

    /// Skips blanks within the line and returns whether there were any.
    fn skip_blanks(&mut self) -> bool {
        let mut any = false;
        while self.characters.peek().is_some_and(|next| matches!(next, ' ' | '\t')) {
            self.next();
            any = true;
        }
        any
    }

    fn name(&mut self) -> Result<String, String> {
        if self.characters.peek() == Some(&'"') {
            return self.quoted().map(|text| text.to_string());
        }
        let mut name = String::new();
        while let Some(&next) = self.characters.peek() {
            if next.is_whitespace() || matches!(next, '#' | '{' | '}' | '=' | '"' | ',' | ':') {
                break;
            }
            name.push(next);
            self.next();
        }
        if name.is_empty() { Err(self.wrong("the name of a key or section is missing")) } else { Ok(name) }
    }

    /// Reads a value up to the end of the line, a comment or a `}`. In quoted parts, these
    /// characters belong to the value.
    fn value(&mut self) -> Result<Zeroizing<String>, String> {
        self.skip_blanks();
        let mut value = Zeroizing::new(String::new());
        // Length of the value at the end of its last quoted part. Trailing blanks are removed only
        // after that.
        let mut quoted = 0;
        while let Some(&next) = self.characters.peek() {
            match next {
                '\n' | '#' | '}' => break,
                '"' => {
                    value.push_str(&self.quoted()?);
                    quoted = value.len();
                }
                '\r' => {
                    self.next();
                }
                other => {
                    value.push(other);
                    self.next();
                }
            }
        }
        let length = value.trim_end().len().max(quoted);
        value.truncate(length);
        Ok(value)
    }

    fn quoted(&mut self) -> Result<Zeroizing<String>, String> {
        self.next();
        let mut text = Zeroizing::new(String::new());
        let opened = self.at();
        loop {
            match self.next() {
                None => return Err(format!("{opened}: a quotation mark is not closed")),
                Some('"') => return Ok(text),
                Some('\\') => match self.next() {
                    None => return Err(format!("{opened}: a quotation mark is not closed")),
                    Some('n') => text.push('\n'),
                    Some('r') => text.push('\r'),
                    Some('t') => text.push('\t'),
                    Some('b') => text.push('\u{8}'),
                    Some('f') => text.push('\u{c}'),
                    // An escaped newline continues the line.
                    Some('\n') => {}
                    Some(other) => text.push(other),
                },
                Some(other) => text.push(other),
            }
        }
    }

    /// Reads the files that a pattern names, relative to this file's directory. As in strongSwan, a
    /// pattern without a match is not an error.
    fn include(&mut self, section: &mut Section, pattern: &str) -> Result<(), String> {
        if self.include_depth >= MAX_DEPTH {
            return Err(self.wrong("files include each other too deep"));
        }
        let directory = self.path.parent().unwrap_or(Path::new(""));
        let pattern = directory.join(pattern);
        let pattern = pattern.to_str().ok_or_else(|| self.wrong("the pattern of include is not UTF-8"))?;
        let files = glob::glob(pattern).map_err(|error| self.wrong(&format!("include: {error}")))?;
        let files: Result<Vec<PathBuf>, _> = files.collect();
        for file in files.map_err(|error| self.wrong(&format!("include: {error}")))? {
            read_into(section, &file, self.include_depth + 1, self.left)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Section, String> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("swanctl.conf");
        fs::write(&file, text).unwrap();
        read(&file).map_err(|problem| problem.replace(directory.path().to_str().unwrap(), ""))
    }

    #[test]
    fn sections_keys_comments_and_quoted_values_are_read() {
        let root = parse(
            "# a comment\nconnections {\n  home { # another\n    version = 2\n    remote_addrs = 192.0.2.1, moon.example # where\n    \
             local { id = \"C=DE, O=a # b\" }\n    local-1{ id=x }\n  }\n}\nsecrets { ike-1 { secret = \"a\\\"b\\\\c\\td \" } }\n",
        )
        .unwrap();
        let home = root.section("connections").unwrap().section("home").unwrap();
        assert!(home.at.ends_with("/swanctl.conf:3"), "{}", home.at);
        assert_eq!(home.get("version"), Some("2"));
        assert_eq!(home.list("remote_addrs"), ["192.0.2.1", "moon.example"]);
        assert_eq!(home.section("local").unwrap().get("id"), Some("C=DE, O=a # b"));
        assert_eq!(home.section("local-1").unwrap().get("id"), Some("x"));
        let secret = root.section("secrets").unwrap().section("ike-1").unwrap();
        assert_eq!(secret.get("secret"), Some("a\"b\\c\td "));
    }

    #[test]
    fn sections_of_one_name_are_one_and_a_later_value_counts() {
        let root = parse("a { x = 1\n y = 1 }\r\na {\r\n x = 2\r\n y =\r\n}\r\n").unwrap();
        let a = root.section("a").unwrap();
        assert_eq!((a.get("x"), a.get("y")), (Some("2"), None));
        assert_eq!(root.sections().count(), 1);
    }

    #[test]
    fn included_files_count_as_if_they_stood_there() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("conf.d")).unwrap();
        let file = directory.path().join("swanctl.conf");
        fs::write(&file, "connections {\n  a { x = 1 }\n}\ninclude conf.d/*.conf\ninclude none/*.conf\n").unwrap();
        fs::write(directory.path().join("conf.d/b.conf"), "connections { b { x = 2 } }").unwrap();
        fs::write(directory.path().join("conf.d/b.bak"), "connections { c { x = 2 } }").unwrap();
        let root = read(&file).unwrap();
        let names: Vec<&str> = root.section("connections").unwrap().sections().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "b"]);
        // The file includes itself.
        fs::write(&file, "include swanctl.conf\n").unwrap();
        assert!(read(&file).err().unwrap().contains("too deep"));
    }

    #[test]
    fn errors_name_the_line_and_show_no_value() {
        for (text, line, why) in [
            ("a {\n b = horse\n", 3, "is missing"),
            ("a {\n}\n}", 3, "ends no section"),
            ("a {\n b = \"horse\n}\n", 2, "not closed"),
            ("a {\n = horse\n}\n", 2, "name of a key"),
            ("a {\n b horse\n}\n", 2, "comes ="),
            ("a : b {\n}\n", 1, "refers"),
            (&"a {\n".repeat(20), 11, "too deep"),
        ] {
            let error = parse(text).err().unwrap_or_else(|| panic!("{text}"));
            assert!(error.starts_with(&format!("/swanctl.conf:{line}: ")), "{text:?}: {error}");
            assert!(error.contains(why) && !error.contains("horse"), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "[a-z{}=#\" \n\\\\:.,]{0,80}") {
            let _ = parse(&text);
        }
    }
}
