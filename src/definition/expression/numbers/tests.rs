//! What numbers come to, by operator and by what stands on each side.

use serde_json::{Value, json};

use crate::definition::expression::{Expression, Scope};

const LARGE: i64 = 9_007_199_254_740_993;

fn scope() -> Scope {
    // As the API server stores 2.0, 3.0 and 1.5; and integers that a double cannot hold.
    let numbers = json!({"two": 2, "three": 3, "half": 1.5, "large": LARGE, "max": i64::MAX, "min": i64::MIN, "huge": u64::MAX,
        "list": [3, 1.5, 2, 2.0, 1], "rows": [{"n": 2.5, "k": "b"}, {"n": 2, "k": "a"}, {"n": 3, "k": "c"}]});
    Scope::in_process().with("p", numbers)
}

fn check(table: &[(&str, Result<&str, &str>)]) {
    for (source, expected) in table {
        let got = Expression::parse(source).and_then(|e| e.evaluate(&scope()));
        match (&got, expected) {
            (Ok(value), Ok(text)) => assert_eq!(value.to_string(), *text, "{source}"),
            (Err(fault), Err(part)) => assert!(fault.contains(part), "{source}: {fault}"),
            _ => panic!("{source}: {got:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn ints_and_doubles_meet() {
    check(&[
        ("2.0 * 1.5", Ok("3.0")),
        ("p.two * p.half", Ok("3.0")),
        ("p.half * p.two", Ok("3.0")),
        ("p.two + p.half", Ok("3.5")),
        ("p.half + p.two", Ok("3.5")),
        ("p.two - p.half", Ok("0.5")),
        ("p.half - p.two", Ok("-0.5")),
        ("p.three / p.half", Ok("2.0")),
        ("p.half / p.two", Ok("0.75")),
        ("p.three % p.half", Ok("0.0")),
        ("5.5 % p.two", Ok("1.5")),
        ("-5.5 % 2.0", Ok("-1.5")),
        ("-p.half", Ok("-1.5")),
        ("-p.two", Ok("-2")),
        ("p.two * p.two + p.half * 2", Ok("7.0")),
        ("p.half * size([1, 2])", Ok("3.0")),
        ("[1.5, 2].map(x, x * 2)", Ok("[3.0,4]")),
        ("p.list.filter(x, x > 1.5)", Ok("[3,2,2.0]")),
        ("p.two > 1 ? p.two * 0.5 : 0.0", Ok("1.0")),
        ("string(p.two * 0.25)", Ok("\"0.5\"")),
        ("p.half % 0", Err("zero")),
        ("p.half % 0.0", Err("zero")),
        ("p.half / 0", Err("JSON cannot hold")),
        // Two ints stay CEL's own.
        ("7 / 2", Ok("3")),
        ("-7 / 2", Ok("-3")),
        ("-7 % 2", Ok("-1")),
        ("double(7) / 2", Ok("3.5")),
        ("1 / 0", Err("zero")),
        ("1 % 0", Err("zero")),
    ]);
}

#[test]
fn numbers_compare_whatever_they_are() {
    check(&[
        ("p.two < p.half || p.two <= p.half || p.half > p.two || p.half >= p.two", Ok("false")),
        ("p.half < p.two && p.half <= p.two && p.two > p.half && p.two >= p.half", Ok("true")),
        ("p.two == 2.0 && 2.0 == p.two && p.two <= 2.0 && p.two >= 2.0", Ok("true")),
        ("p.two != 2.0 || p.half == 1", Ok("false")),
        ("p.list.exists(x, x == 2.0) && 2.0 in p.list && p.list == [3, 1.5, 2, 2, 1]", Ok("true")),
        // A double next to it would be the same one.
        ("p.large == 9007199254740992.0", Ok("false")),
        ("p.large > 9007199254740992.0 && p.large < 9007199254740994.0", Ok("true")),
        ("9007199254740992.0 < p.large && -9007199254740992.0 > -p.large", Ok("true")),
        ("p.max < 9223372036854775808.0 && p.huge > p.max && p.huge < 18446744073709551616.0", Ok("true")),
        ("p.max < 1e300 && p.min > -1e300", Ok("true")),
        ("p.two == 'a'", Ok("false")),
        ("p.two != 'a'", Ok("true")),
        ("p.two < 'a'", Err("cannot be used with")),
        ("'a' < 'b' && [1] == [1.0] && {'a': 1} == {'a': 1.0} && null == null", Ok("true")),
        ("0.0 / 0.0 == 0.0 / 0.0", Ok("false")),
        ("0.0 / 0.0 < 1", Err("cannot be used with")),
    ]);
}

#[test]
fn lists_of_numbers_are_sorted_and_searched() {
    check(&[
        ("p.list.sort()", Ok("[1,1.5,2,2.0,3]")),
        ("p.rows.sortBy(r, r.n).map(r, r.k)", Ok("[\"a\",\"b\",\"c\"]")),
        ("p.list.sortBy(x, -x)", Ok("[3,2,2.0,1.5,1]")),
        ("['b', 'a'].sort()", Ok("[\"a\",\"b\"]")),
        ("[].sort()", Ok("[]")),
        (
            "[p.large, 9007199254740992.0, 9007199254740994.0].sort()",
            Ok("[9007199254740992.0,9007199254740993,9007199254740994.0]"),
        ),
        ("[1, 'a'].sort()", Err("all be numbers, or all of one type")),
        ("[{}].sort()", Err("cannot be used with")),
        ("[0.0 / 0.0, 1].sort()", Err("cannot be used with")),
        ("math.greatest(p.list)", Ok("3")),
        ("math.least(p.half, p.two, 1)", Ok("1")),
        ("math.greatest(p.two, 2.5)", Ok("2.5")),
        ("math.greatest(9007199254740992.0, p.large)", Ok("9007199254740993")),
        ("math.least(p.large, 9007199254740992.0)", Ok("9007199254740992.0")),
        ("math.greatest(p.two)", Ok("2")),
        ("math.greatest([])", Err("")),
        ("math.greatest(p.rows)", Err("cannot be used with")),
    ]);
}

#[test]
fn functions_of_doubles_take_what_was_stored_as_an_int() {
    check(&[
        (
            "[math.ceil(p.two), math.floor(p.two), math.round(p.large), math.trunc(p.two)]",
            Ok("[2,2,9007199254740993,2]"),
        ),
        ("[math.ceil(1.5), math.floor(1.5), math.round(1.5), math.trunc(1.5)]", Ok("[2.0,1.0,2.0,1.0]")),
        ("[math.isNaN(p.two), math.isInf(p.huge), math.isFinite(p.two)]", Ok("[false,false,true]")),
        ("[math.sqrt(p.two * 2), math.abs(-p.two), math.sign(-p.half)]", Ok("[2.0,2,-1.0]")),
        ("'%.2f %d'.format([p.two, p.two])", Ok("\"2.00 2\"")),
    ]);
}

#[test]
fn no_digit_is_lost() {
    check(&[
        ("[p.large]", Ok("[9007199254740993]")),
        ("p.large + 1", Ok("9007199254740994")),
        ("[p.max, p.min, p.huge]", Ok("[9223372036854775807,-9223372036854775808,18446744073709551615]")),
        ("p.huge - 1", Ok("18446744073709551614")),
        ("p.huge - p.max", Ok("9223372036854775808")),
        ("1 - p.huge", Err("64 bits")),
        ("p.huge / 2", Ok("9223372036854775807")),
        ("p.huge % 10", Ok("5")),
        ("-(p.huge - p.max)", Ok("-9223372036854775808")),
        ("string(p.huge) + '/' + string(p.large)", Ok("\"18446744073709551615/9007199254740993\"")),
        ("p.max + 1", Err("does not fit 64 bits")),
        ("p.huge * 2", Err("does not fit 64 bits")),
        ("-p.huge", Err("does not fit 64 bits")),
        // Made a double it would be another number.
        ("p.large * 1.5", Err("9007199254740993 has more digits than a double holds")),
        ("p.large + int(2.0)", Ok("9007199254740995")),
        ("12345678901234567890 + 1", Err("")),
    ]);
}

#[test]
fn what_is_no_number_is_left_to_cel() {
    check(&[
        ("'a' + 'b'", Ok("\"ab\"")),
        ("[1] + [2]", Ok("[1,2]")),
        ("'a' + 1", Err("")),
        ("1 + 'a'", Err("")),
        ("{} * 2", Err("cannot be used with")),
        ("-'a'", Err("cannot be used with")),
        ("[1, 2, 3].exists_one(x, x == 2.0)", Ok("true")),
        ("type(1 * 1.0) == double && type(1) == int", Ok("true")),
        ("p.list.map(x, x).size()", Ok("5")),
    ]);
}

/// The interpreter builds the list of a loop in place; by an operator of ours it would copy it in each turn.
#[test]
fn loops_stay_as_fast_as_they_are() {
    let scope = Scope::in_process().with("p", json!({"list": vec![1; 6_000]}));
    let begun = std::time::Instant::now();
    let got = Expression::parse("p.list.map(x, x * 1.0).filter(x, x > 0)").and_then(|e| e.evaluate(&scope));
    assert_eq!(got.map(|v| v.as_array().map(Vec::len)), Ok(Some(6_000)));
    assert!(begun.elapsed().as_secs() < 10);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 100, failure_persistence: None, ..Default::default() })]

    /// What a number is in JSON it is behind an expression.
    #[test]
    fn numbers_come_back_as_they_went_in(int: i64, uint: u64, double in proptest::num::f64::NORMAL) {
        let list = json!([int, uint, double]);
        let scope = Scope::in_process().with("p", json!({"list": list}));
        let got = Expression::parse("p.list.map(x, x)").and_then(|e| e.evaluate(&scope));
        proptest::prop_assert_eq!(got.as_ref().map(Value::to_string), Ok(list.to_string()));
    }
}
