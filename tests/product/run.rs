//! One seed from beginning to end: a time of faults, then calm, in which everything must come to its end; then the runs
//! are deleted, and nothing may be left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Once;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, advance, sleep_until};

use super::chance::Chance;
use super::judge;
use super::operator::Operator;
use super::people::People;
use super::plans::Listener;
use super::search::Told;
use super::server::{Kind, Propagation, Request};
use super::talk;
use super::workload::Workload;
use super::world::{Event, Faults, Shared, Who, World, enter};

/// Longer than anything that happens by itself: time-outs (600 s to start, where the Agent is gone), back-off, resync.
const CALM: i64 = 700_000;
const PATIENCE: usize = 60;
/// Expressions are parsed on this stack: the parser is recursive.
const STACK: usize = 32 << 20;

type End = BTreeMap<String, Value>;

/// What a process makes once (tables of functions, parsed files) draws from the chance of the thread that happens to need
/// it first: none of the worlds that count.
fn warm_up() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| (0..WARMING).for_each(|seed| drop(one(seed, true, true))));
}

/// Worlds that need everything that is made once.
const WARMING: u64 = 5;

/// The seed, with faults; where its end state does not depend on them, it is compared with that of a quiet world.
pub fn tell(seed: u64, aloud: bool) -> Told {
    warm_up();
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

/// In a thread of its own, whose chance is the seed's.
fn one(seed: u64, aloud: bool, faulty: bool) -> (Told, Option<End>) {
    let run = move || {
        determinism::seed(seed);
        fastrand::seed(seed);
        let heard = tracing::subscriber::set_default(Listener);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let told = runtime.expect("a runtime").block_on(whole(seed, aloud, faulty));
        drop(heard);
        told
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(run).expect("a thread");
    thread.join().unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default();
        let violation = Some(format!("a panic: {words}"));
        (Told { violation, story: Vec::new(), writes: 0, started: 0, had: BTreeSet::new() }, None)
    })
}

async fn whole(seed: u64, aloud: bool, faulty: bool) -> (Told, Option<End>) {
    let world = open(seed, aloud, faulty);
    let end = live(&world, faulty).await;
    let mut world = enter(&world);
    world.judge_listening();
    let (writes, started) = (world.writes(), world.judge.starts());
    let had = std::mem::take(&mut world.judge.course.had);
    let story = world.story.take().unwrap_or_default();
    (Told { violation: world.violation.take(), story, writes, started, had }, end)
}

fn open(seed: u64, aloud: bool, faulty: bool) -> Shared {
    let mut chance = Chance::new(seed);
    let mut workload = Workload::generate(&mut chance.branch());
    talk::begin(&mut workload, &mut chance.branch());
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
    let leader_elect = faulty && chance.percent(ELECTED);
    let shared = World::open(chance.branch(), workload, aloud.then(Vec::new));
    let mut world = enter(&shared);
    world.people = people;
    world.leader_elect = leader_elect;
    world.tell(|| format!("seed {seed}: {}", if faulty { format!("{trouble:?}") } else { "no faults".into() }));
    if faulty {
        world.faults = trouble;
    }
    for _ in 0..if two { 2 } else { 1 } {
        let ahead = if faulty { world.chance.between(-2_000, 2_000) } else { 0 };
        world.operators.push(Operator::new(ahead));
    }
    drop(world);
    shared
}

/// In how many of a hundred worlds the operators work by a Lease: it costs a request every two seconds.
const ELECTED: u64 = 8;

async fn live(world: &Shared, faulty: bool) -> Option<End> {
    begin(&mut enter(world), faulty);
    if faulty {
        let long = enter(world).chance.between(20_000, 240_000);
        run_until(world, long).await;
        calm(&mut enter(world));
    }
    settle(world).await;
    let comparable = {
        let world = enter(world);
        world.workload.settled && world.violation.is_none()
    };
    let end = comparable.then(|| end_state(&enter(world)));
    leave(world).await;
    end
}

/// Lets everything happen that is due up to then; stops at a violation.
async fn run_until(world: &Shared, end: i64) {
    loop {
        let (due, began, sooner, jump) = {
            let mut world = enter(world);
            if world.violation.is_some() || world.now >= end {
                return;
            }
            let jump = if world.proceed() { world.jump() } else { None };
            (world.next_due().min(end), world.began, world.sooner.clone(), jump)
        };
        if let Some(by) = jump {
            advance(Duration::from_millis(by)).await;
        }
        let due: Instant = began + Duration::from_millis(u64::try_from(due).unwrap_or_default());
        tokio::select! {
            biased;
            () = sooner.notified() => {}
            () = sleep_until(due) => {}
        }
    }
}

fn begin(world: &mut World, faulty: bool) {
    let workload = world.workload.clone();
    world.set_policies(true);
    world.tell(|| format!("the run: {}", workload.spec));
    if let Some(template) = workload.template {
        world.tell(|| format!("the template: {template}"));
        let object = json!({"metadata": {"name": "template"}, "spec": template});
        let _ = world.ask(Who::Admin, &Request::Create(Kind::WorkflowTemplate, object));
    }
    world.restore_agents();
    plant(world);
    deepen(world);
    world.start_gateway();
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

/// Objects that nest deeper than they can be read: a run that must come to its end, and others. Nobody else notices.
fn deepen(world: &mut World) {
    let deep = (0..150).fold(json!(1), |inner, _| json!({"a": inner}));
    let steps = json!([{"name": "a", "agentId": "deep"}]);
    for (kind, spec) in [
        (Kind::Workflow, json!({"parameters": deep, "steps": steps})),
        (Kind::WorkflowTemplate, json!({"parametersSchema": deep, "steps": steps})),
        (Kind::Agent, json!({"template": {}, "outputSchema": deep})),
    ] {
        let made = world.ask(Who::Admin, &Request::Create(kind, json!({"metadata": {"name": "deep"}, "spec": spec})));
        made.expect("nothing is there yet");
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
    world.tell(|| "from here on nothing goes wrong any more".into());
    world.faults = Faults::default();
    world.people.resting = true;
    world.policies_back();
    for op in 0..world.operators.len() {
        world.operators[op].stalled_until = 0;
        world.restart(op);
    }
    world.sweep_pods();
}

/// Until nothing moves; then everybody helps; until nothing is open.
async fn settle(world: &Shared) {
    for _ in 0..PATIENCE {
        if !quiet(world).await || enter(world).violation.is_some() {
            return;
        }
        let mut world = enter(world);
        world.judge_waits();
        let over = judge::is_settled(&world.server);
        if world.violation.is_some() || over && !(world.workload.retries && world.retry()) {
            return;
        }
        world.everybody_helps();
    }
    let mut world = enter(world);
    let open = judge::open_runs(&world.server);
    world.violated(format!("these runs come to no end: {open}"));
}

/// Time passes until nobody writes for longer than anything takes.
async fn quiet(world: &Shared) -> bool {
    for _ in 0..PATIENCE {
        let (before, now) = {
            let world = enter(world);
            (world.writes(), world.now)
        };
        run_until(world, now + CALM).await;
        let world = enter(world);
        if world.violation.is_some() {
            return false;
        }
        if world.writes() == before {
            return true;
        }
    }
    enter(world).violated("there is no quiet: something is written again and again");
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
async fn leave(world: &Shared) {
    if delete_runs(&mut enter(world)) && quiet(world).await {
        enter(world).judge_leftovers();
    }
}

/// Whether all is well so far.
fn delete_runs(world: &mut World) -> bool {
    if world.violation.is_some() {
        return false;
    }
    world.judge_end();
    world.judge_usage();
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
    true
}
