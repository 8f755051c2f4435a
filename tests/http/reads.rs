//! Reading: runs, documents, memory, and who may.

use std::collections::HashSet;

use http::header;
use lockstep::apiserver::Kind;
use serde_json::{Value, json};

use super::town::{Deed, Town};

#[tokio::test(start_paused = true)]
async fn runs_are_listed_page_by_page() {
    let town = Town::open().await;
    town.echo("default");
    for n in 0..7 {
        town.post("/run", json!({"input": "x", "story_id": format!("s-{}", n % 2)})).await.is(200);
    }
    let (mut seen, mut next, mut pages) = (HashSet::new(), String::new(), 0);
    loop {
        let page = town.get(&format!("/runs?limit=3&continue={next}")).await.is(200);
        for run in page.body["runs"].as_array().expect("a list") {
            assert!(seen.insert(run["run"].to_string()) && run["createdAt"].is_string());
        }
        pages += 1;
        let Some(token) = page.body["continue"].as_str() else { break };
        token.clone_into(&mut next);
    }
    assert_eq!((seen.len(), pages), (7, 3));
    let count = async |query: &str| {
        town.get(&format!("/runs?{query}")).await.is(200).body["runs"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(count("session=s-0").await, 4);
    assert_eq!(count("phase=Completed").await, 7);
    assert_eq!(count("phase=Failed").await, 0);
    assert_eq!(count("flow=default&session=s-1").await, 3);
    for wrong in ["limit=0", "limit=x", "phase=Done", "since=yesterday", "continue=x"] {
        town.get(&format!("/runs?{wrong}")).await.is(400);
    }
}

#[tokio::test(start_paused = true)]
async fn a_document_is_had_with_its_digest_and_not_twice() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |_| Deed {
        output: json!(1),
        document: Some("# A <b>plan</b>".to_owned()),
        ..Deed::default()
    });
    town.flow("default", &json!({"produces": {"type": "plan"}}));
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    let found = town.get("/runs/s/documents/plan").await.is(200);
    assert_eq!(found.text, "# A <b>plan</b>");
    assert_eq!(found.header("content-type"), "text/markdown; charset=utf-8");
    assert_eq!(found.header("x-content-type-options"), "nosniff");
    let tag = found.header("etag").to_owned();
    assert!(tag.starts_with("\"sha256:"), "{tag}");
    let mut again = Town::request("ann", "GET", "/runs/s/documents/plan", &Value::Null);
    again.headers_mut().insert(header::IF_NONE_MATCH, tag.parse().expect("a header"));
    let known = town.send(again).await.is(304);
    assert_eq!((known.text.as_str(), known.header("etag")), ("", tag.as_str()));
    let list = town.get("/runs/s/documents").await.is(200);
    assert_eq!(
        (&list.body["documents"][0]["type"], &list.body["documents"][0]["scope"]),
        (&json!("plan"), &json!("Workflow"))
    );
    let missing = town.get("/runs/s/documents/brief").await.is(404);
    assert_eq!(missing.header("retry-after"), "1");
    // The newest counts; what was said before, and is said again, is the newest again.
    let put = |content: &str| json!({"type": "brief", "content": content, "story_id": "s"});
    for (content, code) in [("one", 201), ("one", 200), ("two", 201), ("one", 201)] {
        town.post("/documents", put(content)).await.is(code);
        town.until("it is published", || {
            town.objects(Kind::Document).iter().all(|d| d["status"]["digest"].is_string()).then_some(())
        })
        .await;
        assert_eq!(town.get("/runs/s/documents/brief").await.is(200).text, content);
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_agent_remembers_is_read_and_corrected() {
    let town = Town::open().await;
    town.echo("default");
    town.get("/memory/default/s").await.is(404);
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    let found = town.get("/memory/default/s").await.is(200);
    assert_eq!(found.body["entries"], json!({"agent_id": "default", "status": "initialized", "story_id": "s"}));
    assert!(found.body["createdAt"].is_string(), "{}", found.text);
    let revision = found.body["revision"].clone();
    let put = |body: Value| town.ask("ann", "PUT", "/memory/default/s", body);
    let now = put(json!({"entries": {"plan": {"n": 1}}, "revision": revision})).await.is(200);
    assert_eq!(now.body["entries"], json!({"plan": {"n": 1}}));
    put(json!({"entries": {}, "revision": revision})).await.is(409);
    put(json!({"entries": {"a/b": 1}})).await.is(400);
    put(json!({})).await.is(400);
}

#[tokio::test(start_paused = true)]
async fn whoever_lacks_a_right_reads_nothing() {
    let town = Town::open().await;
    town.echo("default");
    town.post("/run", json!({"input": "x", "story_id": "s"})).await.is(200);
    for (user, verb, resource, paths) in [
        (
            "a",
            "get",
            "workflows",
            vec!["/runs/s", "/runs/s/result", "/runs/s/history", "/runs/s/events", "/runs/s/documents", "/runs/other"],
        ),
        ("b", "list", "workflows", vec!["/runs", "/runs?session=s"]),
        ("c", "list", "stepruns", vec!["/runs/s/history", "/runs/s/events"]),
        ("d", "list", "documents", vec!["/runs/s/documents"]),
        ("e", "get", "documents", vec!["/runs/s/documents/brief"]),
    ] {
        town.deny(user, verb, resource, "");
        for path in paths {
            town.ask(user, "GET", path, Value::Null).await.is(403);
        }
    }
    // The run itself is told without what its steps say.
    town.ask("c", "GET", "/runs/s", Value::Null).await.is(200);
    assert_eq!(town.get("/runs/none").await.is(404).header("retry-after"), "1");
    town.get("/runs/%2e%2e").await.is(404);
    town.get("/namespaces/UP%20/runs").await.is(404);
    town.ask("ann", "PUT", "/runs/s", Value::Null).await.is(405);
    town.get("/runs/s/steps/work/nothing").await.is(404);
    town.ask("ann", "PUT", "/runs/s/steps/work/logs", Value::Null).await.is(405);
    let pages = [("/openapi.json", "application/json"), ("/docs", "text/html; charset=utf-8")];
    for (path, kind) in pages {
        let mut request = Town::request("ann", "GET", path, &Value::Null);
        request.headers_mut().remove(header::AUTHORIZATION);
        assert_eq!(town.send(request).await.is(200).header("content-type"), kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_its_reader_may_not_see_it_any_more() {
    let town = Town::open().await;
    town.agent("default", &json!({}), |_| Deed { seconds: 600.0, ..Deed::default() });
    town.flow("default", &json!({}));
    town.post("/run", json!({"input": "x", "story_id": "s", "wait": 0})).await.is(202);
    for (user, take) in [("bob", true), ("eve", false)] {
        let mut events = town.stream(user, "/runs/s/events", None).await;
        events.next().await.expect("an event");
        let began = town.elapsed();
        if take {
            town.deny(user, "list", "stepruns", "");
        } else {
            town.revoke(user);
        }
        let rest = events.all().await;
        let last = rest.last().expect("why it ends");
        assert_eq!(last.name, "error", "{last:?}");
        let took = (town.elapsed() - began).as_secs();
        assert!((30..=75).contains(&took), "{user}: {took} s");
        assert_eq!(town.service.streams(), 0);
    }
}
