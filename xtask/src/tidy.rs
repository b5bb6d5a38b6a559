//! `cargo xtask tidy`: cheap checks of the tracked files that neither the compiler nor clippy makes.
//!
//! Reads files only; what it finds is for people to mend.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Longer files hold more than one concept.
const MOST_LINES: usize = 600;
/// How the lock file writes the only kind of place that dependencies may come from.
const REGISTRY: &str = "registry+https://";

/// Runs the command.
pub(crate) fn run() -> Result<()> {
    let root = workspace::root()?;
    let words = machine_words(&root);
    let listed = workspace::output(Command::new("git").current_dir(&root).args(["ls-files", "-z"]))?;
    let (mut files, mut found) = (0, Vec::new());
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        let path = root.join(name);
        // Links point at files that are looked at themselves; what is deleted is not there to be checked.
        if path.is_symlink() || !path.is_file() {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        files += 1;
        found.extend(complaints(name, &bytes, &words));
    }
    if !found.is_empty() {
        bail!("{} of {files} files are not tidy:\n  {}", found.len(), found.join("\n  "));
    }
    println!("{files} files are tidy");
    Ok(())
}

/// Paths of this machine, and names of hosts that it fetches crates from, which must not be committed.
fn machine_words(root: &Path) -> Vec<String> {
    let mut words = vec![root.to_path_buf()];
    let home = env::var_os("HOME").map(PathBuf::from);
    words.extend(home.clone());
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(home?.join(".cargo")));
    let sources = cargo_home.as_ref().and_then(|home| home.join("registry/src").read_dir().ok());
    // The directories are called HOST-HASH.
    words.extend(sources.into_iter().flatten().flatten().map(|entry| PathBuf::from(entry.file_name())));
    words.extend(cargo_home);
    words
        .iter()
        // Short ones, such as a root directory as home, would be found in innocent text.
        .filter_map(|word| word.to_str().filter(|word| word.len() > 5))
        .map(str::to_owned)
        .collect()
}

/// What is wrong with one file.
fn complaints(name: &str, bytes: &[u8], machine_words: &[String]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut found = Vec::new();
    if Path::new(name).extension().is_some_and(|extension| extension == "rs") {
        if !text.starts_with("//!") {
            found.push(format!("{name}:1: begins without `//!` that says what the file is for"));
        }
        let lines = text.lines().count();
        if lines > MOST_LINES {
            found.push(format!("{name}: {lines} lines, more than {MOST_LINES}: split it by concept"));
        }
    }
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(word) = machine_words.iter().find(|word| line.contains(word.as_str())) {
            found.push(format!("{name}:{number}: `{word}` belongs to this machine"));
        } else if let Some(path) = home_directory(line) {
            found.push(format!("{name}:{number}: `{path}` is somebody's home directory"));
        }
        let source = line.strip_prefix("source = ").map(|source| source.trim_matches('"'));
        if name == "Cargo.lock" && source.is_some_and(|source| !source.starts_with(REGISTRY)) {
            found.push(format!("{name}:{number}: a dependency that is not from a registry: {line}"));
        }
    }
    found
}

/// Finds an absolute path into a home directory.
fn home_directory(line: &str) -> Option<&str> {
    ["/home/", "/root/"].iter().find_map(|directory| {
        line.match_indices(directory).find_map(|(start, _)| {
            let before = line[..start].chars().next_back();
            let rest = &line[start + directory.len()..];
            let end =
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || "._-/".contains(c))).unwrap_or(rest.len());
            let absolute = before.is_none_or(|c| !(c.is_ascii_alphanumeric() || "._-/}".contains(c)));
            (absolute && end > 0).then(|| &line[start..start + directory.len() + end])
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Vec<String> {
        complaints(name, text.as_bytes(), &["mirror.example-1949".to_owned()])
    }

    #[test]
    fn a_good_file_passes() {
        assert_eq!(of("a.rs", "//! What it is for.\nfn main() {}\n"), Vec::<String>::new());
        assert_eq!(
            of("a.md", "see $HOME/.cargo and https://example.org/home/page and ./root/x\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_file_without_purpose_is_found() {
        assert_eq!(of("a.rs", "fn main() {}\n").len(), 1);
        assert_eq!(of("a.md", "text\n").len(), 0);
    }

    #[test]
    fn a_long_file_is_found() {
        let lines = |count: usize| format!("//! Long.\n{}", "\n".repeat(count - 1));
        assert_eq!(of("a.rs", &lines(MOST_LINES)).len(), 0);
        assert_eq!(of("a.rs", &lines(MOST_LINES + 1)).len(), 1);
    }

    #[test]
    fn traces_of_the_machine_are_found() {
        let home = concat!("/ho", "me/someone/x");
        assert_eq!(
            of("a.md", &format!("see {home}.")),
            [format!("a.md:1: `{home}.` is somebody's home directory")]
        );
        assert_eq!(of("a.toml", &format!("\npath = \"{home}\"")).len(), 1);
        assert_eq!(of("a.json", "mirror.example-19490/foo").len(), 1);
    }

    #[test]
    fn a_source_that_is_no_registry_is_found() {
        assert_eq!(of("Cargo.lock", &format!("source = \"{REGISTRY}\"\n")).len(), 0);
        assert_eq!(of("Cargo.lock", "source = \"git+https://example.org/x\"\n").len(), 1);
    }
}
