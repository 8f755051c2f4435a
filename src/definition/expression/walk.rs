//! What an expression reads, from its tree: free variables, members of them, plain paths.

use std::collections::BTreeSet;

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use serde_json::Value;

use super::vocabulary::{NAMESPACES, TYPES};
use super::{Scope, kind, meant};

pub fn each_child<'a>(expression: &'a Expr, visit: &mut dyn FnMut(&'a IdedExpr)) {
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

/// The same, to be changed.
pub fn each_child_mut(expression: &mut Expr, visit: &mut dyn FnMut(&mut IdedExpr)) {
    let entry = |entry: &mut EntryExpr, visit: &mut dyn FnMut(&mut IdedExpr)| match entry {
        EntryExpr::StructField(field) => visit(&mut field.value),
        EntryExpr::MapEntry(entry) => {
            visit(&mut entry.key);
            visit(&mut entry.value);
        }
    };
    match expression {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| visit(target));
            call.args.iter_mut().for_each(visit);
        }
        Expr::Comprehension(c) => {
            [&mut c.iter_range, &mut c.accu_init, &mut c.loop_cond, &mut c.loop_step, &mut c.result]
                .into_iter()
                .for_each(visit);
        }
        Expr::List(list) => list.elements.iter_mut().for_each(visit),
        Expr::Select(select) => visit(&mut select.operand),
        Expr::Map(map) => map.entries.iter_mut().for_each(|e| entry(&mut e.expr, visit)),
        Expr::Struct(object) => object.entries.iter_mut().for_each(|e| entry(&mut e.expr, visit)),
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

/// What an expression reads of its scope.
#[derive(Clone, Debug, Default)]
pub struct Reads {
    /// Free variables: those of its own loops are none.
    pub variables: BTreeSet<String>,
    /// Variable and member, where the member is named literally; `workflow.parameters` counts as one.
    pub members: BTreeSet<(String, String)>,
    /// Those of them that must be there.
    pub needed: BTreeSet<(String, String)>,
    /// Variables that are used as a whole somewhere.
    pub whole: BTreeSet<String>,
}

pub fn reads(tree: &IdedExpr) -> Reads {
    let mut found = Reads::default();
    found.visit(tree, &mut Vec::new());
    found
}

impl Reads {
    fn reads(&mut self, by: &Expr, owner: &str, member: &str) {
        let optional = match by {
            Expr::Select(select) => select.test,
            Expr::Call(call) => call.func_name != operators::INDEX,
            _ => false,
        };
        let read = (owner.to_owned(), member.to_owned());
        if !optional {
            self.needed.insert(read.clone());
        }
        self.members.insert(read);
    }

    fn visit<'a>(&mut self, expression: &'a IdedExpr, bound: &mut Vec<&'a str>) {
        if let Some((operand, Key::Name(name))) = access(&expression.expr)
            && member(&operand.expr) == Some(("workflow", "parameters"))
        {
            self.reads(&expression.expr, "workflow.parameters", name);
        }
        if let Some((variable, member)) = member(&expression.expr)
            && !bound.contains(&variable)
        {
            self.variables.insert(variable.to_owned());
            self.reads(&expression.expr, variable, member);
            return;
        }
        match &expression.expr {
            Expr::Ident(name) => {
                let own = name.starts_with('@') || bound.contains(&name.as_str()) || TYPES.contains(&name.as_str());
                if !own {
                    self.variables.insert(name.clone());
                    self.whole.insert(name.clone());
                }
            }
            Expr::Comprehension(c) => {
                self.visit(&c.iter_range, bound);
                self.visit(&c.accu_init, bound);
                let before = bound.len();
                bound.push(&c.accu_var);
                self.visit(&c.result, bound);
                bound.push(&c.iter_var);
                bound.extend(c.iter_var2.as_deref());
                self.visit(&c.loop_cond, bound);
                self.visit(&c.loop_step, bound);
                bound.truncate(before);
            }
            Expr::Call(call) if is_namespaced(call) => call.args.iter().for_each(|a| self.visit(a, bound)),
            other => each_child(other, &mut |child| self.visit(child, bound)),
        }
    }
}

fn is_namespaced(call: &CallExpr) -> bool {
    let target = call.target.as_ref().map(|target| &target.expr);
    matches!(target, Some(Expr::Ident(space)) if NAMESPACES.contains(&space.as_str()))
}

/// `v.m`, `v["m"]`, `v.?m`, `v[?"m"]`.
fn member(expression: &Expr) -> Option<(&str, &str)> {
    let (operand, name) = access(expression)?;
    match (&operand.expr, name) {
        (Expr::Ident(variable), Key::Name(name)) => Some((variable, name)),
        _ => None,
    }
}

#[derive(Clone, Copy)]
enum Key<'a> {
    Name(&'a str),
    Index(i64),
}

/// One step into a value, by a literal name or index.
fn access(expression: &Expr) -> Option<(&IdedExpr, Key<'_>)> {
    match expression {
        Expr::Select(select) => Some((&select.operand, Key::Name(&select.field))),
        Expr::Call(call) if is_access(&call.func_name) => {
            let mut operands = call.target.as_deref().into_iter().chain(&call.args);
            let (container, key) = (operands.next()?, operands.next()?);
            match &key.expr {
                Expr::Literal(LiteralValue::String(name)) => Some((container, Key::Name(name.inner()))),
                Expr::Literal(LiteralValue::Int(index)) => Some((container, Key::Index(*index.inner()))),
                _ => None,
            }
        }
        _ => None,
    }
}

fn is_access(function: &str) -> bool {
    [operators::INDEX, operators::OPT_INDEX, operators::OPT_SELECT].contains(&function)
}

/// `a.b.c`, `a["b"][0]`, `a.?b.c.orValue([])`: resolved without CEL.
#[derive(Clone, Debug)]
pub struct Path {
    root: String,
    steps: Vec<Access>,
    /// What `orValue` gives.
    otherwise: Option<Value>,
}

#[derive(Clone, Debug)]
struct Access {
    key: OwnedKey,
    optional: bool,
}

#[derive(Clone, Debug)]
enum OwnedKey {
    Name(String),
    Index(i64),
}

impl Path {
    /// Where the whole expression is nothing else. Optional ones must end with `orValue`: CEL knows what to say else.
    pub fn of(tree: &IdedExpr) -> Option<Self> {
        let (chain, otherwise) = match &tree.expr {
            Expr::Call(call) if call.func_name == "orValue" => {
                (call.target.as_deref()?, Some(literal(&call.args.first()?.expr)?))
            }
            _ => (tree, None),
        };
        let mut path = Self { root: String::new(), steps: Vec::new(), otherwise };
        path.follow(chain)?;
        let optional = path.steps.iter().any(|step| step.optional);
        (optional == path.otherwise.is_some()).then_some(path)
    }

    /// Whether it is nothing but this member of this variable.
    pub fn is(&self, variable: &str, member: &str) -> bool {
        let only = match self.steps.as_slice() {
            [Access { key: OwnedKey::Name(name), .. }] => name == member,
            _ => false,
        };
        only && self.root == variable
    }

    fn follow(&mut self, chain: &IdedExpr) -> Option<()> {
        if let Expr::Ident(name) = &chain.expr {
            self.root.clone_from(name);
            return Some(());
        }
        if matches!(&chain.expr, Expr::Select(select) if select.test) {
            return None;
        }
        let (operand, key) = access(&chain.expr)?;
        self.follow(operand)?;
        let optional = matches!(&chain.expr, Expr::Call(call) if call.func_name != operators::INDEX);
        // Behind an optional step every step is one.
        let optional = optional || self.steps.last().is_some_and(|step| step.optional);
        let key = match key {
            Key::Name(name) => OwnedKey::Name(name.to_owned()),
            Key::Index(index) => OwnedKey::Index(index),
        };
        self.steps.push(Access { key, optional });
        Some(())
    }

    /// What it names, not copied yet: how large it is comes first.
    pub fn resolve<'v>(&'v self, scope: &'v Scope) -> Result<&'v Value, String> {
        let mut value = scope.get(&self.root).ok_or_else(|| format!("{} is not known here", self.root))?;
        for (depth, step) in self.steps.iter().enumerate() {
            let spelt = match (&step.key, value) {
                (OwnedKey::Name(name), Value::Object(all)) if self.is_parameters(depth) => meant(all, name),
                _ => None,
            };
            let inner = spelt.map_or_else(|| enter(value, &step.key), |name| value.get(name));
            match (inner, &self.otherwise) {
                (Some(inner), _) => value = inner,
                (None, Some(otherwise)) if step.optional => return Ok(otherwise),
                (None, _) => return Err(self.absent(depth, value)),
            }
        }
        Ok(value)
    }

    /// Whether what was entered so far are the parameters of the run.
    fn is_parameters(&self, depth: usize) -> bool {
        let first = || matches!(&self.steps[0].key, OwnedKey::Name(name) if name == "parameters");
        match (&*self.root, depth) {
            ("parameters", 0) => true,
            ("workflow", 1) => first(),
            _ => false,
        }
    }

    fn absent(&self, depth: usize, value: &Value) -> String {
        let mut place = self.root.clone();
        for step in &self.steps[..depth] {
            match &step.key {
                OwnedKey::Name(name) => place.push_str(&format!(".{name}")),
                OwnedKey::Index(index) => place.push_str(&format!("[{index}]")),
            }
        }
        match (&self.steps[depth].key, value) {
            (OwnedKey::Name(name), Value::Object(_)) => format!("{place} has no field {name}"),
            (OwnedKey::Name(name), other) => format!("{place} is {}, not an object with a field {name}", kind(other)),
            (OwnedKey::Index(index), Value::Array(items)) => {
                format!("{place} has {} items, none at {index}", items.len())
            }
            (OwnedKey::Index(_), other) => format!("{place} is {}, not a list", kind(other)),
        }
    }
}

fn enter<'v>(value: &'v Value, key: &OwnedKey) -> Option<&'v Value> {
    match (key, value) {
        (OwnedKey::Name(name), Value::Object(map)) => map.get(name),
        (OwnedKey::Index(index), Value::Array(items)) => items.get(usize::try_from(*index).ok()?),
        _ => None,
    }
}

fn literal(expression: &Expr) -> Option<Value> {
    Some(match expression {
        Expr::Literal(LiteralValue::String(text)) => Value::String(text.inner().to_owned()),
        Expr::Literal(LiteralValue::Int(n)) => Value::from(*n.inner()),
        Expr::Literal(LiteralValue::Boolean(b)) => Value::Bool(*b.inner()),
        Expr::Literal(LiteralValue::Null) => Value::Null,
        Expr::List(list) if list.elements.is_empty() => Value::Array(Vec::new()),
        Expr::Map(map) if map.entries.is_empty() => Value::Object(serde_json::Map::new()),
        _ => return None,
    })
}
