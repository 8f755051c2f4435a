//! The shim's own process, as it is in an agent's container, against a gateway in this process over the API server in memory.
//! What stands in no unit: the local server, the MCP server over HTTP and stdio, a repair. No cluster.

#![allow(clippy::expect_used, clippy::panic, clippy::too_many_lines, reason = "a test ends by panicking")]

#[path = "shim/attempt.rs"]
mod attempt;
#[path = "dev/model.rs"]
#[allow(dead_code, reason = "tests/dev has answers of every kind")]
mod model;
#[path = "shim/prompt.rs"]
mod prompt;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use lockstep::api::{StepRun, name};
use lockstep::apiserver::{Format, Key, Kind, Part};
use lockstep::cluster::clock::Clock;
use lockstep::cluster::evaluator::Evaluator;
use lockstep::decide::approval;
use lockstep::gateway::calls;
use lockstep::protocol::{self, env, hook};
use lockstep::telemetry::traces::Traces;
use serde_json::{Value, json};

use attempt::{Attempt, BOUNDS, BY, SESSION, TEAM, ours};

const PATIENCE: Duration = Duration::from_secs(150);

/// A cluster with a gateway, and one attempt of the Agent `writer` whose pod is about to start.
struct Scene {
    attempt: Attempt,
    port: u16,
    folder: PathBuf,
    /// So many reports are still answered as a gateway is that is about to go.
    refusals: Arc<AtomicI64>,
}

impl Deref for Scene {
    type Target = Attempt;

    fn deref(&self) -> &Attempt {
        &self.attempt
    }
}

impl Scene {
    /// `more` is laid over the Agent's spec.
    async fn open(purpose: &str, more: &Value) -> Self {
        let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
        let mut spec = json!({"outputSchema": schema});
        spec.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let attempt = Attempt::new(&spec);
        let router = calls(attempt.api.client(TEAM), &BOUNDS, Evaluator::here(), Clock::default(), Traces::default());
        let refusals = Arc::new(AtomicI64::new(0));
        let left = Arc::clone(&refusals);
        let router =
            router.layer(from_fn(move |request: Request, next: Next| {
                let refuses = request.uri().path() == protocol::REPORT && left.fetch_sub(1, Ordering::Relaxed) > 0;
                async move {
                    if refuses { StatusCode::SERVICE_UNAVAILABLE.into_response() } else { next.run(request).await }
                }
            }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let folder = std::env::temp_dir().join(format!("lockstep-shim-test-{purpose}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        for part in ["in", "out", "work"] {
            std::fs::create_dir_all(folder.join(part)).expect("a folder");
        }
        let scene = Self { attempt, port, folder, refusals };
        scene.remember();
        scene
    }

    /// What an agent can ask for: its memory, and documents.
    fn remember(&self) {
        let memory = json!({"agentId": "writer", "session": SESSION, "entries": {}, "revision": 1, "writers": []});
        self.create(Kind::Memory, &ours("Memory", &name::memory("writer", SESSION), &memory));
        let glossary = json!({"type": "glossary", "scope": "Session", "session": SESSION, "format": "text", "content": "the words"});
        self.create(Kind::Document, &ours("Document", "words", &glossary));
        let status = json!({"phase": "Published", "revision": 1, "digest": name::digest_bytes(b"the words")});
        self.set_status(Kind::Document, "words", &status);
        let run = self.step_run.spec.workflow.uid.clone();
        for key in ["E1", "e/1"] {
            let name = format!("story-{}", key.len());
            let story = json!({"type": "story", "scope": "Item", "scopeId": format!("{run}/{key}"), "workflow": "run",
                "format": "markdown", "content": format!("of {key}")});
            self.create(Kind::Document, &ours("Document", &name, &story));
            let digest = name::digest_bytes(format!("of {key}").as_bytes());
            self.set_status(Kind::Document, &name, &json!({"phase": "Published", "revision": 1, "digest": digest}));
        }
    }

    fn agent(&self) -> Value {
        self.stored()["status"]["agent"].clone()
    }

    /// The shim, told what the operator tells it.
    fn shim(&self, arguments: &[&str]) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_lockstep-shim"));
        std::fs::write(self.folder.join("token"), &self.token).expect("a token");
        let mut shim = Command::new(program);
        shim.args(arguments)
            .env(env::GATEWAY, format!("http://127.0.0.1:{}", self.port))
            .env(env::STEP_RUN, format!("{TEAM}/{}", self.own()))
            .env(env::STEP_RUN_UID, self.uid())
            .env(env::ATTEMPT, "1")
            .env(env::IN, self.folder.join("in"))
            .env(env::OUT, self.folder.join("out"))
            .env(env::WORK, self.folder.join("work"))
            .env("LOCKSTEP_TOKEN_FILE", self.folder.join("token"))
            .env("LOCKSTEP_TERMINATION_LOG", self.folder.join("termination-log"))
            .env("SHIM", program);
        shim
    }

    /// What the kubelet runs beside the shim that marks in this file: what each hook answers, and whether its command ran.
    async fn hooks(&self, log: &Path) -> Vec<(Option<i32>, bool)> {
        let touched = self.folder.join("touched");
        let mut answers = Vec::new();
        for kind in [hook::STARTUP_PROBE, hook::LIVENESS_PROBE, hook::READINESS_PROBE, hook::PRE_STOP] {
            let _ = std::fs::remove_file(&touched);
            let script = r#"[ -z "$LOCKSTEP_GATEWAY" ] && [ -d "$LOCKSTEP_WORK" ] && touch "$TOUCHED" && exit 3"#;
            let mut run = self.shim(&["hook", kind, "--", "sh", "-c", script]);
            run.env("LOCKSTEP_TERMINATION_LOG", log).env("TOUCHED", &touched);
            let ran = ended(move || run.output()).await.expect("the shim runs");
            answers.push((ran.status.code(), touched.exists()));
        }
        answers
    }

    /// Runs the shim with this command; what was reported, and what the shim said.
    async fn run(&self, command: &[&str], more: &[(&str, &Path)]) -> (Value, Output) {
        let mut run = self.shim(&["run", "--"]);
        run.args(command).envs(more.iter().copied());
        let ran = ended(move || run.output()).await.expect("the shim runs");
        (self.agent()["report"].clone(), ran)
    }
}

async fn ended<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let ended = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(what));
    ended.await.expect("in time").expect("a thread")
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn text(output: &Output) -> String {
    format!("{}{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_reads_documents_that_it_asks_for() {
    let scene = Scene::open("documents", &json!({})).await;
    let script = r#"set -e
        test "$($SHIM document get glossary)" = "the words"
        $SHIM document get glossary --file $LOCKSTEP_WORK/words --scope session
        test "$($SHIM document list | cut -f 1-3)" = "$(printf 'glossary\tSession\t1')"
        test "$($SHIM document get story/e/1)" = "of e/1"
        test "$($SHIM document list --type 'story/*' | cut -f 7 | tr '\n' ' ')" = "E1 e/1 "
        (cd $LOCKSTEP_WORK; test "$($SHIM document get 'story/*' --dir all | tr '\n' ' ')" = "all/E1.md all/e-1.md ")
        test "$(cat $LOCKSTEP_WORK/all/E1.md $LOCKSTEP_WORK/all/e-1.md)" = "of E1of e/1"
        code=0; $SHIM document get 'story/*' || code=$?; test $code = 2
        code=0; $SHIM document get story/E2 || code=$?; test $code = 1
        code=0; $SHIM document get 'nothing/*' --json || code=$?; test $code = 1
        code=0; $SHIM document get nothing || code=$?; test $code = 1
        code=0; $SHIM document get Nothing || code=$?; test $code = 2
        printf '{"n": %s}' "$(wc -c < $LOCKSTEP_WORK/words)" > $LOCKSTEP_OUT/result.json"#;
    let (report, ran) = scene.run(&["sh", "-c", script], &[]).await;
    assert_eq!((&report["class"], &report["output"]), (&json!("Succeeded"), &json!("{\"n\": 9}")), "{}", text(&ran));
    let read = scene.agent()["documentsRead"].clone();
    assert_eq!((&read[0]["name"], read.as_array().map(Vec::len)), (&json!("words"), Some(3)), "{read}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_output_is_mended_as_often_as_the_agent_says() {
    // Counts the faults that it is told, and is right the second time.
    let mend = r#"test "$(grep -c '"pointer"' $LOCKSTEP_FAULTS)" = 1 || exit 9
        cat $LOCKSTEP_FAULTS >> $LOCKSTEP_WORK/told
        if [ -e $LOCKSTEP_WORK/once ]; then echo '{"n": 2}' > $LOCKSTEP_OUT/result.json; fi
        touch $LOCKSTEP_WORK/once"#;
    let wrong = r#"(sleep 0.2; :) & echo '{"n": "two"}' > $LOCKSTEP_OUT/result.json"#;
    for (purpose, most, mend, class, code, message) in [
        ("mended", json!(3), mend, "Succeeded", 0, ""),
        ("in-vain", json!(2), "true", "InvalidOutput", 65, "/n: value is not of type \"integer\"; it is \"two\""),
        ("once-is-too-few", json!(1), mend, "InvalidOutput", 65, "it is \"two\""),
        ("gives-up", json!(3), "exit 7", "Exited", 7, ""),
        ("no-such-program", json!(3), "", "Exited", 127, ""),
    ] {
        let command = if mend.is_empty() { json!(["/no/such/program"]) } else { json!(["sh", "-c", mend]) };
        let scene = Scene::open(purpose, &json!({"repair": {"command": command, "maxRepairs": most}})).await;
        let (report, ran) = scene.run(&["sh", "-c", wrong], &[]).await;
        assert_eq!((&report["class"], ran.status.code()), (&json!(class), Some(code)), "{purpose}: {}", text(&ran));
        let told = report["message"].as_str().unwrap_or_default();
        assert!(told.contains(message), "{purpose}: {told}");
        let repairs = text(&ran).matches("the output is wrong, repair ").count() as u64;
        let expected = if purpose == "mended" { 2 } else { most.as_u64().expect("a number") };
        assert_eq!(repairs, if code == 7 || code == 127 { 1 } else { expected }, "{purpose}: {}", text(&ran));
    }
}

/// The gateway writes every 2 s at most. What comes too soon is written later, and of several the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_progress_before_a_silence_is_kept() {
    let scene = Scene::open("silence", &json!({})).await;
    let script = r#"set -e
        $SHIM progress 10 ten; sleep 1.2
        $SHIM progress 20 twenty; $SHIM progress 30 thirty
        sleep 4; echo '{"n": 1}' > $LOCKSTEP_OUT/result.json"#;
    let (report, ran) = scene.run(&["sh", "-c", script], &[]).await;
    assert_eq!(report["class"], "Succeeded", "{}", text(&ran));
    let progress = scene.agent()["progress"].clone();
    assert_eq!((&progress["percent"], &progress["message"]), (&json!(30), &json!("thirty")), "{}", text(&ran));
}

/// A pod that was told to end has 30 s, and its gateway may be away for most of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_outlasts_an_outage_within_the_grace_period() {
    let scene = Scene::open("outage", &json!({})).await;
    scene.refusals.store(9, Ordering::Relaxed);
    let mut kubelet = Command::new("timeout");
    let shim = scene.shim(&["run", "--", "sh", "-c", "kill -TERM $PPID; sleep 60"]);
    kubelet.args(["--signal=KILL", "30"]).arg(shim.get_program()).args(shim.get_args());
    kubelet.envs(shim.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ran = ended(move || kubelet.output()).await.expect("the shim runs");
    let report = scene.agent()["report"].clone();
    assert_eq!((&report["class"], ran.status.code()), (&json!("Exited"), Some(143)), "{report} {}", text(&ran));
}

/// `exec` probes and `preStop` run nothing of an agent whose attempt is not claimed, nor once its command is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_only_while_the_agents_command_does() {
    let scene = Scene::open("hooks", &json!({})).await;
    let (own, others) = (scene.folder.join("termination-log"), scene.folder.join("other-log"));
    let without = |codes: [i32; 4]| codes.map(|code| (Some(code), false));
    assert_eq!(scene.hooks(&own).await, without([1, 0, 1, 0]), "before the claim");
    let script = r#"until [ -e $LOCKSTEP_WORK/end ]; do sleep 0.1; done; echo '{"n": 1}' > $LOCKSTEP_OUT/result.json"#;
    let command = ["sh", "-c", script];
    let running = scene.run(&command, &[]);
    let asking = async {
        while !std::fs::read_to_string(&own).is_ok_and(|marks| marks.contains("started")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut second = scene.shim(&["run", "--", "true"]);
        second.env("LOCKSTEP_TERMINATION_LOG", &others);
        let refused = ended(move || second.output()).await.expect("the shim runs");
        assert_eq!(refused.status.code(), Some(75), "{}", text(&refused));
        let answers = (scene.hooks(&own).await, scene.hooks(&others).await);
        std::fs::write(scene.folder.join("work/end"), "").expect("a file");
        answers
    };
    let ((report, ran), (beside, refused)) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(running, asking) }).await.expect("in time");
    assert_eq!(report["class"], "Succeeded", "{}", text(&ran));
    assert_eq!(beside, [(Some(3), true); 4], "{}", text(&ran));
    assert_eq!(refused, without([1, 0, 1, 0]), "another pod has the attempt");
    assert_eq!(scene.hooks(&own).await, without([0, 0, 1, 0]), "after the end of the command");
}

/// Protocol None: the sidecar of a container that is left as it is, and the node that says how that has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_left_as_it_is_is_claimed_first_and_reported_after() {
    for (purpose, file, exit_code, message, class, output) in [
        ("bare-file", Some(r#"{"n": 2}"#), 0, "", "Succeeded", Some(r#"{"n": 2}"#)),
        ("bare-message", None, 0, r#"{"n": 3}"#, "Succeeded", Some(r#"{"n": 3}"#)),
        ("bare-secret", None, 0, r#"{"n": 3, "key": "hunter22"}"#, "Succeeded", Some(r#"{"n": 3, "key": "***"}"#)),
        ("bare-words", None, 0, "all is well", "InvalidOutput", None),
        ("bare-failure", Some(r#"{"n": 2}"#), 3, "", "Exited", None),
        ("bare-wrong", Some(r#"{"n": "two"}"#), 0, "", "InvalidOutput", None),
    ] {
        let scene = Scene::open(purpose, &json!({"protocol": "None"})).await;
        let result = scene.folder.join("result.json");
        // Two pods race for the attempt: one has it, and the container of the other never starts.
        let others = scene.folder.join("other");
        std::fs::create_dir_all(&others).expect("a folder");
        let mut both = [scene.folder.join("work"), others].map(|work| {
            let mut shim = scene.shim(&["attend"]);
            if purpose == "bare-secret" {
                shim.env(env::SECRET_NAMES, "KEY").env("KEY", "hunter22");
            }
            if file.is_some() {
                shim.env(env::RESULT_PATH, &result);
            }
            Some((shim.env(env::WORK, &work).spawn().expect("it starts"), work))
        });
        let loser = ended({
            let places =
                [scene.folder.join("work"), scene.folder.join("other")].map(|place| place.display().to_string());
            let probe =
                "until LOCKSTEP_WORK=$0 \"$SHIM\" attended || LOCKSTEP_WORK=$1 \"$SHIM\" attended; do sleep 0.05; done";
            let mut wait = Command::new("sh");
            wait.env("SHIM", env!("CARGO_BIN_EXE_lockstep-shim")).args(["-c", probe, &places[0], &places[1]]);
            move || {
                assert!(wait.status().expect("a shell").success());
                let first = Path::new(&places[0]).join("attended").exists();
                usize::from(first)
            }
        })
        .await;
        let (mut lost, place) = both[loser].take().expect("the second");
        let code = ended(move || lost.wait().expect("its end").code()).await;
        assert_eq!((code, place.join("attended").exists()), (Some(75), false), "{purpose}");
        assert_eq!(scene.agent()["journal"]["state"], "Busy", "{purpose}");
        let marks = std::fs::read_to_string(scene.folder.join("termination-log")).expect("marks");
        assert_eq!(marks, "claimed\nstarted\n", "{purpose}: of the winner alone");

        if let Some(file) = file {
            std::fs::write(&result, file).expect("a file");
        }
        let (mut won, _) = both[1 - loser].take().expect("the first");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(won.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it lives");
        // The sidecar hears of the end before the API server does.
        let terminated = json!({"exitCode": exit_code, "message": message, "reason": "Completed"});
        let container = json!({"name": "agent", "state": {"terminated": terminated}, "ready": false,
            "restartCount": 0, "image": "i", "imageID": "i"});
        scene.set_status(Kind::Pod, "pod", &json!({"phase": "Running", "containerStatuses": [container]}));
        assert_eq!(ended(move || won.wait().expect("its end").code()).await, Some(0), "{purpose}");
        let report = scene.agent()["report"].clone();
        assert_eq!((&report["class"], report["output"].as_str()), (&json!(class), output), "{purpose}: {report}");
        assert_eq!(report["exitCode"], exit_code, "{purpose}: {report}");
    }
}

/// A client of a few lines, which speaks what the protocol says: it needs no registry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_are_served_on_stdin_and_stdout() {
    let scene = Scene::open("stdio", &json!({})).await;
    let request = |id: u64, method: &str, params: &Value| {
        json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
    };
    let hello =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let lines = [
        request(1, "initialize", &hello),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string(),
        request(2, "tools/call", &json!({"name": "memory_set", "arguments": {"key": "a", "value": 7}})),
        request(3, "tools/call", &json!({"name": "result", "arguments": {"result": {"n": "x"}}})),
        request(4, "tools/call", &json!({"name": "result", "arguments": {"result": {"n": 3}}})),
    ];
    std::fs::write(scene.folder.join("requests"), lines.join("\n") + "\n").expect("a file");
    let requests = scene.folder.join("requests");
    // Calls may be answered in any order; one after the other they are not.
    let script = r#"i=0; while read -r line; do printf '%s\n' "$line"; sleep 0.3; done < $REQUESTS | $SHIM mcp > $LOCKSTEP_WORK/answers; cat $LOCKSTEP_WORK/answers"#;
    let (report, ran) = scene.run(&["sh", "-c", script], &[("REQUESTS", &requests)]).await;
    assert_eq!((&report["class"], &report["output"]), (&json!("Succeeded"), &json!("{\"n\":3}")), "{}", text(&ran));
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    let answers: Vec<Value> = out.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let answer =
        |id: u64| answers.iter().find(|answer| answer["id"] == id).map(|answer| &answer["result"]).expect("an answer");
    assert_eq!(answer(1)["serverInfo"]["name"], "lockstep");
    assert_eq!(answer(2)["structuredContent"]["revision"], 2, "{out}");
    assert_eq!((&answer(3)["isError"], &answer(4)["isError"]), (&json!(true), &json!(false)), "{out}");
}

/// A model may wait for people in its attempt, as a script may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_waits_for_an_answer() {
    let scene = Scene::open("waits", &json!({})).await;
    let asks = json!({"questions": [{"question": "How much?", "key": "n"}], "waitSeconds": 60});
    let hello =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let lines = [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).to_string(),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}).to_string(),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "ask", "arguments": asks}})
            .to_string(),
    ];
    let requests = scene.folder.join("requests");
    std::fs::write(&requests, lines.join("\n") + "\n").expect("a file");
    // The server's input stays open until it has answered.
    let script = r#"mkfifo $LOCKSTEP_WORK/in; $SHIM mcp < $LOCKSTEP_WORK/in > $LOCKSTEP_WORK/answers & exec 3> $LOCKSTEP_WORK/in
        while read -r line; do printf '%s\n' "$line" >&3; sleep 0.3; done < $REQUESTS
        until grep -q '"id":2' $LOCKSTEP_WORK/answers; do sleep 0.2; done
        exec 3>&-; wait; cat $LOCKSTEP_WORK/answers; echo '{"n": 7}' > $LOCKSTEP_OUT/result.json"#;
    let answering = async {
        while scene.agent()["asking"].is_null() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let at = "1970-01-01T00:00:00Z";
        let asked = json!({"question": "How much?", "key": "n", "attempt": 1, "askedAt": at,
            "answer": {"value": "7", "by": "ann", "at": at}});
        scene.set_status(Kind::StepRun, &scene.own(), &json!({"questions": [asked]}));
    };
    let command = ["sh", "-c", script];
    let more = [("REQUESTS", requests.as_path())];
    let running = scene.run(&command, &more);
    let ((report, ran), ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(running, answering) }).await.expect("in time");
    assert_eq!(report["class"], "Succeeded", "{}", text(&ran));
    let out = String::from_utf8_lossy(&ran.stdout).into_owned();
    let mut answers = out.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let answer = answers.find(|answer| answer["id"] == 2).expect("an answer");
    assert_eq!(answer["result"]["structuredContent"]["answers"], json!({"n": 7}), "{out}");
}

impl Scene {
    /// What people and the operator do for as long as the agent runs: every question is answered, every action allowed, but that
    /// which somebody wants to delete with.
    async fn people(&self) {
        let at = "1970-01-01T00:00:00Z";
        let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
        loop {
            let now = self.stored();
            let step_run: StepRun = serde_json::from_value(now.clone()).expect("a StepRun");
            let status = &now["status"];
            let (mut questions, mut requests) = (list(&status["questions"]), list(&status["approvalRequests"]));
            let known = (questions.len(), requests.len());
            for asked in list(&status["agent"]["asking"]["questions"]) {
                if !questions.iter().any(|known| known["key"] == asked["key"]) {
                    let answer = json!({"value": "7", "by": "ann", "at": at});
                    questions.push(json!({"question": asked["question"], "key": asked["key"], "attempt": 1, "askedAt": at, "answer": answer}));
                }
            }
            for (wanted, digest) in approval::untaken(&step_run) {
                let wanted = serde_json::to_value(wanted).expect("JSON");
                let accepted = !wanted["payload"].as_str().is_some_and(|payload| payload.contains("rm -r"));
                let decision = json!({"documentType": "tools", "scopeId": "s", "accepted": accepted, "decidedBy": "ann",
                    "decidedAt": at, "digest": digest, "round": 1, "comment": "as you wish"});
                let state = if accepted { "Accepted" } else { "Rejected" };
                let gate = json!({"state": state, "round": 1, "outputDigest": digest, "openedAt": at, "policy": "p",
                    "decisions": [decision]});
                let mut request = json!({"attempt": 1, "requestedAt": at, "gate": gate});
                for field in ["gateName", "action", "payload", "repeats"] {
                    request[field] = wanted[field].clone();
                }
                requests.push(request);
            }
            if (questions.len(), requests.len()) != known {
                let said = json!({"questions": questions, "approvalRequests": requests});
                self.set_status(Kind::StepRun, &self.own(), &said);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "hack/mcp-clients installs the clients and runs it"]
async fn official_clients_use_the_tools() {
    let clients = PathBuf::from(std::env::var_os("MCP_CLIENTS").expect("MCP_CLIENTS, which hack/mcp-clients sets"));
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim");
    let python = clients.join("venv/bin/python").display().to_string();
    for (purpose, program, script, ways) in
        [("python", python.as_str(), here.join("client.py"), 4), ("typescript", "node", here.join("client.mjs"), 2)]
    {
        let scene = Scene::open(purpose, &json!({})).await;
        let key = Key::new(Kind::StepRun, TEAM, &scene.own());
        let gates = json!({"spec": {"actionGates": [{"name": "tools"}]}});
        scene.api.with(|registry| registry.patch(&key, Part::Main, (Format::Merge, &gates), BY)).expect("written");
        let script = script.display().to_string();
        let (command, more) = ([program, script.as_str()], [("MCP_CLIENTS", clients.as_path())]);
        let (report, ran) = tokio::select! {
            ended = scene.run(&command, &more) => ended,
            () = scene.people() => unreachable!("people are always there"),
        };
        assert_eq!(report["class"], "Succeeded", "{purpose}: {}", text(&ran));
        assert_eq!(text(&ran).matches("used by ").count(), ways, "{purpose}: {}", text(&ran));
    }
}
