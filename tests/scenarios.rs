//! Stories against `decide` alone: `scenarios/NAME.txt` tells one, with the plan that must follow under every step.
//! A reviewer reads these first. `UPDATE=1 cargo test --test scenarios` writes the plans anew, in place.

#![expect(clippy::expect_used, clippy::fn_params_excessive_bools, clippy::panic, reason = "all of it is test")]

#[path = "scenarios/invariants.rs"]
mod invariants;
#[path = "scenarios/print.rs"]
mod print;
#[path = "scenarios/states.rs"]
mod states;
#[path = "scenarios/story.rs"]
mod story;
#[path = "scenarios/world.rs"]
mod world;

use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios")
}

fn check(name: &str) {
    let file = folder().join(format!("{name}.txt"));
    let expected = std::fs::read_to_string(&file).expect("the story");
    let found = story::tell(&expected);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, found).expect("the story is written");
        return;
    }
    if found != expected {
        let line = found.lines().zip(expected.lines()).take_while(|(a, b)| a == b).count();
        panic!(
            "{name}.txt differs at line {}; UPDATE=1 rewrites it\nexpected: {:?}\nfound:    {:?}",
            line + 1,
            expected.lines().nth(line),
            found.lines().nth(line)
        );
    }
}

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        #[test]
        fn every_rule_has_its_story() {
            let told = [$(stringify!($name)),*];
            let rules = std::fs::read_to_string(folder().join("RULES.md")).expect("the rules");
            let lines = rules.lines().filter(|l| l.starts_with("- "));
            let mut named = Vec::new();
            for line in lines {
                // What stands behind the last colon is stories; before it code may be quoted, too.
                let (rule, stories) = line.rsplit_once(": ").expect("a rule, a colon, its stories");
                let stories: Vec<&str> = stories.split('`').map(str::trim).filter(|s| !s.is_empty()).collect();
                assert!(!stories.is_empty(), "{rule}: no story");
                named.extend(stories);
            }
            for story in &named {
                assert!(told.contains(story), "{story} is named in RULES.md and not told");
            }
            for story in told {
                assert!(named.contains(&story), "{story} is told and shows no rule in RULES.md");
            }
        }

        /// What `hack/gitops` shows to kstatus, Argo CD and Flux.
        #[test]
        fn the_states_that_other_tools_are_shown() {
            let mut found = states::States::of_definitions();
            for name in [$(stringify!($name)),*] {
                let text = std::fs::read_to_string(folder().join(format!("{name}.txt"))).expect("the story");
                story::play(&text, &mut |world| found.see(world));
            }
            found.compare();
        }

        #[test]
        fn every_file_is_told() {
            let told = [$(stringify!($name)),*];
            for entry in std::fs::read_dir(folder()).expect("the folder") {
                let path = entry.expect("an entry").path();
                if path.extension().is_some_and(|e| e == "txt") {
                    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    assert!(told.contains(&stem.as_str()), "{stem} stands in no list");
                }
            }
        }
    };
}

include!("scenarios/list.in");
