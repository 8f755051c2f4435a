//! What the interpreter says of an expression that fails, for the person who wrote it.

use cel::{ExecutionError, Value};

/// One sentence without its subject: the place of the expression stands before it.
pub fn of(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("there is no field {key}"),
        ExecutionError::UndeclaredReference(name) => format!("{name} is not known here"),
        ExecutionError::IndexOutOfBounds(index) => format!("there is no item at {}", shown(index)),
        ExecutionError::NoSuchOverload(which) => {
            let types: Vec<String> = which.argument_types().iter().map(|t| with_article(t)).collect();
            format!("{} cannot be used with {}", sign(which.function()), types.join(" and "))
        }
        ExecutionError::UnsupportedBinaryOperator(operator, a, b) => {
            let types = [a, b].map(|side| with_article(&side.type_of().to_string()));
            format!("{} cannot be used with {}", sign(operator), types.join(" and "))
        }
        ExecutionError::Overflow(operator, a, Value::Null) => {
            format!("the result of {} {} does not fit 64 bits", sign(operator), shown(a))
        }
        ExecutionError::Overflow(operator, a, b) => {
            format!("the result of {} {} {} does not fit 64 bits", shown(a), sign(operator), shown(b))
        }
        ExecutionError::DivisionByZero(of) => format!("{} is divided by zero", shown(of)),
        ExecutionError::RemainderByZero(of) => format!("{} % 0: the remainder of a division by zero", shown(of)),
        ExecutionError::UnexpectedType { got, want } => {
            format!("{} stands where {} is needed", with_article(got), with_article(want))
        }
        ExecutionError::FunctionError { function, message } => format!("{}: {message}", sign(function)),
        ExecutionError::DuplicateKey(key) => format!("the key {} stands twice", shown(key)),
        other => other.to_string(),
    }
}

/// As the author wrote it.
fn sign(operator: &str) -> &str {
    match operator.trim_matches('_') {
        "add" => "+",
        "sub" | "negate" | "-" => "-",
        "mul" => "*",
        "div" => "/",
        "rem" => "%",
        "." | "[" | "[_]" | "?." | "?" => "access to a member",
        own => own.trim_start_matches('@'),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Int(n) => n.to_string(),
        Value::UInt(n) => n.to_string(),
        Value::Float(n) => n.to_string(),
        Value::String(text) => format!("{text:?}"),
        other => format!("{other:?}"),
    }
}

fn with_article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
    match kind {
        "null" | "null_type" => "null".to_owned(),
        _ => format!("{article} {kind}"),
    }
}
