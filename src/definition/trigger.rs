//! What a Trigger says, checked and compiled: which events are meant, and what the run gets of them. The text of an
//! author is an expression; what an event brings is data, and never read as one.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::expression::{Evaluate, Expression, Room, Scope, Template, TextTemplate, kind};
use super::free_value;
use super::schedule::Schedule;
use crate::api::limits::{EXPRESSION_DATA_BYTES, PARAMETERS_BYTES, WORKFLOW_INPUT_BYTES};
use crate::api::trigger::{TriggerSpec, TriggeredRun};

/// What expressions of a Trigger may name.
pub const EVENT: &str = "event";
pub const SCHEDULED_TIME: &str = "scheduledTime";

/// A Trigger without faults.
#[derive(Clone, Debug)]
pub struct Program {
    pub schedule: Option<Schedule>,
    filter: Option<Expression>,
    input: Option<TextTemplate>,
    parameters: Vec<(String, Template)>,
    session: Option<TextTemplate>,
}

/// The fields of a run that a Trigger fills in, from the event or the scheduled time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunArguments {
    pub input: Option<String>,
    pub parameters: Option<Map<String, Value>>,
    /// As the author's expression gave it.
    pub session: Option<String>,
}

impl Program {
    /// All faults at once, each with its path.
    pub fn compile(spec: &TriggerSpec) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let known = if spec.event.is_some() { EVENT } else { SCHEDULED_TIME };
        let filter = spec.event.as_ref().and_then(|event| event.filter.as_deref());
        let filter = filter.and_then(|text| match Expression::parse(text) {
            Ok(expression) => {
                name("spec.event.filter", &expression, known, &mut faults);
                Some(expression)
            }
            Err(fault) => {
                faults.push(format!("spec.event.filter: {fault}"));
                None
            }
        });
        let TriggeredRun { input, parameters, session, .. } = &spec.run;
        let mut heard = |place: &str, found: Result<&Expression, String>| match found {
            Ok(expression) => name(place, expression, known, &mut faults),
            Err(fault) => faults.push(format!("{place}: {fault}")),
        };
        let mut text = |text: &Option<String>, place: &str| {
            text.as_deref().and_then(|text| TextTemplate::parse(text, place, &mut heard))
        };
        let (input, session) = (text(input, "spec.run.input"), text(session, "spec.run.session"));
        let none = Map::new();
        let given = parameters.as_ref().unwrap_or(&none);
        let parameters = Template::members(given, "spec.run.parameters", &mut heard).unwrap_or_default();
        faults.extend(free_value::faults(&Value::Object(given.clone()), "spec.run.parameters"));
        let schedule = spec.schedule.as_ref().map(Schedule::parse).transpose();
        let schedule = schedule.unwrap_or_else(|found| {
            faults.extend(found);
            None
        });
        if faults.is_empty() { Ok(Self { schedule, filter, input, parameters, session }) } else { Err(faults) }
    }

    /// How many expressions there are at most that may each take long once.
    pub fn expressions(&self) -> usize {
        let mut found = Vec::new();
        self.parameters.iter().for_each(|(_, template)| template.each_expression(&mut found));
        let texts = self.input.iter().chain(&self.session).map(|text| text.expressions().count());
        found.len() + texts.sum::<usize>() + usize::from(self.filter.is_some())
    }

    /// Whether the filter takes an event; the error says why it cannot be asked.
    pub fn takes(&self, event: &Value, evaluator: &Arc<dyn Evaluate>) -> Result<bool, String> {
        let Some(filter) = &self.filter else { return Ok(true) };
        let scope = Scope::new(evaluator).with(EVENT, event.clone());
        match filter.evaluate(&scope) {
            Ok(Value::Bool(takes)) => Ok(takes),
            Ok(other) => Err(format!("spec.event.filter: gives {}, not true or false", kind(&other))),
            Err(fault) => Err(format!("spec.event.filter: {fault}")),
        }
    }

    /// Expands the templates of `spec.run` for one event or scheduled time. The error names the field of the Trigger.
    pub fn run_arguments(
        &self,
        variable: &str,
        value: Value,
        evaluator: &Arc<dyn Evaluate>,
    ) -> Result<RunArguments, String> {
        let scope = Scope::new(evaluator).with(variable, value);
        let text = |template: &Option<TextTemplate>, place: &str, bound: usize| {
            let mut room = Room::of(bound);
            let text = template.as_ref().map(|template| template.expand_to_text(&scope, &mut room));
            text.transpose().map_err(|fault| with_hint(place, &fault, &room))
        };
        let input = text(&self.input, "spec.run.input", WORKFLOW_INPUT_BYTES)?;
        let session = text(&self.session, "spec.run.session", EXPRESSION_DATA_BYTES)?;
        if session.as_deref() == Some("") {
            return Err("spec.run.session: gives an empty text; name something that the event has".to_owned());
        }
        let mut parameters = Map::new();
        let mut room = Room::of(PARAMETERS_BYTES);
        for (name, template) in &self.parameters {
            let value = template.expand(&scope, &mut room);
            let value = value.map_err(|fault| with_hint(&format!("spec.run.parameters.{name}"), &fault, &room))?;
            parameters.insert(name.clone(), value);
        }
        let parameters = Value::Object(parameters);
        let bytes = parameters.to_string().len();
        if bytes > PARAMETERS_BYTES {
            return Err(format!(
                "spec.run.parameters: give {bytes} bytes, at most {PARAMETERS_BYTES} are allowed; pick what is needed of the event"
            ));
        }
        if let Some(fault) = free_value::nesting(&parameters) {
            return Err(format!("spec.run.parameters: {fault}"));
        }
        let Value::Object(parameters) = parameters else {
            return Err("spec.run.parameters: give no object".to_owned());
        };
        Ok(RunArguments { input, parameters: Some(parameters).filter(|all| !all.is_empty()), session })
    }
}

/// A fault with the field that has it, and a hint where the expansion has become too large.
fn with_hint(place: &str, fault: &str, room: &Room) -> String {
    format!("{place}: {fault}{}", if room.is_spent() { "; pick what is needed of the event" } else { "" })
}

/// Whether an expression names only what there is.
fn name(place: &str, expression: &Expression, known: &str, faults: &mut Vec<String>) {
    for other in expression.variables().iter().filter(|name| *name != known) {
        faults.push(format!("{place}: {other} is not known here; known is {known}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::expression::InProcess;
    use serde_json::json;

    fn spec(spec: Value) -> TriggerSpec {
        serde_json::from_value(spec).expect("a spec")
    }

    fn event() -> Value {
        json!({"specversion": "1.0", "id": "7", "source": "/s", "type": "push",
            "data": {"ref": "main", "n": 3, "evil": "${ event.id } $(rm -rf /)", "list": [1, 2]}})
    }

    /// An object of so many levels around a text.
    fn around(text: &str, levels: usize) -> Value {
        (0..levels).fold(json!(text), |inner, _| json!({"a": inner}))
    }

    #[test]
    fn what_an_event_brings_is_data() {
        let evaluator: Arc<dyn Evaluate> = Arc::new(InProcess);
        let run = |run: Value| {
            let mut run = run;
            run["templateRef"] = json!({"name": "t"});
            let program = Program::compile(&spec(json!({"event": {}, "run": run}))).expect("no faults");
            program.run_arguments(EVENT, event(), &evaluator)
        };
        let arguments = run(json!({"input": "Look at ${ event.data.ref }: ${ event.data.evil }", "session": "${ event.data.n }",
            "parameters": {"n": "${ event.data.n }", "all": {"list": ["${ event.data.list }"]}, "evil": "${ event.data.evil }", "plain": 1}}))
        .expect("it is given");
        assert_eq!(arguments.input.as_deref(), Some("Look at main: ${ event.id } $(rm -rf /)"));
        assert_eq!(arguments.session.as_deref(), Some("3"));
        let parameters = json!({"n": 3, "all": {"list": [[1, 2]]}, "evil": "${ event.id } $(rm -rf /)", "plain": 1});
        assert_eq!(arguments.parameters.map(Value::Object), Some(parameters));
        assert_eq!(run(json!({})), Ok(RunArguments::default()));
        for (wrong, words) in [
            (json!({"input": "${ event.data.nothing }"}), "spec.run.input: "),
            (json!({"session": "${ event.data.nothing }"}), "spec.run.session: "),
            (json!({"session": "${ '' }"}), "empty"),
            (json!({"parameters": {"a": "${ event.data.ref + 1 }"}}), "spec.run.parameters.a: "),
            (json!({"parameters": around("${ event.data.list }", 64)}), "spec.run.parameters: nests 65 levels"),
        ] {
            let told = run(wrong.clone()).expect_err("a fault");
            assert!(told.contains(words), "{wrong}: {told}");
        }
    }

    #[test]
    fn a_filter_that_fails_takes_nothing_and_says_why() {
        let evaluator: Arc<dyn Evaluate> = Arc::new(InProcess);
        let takes = |filter: &str| {
            let run = json!({"templateRef": {"name": "t"}});
            let program = Program::compile(&spec(json!({"event": {"filter": filter}, "run": run}))).expect("no faults");
            program.takes(&event(), &evaluator)
        };
        assert_eq!(takes("event.data.ref == 'main'"), Ok(true));
        assert_eq!(takes("event.data.n > 3"), Ok(false));
        assert_eq!(takes("has(event.data.other)"), Ok(false));
        assert!(takes("event.data.other == 1").is_err_and(|why| why.contains("other")));
        assert!(takes("event.data.n").is_err_and(|why| why.contains("not true or false")));
    }

    #[test]
    fn every_fault_of_a_trigger_has_its_path() {
        let run = json!({"templateRef": {"name": "t"}, "input": "${ 1 + }", "session": "${ steps.a }",
            "parameters": {"a": {"b": ["${ scheduledTime }"]}, "big": 1}});
        let faults =
            Program::compile(&spec(json!({"event": {"filter": "evnt.id == ''"}, "run": run}))).expect_err("faults");
        for (fault, words) in faults.iter().zip([
            "spec.event.filter: evnt is not known here; known is event",
            "spec.run.input: is not valid CEL",
            "spec.run.session: steps is not known here",
            "spec.run.parameters.a.b[0]: scheduledTime is not known here",
        ]) {
            assert!(fault.contains(words), "{fault}");
        }
        assert_eq!(faults.len(), 4, "{faults:?}");
        let run = json!({"templateRef": {"name": "t"}, "input": "of ${ scheduledTime }"});
        assert!(Program::compile(&spec(json!({"schedule": {"cron": "@daily"}, "run": run}))).is_ok());
        let faults = Program::compile(&spec(json!({"schedule": {"cron": "x", "timeZone": "y"}, "run": run})));
        assert_eq!(faults.map_or_else(|faults| faults.len(), |_| 0), 2);
    }
}
