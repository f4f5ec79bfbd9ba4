//! Makes a program's command line documentation: a reference in `docs/cli`, a manual page in
//! `deploy/man` and shell completions in `deploy/completions`. All are made from the definitions
//! with which the program parses its arguments. Tests of the programs compare the results with the
//! files.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Environment variable that makes the tests rewrite the files instead of comparing them.
const UPDATE: &str = "EDGE_UPDATE";
/// Columns of the help texts in the reference.
const WIDTH: usize = 100;
/// The section of the manual pages: system administration.
const SECTION: &str = "8";
const MANUAL: &str = "edge-cni";

/// A workspace file and its text.
type MadeFile = (PathBuf, String);

/// Compares the documentation of a command line with the workspace files, or writes the files if
/// the environment has `EDGE_UPDATE`. Panics, for tests, if a file differs.
pub fn compare(command: &Command) {
    let command = prepared(command);
    let name = command.get_name().to_owned();
    let mut files = vec![
        (PathBuf::from(format!("docs/cli/{name}.md")), reference(&command)),
        (PathBuf::from(format!("deploy/man/{name}.{SECTION}")), manual_page(&command)),
    ];
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        let file = match shell {
            Shell::Zsh => format!("_{name}"),
            shell => format!("{name}.{shell}"),
        };
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), &name, &mut text);
        files.push((Path::new("deploy/completions").join(file), without_trailing_spaces(&text)));
    }
    compare_files(&files, &name);
}

/// Does the same as [`compare`] for a program whose help is one text that it prints itself. Such a
/// program has no completions.
pub fn compare_help(name: &str, about: &str, help: &str) {
    let reference = format!("{}```text\n{}\n```\n", reference_head(name), help.trim_end());
    let escaped: Vec<String> = help.trim_end().lines().map(escaped).collect();
    let manual = format!(
        ".TH {name} {SECTION} \"\" \"\" {MANUAL}\n.SH NAME\n{} \\- {about}\n.SH DESCRIPTION\n.nf\n{}\n.fi\n",
        escaped_word(name),
        escaped.join("\n"),
    );
    let files = [
        (PathBuf::from(format!("docs/cli/{name}.md")), reference),
        (PathBuf::from(format!("deploy/man/{name}.{SECTION}")), manual),
    ];
    compare_files(&files, name);
}

fn compare_files(files: &[MadeFile], name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    for (file, made) in files {
        let path = root.join(file);
        if std::env::var_os(UPDATE).is_some() {
            fs::create_dir_all(path.parent().expect("a directory")).unwrap();
            fs::write(&path, made).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        let differs = made.lines().zip(there.lines()).find(|(made, there)| made != there);
        assert!(
            there == *made,
            "{} is not what the command line of {name} makes: run this test with {UPDATE}=1; the first line that \
             differs: {differs:?}",
            file.display()
        );
    }
}

/// Returns the command as its users see it on every machine: with a fixed width and without values
/// from the environment.
fn prepared(command: &Command) -> Command {
    fn without_values(command: Command) -> Command {
        command.mut_args(|argument| argument.hide_env_values(true)).mut_subcommands(without_values)
    }
    let mut command = without_values(command.clone()).disable_help_subcommand(true).term_width(WIDTH);
    command.build();
    command
}

/// Returns all commands that users see, each with its path, in the order of the help.
fn commands(command: &Command) -> Vec<Command> {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.flat_map(|command| [vec![command.clone()], commands(command)].concat()).collect()
}

/// Returns a subcommand without the options that all commands have, which the reference describes
/// only once.
fn own_part(command: &Command) -> Command {
    command.clone().mut_args(|argument| {
        let repeated = argument.is_global_set() || ["help", "version"].contains(&argument.get_id().as_str());
        let hidden = argument.is_hide_set();
        argument.hide(repeated || hidden)
    })
}

fn path(command: &Command) -> String {
    command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn reference_head(name: &str) -> String {
    format!("# {name}\n\nMade from `{name} --help`; the tests compare it.\n\n")
}

fn reference(command: &Command) -> String {
    let mut text = reference_head(command.get_name());
    text += &format!("```text\n{}\n```\n", help(command));
    for command in commands(command) {
        text += &format!("\n## {}\n\n```text\n{}\n```\n", path(&command), help(&own_part(&command)));
    }
    text
}

fn help(command: &Command) -> String {
    let text = command.clone().term_width(WIDTH).render_long_help().to_string();
    without_trailing_spaces(text.as_bytes()).trim_end().to_owned()
}

fn manual_page(command: &Command) -> String {
    let man = |command: &Command| Man::new(command.clone()).section(SECTION).manual(MANUAL).source("");
    let mut page = Vec::new();
    let whole = man(command);
    let written = whole
        .render_title(&mut page)
        .and_then(|()| whole.render_name_section(&mut page))
        .and_then(|()| whole.render_synopsis_section(&mut page))
        .and_then(|()| whole.render_description_section(&mut page))
        .and_then(|()| whole.render_options_section(&mut page));
    written.expect("memory takes it");
    let mut page = without_trailing_spaces(&page);
    page += ".SH COMMANDS\n";
    for command in commands(command) {
        let (part, mut text) = (man(&own_part(&command)), Vec::new());
        let written = part
            .render_synopsis_section(&mut text)
            .and_then(|()| part.render_description_section(&mut text))
            .and_then(|()| part.render_options_section(&mut text));
        written.expect("memory takes it");
        page += &format!(".SS {}\n", escaped_word(&path(&command)));
        for line in without_trailing_spaces(&text).lines() {
            match line {
                // A section of the page contains only paragraphs.
                ".SH SYNOPSIS" => {}
                line if line.starts_with(".SH ") => page += ".PP\n",
                // One definition of the macro in a page is enough, and it comes before the title.
                line if line.starts_with(".ie ") || line.starts_with(".el ") => {}
                line => page += &format!("{line}\n"),
            }
        }
    }
    page
}

/// Escapes a line of text for roff, in which a backslash begins an escape, and a dot or an
/// apostrophe at the beginning of a line begins a request.
fn escaped(line: &str) -> String {
    let text = escaped_word(line);
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

fn escaped_word(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

fn without_trailing_spaces(text: &[u8]) -> String {
    let text = std::str::from_utf8(text).expect("help is text");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
