//! Items of a forEach: the list, its keys, its slots.

use super::{
    AttemptResult, BTreeSet, Expression, ForEach, Frame, ITEMS, Outcome, Output, Phase, Step, StepRun, Value, Walk,
    document, expression, kind, name, place,
};

impl Walk<'_> {
    pub(super) fn for_each(
        &mut self,
        step: &Step,
        for_each: &ForEach,
        path: &str,
        frame: &Frame,
        may_start: bool,
    ) -> Outcome {
        self.tally(path).plural = true;
        if !may_start && !self.begun(path, frame) {
            return Outcome::Ahead;
        }
        let items = match self.collection(for_each, path, frame) {
            Ok(items) => items,
            Err(fault) => {
                self.tally(path).counts.failed += 1;
                return self.fail(place(path, frame), AttemptResult::ExpressionError, fault);
            }
        };
        let total = i32::try_from(items.len()).unwrap_or(i32::MAX);
        self.tally(path).counts.total += total;
        self.expect(&step.steps, path, items.len());
        let busy = self.in_progress(path, frame);
        let mut slots = usize::try_from(for_each.max_parallel.unwrap_or(10)).unwrap_or(10).saturating_sub(busy.len());
        let (mut outputs, mut open, mut failed) = (Vec::with_capacity(items.len()), false, false);
        for (index, (key, value)) in items.into_iter().enumerate() {
            let mut inner = frame.clone();
            inner.keys.push(key);
            inner.items.push((for_each.as_name.clone(), i32::try_from(index).unwrap_or(i32::MAX), value));
            let before = self.stand.creates.len();
            let has_slot = busy.contains(&name::scope_id(&self.sources.definition.workflow_uid, &inner.keys));
            let outcome = self.body(step, path, &inner, may_start && (has_slot || slots > 0));
            if step.agent_id.is_none() {
                self.tally(path).counts.item(&outcome);
            }
            match outcome {
                Outcome::Done(output) => outputs.push(output),
                Outcome::Open | Outcome::Ahead => open = true,
                Outcome::Failed => failed = true,
            }
            if !has_slot && self.stand.creates.len() > before {
                slots -= 1;
            }
        }
        match (failed, open) {
            (true, _) => Outcome::Failed,
            (false, true) => Outcome::Open,
            (false, false) => Outcome::Done(Output::List(outputs)),
        }
    }

    /// Whether a forEach was begun at this place, or something behind it for the same item.
    pub(super) fn begun(&self, path: &str, frame: &Frame) -> bool {
        if frame.keys.is_empty() {
            let latched = self.latched.get(path);
            return latched.is_some_and(|s| s.collection_digest.is_some());
        }
        let here = name::scope_id(&self.sources.definition.workflow_uid, &frame.keys);
        let rank = |path: &str| self.order.iter().position(|p| p == path);
        let inside = format!("{path}/");
        self.o.step_runs.values().any(|s| {
            let link = s.spec.scope_chain.get(frame.keys.len());
            link.is_some_and(|link| link.scope_id == here)
                && (s.spec.path.starts_with(&inside) || rank(&s.spec.path) >= rank(path))
        })
    }

    /// The steps of a group have to be done once for each item.
    pub(super) fn expect(&mut self, steps: &[Step], path: &str, items: usize) {
        for step in steps {
            let path = format!("{path}/{}", step.name);
            let tally = self.tally(&path);
            tally.wanted = Some(tally.wanted.unwrap_or_default() + items);
            if step.for_each.is_some() {
                continue;
            }
            tally.plural = true;
            tally.counts.total += i32::try_from(items).unwrap_or(i32::MAX);
            self.expect(&step.steps, &path, items);
        }
    }

    /// Items, by their scope, with an attempt queued or running; those that wait for a person have given their slot up.
    pub(super) fn in_progress(&self, path: &str, frame: &Frame) -> BTreeSet<String> {
        let inside = |s: &StepRun| {
            s.spec.path == path || s.spec.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
        };
        let around = name::scope_id(&self.sources.definition.workflow_uid, &frame.keys);
        let runs = |s: &StepRun| {
            s.status.as_ref().is_none_or(|s| {
                s.completed_at.is_none()
                    && !matches!(s.phase, Some(Phase::WaitingForAcceptance | Phase::WaitingForInput))
            })
        };
        let item = |s: &StepRun| {
            let depth = frame.keys.len();
            let here = s.spec.scope_chain.get(depth)?.scope_id == around;
            let own = s.spec.scope_chain.get(depth + 1)?;
            here.then(|| own.scope_id.clone())
        };
        self.o.step_runs.values().filter(|s| inside(s) && runs(s)).filter_map(|s| item(s)).collect()
    }

    pub(super) fn collection(
        &mut self,
        for_each: &ForEach,
        path: &str,
        frame: &Frame,
    ) -> Result<Vec<(String, Value)>, String> {
        let latched = self.latched.get(path).filter(|_| frame.keys.is_empty()).cloned().unwrap_or_default();
        let expression = Expression::parse(&for_each.items).map_err(|e| format!("forEach.in {e}"))?;
        let scope = self.sources.scope(frame, &[&expression], &latched.collection_documents);
        let value = expression.evaluate(&scope).map_err(|e| format!("forEach.in: {e}"))?;
        let digest = name::digest_bytes(value.to_string().as_bytes());
        if latched.collection_digest.as_ref().is_some_and(|old| *old != digest) {
            return Err("forEach.in: the list is not the one it was when the step began".to_owned());
        }
        if frame.keys.is_empty() {
            let from = self.sources.viewpoint(frame);
            let names: Vec<String> = if latched.collection_digest.is_some() {
                latched.collection_documents
            } else {
                let kinds = expression.members("documents");
                let spelled = |d: &crate::api::Document| {
                    kinds.contains(&d.spec.document_type)
                        || kinds.contains(&expression::underscored(&d.spec.document_type))
                };
                let kinds: BTreeSet<&str> =
                    self.o.documents.iter().filter(|d| spelled(d)).map(|d| d.spec.document_type.as_str()).collect();
                kinds
                    .into_iter()
                    .filter_map(|kind| document::find(&self.o.documents, kind, &from)?.metadata.name.clone())
                    .take(16)
                    .collect()
            };
            let tally = self.tally(path);
            tally.collection_digest = Some(digest);
            tally.collection_documents = names;
        }
        let items = match value {
            Value::Null => Vec::new(),
            Value::Array(items) => items,
            other => return Err(format!("forEach.in gives {}, not a list", kind(&other))),
        };
        self.keyed(for_each, frame, items)
    }

    pub(super) fn keyed(
        &self,
        for_each: &ForEach,
        frame: &Frame,
        items: Vec<Value>,
    ) -> Result<Vec<(String, Value)>, String> {
        if items.len() > ITEMS {
            return Err(format!("forEach.in gives {} items, at most {ITEMS} are allowed", items.len()));
        }
        let key = for_each.key.as_deref().map(Expression::parse).transpose().map_err(|e| format!("forEach.key {e}"))?;
        let base = key.as_ref().map(|key| self.sources.scope(frame, &[key], &[]));
        let mut seen = BTreeSet::new();
        let mut keyed = Vec::with_capacity(items.len());
        for (index, value) in items.into_iter().enumerate() {
            let own = match (&key, &base) {
                (Some(key), Some(base)) => match key.evaluate(&base.clone().with(&for_each.as_name, value.clone())) {
                    Ok(Value::String(text)) => text,
                    Ok(Value::Number(number)) => number.to_string(),
                    Ok(other) => {
                        return Err(format!(
                            "forEach.key gives {} for item {index}, not a string or a number",
                            kind(&other)
                        ));
                    }
                    Err(e) => return Err(format!("forEach.key of item {index}: {e}")),
                },
                _ => index.to_string(),
            };
            if !legal_key(&own) {
                return Err(format!(
                    "forEach.key of item {index} is {own:?}; keys are 1 to 63 letters, digits, '.', '_' or '-', and begin with a letter or digit"
                ));
            }
            if !seen.insert(own.clone()) {
                return Err(format!("forEach.key: {own:?} stands twice"));
            }
            keyed.push((own, value));
        }
        Ok(keyed)
    }
}

fn legal_key(key: &str) -> bool {
    (1..=63).contains(&key.len())
        && key.starts_with(|c: char| c.is_ascii_alphanumeric())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
