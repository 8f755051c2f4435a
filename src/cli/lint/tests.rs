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
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let texts: Vec<(String, String)> = files(&root, Depth::All)
        .expect("the examples")
        .iter()
        .map(|file| (name(file), std::fs::read_to_string(file).expect("an example")))
        .collect();
    let report = report(&texts);
    let told = report.findings.iter().filter(|finding| finding.level != Level::Note);
    let found: Vec<String> = told.map(|finding| finding.text(RenderOptions::default())).collect();
    assert!(report.objects >= 12, "{} objects", report.objects);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_run_is_held_against_the_template_beside_it() {
    let template = "apiVersion: lockstep.dev/v1alpha1\nkind: WorkflowTemplate\nmetadata: {name: t}\nspec:\n  parametersSchema: {required: [depth], properties: {depth: {type: integer}}}\n  steps: [{name: a, agentId: x}]\n";
    let run = "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {name: r}\nspec:\n  templateRef: {name: t}\n  parameters:\n    depth: deep\n";
    let of = |texts: &[&str]| {
        let texts: Vec<(String, String)> = texts.iter().map(|t| ("f".to_owned(), (*t).to_owned())).collect();
        report(&texts).findings.iter().map(|finding| finding.text(RenderOptions::default())).collect::<String>()
    };
    assert_eq!(of(&[run]), "");
    let told = of(&[run, template]);
    assert!(told.starts_with("f:7: error: Workflow r: spec.parameters.depth: "), "{told}");
}

#[test]
fn a_folder_stands_for_its_files() {
    let folder = std::env::temp_dir().join(format!("lockstep-lint-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("deep")).expect("a folder");
    for file in ["b.yml", "a.yaml", ".settings.yaml", "notes.md", "deep/c.json"] {
        std::fs::write(folder.join(file), "").expect("a file");
    }
    let names = |depth| -> Vec<String> {
        let found = files(&folder, depth).expect("they can be read");
        found.iter().map(|file| file.strip_prefix(&folder).expect("in it").display().to_string()).collect()
    };
    assert_eq!(names(Depth::One), ["a.yaml", "b.yml"]);
    assert_eq!(names(Depth::All), ["a.yaml", "b.yml", "deep/c.json"]);
    assert_eq!(files(Path::new("-"), Depth::All).map(|found| found.len()), Ok(1));
    std::fs::remove_dir_all(&folder).expect("it can be removed");
}

#[test]
fn documents_and_runs_stand_in_one_file() {
    let document = "apiVersion: lockstep.dev/v1alpha1\nkind: Document\nmetadata: {name: d}\nspec: {type: brief, scope: Namespace, format: markdown, content: x}\n";
    let run =
        "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {name: r}\nspec: {templateRef: {name: t}}\n";
    let of = |text: &str| {
        let report = report(&[("f".to_owned(), text.to_owned())]);
        (
            report.objects,
            report.findings.iter().map(|finding| finding.text(RenderOptions::default())).collect::<String>(),
        )
    };
    assert_eq!(of(&format!("---\n{document}---\n# and the run\n{run}---\n")), (2, String::new()));
    let (_, told) = of(&format!("{document}--- {run}"));
    assert!(told.starts_with("f:5: error: kubectl takes nothing but a comment behind ---"), "{told}");
}

#[test]
fn a_file_of_any_name_is_a_uri() {
    let text =
        "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {name: r}\nspec: {templateRef: {nam: t}}\n";
    for (file, uri) in [("./a b/c#1.yaml", "a%20b/c%231.yaml"), ("flöw.yaml", "fl%C3%B6w.yaml")] {
        let log = sarif::log(&report(&[(file.to_owned(), text.to_owned())]));
        let place = log.pointer("/runs/0/results/0/locations/0/physicalLocation/artifactLocation/uri");
        assert_eq!(place, Some(&Value::from(uri)));
    }
}

#[test]
fn what_is_printed_is_golden() {
    let text = "apiVersion: lockstep.dev/v1alpha1\nkind: Workflow\nmetadata: {name: r}\nspec: {templateRef: {nam: t}, input: 5}\n";
    let report = report(&[("run.yaml".to_owned(), text.to_owned())]);
    let mut golden = crate::cli::golden::Golden::new("lint");
    golden.add("lint run.yaml", &text_of(Format::Table, &report, RenderOptions::default()));
    golden.add(
        "lint run.yaml, in colours",
        &text_of(Format::Table, &report, RenderOptions { window: None, colours: true }),
    );
    golden.add("lint run.yaml -o json", &text_of(Format::Json, &report, RenderOptions::default()));
    golden.add("lint run.yaml -o yaml", &text_of(Format::Yaml, &report, RenderOptions::default()));
    golden.add("lint run.yaml -o sarif", &text_of(Format::Sarif, &report, RenderOptions::default()));
    golden.check();
}

fn text_of(format: Format, report: &Report, options: RenderOptions) -> String {
    super::text(format, report, options).unwrap_or_default()
}
