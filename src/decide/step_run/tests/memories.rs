use super::*;
use crate::api::definition::Definition;
use crate::decide::memory::MemorySeen;

fn launching(session: &str, memory: MemorySeen, ttl: Option<i64>) -> Observed {
    let definition: Definition = serde_json::from_value(json!({"workflow": "shop", "workflowUid": "w",
        "session": session, "steps": [{"name": "draft", "agentId": "writer"}]}))
    .expect("a definition");
    let mut o = ready(&json!(null));
    let mut agent = o.agent.as_deref().cloned().expect("an Agent");
    agent.spec.memory = ttl.map(|_| crate::api::agent::AgentMemory { ttl_seconds_after_last_use: ttl });
    o.agent = Some(Arc::new(agent));
    o.definition = Some(Arc::new(Program::compile(&definition).expect("a program")));
    o.input = Some(Input { memory, ..Input::default() });
    o
}

fn acts(o: &Observed) -> Vec<&'static str> {
    let act = |effect: &Effect| match effect {
        Effect::CreateMemory(_) => "make",
        Effect::UseMemory { .. } => "use",
        Effect::CreateJob(_) => "launch",
        _ => "other",
    };
    step_run(o).effects.iter().map(act).collect()
}

#[test]
fn what_an_agent_remembers_is_there_before_it_runs() {
    let there = || MemorySeen::There { uid: "m".into() };
    for (session, memory, ttl, expected) in [
        ("spring", MemorySeen::Absent, None, &["make", "launch"][..]),
        ("_shop-12345678", MemorySeen::Absent, Some(60), &["make", "launch"]),
        ("spring", there(), None, &["launch"]),
        // That it is used is written only where its time counts.
        ("spring", there(), Some(60), &["use", "launch"]),
        ("_shop-12345678", there(), Some(60), &["launch"]),
    ] {
        assert_eq!(acts(&launching(session, memory.clone(), ttl)), expected, "{session} {memory:?} {ttl:?}");
    }
}

#[test]
fn a_memory_of_somebody_else_is_waited_out() {
    let plan = step_run(&launching("spring", MemorySeen::Foreign("its owner has the UID x".into()), None));
    assert!(plan.effects.is_empty());
    let status = plan.status.expect("a status");
    let started = condition::get(&status.conditions, "Started").expect("a condition");
    assert_eq!((status.phase, started.reason.as_str()), (Some(Phase::Pending), "MemoryNotOurs"));
    assert!(started.message.contains("agent writer in session spring: its owner has the UID x"), "{}", started.message);
}
