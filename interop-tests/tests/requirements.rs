//! Checks that each requirement of an RFC that `ike/requirements` lists is cited where `ike`
//! implements it and where a test checks it, and that the tables in `docs` show both places.
//! `EDGE_UPDATE=1` writes the tables.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The RFCs with a list in `ike/requirements` and a table in `docs`.
const RFCS: [u32; 3] = [4555, 6023, 7296];

/// Prefix of a citation. The rest is `RFC`, its number, section, level, number of the requirement
/// in the section, a colon and a short name.
const CITATION: &str = "//= ";

/// The rules in the simulation's oracle check all runs of the simulation, so these rules count as
/// tests.
const ORACLE: &str = "tests/simulation/oracle/";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The level of a requirement in the RFC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Level {
    #[serde(rename = "MUST")]
    Must,
    #[serde(rename = "MUST NOT")]
    MustNot,
    #[serde(rename = "SHOULD")]
    Should,
    #[serde(rename = "SHOULD NOT")]
    ShouldNot,
    /// A requirement that is stated without one of the other words, but without which the protocol
    /// does not work.
    #[serde(rename = "REQUIRED")]
    Required,
}

impl Level {
    const ALL: [Self; 5] = [Self::MustNot, Self::Must, Self::ShouldNot, Self::Should, Self::Required];
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Must => "MUST",
            Self::MustNot => "MUST NOT",
            Self::Should => "SHOULD",
            Self::ShouldNot => "SHOULD NOT",
            Self::Required => "REQUIRED",
        })
    }
}

/// A list of requirements.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    section: Vec<Section>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    number: String,
    title: String,
    requirements: Vec<Requirement>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Requirement {
    /// Number of the requirement in its section, from 1. The number never changes.
    number: u32,
    level: Level,
    text: String,
    /// The reason why `ike` need not meet the requirement.
    does_not_apply: Option<String>,
    /// The behaviour of `ike` instead.
    missing: Option<String>,
    /// The reason why no test checks the requirement.
    untested: Option<String>,
}

/// The identifier of a requirement: RFC, section and number in the section.
type Key = (u32, String, u32);

/// A citation and the function (or other item) that contains it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Citation {
    /// Path of the source file below `ike`.
    file: String,
    line: usize,
    item: String,
    test: bool,
    /// The cited requirement, or the error in the citation.
    cites: Result<(Key, Level), String>,
}

impl Citation {
    fn at(&self) -> String {
        format!("ike/{}:{}", self.file, self.line)
    }

    /// Returns the place of the citation in the form that the table uses.
    fn place(&self) -> String {
        let file = self.file.strip_prefix("src/").unwrap_or(&self.file);
        format!("`{}`: `{}`", file.trim_end_matches(".rs"), self.item)
    }
}

/// Parses the text of a citation after the marker.
fn parse(text: &str) -> Result<(Key, Level), String> {
    let form = || format!("{text:?} is not of the form \"RFC 7296 2.8.1 SHOULD 3: short name\"");
    let (reference, name) = text.split_once(": ").ok_or_else(form)?;
    let rest = reference.strip_prefix("RFC ").ok_or_else(form)?;
    let (rfc, rest) = rest.split_once(' ').ok_or_else(form)?;
    let (section, rest) = rest.split_once(' ').ok_or_else(form)?;
    let (level, number) = rest.rsplit_once(' ').ok_or_else(form)?;
    let level = Level::ALL.into_iter().find(|known| known.to_string() == level).ok_or_else(form)?;
    let (Ok(rfc), Ok(number), false) = (rfc.parse(), number.parse(), name.trim().is_empty()) else {
        return Err(form());
    };
    Ok(((rfc, section.to_owned(), number), level))
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// Returns the name of the item that begins in this line; for an `impl`, the implementing type.
fn item(line: &str) -> Option<&str> {
    let line = line.trim();
    if line.starts_with("impl") {
        return Some(line.trim_end_matches([' ', '{']));
    }
    let mut words = line.split_whitespace();
    loop {
        let word = words.next()?;
        let named = match word {
            "pub" | "async" | "unsafe" => continue,
            _ if word.starts_with("pub(") => continue,
            "const" if line.contains("const fn ") => continue,
            "fn" | "const" | "static" | "struct" | "enum" | "trait" | "type" | "mod" => words.next()?,
            _ => return None,
        };
        let end = named.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(named.len());
        return named.get(..end).filter(|name| !name.is_empty());
    }
}

/// Returns the item to which line `at` belongs: the function around it, otherwise the item whose
/// comments and attributes contain the line, otherwise any item around it.
fn item_of(lines: &[&str], at: usize) -> Option<(usize, String)> {
    let named = |index: usize| Some((index, item(lines[index])?.to_owned()));
    let outside = |index: &usize| indentation(lines[*index]) < indentation(lines[at]);
    let around = (0..at).rev().filter(outside).find_map(named);
    let in_function = |(index, _): &(usize, String)| lines[*index].split_whitespace().any(|word| word == "fn");
    if around.as_ref().is_some_and(in_function) {
        return around;
    }
    let is_code = |line: &str| !line.is_empty() && !line.starts_with("//") && !line.starts_with("#[");
    let next = (at..lines.len()).find(|index| is_code(lines[*index].trim_start()));
    next.and_then(named).or(around)
}

/// Returns whether the item that begins in line `at` is a test.
fn is_test(lines: &[&str], at: usize) -> bool {
    let before = lines[..at].iter().rev().map(|line| line.trim_start());
    before.take_while(|line| line.starts_with("//") || line.starts_with("#[")).any(|line| line == "#[test]")
}

/// Returns all citations in a source file.
fn citations(file: &str, source: &str) -> Vec<Citation> {
    let lines: Vec<&str> = source.lines().collect();
    let tests_begin = lines.iter().position(|line| *line == "#[cfg(test)]").unwrap_or(lines.len());
    let all_tests = file.starts_with("tests/") || file.contains("/tests/") || file.ends_with("/tests.rs");
    let marked =
        lines.iter().enumerate().filter_map(|(at, line)| Some((at, line.trim_start().strip_prefix(CITATION)?)));
    marked
        .map(|(at, text)| {
            let test = all_tests || at > tests_begin;
            let (begins, item) = item_of(&lines, at).unwrap_or((at, String::new()));
            let mut cites = parse(text);
            if item.is_empty() {
                cites = Err("stands in no item".to_owned());
            } else if test && !file.starts_with(ORACLE) && !is_test(&lines, begins) {
                cites = Err(format!("stands in `{item}`, which is no test"));
            }
            Citation { file: file.to_owned(), line: at + 1, item, test, cites }
        })
        .collect()
}

/// Returns the source files of `ike`, keyed by path below `ike`.
fn sources() -> BTreeMap<String, String> {
    let ike = root().join("ike");
    let mut directories: Vec<PathBuf> = ["src", "tests"].map(|name| ike.join(name)).into();
    let mut sources = BTreeMap::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&ike).unwrap().to_str().unwrap().to_owned();
                sources.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    sources
}

fn read(rfc: u32) -> List {
    let path = root().join(format!("ike/requirements/rfc{rfc}.toml"));
    toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A requirement with its citations.
struct Row<'a> {
    requirement: &'a Requirement,
    code: Vec<&'a Citation>,
    tests: Vec<&'a Citation>,
}

/// Returns the faults in a requirement's citations.
fn faults(row: &Row<'_>) -> Vec<&'static str> {
    let Requirement { does_not_apply, missing, untested, .. } = row.requirement;
    let (cited, tested) = (!row.code.is_empty(), !row.tests.is_empty());
    let mut faults = Vec::new();
    match (does_not_apply.is_some(), missing.is_some()) {
        (true, true) => faults.push("does not apply and is missing"),
        (false, false) if !cited => {
            faults.push("is not cited in the code, nor does its row say does_not_apply or missing")
        }
        (false, false) if tested == untested.is_some() => faults.push(match tested {
            true => "says untested, and a test cites it",
            false => "is cited in no test, nor does its row say untested",
        }),
        (true, false) if cited || tested => faults.push("does not apply, and is cited"),
        _ => {}
    }
    faults
}

/// Joins the distinct places of citations into one text.
fn places(citations: &[&Citation]) -> String {
    let mut places: Vec<String> = Vec::new();
    for place in citations.iter().map(|citation| citation.place()) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    places.join("<br>")
}

fn table(rfc: u32, sections: &[(&Section, Vec<Row<'_>>)]) -> String {
    let rows = || sections.iter().flat_map(|(_, rows)| rows);
    let count = |of: fn(&Row<'_>) -> bool| rows().filter(|row| of(row)).count();
    let mut text = format!(
        "# RFC {rfc}, requirement by requirement\n\n\
         Made from `ike/requirements/rfc{rfc}.toml` and from the citations (`{CITATION}RFC {rfc} ...`) in the sources of `ike`:\n\
         `EDGE_UPDATE=1 cargo test -p interop-tests --test requirements` writes it, and without `EDGE_UPDATE` the test fails if this\n\
         document, the list and the citations differ. The sentences are ours; the RFC's own words count.\n\n\
         REQUIRED marks what the RFC states without MUST or SHOULD and what the protocol does not work without. Files are below\n\
         `ike/src`, or, if they begin with `tests`, below `ike`. Functions in `tests/simulation/oracle` judge every run of the simulation.\n\n\
         {} requirements: {} are kept, {} of them without a test; {} are not kept or only in part; {} do not apply.\n",
        rows().count(),
        count(|row| row.requirement.does_not_apply.is_none() && row.requirement.missing.is_none()),
        count(|row| row.requirement.untested.is_some()),
        count(|row| row.requirement.missing.is_some()),
        count(|row| row.requirement.does_not_apply.is_some()),
    );
    for (section, rows) in sections {
        write!(
            text,
            "\n## {} {}\n\n| | requirement | where | test |\n|---|---|---|---|\n",
            section.number, section.title
        )
        .unwrap();
        for Row { requirement, code, tests } in rows {
            let Requirement { number, level, text: sentence, does_not_apply, missing, untested } = requirement;
            let (mut place, mut test) = (places(code), places(tests));
            for (heading, why) in [("does not apply", does_not_apply), ("**not kept**", missing)] {
                if let Some(why) = why {
                    place = [place, format!("{heading}: {why}")]
                        .into_iter()
                        .filter(|part| !part.is_empty())
                        .collect::<Vec<_>>()
                        .join("<br>");
                }
            }
            if let Some(why) = untested {
                test = format!("none: {why}");
            }
            writeln!(text, "| {level} {number} | {sentence} | {place} | {test} |").unwrap();
        }
    }
    text
}

#[test]
fn every_requirement_is_cited_in_code_and_in_a_test() {
    let sources = sources();
    let citations: Vec<Citation> = sources.iter().flat_map(|(file, source)| citations(file, source)).collect();
    let mut faulty: Vec<String> = Vec::new();
    let lists: Vec<(u32, List)> = RFCS.into_iter().map(|rfc| (rfc, read(rfc))).collect();
    let mut levels: BTreeMap<Key, Level> = BTreeMap::new();
    for (rfc, list) in &lists {
        for section in &list.section {
            for requirement in &section.requirements {
                let key = (*rfc, section.number.clone(), requirement.number);
                if levels.insert(key, requirement.level).is_some() {
                    faulty.push(format!("RFC {rfc} {}: {} stands twice", section.number, requirement.number));
                }
            }
        }
    }
    for citation in &citations {
        match &citation.cites {
            Err(error) => faulty.push(format!("{}: {error}", citation.at())),
            Ok((key, level)) if levels.get(key) != Some(level) => {
                let (rfc, section, number) = key;
                faulty.push(format!("{}: RFC {rfc} {section} has no {level} {number}", citation.at()));
            }
            Ok(_) => {}
        }
    }
    for (rfc, list) in &lists {
        let of = |section: &Section, requirement: &Requirement, test: bool| {
            let key = (*rfc, section.number.clone(), requirement.number);
            let cites =
                |citation: &&Citation| citation.test == test && citation.cites == Ok((key.clone(), requirement.level));
            citations.iter().filter(cites).collect()
        };
        let mut sections: Vec<(&Section, Vec<Row<'_>>)> = Vec::new();
        for section in &list.section {
            let row = |requirement| Row {
                requirement,
                code: of(section, requirement, false),
                tests: of(section, requirement, true),
            };
            let rows: Vec<Row<'_>> = section.requirements.iter().map(row).collect();
            for row in &rows {
                let Requirement { level, number, .. } = row.requirement;
                faulty.extend(
                    faults(row)
                        .into_iter()
                        .map(|fault| format!("RFC {rfc} {} {level} {number} {fault}", section.number)),
                );
            }
            sections.push((section, rows));
        }
        assert!(faulty.is_empty(), "{}", faulty.join("\n"));
        let (path, made) = (root().join(format!("docs/rfc{rfc}.md")), table(*rfc, &sections));
        if std::env::var_os("EDGE_UPDATE").is_some() {
            fs::write(&path, &made).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        let differs = made.lines().zip(there.lines()).find(|(made, there)| made != there);
        assert!(
            made == there,
            "{} is not what the list and the citations make (EDGE_UPDATE=1 writes it); the first line that differs: {differs:?}",
            path.display()
        );
    }
}

#[test]
fn a_citation_is_found_with_the_function_that_it_is_in() {
    let source = "\
/// Outside.
const fn outer(
    argument: u8,
) -> u8 {
    //= RFC 7296 2.1 MUST NOT 1: inside
    argument
}

//= RFC 7296 2.1 MUST 2: all of it
impl From<&B> for A {
    //= RFC 7296 2.1 MUST 2: before
    #[inline]
    pub(super) fn method(&self) {}
}

//= RFC 7296 2.1 MUST 3
#[cfg(test)]
mod tests {
    #[test]
    fn tested() {
        //= RFC 7296 2.1 MUST 2: tested
        const NUMBER: u8 = 1;
        method();
    }

    fn helper() {
        //= RFC 7296 2.1 MUST 2: tested
    }
}
";
    let found = citations("src/a.rs", source);
    let items: Vec<_> = found.iter().map(|citation| (citation.item.as_str(), citation.test)).collect();
    let expected = ["outer", "impl From<&B> for A", "method", "tests", "tested", "helper"];
    assert_eq!(items, expected.map(|item| (item, item == "tested" || item == "helper")));
    let key = |number| (7296, "2.1".to_owned(), number);
    assert_eq!(found[0].cites, Ok((key(1), Level::MustNot)));
    assert_eq!(found[2].cites, Ok((key(2), Level::Must)));
    assert!(found[3].cites.as_ref().unwrap_err().contains("is not of the form"));
    assert_eq!(found[4].cites, found[2].cites);
    assert_eq!(found[5].cites, Err("stands in `helper`, which is no test".to_owned()));
    assert!(citations("tests/simulation/oracle/a.rs", source)[5].cites.is_ok());
}

#[test]
fn a_row_without_citation_or_reason_is_a_fault() {
    let requirement = |does_not_apply: bool, missing: bool, untested: bool| {
        let why = |set: bool| set.then(|| "why".to_owned());
        let text = "It is so.".to_owned();
        Requirement {
            number: 1,
            level: Level::Must,
            text,
            does_not_apply: why(does_not_apply),
            missing: why(missing),
            untested: why(untested),
        }
    };
    let citation = &citations("src/a.rs", "fn a() {\n    //= RFC 7296 2.1 MUST 1: a\n}\n")[0];
    let faults = |requirement: &Requirement, code: bool, test: bool| {
        let cited = |is: bool| if is { vec![citation] } else { Vec::new() };
        faults(&Row { requirement, code: cited(code), tests: cited(test) }).len()
    };
    let kept = requirement(false, false, false);
    assert_eq!([(true, true), (true, false), (false, true)].map(|(code, test)| faults(&kept, code, test)), [0, 1, 1]);
    let untested = requirement(false, false, true);
    assert_eq!((faults(&untested, true, false), faults(&untested, true, true)), (0, 1));
    assert_eq!(
        (faults(&requirement(true, false, false), false, false), faults(&requirement(true, false, false), true, false)),
        (0, 1)
    );
    assert_eq!(faults(&requirement(false, true, false), false, false), 0);
    assert_eq!(faults(&requirement(true, true, false), false, false), 1);
}
