//! Names with hyphens. An expression reads `a-b` as a minus, so such a name is written `a_b` where it is that of a step, a
//! document or a parameter, and in brackets wherever it stands.

use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};
use serde_json::{Map, Value};

use super::walk::each_child_mut;
use super::{meant, underscored};

/// Writes the names of parameters as the run gave them.
pub fn respell(tree: &mut IdedExpr, variables: &Map<String, Value>) {
    each_child_mut(&mut tree.expr, &mut |child| respell(child, variables));
    match &mut tree.expr {
        Expr::Select(select) => {
            if let Some(key) = parameters(&select.operand.expr, variables).and_then(|all| meant(all, &select.field)) {
                key.clone_into(&mut select.field);
            }
        }
        Expr::Call(call)
            if [operators::INDEX, operators::OPT_INDEX, operators::OPT_SELECT].contains(&&*call.func_name) =>
        {
            let [operand, key] = call.args.as_mut_slice() else { return };
            let Expr::Literal(LiteralValue::String(name)) = &mut key.expr else { return };
            if let Some(key) = parameters(&operand.expr, variables).and_then(|all| meant(all, name.inner())) {
                *name = key.to_owned().into();
            }
        }
        _ => {}
    }
}

/// The parameters of the run, if that is what stands here.
fn parameters<'v>(expression: &Expr, variables: &'v Map<String, Value>) -> Option<&'v Map<String, Value>> {
    match expression {
        Expr::Ident(name) if name == "parameters" => variables.get(name)?.as_object(),
        Expr::Select(select) if select.field == "parameters" && !select.test => {
            let workflow = matches!(&select.operand.expr, Expr::Ident(name) if name == "workflow");
            variables.get("workflow").filter(|_| workflow)?.get("parameters")?.as_object()
        }
        _ => None,
    }
}

/// A minus between two words, without a space, behind a dot: probably the hyphen of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hyphen {
    /// What stands before the dot: `steps`, `parameters.all`.
    pub owner: String,
    /// `run-id`.
    pub name: String,
}

impl Hyphen {
    /// The words that the expression reads as variables.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.name.split('-').skip(1)
    }

    /// What it reads as the member.
    pub fn head(&self) -> &str {
        self.name.split('-').next().unwrap_or_default()
    }

    /// Whether the owner's members are names of steps, documents or parameters.
    pub fn is_of_names(&self) -> bool {
        matches!(&*self.owner, "steps" | "documents" | "parameters" | "workflow.parameters")
    }

    pub fn remedy(&self) -> String {
        let Self { owner, name } = self;
        let or = if self.is_of_names() { format!(" or {owner}.{}", underscored(name)) } else { String::new() };
        format!("{owner}.{name} is read as a minus; a name with a hyphen is written in brackets: {owner}['{name}']{or}")
    }
}

/// All in a text, but for what stands in quotes.
pub fn hyphens(source: &str) -> Vec<Hyphen> {
    let bytes = source.as_bytes();
    let word = |at: usize| bytes.get(at).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let mut found: Vec<Hyphen> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if let quote @ (b'"' | b'\'') = bytes[at] {
            at = behind_quote(bytes, at, quote);
            continue;
        }
        let start = at;
        while word(at) {
            at += 1;
        }
        let mut end = at;
        while end > start && bytes.get(end) == Some(&b'-') && word(end + 1) {
            end += 1;
            while word(end) {
                end += 1;
            }
        }
        if end > at {
            let owner = owner(&source[..start]);
            found.extend(owner.map(|owner| Hyphen { owner: owner.to_owned(), name: source[start..end].to_owned() }));
        }
        at = end.max(start + 1);
    }
    found
}

fn behind_quote(bytes: &[u8], start: usize, quote: u8) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// What stands before the dot that a text ends with.
fn owner(before: &str) -> Option<&str> {
    let before = before.strip_suffix('?').unwrap_or(before);
    let before = before.strip_suffix('.')?;
    let mut depth = 0_usize;
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let begins = before.char_indices().rev().find(|(at, c)| {
        match c {
            ']' => depth += 1,
            '[' => depth = depth.saturating_sub(1),
            _ => {}
        }
        // A hyphen that was meant as one, too.
        let inside = || before[..*at].ends_with(word) && before[at + 1..].starts_with(word);
        let belongs = word(*c) || matches!(c, '.' | '?' | '[' | ']') || *c == '-' && inside();
        depth == 0 && !belongs
    });
    let from = begins.map_or(0, |(at, c)| at + c.len_utf8());
    Some(&before[from..]).filter(|owner| owner.starts_with(|c: char| c.is_alphabetic() || c == '_'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_may_have_underscores_for_its_hyphens() {
        for (members, name, expected) in [
            (json!({"dry-run": 1}), "dry_run", Some("dry-run")),
            (json!({"dry-run": 1, "dry_run": 2}), "dry_run", Some("dry_run")),
            (json!({"a-b_c": 1, "a_b-c": 2}), "a_b_c", None),
            (json!({"dry": 1}), "dry_run", None),
        ] {
            assert_eq!(meant(members.as_object().expect("an object"), name), expected, "{members}");
        }
    }

    #[test]
    fn what_was_meant_as_a_hyphen_is_found() {
        for (source, expected) in [
            ("parameters.dry-run", &[("parameters", "dry-run")][..]),
            ("steps.a-b-c.output.run-id + 1", &[("steps", "a-b-c"), ("steps.a-b-c.output", "run-id")]),
            ("documents.?epic-backlog.orValue(1)", &[("documents", "epic-backlog")]),
            ("parameters.all[0].run-id", &[("parameters.all[0]", "run-id")]),
            ("parameters['x-y'].run-id", &[("parameters['x-y']", "run-id")]),
            ("size(epic.run-id) > 1", &[("epic", "run-id")]),
            ("steps.draft-2.output", &[("steps", "draft-2")]),
            ("parameters.n -id", &[]),
            ("parameters.n - id", &[]),
            ("parameters['run-id'] + 'x.run-id'", &[]),
            ("a-b", &[]),
            ("f(x).y-z", &[]),
            ("é.ü-x", &[]),
            ("'", &[]),
            ("x.y-", &[]),
        ] {
            let found = hyphens(source);
            let found: Vec<(&str, &str)> = found.iter().map(|h| (h.owner.as_str(), h.name.as_str())).collect();
            assert_eq!(found, expected, "{source}");
        }
        assert_eq!(
            hyphens("parameters.dry-run")[0].remedy(),
            "parameters.dry-run is read as a minus; a name with a hyphen is written in brackets: parameters['dry-run'] or parameters.dry_run"
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_stops_the_search(text in "[a-zé.?\\[\\]'\"\\\\ -]{0,60}") {
            let _ = hyphens(&text);
        }
    }
}
