//! What the pages say of `dev`, done as it stands there, from the project's root.

use std::process::{Command, Stdio};

use super::place::{PROGRAM, Place, root};

/// The lines of `kubectl lockstep dev` in blocks without a language.
fn commands(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(page)).expect("the page").replace("\\\n", " ");
    let (mut is_block, mut is_shell, mut found) = (false, false, Vec::new());
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            (is_block, is_shell) = (!is_block, !is_block && language.is_empty());
        } else if is_shell && line.starts_with("kubectl lockstep dev ") {
            found.push(line.split("  #").next().unwrap_or_default().trim().to_owned());
        }
    }
    found
}

/// In order: each goes on where the one before it left. What a line leaves open ends with 3.
fn follow(page: &str) -> usize {
    let place = Place::new(&page.replace(['/', '.'], "-"));
    // The examples as they are, without what their runs leave beside them.
    for name in ["examples", "docs"] {
        std::os::unix::fs::symlink(root().join(name), place.folder.join(name)).expect("a link");
    }
    let all = commands(page);
    for line in &all {
        let line = line.replacen("kubectl lockstep", PROGRAM, 1);
        let mut command = Command::new("sh");
        command.args(["-c", &line]).current_dir(&place.folder).env("USER", "ann").stdin(Stdio::null());
        let ran = command.output().expect("a shell");
        let text = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(matches!(ran.status.code(), Some(0 | 3)), "{page}: {line}: {}\n{text}", ran.status);
    }
    all.len()
}

#[test]
fn the_readme_is_followed_without_a_cluster() {
    assert!(follow("README.md") >= 3);
}

#[test]
fn the_page_of_dev_is_followed() {
    assert!(follow("docs/dev.md") >= 5);
}

/// What `make try` runs, where nobody sits at a terminal.
#[test]
fn the_demonstration_runs_to_its_end() {
    let place = Place::new("try");
    let ran = Command::new(root().join("hack/try"))
        .current_dir(root())
        .env("STATE", place.folder.join("state"))
        .env("PROGRAM", PROGRAM)
        .env("AUTO", "1")
        .stdin(Stdio::null())
        .output()
        .expect("it runs");
    let text = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{text}");
    assert!(text.contains("architecture  Completed  6/6 done"), "{text}");
    assert!(place.read("state/documents/discovery.md").starts_with("# Discovery: Second Spin"), "{text}");
}
