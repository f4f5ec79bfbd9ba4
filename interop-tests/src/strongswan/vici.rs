//! Parses the output of `swanctl --pretty`: sections, lists and values, each on a line.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// A section.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) values: BTreeMap<String, String>,
    pub(super) lists: BTreeMap<String, Vec<String>>,
    pub(super) sections: BTreeMap<String, Section>,
}

impl Section {
    /// Parses all replies and events in the text. Blocks such as `list-sa event {` become sections
    /// with a number added to their names.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut top = Self::default();
        top.fill(&mut lines, true)?;
        Ok(top)
    }

    fn fill<'a>(&mut self, lines: &mut impl Iterator<Item = &'a str>, top: bool) -> Result<()> {
        while let Some(line) = lines.next() {
            if line == "}" {
                return Ok(());
            }
            if let Some(name) = line.strip_suffix('{') {
                let mut section = Self::default();
                section.fill(lines, false)?;
                let mut name = name.trim().to_owned();
                if top {
                    name = format!("{name} {}", self.sections.len());
                }
                self.sections.insert(name, section);
            } else if let Some(name) = line.strip_suffix("= [") {
                let list: Vec<_> = lines.take_while(|line| *line != "]").map(str::to_owned).collect();
                self.lists.insert(name.trim().to_owned(), list);
            } else if let Some((key, value)) = line.split_once(" =") {
                self.values.insert(key.trim().to_owned(), value.trim().to_owned());
            } else {
                bail!("not a line of swanctl: {line:?}");
            }
        }
        anyhow::ensure!(top, "swanctl's output ends in the middle");
        Ok(())
    }

    pub(super) fn value(&self, key: &str) -> Result<&str> {
        self.values.get(key).map(String::as_str).with_context(|| format!("swanctl's output has no {key}"))
    }

    pub(super) fn number(&self, key: &str) -> Result<u64> {
        self.value(key)?.parse().with_context(|| format!("{key} is not a number"))
    }

    pub(super) fn list(&self, key: &str) -> Vec<String> {
        self.lists.get(key).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::Section;

    #[test]
    fn nested_sections_lists_and_values_are_read() {
        let text = "list-sa event {\n  site {\n    remote-id = CN=moon, O=x\n    child-sas {\n      net-1 {\n        \
                    spi-in = c1\n        local-ts = [\n          10.1.0.0/24\n        ]\n      }\n    }\n  }\n}\n\
                    list-sas reply {\n}\n";
        let top = Section::parse(text).unwrap();
        let site = &top.sections["list-sa event 0"].sections["site"];
        assert_eq!(site.value("remote-id").unwrap(), "CN=moon, O=x");
        let child = &site.sections["child-sas"].sections["net-1"];
        assert_eq!(child.value("spi-in").unwrap(), "c1");
        assert_eq!(child.list("local-ts"), ["10.1.0.0/24"]);
    }

    #[test]
    fn output_that_ends_in_the_middle_is_refused() {
        assert!(Section::parse("list-sa event {\n  site {\n").is_err());
    }
}
