//! Expressions: CEL and nothing else. Parsed within static limits, then evaluated over JSON.
//! `${ }` in strings of `parameters` is the same language.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, LiteralValue};
use cel::{Context, Env, IdedExpr, Program};
use serde_json::{Map, Value};

use crate::api::limits::{EXPRESSION_BYTES, EXPRESSION_DATA_BYTES};

const NODES: usize = 200;
const COMPREHENSIONS: usize = 4;
const NESTED_COMPREHENSIONS: usize = 2;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib().with_optional_support(true)));

/// A parsed expression.
pub struct Expression {
    program: Program,
}

/// The variables that an expression sees, by name.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    variables: Vec<(String, Value)>,
}

impl Scope {
    /// Adds a variable; a later one of the same name hides an earlier one.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.variables.retain(|(old, _)| old != name);
        self.variables.push((name.to_owned(), value));
        self
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

impl Expression {
    /// Parses CEL; `${ }` around the whole is accepted.
    pub fn parse(source: &str) -> Result<Self, String> {
        let text = bare(source);
        if text.len() > EXPRESSION_BYTES {
            return Err(format!("is {} bytes long, at most {EXPRESSION_BYTES} are allowed", text.len()));
        }
        let depth = nesting(text);
        if depth > 32 {
            return Err(format!("nests {depth} brackets deep, at most 32 are allowed"));
        }
        let program = ENV.compile(text).map_err(|errors| {
            let first = errors.errors.first();
            first.map_or_else(
                || "is not valid CEL".to_owned(),
                |e| {
                    format!(
                        "is not valid CEL at line {} column {}: {}",
                        e.pos.0,
                        e.pos.1,
                        e.msg.lines().next().unwrap_or_default()
                    )
                },
            )
        })?;
        let mut census = Census::default();
        census.visit(program.expression(), 0);
        census.verdict()?;
        Ok(Self { program })
    }

    /// Names of the variables it reads.
    pub fn variables(&self) -> BTreeSet<String> {
        self.program
            .references()
            .variables()
            .into_iter()
            .filter(|name| !name.starts_with('@'))
            .map(str::to_owned)
            .collect()
    }

    /// The members of a variable that it reads by a literal name: `documents.brief`, `documents["brief"]`.
    pub fn members(&self, variable: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        members(self.program.expression(), variable, &mut found);
        found
    }

    /// Evaluates; plain paths may read more than other expressions.
    pub fn evaluate(&self, scope: &Scope) -> Result<Value, String> {
        if let Some(path) = plain_path(self.program.expression()) {
            return resolve(&path, scope);
        }
        let used = self.variables();
        let mut context = Context::with_env(Arc::clone(&ENV));
        let mut bytes = 0;
        for name in &used {
            if let Some(value) = scope.get(name) {
                let value = self.narrowed(name, value);
                bytes += size(&value);
                context.add_variable_from_value(name.clone(), to_cel(&value));
            }
        }
        if bytes > EXPRESSION_DATA_BYTES {
            return Err(format!(
                "reads {bytes} bytes, at most {EXPRESSION_DATA_BYTES} are allowed; a plain path may read more"
            ));
        }
        let value = self.program.execute(&context).map_err(|e| e.to_string())?;
        let value = value.json().map_err(|_| "gives a value that JSON cannot hold".to_owned())?;
        let bytes = size(&value);
        if bytes > EXPRESSION_DATA_BYTES {
            return Err(format!("gives {bytes} bytes, at most {EXPRESSION_DATA_BYTES} are allowed"));
        }
        Ok(value)
    }

    /// Only the members that are named count against the limit, where all uses name one.
    fn narrowed(&self, name: &str, value: &Value) -> Value {
        let named = self.members(name);
        match value {
            Value::Object(map) if !named.is_empty() && matches!(name, "documents" | "steps") => {
                let kept = map.iter().filter(|(key, _)| named.contains(*key)).map(|(k, v)| (k.clone(), v.clone()));
                Value::Object(kept.collect())
            }
            other => other.clone(),
        }
    }
}

/// The CEL inside `${ }`, or the text itself.
fn bare(source: &str) -> &str {
    let text = source.trim();
    text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).map_or(text, str::trim)
}

/// Brackets and unary chains are what a recursive parser is afraid of.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest, mut run) = (0_usize, 0_usize, 0_usize);
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        run = if matches!(c, '!' | '-') { run + 1 } else { 0 };
        deepest = deepest.max(depth).max(run);
    }
    deepest
}

#[derive(Default)]
struct Census {
    nodes: usize,
    comprehensions: usize,
    nested: usize,
}

impl Census {
    fn visit(&mut self, expression: &IdedExpr, loops: usize) {
        self.nodes += 1;
        let loops = if matches!(expression.expr, Expr::Comprehension(_)) { loops + 1 } else { loops };
        if loops > 0 && matches!(expression.expr, Expr::Comprehension(_)) {
            self.comprehensions += 1;
            self.nested = self.nested.max(loops);
        }
        if self.nodes <= NODES * 8 {
            each_child(&expression.expr, &mut |child| self.visit(child, loops));
        }
    }

    fn verdict(&self) -> Result<(), String> {
        // A macro expands to about eight nodes more than its text shows.
        if self.nodes > NODES + self.comprehensions * 16 {
            return Err(format!("has {} nodes, at most {NODES} are allowed", self.nodes));
        }
        if self.comprehensions > COMPREHENSIONS {
            return Err(format!("has {} loops, at most {COMPREHENSIONS} are allowed", self.comprehensions));
        }
        if self.nested > NESTED_COMPREHENSIONS {
            return Err(format!("nests loops {} deep, at most {NESTED_COMPREHENSIONS} are allowed", self.nested));
        }
        Ok(())
    }
}

fn each_child<'a>(expression: &'a Expr, visit: &mut dyn FnMut(&'a IdedExpr)) {
    match expression {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Call(call) => {
            if let Some(target) = &call.target {
                visit(target);
            }
            call.args.iter().for_each(visit);
        }
        Expr::Comprehension(c) => {
            [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result].into_iter().for_each(visit);
        }
        Expr::List(list) => list.elements.iter().for_each(visit),
        Expr::Select(select) => visit(&select.operand),
        Expr::Map(map) => map.entries.iter().for_each(|entry| each_entry(&entry.expr, visit)),
        Expr::Struct(object) => object.entries.iter().for_each(|entry| each_entry(&entry.expr, visit)),
    }
}

fn each_entry<'a>(entry: &'a EntryExpr, visit: &mut dyn FnMut(&'a IdedExpr)) {
    match entry {
        EntryExpr::StructField(field) => visit(&field.value),
        EntryExpr::MapEntry(entry) => {
            visit(&entry.key);
            visit(&entry.value);
        }
    }
}

fn members(expression: &IdedExpr, variable: &str, found: &mut BTreeSet<String>) {
    let is_variable = |e: &IdedExpr| matches!(&e.expr, Expr::Ident(name) if name == variable);
    match &expression.expr {
        Expr::Select(select) if is_variable(&select.operand) => {
            found.insert(select.field.clone());
        }
        Expr::Call(call) => {
            let operands: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
            if let [container, key, ..] = operands.as_slice()
                && is_variable(container)
                && let Expr::Literal(LiteralValue::String(key)) = &key.expr
            {
                found.insert(key.inner().to_owned());
            }
        }
        _ => {}
    }
    each_child(&expression.expr, &mut |child| {
        members(child, variable, found);
    });
}

/// `a.b.c` as `[a, b, c]`, where the whole expression is nothing else.
fn plain_path(expression: &IdedExpr) -> Option<Vec<&str>> {
    match &expression.expr {
        Expr::Ident(name) => Some(vec![name]),
        Expr::Select(select) if !select.test => {
            let mut path = plain_path(&select.operand)?;
            path.push(&select.field);
            Some(path)
        }
        _ => None,
    }
}

fn resolve(path: &[&str], scope: &Scope) -> Result<Value, String> {
    let Some((root, rest)) = path.split_first() else {
        return Ok(Value::Null);
    };
    let mut value = scope.get(root).ok_or_else(|| format!("{root} is not known here"))?;
    for (depth, name) in rest.iter().enumerate() {
        let place = || path[..=depth].join(".");
        let Value::Object(map) = value else {
            return Err(format!("{} is {}, not an object with a field {name}", place(), kind(value)));
        };
        value = map.get(*name).ok_or_else(|| format!("{} has no field {name}", place()))?;
    }
    Ok(value.clone())
}

/// What a person calls the type of a JSON value.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// JSON text length, near enough, without writing it.
pub fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size(item) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(key, item)| key.len() + size(item) + 4).sum::<usize>() + 2,
    }
}

/// Integers become `int`: the crate's own conversion makes them unsigned, and then `n - 4` fails.
fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(b) => cel::Value::Bool(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => cel::Value::Int(i),
            (None, Some(u), _) => cel::Value::UInt(u),
            (None, None, f) => cel::Value::Float(f.unwrap_or_default()),
        },
        Value::String(s) => cel::Value::String(Arc::new(s.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(map) => {
            let map: HashMap<cel::objects::Key, cel::Value> =
                map.iter().map(|(key, item)| (cel::objects::Key::from(key.as_str()), to_cel(item))).collect();
            cel::Value::Map(cel::objects::Map { map: Arc::new(map) })
        }
    }
}

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

fn expand_text(text: &str, scope: &Scope) -> Result<Value, String> {
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

/// `epic-backlog` as expressions may spell it.
pub fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
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
}
