//! One agent: its output on standard output, its faults, its rounds and its questions; and the example in four languages.

use serde_json::{Value, json};

use super::place::{Place, root};

const WRITER: &str = "apiVersion: lockstep.dev/v1alpha1
kind: Agent
metadata: {name: writer}
spec:
  parametersSchema: {type: object, properties: {depth: {type: integer, default: 3}, name: {type: string}}}
  outputSchema:
    type: object
    required: [depth]
    properties: {depth: {type: integer, maximum: 4}, name: {type: string}, told: {type: string}}
  template: {spec: {containers: [{name: agent, image: i, command: [/agent]}]}}
";

fn place(purpose: &str, script: &str) -> Place {
    let place = Place::new(purpose);
    place.write("agent.yaml", WRITER);
    place.write("brief.md", "# A brief\n");
    place.write("agent.sh", script);
    place
}

#[test]
fn one_agent_prints_what_it_makes() {
    let script = r#"depth=$(lockstep context /parameters/depth)
        told=$(lockstep context /previous/comments/0 || true)
        cp "$LOCKSTEP_IN/$(lockstep context /documents/brief/path)" "$LOCKSTEP_OUT/plan.md"
        echo "depth $depth of $(lockstep context /input || echo nothing)" >&2
        printf '{"depth": %s, "told": "%s", "name": "%s"}' "$depth" "$told" "$(lockstep context /parameters/name || true)" > "$LOCKSTEP_OUT/result.json""#;
    let place = place("one", script);
    let go = |more: &[&str]| {
        let words = [&["-f", "agent.yaml", "--doc", "brief=brief.md"], more, &["--", "sh", "-e", "agent.sh"]].concat();
        place.run(&words)
    };
    let made =
        go(&["--param", "depth=2", "--param", "name=007", "--input", "bikes", "--produces", "plan.md"]).expect(0);
    let (document, output) = made.out.split_once('\n').expect("a document and the output");
    assert_eq!(document, "# A brief", "{}", made.out);
    let output: Value = serde_json::from_str(output).expect("JSON and nothing else");
    assert_eq!(output, json!({"depth": 2, "told": "", "name": "007"}));
    assert!(made.err.contains("writer  Completed"), "{}", made.err);

    // The default of the Agent's schema; two rounds.
    let made = go(&["--comment", "shorter"]).expect(0);
    assert!(made.out.contains("\"depth\":3"), "{}", made.out);
    assert!(made.err.contains("rejected by ann") && made.err.contains("accepted in round 2"), "{}", made.err);

    let wrong = go(&["--param", "depth=9"]).expect(1);
    assert_eq!(wrong.out, "");
    let told = "writer: InvalidOutput: /depth: value is greater than the maximum of 4; it is 9";
    assert!(wrong.err.contains(told), "{}", wrong.err);
    assert!(wrong.err.contains("  | depth 9 of"), "{}", wrong.err);
    let kept = wrong.err.lines().find_map(|line| line.strip_prefix("  what it worked with: ")).expect("a folder");
    assert!(place.read(&format!("{kept}/out/result.json")).contains("\"depth\": 9"), "{kept}");
    let typo = go(&["--param", "depth=deep"]).expect(1);
    assert!(typo.err.contains("spec.parameters.depth: value is not of type \"integer\""), "{}", typo.err);
}

#[test]
fn an_agent_that_asks_is_answered_by_the_next_call() {
    let script = r#"depth=$(lockstep ask "How deep?" --key depth)
        name=$(lockstep ask "Which name?" --choices north,south)
        echo "{\"depth\": $depth, \"name\": \"$name\"}" > "$LOCKSTEP_OUT/result.json""#;
    let place = place("asks", script);
    let go = |more: &[&str]| place.run(&[&["-f", "agent.yaml"], more, &["--", "sh", "-e", "agent.sh"]].concat());
    let waits = go(&[]).expect(3);
    assert!(waits.err.contains("? writer/writer asks: How deep?"), "{}", waits.err);
    go(&["--answer", "writer=2"]).expect(3);
    assert!(go(&["--answer", "writer=west"]).expect(2).err.contains("it takes one of north, south"));
    let made = go(&["--answer", "writer=north"]).expect(0);
    assert_eq!(made.out, "{\"depth\":2,\"name\":\"north\"}\n");
    // Both at once, in their order.
    let made = go(&["--answer", "writer=1", "--answer", "writer=south"]).expect(0);
    assert_eq!(made.out, "{\"depth\":1,\"name\":\"south\"}\n");
}

fn is_here(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    program.contains('/') || std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

#[test]
fn the_example_makes_the_same_in_every_language() {
    let place = Place::new("languages");
    let examples = root().join("examples/agents");
    let of = |file: &str| examples.join(file).display().to_string();
    let mut made = Vec::new();
    for (language, command) in [
        ("python", vec!["python3".to_owned(), of("python/agent.py")]),
        ("node", vec!["node".to_owned(), of("node/agent.mjs")]),
        ("go", vec!["go".to_owned(), "run".to_owned(), of("go/main.go")]),
        ("shell", vec![of("shell/agent")]),
    ] {
        // Continuous integration has them all.
        if std::env::var_os("CI").is_none() && !is_here(&command[0]) {
            println!("{language} is left out: {} is not on this machine", command[0]);
            continue;
        }
        let source = std::fs::read_to_string(command.last().expect("a file")).expect("the source");
        assert!(source.lines().count() < 60, "{language} is to be copied");
        let (agent, brief) = (of("agent.yaml"), format!("brief={}", of("brief.md")));
        let words = ["-f", &agent, "--doc", &brief, "--param", "depth=3", "--produces", "outline.md", "--"];
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let ran = place.run(&[&words[..], &command].concat()).expect(0);
        let files =
            ["documents/outline.md", "output.json"].map(|file| place.read(&format!(".lockstep/outline/{file}")));
        made.push((language, ran.out, files));
    }
    for (language, out, files) in &made {
        assert_eq!((out, files), (&made[0].1, &made[0].2), "{language}");
    }
    assert_eq!(made[0].2[1], "{\"title\":\"Second Spin: \\\"used\\\" bikes & more\",\"headings\":5,\"words\":55}\n");
    // The same as in real pods (`tests/e2e/languages.rs`).
    let expected = std::fs::read_to_string(examples.join("outline.md")).expect("the outline");
    assert_eq!(made[0].2[0], expected);
}
