//! From what is written to a `Program`: one walk that parses, resolves and checks, so that nothing can be checked otherwise
//! than it is read. What only breaks a rule is a fault and still compiles; what cannot be read compiles to nothing. So a
//! rule that a later version adds is told to authors, and ends no run that was pinned before.

mod names;
mod parameters;
mod step;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::expression::Expression;
use super::free_value;
use super::order;
use super::program::{Program, RunContext, Step, StepList, StepPath};
use super::schema::Schema;
use crate::api::definition::Definition;
use crate::api::limits::ALL_STEPS;
use crate::api::step::{self as written, OnFailure, Order};
use crate::api::usage::Budget;
use crate::api::workflow::WorkflowSpec;
use crate::api::workflow_template::WorkflowTemplateSpec;
use names::{Maker, Producer, Visible};
use parameters::Parameters;

/// Faults that are told of one definition; who mends them is told of the rest.
const FAULTS: usize = 50;

/// A definition as it is written, in a template, in a run, or pinned.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub steps: &'a [written::Step],
    pub order: Order,
    pub output: Option<&'a str>,
    /// Where a step does not say.
    pub on_failure: OnFailure,
    pub budget: Option<&'a Budget>,
    pub parameters_schema: Option<&'a Map<String, Value>>,
    /// What the run gives, where that is known.
    pub parameters: Option<&'a Map<String, Value>>,
}

impl<'a> From<&'a WorkflowTemplateSpec> for Source<'a> {
    fn from(spec: &'a WorkflowTemplateSpec) -> Self {
        Self {
            steps: &spec.steps,
            order: spec.order.unwrap_or_default(),
            output: spec.output.as_deref(),
            on_failure: spec.on_failure.unwrap_or_default(),
            budget: spec.budget.as_ref(),
            parameters_schema: spec.parameters_schema.as_ref(),
            parameters: None,
        }
    }
}

impl<'a> From<&'a WorkflowSpec> for Source<'a> {
    fn from(spec: &'a WorkflowSpec) -> Self {
        Self {
            steps: &spec.steps,
            order: spec.order.unwrap_or_default(),
            output: spec.output.as_deref(),
            on_failure: spec.on_failure.unwrap_or_default(),
            budget: spec.budget.as_ref(),
            parameters_schema: spec.parameters_schema.as_ref(),
            parameters: Some(spec.parameters.as_ref().unwrap_or(&NONE)),
        }
    }
}

/// Parameters were held against their schema before it was pinned.
impl<'a> From<&'a Definition> for Source<'a> {
    fn from(pinned: &'a Definition) -> Self {
        Self {
            steps: &pinned.steps,
            order: pinned.order,
            output: pinned.output.as_deref(),
            on_failure: pinned.on_failure,
            budget: pinned.budget.as_ref(),
            parameters_schema: None,
            parameters: Some(&pinned.parameters),
        }
    }
}

static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// What a definition comes to.
pub struct Compilation {
    /// None where something in it cannot be read; then there are faults.
    pub steps: Option<StepList>,
    /// Each with its path.
    pub faults: Vec<String>,
    /// What is allowed and likely not meant.
    pub warnings: Vec<String>,
}

/// Says what is wrong with a schema that is within its limits.
pub type SchemaCheck<'a> = &'a dyn Fn(&Schema) -> Result<(), String>;

/// What cannot be read; the fault that says why is told.
struct Unreadable;
type Readable<T> = Result<T, Unreadable>;

impl Program {
    /// Compiles a definition that was validated before it was pinned; its schemas are not compiled again. An error names every
    /// place that this version cannot read.
    pub fn compile(definition: &Definition) -> Result<Self, Vec<String>> {
        let Compilation { steps, faults, .. } = compile(definition.into(), &|_| Ok(()));
        Ok(Self {
            run: RunContext {
                name: definition.workflow.clone(),
                uid: definition.workflow_uid.clone(),
                session: definition.session.clone(),
                project: definition.project.clone(),
                input: definition.input.clone(),
                parameters: definition.parameters.clone(),
            },
            steps: steps.ok_or(faults)?,
            timeout_seconds: definition.timeout_seconds,
            budget: definition.budget.clone().filter(Budget::is_some),
        })
    }
}

/// Compiles and checks; `check` says what a schema is worth.
pub fn compile(source: Source<'_>, check: SchemaCheck<'_>) -> Compilation {
    let mut walk = Walk {
        check,
        on_failure: source.on_failure,
        faults: Vec::new(),
        warnings: Vec::new(),
        names: BTreeSet::new(),
        parameters: Parameters::of(source),
        documents: names::wanted(source.steps),
        produced: Vec::new(),
        makers: Vec::new(),
    };
    let schema = source.parameters_schema.map(|schema| walk.schema("spec.parametersSchema", schema)).transpose();
    let all = count(source.steps);
    if all > ALL_STEPS {
        walk.fault(format!(
            "spec.steps: {all} steps in all, at most {ALL_STEPS} are allowed; move a part into a workflow of its own"
        ));
    }
    walk.budget("spec", source.budget);
    names::producers(source.steps, &mut Vec::new(), &mut walk.produced);
    let group = Group { place: "spec.steps", path: None, output: source.output.map(|text| ("spec.output", text)) };
    let listed = walk.steps((source.steps, source.order), &group, &Visible::default());
    walk.one_after_the_other();
    let (list, _) = walk.list(listed, &group);
    Compilation { steps: schema.and(list).ok(), faults: walk.faults, warnings: walk.warnings }
}

/// Steps of a definition, groups and their steps counted.
pub fn count(steps: &[written::Step]) -> usize {
    steps.iter().map(|s| 1 + count(&s.steps)).sum()
}

/// A list of steps: where it is written, and what it gives.
struct Group<'a> {
    place: &'a str,
    /// None for the run itself.
    path: Option<&'a StepPath>,
    output: Option<(&'a str, &'a str)>,
}

/// The steps of a list, and what can be seen behind all of them.
struct Listed {
    steps: Readable<Vec<Step>>,
    order: Order,
    sequence: Vec<usize>,
    inside: Visible,
}

/// Where a step stands in the definition.
struct StepLocation<'a> {
    /// The field, as faults name it: `spec.steps[0]`.
    at: &'a str,
    path: StepPath,
    /// Indexes of the steps of its list that it waits for.
    needs: Vec<usize>,
}

struct Walk<'a> {
    check: SchemaCheck<'a>,
    on_failure: OnFailure,
    faults: Vec<String>,
    warnings: Vec<String>,
    names: BTreeSet<String>,
    parameters: Parameters,
    /// Types of documents that steps ask for.
    documents: BTreeSet<String>,
    produced: Vec<Producer>,
    makers: Vec<Maker>,
}

impl Walk<'_> {
    fn steps(&mut self, (steps, order): (&[written::Step], Order), group: &Group<'_>, outer: &Visible) -> Listed {
        let mut compiled = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            let at = format!("{}[{index}]", group.place);
            self.needs(steps, order, step, &at);
            let mut seen = outer.clone();
            let before = order::ancestors(steps, order, index);
            seen.steps.extend(before.into_iter().filter(|n| *n != index).map(|n| steps[n].name.clone()));
            let path = StepPath::new(group.path, &step.name);
            let location = StepLocation { at: &at, path, needs: order::needed(steps, order, index) };
            compiled.push(self.step(step, location, &seen));
        }
        let sequence = order::sequence(steps, order);
        if sequence.len() < steps.len() {
            let circle: Vec<&str> =
                (0..steps.len()).filter(|n| !sequence.contains(n)).map(|n| steps[n].name.as_str()).collect();
            self.fault(format!(
                "{}: {} need each other, so that none of them can start",
                group.place,
                circle.join(", ")
            ));
        }
        let mut inside = outer.clone();
        inside.steps.extend(steps.iter().map(|s| s.name.clone()));
        Listed { steps: compiled.into_iter().collect(), order, sequence, inside }
    }

    /// The list of them, with what it gives; and what can be seen behind it.
    fn list(&mut self, listed: Listed, group: &Group<'_>) -> (Readable<StepList>, Visible) {
        let Listed { steps, order, sequence, inside } = listed;
        let output = group.output.map(|(place, text)| self.expression(place, text, &inside)).transpose();
        let list = steps.and_then(|steps| Ok(StepList { steps, order, sequence, output: output? }));
        (list, inside)
    }

    fn needs(&mut self, steps: &[written::Step], order: Order, step: &written::Step, place: &str) {
        if order == Order::Chain && !step.needs.is_empty() {
            self.fault(format!(
                "{place}.needs: is only allowed with order: Graph; in a Chain each step follows the one before it"
            ));
            return;
        }
        for (index, name) in step.needs.iter().enumerate() {
            if *name == step.name {
                self.fault(format!("{place}.needs[{index}]: a step cannot need itself"));
            } else if !steps.iter().any(|s| s.name == *name) {
                self.fault(format!("{place}.needs[{index}]: there is no step {name} in this list"));
            }
        }
    }

    /// An expression that reads only what can be seen from its place.
    fn expression(&mut self, place: &str, text: &str, seen: &Visible) -> Readable<Expression> {
        match Expression::parse(text) {
            Ok(expression) => {
                self.names(place, &expression, seen);
                Ok(expression)
            }
            Err(fault) => self.unreadable(format!("{place}: {fault}")),
        }
    }

    fn schema(&mut self, place: &str, schema: &Map<String, Value>) -> Readable<Schema> {
        if let Some(fault) = free_value::nesting_of(schema) {
            self.fault(format!("{place}: {fault}"));
        }
        let found = Schema::bounded(schema).and_then(|schema| (self.check)(&schema).map(|()| schema));
        found.or_else(|fault| self.unreadable(format!("{place}: {fault}")))
    }

    /// One that limits nothing is not meant.
    fn budget(&mut self, at: &str, budget: Option<&Budget>) {
        if budget.is_some_and(|budget| !budget.is_some()) {
            self.fault(format!("{at}.budget: limits nothing; give tokens, cost, or both"));
        }
    }

    fn fault(&mut self, fault: String) {
        if self.faults.len() < FAULTS {
            self.faults.push(fault);
        }
    }

    fn warn(&mut self, warning: String) {
        if self.warnings.len() < FAULTS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn unreadable<T>(&mut self, fault: String) -> Readable<T> {
        self.fault(fault);
        Err(Unreadable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn compiled(steps: &serde_json::Value) -> Result<Program, Vec<String>> {
        let steps = serde_json::from_value(steps.clone()).expect("steps");
        Program::compile(&Definition { steps, ..Definition::default() })
    }

    #[test]
    fn a_rule_ends_no_pinned_run_and_what_cannot_be_read_does() {
        for (what, steps) in [
            ("a name twice", json!([{"name": "a", "agentId": "x"}, {"name": "a", "agentId": "x"}])),
            ("a variable that is not known", json!([{"name": "a", "agentId": "x", "when": "nothing"}])),
            (
                "what belongs to another kind",
                json!([{"name": "a", "ask": {"question": "?"}, "retry": {"maxAttempts": 1}}]),
            ),
        ] {
            assert!(compiled(&steps).is_ok(), "{what}");
        }
        for (steps, fault) in [
            (json!([{"name": "a", "agentId": "x", "when": "1 +"}]), "spec.steps[0].when: is not valid CEL"),
            (json!([{"name": "a"}]), "spec.steps[0]: exactly one of agentId, ask and steps"),
            (
                json!([{"name": "g", "steps": [{"name": "a", "agentId": "x", "documents": ["No"]}]}]),
                "spec.steps[0].steps[0].documents[0]: ",
            ),
            (
                json!([{"name": "a", "agentId": "x", "outputSchema": {"$ref": "http://x/"}}]),
                "spec.steps[0].outputSchema: ",
            ),
        ] {
            let faults = compiled(&steps).expect_err(fault);
            assert!(faults.len() == 1 && faults[0].starts_with(fault), "{faults:?}");
        }
    }

    #[test]
    fn defaults_are_filled_in_and_references_resolved() {
        let program = compiled(&json!([{"name": "g", "order": "Graph", "steps": [
            {"name": "b", "needs": ["a"], "agentId": "x", "produces": {"type": "plan"}, "gate": {"onReject": "Revise"}},
            {"name": "a", "agentId": "x", "forEach": {"in": "[]", "as": "n", "tolerate": "10%"}}]}]))
        .expect("a program");
        let list = program.step("g").and_then(Step::group).expect("a group");
        assert_eq!((list.sequence.as_slice(), list.steps[0].needs.as_slice()), (&[1, 0][..], &[1][..]));
        let gate = program.step("g/b").and_then(Step::gate).expect("a gate");
        assert_eq!((gate.name.as_str(), gate.approvals, gate.max_rounds()), ("plan", 1, 3));
        let each = program.step("g/a").and_then(|s| s.for_each.as_ref()).expect("a forEach");
        assert_eq!((each.max_parallel, each.tolerate.of(25)), (10, 2));
        let paths: Vec<String> = program.all().iter().map(|step| step.path.to_string()).collect();
        assert_eq!(paths, ["g", "g/b", "g/a"]);
    }
}
