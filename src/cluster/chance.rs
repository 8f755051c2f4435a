//! Names that nobody else has: for runs that are started without one.

/// The name of a template, cut so that all fits, and five random characters.
pub fn run_name(template: &str) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // Without chance the name is taken before long, and its caller says so.
    let mut random = getrandom::u64().unwrap_or_default();
    let head: String = template.chars().take(46).collect();
    let mut name = format!("{}-", head.trim_end_matches(['-', '.']));
    for _ in 0..5 {
        name.push(char::from(DIGITS[(random % 36) as usize]));
        random /= 36;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_are_legal() {
        for template in ["default", &"x".repeat(52), "a-"] {
            let name = run_name(template);
            assert!(name.len() <= 52, "{name}");
            assert!(!name.contains("--"), "{name}");
        }
        assert_ne!(run_name("default"), run_name("default"));
    }
}
