//! The YAML in README.md and docs/ as objects that `kubectl lockstep lint` reads: whole ones as they stand, steps and gates
//! in a Workflow around them.

/// The objects in a page, each with the number of its first line.
pub fn objects(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() != "```yaml" {
            continue;
        }
        let inside = lines.by_ref().map(|(_, line)| line).take_while(|line| line.trim() != "```");
        let block: String = inside.flat_map(|line| [line, "\n"]).collect();
        found.extend(whole(&block).map(|object| (number + 2, object)));
    }
    found
}

fn whole(block: &str) -> Option<String> {
    let run = |steps: &str, indent: &str| {
        let steps: String = steps.lines().flat_map(|line| [indent, line, "\n"]).collect();
        format!("apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {{name: x}}\nspec:\n  steps:\n{steps}")
    };
    match block {
        block if block.contains("apiVersion: lockstep.dev/") => Some(block.to_owned()),
        block if block.starts_with("- name:") => Some(run(block, "  ")),
        block if block.starts_with("gate:") => {
            let step: String = block.lines().flat_map(|line| ["  ", line, "\n"]).collect();
            Some(run(&format!("- name: x\n  agentId: x\n{step}"), "  "))
        }
        _ => None,
    }
}
