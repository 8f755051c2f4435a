//! Numbers. CEL has no operator for an int and a double, and JSON has only numbers: the API server stores 2.0 as 2, so that
//! nobody can know which of them stands in an object. Here the two meet: the parser's operators are replaced by functions
//! that know all numbers, and leave everything else to CEL.
//!
//! Two ints are CEL's own: `7 / 2` is 3, and what does not fit 64 bits is a fault. With a double the other side becomes one,
//! and is a fault where that would lose digits. Comparing and sorting never loses any.

use std::cmp::Ordering;

use cel::common::ast::{CallExpr, Expr, IdedExpr, operators};
use cel::common::functions::Function;
use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelUInt, DYN_TYPE, INT_TYPE, LIST_TYPE, UINT_TYPE};
use cel::common::value::{CowVal, Val};
use cel::{DeclarationError, Env, ExecutionError, Value};

use super::walk::each_child_mut;

/// What a CEL function returns.
type CelResult<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;
type Args<'b, 'v> = Vec<CowVal<'b, 'v>>;

/// The parser's name of each, its name here, which no text can spell, and what it does.
const TWO: [(&str, &str, Function); 11] = [
    (operators::ADD, "@add", add),
    (operators::SUBSTRACT, "@subtract", subtract),
    (operators::MULTIPLY, "@multiply", multiply),
    (operators::DIVIDE, "@divide", divide),
    (operators::MODULO, "@modulo", modulo),
    (operators::EQUALS, "@equals", equals),
    (operators::NOT_EQUALS, "@not_equals", not_equals),
    (operators::LESS, "@less", less),
    (operators::LESS_EQUALS, "@less_equals", less_equals),
    (operators::GREATER, "@greater", greater),
    (operators::GREATER_EQUALS, "@greater_equals", greater_equals),
];
const NEGATE: &str = "@negate";
const GREATEST: &str = "@greatest";
const LEAST: &str = "@least";
const SORT: &str = "@sort";
const SORT_BY: &str = "@sort_by";

/// Adds the functions that `replace` names, and the functions of `math` that know doubles only.
pub fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    for (_, name, function) in TWO {
        env.add_overload(name, name, vec![DYN_TYPE, DYN_TYPE], function)?;
    }
    env.add_overload(NEGATE, NEGATE, vec![DYN_TYPE], negate)?;
    for (name, function) in [(GREATEST, greatest as Function), (LEAST, least)] {
        env.add_overload(name, &format!("{name}(list)"), vec![DYN_TYPE], function)?;
        env.add_overload(name, &format!("{name}(two)"), vec![DYN_TYPE, DYN_TYPE], function)?;
    }
    env.add_member_overload(SORT, SORT, LIST_TYPE, vec![], sort)?;
    env.add_member_overload(SORT_BY, SORT_BY, LIST_TYPE, vec![LIST_TYPE], sort_by)?;
    let whole: [(&str, Function); 7] = [
        ("math.ceil", itself),
        ("math.floor", itself),
        ("math.round", itself),
        ("math.trunc", itself),
        ("math.isFinite", always),
        ("math.isInf", never),
        ("math.isNaN", never),
    ];
    for (name, function) in whole {
        for of in [INT_TYPE, UINT_TYPE] {
            let id = format!("{name}({})", of.name());
            env.add_overload(name, &id, vec![of], function)?;
        }
    }
    Ok(())
}

/// Has a parsed expression use them.
pub fn replace(tree: &mut IdedExpr) {
    each_child_mut(&mut tree.expr, &mut replace);
    if let Expr::Call(call) = &mut tree.expr {
        rename(call);
    }
}

fn rename(call: &mut CallExpr) {
    // What a loop has gathered so far: the interpreter knows that sum by its operator, and does not copy the list.
    let gathers = matches!(call.args.first().map(|a| &a.expr), Some(Expr::Ident(name)) if name.starts_with('@'));
    let name = match (call.func_name.as_str(), call.target.is_some(), call.args.len()) {
        (operators::ADD, ..) if gathers => return,
        (operators::NEGATE, false, 1) => NEGATE,
        ("math.@max", false, _) => GREATEST,
        ("math.@min", false, _) => LEAST,
        ("sort", true, 0) => SORT,
        ("@sortByAssociatedKeys", true, 1) => SORT_BY,
        (name, false, 2) => match TWO.iter().find(|(operator, ..)| *operator == name) {
            Some((_, own, _)) => own,
            None => return,
        },
        _ => return,
    };
    name.clone_into(&mut call.func_name);
}

// ---- numbers

#[derive(Clone, Copy)]
enum Number {
    /// Every int and every uint.
    Whole(i128),
    Double(f64),
}

fn number(val: &dyn Val) -> Option<Number> {
    let int = || val.downcast_ref::<CelInt>().map(|n| Number::Whole(i128::from(*n.inner())));
    let uint = || val.downcast_ref::<CelUInt>().map(|n| Number::Whole(i128::from(*n.inner())));
    let double = || val.downcast_ref::<CelDouble>().map(|n| Number::Double(*n.inner()));
    int().or_else(uint).or_else(double)
}

/// Two numbers for which CEL has no operator, as two of one kind.
enum Pair {
    Whole(i128, i128),
    Double(f64, f64),
}

/// None where CEL knows what to do.
fn pair(a: &dyn Val, b: &dyn Val) -> Result<Option<Pair>, ExecutionError> {
    if a.get_type() == b.get_type() {
        return Ok(None);
    }
    Ok(match number(a).zip(number(b)) {
        None => None,
        Some((Number::Whole(a), Number::Whole(b))) => Some(Pair::Whole(a, b)),
        Some((a, b)) => Some(Pair::Double(as_double(a)?, as_double(b)?)),
    })
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "compared: what would change is a fault"
)]
fn as_double(number: Number) -> Result<f64, ExecutionError> {
    match number {
        Number::Double(double) => Ok(double),
        Number::Whole(whole) if (whole as f64) as i128 == whole => Ok(whole as f64),
        Number::Whole(whole) => Err(ExecutionError::function_error(
            "double",
            format!("{whole} has more digits than a double holds; make the other side an int with int(...)"),
        )),
    }
}

fn whole<'b, 'v>(operator: &'static str, given: Option<i128>, sides: (i128, i128)) -> CelResult<'b, 'v> {
    let int = given.and_then(|n| i64::try_from(n).ok()).map(|n| CowVal::owned(CelInt::from(n)));
    let uint = || given.and_then(|n| u64::try_from(n).ok()).map(|n| CowVal::owned(CelUInt::from(n)));
    int.or_else(uint).ok_or_else(|| ExecutionError::Overflow(operator, told(sides.0), told(sides.1)))
}

fn told(whole: i128) -> Value {
    let uint = || u64::try_from(whole).map_or(Value::Null, Value::UInt);
    i64::try_from(whole).map_or_else(|_| uint(), Value::Int)
}

fn double<'b, 'v>(given: f64) -> CowVal<'b, 'v> {
    CowVal::owned(CelDouble::from(given))
}

fn two<'b, 'v>(args: Args<'b, 'v>) -> Result<[CowVal<'b, 'v>; 2], ExecutionError> {
    args.try_into().map_err(|args: Vec<_>| ExecutionError::invalid_argument_count(2, args.len()))
}

fn no_operator(operator: &str, sides: &[&dyn Val]) -> ExecutionError {
    let types = sides.iter().map(|side| side.get_type().name().to_owned()).collect();
    ExecutionError::no_such_overload(operator, types)
}

// ---- operators

fn add<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    match pair(a.as_ref(), b.as_ref())? {
        Some(Pair::Whole(a, b)) => whole("add", a.checked_add(b), (a, b)),
        Some(Pair::Double(a, b)) => Ok(double(a + b)),
        None => {
            let own = a.as_adder().ok_or_else(|| no_operator(operators::ADD, &[a.as_ref(), b.as_ref()]))?;
            Ok(CowVal::Owned(own.add(b.as_ref())?.into_owned()))
        }
    }
}

fn subtract<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    match pair(a.as_ref(), b.as_ref())? {
        Some(Pair::Whole(a, b)) => whole("sub", a.checked_sub(b), (a, b)),
        Some(Pair::Double(a, b)) => Ok(double(a - b)),
        None => {
            let own = a.as_subtractor().ok_or_else(|| no_operator(operators::SUBSTRACT, &[a.as_ref(), b.as_ref()]))?;
            Ok(CowVal::Owned(own.sub(b.as_ref())?.into_owned()))
        }
    }
}

fn multiply<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    match pair(a.as_ref(), b.as_ref())? {
        Some(Pair::Whole(a, b)) => whole("mul", a.checked_mul(b), (a, b)),
        Some(Pair::Double(a, b)) => Ok(double(a * b)),
        None => {
            let own = a.as_multiplier().ok_or_else(|| no_operator(operators::MULTIPLY, &[a.as_ref(), b.as_ref()]))?;
            Ok(CowVal::Owned(own.mul(b.as_ref())?.into_owned()))
        }
    }
}

fn divide<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    match pair(a.as_ref(), b.as_ref())? {
        Some(Pair::Whole(a, 0)) => Err(ExecutionError::DivisionByZero(told(a))),
        Some(Pair::Whole(a, b)) => whole("div", a.checked_div(b), (a, b)),
        Some(Pair::Double(a, b)) => Ok(double(a / b)),
        None => {
            let own = a.as_divider().ok_or_else(|| no_operator(operators::DIVIDE, &[a.as_ref(), b.as_ref()]))?;
            Ok(CowVal::Owned(own.div(b.as_ref())?.into_owned()))
        }
    }
}

/// CEL has none for two doubles either; as that for ints, it has the sign of what is divided.
fn modulo<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [a, b] = two(args)?;
    let doubles = match number(a.as_ref()).zip(number(b.as_ref())) {
        Some((Number::Double(a), Number::Double(b))) => Some(Pair::Double(a, b)),
        _ => pair(a.as_ref(), b.as_ref())?,
    };
    match doubles {
        Some(Pair::Whole(a, 0)) => Err(ExecutionError::RemainderByZero(told(a))),
        Some(Pair::Whole(a, b)) => whole("rem", a.checked_rem(b), (a, b)),
        Some(Pair::Double(a, 0.0)) => Err(ExecutionError::RemainderByZero(Value::Float(a))),
        Some(Pair::Double(a, b)) => Ok(double(a % b)),
        None => {
            let own = a.as_modder().ok_or_else(|| no_operator(operators::MODULO, &[a.as_ref(), b.as_ref()]))?;
            Ok(CowVal::Owned(own.modulo(b.as_ref())?.into_owned()))
        }
    }
}

fn negate<'b, 'v>(mut args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let of = args.pop().ok_or_else(|| ExecutionError::invalid_argument_count(1, 0))?;
    if let Some(large) = of.downcast_ref::<CelUInt>() {
        let large = i128::from(*large.inner());
        return whole("negate", Some(-large), (0, large));
    }
    let own = of.as_negator().ok_or_else(|| no_operator(operators::NEGATE, &[of.as_ref()]))?;
    Ok(CowVal::Owned(own.negate()?))
}

// ---- comparing

/// None where one of them is not a number, or is not a number that can be compared.
fn order(a: Number, b: Number) -> Option<Ordering> {
    match (a, b) {
        (Number::Whole(a), Number::Whole(b)) => Some(a.cmp(&b)),
        (Number::Double(a), Number::Double(b)) => a.partial_cmp(&b),
        (Number::Whole(a), Number::Double(b)) => whole_before(a, b),
        (Number::Double(a), Number::Whole(b)) => whole_before(b, a).map(Ordering::reverse),
    }
}

/// As a double a large int would be another number.
#[expect(
    clippy::cast_possible_truncation,
    reason = "what is cut off is looked at, and what is larger is cut to the largest"
)]
fn whole_before(a: i128, b: f64) -> Option<Ordering> {
    if b.is_nan() {
        return None;
    }
    let (floor, rest) = (b.trunc() as i128, b.fract());
    let behind = if rest > 0.0 { Ordering::Less } else { Ordering::Greater };
    Some(a.cmp(&floor).then(if rest == 0.0 { Ordering::Equal } else { behind }))
}

fn compare(operator: &str, a: &dyn Val, b: &dyn Val) -> Result<Ordering, ExecutionError> {
    let none = || no_operator(operator, &[a, b]);
    match number(a).zip(number(b)) {
        Some((a, b)) => order(a, b).ok_or_else(none),
        None => a.as_comparer().ok_or_else(none)?.compare(b).map_err(|_| none()),
    }
}

fn same(args: Args<'_, '_>) -> Result<bool, ExecutionError> {
    let [a, b] = two(args)?;
    Ok(match number(a.as_ref()).zip(number(b.as_ref())) {
        Some((a, b)) => order(a, b) == Some(Ordering::Equal),
        None => a == b,
    })
}

fn compared(operator: &str, args: Args<'_, '_>) -> Result<Ordering, ExecutionError> {
    let [a, b] = two(args)?;
    compare(operator, a.as_ref(), b.as_ref())
}

fn truth<'b, 'v>(given: CelBool) -> CowVal<'b, 'v> {
    CowVal::owned(given)
}

fn equals<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth(same(args)?.into()))
}

fn not_equals<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth((!same(args)?).into()))
}

fn less<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth(compared(operators::LESS, args)?.is_lt().into()))
}

fn less_equals<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth(compared(operators::LESS_EQUALS, args)?.is_le().into()))
}

fn greater<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth(compared(operators::GREATER, args)?.is_gt().into()))
}

fn greater_equals<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth(compared(operators::GREATER_EQUALS, args)?.is_ge().into()))
}

// ---- lists

fn elements<'v>(list: &(dyn Val + 'v)) -> Option<Vec<Box<dyn Val + 'v>>> {
    let mut items = list.as_iterable()?.iter();
    let mut all = Vec::new();
    while let Some(item) = items.next() {
        all.push(item.clone_as_boxed());
    }
    Some(all)
}

fn greatest<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    extreme("math.greatest", Ordering::Greater, args)
}

fn least<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    extreme("math.least", Ordering::Less, args)
}

/// Of the arguments, or of the one list: the first of equal ones, as it is.
fn extreme<'b, 'v>(function: &str, wanted: Ordering, args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let all = match args.as_slice() {
        [list] if number(list.as_ref()).is_none() => elements(list.as_ref()).unwrap_or_default(),
        _ => args.into_iter().map(CowVal::into_owned).collect(),
    };
    let mut found: Option<(Box<dyn Val + 'v>, Number)> = None;
    for val in all {
        let own = number(val.as_ref()).ok_or_else(|| no_operator(function, &[val.as_ref()]))?;
        let beats = match &found {
            Some((_, best)) => order(own, *best).ok_or_else(|| no_operator(function, &[val.as_ref()]))? == wanted,
            None => true,
        };
        if beats {
            found = Some((val, own));
        }
    }
    let none = || ExecutionError::function_error(function, "takes numbers, or a list of numbers that is not empty");
    found.map(|(val, _)| CowVal::Owned(val)).ok_or_else(none)
}

fn sort<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let list = args.into_iter().next().and_then(|list| elements(list.as_ref())).unwrap_or_default();
    sorted(list.clone(), list, "sort")
}

fn sort_by<'b, 'v>(args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    let [list, keys] = two(args)?;
    let of = |list: &CowVal<'b, 'v>| elements(list.as_ref()).unwrap_or_default();
    sorted(of(&keys), of(&list), "sortBy")
}

/// Equal ones keep their order. All keys must be numbers, or of one type that can be compared: each is compared with the
/// first one before, because what is no order must not be sorted by.
fn sorted<'b, 'v>(keys: Vec<Box<dyn Val + 'v>>, list: Vec<Box<dyn Val + 'v>>, function: &str) -> CelResult<'b, 'v> {
    if let Some(first) = keys.first() {
        for key in &keys {
            let numbers = number(first.as_ref()).is_some() && number(key.as_ref()).is_some();
            if !numbers && first.get_type() != key.get_type() {
                let message = "the elements must all be numbers, or all of one type";
                return Err(ExecutionError::function_error(function, message));
            }
            compare(function, key.as_ref(), key.as_ref())?;
            compare(function, first.as_ref(), key.as_ref())?;
        }
    }
    let mut both: Vec<_> = keys.into_iter().zip(list).collect();
    both.sort_by(|(a, _), (b, _)| compare(function, a.as_ref(), b.as_ref()).unwrap_or(Ordering::Equal));
    Ok(CowVal::owned(CelList::from(both.into_iter().map(|(_, item)| item).collect::<Vec<_>>())))
}

// ---- functions of doubles, for ints

fn itself<'b, 'v>(mut args: Args<'b, 'v>) -> CelResult<'b, 'v> {
    args.pop().ok_or_else(|| ExecutionError::invalid_argument_count(1, 0))
}

#[expect(clippy::unnecessary_wraps, reason = "the type of all functions")]
fn always<'b, 'v>(_: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth(true.into()))
}

#[expect(clippy::unnecessary_wraps, reason = "the type of all functions")]
fn never<'b, 'v>(_: Args<'b, 'v>) -> CelResult<'b, 'v> {
    Ok(truth(false.into()))
}

#[cfg(test)]
mod tests;
