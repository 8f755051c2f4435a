use std::sync::mpsc::{Receiver, channel};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::*;
use crate::decide::trace::TraceContext;

fn options(endpoint: &str) -> OtlpOptions {
    OtlpOptions { otlp_endpoint: endpoint.to_owned(), otlp_ca_file: None }
}

fn span(name: &str, flags: u8) -> Span {
    let at = |text: &str| Time(text.parse().expect("a time"));
    Span {
        context: TraceContext { is_sampled: flags == 1, ..TraceContext::of_run("uid", None) },
        id: [7; 8],
        name: name.to_owned(),
        is_server: false,
        started: at("2026-11-21T10:00:00Z"),
        ended: at("2026-11-21T10:00:02.5Z"),
        attributes: vec![
            ("lockstep.run.name", "shop".into()),
            ("gen_ai.usage.input_tokens", Fact::Number(5)),
            ("lockstep.gate.decided_by", Fact::Texts(vec!["ann".to_owned()])),
        ],
        fault: Some("Timeout: too slow".to_owned()),
    }
}

/// Takes requests until the test ends; tells path, type and body of each.
fn receiver() -> (String, Receiver<(String, String, Vec<u8>)>) {
    let server = tiny_http::Server::http("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", server.server_addr());
    let (tell, heard) = channel();
    std::thread::spawn(move || {
        for mut request in server.incoming_requests() {
            let mut body = Vec::new();
            request.as_reader().read_to_end(&mut body).ok();
            let kind = request.headers().iter().find(|header| header.field.equiv("content-type"));
            let kind = kind.map(|header| header.value.to_string()).unwrap_or_default();
            tell.send((request.url().to_owned(), kind, body)).ok();
            request.respond(tiny_http::Response::empty(200)).ok();
        }
    });
    (address, heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn spans_arrive_at_a_receiver_as_they_were() {
    let (address, heard) = receiver();
    let traces = Traces::open(&options(&address), "lockstep-operator").expect("it opens");
    traces.send(vec![span("run default", 1), span("nobody asked for this", 0)]);
    traces.close().await;
    let (path, kind, body) = heard.recv_timeout(Duration::from_secs(20)).expect("a request");
    assert_eq!((path.as_str(), kind.as_str()), ("/v1/traces", "application/x-protobuf"));
    let request = ExportTraceServiceRequest::decode(body.as_slice()).expect("protobuf");
    let resource = format!("{:?}", request.resource_spans[0].resource);
    assert!(resource.contains("lockstep-operator"), "{resource}");
    let spans = &request.resource_spans[0].scope_spans[0].spans;
    let [got] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!((got.name.as_str(), got.span_id.as_slice()), ("run default", [7; 8].as_slice()));
    assert_eq!(got.trace_id, TraceContext::of_run("uid", None).trace);
    assert!(got.parent_span_id.is_empty());
    assert_eq!(got.end_time_unix_nano - got.start_time_unix_nano, 2_500_000_000);
    assert_eq!(
        got.status.as_ref().map(|status| (status.code, status.message.as_str())),
        Some((2, "Timeout: too slow"))
    );
    let keys: Vec<&str> = got.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
    assert_eq!(keys, ["lockstep.run.name", "gen_ai.usage.input_tokens", "lockstep.gate.decided_by"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_receiver_that_is_away_holds_nobody_up() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let traces = Traces::open(&options(&format!("http://{gone}")), "lockstep-operator").expect("it opens");
    // Many times what the queue holds: what does not fit is dropped.
    let sending = tokio::task::spawn_blocking({
        let traces = traces.clone();
        move || traces.send((0..3 * QUEUED).map(|_| span("run default", 1)).collect())
    });
    tokio::time::timeout(Duration::from_secs(30), sending).await.expect("nothing waits").expect("it ends");
    tokio::time::timeout(2 * PATIENCE, traces.close()).await.expect("neither does the end");
}

#[test]
fn an_endpoint_that_is_none_is_told() {
    for (text, expected) in [
        ("http://collector:4318", Ok("http://collector:4318/v1/traces")),
        ("http://collector:4318/", Ok("http://collector:4318/v1/traces")),
        ("https://otlp.example/own/path", Ok("https://otlp.example/own/path")),
        ("collector:4318", Err("must be http://HOST:PORT")),
        ("grpc://collector:4317", Err("must be http://HOST:PORT")),
        ("http://", Err("is no URL")),
        ("http://me:secret@collector", Err("a password does not belong there")),
        ("http://collector/?token=x", Err("has a query")),
        ("not a url", Err("is no URL")),
    ] {
        match (endpoint(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected),
            (Err(fault), Err(words)) => assert!(format!("{fault:#}").contains(words), "{text}: {fault:#}"),
            (other, _) => panic!("{text}: {other:?}"),
        }
    }
    let fault = Traces::open(&options("https://collector"), "x").expect_err("no CA");
    assert!(format!("{fault:#}").contains("LOCKSTEP_OTLP_CA_FILE"), "{fault:#}");
    assert!(!Traces::open(&options(""), "x").expect("off").is_on());
}
