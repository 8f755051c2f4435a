use serde_json::{Value, json};

use super::*;
use crate::api::workflow::WorkflowStatus;
use crate::definition::expression::InProcess;

const OPERATOR: &str = "system:serviceaccount:lockstep-system:lockstep-operator";
const MADE: &str = "2026-11-21T10:00:00Z";

fn time(text: &str) -> Time {
    Time(text.parse().unwrap_or_else(|why| panic!("{text}: {why}")))
}

fn observed(spec: Value, now: &str) -> Observed {
    let mut trigger = Trigger::new("nightly", serde_json::from_value(spec).expect("a spec"));
    trigger.metadata.namespace = Some("team".into());
    trigger.metadata.uid = Some("t-uid".into());
    trigger.metadata.generation = Some(3);
    trigger.metadata.creation_timestamp = Some(time(MADE));
    Observed {
        trigger: Arc::new(trigger),
        runs: Vec::new(),
        on_the_way: Vec::new(),
        template_exists: true,
        template_fault: None,
        installation: Arc::new(Installation {
            api_url: "https://api/".into(),
            account: OPERATOR.into(),
            ..Installation::default()
        }),
        evaluator: Arc::new(InProcess),
        now: time(now),
    }
}

fn every_hour(schedule: &Value, now: &str) -> Observed {
    let mut all = json!({"cron": "0 * * * *"});
    for (key, value) in schedule.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    let run = json!({"templateRef": {"name": "report"}, "input": "Report of ${ scheduledTime }"});
    observed(json!({"schedule": all, "run": run}), now)
}

impl Observed {
    fn change(&mut self, change: impl FnOnce(&mut Trigger)) {
        change(Arc::make_mut(&mut self.trigger));
    }

    fn last(mut self, at: &str) -> Self {
        let status = TriggerStatus { last_schedule_time: Some(time(at)), ..TriggerStatus::default() };
        self.change(|trigger| trigger.status = Some(status));
        self
    }

    /// A run of that hour, with its phase.
    fn run(mut self, at: &str, phase: Phase) -> Self {
        let mut run =
            Workflow::new(&name::scheduled_run("nightly", time(at).0.as_second(), ""), WorkflowSpec::default());
        let notes = [(SCHEDULED_TIME, at), (CREATED_BY, OPERATOR)];
        run.metadata.annotations = Some(notes.map(|(key, text)| (key.to_owned(), text.to_owned())).into());
        run.metadata.creation_timestamp = Some(time(at));
        run.metadata.uid = Some(format!("uid-{at}"));
        let completed_at = phase.is_terminal().then(|| time(at));
        run.status = Some(WorkflowStatus { phase: Some(phase), completed_at, ..WorkflowStatus::default() });
        self.runs.push(Arc::new(run));
        self
    }
}

/// What is started, cancelled and deleted, and what is latched and awaited.
fn said(plan: &Plan<TriggerStatus>) -> String {
    let hour = |text: &str| text.get(11..16).unwrap_or(text).to_owned();
    let mut words: Vec<String> = plan
        .effects
        .iter()
        .map(|effect| match effect {
            Effect::StartRun { run, replaced } => {
                let notes = run.metadata.annotations.clone().unwrap_or_default();
                let cancelled = replaced.iter().map(|(_, uid)| format!("cancel {}, ", hour(&uid["uid-".len()..])));
                format!("{}start {}", cancelled.collect::<String>(), hour(&notes[SCHEDULED_TIME]))
            }
            Effect::Delete { uid, .. } => format!("delete {}", hour(&uid["uid-".len()..])),
            other => panic!("{other:?}"),
        })
        .collect();
    let status = plan.status.clone().unwrap_or_default();
    let of = |time: Option<Time>| time.map_or("never".to_owned(), |time| hour(&time.0.to_string()));
    words.push(format!("last {} next {}", of(status.last_schedule_time), of(status.next_schedule_time)));
    words.extend(plan.notices.iter().map(|notice| notice.reason.to_owned()).filter(|reason| reason != "RunStarted"));
    words.join(", ")
}

#[test]
#[rustfmt::skip] // one case, one line
fn schedules_start_runs_as_cronjobs_do() {
    let none = json!({});
    let forbid = json!({"concurrencyPolicy": "Forbid"});
    let replace = json!({"concurrencyPolicy": "Replace"});
    let deadline = json!({"startingDeadlineSeconds": 600});
    for (what, o, expected) in [
        ("nothing yet", every_hour(&none, "2026-11-21T10:30:00Z"), "last never next 11:00"),
        ("not its own making", every_hour(&none, MADE), "last never next 11:00"),
        ("due", every_hour(&none, "2026-11-21T11:00:00Z"), "start 11:00, last 11:00 next 12:00"),
        ("started", every_hour(&none, "2026-11-21T11:00:01Z").last("2026-11-21T11:00:00Z"), "last 11:00 next 12:00"),
        ("missed for hours: the newest alone", every_hour(&none, "2026-11-21T20:10:00Z"), "start 20:00, last 20:00 next 21:00"),
        ("missed, and too late", every_hour(&deadline, "2026-11-21T11:10:00Z"), "last never next 12:00"),
        ("missed, in time", every_hour(&deadline, "2026-11-21T11:09:59Z"), "start 11:00, last 11:00 next 12:00"),
        ("suspended", every_hour(&json!({"suspend": true}), "2026-11-21T11:00:00Z"), "last never next never"),
        ("a pass that came no further", every_hour(&forbid, "2026-11-21T11:00:02Z").run("2026-11-21T11:00:00Z", Phase::Running), "last 11:00 next 12:00"),
        ("beside another", every_hour(&none, "2026-11-21T12:00:00Z").last("2026-11-21T11:00:00Z").run("2026-11-21T11:00:00Z", Phase::WaitingForAcceptance), "start 12:00, last 12:00 next 13:00"),
        ("forbidden", every_hour(&forbid, "2026-11-21T12:00:00Z").last("2026-11-21T11:00:00Z").run("2026-11-21T11:00:00Z", Phase::Running), "last 11:00 next 13:00"),
        ("forbidden no more, late", every_hour(&forbid, "2026-11-21T12:40:00Z").last("2026-11-21T11:00:00Z").run("2026-11-21T11:00:00Z", Phase::Failed), "start 12:00, last 12:00 next 13:00"),
        ("replaced", every_hour(&replace, "2026-11-21T12:00:00Z").last("2026-11-21T11:00:00Z").run("2026-11-21T10:00:00Z", Phase::Completed).run("2026-11-21T11:00:00Z", Phase::Running), "cancel 11:00, start 12:00, last 12:00 next 13:00"),
        ("a clock behind", every_hour(&none, "2026-11-21T10:59:00Z").last("2026-11-21T11:00:00Z"), "last 11:00 next 11:00"),
        ("history", { let mut o = every_hour(&none, "2026-11-21T13:01:00Z").last("2026-11-21T13:00:00Z").run("2026-11-21T12:00:00Z", Phase::Completed).run("2026-11-21T10:00:00Z", Phase::Failed).run("2026-11-21T11:00:00Z", Phase::Running).run("2026-11-21T13:00:00Z", Phase::Cancelled); o.change(|t| t.spec.history_limit = Some(1)); o }, "delete 10:00, delete 12:00, last 13:00 next 14:00"),
    ] {
        assert_eq!(said(&trigger(&o)), expected, "{what}");
    }
}

#[test]
fn a_run_of_a_schedule_is_one_run_and_says_its_time() {
    let o = every_hour(&json!({"timeZone": "Europe/Berlin"}), "2026-11-21T11:00:05Z");
    let made = |o: &Observed| {
        trigger(o).effects.into_iter().find_map(|effect| match effect {
            Effect::StartRun { run, .. } => Some(*run),
            _ => None,
        })
    };
    let run = made(&o).expect("a run");
    assert_eq!(made(&o), Some(run.clone()), "the same pass again is the same run");
    let meta = &run.metadata;
    assert_eq!(meta.name, Some(name::scheduled_run("nightly", time("2026-11-21T11:00:00Z").0.as_second(), "")));
    assert_eq!(run.spec.input.as_deref(), Some("Report of 2026-11-21T12:00:00+01:00"));
    assert_eq!(
        meta.annotations.as_ref().map(|notes| notes[SCHEDULED_TIME].as_str()),
        Some("2026-11-21T12:00:00+01:00")
    );
    // Known, and no person.
    let by = meta.annotations.as_ref().map(|notes| notes[name::CREATED_BY].as_str());
    assert_eq!(by, Some(OPERATOR));
    assert_eq!(meta.labels.as_ref().map(|labels| labels[LABEL_TRIGGER].as_str()), Some("nightly"));
    assert!(is_own(("nightly", OPERATOR), &run) && !is_own(("other", OPERATOR), &run), "by its name");
    // What its expressions cannot give is told, and the time is over.
    let mut faulty = o;
    faulty.change(|trigger| trigger.spec.run.input = Some("${ scheduledTime.nothing }".into()));
    assert_eq!(said(&trigger(&faulty)), "last 11:00 next 12:00, RunNotStarted");
}

/// A run that a person made under a name that could be foreseen, with all that one of ours has, but who made it.
fn squatter(name: &str, uid: &str, by: Option<&str>) -> Arc<Workflow> {
    let mut run = Workflow::new(name, WorkflowSpec::default());
    run.metadata.uid = Some(uid.into());
    run.metadata.labels = Some([(LABEL_TRIGGER.to_owned(), "nightly".to_owned())].into());
    let by = by.map(|by| (CREATED_BY, by));
    let notes = [(SCHEDULED_TIME, "2026-11-21T11:00:00Z")].into_iter().chain(by);
    run.metadata.annotations = Some(notes.map(|(key, text)| (key.to_owned(), text.to_owned())).collect());
    run.metadata.creation_timestamp = Some(time(MADE));
    Arc::new(run)
}

/// Names follow from Trigger and time. Whoever may make runs makes one first: it costs the name, not the run, and is no
/// run of the schedule in anything else.
#[test]
fn who_takes_the_name_of_a_schedules_run_costs_it_the_name_alone() {
    let second = time("2026-11-21T11:00:00Z").0.as_second();
    let name = |salt: &str| name::scheduled_run("nightly", second, salt);
    let now = "2026-11-21T11:00:02Z";
    let started = |o: &Observed| {
        trigger(o).effects.into_iter().find_map(|effect| match effect {
            Effect::StartRun { run, .. } => Some(*run),
            _ => None,
        })
    };
    for by in [None, Some("mallory")] {
        for policy in ["Allow", "Forbid", "Replace"] {
            let mut o = every_hour(&json!({"concurrencyPolicy": policy}), now);
            let squatters = vec![squatter(&name(""), "u1", by), squatter(&name("u1"), "u2", by)];
            o.runs.clone_from(&squatters);
            let cache =
                |wanted: &str| squatters.iter().find(|run| run.metadata.name.as_deref() == Some(wanted)).cloned();
            o.on_the_way = on_the_way(&o.trigger, (OPERATOR, &o.now), cache);
            assert_eq!(o.on_the_way.len(), 2);
            let plan = trigger(&o);
            assert_eq!(said(&plan), "start 11:00, last 11:00 next 12:00, NameTaken", "{by:?} {policy}");
            let note =
                plan.notices.iter().find(|notice| notice.reason == "NameTaken").map(|notice| notice.note.clone());
            assert!(note.is_some_and(|note| note.contains(&name("")) && note.contains("uid u1")));
            assert_eq!(plan.status.and_then(|status| status.runs), Some(TriggerRuns::default()), "it is none of ours");
            let run = started(&o).expect("a run");
            assert_eq!(run.metadata.name, Some(name("u2")));
            assert!(is_own(("nightly", OPERATOR), &run), "known by name and salt");
            // The pass came no further: it is found again.
            o.on_the_way.push(Arc::new(run.clone()));
            o.runs.push(Arc::new(run));
            assert_eq!(said(&trigger(&o)), "last 11:00 next 12:00", "{by:?} {policy}");
        }
    }
    // What the operator latched says so, where the annotation was lost.
    let mut ours = squatter(&name(""), "u1", None).as_ref().clone();
    ours.status = Some(WorkflowStatus { creator: Some(OPERATOR.into()), ..WorkflowStatus::default() });
    let mut o = every_hour(&json!({}), now);
    o.on_the_way = vec![Arc::new(ours)];
    assert_eq!(said(&trigger(&o)), "last 11:00 next 12:00");
    // Who takes them all is told, and the time is not over.
    let mut all: Vec<Arc<Workflow>> = Vec::new();
    for n in 0..PLACES {
        let salt = all.last().and_then(|run| run.metadata.uid.clone()).unwrap_or_default();
        all.push(squatter(&name(&salt), &format!("u{n}"), None));
    }
    let mut o = every_hour(&json!({}), now);
    o.on_the_way = all;
    let plan = trigger(&o);
    assert_eq!(
        (said(&plan).as_str(), plan.requeue),
        ("last never next 12:00, RunNotStarted", Some(Duration::from_secs(60)))
    );
    let status = plan.status.expect("a status");
    let ready = condition::get(&status.conditions, "Ready").expect("a condition");
    assert!(ready.reason == "NameTaken" && ready.message.contains(&name("")), "{ready:?}");
}

#[test]
fn a_run_is_of_an_event_if_its_sender_made_it_or_it_does_the_same() {
    let o = observed(json!({"event": {"type": "push"}, "run": {"templateRef": {"name": "t"}}}), MADE);
    let arguments = || RunArguments { input: Some("look".into()), ..RunArguments::default() };
    let made = |by: &str, change: &dyn Fn(&mut Workflow)| {
        let mut run = event_run(&o.trigger, &push(&json!(1)), arguments(), "");
        run.metadata.annotations.get_or_insert_default().insert(CREATED_BY.into(), by.into());
        change(&mut run);
        run
    };
    let wanted = made("ci", &|_| {});
    let other = |run: &mut Workflow| run.spec.template_ref = Some(TemplateRef { name: "other".into() });
    let idle = |run: &mut Workflow| run.spec.retry_of = Some(crate::api::workflow::RetryOf::default());
    let said = |run: &mut Workflow| run.spec.input = Some("look away".into());
    let held = |run: &mut Workflow| (run.spec.suspend, run.spec.ttl_seconds_after_finished) = (Some(true), Some(5));
    let bare = |run: &mut Workflow| run.metadata.annotations = None;
    let asked = |run: &mut Workflow| {
        run.metadata.annotations.get_or_insert_default().remove(CREATED_BY);
    };
    let latched = |run: &mut Workflow| {
        other(run);
        run.metadata.annotations.get_or_insert_default().remove(CREATED_BY);
        run.status = Some(WorkflowStatus { creator: Some("ci".into()), ..WorkflowStatus::default() });
    };
    let table = vec![
        ("sent twice", made("ci", &|_| {}), true),
        ("sent twice, and the Trigger was changed meanwhile", made("ci", &other), true),
        ("by another sender", made("cd", &|_| {}), true),
        ("and held by somebody since", made("cd", &held), true),
        ("another template", made("mallory", &other), false),
        ("another input", made("mallory", &said), false),
        ("that takes results over", made("mallory", &idle), false),
        (
            "by nobody who is known",
            made("", &|run| {
                asked(run);
                other(run);
            }),
            false,
        ),
        ("latched", made("", &latched), true),
        ("of no event", made("ci", &bare), false),
    ];
    for (what, there, expected) in table {
        assert_eq!(is_of_event("nightly", &there, &wanted), expected, "{what}");
    }
    let again = event_run(&o.trigger, &push(&json!(1)), arguments(), "u1");
    assert_ne!(again.metadata.name, wanted.metadata.name);
    assert!(event_of("nightly", &again).is_some(), "known by name and salt");
}

fn push(data: &Value) -> CloudEvent {
    let event = json!({"specversion": "1.0", "id": "a/7", "source": "/git", "type": "push", "data": data});
    CloudEvent::structured(event).expect("an event")
}

#[test]
fn the_same_event_is_the_same_run_and_its_id_is_kept() {
    let o = observed(json!({"event": {"type": "push"}, "run": {"templateRef": {"name": "t"}}}), MADE);
    let run = event_run(&o.trigger, &push(&json!(1)), RunArguments::default(), "");
    assert_eq!(run, event_run(&o.trigger, &push(&json!(1)), RunArguments::default(), ""));
    let notes = run.metadata.annotations.clone().expect("notes");
    assert_eq!((notes[EVENT_ID].as_str(), notes[EVENT_SOURCE].as_str()), ("a/7", "/git"));
    assert_eq!(run.spec.session, Some(name::session("a/7")));
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let traced = |text: &str| {
        let event = json!({"specversion": "1.0", "id": "1", "source": "/git", "type": "push", "traceparent": text});
        let event = CloudEvent::structured(event).expect("an event");
        event_run(&o.trigger, &event, RunArguments::default(), "")
            .metadata
            .annotations
            .and_then(|notes| notes.get(TRACEPARENT).cloned())
    };
    assert_eq!((traced(traceparent).as_deref(), traced("00-x")), (Some(traceparent), None));
    let arguments = RunArguments { session: Some("pr-7".into()), ..RunArguments::default() };
    assert_eq!(event_run(&o.trigger, &push(&json!(1)), arguments, "").spec.session.as_deref(), Some("pr-7"));
    for (filter, expected) in [
        (json!({"type": "push"}), true),
        (json!({"type": "push", "source": "/git"}), true),
        (json!({"type": "push", "source": "/"}), false),
        (json!({}), false),
    ] {
        let spec = serde_json::from_value(json!({"event": filter, "run": {"templateRef": {"name": "t"}}}));
        assert_eq!(means(&spec.expect("a spec"), &push(&json!(1))), expected, "{filter}");
    }
}

#[test]
fn an_event_is_known_by_its_run_for_a_day() {
    let mut o =
        observed(json!({"event": {"type": "push"}, "historyLimit": 0, "run": {"templateRef": {"name": "t"}}}), MADE);
    let mut run = event_run(&o.trigger, &push(&json!(1)), RunArguments::default(), "");
    run.metadata.creation_timestamp = Some(time(MADE));
    run.metadata.uid = Some("uid-2026-11-21T10:00:00Z".into());
    let over = WorkflowStatus { phase: Some(Phase::Completed), completed_at: Some(time(MADE)), ..Default::default() };
    run.status = Some(over);
    // A label alone makes no run another's, and takes none away.
    let mut stranger = run.clone();
    stranger.metadata.name = Some("precious".into());
    o.runs = vec![Arc::new(run.clone()), Arc::new(stranger)];
    let plan = trigger(&o);
    assert_eq!((plan.effects.len(), plan.requeue), (0, Some(Duration::from_secs(24 * 3600))));
    let status = plan.status.expect("a status");
    assert_eq!(status.url.as_deref(), Some("https://api/namespaces/team/events/nightly"));
    assert_eq!(status.last_event.map(|event| event.id).as_deref(), Some("a/7"));
    assert_eq!(status.last_run.map(|last| last.name), run.metadata.name);
    assert_eq!(status.runs, Some(TriggerRuns { completed: 1, ..TriggerRuns::default() }));
    o.now = time("2026-11-22T10:00:00Z");
    let plan = trigger(&o);
    assert_eq!(said(&plan), "delete 10:00, last never next never");
    assert_eq!(remembered(&run, &o.now), None);
}

#[test]
fn a_trigger_says_what_is_wrong_with_it() {
    let ready = |spec: Value, template: bool| {
        let mut o = observed(spec, MADE);
        o.template_exists = template;
        let status = trigger(&o).status.expect("a status");
        assert_eq!(status.observed_generation, 3);
        let ready = condition::get(&status.conditions, "Ready").cloned().expect("a condition");
        let stalled = condition::get(&status.conditions, STALLED).is_some();
        (ready.status, ready.reason, stalled, ready.message)
    };
    let run = json!({"templateRef": {"name": "t"}});
    let good = ready(json!({"event": {}, "run": run}), true);
    assert_eq!((good.0.as_str(), good.1.as_str(), good.2), ("True", "Valid", false));
    let later = ready(json!({"event": {}, "run": run}), false);
    assert_eq!((later.0.as_str(), later.1.as_str(), later.2), ("False", "TemplateNotFound", false));
    let mut unread = observed(json!({"event": {}, "run": run}), MADE);
    (unread.template_exists, unread.template_fault) = (false, Some("too deep".to_owned()));
    let status = trigger(&unread).status.expect("a status");
    let told = condition::get(&status.conditions, "Ready").expect("a condition");
    assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "TemplateInvalid"));
    assert!(told.message.contains("WorkflowTemplate t cannot be read: too deep"), "{}", told.message);
    let bad = ready(json!({"schedule": {"cron": "x"}, "run": run}), true);
    assert_eq!((bad.0.as_str(), bad.1.as_str(), bad.2), ("False", "Invalid", true));
    assert!(bad.3.contains("spec.schedule.cron"), "{}", bad.3);
}
