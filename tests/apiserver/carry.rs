//! What the plugin carries in and out: documents from files, a run as a file, the end of a run as an exit code; and the words
//! that complete its command line.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lockstep::api::Workflow;
use lockstep::api::definition::Definition;
use lockstep::api::name::digest_bytes;
use lockstep::decide::build;
use lockstep::definition::pinned;
use serde_json::{Value, json};

use crate::plugin::{AT, PLUGIN, at_gate, ends, run};
use crate::support::{Ask, Team, object, policies_whole, until};

/// A folder of a test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn make(team: &Team) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("lockstep-{}", team.namespace));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }

    fn put(&self, name: &str, text: &str) -> Result<String> {
        let file = self.0.join(name);
        std::fs::write(&file, text)?;
        Ok(file.display().to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// As the operator does it for documents that people put.
async fn publish(team: &Team, name: &str, digest: &str, revision: i64) -> Result<()> {
    let status =
        json!({"status": {"phase": "Published", "revision": revision, "digest": digest, "observedGeneration": 1}});
    team.operator.gets(&Ask::patch(team.one("documents", &format!("{name}/status")), status)).await?;
    Ok(())
}

/// The name behind `TYPE is put: `.
fn name_of(out: &str, kind: &str) -> Result<String> {
    let line = out.lines().find(|line| line.starts_with(&format!("{kind} is "))).context("no such line")?;
    Ok(line.rsplit(' ').next().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_folder_of_files_becomes_documents_of_those_types() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("carry-docs").await?;
    let folder = Folder::make(&team)?;
    folder.put("brief.md", "# A shop\n")?;
    folder.put("prices.json", "{\"bike\": 100}")?;
    folder.put("picture.png", "x")?;
    let path = folder.0.display().to_string();
    let words = ["doc", "put", path.as_str(), "--session", "s"];
    let said = ends(&team, "bob", &words, 0, "brief is put: ").await?;
    ensure!(said.out.contains("prices is put: ") && said.wrong.contains("left out: "), "{said:?}");
    ends(&team, "bob", &words, 0, "brief is there already: ").await?;
    let brief = name_of(&said.out, "brief")?;
    let made = team.admin.gets(&Ask::get(team.one("documents", &brief))).await?;
    let spec =
        json!({"type": "brief", "scope": "Session", "session": "s", "format": "markdown", "content": "# A shop\n"});
    ensure!(made["spec"] == spec, "{made}");
    // It is found once it is published, to the byte.
    ends(&team, "bob", &["doc", "get", "brief", "--session", "s"], 4, "see kubectl lockstep doc list").await?;
    publish(&team, &brief, &digest_bytes(b"# A shop\n"), 1).await?;
    for words in [vec!["doc", "get", "brief", "--session", "s"], vec!["doc", "get", &brief]] {
        let said = ends(&team, "bob", &words, 0, "# A shop").await?;
        ensure!(said.out == "# A shop\n", "{said:?}");
    }
    ends(&team, "bob", &["doc", "get", "breif", "--session", "s"], 4, "did you mean brief?").await?;
    ends(&team, "bob", &["doc", "get", "brief"], 4, "sees no published document brief").await?;
    let said = ends(&team, "bob", &["doc", "list"], 0, "session s").await?;
    ensure!(said.out.contains("Published") && said.out.contains("Draft") && !said.out.contains("A shop"), "{said:?}");
    let said = ends(&team, "bob", &["doc", "ls", "--type", "prices", "-o", "json"], 0, "\"prices\"").await?;
    ensure!(
        serde_json::from_str::<Value>(&said.out)?["items"].as_array().is_some_and(|all| all.len() == 1),
        "{said:?}"
    );
    // Another content is the next one; where a file can be no document nothing is put.
    folder.put("brief.md", "# Another\n")?;
    folder.put("Not A Type.md", "x")?;
    ends(&team, "bob", &words, 2, "is no type of a document").await?;
    std::fs::remove_file(folder.0.join("Not A Type.md"))?;
    let said = ends(&team, "bob", &words, 0, "brief is put: ").await?;
    let second = name_of(&said.out, "brief")?;
    ensure!(second != brief, "{said:?}");
    publish(&team, &second, &digest_bytes(b"# Another\n"), 2).await?;
    let said = ends(&team, "bob", &["doc", "get", "brief", "--session", "s"], 0, "").await?;
    ensure!(said.out == "# Another\n", "{said:?}");
    // What is not what was published is not shown.
    publish(&team, &second, &digest_bytes(b"something else"), 3).await?;
    let said = ends(&team, "bob", &["doc", "get", &second], 6, "sha256:").await?;
    ensure!(said.out.is_empty(), "{said:?}");
    ends(&team, "alice", &words, 5, "cannot").await?;
    team.close().await
}

/// A run that has ended, with its pinned definition, an accepted gate, and a document that it was given. Gives its UID.
async fn ended(team: &Team) -> Result<String> {
    let step = json!({"name": "plan", "agentId": "planner", "gate": {"name": "brief"}});
    let template = json!({"steps": [step]});
    team.bob.gets(&Ask::post(team.all("workflowtemplates"), object("WorkflowTemplate", "default", &template))).await?;
    let spec =
        json!({"templateRef": {"name": "default"}, "input": "bikes", "session": "s", "parameters": {"depth": 2}});
    let made = team.bob.gets(&Ask::post(team.all("workflows"), object("Workflow", "shop", &spec))).await?;
    let uid = made["metadata"]["uid"].as_str().context("no UID")?.to_owned();
    let run: Workflow = serde_json::from_value(made)?;
    let definition = Definition {
        workflow: "shop".to_owned(),
        workflow_uid: uid.clone(),
        session: "s".to_owned(),
        steps: vec![serde_json::from_value(step)?],
        parameters: serde_json::from_value(json!({"depth": 2, "tone": "plain"}))?,
        ..Definition::default()
    };
    let revision = serde_json::to_value(build::revision(&run, &definition))?;
    let revisions = format!("/apis/apps/v1/namespaces/{}/controllerrevisions", team.namespace);
    team.operator.gets(&Ask::post(revisions, revision.clone())).await?;
    let given =
        object("Document", "law", &json!({"type": "law", "scope": "Namespace", "format": "text", "content": "No."}));
    let given = team.bob.gets(&Ask::post(team.all("documents"), given)).await?;
    at_gate(team, ("shop", &uid), "plan", "# Plan\n", "# Plan\n").await?;
    let decision = json!({"documentType": "brief", "scopeId": uid, "accepted": true, "decidedBy": "alice", "decidedAt": AT,
        "digest": "sha256:d", "round": 1});
    let gate = json!({"phase": "Completed", "completedAt": AT, "gate": {"state": "Accepted", "decisions": [decision]}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "shop-plan/status"), json!({"status": gate}))).await?;
    let read = json!({"type": "law", "name": "law", "digest": digest_bytes(b"No."), "uid": given["metadata"]["uid"]});
    let other = json!({"workflow": {"name": "shop", "uid": uid}, "path": "build", "documents": [read]});
    team.step_run("shop-build", other, json!({"phase": "Failed", "completedAt": AT})).await?;
    let status = json!({"phase": "Failed", "completedAt": AT, "session": {"id": "s", "phase": "Failed"},
        "definition": {"revisionName": revision["metadata"]["name"], "digest": pinned::digest(&definition)},
        "steps": [{"path": "plan", "phase": "Completed", "stepRun": "shop-plan"}, {"path": "build", "phase": "Failed", "stepRun": "shop-build"}]});
    team.operator.gets(&Ask::patch(team.one("workflows", "shop/status"), json!({"status": status}))).await?;
    Ok(uid)
}

#[tokio::test]
async fn a_run_is_carried_as_a_file_and_elsewhere_nothing_counts_as_approved() -> Result<()> {
    let _whole = policies_whole().await;
    let (team, other) = (Team::open("carry-run").await?, Team::open("carry-to").await?);
    let folder = Folder::make(&team)?;
    let uid = ended(&team).await?;
    // Who may not read the definition is told so.
    let said = ends(&team, "bob", &["export", "shop"], 0, "you may not read controllerrevisions").await?;
    ensure!(serde_json::from_str::<Value>(&said.out)?.get("definition").is_none(), "{said:?}");
    team.bind("view", json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bob"}])).await?;
    until("bob reads definitions", || async {
        Ok(team.may("bob", &[], "get", "apps", "controllerrevisions").await?.then_some(()))
    })
    .await?;
    let said = ends(&team, "bob", &["export", "shop"], 0, "\"kind\": \"RunExport\"").await?;
    ensure!(said.wrong.is_empty(), "{said:?}");
    let export: Value = serde_json::from_str(&said.out)?;
    let names: Vec<&Value> = export["documents"].as_array().into_iter().flatten().map(|d| &d["type"]).collect();
    ensure!(names.contains(&&json!("law")) && names.contains(&&json!("brief")), "{export}");
    let plan =
        export["steps"].as_array().into_iter().flatten().find(|step| step["StepId"] == "plan").context("no plan")?;
    ensure!(plan["outputDigest"].is_string() && plan["Output"] == json!({"epics": 7}), "{plan}");
    ensure!(
        export["said"]["decisions"][0]["digest"] == "sha256:d"
            && export["said"]["decisions"][0]["decidedBy"] == "alice"
    );
    let file = folder.put("run.json", &said.out)?;

    // Where the run still is, the operator takes over what it finds there itself.
    let said = ends(&team, "bob", &["run", "--from", &file, "-o", "json"], 0, "what completed is taken over").await?;
    let made: Value = serde_json::from_str(&said.out)?;
    ensure!(made["spec"]["retryOf"] == json!({"name": "shop", "uid": uid}), "{made}");

    // In another namespace it begins anew, from the definition that was pinned.
    let said =
        ends(&other, "bob", &["run", "--from", &file, "--name", "shop", "-o", "json"], 0, "nothing counts as approved")
            .await?;
    let made: Value = serde_json::from_str(&said.out)?;
    let spec = &made["spec"];
    ensure!(spec["retryOf"].is_null() && spec["templateRef"].is_null() && spec["steps"][0]["name"] == "plan", "{spec}");
    ensure!(spec["parameters"] == json!({"depth": 2, "tone": "plain"}) && spec["input"] == "bikes", "{spec}");
    ensure!(spec["documents"] == json!([{"type": "law", "format": "text", "content": "No."}]), "{spec}");
    for kind in ["stepruns", "documents"] {
        let list = other.admin.gets(&Ask::get(other.all(kind))).await?;
        let made = list["items"].as_array().into_iter().flatten().filter(|o| o["metadata"]["name"] != "canary").count();
        ensure!(made == 0, "{kind} came with it: {list}");
    }

    // What was changed by hand is refused, by its name.
    for (pointer, value, told) in [
        ("/documents/0/content", json!("# Mine"), "documents[0].content: was changed"),
        ("/definition/content/steps/0/agentId", json!("mine"), "definition.content: was changed"),
        ("/spec/parameters", json!("x"), "spec.parameters: invalid type"),
    ] {
        let mut bad = export.clone();
        *bad.pointer_mut(pointer).context("no such field")? = value;
        let file = folder.put("bad.json", &bad.to_string())?;
        ends(&other, "bob", &["run", "--from", &file], 2, told).await?;
    }
    // One that is not over is not gone on from.
    let mut open = export.clone();
    let running = team
        .bob
        .gets(&Ask::post(
            team.all("workflows"),
            object("Workflow", "open", &json!({"templateRef": {"name": "default"}})),
        ))
        .await?;
    (open["run"]["name"], open["run"]["uid"]) = (json!("open"), running["metadata"]["uid"].clone());
    let file = folder.put("open.json", &open.to_string())?;
    ends(&team, "bob", &["run", "--from", &file], 1, "is here, and not over").await?;
    team.close().await?;
    other.close().await
}

#[tokio::test]
async fn whoever_waits_for_a_run_leaves_with_its_end() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("carry-wait").await?;
    let template = json!({"steps": [{"name": "plan", "agentId": "a"}]});
    team.bob.gets(&Ask::post(team.all("workflowtemplates"), object("WorkflowTemplate", "default", &template))).await?;
    let reason = |phase: &str, status: &str| {
        let ended =
            json!({"type": "Succeeded", "status": status, "reason": phase, "message": "", "lastTransitionTime": AT});
        json!({"phase": phase, "completedAt": AT, "conditions": [ended]})
    };
    for (phase, status, code) in [("Completed", "True", 0), ("Failed", "False", 1), ("Cancelled", "False", 1)] {
        let name = format!("run-{}", phase.to_lowercase());
        let words = ["run", "default", "--name", &name, "--wait", "-o", "json"];
        let end = async {
            let there = Ask::get(team.one("workflows", &name));
            until("the run is made", || async { Ok(team.admin.asks(&there).await.ok()) }).await?;
            let path = team.one("workflows", &format!("{name}/status"));
            team.operator.gets(&Ask::patch(path, json!({"status": reason(phase, status)}))).await
        };
        let (said, ended) = tokio::join!(run(&team, "bob", &words), end);
        ended?;
        let said = said?;
        ensure!(said.code == code && said.wrong.contains(&format!("started {name}")), "{phase}: {said:?}");
        ensure!(serde_json::from_str::<Value>(&said.out)?["status"]["phase"] == phase, "{said:?}");
    }
    team.close().await
}

/// What kubectl hears when somebody presses TAB behind these words.
fn completed(program: &Path, team: &Team, words: &[&str]) -> Result<String> {
    let output = Command::new(program).args(["-n", &team.namespace, "--as", "bob"]).args(words).output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn a_command_line_is_completed_with_live_names() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("carry-complete").await?;
    let folder = Folder::make(&team)?;
    ended(&team).await?;
    let asking = json!({"phase": "WaitingForAcceptance", "gate": {"state": "Waiting", "round": 1, "outputDigest": "d",
        "openedAt": AT, "policy": "p"}});
    let uid = team.admin.gets(&Ask::get(team.one("workflows", "shop"))).await?["metadata"]["uid"].clone();
    let spec = json!({"workflow": {"name": "shop", "uid": uid}, "path": "epics", "gate": {"name": "epics"}});
    team.step_run("shop-epics", spec, asking).await?;
    publish(&team, "law", &digest_bytes(b"No."), 1).await?;
    let program = folder.0.join("kubectl_complete-lockstep");
    std::os::unix::fs::symlink(PLUGIN, &program)?;
    assert_eq!(program.file_name(), Some(OsStr::new("kubectl_complete-lockstep")));
    for (words, expected) in [
        (&["watch", "sh"][..], "shop\tFailed\n:4\n"),
        (&["show", "shop/p"], "shop/plan\tCompleted\n:4\n"),
        (&["approve", ""], "shop/epics\tWaitingForAcceptance\n:4\n"),
        (&["answer", ""], ":4\n"),
        (&["run", "de"], "default\n:4\n"),
        (&["list", "--session", ""], "s\n:4\n"),
        (&["can-i", "approve", "b"], "brief\tgate\n:4\n"),
        (&["doc", "get", "la"], "law\nlaw\tlaw\n:4\n"),
        (&["watch", "nothing"], ":4\n"),
    ] {
        let said = completed(&program, &team, words)?;
        ensure!(said == expected, "{words:?}: {said:?}");
    }
    // Whoever may read nothing gets no names, and no fault.
    let output = Command::new(&program).args(["-n", &team.namespace, "--as", "nobody", "watch", ""]).output()?;
    ensure!(output.status.success() && output.stdout == b":4\n", "{output:?}");
    team.close().await
}
