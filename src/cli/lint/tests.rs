use super::*;

/// Each example says what is wrong with it: `# expect: LEVEL LINE MESSAGE`, in the order of printing.
#[test]
fn broken_examples_get_their_messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/lint/examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).expect("the examples") {
        let file = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&file).expect("an example");
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
        let found: Vec<String> = report(&[(name(&file), text.clone())])
            .findings
            .iter()
            .map(|f| format!("{} {} {}", f.level.word(), f.line.unwrap_or_default(), f.message))
            .collect();
        assert_eq!(found, expected, "{}", file.display());
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn what_we_ship_is_clean() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/product-discovery");
    let texts: Vec<(String, String)> = ["agents.yaml", "workflow-template.yaml"]
        .iter()
        .map(|file| ((*file).to_owned(), std::fs::read_to_string(root.join(file)).expect("an example")))
        .collect();
    let report = report(&texts);
    assert_eq!((report.objects, report.findings), (4, Vec::new()));
}

#[test]
fn a_run_is_held_against_the_template_beside_it() {
    let template = "apiVersion: lockstep.dev/v1alpha1\nkind: WorkflowTemplate\nmetadata: {name: t}\nspec:\n  parametersSchema: {required: [depth], properties: {depth: {type: integer}}}\n  steps: [{name: a, agentId: x}]\n";
    let run = "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {name: r}\nspec:\n  templateRef: {name: t}\n  parameters:\n    depth: deep\n";
    let of = |texts: &[&str]| {
        let texts: Vec<(String, String)> = texts.iter().map(|t| ("f".to_owned(), (*t).to_owned())).collect();
        report(&texts).findings.iter().map(Finding::text).collect::<String>()
    };
    assert_eq!(of(&[run]), "");
    let told = of(&[run, template]);
    assert!(told.starts_with("f:7: error: Workflow r: spec.parameters.depth: "), "{told}");
}
