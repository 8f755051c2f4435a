//! Whole workflows: gates, questions, lists, documents, rounds, what is missing, and what is refused.

use serde_json::{Value, json};

use super::place::{Place, agent, root, run};

/// A question, a gate, a list, documents from step to step. What each agent did stands in `effects`.
fn shop() -> String {
    let planner = agent(
        "planner",
        "  outputSchema: {type: object, required: [parts]}\n",
        r##"echo "plan $ATTEMPT" >> "$HERE/effects"
        brief=$(cat "$LOCKSTEP_IN/$(lockstep context /documents/brief/path)")
        count=$(lockstep context /parameters/count)
        lockstep progress 50 "$count parts"
        echo "# Plan for $brief, round $(lockstep context /step/round)" > "$LOCKSTEP_OUT/plan.md"
        echo "{\"parts\": [$(seq -s, 1 "$count")]}" > "$LOCKSTEP_OUT/result.json""##,
    );
    let maker = agent(
        "maker",
        "",
        r#"part=$(lockstep context /parameters/part)
        echo "part-$part $ATTEMPT" >> "$HERE/effects"
        echo "part $part of $(cat "$LOCKSTEP_IN/$(lockstep context /documents/plan/path)"), by $MODE and $KEY" > "$LOCKSTEP_OUT/part.txt"
        echo "$part" > "$LOCKSTEP_OUT/result.json""#,
    );
    let maker = maker.replace(
        "        command:",
        "        env:\n        - {name: MODE, valueFrom: {configMapKeyRef: {name: settings, key: mode}}}\n        - {name: KEY, valueFrom: {secretKeyRef: {name: keys, key: api}}}\n        command:",
    );
    let steps = r#"    - {name: size, ask: {question: How many parts?, schema: {type: integer, maximum: 3}}}
    - name: plan
      agentId: planner
      documents: [brief]
      parameters: {count: "${ steps.size.output }"}
      produces: {type: plan, format: markdown}
      gate: {message: Is this the plan?, onReject: Revise}
    - name: make
      forEach: {in: steps.plan.output.parts, as: part, key: part}
      agentId: maker
      documents: [plan]
      parameters: {part: "${ part }"}
      produces: {type: part, format: text}
    - {name: done, gate: {approvals: 2}, parameters: {parts: "${ steps.make.output }"}}"#;
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {mode: hand}\n---\n";
    let keys = "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {api: hunter22}\n";
    format!("{planner}{maker}{}{settings}{keys}", run("shop", steps))
}

fn effects(place: &Place) -> Vec<String> {
    let mut lines: Vec<String> = place.read("effects").lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn a_workflow_runs_to_its_end_with_what_people_say() {
    let place = Place::new("shop");
    place.write("flow.yaml", &shop());
    place.write("brief.md", "bikes");
    let go = |more: &[&str]| {
        let words = [&["-f", "flow.yaml", "--doc", "brief=brief.md"], more].concat();
        place.run(&words)
    };
    let waits = go(&[]).expect(3);
    assert!(waits.out.contains("? shop/size asks: How many parts?"), "{}", waits.out);
    assert!(waits.out.contains("the same command with --answer size=ANSWER"), "{}", waits.out);
    assert!(
        waits.err.contains("whoever runs this command (ann) decides at gates, and nothing proves who that is"),
        "{}",
        waits.err
    );
    assert!(go(&["--answer", "size=7"]).expect(2).err.contains("the answer does not fit"));

    let waits = go(&["--answer", "size=2", "--answer", "other=3"]).expect(3);
    assert!(waits.out.contains("◆ shop/plan waits for acceptance\n    | Is this the plan?\n"), "{}", waits.out);
    assert!(waits.err.contains("note: nothing was there for --answer other=3"), "{}", waits.err);
    assert_eq!(effects(&place), ["plan 1"]);
    // What was decided is not asked again; another command is not taken for this one.
    go(&[]).expect(3);
    let other = place.run(&["-f", "flow.yaml", "--doc", "brief=brief.md", "--input", "x"]).expect(2);
    assert!(other.err.contains("--fresh begins anew"), "{}", other.err);

    let waits = go(&["--reject", "plan=too vague"]).expect(3);
    assert!(waits.out.contains("rejected by ann"), "{}", waits.out);
    let done = go(&["--approve", "plan", "--approve-all"]).expect(0);
    assert!(done.out.contains("accepted by ann-2; 2 of 2"), "{}", done.out);
    assert_eq!(effects(&place), ["part-1 1", "part-2 1", "plan 1", "plan 2"]);
    assert_eq!(place.read(".lockstep/shop/documents/plan.md"), "# Plan for bikes, round 2\n");
    let part = place.read(".lockstep/shop/documents/part/2.txt");
    assert_eq!(part, "part 2 of # Plan for bikes, round 2, by hand and ***\n");
    let output: Value = serde_json::from_str(&place.read(".lockstep/shop/output.json")).expect("JSON");
    assert_eq!(output, json!({"accepted": true, "decidedBy": "ann, ann-2", "comment": null}));

    // Its end was shown: the same command begins it anew.
    let anew = go(&["--answer", "size=1", "--approve-all"]).expect(0);
    assert!(anew.err.contains("shop runs here"), "{}", anew.err);
    assert_eq!(effects(&place).len(), 6);
}

#[test]
fn what_cannot_run_here_is_said_before_anything_runs() {
    let place = Place::new("refused");
    let elsewhere = "apiVersion: lockstep.dev/v1alpha1\nkind: Agent\nmetadata: {name: far}\nspec: {template: {spec: {containers: [{name: agent, image: i, command: [/agents/far]}]}}}\n---\n";
    let flow = run("flow", "    - {name: a, agentId: far}\n    - {name: b, agentId: lost}");
    place.write("flow.yaml", &format!("{elsewhere}{flow}"));
    let told = place.run(&["-f", "flow.yaml", "--agent", "near=true"]).expect(2).err;
    for words in [
        "the Agent far runs /agents/far, which is not on this machine; say what runs here: --agent far='COMMAND'",
        "the run names the Agent lost, and no file has it",
        "--agent near: no file has an Agent of that name",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert!(!place.folder.join(".lockstep").exists(), "nothing was begun");
    place.write("wrong.yaml", &run("wrong", "    - {name: a, agentId: 7}"));
    let told = place.run(&["-f", "wrong.yaml"]).expect(2).err;
    assert!(told.contains("wrong.yaml:6: error: Workflow wrong: spec.steps[0].agentId"), "{told}");
    let told = place.run(&["-f", "flow.yaml", "--", "true"]).expect(2).err;
    assert!(told.contains("say --agent NAME=COMMAND"), "{told}");
    let lines = "# here\nfar=test -e far.here && echo '\"near\"' > \"$LOCKSTEP_OUT/result.json\"\n";
    std::fs::create_dir_all(place.folder.join("sub")).expect("a folder");
    place.write("sub/dev.agents", lines);
    place.write("sub/far.here", "");
    place.write("flow.yaml", &format!("{elsewhere}{}", run("flow", "    - {name: a, agentId: far}")));
    // Commands of a file run in its folder.
    place.run(&["-f", "flow.yaml", "--agents", "sub/dev.agents"]).expect(0);
    assert_eq!(place.read(".lockstep/flow/output.json"), "\"near\"\n");
}

#[test]
fn a_missing_document_and_a_missing_secret_are_waited_for() {
    let place = Place::new("missing");
    let reader = agent(
        "reader",
        "",
        "cat \"$LOCKSTEP_IN/$(lockstep context /documents/brief/path)\" > \"$LOCKSTEP_OUT/result.json\"",
    );
    let steps = run("read", "    - {name: read, agentId: reader, documents: [brief]}");
    place.write("flow.yaml", &format!("{reader}{steps}"));
    let waits = place.run(&["-f", "flow.yaml"]).expect(3);
    assert!(waits.out.contains("a document is missing: brief"), "{}", waits.out);
    let document = "apiVersion: lockstep.dev/v1alpha1\nkind: Document\nmetadata: {name: brief}\nspec: {type: brief, scope: Namespace, format: json, content: '7'}\n";
    place.write("brief.yaml", document);
    place.run(&["-f", "flow.yaml", "-f", "brief.yaml"]).expect(0);
    assert_eq!(place.read(".lockstep/read/output.json"), "7\n");

    let keyed = agent("keyed", "", "echo \"\\\"$KEY\\\"\" > \"$LOCKSTEP_OUT/result.json\"");
    let keyed = keyed.replace(
        "        command:",
        "        env: [{name: KEY, valueFrom: {configMapKeyRef: {name: settings, key: k}}}]\n        command:",
    );
    place.write("keyed.yaml", &format!("{keyed}{}", run("keyed", "    - {name: a, agentId: keyed}")));
    let mut waits = place.start(&["-f", "keyed.yaml"]);
    assert!(waits.until("ConfigMap settings not found; put it into a file that -f names").is_some());
    waits.signal(nix::sys::signal::Signal::SIGTERM);
    waits.ended().expect(130);
}

#[test]
fn the_example_of_routing_goes_each_of_its_ways() {
    let place = Place::new("routing");
    let example = root().join("examples/routing").display().to_string();
    for (name, input, did) in
        [("letter", "A letter to the customer", "write"), ("bill", "An invoice of last year", "hand over")]
    {
        place.run(&["-f", &example, "--name", name, "--input", input]).expect(0);
        let output: Value = serde_json::from_str(&place.read(&format!(".lockstep/{name}/output.json"))).expect("JSON");
        assert_eq!(output, json!({"did": did}), "{name}");
    }
}
