//! What people answered to the questions of the run that a step needs, directly or not, where they are asked once for it or of
//! the same items. Their StepRuns have names that are computed, so each is a read of one object, and an answer never changes.

use std::collections::HashSet;
use std::sync::Arc;

use super::attempt;
use super::refusal::Result;
use super::{Gateway, cluster, entries};
use crate::api::step_run::StepRun;
use crate::cluster::bounded_cache::BoundedCache;
use crate::decide::{build, history};
use crate::definition::program::Program;
use crate::protocol::AttemptRef;
use crate::protocol::context::Entry;

/// Questions that are looked up, of those that the step needs the last ones of the definition.
const QUESTIONS: usize = 20;
const KEPT_BYTES: usize = 2 * 1024 * 1024;

/// Questions with their answers, by namespace and name of the StepRun. The name has a digest of the run's UID in it.
pub struct Answers(BoundedCache<AnsweredQuestion>);

impl Default for Answers {
    fn default() -> Self {
        Self(BoundedCache::new(KEPT_BYTES))
    }
}

/// A question of the run with its answer, as entries of the history.
pub struct AnsweredQuestion {
    /// The name of the StepRun that asked.
    pub name: String,
    /// When its StepRun was made, in seconds.
    pub made: i64,
    pub entries: Arc<Vec<Entry>>,
}

/// Those that have an answer by now.
pub async fn of_run(
    gateway: &Gateway,
    who: &AttemptRef,
    step_run: &StepRun,
    definition: &Program,
) -> Result<Vec<Arc<AnsweredQuestion>>> {
    let mut answers = Vec::new();
    for name in names(step_run, definition) {
        let key = format!("{}/{name}", who.namespace);
        if let Some(known) = gateway.answers.0.get(&key) {
            answers.push(known);
            continue;
        }
        let api = attempt::api(gateway, who);
        let found = cluster::read(&api, &name).await?;
        let run = &step_run.spec.workflow.uid;
        let Some(found) = found.filter(|found| found.spec.workflow.uid == *run) else { continue };
        let entries = entries::answered(&found);
        if entries.is_empty() {
            continue;
        }
        let made = found.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second());
        let bytes = entries.iter().map(|entry| entry.text.len() + size_of::<Entry>()).sum();
        let answered = Arc::new(AnsweredQuestion { name, made, entries: Arc::new(entries) });
        gateway.answers.0.insert(key, Arc::clone(&answered), bytes);
        answers.push(answered);
    }
    Ok(answers)
}

/// Names of the StepRuns of questions that this step needs, and that are asked once for it, or for an item around it.
fn names(step_run: &StepRun, definition: &Program) -> Vec<String> {
    let spec = &step_run.spec;
    let keys: Vec<String> = history::keys(step_run).into_iter().map(str::to_owned).collect();
    let own = loops(definition, &spec.path);
    let before = needed(definition, &spec.path);
    let all = definition.all();
    let questions = all.iter().filter(|step| step.ask().is_some());
    let wanted = questions.filter(|question| at_and_above(&question.path).any(|path| before.contains(path)));
    let mut names: Vec<String> = wanted
        .filter_map(|question| {
            let around = loops(definition, &question.path);
            // In another forEach, or beside the one around this step, there is one for each item of that.
            let keys = own.starts_with(&around).then(|| keys.get(..around.len())).flatten()?;
            Some(build::step_run_name(&spec.workflow.name, &spec.workflow.uid, &question.path, keys))
        })
        .collect();
    // The bound is on what concerns the step: questions that come after it must not push out those before it.
    names.drain(..names.len().saturating_sub(QUESTIONS));
    names
}

/// The paths of all that must have ended before the step at this path, directly or not: in its own list, and in those around it.
fn needed<'a>(definition: &'a Program, path: &str) -> HashSet<&'a str> {
    let mut found: HashSet<&'a str> = HashSet::new();
    let mut list = Some(&definition.steps);
    for name in path.split('/') {
        let Some(own) = list else { break };
        let Some(step) = own.steps.iter().find(|step| step.name == name) else { break };
        let mut ahead = vec![step];
        while let Some(next) = ahead.pop() {
            let needs = next.needs.iter().filter_map(|index| own.steps.get(*index));
            ahead.extend(needs.filter(|step| found.insert(&step.path)));
        }
        list = step.group();
    }
    found
}

/// The paths at and above a path that are done for each item of a list, outermost first.
fn loops(definition: &Program, path: &str) -> Vec<String> {
    at_and_above(path)
        .filter(|above| definition.step(above).is_some_and(|step| step.for_each.is_some()))
        .map(str::to_owned)
        .collect()
}

/// A path, and before it those of the groups around it, outermost first.
fn at_and_above(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    ends.map(move |end| &path[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::definition::Definition;

    #[test]
    fn only_questions_around_the_step_are_looked_up() {
        let ask = |name: &str| json!({"name": name, "ask": {"question": "?"}});
        let work = |name: &str| json!({"name": name, "agentId": "a"});
        let each =
            |name: &str, steps: Value| json!({"name": name, "forEach": {"in": "[1]", "as": name}, "steps": steps});
        let definition: Definition = serde_json::from_value(json!({"workflow": "w", "workflowUid": "u", "session": "s", "steps": [
            ask("first"), each("epic", json!([ask("size"), work("plan"), each("story", json!([ask("who"), work("write")]))])),
            each("other", json!([ask("there"), work("rest")])), work("last"),
        ]}))
        .expect("a definition");
        let definition = Program::compile(&definition).expect("a program");
        let names_of = |path: &str, keys: &[&str]| {
            let scope = keys.iter().fold("u".to_owned(), |scope, key| scope + "/" + key);
            let item = keys.last().map(|key| json!({"key": key, "index": 0, "value": 1}));
            let step_run: StepRun = serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
                "metadata": {"name": "s"}, "spec": {"workflow": {"name": "w", "uid": "u"}, "path": path, "agentId": "a", "item": item,
                "definition": {"revisionName": "r", "digest": "d"}, "parameters": "{}", "inputDigest": "i",
                "scopeChain": [{"scope": "x", "scopeId": scope}]}}))
            .expect("a StepRun");
            names(&step_run, &definition)
        };
        let named = |path: &str, keys: &[&str]| {
            build::step_run_name("w", "u", path, &keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names_of("last", &[]), [named("first", &[])]);
        let of_item = [named("first", &[]), named("epic/size", &["e1"])];
        assert_eq!(names_of("epic/plan", &["e1"]), of_item);
        let deep = [named("first", &[]), named("epic/size", &["e1"]), named("epic/story/who", &["e1", "s2"])];
        assert_eq!(names_of("epic/story/write", &["e1", "s2"]), deep);
        assert_eq!(names_of("other/rest", &["o1"]), [named("first", &[]), named("other/there", &["o1"])]);
    }

    #[test]
    fn of_many_questions_those_are_looked_up_that_the_step_needs() {
        let step = |name: &str, needs: &[&str], what: Value| {
            let mut step = json!({"name": name, "needs": needs});
            step.as_object_mut().expect("an object").extend(what.as_object().cloned().expect("an object"));
            step
        };
        let (ask, work) = (json!({"ask": {"question": "?"}}), json!({"agentId": "a"}));
        let late: Vec<String> = (10..40).map(|n| format!("late-{n}")).collect();
        let group = json!({"steps": [{"name": "who", "ask": {"question": "?"}}, {"name": "make", "agentId": "a"}]});
        let mut steps = vec![
            step("size", &[], ask.clone()),
            step("beside", &[], ask.clone()),
            step("plan", &["size"], work.clone()),
            step("group", &["plan"], group),
            step("after", &["group"], work.clone()),
        ];
        steps.extend(late.iter().map(|name| step(name, &["after"], ask.clone())));
        steps.push(step("last", &late.iter().map(String::as_str).collect::<Vec<_>>(), work));
        let definition = json!({"workflow": "w", "workflowUid": "u", "session": "s", "order": "Graph", "steps": steps});
        let definition: Definition = serde_json::from_value(definition).expect("a definition");
        let definition = Program::compile(&definition).expect("a program");
        let names_of = |path: &str| {
            let spec = json!({"workflow": {"name": "w", "uid": "u"}, "path": path, "agentId": "a", "parameters": "{}",
                "definition": {"revisionName": "r", "digest": "d"}, "inputDigest": "i",
                "scopeChain": [{"scope": "workflow", "scopeId": "u"}]});
            names(&StepRun::new("s", serde_json::from_value(spec).expect("a spec")), &definition)
        };
        let named = |paths: &[&str]| -> Vec<String> {
            paths.iter().map(|path| build::step_run_name("w", "u", path, &[])).collect()
        };
        assert_eq!(names_of("plan"), named(&["size"]), "neither those that come later nor one beside it");
        assert_eq!(names_of("group/make"), named(&["size", "group/who"]));
        assert_eq!(names_of("after"), named(&["size", "group/who"]), "what a group needs and holds");
        let newest: Vec<&str> = late[10..].iter().map(String::as_str).collect();
        assert_eq!(names_of("last"), named(&newest));
    }
}
