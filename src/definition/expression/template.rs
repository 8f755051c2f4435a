//! `${ }` in the strings of a JSON value: found, checked, replaced.

use serde_json::{Map, Value};

use super::{Expression, Scope};

/// A piece of a string with `${ }` in it.
enum Piece {
    Text(String),
    Code(String),
}

/// `$${` is a literal `${`; a string that is exactly one `${ expr }` keeps the value's type.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut found = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            plain.push_str(&rest[..at - 1]);
            plain.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        plain.push_str(&rest[..at]);
        let end = closing(&rest[at + 2..]).ok_or_else(|| "has a ${ without its }".to_owned())?;
        if !plain.is_empty() {
            found.push(Piece::Text(std::mem::take(&mut plain)));
        }
        found.push(Piece::Code(rest[at + 2..at + 2 + end].trim().to_owned()));
        rest = &rest[at + 3 + end..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        found.push(Piece::Text(plain));
    }
    Ok(found)
}

/// Where the `}` stands that ends the code, past braces and quoted strings in it.
fn closing(code: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, c) in code.char_indices() {
        match (quote, c) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(q), _) if c == q => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '{') => depth += 1,
            (None, '}') if depth == 0 => return Some(at),
            (None, '}') => depth -= 1,
            _ => {}
        }
    }
    None
}

/// All expressions within a JSON value, with the pointer to each; an error is a fault with its pointer.
pub fn expressions(value: &Value, pointer: &str, found: &mut Vec<(String, Result<Expression, String>)>) {
    match value {
        Value::String(text) => match pieces(text) {
            Ok(list) => {
                for piece in list {
                    if let Piece::Code(code) = piece {
                        found.push((pointer.to_owned(), parse_piece(&code)));
                    }
                }
            }
            Err(fault) => found.push((pointer.to_owned(), Err(fault))),
        },
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                expressions(item, &format!("{pointer}[{index}]"), found);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                expressions(item, &format!("{pointer}.{key}"), found);
            }
        }
        _ => {}
    }
}

fn parse_piece(code: &str) -> Result<Expression, String> {
    let shell = !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    if shell {
        return Err(format!(
            "${{{code}}} looks like a shell or Flux variable; it is read as CEL here, and {code} is not known: write $${{{code}}} for the literal text"
        ));
    }
    Expression::parse(code)
}

/// Replaces every `${ }` within the parameters. Single pass: what an expression gives is never read again.
pub fn expand(parameters: &Map<String, Value>, scope: &Scope) -> Result<Map<String, Value>, String> {
    parameters
        .iter()
        .map(|(key, value)| {
            Ok((key.clone(), expand_value(value, scope).map_err(|e| format!("parameters.{key}: {e}"))?))
        })
        .collect()
}

fn expand_value(value: &Value, scope: &Scope) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => expand_text(text, scope)?,
        Value::Array(items) => {
            Value::Array(items.iter().map(|item| expand_value(item, scope)).collect::<Result<_, _>>()?)
        }
        Value::Object(map) => {
            let map =
                map.iter().map(|(k, v)| Ok((k.clone(), expand_value(v, scope)?))).collect::<Result<_, String>>()?;
            Value::Object(map)
        }
        other => other.clone(),
    })
}

pub(super) fn expand_text(text: &str, scope: &Scope) -> Result<Value, String> {
    let list = pieces(text)?;
    if let [Piece::Code(code)] = list.as_slice() {
        return Expression::parse(code)?.evaluate(scope);
    }
    let mut joined = String::new();
    for piece in list {
        match piece {
            Piece::Text(plain) => joined.push_str(&plain),
            Piece::Code(code) => match Expression::parse(&code)?.evaluate(scope)? {
                Value::String(inner) => joined.push_str(&inner),
                other => joined.push_str(&other.to_string()),
            },
        }
    }
    Ok(Value::String(joined))
}
