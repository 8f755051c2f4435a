//! `${ }` in the strings of a JSON value: found and parsed once, then replaced as often as needed.

use serde_json::{Map, Value};

use super::{Expression, Room, Scope};

/// A string with `${ }` in it, or none. `$${` is a literal `${`; a string that is exactly one `${ expr }` keeps the
/// type of what the expression gives.
#[derive(Clone, Debug, PartialEq)]
pub struct TextTemplate(Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Code(Box<Expression>),
}

/// A JSON value with such strings in it.
#[derive(Clone, Debug, PartialEq)]
pub enum Template {
    Plain(Value),
    Text(TextTemplate),
    List(Vec<Template>),
    Object(Vec<(String, Template)>),
}

/// Hears of every expression, by the pointer to its string, and of every fault in one.
pub type Heard<'h> = &'h mut dyn FnMut(&str, Result<&Expression, String>);

impl TextTemplate {
    /// None where something in it cannot be read; `heard` was told what.
    pub fn parse(text: &str, pointer: &str, heard: Heard<'_>) -> Option<Self> {
        let found = match pieces(text) {
            Ok(found) => found,
            Err(fault) => {
                heard(pointer, Err(fault));
                return None;
            }
        };
        let mut parse = |piece| match piece {
            RawPiece::Text(plain) => Some(Piece::Text(plain)),
            RawPiece::Code(code) => match parse_piece(&code) {
                Ok(expression) => {
                    heard(pointer, Ok(&expression));
                    Some(Piece::Code(Box::new(expression)))
                }
                Err(fault) => {
                    heard(pointer, Err(fault));
                    None
                }
            },
        };
        // All of them, so that every fault is heard of.
        let parsed: Vec<Option<Piece>> = found.into_iter().map(&mut parse).collect();
        parsed.into_iter().collect::<Option<_>>().map(Self)
    }

    /// Single pass: what an expression gives is never read again.
    pub fn expand(&self, scope: &Scope, room: &mut Room) -> Result<Value, String> {
        if let [Piece::Code(code)] = self.0.as_slice() {
            return code.evaluate_within(scope, room);
        }
        self.expand_joined(scope, room).map(Value::String)
    }

    fn expand_joined(&self, scope: &Scope, room: &mut Room) -> Result<String, String> {
        let mut joined = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(plain) => {
                    room.take_bytes(plain.len())?;
                    joined.push_str(plain);
                }
                Piece::Code(code) => joined.push_str(&written(code.evaluate_within(scope, room)?)),
            }
        }
        Ok(joined)
    }

    /// As `expand`, where only a text will do.
    pub fn expand_to_text(&self, scope: &Scope, room: &mut Room) -> Result<String, String> {
        self.expand(scope, room).map(written)
    }

    /// As `expand_to_text`, but what does nothing but name the run is left out: its name, and its session if that is
    /// private. Two that are the same ask the same, whatever the run is called.
    pub fn expand_nameless(&self, scope: &Scope, room: &mut Room) -> Result<String, String> {
        let session = scope.get("workflow").and_then(|run| run.get("session")?.as_str());
        let private = session.is_some_and(|id| id.starts_with('_'));
        let names =
            |code: &Expression| code.is_path("workflow", "name") || private && code.is_path("workflow", "session");
        let kept = self.0.iter().filter(|piece| !matches!(piece, Piece::Code(code) if names(code)));
        let kept = Self(kept.cloned().collect());
        if kept.0.len() == self.0.len() { self.expand_to_text(scope, room) } else { kept.expand_joined(scope, room) }
    }

    pub fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Code(code) => Some(code.as_ref()),
            Piece::Text(_) => None,
        })
    }
}

impl Template {
    /// As `TextTemplate::parse`, for every string within the value.
    pub fn parse(value: &Value, pointer: &str, heard: Heard<'_>) -> Option<Self> {
        match value {
            Value::String(text) => TextTemplate::parse(text, pointer, heard).map(Self::Text),
            Value::Array(items) => {
                let parsed: Vec<Option<Self>> = items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| Self::parse(item, &format!("{pointer}[{index}]"), heard))
                    .collect();
                parsed.into_iter().collect::<Option<_>>().map(Self::List)
            }
            Value::Object(members) => Self::members(members, pointer, heard).map(Self::Object),
            plain => Some(Self::Plain(plain.clone())),
        }
    }

    /// The members of an object, each under its own pointer.
    pub fn members(members: &Map<String, Value>, pointer: &str, heard: Heard<'_>) -> Option<Vec<(String, Self)>> {
        let parsed: Vec<Option<(String, Self)>> = members
            .iter()
            .map(|(key, member)| Some((key.clone(), Self::parse(member, &format!("{pointer}.{key}"), heard)?)))
            .collect();
        parsed.into_iter().collect()
    }

    /// What its strings give takes room; the rest the author wrote out.
    pub fn expand(&self, scope: &Scope, room: &mut Room) -> Result<Value, String> {
        match self {
            Self::Plain(value) => Ok(value.clone()),
            Self::Text(text) => text.expand(scope, room),
            Self::List(items) => {
                items.iter().map(|item| item.expand(scope, room)).collect::<Result<_, _>>().map(Value::Array)
            }
            Self::Object(members) => {
                let expanded = members.iter().map(|(key, member)| Ok((key.clone(), member.expand(scope, room)?)));
                expanded.collect::<Result<_, String>>().map(Value::Object)
            }
        }
    }

    /// Every expression in it.
    pub fn each_expression<'a>(&'a self, found: &mut Vec<&'a Expression>) {
        match self {
            Self::Plain(_) => {}
            Self::Text(text) => found.extend(text.expressions()),
            Self::List(items) => items.iter().for_each(|item| item.each_expression(found)),
            Self::Object(members) => members.iter().for_each(|(_, member)| member.each_expression(found)),
        }
    }
}

fn written(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// A piece of a template string, before its expression is parsed.
enum RawPiece {
    Text(String),
    Code(String),
}

fn pieces(text: &str) -> Result<Vec<RawPiece>, String> {
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
            found.push(RawPiece::Text(std::mem::take(&mut plain)));
        }
        found.push(RawPiece::Code(rest[at + 2..at + 2 + end].trim().to_owned()));
        rest = &rest[at + 3 + end..];
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        found.push(RawPiece::Text(plain));
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

fn parse_piece(code: &str) -> Result<Expression, String> {
    let shell = !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    if shell {
        return Err(format!(
            "${{{code}}} looks like a shell or Flux variable; it is read as CEL here, and {code} is not known: write $${{{code}}} for the literal text"
        ));
    }
    Expression::parse(code)
}
