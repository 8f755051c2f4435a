//! The processes that evaluate expressions and schemas, started from the built program: what slow, greedy and deep ones
//! do to them, that others are answered meanwhile, and that nothing is worked out twice. No static filter stands before
//! them here.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lockstep::api::limits::{DOCUMENT_BYTES, EXPRESSION_MEMORY_BYTES};
use lockstep::cluster::evaluator::{Evaluator, Kind, Subject, is_conclusive};
use lockstep::definition::expression::{Evaluate, Unanswered};
use lockstep::protocol::Fault;
use serde_json::{Map, Value, json};

/// What four runs stopped the operator with.
const HOSTILE: &str = "lists.range(1000000).exists(a, lists.range(1000000).exists(b, a < 0 && b < 0))";

fn evaluator() -> Evaluator {
    Evaluator::of(env!("CARGO_BIN_EXE_lockstep"), 2)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        other => panic!("{other} is no object"),
    }
}

/// Asks, and asks again when the answer is there.
async fn ask<T: Send + 'static>(
    evaluator: &Evaluator,
    namespace: &str,
    question: impl Fn(&dyn Evaluate) -> Result<T, String> + Send + Sync + 'static,
) -> Result<T, String> {
    let question = Arc::new(question);
    loop {
        let asked = evaluator.for_namespace(namespace);
        let (own, what) = (Arc::clone(&asked), Arc::clone(&question));
        let answer = tokio::task::spawn_blocking(move || what(own.as_ref())).await.expect("no panic");
        match asked.unanswered() {
            None => return answer,
            Some(Unanswered::Waits) => asked.answered().await,
            Some(Unanswered::Broken(words)) => panic!("{words}"),
        }
    }
}

async fn evaluated(evaluator: &Evaluator, source: &str, variables: Value) -> Result<Value, String> {
    let (source, variables) = (source.to_owned(), object(variables));
    ask(evaluator, "team", move |e| e.evaluate(&source, &variables)).await
}

async fn checked(evaluator: &Evaluator, schema: &Value) -> Result<(), String> {
    let schema = object(schema.clone());
    ask(evaluator, "team", move |e| e.check(&schema)).await
}

async fn faults(evaluator: &Evaluator, schema: &Value, instance: &Value) -> Result<Vec<Fault>, String> {
    let (schema, instance) = (object(schema.clone()), instance.clone());
    ask(evaluator, "team", move |e| e.faults(&schema, &instance)).await
}

#[tokio::test]
async fn answers_and_faults() {
    let evaluator = evaluator();
    let before = json!({"steps": {"n": 2, "d": 3.0, "epics": [{"id": "b"}, {"id": "a"}]}});
    for (source, expected) in [
        ("steps.n + 1", json!(3)),
        ("steps.d", json!(3.0)),
        ("steps.epics.map(e, e.id)", json!(["b", "a"])),
        ("{'b': 1, 'a': \"\\u0001\\n\"}", json!({"a": "\u{1}\n", "b": 1})),
    ] {
        assert_eq!(evaluated(&evaluator, source, before.clone()).await, Ok(expected), "{source}");
    }
    assert!(evaluated(&evaluator, "steps.none", before.clone()).await.is_err_and(|e| e.contains("none")));
    assert!(evaluated(&evaluator, "1 +", before).await.is_err());
    let long = "x".repeat(70_000);
    assert!(evaluated(&evaluator, "[x]", json!({"x": long})).await.is_err_and(|e| e.contains("at most 65536")));
    let longer = json!({"x": "x".repeat(5 << 20)});
    assert!(evaluated(&evaluator, "x", longer).await.is_err_and(|e| e.contains("at most 4194304")));
    let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
    assert!(evaluated(&evaluator, "x", json!({"x": deep})).await.is_err_and(|e| e.contains("nested too deep")));
    assert_eq!(evaluated(&evaluator, "1 + 1", json!({})).await, Ok(json!(2)));
}

#[tokio::test]
async fn schemas_are_checked_and_used() {
    let evaluator = evaluator();
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    assert_eq!(checked(&evaluator, &schema).await, Ok(()));
    assert_eq!(faults(&evaluator, &schema, &json!({"n": 1})).await, Ok(Vec::new()));
    let wrong = faults(&evaluator, &schema, &json!({"n": "secret-value"})).await.expect("it is compiled");
    assert_eq!(wrong[0].pointer, "/n");
    assert!(!wrong[0].message.contains("secret-value"), "{}", wrong[0].message);
    for (broken, part) in [
        (json!({"type": "strin"}), "/type: "),
        (json!({"properties": {"a": {"pattern": "(?=a)b"}}}), "/properties/a/pattern"),
        (json!({"$ref": "http://example.com/s"}), "nothing is fetched"),
    ] {
        assert!(checked(&evaluator, &broken).await.is_err_and(|e| e.contains(part)), "{broken}");
        assert!(faults(&evaluator, &broken, &json!(1)).await.is_err_and(|e| e.contains(part)), "{broken}");
    }
}

#[tokio::test]
async fn what_a_schema_is_worth_is_asked_once() {
    let evaluator = Evaluator::of("/bin/false", 2);
    // What its size says needs no process at all.
    let deep = (0..40).fold(json!({"type": "string"}), |inner, _| json!({"not": inner}));
    assert!(checked(&evaluator, &deep).await.is_err_and(|e| e.contains("nest deeper")));
    assert!(faults(&evaluator, &deep, &json!(1)).await.is_err_and(|e| e.contains("nest deeper")));
    assert_eq!(evaluator.started(), 0);
    let evaluator = self::evaluator();
    for verdict in [json!({"type": "string"}), json!({"type": "strin"})] {
        let first = checked(&evaluator, &verdict).await;
        // The process goes; the verdict stays.
        for pid in evaluator.idle() {
            kill(pid);
        }
        let (started, again) = (evaluator.started(), checked(&evaluator, &verdict).await);
        assert_eq!((again, evaluator.started()), (first, started));
    }
}

#[tokio::test]
async fn what_hurts_ends_and_the_next_is_answered() {
    let evaluator = evaluator();
    let numbers: Vec<usize> = (0..300).collect();
    let texts: Vec<String> = numbers.iter().map(|n| format!("{n:0100}")).collect();
    let doubled = format!("optional.of('xxxxxxxx'){}.orValue('')", ".optMap(x, x + x)".repeat(40));
    let cases = [
        // Its lists are so large that either bound may be met first.
        (HOSTILE.to_owned(), json!({}), "; let it read less"),
        ("d.all(a, d.all(b, d.all(c, d.all(e, true))))".to_owned(), json!({"d": numbers}), "took longer than 1 s"),
        ("d.map(i, d.map(j, d))".to_owned(), json!({"d": texts}), "needed more than 256 MB"),
        ("lists.range(1000000).map(i, d)".to_owned(), json!({"d": texts}), "needed more than 256 MB"),
        (doubled, json!({}), "needed more than 256 MB"),
    ];
    for (source, variables, words) in cases {
        let fault = evaluated(&evaluator, &source, variables.clone()).await.expect_err(&source);
        assert!(fault.contains(words), "{source}: {fault}");
        assert_eq!(evaluated(&evaluator, "1 + 1", json!({})).await, Ok(json!(2)), "after {source}");
        // It is remembered: no process is spent on it again.
        let started = evaluator.started();
        assert_eq!(evaluated(&evaluator, &source, variables).await, Err(fault), "{source}");
        assert_eq!(evaluator.started(), started, "{source}");
    }
}

/// Schemas within their limits, and outputs within theirs, that cost much together.
#[tokio::test]
async fn schemas_that_hurt_end_and_the_next_is_answered() {
    let evaluator = evaluator();
    let levels = 8;
    let mut defs: Map<String, Value> = (0..levels)
        .map(|n| (format!("l{n}"), json!({"anyOf": vec![json!({"$ref": format!("#/$defs/l{}", n + 1)}); 2]})))
        .collect();
    defs.insert(format!("l{levels}"), json!({"type": "string"}));
    let bomb = json!({"$defs": defs, "items": {"$ref": "#/$defs/l0"}});
    let patterns: Vec<Value> = (0..50).map(|n| json!({"pattern": format!("a[ab]{{150}}[^ab]{{{}}}", n + 1)})).collect();
    let slow = json!({"allOf": patterns});
    let zeros = Value::Array(vec![json!(0); DOCUMENT_BYTES / 2]);
    let text = json!("ab".repeat(DOCUMENT_BYTES / 2 - 1));
    for (name, schema, instance) in [("anyOf", &bomb, &zeros), ("patterns", &slow, &text)] {
        assert_eq!(checked(&evaluator, schema).await, Ok(()), "{name}");
        let fault = faults(&evaluator, schema, instance).await.map_err(|fault| {
            assert!(fault.contains("took longer than 1 s") || fault.contains("needed more than 256 MB"), "{fault}");
        });
        // The crate that matches patterns is optimized, and may be through with them; then it is only long.
        assert!(fault.is_err() || name == "patterns", "{name}");
        assert_eq!(faults(&evaluator, &json!({"type": "integer"}), &json!(1)).await, Ok(Vec::new()), "after {name}");
    }
    // Items are told apart in a time that grows with their number, and a large output is no hostile one.
    let unlike = Value::Array((0..60_000).map(Value::from).collect());
    assert_eq!(faults(&evaluator, &json!({"uniqueItems": true}), &unlike).await, Ok(Vec::new()));
    let rows = Value::Array((0..5_000).map(|n| json!({"id": n, "text": "x".repeat(80)})).collect());
    let honest = json!({"type": "array", "items": {"type": "object", "required": ["id"],
        "properties": {"id": {"type": "integer"}, "text": {"type": "string", "pattern": "^x+$"}}}});
    assert_eq!(faults(&evaluator, &honest, &rows).await, Ok(Vec::new()));
}

#[tokio::test]
async fn deep_texts_are_survived() {
    let evaluator = evaluator();
    let sources = [
        format!("1{}", "+1".repeat(40_000)),
        format!("a{}", ".a".repeat(40_000)),
        format!("{}true", "!".repeat(100_000)),
        format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000)),
    ];
    for source in sources {
        // Which of its bounds ends it depends on how it was built; that it ends nothing else does not.
        let _ = evaluated(&evaluator, &source, json!({"a": 1})).await;
        assert_eq!(evaluated(&evaluator, "1 + 1", json!({})).await, Ok(json!(2)), "after {}", &source[..20]);
    }
}

#[tokio::test]
async fn it_inherits_nothing_and_starts_when_it_is_needed() {
    let evaluator = evaluator();
    assert_eq!((evaluator.started(), evaluator.idle().len()), (0, 0));
    assert_eq!(evaluated(&evaluator, "1", json!({})).await, Ok(json!(1)));
    assert_eq!(evaluator.idle().len(), 0, "what a namespace asks first is asked of a process that is not kept");
    assert_eq!(evaluated(&evaluator, "2", json!({})).await, Ok(json!(2)));
    let idle = evaluator.idle();
    let [pid] = idle.as_slice() else { panic!("one process answered: {idle:?}") };
    let place = format!("/proc/{pid}");
    let environment = std::fs::read(format!("{place}/environ")).expect("its environment");
    assert_eq!(String::from_utf8_lossy(&environment), "MALLOC_ARENA_MAX=1\0", "nothing of ours");
    let files = std::fs::read_dir(format!("{place}/fd")).expect("its files").flatten();
    let mut files: Vec<String> = files
        // What it opens itself: a static binary to seed its hash maps, and how much memory it has after an answer.
        .filter(|f| {
            std::fs::read_link(f.path()).is_ok_and(|to| to != Path::new("/dev/urandom") && !to.starts_with("/proc"))
        })
        .filter_map(|f| f.file_name().into_string().ok())
        .collect();
    files.sort();
    assert_eq!(files, ["0", "1", "2"]);
    let limits = std::fs::read_to_string(format!("{place}/limits")).expect("its limits");
    let memory = limits.lines().find(|l| l.starts_with("Max address space")).expect("a line");
    assert!(memory.contains(&EXPRESSION_MEMORY_BYTES.to_string()), "{memory}");
    assert_eq!(std::fs::read_to_string(format!("{place}/oom_score_adj")).expect("a number").trim(), "1000");
    let status = std::fs::read_to_string(format!("{place}/status")).expect("its status");
    println!("{}", status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default());
}

#[tokio::test]
async fn one_that_does_not_start_is_no_fault_of_an_author() {
    for program in ["/nowhere/lockstep", "/bin/false"] {
        let evaluator = Evaluator::of(program, 2);
        for told in [false, true] {
            let pass = evaluator.for_pass(Kind::Workflow, "team", "shop");
            assert!(is_conclusive(pass.as_ref()).expect("nothing was asked"));
            let own = Arc::clone(&pass);
            let answer = tokio::task::spawn_blocking(move || own.evaluate("1 + 1", &Map::new())).await;
            assert!(answer.expect("no panic").is_err());
            if told {
                assert!(
                    is_conclusive(pass.as_ref()).is_err_and(|e| e.to_string().contains("the process that evaluates"))
                );
            } else {
                // The first pass waits; the one that is woken says what is wrong, and comes again after a while.
                assert!(!is_conclusive(pass.as_ref()).expect("it waits"));
                assert_eq!(evaluator.subjects_to_wake().await.len(), 1);
            }
        }
        assert!(is_conclusive(evaluator.for_pass(Kind::Workflow, "team", "shop").as_ref()).is_ok());
    }
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("ours");
}

#[tokio::test]
async fn one_that_was_killed_meanwhile_is_replaced() {
    let evaluator = evaluator();
    for n in 1..=2 {
        assert_eq!(evaluated(&evaluator, &n.to_string(), json!({})).await, Ok(json!(n)));
    }
    assert_eq!(evaluator.idle().len(), 1);
    evaluator.idle().into_iter().for_each(kill);
    assert_eq!(evaluated(&evaluator, "1 + 1", json!({})).await, Ok(json!(2)));
}

/// A pass does not wait for what takes long: nothing is decided, and the object is told when the answer is there.
#[tokio::test]
async fn a_pass_is_told_when_a_long_answer_has_come() {
    let evaluator = evaluator();
    let asks = |name: &str| {
        let pass = evaluator.for_pass(Kind::StepRun, "team", name);
        tokio::task::spawn_blocking(move || {
            let answer = pass.evaluate(HOSTILE, &Map::new());
            (answer, is_conclusive(pass.as_ref()).expect("no trouble"))
        })
    };
    let began = Instant::now();
    for name in ["a", "b", "a"] {
        let (answer, is_conclusive) = asks(name).await.expect("no panic");
        assert!(answer.is_err() && !is_conclusive, "{answer:?}");
    }
    println!("three passes were let go after {:?}", began.elapsed());
    let mut told = evaluator.subjects_to_wake().await;
    told.sort_by(|x, y| x.name.cmp(&y.name));
    let subject = |name: &str| Subject { kind: Kind::StepRun, namespace: "team".to_owned(), name: name.to_owned() };
    assert_eq!(told, [subject("a"), subject("b")]);
    let (answer, is_conclusive) = asks("a").await.expect("no panic");
    assert!(answer.is_err_and(|fault| fault.contains("; let it read less")) && is_conclusive);
}

/// A namespace that was proven and asks what never ends, many times at once, holds the others up for one moment and not
/// for as many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_turns_hostile_holds_others_up_once() {
    let evaluator = evaluator();
    assert_eq!(evaluated(&evaluator, "1", json!({})).await, Ok(json!(1)));
    let passes: Vec<_> = (0..8)
        .map(|n| {
            let pass = evaluator.for_pass(Kind::StepRun, "team", &n.to_string());
            // Each is another question.
            let source = format!("{n} > 99 || {HOSTILE}");
            tokio::task::spawn_blocking(move || {
                let _ = pass.evaluate(&source, &Map::new());
                is_conclusive(pass.as_ref()).expect("no trouble")
            })
        })
        .collect();
    for pass in passes {
        assert!(!pass.await.expect("no panic"), "nothing was decided");
    }
    assert_eq!(evaluator.interrupted(), 1);
}

/// Asked from a thread that runs tasks, it would hold up all of them: such a caller does not get through.
#[tokio::test]
async fn nobody_waits_on_the_async_threads() {
    let evaluator = evaluator();
    // From now on the namespace's questions are waited for.
    assert_eq!(evaluated(&evaluator, "1", json!({})).await, Ok(json!(1)));
    let asks = async move { evaluator.for_namespace("team").evaluate("2", &Map::new()) };
    assert!(tokio::spawn(asks).await.is_err_and(|e| e.is_panic()));
}

async fn honest(evaluator: &Evaluator, n: usize) -> Duration {
    let began = Instant::now();
    let source = format!("parameters.n + {n}");
    let variables = object(json!({"parameters": {"n": 1}}));
    let schema = object(json!({"type": "object", "properties": {"n": {"type": "integer"}}}));
    let value = ask(evaluator, "honest", move |e| e.evaluate(&source, &variables)).await;
    assert_eq!(value, Ok(json!(n + 1)));
    let faults = ask(evaluator, "honest", move |e| e.faults(&schema, &json!({"n": n}))).await;
    assert_eq!(faults, Ok(Vec::new()));
    began.elapsed()
}

fn median(all: &mut [Duration]) -> Duration {
    all.sort();
    all[all.len() / 2]
}

/// Fifty hostile runs, each in a namespace of its own and all at once, and an honest chain of questions beside them.
async fn beside(at_once: usize, namespace: fn(usize) -> String) -> (usize, usize) {
    const RUNS: usize = 50;
    const CHAIN: usize = 40;
    let evaluator = evaluator();
    let mut before = Vec::new();
    for n in 0..CHAIN {
        before.push(honest(&evaluator, n).await);
    }
    let ended = Arc::new(AtomicUsize::new(0));
    // More of one namespace would be sent away, to come again later.
    let at_once = Arc::new(tokio::sync::Semaphore::new(at_once));
    let hostile: Vec<_> = (0..RUNS)
        .map(|n| {
            let (evaluator, ended, at_once) = (evaluator.clone(), Arc::clone(&ended), Arc::clone(&at_once));
            tokio::spawn(async move {
                let _one = at_once.acquire().await;
                // Each is another question.
                let source = format!("{n} > 0 || {HOSTILE}").replace("> 0", "> 99");
                let answer = ask(&evaluator, &namespace(n), move |e| e.evaluate(&source, &Map::new())).await;
                assert!(answer.is_err_and(|fault| fault.contains("took longer than 1 s")));
                ended.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    let mut during = Vec::new();
    for n in 0..CHAIN {
        during.push(honest(&evaluator, n).await);
    }
    let left = RUNS - ended.load(Ordering::SeqCst);
    let first = during[0];
    println!(
        "honest, two questions a link: before {:?}, beside {RUNS} hostile {:?} (the first {first:?}, the longest {:?}); {left} of them were left at its end",
        median(&mut before),
        median(&mut during),
        during.last().expect("some")
    );
    let newcomer = Instant::now();
    let value = ask(&evaluator, "newcomer", |e| e.evaluate("1 + 1", &Map::new())).await;
    println!("a namespace that nobody knows yet: {value:?} after {:?}", newcomer.elapsed());
    hostile.iter().for_each(tokio::task::JoinHandle::abort);
    (left, RUNS)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_hostile_namespaces_leave_the_quick_process_to_the_honest_one() {
    let (left, all) = beside(50, |n| format!("hostile-{n}")).await;
    assert!(left > all / 2, "an honest chain of eighty questions took as long as {} hostile ones", all - left);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_hostile_runs_of_one_namespace_are_one_among_two() {
    let (left, all) = beside(8, |_| "hostile".to_owned()).await;
    assert!(left > all / 2, "an honest chain of eighty questions took as long as {} hostile ones", all - left);
}
