//! All stories at once, for whoever wants to know whether any of them tells that something is wrong.

mod invariants;
mod print;
mod story;
mod world;

use std::path::Path;

/// The first story, in order of names, that does not come to what it says: its name, and what it came to instead.
pub fn find_difference() -> Option<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let files = std::fs::read_dir(folder).expect("the stories").map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|ending| ending == "txt")).collect();
    files.sort();
    files.iter().find_map(|file| {
        let expected = std::fs::read_to_string(file).expect("the story");
        let name = || file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(found) = std::panic::catch_unwind(|| story::tell(&expected)) else {
            return Some((name(), "a rule that holds in every story is broken".to_owned()));
        };
        if found == expected {
            return None;
        }
        let differs = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        Some((name(), differs.map_or("it ends elsewhere", |(found, _)| found.trim()).to_owned()))
    })
}
