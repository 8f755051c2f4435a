//! Tables of expressions, and what no text may do.

use super::template::expand_text;
use super::*;
use serde_json::json;

fn scope() -> Scope {
    Scope::default()
        .with("parameters", json!({"depth": 2, "name": "x"}))
        .with("documents", json!({"backlog": {"epics": [{"id": "a"}, {"id": "b"}]}, "brief": "text"}))
}

fn check(source: &str, expected: Result<Value, &str>) {
    let got = Expression::parse(source).and_then(|e| e.evaluate(&scope()));
    match expected {
        Ok(value) => assert_eq!(got, Ok(value), "{source}"),
        Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{source}: {got:?} lacks {part:?}"),
    }
}

#[test]
fn evaluation() {
    check("parameters.depth + 1", Ok(json!(3)));
    check("${ parameters.depth - 4 }", Ok(json!(-2)));
    check("documents.backlog.epics", Ok(json!([{"id": "a"}, {"id": "b"}])));
    check("documents.backlog.epics.map(e, e.id)", Ok(json!(["a", "b"])));
    check("documents['backlog'].epics[0].id", Ok(json!("a")));
    check("documents.?nothing.orValue([])", Ok(json!([])));
    check("documents.backlog.nothing", Err("documents.backlog has no field nothing"));
    check("documents.brief.epics", Err("is a string, not an object"));
    check("1 +", Err("not valid CEL"));
    check(&"1+".repeat(600), Err("at most 1024"));
    check(&format!("{}1", "1+".repeat(300)), Err("nodes"));
    check(&format!("{}1{}", "(".repeat(60), ")".repeat(60)), Err("brackets deep"));
    check(&format!("{}true", "!".repeat(200)), Err("brackets deep"));
    check("[1].map(a, [1].map(b, [1].map(c, c)))", Err("loops 3 deep"));
}

#[test]
fn members_named_literally_are_found() {
    let e = Expression::parse("documents.brief + documents['epic-backlog'] + documents[?'x'].orValue('')")
        .map(|e| e.members("documents"));
    assert_eq!(e.unwrap_or_default().into_iter().collect::<Vec<_>>(), ["brief", "epic-backlog", "x"]);
}

#[test]
fn templates() {
    let expand = |text: &str| expand_text(text, &scope());
    assert_eq!(expand("${ parameters.depth }"), Ok(json!(2)));
    assert_eq!(expand("depth ${ parameters.depth }, ${parameters.name}"), Ok(json!("depth 2, x")));
    assert_eq!(expand("$${ parameters.depth }"), Ok(json!("${ parameters.depth }")));
    assert_eq!(expand("${ {'a': '}'}['a'] }"), Ok(json!("}")));
    assert_eq!(expand("${ parameters"), Err("has a ${ without its }".to_owned()));
    assert_eq!(
        expand_text("${ parameters.name }", &Scope::default().with("parameters", json!({"name": "${ 1 + 1 }"}))),
        Ok(json!("${ 1 + 1 }"))
    );
}
