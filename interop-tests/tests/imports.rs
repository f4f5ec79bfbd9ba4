//! Checks that files do not import each other in circles. At most two files in the same folder may
//! import each other. A file that uses a re-exported item imports both the re-exporting file and
//! the file that defines the item. Tests and macros do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};
use syn::{Attribute, File, Ident, Item, ItemMod, ItemUse, UseTree, Visibility};

/// A path in the source of a crate, relative to the module that names it.
type Names = Vec<String>;

/// Maximum number of re-exports between a name and its item. A longer chain is a circle of names.
const REEXPORTS: usize = 16;

/// A module of a crate.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Path of the module in the crate; empty for the root.
    path: Names,
    /// The items that the module defines.
    items: BTreeSet<String>,
    /// The paths that its `use` lines import, by the name that they give to each.
    bindings: BTreeMap<String, Names>,
    /// The modules whose items it imports with a `*`.
    globs: Vec<Names>,
    /// The paths that it uses: those of `use` lines, and those in its code.
    used: BTreeSet<Names>,
}

/// The modules of one crate, keyed by path.
#[derive(Default)]
struct Crate(BTreeMap<Names, Module>);

/// Returns whether an item is compiled only for tests.
fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Meta>().is_ok_and(|condition| condition.path().is_ident("test"))
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name(item: &Item) -> Option<&Ident> {
    match item {
        Item::Const(item) => Some(&item.ident),
        Item::Enum(item) => Some(&item.ident),
        Item::Fn(item) => Some(&item.sig.ident),
        Item::Macro(item) => item.ident.as_ref(),
        Item::Static(item) => Some(&item.ident),
        Item::Struct(item) => Some(&item.ident),
        Item::Trait(item) => Some(&item.ident),
        Item::Type(item) => Some(&item.ident),
        _ => None,
    }
}

/// Collects the paths that a `use` line names, each with the name that it gives to the path; `None`
/// for a `*`.
fn bindings(tree: &UseTree, prefix: &mut Names, found: &mut Vec<(Names, Option<String>)>) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            bindings(&path.tree, prefix, found);
            prefix.pop();
        }
        UseTree::Name(name) if name.ident == "self" => found.push((prefix.clone(), prefix.last().cloned())),
        UseTree::Name(name) => {
            found.push(([&prefix[..], &[name.ident.to_string()]].concat(), Some(name.ident.to_string())));
        }
        UseTree::Rename(rename) => {
            let mut path = prefix.clone();
            if rename.ident != "self" {
                path.push(rename.ident.to_string());
            }
            found.push((path, Some(rename.rename.to_string())));
        }
        UseTree::Glob(_) => found.push((prefix.clone(), None)),
        UseTree::Group(group) => {
            for tree in &group.items {
                bindings(tree, prefix, found);
            }
        }
    }
}

impl<'source> Visit<'source> for Module {
    fn visit_item(&mut self, item: &'source Item) {
        if !for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    /// Does nothing, because modules are read separately.
    fn visit_item_mod(&mut self, _: &'source ItemMod) {}

    /// Does nothing, because `pub(in crate::folder)` imports nothing.
    fn visit_visibility(&mut self, _: &'source Visibility) {}

    fn visit_item_use(&mut self, item: &'source ItemUse) {
        let mut found = Vec::new();
        bindings(&item.tree, &mut Names::new(), &mut found);
        for (path, name) in found {
            self.used.insert(path.clone());
            match name {
                Some(name) => {
                    self.bindings.insert(name, path);
                }
                None => self.globs.push(path),
            }
        }
    }

    fn visit_path(&mut self, path: &'source syn::Path) {
        if path.leading_colon.is_none() && path.segments.len() > 1 {
            self.used.insert(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }
}

impl Crate {
    /// Reads the crate whose root is `root`.
    fn read(root: &Path) -> Self {
        let mut read = Self::default();
        read.read_file(root, Names::new(), root.parent().expect("a folder"));
        read
    }

    /// Reads one file. `folder` is the directory with the files of the module's own modules.
    fn read_file(&mut self, file: &Path, path: Names, folder: &Path) {
        let source = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed: File = syn::parse_file(&source).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.read_module(file, path, folder, &parsed.items);
    }

    fn read_module(&mut self, file: &Path, path: Names, folder: &Path, items: &[Item]) {
        let mut module = Module { file: file.to_owned(), path: path.clone(), ..Module::default() };
        for item in items.iter().filter(|item| !for_tests(attributes(item))) {
            module.items.extend(name(item).map(Ident::to_string));
            module.visit_item(item);
            let Item::Mod(inner) = item else { continue };
            let name = inner.ident.to_string();
            let path = [&path[..], std::slice::from_ref(&name)].concat();
            let own = folder.join(&name);
            match &inner.content {
                Some((_, items)) => self.read_module(file, path, &own, items),
                None if own.with_extension("rs").is_file() => self.read_file(&own.with_extension("rs"), path, &own),
                None => self.read_file(&own.join("mod.rs"), path, &own),
            }
        }
        self.0.insert(path, module);
    }

    /// Returns the module that defines the item to which `names` leads in `module`. `None` if the
    /// item is outside the crate.
    fn definition<'read>(
        &'read self,
        module: &'read Module,
        names: &[String],
        reexports: usize,
    ) -> Option<&'read Module> {
        let (first, rest) = names.split_first()?;
        let mut at = match first.as_str() {
            "crate" => self.0.get(&Names::new())?,
            "self" => self.0.get(&module.path)?,
            "super" => self.0.get(module.path.split_last()?.1)?,
            _ => return self.member(module, first, rest, reexports),
        };
        for (index, name) in rest.iter().enumerate() {
            if name != "super" {
                return self.member(at, name, &rest[index + 1..], reexports);
            }
            at = self.0.get(at.path.split_last()?.1)?;
        }
        Some(at)
    }

    /// Finds the definition as `definition` does, for `name` in `module` and the names after it.
    fn member<'read>(
        &'read self,
        module: &'read Module,
        name: &str,
        rest: &[String],
        reexports: usize,
    ) -> Option<&'read Module> {
        let path = [&module.path[..], &[name.to_owned()]].concat();
        if let Some(inner) = self.0.get(&path) {
            return match rest.split_first() {
                Some((next, rest)) => self.member(inner, next, rest, reexports),
                None => Some(inner),
            };
        }
        if module.items.contains(name) {
            return Some(module);
        }
        let reexports = reexports.checked_sub(1)?;
        if let Some(path) = module.bindings.get(name)
            && path[..] != [name.to_owned()]
        {
            return self.definition(module, &[path, rest].concat(), reexports);
        }
        module
            .globs
            .iter()
            .find_map(|glob| self.definition(module, &[&glob[..], &[name.to_owned()], rest].concat(), reexports))
    }

    /// Returns each file with the other files that it imports.
    fn imports(&self) -> BTreeMap<PathBuf, BTreeSet<PathBuf>> {
        let mut imports: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
        for module in self.0.values() {
            let used = module.used.iter().flat_map(|names| {
                let defines = self.definition(module, names, REEXPORTS);
                [defines, self.named(module, names)].into_iter().flatten()
            });
            let files = used.map(|module| module.file.clone()).filter(|file| *file != module.file);
            imports.entry(module.file.clone()).or_default().extend(files);
        }
        imports
    }

    /// Returns the module to which `names` leads in `module` through module names alone.
    fn named<'read>(&'read self, module: &'read Module, names: &[String]) -> Option<&'read Module> {
        let mut at = module;
        for (index, name) in names.iter().enumerate() {
            let path = match name.as_str() {
                "crate" => Names::new(),
                "self" => continue,
                "super" => at.path.split_last()?.1.to_vec(),
                _ => [&at.path[..], std::slice::from_ref(name)].concat(),
            };
            match self.0.get(&path) {
                Some(next) => at = next,
                None if index == 0 => return None,
                None => break,
            }
        }
        Some(at)
    }
}

/// Returns the files that each file reaches directly or indirectly by imports.
fn reached(imports: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> BTreeMap<&PathBuf, BTreeSet<&PathBuf>> {
    let from = |file| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![file]);
        while let Some(file) = open.pop() {
            open.extend(imports.get(file).into_iter().flatten().filter(|file| reached.insert(*file)));
        }
        reached
    };
    imports.keys().map(|file| (file, from(file))).collect()
}

/// Returns the circles: sets of files that each reach all others in the set.
fn circles(imports: &BTreeMap<PathBuf, BTreeSet<PathBuf>>) -> BTreeSet<BTreeSet<&PathBuf>> {
    let reached = reached(imports);
    let circles = reached.iter().map(|(file, files)| -> BTreeSet<&PathBuf> {
        files.iter().copied().filter(|other| reached[other].contains(*file)).collect()
    });
    circles.filter(|circle| !circle.is_empty()).collect()
}

fn folders<'files>(files: &BTreeSet<&'files PathBuf>) -> BTreeSet<Option<&'files Path>> {
    files.iter().map(|file| file.parent()).collect()
}

/// Returns the faults in the imports of the crate with this root, a line for each circle.
fn faults(root: &Path, shown_below: &Path) -> Vec<String> {
    let imports = Crate::read(root).imports();
    let wrong = circles(&imports).into_iter().filter(|circle| circle.len() > 2 || folders(circle).len() > 1);
    wrong
        .map(|circle| {
            let lines = circle.iter().map(|file| {
                let shown = |file: &Path| file.strip_prefix(shown_below).unwrap_or(file).display().to_string();
                let others: Vec<_> =
                    imports[*file].iter().filter(|other| circle.contains(other)).map(|file| shown(file)).collect();
                format!("    {} imports {}", shown(file), others.join(", "))
            });
            format!("circle of {} files:\n{}", circle.len(), lines.collect::<Vec<_>>().join("\n"))
        })
        .collect()
}

/// Returns the roots of the workspace's crates.
fn roots(workspace: &Path) -> Vec<PathBuf> {
    let packages = [
        "agent",
        "cni",
        "controller/domain",
        "controller/kubernetes",
        "controller/server",
        "ike",
        "interop-tests",
        "types",
        "xfrm",
    ];
    let roots = packages.iter().flat_map(|package| ["lib.rs", "main.rs"].map(|root| (package, root)));
    roots.map(|(package, root)| workspace.join(package).join("src").join(root)).filter(|root| root.is_file()).collect()
}

#[test]
fn no_circle_of_imports_has_more_than_two_files_and_none_crosses_folders() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let roots = roots(workspace);
    assert!(roots.len() >= 9, "crates: {roots:?}");
    let faults: Vec<_> = roots.iter().flat_map(|root| faults(root, workspace)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Writes a crate with these files and returns the faults in its imports.
fn faults_of(files: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    for (path, source) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, source).unwrap();
    }
    faults(&folder.path().join("lib.rs"), folder.path())
}

#[test]
fn a_circle_of_three_files_is_found_and_one_of_two_is_allowed() {
    let root = ("lib.rs", "mod a; mod b; mod c;");
    let (a, b) = (("a.rs", "use crate::b::B; pub struct A;"), ("b.rs", "use super::a::A; pub struct B;"));
    assert_eq!(faults_of(&[root, a, b, ("c.rs", "use crate::a::A;")]), [""; 0]);
    let b = ("b.rs", "use crate::c::C; pub struct B;");
    let found = faults_of(&[root, a, b, ("c.rs", "use crate::a::A; pub struct C;")]);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("circle of 3 files:\n    a.rs imports b.rs\n"), "{found:?}");
}

#[test]
fn a_file_that_re_exports_an_item_is_imported_with_the_one_that_defines_it() {
    let root = ("lib.rs", "pub use a::A; pub use b::B; mod a; mod b;");
    let (a, b) = (("a.rs", "use crate::B; pub struct A;"), ("b.rs", "pub struct B;"));
    assert_eq!(faults_of(&[root, a, b]), [""; 0]);
    let found = faults_of(&[root, a, ("b.rs", "pub type B = crate::A;")]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("circle of 3 files:"), "{found:?}");
}

#[test]
fn a_circle_between_two_folders_is_found_through_re_exports_and_in_code() {
    let root = ("lib.rs", "mod a; mod b;");
    let folder = ("a/mod.rs", "mod inner; pub(crate) use inner::*;");
    let inner = ("a/inner.rs", "pub struct A; fn f() { crate::b::f(); }");
    let found = faults_of(&[root, folder, inner, ("b.rs", "use crate::a::A; pub fn f() {}")]);
    let lines = [
        "circle of 3 files:",
        "a/inner.rs imports b.rs",
        "a/mod.rs imports a/inner.rs",
        "b.rs imports a/inner.rs, a/mod.rs",
    ];
    assert_eq!(found, [lines.join("\n    ")]);
}

#[test]
fn what_tests_import_counts_for_nothing() {
    let root = ("lib.rs", "mod a; mod b; mod c;");
    let a = ("a.rs", "use crate::b::B; pub struct A;");
    let b = ("b.rs", "use crate::c::C; pub struct B;");
    let c = ("c.rs", "pub struct C; #[cfg(test)] mod tests { use crate::a::A; }");
    assert_eq!(faults_of(&[root, a, b, c]), [""; 0]);
}
