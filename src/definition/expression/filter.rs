//! The static filter: what is refused from the text alone, before anything is evaluated. It keeps what honest
//! expressions cost small; what it cannot see, the process that evaluates bounds.

use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, LiteralValue, operators};

use super::vocabulary::{FUNCTIONS, MACROS, NAMESPACES};
use super::walk::each_child;

const NODES: usize = 200;
const LOOPS: usize = 4;
const NESTED: usize = 2;
/// Texts that are joined in loops, in bytes, and how often two parts of items are: each may double what is there.
const JOINED_BYTES: usize = 128;
const JOINS: usize = 3;

/// Calls whose result is not longer than what they read, but for a few digits.
const NEUTRAL: [&str; 5] = ["lowerAscii", "string", "substring", "trim", "upperAscii"];
/// Calls whose result is longer than what they read.
const GROWING: [&str; 3] = ["format", "join", "replace"];

/// The first thing to refuse, with what to do instead.
pub fn check(tree: &IdedExpr, source: &str) -> Result<(), String> {
    let mut census = Census { source, nodes: 0, loops: 0, items: Vec::new(), bytes: 0, joins: 0, refusal: None };
    census.visit(tree, 0);
    if let Some(refusal) = census.refusal {
        return Err(refusal);
    }
    if census.nodes > NODES {
        return Err(format!("has more than {NODES} nodes; let a step before compute a part of it"));
    }
    if census.loops > LOOPS {
        return Err(format!(
            "has {} loops, at most {LOOPS} are allowed; let a step before compute a part of it",
            census.loops
        ));
    }
    Ok(())
}

struct Census<'a> {
    source: &'a str,
    nodes: usize,
    loops: usize,
    /// What the loops around go over, innermost last; nothing for one that only binds a name.
    items: Vec<String>,
    bytes: usize,
    joins: usize,
    refusal: Option<String>,
}

/// One side of a `+` in a loop.
enum Part {
    /// So many bytes.
    Text(usize),
    /// A field of the loop's own item, or a sum of such: all of them together are no longer than the list.
    Item,
    Other,
}

impl Census<'_> {
    /// `depth` is how many loops run this.
    fn visit(&mut self, expression: &IdedExpr, depth: usize) {
        self.nodes += 1;
        if self.nodes > NODES || self.refusal.is_some() {
            return;
        }
        match &expression.expr {
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth),
            Expr::Call(call) => self.call(call, depth),
            other => each_child(other, &mut |child| self.visit(child, depth)),
        }
    }

    fn comprehension(&mut self, c: &ComprehensionExpr, depth: usize) {
        // `sortBy` and `optMap` expand to loops that run over nothing and bind a name once.
        let binds = matches!(&c.iter_range.expr, Expr::List(list) if list.elements.is_empty())
            && c.iter_var.starts_with(['#', '@']);
        if binds {
            self.visit(&c.accu_init, depth);
            let inside = if c.accu_var.starts_with('@') { depth } else { self.enter(depth, c) };
            self.items.push(String::new());
            self.visit(&c.result, inside);
            self.items.pop();
            return;
        }
        self.visit(&c.iter_range, depth);
        let inside = self.enter(depth, c);
        self.items.push(c.iter_var.clone());
        match appended(&c.loop_step, &c.accu_var) {
            Some((condition, item)) => {
                condition.into_iter().chain([item]).for_each(|part| self.visit(part, inside));
            }
            None => self.visit(&c.loop_step, inside),
        }
        self.items.pop();
    }

    /// One loop more; a list that is built in every turn of another loop is refused.
    fn enter(&mut self, depth: usize, c: &ComprehensionExpr) -> usize {
        self.loops += 1;
        if depth >= NESTED {
            self.refuse(format!(
                "nests loops {} deep, at most {NESTED} are allowed; let a step before flatten the list",
                depth + 1
            ));
        }
        if depth > 0 && matches!(c.accu_init.expr, Expr::List(_)) {
            self.refuse(format!(
                "builds a list (map, filter) inside another loop{}; use exists or all there, or let a step before build it",
                self.place(&["map", "filter"])
            ));
        }
        depth + 1
    }

    fn call(&mut self, call: &CallExpr, depth: usize) {
        let name = full_name(call);
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') && !name.starts_with('_');
        if is_name {
            self.known(&name, call);
        }
        if depth > 0 && GROWING.contains(&call.func_name.as_str()) {
            self.refuse(format!(
                "calls {name} inside a loop{}; call it once, on the list that the loop gives",
                self.place(&[&name])
            ));
        }
        if depth > 0 && call.func_name == operators::ADD && !call.args.iter().any(is_number) && !self.may_join(call) {
            self.refuse(format!(
                "adds with + inside a loop{}, where the sides must be fields of the loop's own item, texts ({JOINED_BYTES} bytes in all) or numbers, and at most {JOINS} times two fields; join the rest outside of the loop, or in the agent",
                self.place_of(" + ").or_else(|| self.place_of("+")).unwrap_or_default()
            ));
        }
        let namespace = name.contains('.');
        call.target.iter().filter(|_| !namespace).for_each(|target| self.visit(target, depth));
        call.args.iter().for_each(|argument| self.visit(argument, depth));
    }

    /// Whether what a `+` in a loop gives is bounded by the list that the loop goes over.
    fn may_join(&mut self, call: &CallExpr) -> bool {
        let mut texts = false;
        for side in &call.args {
            match self.part(side) {
                Part::Text(bytes) => {
                    self.bytes += bytes;
                    texts = true;
                }
                Part::Item => {}
                Part::Other => return false,
            }
        }
        self.joins += usize::from(!texts);
        self.bytes <= JOINED_BYTES && self.joins <= JOINS
    }

    fn part(&self, side: &IdedExpr) -> Part {
        match &side.expr {
            Expr::Literal(LiteralValue::String(text)) => Part::Text(text.inner().len()),
            // Its own sides are looked at when it is met.
            Expr::Call(call) if call.func_name == operators::ADD => Part::Item,
            other if self.is_of_item(other) => Part::Item,
            _ => Part::Other,
        }
    }

    fn is_of_item(&self, expression: &Expr) -> bool {
        match expression {
            Expr::Ident(name) => self.items.last() == Some(name),
            Expr::Select(select) => self.is_of_item(&select.operand.expr),
            Expr::Call(call) if [operators::INDEX, operators::OPT_INDEX].contains(&call.func_name.as_str()) => {
                call.args.first().is_some_and(|of| self.is_of_item(&of.expr))
            }
            Expr::Call(call) if NEUTRAL.contains(&call.func_name.as_str()) => {
                call.target.as_deref().or(call.args.first()).is_some_and(|of| self.is_of_item(&of.expr))
            }
            _ => false,
        }
    }

    fn known(&mut self, name: &str, call: &CallExpr) {
        if MACROS.contains(&name) {
            let given = call.args.len();
            self.refuse(format!(
                "calls {name} with {given} arguments{}; see cel.dev for its form",
                self.place(&[name])
            ));
        } else if !FUNCTIONS.contains(&name) {
            self.refuse(format!(
                "calls {name}{}, which is not known; known are {}",
                self.place(&[name]),
                [&FUNCTIONS[..], &MACROS].concat().join(", ")
            ));
        }
    }

    fn refuse(&mut self, words: String) {
        self.refusal.get_or_insert(words);
    }

    /// Where a call of one of these stands first; the tree itself does not know.
    fn place(&self, names: &[&str]) -> String {
        names.iter().find_map(|name| self.place_of(&format!("{name}("))).unwrap_or_default()
    }

    fn place_of(&self, words: &str) -> Option<String> {
        let at = self.source.find(words)?;
        let before = &self.source[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        Some(format!(" at line {line} column {column}"))
    }
}

/// What `map` and `filter` append to their list, and on which condition: their `+` is the parser's own.
fn appended<'a>(step: &'a IdedExpr, list: &str) -> Option<(Option<&'a IdedExpr>, &'a IdedExpr)> {
    let Expr::Call(call) = &step.expr else { return None };
    match (call.func_name.as_str(), call.args.as_slice()) {
        (operators::CONDITIONAL, [condition, then, _]) => appended(then, list).map(|(_, item)| (Some(condition), item)),
        (operators::ADD, [sum, item]) if matches!(&sum.expr, Expr::Ident(name) if name == list) => Some((None, item)),
        _ => None,
    }
}

fn is_number(expression: &IdedExpr) -> bool {
    matches!(&expression.expr, Expr::Literal(LiteralValue::Int(_) | LiteralValue::UInt(_) | LiteralValue::Double(_)))
}

/// `math.abs` of `math.abs(x)`, `size` of `x.size()`.
fn full_name(call: &CallExpr) -> String {
    match call.target.as_ref().map(|target| &target.expr) {
        Some(Expr::Ident(space)) if NAMESPACES.contains(&space.as_str()) => format!("{space}.{}", call.func_name),
        _ => call.func_name.clone(),
    }
}
