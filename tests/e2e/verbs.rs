//! Every verb of `kubectl lockstep` beside a living operator, by people who are no administrators: an editor, an approver,
//! and one who has neither role. All that they were told stands in verbs.txt, as it was printed but for what differs each time;
//! `UPDATE=1` writes it anew. Formats and widths are in tests/apiserver/verbs.rs, pages from fixed objects in src/cli/golden.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use lockstep::api::workflow::Phase;
use serde_json::{Value, json};

use crate::support::{APPROVER, EDITOR, PATIENCE, Space};

/// What the plugin said, and how it ended.
struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

/// What people typed and read.
struct Transcript(Mutex<String>);

impl Transcript {
    fn add(&self, user: &str, words: &str, said: &Said) {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let code = said.code.unwrap_or_default();
        text.push_str(&format!("{user}$ kubectl lockstep {words}\n{}{}exit {code}\n\n", said.out, said.err));
    }

    /// It reads as it is kept.
    fn check(&self, namespace: &str) -> Result<()> {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(namespace, "NAMESPACE");
        for (pattern, word) in [
            (r"sha256:[0-9a-f]{12,64}", "DIGEST"),
            (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "UID"),
            // Names end with one, and those of pods with five characters more; a number of the run has no hyphen before it.
            (r"-[0-9a-f]{16}(-[a-z0-9]{5})?\b", "-HASH"),
            (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
            (r"\b\d\d:\d\d:\d\dZ?\b", "TIME"),
            (r"\b(\d+[smh])+\b", "AGE"),
            (r"/[^ ]*/lockstep-NAMESPACE/", ""),
            // Columns are as wide as what was put for their words.
            (r"  +", "  "),
            (r"(?m) +$", ""),
        ] {
            text = regex::Regex::new(pattern)?.replace_all(&text, word).into_owned();
        }
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/verbs.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&file, &text)?;
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        let differs = kept.lines().zip(text.lines()).find(|(kept, said)| kept != said);
        ensure!(kept == text, "{}: {differs:?}; UPDATE=1 writes it anew:\n{text}", file.display());
        Ok(())
    }
}

static TOLD: Transcript = Transcript(Mutex::new(String::new()));

impl Space {
    async fn verb(&self, user: &str, words: &str) -> Result<Said> {
        let mut command = Command::new("kubectl-lockstep");
        command.args(["--as", user, "-n", &self.namespace]).args(words.split(' ')).stdin(Stdio::null());
        let done = tokio::task::spawn_blocking(move || command.output());
        let done = tokio::time::timeout(PATIENCE, done).await.with_context(|| format!("{words}: it ends"))??;
        let done = done.context("kubectl-lockstep starts")?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Said { out: text(done.stdout), err: text(done.stderr), code: done.status.code() })
    }

    /// It ends with that code, and says that on one of its two ways.
    async fn does(&self, user: &str, words: &str, code: i32, told: &str) -> Result<Said> {
        let said = self.verb(user, words).await?;
        ensure!(
            said.code == Some(code) && (said.out.contains(told) || said.err.contains(told)),
            "{user}: {words}: {:?} instead of {code} with {told:?}\n{}\n{}",
            said.code,
            said.out,
            said.err
        );
        // Objects are for programs.
        if !said.out.starts_with('{') {
            TOLD.add(user, words, &said);
        }
        Ok(said)
    }
}

async fn world(space: &Space) -> Result<()> {
    let script = "lockstep memory set last 1; echo LOGGED; echo '# Plan' > $LOCKSTEP_OUT/plan.md";
    space.agent("writer", script, &json!({})).await?;
    let plan = json!({"name": "plan", "agentId": "writer", "produces": {"type": "plan"}, "gate": {"name": "plan", "onReject": "Revise"}});
    let budget = json!({"name": "budget", "ask": {"question": "How much?", "schema": {"type": "integer"}}});
    let template = json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "WorkflowTemplate", "metadata": {"name": "default"},
        "spec": {"steps": [plan, budget]}});
    space.post(&space.ours("workflowtemplates"), &template).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_do_everything_by_the_plugin_with_their_own_rights() -> Result<()> {
    let space = Space::open("verbs").await?;
    world(&space).await?;
    // Kubernetes' own role has the chart's viewers' rights in it, and the logs of pods.
    for user in [EDITOR, APPROVER] {
        space.bind("User", user, "view").await?;
    }
    let stranger = "eve";
    space.does(stranger, "run default --name hers", 5, "cannot create").await?;
    space.does(EDITOR, "run default --name shop --session s1 --input bikes", 0, "shop").await?;
    // A step waits a moment before its run says so.
    space.phase("shop", Phase::WaitingForAcceptance).await?;
    space.does(EDITOR, "list", 0, "WaitingForAcceptance").await?;
    space.does(EDITOR, "list -o name", 0, "workflow.lockstep.dev/shop").await?;
    let listed: Value = serde_json::from_str(&space.does(EDITOR, "list -o json", 0, "").await?.out)?;
    ensure!(listed["items"][0]["metadata"]["name"] == "shop", "{listed}");
    space.does(APPROVER, "inbox", 0, "approve").await?;
    space.does(APPROVER, "show shop", 0, "plan").await?;
    space.does(APPROVER, "show shop/plan", 0, "# Plan").await?;
    space.does(EDITOR, "logs shop", 0, "LOGGED").await?;
    space.does(EDITOR, "suspend shop", 0, "shop").await?;
    space.does(EDITOR, "resume shop", 0, "shop").await?;
    space.does(APPROVER, "can-i approve plan", 0, "yes").await?;
    space.does(stranger, "can-i approve plan", 1, "no").await?;
    let refused = space.verb(EDITOR, "approve shop/plan --yes").await?;
    ensure!(refused.code == Some(5), "an editor approves nothing: {} {}", refused.out, refused.err);
    // Two rounds at the gate.
    space.does(APPROVER, "reject shop/plan --yes -m shorter", 0, "").await?;
    let second = |s: &lockstep::api::StepRunStatus| {
        s.round == 2 && s.gate.as_ref().is_some_and(|gate| gate.round == 2 && gate.commands.len() > 1)
    };
    let waits = space.step("shop", "plan", "its second round waits", second).await?;
    let review = waits.status.and_then(|s| s.gate).context("a gate")?.output_digest;
    space.does(APPROVER, &format!("approve shop/plan --review {review} -m good"), 0, "").await?;
    space.step("shop", "budget", "it asks", |s| s.waiting_for.is_some()).await?;
    space.does(APPROVER, "answer shop/budget many", 2, "integer").await?;
    space.does(APPROVER, "answer shop/budget 9007199254740993", 0, "").await?;
    space.phase("shop", Phase::Completed).await?;
    let ended = space.does(EDITOR, "watch shop", 0, "Completed").await?;
    ensure!(!ended.out.contains('\u{1b}'), "no terminal, no colours: {}", ended.out);
    space.does(EDITOR, "history shop", 0, "9007199254740993").await?;
    space.does(EDITOR, "history shop --decisions", 0, "shorter").await?;
    // What stays of it: documents, memory, the run itself elsewhere.
    space.does(EDITOR, "doc list", 0, "plan").await?;
    let folder = std::env::temp_dir().join(format!("lockstep-{}", space.namespace));
    std::fs::create_dir_all(&folder)?;
    let (note, file) = (folder.join("note.md"), folder.join("run.json"));
    std::fs::write(&note, "# Note\n")?;
    space.does(EDITOR, &format!("doc put {} --session s1", note.display()), 0, "note").await?;
    // The operator publishes it in its own time.
    let read =
        || async { Ok(space.verb(EDITOR, "doc get note --session s1").await?.out.contains("# Note").then_some(())) };
    space.until("the document is published", PATIENCE, None, read).await?;
    space.does(EDITOR, "memory get writer s1 last", 0, "1").await?;
    space.does(EDITOR, "memory set writer s1 last 23", 0, "").await?;
    space.does(EDITOR, "memory get writer s1 last", 0, "23").await?;
    space.does(EDITOR, "memory rm writer s1 last", 0, "").await?;
    let exported = space.does(EDITOR, "export shop", 0, "\"shop\"").await?.out;
    std::fs::write(&file, &exported)?;
    space.does(EDITOR, &format!("run --from {} --name again", file.display()), 0, "again").await?;
    std::fs::remove_dir_all(&folder)?;
    // What the exported run has completed is taken over beside it, with who accepted it.
    space.phase("again", Phase::Completed).await?;
    ensure!(space.pods("again").await?.is_empty(), "nothing runs twice");
    space.does(EDITOR, "run default --name other", 0, "other").await?;
    space.phase("other", Phase::WaitingForAcceptance).await?;
    space.does(EDITOR, "cancel other", 0, "other").await?;
    space.phase("other", Phase::Cancelled).await?;
    let retried = space.does(EDITOR, "retry other --all -o name", 0, "workflow.lockstep.dev/").await?;
    let name = retried.out.trim().rsplit('/').next().unwrap_or_default().to_owned();
    space.phase(&name, Phase::WaitingForAcceptance).await?;
    space.does(EDITOR, &format!("cancel {name}"), 0, "").await?;
    space.does(EDITOR, "version", 0, "lockstep").await?;
    space.does(EDITOR, "show nothing-of-that-name", 4, "nothing-of-that-name").await?;
    TOLD.check(&space.namespace)?;
    space.close().await
}
