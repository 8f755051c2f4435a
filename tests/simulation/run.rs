//! One seed from beginning to end: a time of faults, then calm, in which everything must come to its end; then the runs
//! are deleted, and nothing may be left.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};

use super::chance::Chance;
use super::judge;
use super::operator::Operator;
use super::people::People;
use super::search::Told;
use super::server::{Kind, Propagation, Request};
use super::workload::Workload;
use super::world::{Event, Faults, Who, World};

/// Longer than anything that happens by itself: time-outs (600 s to start, where the Agent is gone), back-off, resync.
const CALM: i64 = 700_000;
const PATIENCE: usize = 60;

/// The seed, with faults; where its end state does not depend on them, it is compared with that of a quiet world.
pub fn tell(seed: u64, aloud: bool) -> Told {
    let mut told = one(seed, aloud, true);
    if told.0.violation.is_none() && told.1.is_some() && seed.is_multiple_of(4) {
        let quiet = one(seed, false, false);
        if quiet.0.violation.is_some() {
            return quiet.0;
        }
        if quiet.1 != told.1 {
            let what = format!("the end differs from the undisturbed one: {:?} is not {:?}", told.1, quiet.1);
            told.0.story.push(format!("VIOLATION: {what}"));
            told.0.violation = Some(what);
        }
    }
    told.0
}

type End = BTreeMap<String, Value>;

fn one(seed: u64, aloud: bool, faulty: bool) -> (Told, Option<End>) {
    let mut world = open(seed, aloud, faulty);
    let end = catch_unwind(AssertUnwindSafe(|| live(&mut world, faulty)));
    let end = end.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        world.violated(format!("a panic: {words}"));
        None
    });
    let (writes, started) = (world.writes(), world.judge.starts());
    let had = std::mem::take(&mut world.judge.course.had);
    (Told { violation: world.violation, story: world.story.unwrap_or_default(), writes, started, had }, end)
}

fn open(seed: u64, aloud: bool, faulty: bool) -> World {
    let mut chance = Chance::new(seed);
    let workload = Workload::generate(&mut chance.branch());
    let trouble = Faults::some(&mut chance.branch());
    let mut people = People { answers: vec!["retry"], ..People::default() };
    if !workload.settled {
        people.rejects = *chance.pick(&[0, 5, 30]);
        let ways = [vec!["retry"], vec!["retry", "skip"], vec!["fail", "retry", "skip"]];
        people.answers.clone_from(chance.pick(&ways));
        people.destructive = chance.percent(50);
        people.cancels = chance.percent(20);
    }
    people.suspends = chance.percent(25);
    let two = faulty && chance.percent(50);
    let mut world = World::new(chance.branch(), workload, aloud.then(Vec::new));
    world.people = people;
    world.tell(|| format!("seed {seed}: {}", if faulty { format!("{trouble:?}") } else { "no faults".into() }));
    if faulty {
        world.faults = trouble;
    }
    for _ in 0..if two { 2 } else { 1 } {
        let ahead = if faulty { world.chance.between(-2_000, 2_000) } else { 0 };
        world.operators.push(Operator::new(ahead));
    }
    world
}

fn live(world: &mut World, faulty: bool) -> Option<End> {
    begin(world, faulty);
    if faulty {
        let long = world.chance.between(20_000, 240_000);
        world.run_until(long);
        world.tell(|| "from here on nothing goes wrong any more".into());
        calm(world);
    }
    settle(world);
    let comparable = world.workload.settled && world.violation.is_none();
    let end = comparable.then(|| end_state(world));
    leave(world);
    end
}

fn begin(world: &mut World, faulty: bool) {
    let workload = world.workload.clone();
    world.tell(|| format!("the run: {}", workload.spec));
    if let Some(template) = workload.template {
        world.tell(|| format!("the template: {template}"));
        let object = json!({"metadata": {"name": "template"}, "spec": template});
        let _ = world.ask(Who::Admin, &Request::Create(Kind::WorkflowTemplate, object));
    }
    world.restore_agents();
    plant(world);
    for op in 0..world.operators.len() {
        world.start_operator(op);
    }
    world.create_runs();
    if faulty {
        world.soon(1_000, 10_000, Event::Person);
    }
    if world.faults.mischief > 0 {
        world.soon(1_000, 20_000, Event::Mischief);
    }
}

/// Objects of others, with names and labels like ours.
fn plant(world: &mut World) {
    let labels = json!({"planted": "yes", "lockstep.dev/workflow": "run", "lockstep.dev/steprun": "run-s1"});
    let meta = |name: &str| json!({"name": name, "labels": labels});
    let document = json!({"type": "brief", "scope": "Workflow", "scopeId": "someone-else", "workflow": "another",
        "content": "{}"});
    for (kind, object) in [
        (Kind::Job, json!({"metadata": meta("run-s1-job")})),
        (Kind::ConfigMap, json!({"metadata": meta("run-s1")})),
        (Kind::Document, json!({"metadata": meta("run-brief"), "spec": document})),
    ] {
        let made = world.ask(Who::Admin, &Request::Create(kind, object)).expect("nothing is there yet");
        world.judge.planted.push(made);
    }
}

/// Everything stands again, and stays.
fn calm(world: &mut World) {
    world.faults = Faults::default();
    world.people.resting = true;
    world.policies_back();
    for op in 0..world.operators.len() {
        if !world.operators[op].alive {
            world.start_operator(op);
        }
    }
    world.sweep_pods();
}

/// Until nothing moves; then everybody helps; until nothing is open.
fn settle(world: &mut World) {
    for _ in 0..PATIENCE {
        if !quiet(world) || world.violation.is_some() {
            return;
        }
        world.judge_waits();
        let over = judge::is_settled(&world.server);
        if world.violation.is_some() || over && !(world.workload.retries && world.retry()) {
            return;
        }
        world.everybody_helps();
    }
    let open = judge::open_runs(&world.server);
    world.violated(format!("these runs come to no end: {open}"));
}

/// Time passes until nobody writes for longer than anything takes.
fn quiet(world: &mut World) -> bool {
    for _ in 0..PATIENCE {
        let before = world.writes();
        world.run_until(world.now + CALM);
        if world.violation.is_some() {
            return false;
        }
        if world.writes() == before {
            return true;
        }
    }
    world.violated("there is no quiet: something is written again and again");
    false
}

/// Phases and outputs, by place.
fn end_state(world: &World) -> End {
    let mut end = End::new();
    for step_run in world.server.all(Kind::StepRun) {
        let status = &step_run.value["status"];
        let place = world.workload.place(&step_run.uid).to_owned();
        // What a second run takes over is a matter of chance, and with it what its lists give; who accepted is one, too.
        if place.starts_with("again:") {
            continue;
        }
        let digest =
            if step_run.value["spec"]["agentId"].is_null() { &Value::Null } else { &status["result"]["digest"] };
        end.insert(place, json!([status["phase"], digest]));
    }
    for run in world.server.all(Kind::Workflow) {
        end.insert(run.name.clone(), run.value["status"]["phase"].clone());
    }
    end
}

/// The runs go, and everything of theirs with them.
fn leave(world: &mut World) {
    if world.violation.is_some() {
        return;
    }
    world.judge_end();
    for run in world.all(Kind::Workflow) {
        let request = Request::Delete {
            kind: Kind::Workflow,
            name: run.name.clone(),
            uid: None,
            version: None,
            propagation: Propagation::Background,
        };
        let _ = world.ask(Who::Admin, &request);
    }
    if quiet(world) {
        world.judge_leftovers();
    }
}
