//! Files that verbs read.

use std::path::Path;

use super::fault::Fault;

/// The text of a file, or of standard input.
pub fn read(file: &Path) -> Result<String, Fault> {
    let text =
        if file == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(file) };
    text.map_err(|why| Fault::usage(format!("cannot read {}: {why}", file.display())))
}
