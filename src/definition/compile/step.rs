//! One step: its kind, its expressions, what goes with what.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::names::{Maker, Visible};
use super::{Group, Readable, StepLocation, Unreadable, Walk};
use crate::api::document::OUTPUT_TYPE;
use crate::api::step::{self as written, Acceptors, ActionGate, OnFailure, Produces};
use crate::api::usage::Budget;
use crate::definition::expression::{Expression, Template, TextTemplate};
use crate::definition::free_value;
use crate::definition::program::{
    AgentStep, ApprovalStep, AskStep, DocumentSelector, ForEach, Gate, MAX_PARALLEL, MAX_ROUNDS, OnReject, Parameters,
    Step, StepKind, StepList, Tolerance,
};
use crate::definition::schema::Schema;

/// What was read of a step before it is known who does it.
struct Parts {
    parameters: Readable<Parameters>,
    question: Readable<Option<TextTemplate>>,
    output_schema: Readable<Option<Schema>>,
    produces: Readable<Option<Produces>>,
    documents: Readable<Vec<DocumentSelector>>,
    gate: Readable<Option<Gate>>,
}

impl Walk<'_> {
    pub(super) fn step(&mut self, step: &written::Step, location: StepLocation<'_>, seen: &Visible) -> Readable<Step> {
        let at = location.at;
        if !self.names.insert(step.name.clone()) {
            self.fault(format!(
                "{at}.name: another step is called {} too; step names must be unique in the whole definition",
                step.name
            ));
        }
        let when = step.when.as_deref().map(|when| {
            let at = format!("{at}.when");
            self.read_again(&at, when, seen)
        });
        let mut inside = seen.clone();
        let head = step.for_each.as_ref().map(|for_each| self.for_each(for_each, at, seen, &mut inside));
        let parts = Parts {
            parameters: self.parameters(step, at, &inside),
            question: self.question(step, at, &inside),
            output_schema: self.output_schema(step, at),
            produces: self.produces(step, at, seen),
            documents: self.documents(step, at),
            gate: step.gate.as_ref().map(|gate| self.gate(gate, step, at, &inside)).transpose(),
        };
        let (kind, mut all) = self.kind(step, &location, parts, &inside);
        if step.steps.is_empty() {
            all.steps.push(step.name.clone());
        }
        self.action_gates(step, at);
        self.budget(at, step.budget.as_ref());
        let collect = step.for_each.as_ref().and_then(|f| f.collect.as_deref());
        let collect = collect.map(|text| self.expression(&format!("{at}.forEach.collect"), text, &all)).transpose();
        self.belongs(step, at);
        let on_failure = match step.on_failure.unwrap_or(self.on_failure) {
            OnFailure::Continue if step.gate.is_some() => OnFailure::Fail,
            wanted => wanted,
        };
        let (when, head, collect) = (when.transpose()?, head.transpose()?, collect?);
        let for_each = head.map(|head| ForEach { collect, ..head });
        Ok(Step {
            name: step.name.clone(),
            path: location.path,
            needs: location.needs,
            when,
            for_each,
            on_failure,
            kind: kind?,
        })
    }

    /// An expression that is evaluated in every pass: inside of items it may read only what is pinned.
    fn read_again(&mut self, at: &str, text: &str, seen: &Visible) -> Readable<Expression> {
        let expression = self.expression(at, text, seen)?;
        if seen.depth > 0 {
            self.pinned_documents(at, &expression);
        }
        Ok(expression)
    }

    fn parameters(&mut self, step: &written::Step, at: &str, inside: &Visible) -> Readable<Parameters> {
        let empty = serde_json::Map::new();
        let given = step.parameters.as_ref().unwrap_or(&empty);
        let at = format!("{at}.parameters");
        for fault in free_value::faults(&Value::Object(given.clone()), &at) {
            self.fault(fault);
        }
        let mut heard = |pointer: &str, found: Result<&Expression, String>| self.heard(pointer, found, inside);
        Template::members(given, &at, &mut heard).map(Parameters).ok_or(Unreadable)
    }

    fn question(&mut self, step: &written::Step, at: &str, inside: &Visible) -> Readable<Option<TextTemplate>> {
        let Some(ask) = &step.ask else { return Ok(None) };
        let at = format!("{at}.ask.question");
        let mut heard = |pointer: &str, found: Result<&Expression, String>| self.heard(pointer, found, inside);
        TextTemplate::parse(&ask.question, &at, &mut heard).map(Some).ok_or(Unreadable)
    }

    fn heard(&mut self, pointer: &str, found: Result<&Expression, String>, inside: &Visible) {
        match found {
            Ok(expression) => self.names(pointer, expression, inside),
            Err(fault) => self.fault(format!("{pointer}: {fault}")),
        }
    }

    fn output_schema(&mut self, step: &written::Step, at: &str) -> Readable<Option<Schema>> {
        step.output_schema.as_ref().map(|schema| self.schema(&format!("{at}.outputSchema"), schema)).transpose()
    }

    fn produces(&mut self, step: &written::Step, at: &str, seen: &Visible) -> Readable<Option<Produces>> {
        let Some(produces) = &step.produces else { return Ok(None) };
        let document_type = produces.document_type.clone();
        let known = self.produced.iter().find(|p| p.chain.last() == Some(&step.name));
        let chain = known.map(|p| p.chain.clone()).unwrap_or_default();
        let own = document_type == OUTPUT_TYPE;
        self.makers.push(Maker { document_type, place: at.to_owned(), chain, seen: seen.steps.clone() });
        if own {
            let fault = format!("{at}.produces.type: {OUTPUT_TYPE} is reserved; choose another type");
            return self.unreadable(fault);
        }
        Ok(Some(produces.clone()))
    }

    fn documents(&mut self, step: &written::Step, at: &str) -> Readable<Vec<DocumentSelector>> {
        let mut selectors = Vec::with_capacity(step.documents.len());
        for (index, wanted) in step.documents.iter().enumerate() {
            selectors.push(match DocumentSelector::parse(wanted) {
                Some(selector) => Ok(selector),
                None => self.unreadable(format!(
                    "{at}.documents[{index}]: {wanted:?} is not a document type (a-z, 0-9 and -, or TYPE/*)"
                )),
            });
        }
        selectors.into_iter().collect()
    }

    /// Who does the step; and what can be seen behind it.
    fn kind(
        &mut self,
        step: &written::Step,
        location: &StepLocation<'_>,
        parts: Parts,
        inside: &Visible,
    ) -> (Readable<StepKind>, Visible) {
        let at = location.at;
        let kind = match (&step.agent_id, &step.ask, step.steps.is_empty()) {
            (Some(agent), None, true) => agent_step(agent, step, parts),
            (None, Some(ask), true) => self.ask(ask, step, at, parts),
            (None, None, false) => {
                let (list, all) = self.group(step, location, inside);
                return (list.map(|list| StepKind::Group(Box::new(list))), all);
            }
            (None, None, true) if step.gate.is_some() => approval_step(parts),
            _ => self.unreadable(format!(
                "{at}: exactly one of agentId, ask and steps says what the step does, or gate alone for an approval"
            )),
        };
        (kind, inside.clone())
    }

    fn group(
        &mut self,
        step: &written::Step,
        location: &StepLocation<'_>,
        inside: &Visible,
    ) -> (Readable<StepList>, Visible) {
        let (steps, output) = (format!("{}.steps", location.at), format!("{}.output", location.at));
        let output = step.output.as_deref().map(|text| (output.as_str(), text));
        let group = Group { place: &steps, path: Some(&location.path), output };
        let listed = self.steps((&step.steps, step.order.unwrap_or_default()), &group, inside);
        self.list(listed, &group)
    }

    fn ask(&mut self, ask: &written::Ask, step: &written::Step, at: &str, parts: Parts) -> Readable<StepKind> {
        let schema = ask.schema.as_ref().map(|schema| self.schema(&format!("{at}.ask.schema"), schema)).transpose();
        if step.parameters.is_some() {
            self.fault(format!("{at}.parameters: a question has none; write ${{ }} into ask.question"));
        }
        let question = parts.question?.ok_or(Unreadable)?;
        Ok(StepKind::Ask(Box::new(AskStep { question, schema: schema?, deadline_seconds: ask.deadline_seconds })))
    }

    /// What goes with what. What does not belong to a step is not compiled.
    fn belongs(&mut self, step: &written::Step, place: &str) {
        let (agent, group) = (step.agent_id.is_some(), !step.steps.is_empty());
        let alone = |present: bool, field: &str, with: &str| {
            present.then(|| format!("{place}.{field}: is only allowed with {with}"))
        };
        let faults = [
            alone(step.order.is_some() && !group, "order", "steps"),
            alone(step.output.is_some() && !group, "output", "steps; the output of an agent is what it writes"),
            alone(step.for_each.is_some() && !agent && !group, "forEach", "agentId or steps"),
            alone(step.gate.is_some() && (group || step.ask.is_some()), "gate", "agentId, or stands alone"),
            alone(step.parameters.is_some() && group, "parameters", "agentId, ask or gate, not with steps"),
            alone(step.produces.is_some() && !agent, "produces", "agentId"),
            alone(step.output_schema.is_some() && !agent, "outputSchema", "agentId; an ask has a schema of its own"),
            alone(!step.documents.is_empty() && !agent, "documents", "agentId"),
            alone(step.budget.is_some() && !agent, "budget", "agentId"),
            alone(!step.action_gates.is_empty() && !agent, "actionGates", "agentId"),
            alone(step.retry.is_some() && !agent, "retry", "agentId"),
            alone(step.timeout_seconds.is_some() && !agent, "timeoutSeconds", "agentId"),
        ];
        for fault in faults.into_iter().flatten() {
            self.fault(fault);
        }
        if step.gate.is_some() && step.on_failure == Some(OnFailure::Continue) {
            self.fault(format!("{place}.onFailure: Continue is not allowed on a step with a gate, because it would skip the gate; use Wait or Fail"));
        }
    }

    fn gate(&mut self, gate: &written::Gate, step: &written::Step, at: &str, inside: &Visible) -> Readable<Gate> {
        let at = format!("{at}.gate");
        let when = gate.when.as_deref().map(|when| {
            let mut seen = inside.clone();
            seen.variables = ["workflow", "parameters", "output"].map(str::to_owned).into();
            seen.variables.extend(inside.variables.iter().filter(|v| step_variable(v)).cloned());
            self.expression(&format!("{at}.when"), when, &seen)
        });
        let revises = gate.on_reject == Some(written::OnReject::Revise);
        if revises && step.agent_id.is_none() {
            self.fault(format!("{at}.onReject: Revise is only allowed with agentId, because the agent runs again"));
        }
        if gate.max_rounds.is_some() && !revises {
            self.fault(format!("{at}.maxRounds: is only allowed with onReject: Revise"));
        }
        let approvals = gate.approvals.unwrap_or(1);
        self.enough_acceptors(&at, approvals, gate.acceptors.as_ref());
        let own_name = || step.produces.as_ref().map_or(&step.name, |p| &p.document_type).clone();
        Ok(Gate {
            name: gate.name.clone().unwrap_or_else(own_name),
            acceptors: gate.acceptors.clone(),
            approvals,
            four_eyes: gate.four_eyes,
            created_by_person: gate.created_by_person,
            require_review: gate.require_review,
            on_reject: if revises {
                OnReject::Revise { max_rounds: gate.max_rounds.unwrap_or(MAX_ROUNDS) }
            } else {
                OnReject::Fail
            },
            deadline_seconds: gate.deadline_seconds,
            when: when.transpose()?,
            message: gate.message.clone(),
        })
    }

    fn enough_acceptors(&mut self, at: &str, approvals: i32, acceptors: Option<&Acceptors>) {
        let acceptors = acceptors.filter(|a| a.groups.is_empty() && !a.users.is_empty());
        let people = acceptors.map_or(usize::MAX, |a| a.users.len());
        if people < usize::try_from(approvals).unwrap_or_default() {
            self.fault(format!("{at}.approvals: {approvals} are needed, and acceptors.users has only {people}"));
        }
    }

    /// An agent names them, so each has a name of its own.
    fn action_gates(&mut self, step: &written::Step, at: &str) {
        for (index, gate) in step.action_gates.iter().enumerate() {
            let at = format!("{at}.actionGates[{index}]");
            if step.action_gates[..index].iter().any(|before| before.name == gate.name) {
                self.fault(format!("{at}.name: another action gate of the step is called {} too", gate.name));
            }
            self.enough_acceptors(&at, gate.approvals.unwrap_or(1), gate.acceptors.as_ref());
        }
    }

    /// All of it but `collect`, which sees what is inside of an item.
    fn for_each(
        &mut self,
        for_each: &written::ForEach,
        at: &str,
        seen: &Visible,
        inside: &mut Visible,
    ) -> Readable<ForEach> {
        let at = format!("{at}.forEach");
        let items = self.read_again(&format!("{at}.in"), &for_each.items, seen);
        if inside.variables.contains(&for_each.as_name) {
            self.fault(format!("{at}.as: {} is the name of another variable; choose another one", for_each.as_name));
        }
        inside.depth += 1;
        inside.variables.insert(for_each.as_name.clone());
        inside.variables.insert("item".to_owned());
        let key = for_each.key.as_deref().map(|key| self.expression(&format!("{at}.key"), key, inside));
        let tolerate = match tolerance(for_each.tolerate.as_ref()) {
            Some(tolerate) => Ok(tolerate),
            None => self.unreadable(format!("{at}.tolerate: must be a number, or a percentage such as 10%")),
        };
        let max_parallel = for_each.max_parallel.map_or(Ok(MAX_PARALLEL), usize::try_from).unwrap_or(MAX_PARALLEL);
        Ok(ForEach {
            items: items?,
            as_name: for_each.as_name.clone(),
            key: key.transpose()?,
            max_parallel,
            tolerate: tolerate?,
            collect: None,
        })
    }
}

fn agent_step(agent: &str, step: &written::Step, parts: Parts) -> Readable<StepKind> {
    Ok(StepKind::Agent(Box::new(AgentStep {
        agent: agent.to_owned(),
        parameters: parts.parameters?,
        documents: parts.documents?,
        produces: parts.produces?,
        output_schema: parts.output_schema?,
        gate: parts.gate?,
        action_gates: step.action_gates.iter().map(action_gate).collect(),
        budget: step.budget.clone().filter(Budget::is_some),
        retry: step.retry.clone(),
        timeout_seconds: step.timeout_seconds,
    })))
}

/// What is decided there names what it is about, always: an agent may request several at once.
fn action_gate(gate: &ActionGate) -> Gate {
    Gate {
        name: gate.name.clone(),
        acceptors: gate.acceptors.clone(),
        approvals: gate.approvals.unwrap_or(1),
        four_eyes: gate.four_eyes,
        created_by_person: false,
        require_review: true,
        on_reject: OnReject::Fail,
        deadline_seconds: None,
        when: None,
        message: gate.message.clone(),
    }
}

fn approval_step(parts: Parts) -> Readable<StepKind> {
    let (parameters, gate) = (parts.parameters?, parts.gate?.ok_or(Unreadable)?);
    Ok(StepKind::Approval(Box::new(ApprovalStep { parameters, gate })))
}

fn tolerance(written: Option<&IntOrString>) -> Option<Tolerance> {
    match written {
        None => Some(Tolerance::Items(0)),
        Some(IntOrString::Int(number)) => Some(Tolerance::Items(usize::try_from(*number).unwrap_or_default())),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.strip_suffix('%')?.parse().ok()?;
            Some(Tolerance::Percent(percent.min(100)))
        }
    }
}

/// Whether a variable comes from the items around a step.
fn step_variable(name: &str) -> bool {
    !matches!(name, "steps" | "documents" | "workflow" | "parameters")
}
