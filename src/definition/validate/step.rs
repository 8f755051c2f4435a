//! Faults of one step: its kind, its expressions, what goes with what.

use serde_json::Value;

use super::Walk;
use super::names::{Maker, Visible};
use crate::api::document::OUTPUT_TYPE;
use crate::api::step::{Ask, ForEach, Gate, OnFailure, OnReject, Step};
use crate::definition::expression::{Expression, expressions};

impl Walk<'_> {
    pub(super) fn step(&mut self, step: &Step, place: &str, seen: &Visible) {
        if !self.names.insert(step.name.clone()) {
            self.fault(format!(
                "{place}.name: {} stands twice; step names are unique in the whole definition",
                step.name
            ));
        }
        if let Some(when) = &step.when {
            let place = format!("{place}.when");
            self.expression(&place, Expression::parse(when), seen);
            if seen.depth > 0 {
                self.pinned_documents(&place, when);
            }
        }
        let mut inside = seen.clone();
        if let Some(for_each) = &step.for_each {
            self.for_each(for_each, place, seen, &mut inside);
        }
        self.parameters(step, place, &inside);
        if let Some(schema) = &step.output_schema
            && let Err(fault) = self.evaluator.check(schema)
        {
            self.fault(format!("{place}.outputSchema: {fault}"));
        }
        self.documents(step, place, seen);
        if let Some(gate) = &step.gate {
            self.gate(gate, step, place, &inside);
        }
        self.kind(step, place, &inside);
        self.belongs(step, place);
    }

    fn parameters(&mut self, step: &Step, place: &str, inside: &Visible) {
        let mut found = Vec::new();
        for (key, value) in step.parameters.iter().flatten() {
            expressions(value, &format!("{place}.parameters.{key}"), &mut found);
        }
        if let Some(ask) = &step.ask {
            expressions(&Value::String(ask.question.clone()), &format!("{place}.ask.question"), &mut found);
        }
        for (pointer, expression) in found {
            self.expression(&pointer, expression, inside);
        }
    }

    fn documents(&mut self, step: &Step, place: &str, seen: &Visible) {
        if let Some(produces) = &step.produces {
            let document_type = produces.document_type.clone();
            if document_type == OUTPUT_TYPE {
                self.fault(format!("{place}.produces.type: {OUTPUT_TYPE} is Lockstep's own; choose another name"));
            }
            let known = self.produced.iter().find(|p| p.chain.last() == Some(&step.name));
            let chain = known.map(|p| p.chain.clone()).unwrap_or_default();
            self.makers.push(Maker { document_type, place: place.to_owned(), chain, seen: seen.steps.clone() });
        }
        for (index, wanted) in step.documents.iter().enumerate() {
            let plain = wanted.strip_suffix("/*").unwrap_or(wanted);
            if !is_document_type(plain) || plain == OUTPUT_TYPE {
                self.fault(format!(
                    "{place}.documents[{index}]: {wanted:?} is not a document type (a-z, 0-9 and -, or TYPE/*)"
                ));
            }
        }
    }

    fn kind(&mut self, step: &Step, place: &str, inside: &Visible) {
        match (&step.agent_id, &step.ask, step.steps.is_empty()) {
            (Some(_), None, true) => {}
            (None, Some(ask), true) => self.ask(ask, step, place),
            (None, None, false) => {
                let order = step.order.unwrap_or_default();
                let all = self.list((&step.steps, order), &format!("{place}.steps"), inside);
                if let Some(output) = &step.output {
                    self.expression(&format!("{place}.output"), Expression::parse(output), &all);
                }
                if let Some(collect) = step.for_each.as_ref().and_then(|f| f.collect.as_ref()) {
                    self.expression(&format!("{place}.forEach.collect"), Expression::parse(collect), &all);
                }
                return;
            }
            (None, None, true) if step.gate.is_some() => {}
            _ => self.fault(format!(
                "{place}: exactly one of agentId, ask and steps says what the step does, or gate alone for an approval"
            )),
        }
        if let Some(collect) = step.for_each.as_ref().and_then(|f| f.collect.as_ref()) {
            let mut own = inside.clone();
            own.steps.push(step.name.clone());
            self.expression(&format!("{place}.forEach.collect"), Expression::parse(collect), &own);
        }
    }

    /// What goes with what.
    fn belongs(&mut self, step: &Step, place: &str) {
        let (agent, group) = (step.agent_id.is_some(), !step.steps.is_empty());
        let alone =
            |present: bool, field: &str, with: &str| present.then(|| format!("{place}.{field}: goes with {with}"));
        let faults = [
            alone(step.order.is_some() && !group, "order", "steps"),
            alone(step.output.is_some() && !group, "output", "steps; the output of an agent is what it writes"),
            alone(step.for_each.is_some() && !agent && !group, "forEach", "agentId or steps"),
            alone(step.gate.is_some() && (group || step.ask.is_some()), "gate", "agentId, or stands alone"),
            alone(step.parameters.is_some() && group, "parameters", "agentId, ask or gate, not with steps"),
            alone(step.produces.is_some() && !agent, "produces", "agentId"),
            alone(step.output_schema.is_some() && !agent, "outputSchema", "agentId; an ask has a schema of its own"),
            alone(!step.documents.is_empty() && !agent, "documents", "agentId"),
            alone(step.retry.is_some() && !agent, "retry", "agentId"),
            alone(step.timeout_seconds.is_some() && !agent, "timeoutSeconds", "agentId"),
        ];
        for fault in faults.into_iter().flatten() {
            self.fault(fault);
        }
        if step.gate.is_some() && step.on_failure == Some(OnFailure::Continue) {
            self.fault(format!("{place}.onFailure: Continue would pass the gate by; a gated step may Wait or Fail"));
        }
    }

    fn ask(&mut self, ask: &Ask, step: &Step, place: &str) {
        if let Some(schema) = &ask.schema
            && let Err(fault) = self.evaluator.check(schema)
        {
            self.fault(format!("{place}.ask.schema: {fault}"));
        }
        if step.parameters.is_some() {
            self.fault(format!("{place}.parameters: a question has none; write ${{ }} into ask.question"));
        }
    }

    fn gate(&mut self, gate: &Gate, step: &Step, place: &str, inside: &Visible) {
        let place = format!("{place}.gate");
        if let Some(when) = &gate.when {
            let mut seen = inside.clone();
            seen.variables = ["workflow", "parameters", "output"].map(str::to_owned).into();
            seen.variables.extend(inside.variables.iter().filter(|v| step_variable(v)).cloned());
            self.expression(&format!("{place}.when"), Expression::parse(when), &seen);
        }
        if gate.on_reject == Some(OnReject::Revise) && step.agent_id.is_none() {
            self.fault(format!("{place}.onReject: Revise needs an agent that does it again"));
        }
        if gate.max_rounds.is_some() && gate.on_reject != Some(OnReject::Revise) {
            self.fault(format!("{place}.maxRounds: goes with onReject: Revise"));
        }
        let acceptors = gate.acceptors.clone().unwrap_or_default();
        let wanted = usize::try_from(gate.approvals.unwrap_or(1)).unwrap_or_default();
        if acceptors.groups.is_empty() && !acceptors.users.is_empty() && acceptors.users.len() < wanted {
            self.fault(format!(
                "{place}.approvals: {wanted} are wanted, and acceptors names {} people",
                acceptors.users.len()
            ));
        }
    }

    fn for_each(&mut self, for_each: &ForEach, place: &str, seen: &Visible, inside: &mut Visible) {
        let place = format!("{place}.forEach");
        self.expression(&format!("{place}.in"), Expression::parse(&for_each.items), seen);
        if seen.depth > 0 {
            self.pinned_documents(&format!("{place}.in"), &for_each.items);
        }
        if inside.variables.contains(&for_each.as_name) {
            self.fault(format!("{place}.as: {} is taken already; choose another name", for_each.as_name));
        }
        inside.depth += 1;
        inside.variables.insert(for_each.as_name.clone());
        inside.variables.insert("item".to_owned());
        if let Some(key) = &for_each.key {
            self.expression(&format!("{place}.key"), Expression::parse(key), inside);
        }
    }
}

/// Whether a variable comes from the items around a step.
fn step_variable(name: &str) -> bool {
    !matches!(name, "steps" | "documents" | "workflow" | "parameters")
}

fn is_document_type(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}
