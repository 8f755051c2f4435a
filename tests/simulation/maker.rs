//! Makes definitions: chains and graphs, groups, lists, conditions, gates, questions. Expressions have few forms, so that
//! `reading` can say by itself what they give.

use serde_json::{Map, Value, json};

use super::chance::Chance;

/// StepRuns that one definition may come to.
const LARGEST: i64 = 12;

/// What a step before leaves to those after it.
#[derive(Clone, Debug, Default)]
struct Known {
    name: String,
    /// Whether its output has `place` and `items`.
    is_agents: bool,
    /// It may be skipped, or fail and be passed over.
    maybe_null: bool,
    /// Expressions that give a list.
    lists: Vec<String>,
    /// Types of documents that are there behind it.
    documents: Vec<String>,
}

pub struct Maker {
    chance: Chance,
    agents: Vec<String>,
    serial: u32,
    /// StepRuns that may still be added.
    left: i64,
    wanted: Vec<String>,
    /// Whether all must end well whatever happens.
    settled: bool,
}

/// Where a step stands: how deep, how often it is run, in which items, and what it sees.
#[derive(Clone)]
struct Place {
    depth: u32,
    times: i64,
    items: Vec<String>,
    known: Vec<Known>,
}

/// `place` of an agent's output.
pub fn place_of(name: &str) -> String {
    format!("steps.{name}.output == null ? null : steps.{name}.output.place")
}

/// The list that people put, and put anew; none before that.
pub const BRIEF: &str = "has(documents.brief) ? documents.brief.items : []";

/// The list in an agent's output.
pub fn items_of(name: &str) -> String {
    format!("steps.{name}.output == null ? [] : steps.{name}.output.items")
}

impl Maker {
    pub fn new(chance: Chance, agents: Vec<String>, wanted: Vec<String>, settled: bool) -> Self {
        Self { chance, agents, serial: 0, left: LARGEST, wanted, settled }
    }

    /// `steps`, `order`, `output` and `onFailure` of a run or a template; `lists` can be read from everywhere.
    pub fn definition(&mut self, lists: &[&str]) -> Map<String, Value> {
        let mut made = Map::new();
        let lists = lists.iter().copied().chain(["parameters.items"]).map(str::to_owned).collect();
        let outside = Known { lists, ..Known::default() };
        let place = Place { depth: 0, times: 1, items: Vec::new(), known: vec![outside] };
        let count = self.chance.between(1, 5);
        let inner = self.list(&mut made, count, &place);
        if self.chance.percent(35) {
            let output = self.output(&inner);
            made.insert("output".into(), json!(output));
        }
        if !self.settled && self.chance.percent(15) {
            made.insert("onFailure".into(), json!(self.chance.pick(&["Fail", "Continue"])));
        }
        made
    }

    /// Steps of one list, written into what has it; gives what is known behind each.
    fn list(&mut self, into: &mut Map<String, Value>, count: i64, place: &Place) -> Vec<Known> {
        let graph = self.chance.percent(45);
        let (mut steps, mut known): (Vec<Value>, Vec<Known>) = (Vec::new(), Vec::new());
        // By step: indexes of all that have ended before it.
        let mut before: Vec<Vec<usize>> = Vec::new();
        for index in 0..usize::try_from(count).unwrap_or_default() {
            if self.left < place.times && !steps.is_empty() {
                break;
            }
            let needs: Vec<usize> = (0..index).filter(|_| !graph || self.chance.percent(45)).collect();
            let mut all: Vec<usize> = needs.iter().flat_map(|n| before[*n].clone()).chain(needs.clone()).collect();
            all.sort_unstable();
            all.dedup();
            let seen = place.known.iter().cloned().chain(all.iter().map(|n| known[*n].clone())).collect();
            let needed: Vec<Known> = needs.iter().map(|n| known[*n].clone()).collect();
            let names: Vec<String> = needed.iter().map(|k| k.name.clone()).collect();
            let handed_on = graph && needed.iter().any(|k| k.maybe_null);
            let own = Known { maybe_null: handed_on, ..Known::default() };
            let (mut step, own) = self.step(&Place { known: seen, ..place.clone() }, &names, own);
            before.push(all);
            if graph && !needs.is_empty() {
                step["needs"] = json!(names);
            }
            steps.push(step);
            known.push(own);
        }
        if graph {
            into.insert("order".into(), json!("Graph"));
            // A graph may be written in any order.
            if self.chance.percent(30) {
                steps.reverse();
            }
        }
        into.insert("steps".into(), Value::Array(steps));
        known
    }

    fn step(&mut self, place: &Place, needed: &[String], mut own: Known) -> (Value, Known) {
        self.serial += 1;
        own.name = format!("s{}", self.serial);
        let mut step = Map::from_iter([("name".to_owned(), json!(own.name))]);
        if self.chance.percent(20) {
            step.insert("when".into(), json!(self.when(place, needed)));
            own.maybe_null = true;
        }
        let person = self.chance.below(100);
        if person < 14 {
            self.left -= place.times;
            self.of_people(&mut step, place, person < 7);
            return (Value::Object(step), own);
        }
        let plural = place.depth < 3 && self.chance.percent(35) && self.left >= place.times * 2;
        let mut inside = place.clone();
        if plural {
            inside.times *= 3;
            inside.items.push(format!("e{}", self.serial));
            let each = self.for_each(place);
            step.insert("forEach".into(), each);
        }
        if place.depth < 2 && self.chance.percent(25) && self.left >= inside.times * 2 {
            self.group(&mut step, &Place { depth: place.depth + 1, ..inside });
        } else {
            self.left -= inside.times;
            self.execution(&mut step, &inside, &mut own);
            own.is_agents = !plural;
        }
        if plural && self.chance.percent(35) {
            let collect = if step.contains_key("agentId") { Some(place_of(&own.name)) } else { self.inner(&step) };
            if let Some(text) = collect {
                step["forEach"]["collect"] = json!(text);
            }
        }
        if !self.settled && !step.contains_key("gate") && self.chance.percent(18) {
            let way = *self.chance.pick(&["Fail", "Continue", "Continue"]);
            step.insert("onFailure".into(), json!(way));
            own.maybe_null |= way == "Continue";
        }
        own.see(&step, inside.times);
        (Value::Object(step), own)
    }

    /// What a group, or an item of it, gives: the output of one of its steps.
    fn inner(&mut self, step: &Map<String, Value>) -> Option<String> {
        let steps = step.get("steps")?.as_array()?.clone();
        let one = self.chance.pick(&steps);
        Some(format!("steps.{}.output", one["name"].as_str()?))
    }

    fn when(&mut self, place: &Place, needed: &[String]) -> String {
        if let (Some(item), true) = (place.items.last(), self.chance.percent(50)) {
            return format!("{item}.id != \"k0\"");
        }
        if let (false, true) = (needed.is_empty(), self.chance.percent(60)) {
            let name = self.chance.pick(needed).clone();
            let sign = if self.chance.percent(60) { "==" } else { "!=" };
            let phase = *self.chance.pick(&["Completed", "Skipped"]);
            return format!("steps.{name}.phase {sign} \"{phase}\"");
        }
        (*self.chance.pick(&["parameters.yes", "parameters.no", "parameters.no"])).to_owned()
    }

    fn for_each(&mut self, place: &Place) -> Value {
        // What others may put anew is read outside of a forEach only.
        let shared = |list: &&String| {
            place.depth == 0 || !list.contains("documents.inline") && !list.contains("documents.brief")
        };
        let lists: Vec<String> = place.known.iter().flat_map(|k| &k.lists).filter(shared).cloned().collect();
        let item = format!("e{}", self.serial);
        // What people put anew while the run goes on is the list most worth reading.
        let brief = lists.iter().rfind(|list| list.contains("documents.brief")).cloned();
        let list = brief.filter(|_| self.chance.percent(50)).unwrap_or_else(|| self.chance.pick(&lists).clone());
        let mut each = json!({"in": list, "as": item});
        if self.chance.percent(70) {
            each["key"] = json!(format!("{item}.id"));
        }
        if self.chance.percent(60) {
            each["maxParallel"] = json!(self.chance.between(1, 3));
        }
        if self.chance.percent(30) {
            each["tolerate"] = if self.chance.percent(50) { json!(1) } else { json!("50%") };
        }
        each
    }

    fn group(&mut self, step: &mut Map<String, Value>, place: &Place) {
        let count = self.chance.between(1, 3);
        let inner = self.list(step, count, place);
        if self.chance.percent(40) {
            let output = self.output(&inner);
            step.insert("output".into(), json!(output));
        }
    }

    /// What a list gives, if not the output of its last step.
    fn output(&mut self, inner: &[Known]) -> String {
        let one = self.chance.pick(inner).clone();
        if one.is_agents { place_of(&one.name) } else { format!("steps.{}.output", one.name) }
    }

    /// A question, or an approval alone.
    fn of_people(&mut self, step: &mut Map<String, Value>, place: &Place, asks: bool) {
        if asks {
            step.insert("ask".into(), json!({"question": "How many?"}));
            return;
        }
        let gate = if self.chance.percent(30) { json!({"approvals": 2}) } else { json!({}) };
        step.insert("gate".into(), gate);
        self.parameters(step, place);
    }

    fn parameters(&mut self, step: &mut Map<String, Value>, place: &Place) {
        let steps: Vec<Known> = place.known.iter().filter(|k| !k.name.is_empty()).cloned().collect();
        let lists: Vec<String> = place.known.iter().flat_map(|k| k.lists.clone()).collect();
        let what = match self.chance.below(4) {
            0 => self.chance.pick(&lists).clone(),
            1 | 2 if !steps.is_empty() => {
                let one = self.chance.pick(&steps);
                if one.is_agents { place_of(&one.name) } else { format!("steps.{}.output", one.name) }
            }
            _ => return,
        };
        step.insert("parameters".into(), json!({"seen": format!("${{ {what} }}")}));
    }

    fn execution(&mut self, step: &mut Map<String, Value>, place: &Place, own: &mut Known) {
        step.insert("agentId".into(), json!(self.chance.pick(&self.agents.clone())));
        self.parameters(step, place);
        if self.chance.percent(30) {
            let gate = match self.chance.below(4) {
                0 => json!({"onReject": "Revise", "maxRounds": self.chance.between(2, 3)}),
                1 => json!({"approvals": 2}),
                _ => json!({}),
            };
            step.insert("gate".into(), gate);
        }
        if self.chance.percent(20) {
            step.insert("retry".into(), json!({"maxAttempts": self.chance.between(1, 2)}));
        }
        let made: Vec<String> = place.known.iter().flat_map(|k| k.documents.clone()).collect();
        let mut documents = Vec::new();
        if !self.wanted.is_empty() && self.chance.percent(60) {
            documents.push(self.wanted[0].clone());
        }
        if !made.is_empty() && self.chance.percent(40) {
            documents.push(self.chance.pick(&made).clone());
        }
        if !documents.is_empty() {
            step.insert("documents".into(), json!(documents));
        }
        if self.chance.percent(40) {
            step.insert("produces".into(), json!({"type": format!("doc-{}", own.name), "format": "json"}));
        }
    }
}

impl Known {
    /// What can be read behind that step.
    fn see(&mut self, step: &Map<String, Value>, times: i64) {
        let name = self.name.clone();
        if self.is_agents {
            self.lists.push(items_of(&name));
        }
        // The documents of items, and of what may be skipped, are not for all.
        if times != 1 || self.maybe_null {
            return;
        }
        if step.contains_key("produces") {
            self.documents.push(format!("doc-{name}"));
            self.lists.push(format!("has(documents.doc_{name}) ? documents.doc_{name}.items : []"));
        }
        // After a step that needed it, the brief is there.
        let needs = step.get("documents").and_then(Value::as_array);
        if needs.is_some_and(|d| d.iter().any(|t| t == "brief")) {
            self.lists.push("documents.brief.items".into());
        }
    }
}
