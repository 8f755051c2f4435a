//! Tables of expressions, and what no text may do.

use super::evaluate::size;
use super::*;
use serde_json::json;

/// Bytes that a text may give in these tables.
const ROOM: usize = 64 * 1024;

fn scope() -> Scope {
    Scope::in_process()
        .with("parameters", json!({"depth": 2, "name": "x"}))
        .with("documents", json!({"backlog": {"epics": [{"id": "a"}, {"id": "b"}]}, "brief": "text"}))
}

/// What a text gives, or what is wrong with it.
fn expand_text(text: &str, scope: &Scope) -> Result<Value, String> {
    let mut fault = String::new();
    let mut heard = |_: &str, found: Result<&Expression, String>| {
        if let Err(why) = found {
            fault = why;
        }
    };
    let parsed = TextTemplate::parse(text, "", &mut heard);
    parsed.ok_or(fault)?.expand(scope, &mut Room::of(ROOM))
}

#[test]
fn what_a_text_gives_stops_at_its_bound_before_anything_is_copied() {
    let big = "x".repeat(EXPRESSION_PATH_BYTES - 2);
    let rows: Vec<Value> = (0..1000).map(|n| json!({"n": n, "t": "\u{1}\"ä"})).collect();
    let rows_bytes = Value::from(rows.clone()).to_string().len();
    let scope = Scope::in_process()
        .with("documents", json!({"big": big, "small": "y".repeat(1000), "rows": rows}))
        .with("parameters", json!({"n": 1}));
    let whole = |text: &str| expand_text(text, &scope).map(|value| value.as_str().map_or(0, str::len));
    // 2,000 uses of 512 KiB are a GiB: the first is too much already.
    let told = whole(&"${ documents.big }".repeat(2_000)).expect_err("too large");
    assert_eq!(told, format!("gives more than {ROOM} bytes, at most {ROOM} are allowed"));
    assert!(whole("${ documents.big }").is_err());
    assert_eq!(whole(&"${ documents.small }".repeat(65)), Ok(65_000));
    assert!(whole(&"${ documents.small }".repeat(66)).is_err());
    assert!(whole(&("z".repeat(ROOM - 999) + "${ documents.small }")).is_err());
    assert_eq!(whole(&("z".repeat(ROOM - 1000) + "${ documents.small }")), Ok(ROOM));
    assert!(whole(&"${ documents.small + 'x' }".repeat(66)).is_err());
    // What is no text is counted as it is written.
    let text = format!("a ${{ documents.rows }}{}", "b".repeat(ROOM - 2 - rows_bytes));
    assert_eq!(whole(&text), Ok(ROOM));
    assert!(whole(&format!("{text}b")).is_err());
    // The strings of one value have the room together.
    let value = json!({"a": ["${ documents.small }", {"b": "${ documents.small }"}], "c": 1});
    let template = Template::parse(&value, "", &mut |_, _| {}).expect("it can be read");
    for (bytes, fits) in [(1999, false), (2000, true)] {
        let mut room = Room::of(bytes);
        assert_eq!(template.expand(&scope, &mut room).is_ok(), fits, "{bytes}");
        assert_eq!(room.is_spent(), !fits, "{bytes}");
    }
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
    check(&format!("{}true", "!".repeat(200)), Ok(json!(true)));
    check("[1].map(a, [1].map(b, [1].map(c, c)))", Err("inside another loop"));
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
        expand_text("${ parameters.name }", &Scope::in_process().with("parameters", json!({"name": "${ 1 + 1 }"}))),
        Ok(json!("${ 1 + 1 }"))
    );
}

#[test]
fn the_filter_says_what_to_do() {
    check("documents.backlog.epics.map(e, documents.backlog.epics.map(f, f))", Err("inside another loop"));
    check("documents.backlog.epics.exists(e, documents.backlog.epics.exists(f, f.id == e.id))", Ok(json!(true)));
    check("documents.backlog.epics.filter(e, e.id != 'b').map(e, e.id).exists(i, i == 'a')", Ok(json!(true)));
    check("[1].all(a, [1].all(b, [1].all(c, true)))", Err("loops 3 deep"));
    check(&["[1].all(a, true)"; 5].join(" && "), Err("has 5 loops"));
    check("[1, 2].map(n, n + 1)", Ok(json!([2, 3])));
    let item = "[{'id': 'a', 'n': 1}]";
    for (joined, expected) in [
        ("'x-' + e.id", json!(["x-a"])),
        ("e.id + '-' + e['id'] + '!'", json!(["a-a!"])),
        ("'x' + string(e.n) + e.id.upperAscii()", json!(["x1A"])),
    ] {
        check(&format!("{item}.map(e, {joined})"), Ok(expected));
    }
    check("['a'].exists(s, 'x' + s == 'xa')", Ok(json!(true)));
    // What doubles with each loop, or takes a whole list or text for each of its items.
    check("['a'].map(s,\n  s + s + s + s + s)", Err("inside a loop at line 2 column 4"));
    check("['a'].map(s, s + s).map(s, s + s).map(s, s + s).map(s, s + s)", Err("at most 3 times two fields"));
    check(&format!("['a'].map(s, s + '{}')", "x".repeat(129)), Err("128 bytes in all"));
    check("optional.of('a').optMap(s, s + s).orValue('')", Err("fields of the loop's own item"));
    check("['a'].map(s, 'x' + parameters.name)", Err("fields of the loop's own item"));
    check("[['a']].map(s, s + parameters.all)", Err("fields of the loop's own item"));
    check("['a'].exists(s, ['b'].exists(t, 'x' + s == t))", Err("fields of the loop's own item"));
    check("['a'].map(s, s + [s][0])", Err("fields of the loop's own item"));
    check("['a'].map(s, s + s.replace('a', 'aa'))", Err("inside a loop"));
    check("['a'].map(s, s.replace('a', 'aa'))", Err("calls replace inside a loop at line 1 column 16"));
    check("[['a']].map(s, s.join(','))", Err("calls join inside a loop"));
    check("['%s'].map(s, s.format([s]))", Err("calls format inside a loop"));
    check("1 + nothing(2)", Err("calls nothing at line 1 column 5, which is not known; known are base64.decode, "));
    check("[1].map(a)", Err("calls map with 1 arguments at line 1 column 5"));
    check("[1, 2].sortBy(n, -n)", Ok(json!([2, 1])));
}

#[test]
fn integers_are_integers() {
    let scope = Scope::in_process().with("n", json!({"i": 50, "d": 3.0, "big": u64::MAX, "list": [1, 2]}));
    for (source, expected) in [
        ("n.i == 50 && n.i - 51 == -1 && -n.i < 0", json!(true)),
        ("n.i + 1", json!(51)),
        ("n.d", json!(3.0)),
        ("n.d + 0.0", json!(3.0)),
        ("n.i > n.d && n.d < n.i && n.d == 3", json!(true)),
        ("size(n.list) + n.list.size()", json!(4)),
        ("n.list[?5].orValue(7)", json!(7)),
        ("n.?none.orValue(1) + n.?i.orValue(1)", json!(51)),
        ("has(n.i) && !has(n.none)", json!(true)),
        ("n.big", json!(u64::MAX)),
        ("double(n.i) + 0.5", json!(50.5)),
        ("{'b': 1, 'a': {'d': 1, 'c': 2}}", json!({"a": {"c": 2, "d": 1}, "b": 1})),
    ] {
        let got = Expression::parse(source).and_then(|e| e.evaluate(&scope));
        assert_eq!(got.as_ref().map(Value::to_string), Ok(expected.to_string()), "{source}: {got:?}");
    }
}

#[test]
fn names_with_hyphens_have_two_spellings() {
    let step = json!({"phase": "Completed", "output": 1});
    let scope = Scope::in_process().with("steps", json!({"epic-backlog": step, "epic_backlog": step}));
    for source in ["steps.epic_backlog.output", "steps['epic-backlog'].output", "steps['epic-backlog'].output + 0"] {
        assert_eq!(Expression::parse(source).and_then(|e| e.evaluate(&scope)), Ok(json!(1)), "{source}");
    }
}

#[test]
fn parameters_with_hyphens_have_two_spellings() {
    let parameters = json!({"dry-run": true, "max-n": 3, "a_b": 1, "a-b": 2, "all": {"run-id": 7}});
    let scope = Scope::in_process()
        .with("workflow", json!({"name": "w", "parameters": parameters}))
        .with("parameters", parameters);
    for (source, expected) in [
        ("parameters.dry_run", Ok(json!(true))),
        ("parameters['dry-run']", Ok(json!(true))),
        ("workflow.parameters.dry_run", Ok(json!(true))),
        ("!parameters.dry_run || workflow.parameters.dry_run", Ok(json!(true))),
        ("parameters.max_n * 1.5 + parameters['max-n']", Ok(json!(7.5))),
        ("[1].map(i, i * parameters.max_n)", Ok(json!([3]))),
        ("has(parameters.dry_run) && !has(parameters.dry_walk)", Ok(json!(true))),
        ("parameters.?dry_run.orValue(false)", Ok(json!(true))),
        ("parameters.?max_n.orValue(0) + 1", Ok(json!(4))),
        ("size(parameters) + parameters.max_n", Ok(json!(8))),
        // The very name counts first; what the parameters hold is nobody's name.
        ("parameters.a_b", Ok(json!(1))),
        ("[parameters.a_b, parameters['a-b']]", Ok(json!([1, 2]))),
        ("parameters.all.run_id", Err("no field run_id")),
        ("[parameters.all.run_id]", Err("no field run_id")),
    ] {
        let got = Expression::parse(source).and_then(|e| e.evaluate(&scope));
        match expected {
            Ok(value) => assert_eq!(got, Ok(value), "{source}"),
            Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{source}: {got:?}"),
        }
    }
}

#[test]
fn what_is_read_is_known() {
    let reads = |source: &str| Expression::parse(source).map(|e| e.variables().into_iter().collect::<Vec<_>>());
    assert_eq!(reads("documents.a.map(e, e.id + 1).exists(x, x == y)"), Ok(vec!["documents".into(), "y".into()]));
    assert_eq!(reads("type(x) == int && math.abs(z) > 1"), Ok(vec!["x".into(), "z".into()]));
    let whole = Expression::parse("size(documents) > 1 && documents.brief != ''").expect("it parses");
    assert!(whole.reads_whole("documents"));
    // A member beside the whole hides nothing of it.
    assert_eq!(whole.evaluate(&scope()), Ok(json!(true)));
    assert!(!Expression::parse("documents.brief == ''").expect("it parses").reads_whole("documents"));
}

#[test]
fn sizes_are_bounded_and_said() {
    let scope = Scope::in_process()
        .with("x", json!({"a": "y".repeat(70_000), "b": "y".repeat(600_000), "c": "y".repeat(40_000)}));
    let fault = |source: &str| Expression::parse(source).and_then(|e| e.evaluate(&scope)).map(|v| size(&v));
    assert_eq!(fault("x.a"), Ok(70_002));
    assert_eq!(fault("x.?a.orValue('')"), Ok(70_002));
    assert!(fault("x.b").is_err_and(|e| e.contains("gives 600002 bytes, at most 524288")));
    assert!(fault("x.a + ''").is_err_and(|e| e.contains("reads 70") && e.contains("at most 65536")));
    assert!(fault("[x.c, x.c]").is_err_and(|e| e.contains("gives 80") && e.contains("at most 65536")));
    assert!(fault("x.?a").is_err(), "an optional is no value");
}

#[test]
fn every_known_function_is_there() {
    let calls = [
        "base64.decode('YQ==')",
        "base64.encode(b'a')",
        "bool('true')",
        "bytes('a')",
        "'a'.charAt(0)",
        "'a'.contains('a')",
        "[1].distinct()",
        "double(1)",
        "dyn(1)",
        "'a'.endsWith('a')",
        "[[1]].flatten()",
        "'%s'.format(['a'])",
        "optional.of(1).hasValue()",
        "'a'.indexOf('a')",
        "int('1')",
        "['a'].join()",
        "'a'.lastIndexOf('a')",
        "lists.range(2)",
        "'A'.lowerAscii()",
        "'a'.matches('a')",
        "math.abs(1)",
        "math.bitAnd(1, 1)",
        "math.bitNot(1)",
        "math.bitOr(1, 1)",
        "math.bitShiftLeft(1, 1)",
        "math.bitShiftRight(1, 1)",
        "math.bitXor(1, 1)",
        "math.ceil(1.5)",
        "math.floor(1.5)",
        "math.greatest(1, 2)",
        "math.isFinite(1.0)",
        "math.isInf(1.0)",
        "math.isNaN(1.0)",
        "math.least(1, 2)",
        "math.round(1.5)",
        "math.sign(1)",
        "math.sqrt(4)",
        "math.trunc(1.5)",
        "optional.none().orValue(1)",
        "optional.of(1).value()",
        "optional.ofNonZeroValue(1).orValue(2)",
        "optional.of(1).or(optional.of(2)).value()",
        "optional.of(1).orValue(2)",
        "'a'.replace('a', 'b')",
        "[1].reverse()",
        "size('a')",
        "[1].slice(0, 1)",
        "[2, 1].sort()",
        "'a,b'.split(',')",
        "'a'.startsWith('a')",
        "string(1)",
        "strings.quote('a')",
        "'ab'.substring(1)",
        "' a'.trim()",
        "type(1) == int",
        "uint(1)",
        "'a'.upperAscii()",
    ];
    for call in calls {
        let got = Expression::parse(call).and_then(|e| e.evaluate(&Scope::in_process()));
        assert!(got.is_ok(), "{call}: {got:?}");
    }
    for name in vocabulary::FUNCTIONS {
        assert!(calls.iter().any(|call| call.contains(&format!("{name}("))), "{name} is called nowhere here");
    }
}

/// On a stack as small as any that parses: overflowing it would end the test's whole process.
fn on_small_stack(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn_scoped(scope, run);
        thread.expect("a thread").join().expect("no panic");
    });
}

#[test]
fn no_text_exhausts_the_stack() {
    on_small_stack(|| {
        let chains = [
            "1+",
            "a.",
            "!",
            "! ",
            "-",
            "(",
            "[",
            "{",
            "{1:",
            "int(",
            "a?1:",
            "a&&",
            "a||",
            "1<",
            "a[",
            "a.f(",
            "a.?",
            "\"",
            "'",
            "[1].map(a,",
        ];
        for link in chains {
            for (head, tail) in [("", ""), ("", "1"), ("1", ""), ("a", "a")] {
                let text: String = head.chars().chain(link.chars().cycle().take(1_000)).chain(tail.chars()).collect();
                let _ = Expression::parse(&text);
            }
        }
        for (open, close) in [("(", ")"), ("[", "]"), ("{1:", "}"), ("int(", ")"), ("a[", "]"), ("[1].exists(a,", ")")]
        {
            for depth in [8, 31, 33, 90, 120] {
                let text = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                let parsed = Expression::parse(&text).and_then(|e| e.evaluate(&scope()));
                assert!(depth < 32 || parsed.is_err(), "{text}");
            }
        }
        check(&format!("1{}", "+1".repeat(99)), Ok(json!(100)));
    });
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever is written, parsing and evaluating end, with a value or with words.
    #[test]
    fn no_text_panics(parts in proptest::collection::vec(proptest::sample::select(&[
        "1", "-", "2.5", "'a'", "parameters", ".", "depth", "name", "documents", "backlog", "epics", "[", "]", "(", ")", "{", "}",
        ":", "?", "+", "*", "/", "%", "==", "<", "&&", "||", "!", " in ", ",", ".map(e, ", ".exists(e, ", ".filter(e, ", "e", "size(",
        ".?", "[?", ".orValue(", "has(", "null", "true", "9223372036854775807", "\"", "'", "\\", "\n", "${", "0", "string(", "int(", "é",
    ][..]), 1..40)) {
        let text = parts.concat();
        on_small_stack(|| {
            if let Err(words) = Expression::parse(&text).and_then(|e| e.evaluate(&scope())) {
                assert!(!words.is_empty());
            }
            let _ = expand_text(&text, &scope());
        });
    }
}
