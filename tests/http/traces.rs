//! One trace a run, from the caller's request to the agent's environment and back, over OTLP to a receiver.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use lockstep::apiserver::Kind;
use lockstep::http::Bounds;
use lockstep::telemetry::traces::{OtlpOptions, Traces};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::{Value, json};

use super::town::{Deed, Town};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A receiver of OTLP over HTTP; what it heard.
fn receiver() -> (OtlpOptions, Arc<Mutex<Vec<Span>>>) {
    let server = tiny_http::Server::http("127.0.0.1:0").expect("a port");
    let otlp_endpoint = format!("http://{}", server.server_addr());
    let heard: Arc<Mutex<Vec<Span>>> = Arc::default();
    let spans = Arc::clone(&heard);
    std::thread::spawn(move || {
        for mut request in server.incoming_requests() {
            let mut body = Vec::new();
            request.as_reader().read_to_end(&mut body).expect("a body");
            let told = ExportTraceServiceRequest::decode(body.as_slice()).expect("protobuf");
            let told = told.resource_spans.into_iter().flat_map(|of| of.scope_spans).flat_map(|of| of.spans);
            spans.lock().expect("nobody panicked").extend(told);
            request.respond(tiny_http::Response::empty(200)).expect("an answer");
        }
    });
    (OtlpOptions { otlp_endpoint, otlp_ca_file: None }, heard)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn parent(spans: &[Span], of: &Span) -> String {
    let parent = spans.iter().find(|span| span.span_id == of.parent_span_id);
    parent.map_or_else(|| hex(&of.parent_span_id), |span| span.name.clone())
}

#[tokio::test(start_paused = true)]
async fn a_run_is_one_trace_from_its_caller_to_its_agent_and_back() {
    let (options, heard) = receiver();
    let traces = Traces::open(&options, "lockstep").expect("it opens");
    let town = Town::traced(Bounds::default(), traces.clone()).await;
    town.agent("default", &json!({}), |_| Deed { seconds: 2.0, output: json!(1), ..Deed::default() });
    town.agent("broken", &json!({}), |_| Deed { code: 3, ..Deed::default() });
    let step = |name: &str, agent: &str| json!({"name": name, "agentId": agent});
    let steps = json!([step("plan", "default"), step("build", "broken")]);
    town.make(Kind::WorkflowTemplate, "two", &json!({"steps": steps, "onFailure": "Fail"}));
    let body = json!({"flow": "two", "input": "x", "story_id": "s", "wait": 30});
    let mut request = Town::request("ann", "POST", "/run", &body);
    request.headers_mut().insert("traceparent", CALLER.parse().expect("a header"));
    town.send(request).await.is(500);
    // Agents stand below their own attempts, in the caller's trace; so does the error that people are shown.
    let jobs = town.objects(Kind::Job);
    let told: BTreeMap<String, Value> = jobs
        .iter()
        .map(|job| {
            let env = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().expect("an environment");
            let own = env.iter().find(|variable| variable["name"] == "TRACEPARENT").expect("the trace");
            (job["metadata"]["labels"]["lockstep.dev/agent"].to_string(), own["value"].clone())
        })
        .collect();
    assert_eq!(told.len(), 2);
    let failed = town.objects(Kind::StepRun).into_iter().find(|step| step["spec"]["path"] == "build").expect("a step");
    assert_eq!(failed["status"]["error"]["traceId"], "0af7651916cd43dd8448eb211c80319c");
    // A retry is a run of its own caller's trace.
    let other = CALLER.replace("0af7", "1af7");
    let mut request = Town::request("ann", "POST", "/runs/s/retry", &json!({}));
    request.headers_mut().insert("traceparent", other.parse().expect("a header"));
    let retried = town.send(request).await.is(201).body["run"].clone();
    let made = town.objects(Kind::Workflow).into_iter().find(|run| run["metadata"]["name"] == retried).expect("a run");
    assert_eq!(made["metadata"]["annotations"]["lockstep.dev/traceparent"], other.as_str());
    // A call without a trace is a run with its own.
    town.echo("echo");
    town.post("/run", json!({"flow": "echo", "input": "x", "story_id": "t"})).await.is(200);
    tokio::time::resume();
    traces.close().await;
    let spans = heard.lock().expect("nobody panicked").clone();
    let of_caller: Vec<Span> =
        spans.iter().filter(|span| hex(&span.trace_id) == "0af7651916cd43dd8448eb211c80319c").cloned().collect();
    let mut tree: Vec<(String, String)> =
        of_caller.iter().map(|span| (span.name.clone(), parent(&of_caller, span))).collect();
    tree.sort();
    tree.dedup();
    let expected = [
        ("gateway claim", "invoke_agent broken"),
        ("gateway claim", "invoke_agent default"),
        ("gateway report", "invoke_agent broken"),
        ("gateway report", "invoke_agent default"),
        ("invoke_agent broken", "step build"),
        ("invoke_agent default", "step plan"),
        ("run two", "b7ad6b7169203331"),
        ("step build", "run two"),
        ("step plan", "run two"),
    ];
    let expected: Vec<(String, String)> = expected.map(|(name, of)| (name.to_owned(), of.to_owned())).to_vec();
    assert_eq!(tree, expected);
    let attempt = of_caller.iter().find(|span| span.name == "invoke_agent default").expect("an attempt");
    let below = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex(&attempt.span_id));
    assert_eq!(told["\"default\""], below);
    assert_eq!(attempt.end_time_unix_nano - attempt.start_time_unix_nano, 2_000_000_000);
    let errors: Vec<&str> = of_caller
        .iter()
        .filter(|span| span.status.as_ref().is_some_and(|status| status.code == 2))
        .map(|span| span.name.as_str())
        .collect();
    assert!(["run two", "step build", "invoke_agent broken"].iter().all(|name| errors.contains(name)), "{errors:?}");
    assert_eq!(errors.len(), 3);
    let own = spans.iter().find(|span| span.name == "run echo").expect("the other run");
    assert!(own.parent_span_id.is_empty() && own.trace_id != attempt.trace_id);
}

/// The collector of OpenTelemetry as a process; what it prints lies in a file.
struct Collector {
    process: Child,
    said: PathBuf,
    endpoint: String,
}

impl Collector {
    async fn start() -> Self {
        let program = std::env::var("LOCKSTEP_COLLECTOR").expect("LOCKSTEP_COLLECTOR: see hack/foreign/collector");
        // Free a moment ago, and nobody else asks for one.
        let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port");
        let said = std::env::temp_dir().join(format!("lockstep-collector-{}", std::process::id()));
        let out = std::fs::File::create(&said).expect("a file");
        let process = Command::new(program).arg(address.to_string()).stdin(Stdio::null()).stdout(out).spawn();
        let endpoint = format!("http://{address}");
        let mut here = Self { process: process.expect("it starts"), said, endpoint };
        let began = std::time::Instant::now();
        while tokio::net::TcpStream::connect(address).await.is_err() {
            let ended = here.process.try_wait().expect("its status");
            assert!(ended.is_none() && began.elapsed().as_secs() < 60, "it does not serve: {ended:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        here
    }

    /// Name, trace, id and parent of each span, as it prints them.
    fn spans(&self) -> Vec<[String; 4]> {
        let text = std::fs::read_to_string(&self.said).expect("what it said");
        let of = |span: &str| {
            ["Name", "Trace ID", "ID", "Parent ID"].map(|field| {
                let value = |line: &str| {
                    let (name, value) = line.split_once(':')?;
                    (name.trim() == field).then(|| value.trim().to_owned())
                };
                span.lines().find_map(value).unwrap_or_default()
            })
        };
        text.split("Span #").skip(1).map(of).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.said);
    }
}

#[tokio::test]
#[ignore = "hack/foreign/collector runs it, with a collector that Go has built"]
async fn a_run_arrives_whole_at_the_collector_of_opentelemetry() {
    let collector = Collector::start().await;
    let options = OtlpOptions { otlp_endpoint: collector.endpoint.clone(), otlp_ca_file: None };
    let traces = Traces::open(&options, "lockstep").expect("it opens");
    let town = Town::traced(Bounds::default(), traces.clone()).await;
    town.agent("planner", &json!({}), |_| Deed { output: json!(1), ..Deed::default() });
    let plan = json!({"name": "plan", "agentId": "planner", "gate": {"name": "backlog"}});
    town.make(Kind::WorkflowTemplate, "two", &json!({"steps": [plan, {"name": "build", "agentId": "planner"}]}));
    let body = json!({"flow": "two", "input": "x", "story_id": "s", "wait": 30});
    let mut request = Town::request("ann", "POST", "/run", &body);
    request.headers_mut().insert("traceparent", CALLER.parse().expect("a header"));
    town.send(request).await.is(202);
    town.ask("bob", "POST", "/runs/s/steps/plan/decision", json!({"accepted": true})).await.is(200);
    assert_eq!(town.end("s").await.name, "result");
    let expected = [
        ("gate backlog", "step plan"),
        ("gateway claim", "invoke_agent planner"),
        ("gateway report", "invoke_agent planner"),
        ("invoke_agent planner", "step build"),
        ("invoke_agent planner", "step plan"),
        ("run two", "b7ad6b7169203331"),
        ("step build", "run two"),
        ("step plan", "run two"),
    ];
    let expected: Vec<(String, String)> = expected.map(|(name, of)| (name.to_owned(), of.to_owned())).to_vec();
    let tree = || {
        let spans = collector.spans();
        let name_of = |id: &String| spans.iter().find(|[_, _, own, _]| own == id).map(|[name, ..]| name.clone());
        let mut tree: Vec<(String, String)> =
            spans.iter().map(|[name, _, _, of]| (name.clone(), name_of(of).unwrap_or_else(|| of.clone()))).collect();
        tree.sort();
        tree.dedup();
        tree
    };
    town.until("all of it has arrived", || (tree() == expected).then_some(())).await;
    traces.close().await;
    let traces: std::collections::BTreeSet<String> =
        collector.spans().into_iter().map(|[_, trace, ..]| trace).collect();
    assert_eq!(traces.into_iter().collect::<Vec<_>>(), ["0af7651916cd43dd8448eb211c80319c"]);
}
