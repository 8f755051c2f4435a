use super::*;
use crate::api::step_run::StepRunSpec;

fn at(seconds: i64) -> Time {
    Time(Timestamp::from_second(seconds).expect("a time"))
}

fn step_run() -> StepRun {
    let mut spec = StepRunSpec { agent_id: "planner".to_owned(), ..StepRunSpec::default() };
    (spec.workflow.name, spec.workflow.uid) = ("shop".to_owned(), "run-uid".to_owned());
    let mut step_run = StepRun::new("shop-plan-0123", spec);
    step_run.metadata.namespace = Some("team".to_owned());
    step_run
}

fn named() -> MemorySpec {
    initial(&step_run(), "spring", &at(0)).spec
}

fn set<'a>(sequence: i64, key: &'a str, value: &'a str) -> Write<'a> {
    Write { step_run_uid: "s", attempt: 1, sequence, key, value: Some(value), if_revision: None }
}

/// What the gateway does with a change.
fn apply(memory: &mut MemorySpec, write: &Write<'_>) -> WriteVerdict {
    let verdict = super::write(memory, write);
    if let WriteVerdict::Change(change) = &verdict {
        memory.revision = change.revision;
        memory.writers.clone_from(&change.writers);
        match &change.entry {
            Some(entry) => drop(memory.entries.insert(write.key.to_owned(), entry.clone())),
            None => drop(memory.entries.remove(write.key)),
        }
    }
    verdict
}

fn written(verdict: &WriteVerdict) -> Option<i64> {
    match verdict {
        WriteVerdict::Change(change) => Some(change.revision),
        _ => None,
    }
}

#[test]
fn a_memory_begins_with_whose_it_is() {
    for (session, owned) in [("spring", false), ("_shop-12345678", true)] {
        let made = initial(&step_run(), session, &at(7));
        let value = |key: &str| made.spec.entries.get(key).map(|e| (e.value.as_str(), e.revision));
        let quoted = format!("\"{session}\"");
        assert_eq!(value("story_id"), Some((quoted.as_str(), 1)));
        assert_eq!(value("agent_id"), Some(("\"planner\"", 1)));
        assert_eq!(value("status"), Some(("\"initialized\"", 1)));
        assert_eq!((made.spec.entries.len(), made.spec.revision), (3, 1));
        assert_eq!((made.spec.agent_id.as_str(), made.spec.session.as_str()), ("planner", session));
        assert_eq!(made.metadata.namespace.as_deref(), Some("team"));
        let owners = made.metadata.owner_references.clone().unwrap_or_default();
        assert_eq!(owners.len(), usize::from(owned));
        assert!(owners.iter().all(|o| o.uid == "run-uid" && o.kind == "Workflow" && o.controller == Some(true)));
        assert_eq!(made.metadata.name, initial(&step_run(), session, &at(9)).metadata.name, "computed from both");
    }
    let other = StepRunSpec { agent_id: "writer".to_owned(), ..step_run().spec };
    let other = initial(&StepRun::new("s", other), "spring", &at(0)).metadata.name;
    let names =
        [initial(&step_run(), "spring", &at(0)), initial(&step_run(), "summer", &at(0))].map(|m| m.metadata.name);
    assert!(names[0] != names[1] && names[0] != other);
}

#[test]
fn what_is_somebody_elses_is_not_taken_for_ours() {
    let wanted = initial(&step_run(), "_shop-12345678", &at(0)).metadata;
    assert_eq!(seen(None, &wanted), MemorySeen::Absent);
    let there = ObjectMeta { uid: Some("m".to_owned()), ..wanted.clone() };
    assert_eq!(seen(Some(&there), &wanted), MemorySeen::There { uid: "m".to_owned() });
    let unlabelled = ObjectMeta { labels: None, ..there.clone() };
    assert!(matches!(seen(Some(&unlabelled), &wanted), MemorySeen::Foreign(why) if why.contains("agent")));
    let ownerless = ObjectMeta { owner_references: None, ..there };
    assert!(matches!(seen(Some(&ownerless), &wanted), MemorySeen::Foreign(why) if why.contains("owner")));
}

#[test]
fn a_write_takes_the_next_revision_which_no_key_ever_had() {
    let mut memory = named();
    assert_eq!(written(&apply(&mut memory, &set(1, "a", "1"))), Some(2));
    assert_eq!(written(&apply(&mut memory, &set(2, "b", "1"))), Some(3));
    let delete = Write { value: None, ..set(3, "a", "") };
    assert_eq!(written(&apply(&mut memory, &delete)), Some(4));
    assert_eq!(written(&apply(&mut memory, &set(4, "a", "2"))), Some(5), "not 2 again");
    assert_eq!(memory.entries["b"], MemoryEntry { value: "1".to_owned(), revision: 3 }, "others stay");
    // People may have given one by hand.
    memory.entries.insert("c".to_owned(), MemoryEntry { value: "0".to_owned(), revision: 40 });
    assert_eq!(written(&apply(&mut memory, &set(5, "a", "3"))), Some(41));
}

#[test]
fn a_condition_is_met_or_told_what_is_there() {
    for (if_revision, key, delete, expected) in [
        (Some(1), "status", false, None),
        (Some(1), "status", true, None),
        (Some(2), "status", false, Some(1)),
        (Some(0), "status", false, Some(1)),
        (Some(3), "status", true, Some(1)),
        (Some(0), "new", false, None),
        (Some(1), "new", false, Some(0)),
        (Some(1), "new", true, Some(0)),
    ] {
        let mut memory = named();
        let value = Some("1").filter(|_| !delete);
        let verdict = apply(&mut memory, &Write { value, if_revision, ..set(1, key, "") });
        match expected {
            Some(revision) => assert_eq!(verdict, WriteVerdict::Conflict { revision }, "{if_revision:?} {key}"),
            None => assert_eq!(written(&verdict), Some(2), "{if_revision:?} {key}"),
        }
    }
    let missing = Write { value: None, ..set(1, "none", "") };
    assert_eq!(super::write(&named(), &missing), WriteVerdict::Done { revision: None });
}

#[test]
fn a_repetition_writes_nothing_and_a_late_one_is_refused() {
    let mut memory = named();
    let first = Write { if_revision: Some(0), ..set(1, "a", "1") };
    assert_eq!(written(&apply(&mut memory, &first)), Some(2));
    let other = Write { step_run_uid: "other", ..set(1, "a", "2") };
    assert_eq!(written(&apply(&mut memory, &other)), Some(3));
    // Its reply was lost: it gets its own again, and does not overwrite what came after it.
    assert_eq!(apply(&mut memory, &first), WriteVerdict::Done { revision: Some(2) });
    assert_eq!(memory.entries["a"].value, "2");
    let gone = Write { value: None, ..set(2, "a", "") };
    assert_eq!(written(&apply(&mut memory, &gone)), Some(4));
    assert_eq!(apply(&mut memory, &gone), WriteVerdict::Done { revision: None });
    // What was on its way when a later one landed: of the same attempt, and of one behind the fence.
    assert_eq!(apply(&mut memory, &first), WriteVerdict::Overtaken);
    let next = Write { attempt: 2, ..set(1, "a", "5") };
    assert!(written(&apply(&mut memory, &next)).is_some());
    assert_eq!(apply(&mut memory, &set(99, "a", "6")), WriteVerdict::Overtaken);
}

#[test]
fn writers_are_bounded_the_oldest_goes() {
    let mut memory = named();
    for n in 0..MEMORY_WRITERS + 5 {
        let uid = format!("step-{n}");
        apply(&mut memory, &Write { step_run_uid: &uid, ..set(1, "a", "1") });
    }
    assert_eq!(memory.writers.len(), MEMORY_WRITERS);
    assert_eq!(memory.writers[0].step_run_uid, "step-5");
}

#[test]
fn bounds_are_told_with_field_and_number() {
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert_eq!(fault("k", Some(&text(MEMORY_VALUE_BYTES))), None);
    for (key, value, words) in [
        ("k", Some(text(MEMORY_VALUE_BYTES + 1)), "value: has 65537 bytes, at most 65536"),
        ("k", Some("nope".to_owned()), "value: is not JSON"),
        ("k", Some(String::new()), "value: is not JSON"),
        ("k", Some("1 2".to_owned()), "value: is not JSON"),
        ("k", Some("[".repeat(10_000)), "value: is not JSON"),
        ("a/b", None, "key: must be"),
        ("", Some("1".to_owned()), "key: must be"),
    ] {
        let told = fault(key, value.as_deref());
        assert!(told.as_ref().is_some_and(|told| told.starts_with(words)), "{words}: {told:?}");
    }
    let mut memory = named();
    for n in 1..=3 {
        assert!(written(&apply(&mut memory, &set(n, &format!("k{n}"), &text(MEMORY_VALUE_BYTES)))).is_some());
    }
    let left = MEMORY_BYTES - bytes(&memory) - 2;
    let more = text(left + 1);
    let refused = apply(&mut memory, &set(4, "k4", &more));
    assert!(
        matches!(&refused, WriteVerdict::TooMuch(why) if why.contains("262145 bytes in all, at most 262144")),
        "{refused:?}"
    );
    let fits = text(left);
    assert!(written(&apply(&mut memory, &set(5, "k4", &fits))).is_some());
    assert_eq!(bytes(&memory), MEMORY_BYTES);
    // Where people have put more, what makes it smaller is taken.
    memory.entries.insert("k9".to_owned(), MemoryEntry { value: text(100), revision: 9 });
    assert!(written(&apply(&mut memory, &set(6, "k1", "1"))).is_some());
    let mut many = named();
    for n in 0..MEMORY_KEYS - 3 {
        many.entries.insert(format!("k{n}"), MemoryEntry { value: "1".to_owned(), revision: 1 });
    }
    assert!(
        matches!(super::write(&many, &set(1, "one-more", "1")), WriteVerdict::TooMuch(why) if why.starts_with("key: "))
    );
    assert!(written(&super::write(&many, &set(1, "k1", "2"))).is_some());
}

#[test]
fn an_unused_memory_goes_when_its_time_is_up() {
    let meta = |used: Option<i64>, made: Option<i64>| ObjectMeta {
        annotations: used.map(|used| [(LAST_USED.to_owned(), at(used).0.to_string())].into()),
        creation_timestamp: made.map(at),
        ..ObjectMeta::default()
    };
    for (used, made, now, used_by, expected) in [
        (Some(100), Some(50), 199, Use::Over, Retention::Stays),
        (Some(100), Some(50), 200, Use::Over, Retention::Goes),
        (Some(100), Some(50), 200, Use::Open, Retention::Used),
        (Some(100), Some(50), 105, Use::Open, Retention::Stays),
        (Some(100), Some(50), 110, Use::Open, Retention::Used),
        (None, Some(50), 149, Use::Over, Retention::Stays),
        (None, Some(50), 150, Use::Over, Retention::Goes),
        (None, None, 1_000_000, Use::Over, Retention::Stays),
        // A clock that is behind takes nothing away.
        (Some(100), Some(50), 0, Use::Over, Retention::Stays),
    ] {
        let found = fate(&meta(used, made), 100, used_by, &at(now));
        assert_eq!(found, expected, "{used:?} {made:?} {now} {used_by:?}");
    }
    let mut unreadable = meta(None, Some(50));
    unreadable.annotations = Some([(LAST_USED.to_owned(), "yesterday".to_owned())].into());
    assert_eq!(fate(&unreadable, 100, Use::Over, &at(150)), Retention::Goes);
}
