//! `kubectl lockstep` as a person runs it: what it shows before it decides, and what it refuses to decide. No operator is
//! there; where a decision is to be taken up, the test does it in the operator's name.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result, bail, ensure};
use lockstep::api::name::digest;
use lockstep::api::step_run::StepRun;
use lockstep::decide::gate::review_digest;
use serde_json::{Value, json};

use crate::support::{Ask, PATIENCE, Team, annotation, policies_whole, until, workflow};

pub const PLUGIN: &str = env!("CARGO_BIN_EXE_kubectl-lockstep");
pub const AT: &str = "2026-01-01T00:00:00Z";

/// What the plugin left with, and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub wrong: String,
}

/// Without a terminal, as somebody else.
pub async fn run(team: &Team, user: &str, words: &[&str]) -> Result<Said> {
    let mut command = Command::new(PLUGIN);
    command.args(["-n", &team.namespace, "--as", user]).args(words).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), wrong: text(&output.stderr) })
}

/// The same, and it must end so.
pub async fn ends(team: &Team, user: &str, words: &[&str], code: i32, told: &str) -> Result<Said> {
    let said = run(team, user, words).await?;
    let whole = format!("{}{}", said.out, said.wrong);
    ensure!(said.code == code && whole.contains(told), "{words:?} should end with {code} and say {told:?}: {said:?}");
    Ok(said)
}

/// On a pseudo terminal, which `script` makes; 80 columns wide.
pub struct Terminal {
    child: Child,
    heard: Receiver<Vec<u8>>,
    text: String,
}

impl Terminal {
    fn open(team: &Team, user: &str, words: &str) -> Result<Self> {
        Self::wide(team, user, words, 80, "1")
    }

    /// So many columns wide, and `NO_COLOR` as told.
    pub fn wide(team: &Team, user: &str, words: &str, columns: usize, no_colour: &str) -> Result<Self> {
        let line = format!("stty cols {columns} rows 60; {PLUGIN} -n {} --as {user} {words}", team.namespace);
        let mut child = Command::new("script")
            .args(["--quiet", "--return", "--echo", "never", "--command", &line, "/dev/null"])
            .env("PAGER", "cat")
            .env("TERM", "xterm")
            .env("NO_COLOR", no_colour)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("script is needed: it is in Debian's package bsdutils")?;
        let mut out = child.stdout.take().context("no output")?;
        let (tell, heard) = channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = out.read(&mut bytes) {
                if count == 0 || tell.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, heard, text: String::new() })
    }

    /// Reads until it says so; blocks.
    fn hear(&mut self, words: &str) -> Result<()> {
        while !self.text.contains(words) {
            match self.heard.recv_timeout(PATIENCE) {
                Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes).replace('\r', "")),
                Err(why) => bail!("{why} while waiting for {words:?}: {}", self.text),
            }
        }
        Ok(())
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let pipe = self.child.stdin.as_mut().context("the terminal is closed")?;
        pipe.write_all(line.as_bytes())?;
        Ok(pipe.flush()?)
    }

    /// What it left with, once it has.
    pub fn left(mut self) -> Result<(i32, String)> {
        while let Ok(bytes) = self.heard.recv_timeout(PATIENCE) {
            self.text.push_str(&String::from_utf8_lossy(&bytes).replace('\r', ""));
        }
        Ok((self.child.wait()?.code().unwrap_or(-1), std::mem::take(&mut self.text)))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Opens a terminal, waits for the question, lets something happen, types, and tells how it left.
async fn asked(
    team: &Team,
    user: &str,
    words: &str,
    meanwhile: impl Future<Output = Result<()>>,
    line: &str,
) -> Result<(i32, String)> {
    let mut terminal = Terminal::open(team, user, words)?;
    let heard = move || -> Result<Terminal> {
        terminal.hear("[y/N]")?;
        Ok(terminal)
    };
    let mut terminal = tokio::task::spawn_blocking(heard).await??;
    meanwhile.await?;
    terminal.say(line)?;
    tokio::task::spawn_blocking(move || terminal.left()).await?
}

/// A run and its UID.
pub async fn start(team: &Team, run: &str) -> Result<String> {
    let made = team.bob.gets(&Ask::post(team.all("workflows"), workflow(run, &json!({})))).await?;
    Ok(made["metadata"]["uid"].as_str().context("no UID")?.to_owned())
}

/// A step at its open gate, as agent, gateway and operator leave it, and the digest of the review. What the cluster holds
/// may be another document than what was reported.
pub async fn at_gate(team: &Team, run: (&str, &str), step: &str, reported: &str, held: &str) -> Result<String> {
    let name = format!("{}-{step}", run.0);
    let spec = json!({"workflow": {"name": run.0, "uid": run.1}, "path": step,
        "scopeChain": [{"scope": "workflow", "scopeId": run.1}], "gate": {"name": "brief"}});
    let made = team.step_run(&name, spec, Value::Null).await?;
    let found: StepRun = serde_json::from_value(made)?;
    put(team, &format!("{name}-document"), run.1, held).await?;
    let reported = digest([b"{\"epics\":7}".as_slice(), reported.as_bytes()]);
    let review = review_digest(&found, 1, &reported);
    let status = json!({"phase": "WaitingForAcceptance",
        "result": {"attempt": 1, "digest": reported, "documentName": format!("{name}-document")},
        "agent": {"report": {"attempt": 1, "class": "Succeeded", "digest": reported, "output": "{\"epics\":7}", "at": AT,
            "documentName": format!("{name}-document")}},
        "gate": {"state": "Waiting", "round": 1, "outputDigest": review, "openedAt": AT, "policy": "p"}});
    team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{name}/status")), json!({"status": status}))).await?;
    Ok(review)
}

/// A document, as the gateway puts it.
async fn put(team: &Team, name: &str, scope_id: &str, content: &str) -> Result<()> {
    let spec = json!({"type": "brief", "scope": "Workflow", "scopeId": scope_id, "content": content});
    let object =
        json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document", "metadata": {"name": name}, "spec": spec});
    team.gateway.gets(&Ask::post(team.all("documents"), object)).await?;
    Ok(())
}

pub async fn letter(team: &Team, name: &str) -> Result<Value> {
    team.admin.gets(&Ask::get(team.one("stepruns", name))).await
}

/// Nobody has written anything into the mailbox.
async fn undecided(team: &Team, name: &str) -> Result<()> {
    let step = letter(team, name).await?;
    ensure!(
        annotation(&step, "lockstep.dev/decision").is_none(),
        "{name} was decided: {}",
        step["metadata"]["annotations"]
    );
    Ok(())
}

/// Takes a decision up as the operator does, when it comes; gives the review that it named.
pub async fn taken_up(team: &Team, name: &str) -> Result<String> {
    let step = until("a decision", || async {
        let step = letter(team, name).await?;
        Ok(annotation(&step, "lockstep.dev/decision").is_some().then_some(step))
    })
    .await?;
    let note = |key: &str| annotation(&step, key).unwrap_or_default().to_owned();
    let accepted = note("lockstep.dev/decision") == "accepted";
    let decision = json!({"documentType": "brief", "scopeId": "u", "accepted": accepted, "decidedBy": note("lockstep.dev/decided-by"),
        "decidedAt": AT, "digest": step["status"]["gate"]["outputDigest"], "round": 1});
    let state = if accepted { "Accepted" } else { "Rejected" };
    let status = json!({"status": {"phase": "Running", "gate": {"state": state, "decisions": [decision]}}});
    team.operator.gets(&Ask::patch(team.one("stepruns", &format!("{name}/status")), status)).await?;
    Ok(note("lockstep.dev/review"))
}

#[tokio::test]
async fn nothing_is_decided_that_was_neither_shown_nor_named() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("plugin").await?;
    let uid = start(&team, "solo").await?;
    let review = at_gate(&team, ("solo", &uid), "plan", "# Plan\n", "# Plan\n").await?;
    let stale = format!("sha256:{}", "0".repeat(64));
    let (head, short) = (&review[7..15], &review[7..14]);
    for (words, code, told) in [
        (&["approve", "solo/plan"][..], 2, "nobody can be asked here"),
        (&["approve", "solo-plan"], 2, "nobody can be asked here"),
        (&["approve", "solo/plan", "-o", "json"], 2, "nobody can be asked here"),
        (&["reject", "solo/plan", "-m", "no"], 2, "nobody can be asked here"),
        (&["approve", "solo"], 2, "nobody can be asked here"),
        (&["approve", "solo", "--yes"], 2, "--yes decides nothing that was not named"),
        (&["reject", "solo", "-m", "no", "--yes"], 2, "--yes decides nothing that was not named"),
        (&["approve", "solo/plan", "--review", &stale], 1, "stale review"),
        (&["approve", "solo/plan", "--review", short], 1, "stale review"),
        (&["approve", "solo/plan", "--review", &stale, "--yes"], 1, "stale review"),
        (&["approve", "solo/other", "--yes"], 4, "has no started step"),
    ] {
        ends(&team, "alice", words, code, told).await?;
    }
    ends(&team, "bob", &["approve", "solo/plan", "--yes"], 5, "lacks the permission approve").await?;
    undecided(&team, "solo-plan").await?;

    // Two gates and a question: a run's name stands for none of them.
    let uid = start(&team, "shop").await?;
    at_gate(&team, ("shop", &uid), "plan", "# Plan\n", "# Plan\n").await?;
    let question = json!({"workflow": {"name": "shop", "uid": uid}, "path": "budget", "agentId": null,
        "ask": {"name": "budget", "question": "How much?"}});
    let asked = json!({"phase": "WaitingForInput", "waitingFor": {"id": "1-0", "kind": "Question", "question": "How much?",
        "options": [], "since": AT}});
    team.step_run("shop-budget", question, asked).await?;
    for words in [&["approve", "shop", "--review", head][..], &["reject", "shop", "-m", "no"], &["answer", "shop", "5"]]
    {
        let said = ends(&team, "alice", words, 4, "several steps of the run shop wait").await?;
        ensure!(
            said.wrong.contains("shop/plan (waits at its gate)")
                && said.wrong.contains("shop/budget (waits for an answer)")
        );
    }
    undecided(&team, "shop-plan").await?;
    // One question alone: a run's name leads to it, and does not name it.
    let uid = start(&team, "ask").await?;
    let question = json!({"workflow": {"name": "ask", "uid": uid}, "path": "budget", "agentId": null,
        "ask": {"name": "budget", "question": "How much?"}});
    let asked = json!({"phase": "WaitingForInput", "waitingFor": {"id": "1-0", "kind": "Question", "question": "How much?",
        "options": [], "since": AT}});
    team.step_run("ask-budget", question, asked).await?;
    ends(&team, "alice", &["answer", "ask", "5"], 2, "ask/budget asks How much?").await?;
    ensure!(annotation(&letter(&team, "ask-budget").await?, "lockstep.dev/answer").is_none());

    // Named or read, it is decided, and the digest of what was read goes along.
    for words in [&["approve", "solo", "--review", head][..], &["approve", "shop/plan", "--yes", "-m", "good"]] {
        let name = if words[1] == "solo" { "solo-plan" } else { "shop-plan" };
        let (said, sent) = tokio::join!(ends(&team, "alice", words, 0, "accepted by alice"), taken_up(&team, name));
        said?;
        let step = letter(&team, name).await?;
        ensure!(sent? == step["status"]["gate"]["outputDigest"].as_str().unwrap_or_default());
    }
    let closed = ends(&team, "alice", &["approve", "shop/plan", "--yes"], 1, "was accepted by alice").await?;
    ensure!(closed.out.is_empty());
    team.close().await
}

#[tokio::test]
async fn an_exchanged_document_is_neither_shown_nor_accepted() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("exchanged").await?;
    let uid = start(&team, "shop").await?;
    let review = at_gate(&team, ("shop", &uid), "plan", "# Plan\n", "# Another plan\n").await?;
    for words in [
        &["approve", "shop/plan", "--yes"][..],
        &["approve", "shop/plan", "--review", &review],
        &["approve", "shop", "--review", &review],
        &["reject", "shop/plan", "-m", "no", "--yes"],
        &["approve", "shop/plan", "--yes", "-o", "json"],
        &["show", "shop/plan"],
    ] {
        let said = ends(&team, "alice", words, 6, "was exchanged").await?;
        ensure!(!said.out.contains("Another plan") && said.wrong.contains("shop-plan-document"), "{said:?}");
    }
    // On a terminal it does not come to the question.
    let terminal = Terminal::open(&team, "alice", "approve shop/plan")?;
    let (code, text) = tokio::task::spawn_blocking(move || terminal.left()).await??;
    ensure!(code == 6 && text.contains("was exchanged") && !text.contains("[y/N]"), "{code} {text}");
    undecided(&team, "shop-plan").await?;

    // What is gone cannot be read, so it cannot be accepted.
    at_gate(&team, ("shop", &uid), "gone", "# Gone\n", "# Gone\n").await?;
    let result = json!({"status": {"result": {"documentName": "no-such-document"}}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "shop-gone/status"), result)).await?;
    ends(&team, "alice", &["approve", "shop/gone", "--yes"], 6, "the document no-such-document is gone").await?;
    ends(&team, "alice", &["show", "shop/gone"], 6, "the document no-such-document is gone").await?;
    undecided(&team, "shop-gone").await?;

    // A gate that is about something else than the result that is there.
    at_gate(&team, ("shop", &uid), "other", "# Plan\n", "# Plan\n").await?;
    let gate = json!({"status": {"gate": {"outputDigest": "sha256:0"}}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "shop-other/status"), gate)).await?;
    ends(&team, "alice", &["approve", "shop/other", "--yes"], 6, "about another output").await?;
    undecided(&team, "shop-other").await?;
    team.close().await
}

#[tokio::test]
async fn on_a_terminal_all_is_shown_and_then_it_is_asked() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("terminal").await?;
    let uid = start(&team, "shop").await?;
    let run = ("shop", uid.as_str());
    let long = "All that this plan says, in one line which is longer than any terminal is wide, up to its very end. ";
    let plan =
        format!("# Plan \u{202e}of\u{1b}[2J mine\n\n{}\n{}the last line\n", long.repeat(3), "more\n".repeat(200));
    at_gate(&team, run, "plan", &plan, &plan).await?;
    let nothing = || async { Ok(()) };

    let (code, text) = asked(&team, "alice", "approve shop/plan", nothing(), "n\n").await?;
    ensure!(code == 1 && text.contains("nothing was decided"), "{code} {text}");
    for line in ["  | # Plan \\u{202e}of\\u{1b}[2J mine", "  | the last line", "    \"epics\": 7"] {
        ensure!(text.lines().any(|l| l == line), "{line:?} is not shown: {text}");
    }
    let framed = text.lines().skip_while(|l| !l.starts_with("DOCUMENT ")).skip(1).take_while(|l| l.starts_with("  | "));
    let framed: Vec<&str> = framed.collect();
    ensure!(framed.len() > 206 && framed.iter().all(|l| l.chars().count() <= 80), "{} lines: {text}", framed.len());
    ensure!(text.contains("Accept shop/plan, round 1, sha256:") && text.contains("as alice?"), "{text}");
    // Ctrl-D says nothing, and nothing is no.
    let (code, text) = asked(&team, "alice", "approve shop/plan", nothing(), "\u{4}").await?;
    ensure!(code == 1, "{code} {text}");
    // A bare run is asked about like any other.
    let (code, text) = asked(&team, "alice", "reject shop -m later", nothing(), "\n").await?;
    ensure!(code == 1 && text.contains("Reject shop/plan, round 1"), "{code} {text}");
    undecided(&team, "shop-plan").await?;

    // The gate changes while somebody reads: what is there now was not shown.
    let changed = async {
        let gate = json!({"status": {"gate": {"outputDigest": "sha256:0"}}});
        team.operator.gets(&Ask::patch(team.one("stepruns", "shop-plan/status"), gate)).await.map(|_| ())
    };
    let (code, text) = asked(&team, "alice", "approve shop/plan", changed, "y\n").await?;
    ensure!(
        code == 1 && text.contains("about another output, sha256:0") && text.contains("nothing was sent"),
        "{code} {text}"
    );
    undecided(&team, "shop-plan").await?;

    // Something else of the step changes while somebody reads: the decision is sent for what was shown.
    let review = at_gate(&team, run, "next", "# Next\n", "# Next\n").await?;
    let touched = async {
        team.bob
            .gets(&Ask::annotate(team.one("stepruns", "shop-next"), json!({"example.com/note": "x"})))
            .await
            .map(|_| ())
    };
    let decides = asked(&team, "alice", "approve shop/next", touched, "yes\n");
    let (left, sent) = tokio::join!(decides, taken_up(&team, "shop-next"));
    let (code, text) = left?;
    ensure!(code == 0 && text.contains("accepted by alice") && sent? == review, "{code} {text}");
    team.close().await
}

#[tokio::test]
async fn from_the_second_round_on_the_difference_is_shown() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("rounds").await?;
    let uid = start(&team, "shop").await?;
    at_gate(&team, ("shop", &uid), "plan", "# Plan\n\ntwo epics\n", "# Plan\n\ntwo epics\n").await?;
    let step: StepRun = serde_json::from_value(letter(&team, "shop-plan").await?)?;
    let own = step.metadata.uid.clone().unwrap_or_default();
    let first = lockstep::api::name::document("shop-plan", &own, 1, "brief");
    put(&team, &first, &uid, "# Plan\n\none epic\n").await?;
    let reported = step.status.as_ref().and_then(|s| s.result.as_ref()).map(|r| r.digest.clone()).unwrap_or_default();
    let attempt = json!({"number": 1, "round": 1, "result": "Succeeded", "completedAt": AT});
    let rejection = json!({"documentType": "brief", "scopeId": "u", "accepted": false, "comment": "too small", "decidedBy": "carol",
        "decidedAt": AT, "digest": "sha256:1", "round": 1});
    let status = json!({"status": {"round": 2, "attempts": [attempt], "gate": {"round": 2, "decisions": [rejection],
        "outputDigest": review_digest(&step, 2, &reported)}}});
    team.operator.gets(&Ask::patch(team.one("stepruns", "shop-plan/status"), status)).await?;
    let (code, text) = asked(&team, "alice", "approve shop/plan", async { Ok(()) }, "n\n").await?;
    ensure!(code == 1, "{code} {text}");
    for line in [
        "CHANGED SINCE ROUND 1 (from ",
        "  - one epic",
        "  + two epics",
        "rejected by carol at 2026-01-01T00:00:00Z, round 1: too small",
    ] {
        ensure!(text.contains(line), "{line:?} is not shown: {text}");
    }
    team.close().await
}

#[tokio::test]
async fn whoever_asks_is_told_what_they_may() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("can-i").await?;
    let permission = |resource: &str, name: &str, verb: &str| json!({"apiGroups": ["lockstep.dev"], "resources": [resource], "resourceNames": [name], "verbs": [verb]});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "few"},
        "rules": [permission("gates", "backlog", "approve"), permission("inputs", "budget", "answer"), permission("workflowtemplates", "default", "run")]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "few"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "few"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "erin"}]});
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", team.namespace);
    team.admin.gets(&Ask::post(format!("{rbac}/roles"), role)).await?;
    team.admin.gets(&Ask::post(format!("{rbac}/rolebindings"), binding)).await?;
    until("erin's role counts", || async {
        Ok((run(&team, "erin", &["can-i", "approve", "backlog"]).await?.code == 0).then_some(()))
    })
    .await?;
    let grant = |role: &str, user: &str| format!("create rolebinding {role}-{user} --clusterrole={role} --user={user}");
    let bot = format!("system:serviceaccount:{}:bot", team.namespace);
    for (user, words, code, told) in [
        ("erin", &["can-i", "approve", "backlog"][..], 0, "yes".to_owned()),
        ("erin", &["can-i", "approve", "release"], 1, grant("lockstep-approver", "erin")),
        ("erin", &["can-i", "approve"], 1, grant("lockstep-approver", "erin")),
        ("erin", &["can-i", "answer", "budget"], 0, "yes".to_owned()),
        ("erin", &["can-i", "answer", "planner"], 1, grant("lockstep-approver", "erin")),
        ("erin", &["can-i", "run", "default"], 0, "yes".to_owned()),
        ("erin", &["can-i", "run", "other"], 1, grant("lockstep-runner", "erin")),
        ("erin", &["can-i", "run"], 1, grant("lockstep-edit", "erin")),
        ("alice", &["can-i", "approve", "anything"], 0, "yes".to_owned()),
        ("alice", &["can-i", "answer"], 0, "yes".to_owned()),
        ("bob", &["can-i", "approve", "backlog"], 1, "resourceNames: [backlog]".to_owned()),
        (&bot, &["can-i", "approve", "backlog"], 1, "machine identity".to_owned()),
    ] {
        let said = ends(&team, user, words, code, &told).await?;
        ensure!(said.out == if code == 0 { "yes\n" } else { "no\n" }, "{words:?} by {user}: {said:?}");
    }
    team.close().await
}

#[tokio::test]
async fn what_people_ordered_stays_in_the_history() -> Result<()> {
    let _whole = policies_whole().await;
    let team = Team::open("orders").await?;
    let uid = start(&team, "shop").await?;
    let action = |word: &str, attempt: i32| json!({"action": word, "wait": "RetriesSpent", "attempt": attempt, "by": "carol", "at": AT, "comment": "not needed"});
    let status = json!({"phase": "Completed", "completedAt": AT, "attempt": 6, "actions": [action("retry", 3), action("skip", 6)]});
    team.step_run("shop-plan", json!({"workflow": {"name": "shop", "uid": uid}, "path": "plan"}), status).await?;
    let history = ends(&team, "bob", &["history", "shop", "--decisions"], 0, "skipped").await?;
    ensure!(
        history.out.contains("retried") && history.out.contains("carol") && history.out.contains("not needed"),
        "{history:?}"
    );
    ends(&team, "bob", &["show", "shop"], 0, "skipped by carol: not needed").await?;
    let page =
        ends(&team, "bob", &["show", "shop/plan"], 0, "skipped by carol at 2026-01-01T00:00:00Z, after attempt 6")
            .await?;
    ensure!(page.out.contains("retried by carol"), "{page:?}");
    let json = ends(&team, "bob", &["history", "shop", "--decisions", "-o", "json"], 0, "\"actions\"").await?;
    let value: Value = serde_json::from_str(&json.out)?;
    ensure!(value["actions"][1]["action"] == "skip" && value["actions"][1]["StepId"] == "plan", "{value}");
    team.close().await
}
