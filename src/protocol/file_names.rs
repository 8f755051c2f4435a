//! Names of files that documents of items get, by the keys of the items: the same for whoever lays them out.

use std::collections::{HashMap, HashSet};

/// A name that leads nowhere else, whatever the key.
pub fn file_name(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' })
        .take(100)
        .collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "x".to_owned() } else { name.to_owned() }
}

/// Paths handed out so far; upper and lower case are one, for those who copy them to other file systems.
#[derive(Debug, Default)]
pub struct FileNames {
    taken: HashSet<String>,
    counts: HashMap<String, u32>,
}

impl FileNames {
    pub fn unique(&mut self, base: String) -> String {
        if self.taken.insert(base.to_ascii_lowercase()) {
            return base;
        }
        loop {
            let count = self.counts.entry(base.to_ascii_lowercase()).or_insert(1);
            *count += 1;
            let name = format!("{base}-{count}");
            if self.taken.insert(name.to_ascii_lowercase()) {
                return name;
            }
        }
    }
}
