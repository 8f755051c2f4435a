//! The process that evaluates expressions, started from the built program: what slow, greedy and deep ones do to it, and
//! that it answers afterwards. No static filter stands before it here.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::sync::Arc;

use lockstep::api::limits::EXPRESSION_MEMORY_BYTES;
use lockstep::cluster::evaluator::{Evaluator, Helper, sound};
use serde_json::{Map, Value, json};

fn helper() -> Helper {
    Helper::of(env!("CARGO_BIN_EXE_lockstep"))
}

fn ask(helper: &Helper, source: &str, variables: Value) -> Result<Value, String> {
    let variables: Map<String, Value> = serde_json::from_value(variables).expect("an object");
    helper.ask(source, &variables).expect("no trouble")
}

#[test]
fn answers_and_faults() {
    let helper = helper();
    let before = json!({"steps": {"n": 2, "d": 3.0, "epics": [{"id": "b"}, {"id": "a"}]}});
    for (source, expected) in [
        ("steps.n + 1", json!(3)),
        ("steps.d", json!(3.0)),
        ("steps.epics.map(e, e.id)", json!(["b", "a"])),
        ("{'b': 1, 'a': \"\\u0001\\n\"}", json!({"a": "\u{1}\n", "b": 1})),
    ] {
        assert_eq!(ask(&helper, source, before.clone()), Ok(expected), "{source}");
    }
    assert!(ask(&helper, "steps.none", before.clone()).is_err_and(|e| e.contains("none")));
    assert!(ask(&helper, "1 +", before).is_err());
    let long = "x".repeat(70_000);
    assert!(ask(&helper, "[x]", json!({"x": long})).is_err_and(|e| e.contains("at most 65536")));
    assert!(ask(&helper, "x", json!({"x": "x".repeat(1 << 20)})).is_err_and(|e| e.contains("at most 1048576")));
}

#[test]
fn what_hurts_ends_and_the_next_is_answered() {
    let helper = helper();
    let numbers: Vec<usize> = (0..300).collect();
    let texts: Vec<String> = numbers.iter().map(|n| format!("{n:0100}")).collect();
    let doubled = format!("optional.of('xxxxxxxx'){}.orValue('')", ".optMap(x, x + x)".repeat(40));
    let cases = [
        ("d.all(a, d.all(b, d.all(c, d.all(e, true))))".to_owned(), json!({"d": numbers}), "took longer than 1 s"),
        ("d.map(i, d.map(j, d))".to_owned(), json!({"d": texts}), "needed more than 256 MB"),
        ("lists.range(1000000).map(i, d)".to_owned(), json!({"d": texts}), "needed more than 256 MB"),
        (doubled, json!({}), "needed more than 256 MB"),
    ];
    for (source, variables, words) in cases {
        let fault = ask(&helper, &source, variables).expect_err(&source);
        assert!(fault.contains(words), "{source}: {fault}");
        assert_eq!(ask(&helper, "1 + 1", json!({})), Ok(json!(2)), "after {source}");
    }
}

#[test]
fn deep_texts_are_survived() {
    let helper = helper();
    let sources = [
        format!("1{}", "+1".repeat(40_000)),
        format!("a{}", ".a".repeat(40_000)),
        format!("{}true", "!".repeat(100_000)),
        format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000)),
    ];
    for source in sources {
        // Which of its bounds ends it depends on how it was built; that it ends nothing else does not.
        let _ = ask(&helper, &source, json!({"a": 1}));
        assert_eq!(ask(&helper, "1 + 1", json!({})), Ok(json!(2)), "after {}", &source[..20]);
    }
}

#[test]
fn it_inherits_nothing() {
    let helper = helper();
    assert_eq!(ask(&helper, "1", json!({})), Ok(json!(1)));
    let place = format!("/proc/{}", helper.process().expect("it runs"));
    let environment = std::fs::read(format!("{place}/environ")).expect("its environment");
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    let files = std::fs::read_dir(format!("{place}/fd")).expect("its files").flatten();
    let mut files: Vec<String> = files.filter_map(|f| f.file_name().into_string().ok()).collect();
    files.sort();
    assert_eq!(files, ["0", "1", "2"]);
    let limits = std::fs::read_to_string(format!("{place}/limits")).expect("its limits");
    let memory = limits.lines().find(|l| l.starts_with("Max address space")).expect("a line");
    assert!(memory.contains(&EXPRESSION_MEMORY_BYTES.to_string()), "{memory}");
}

#[test]
fn one_that_does_not_start_is_no_fault_of_an_expression() {
    for program in ["/nowhere/lockstep", "/bin/false"] {
        let evaluator = Evaluator::Isolated(Arc::new(Helper::of(program)));
        let decision = evaluator.for_decision();
        assert!(sound(&decision).is_ok());
        assert!(decision.evaluate("1 + 1", &Map::new()).is_err());
        assert!(sound(&decision).is_err_and(|e| e.to_string().contains("the process that evaluates expressions")));
        assert!(sound(&evaluator.for_decision()).is_ok());
    }
}

#[test]
fn one_that_was_killed_meanwhile_is_replaced() {
    let helper = helper();
    assert_eq!(ask(&helper, "1", json!({})), Ok(json!(1)));
    let pid = i32::try_from(helper.process().expect("it runs")).expect("a pid");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("ours");
    assert_eq!(ask(&helper, "1 + 1", json!({})), Ok(json!(2)));
}
