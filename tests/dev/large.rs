//! How long a large run takes, and how much memory: told, not judged. `make measure-dev` runs it.

use std::fmt::Write as _;
use std::time::Instant;

use super::place::{Place, agent, run};

/// The most memory that a process has had, in MiB.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() / 1024
}

fn measured(what: &str, place: &Place, words: &[&str], last: &str) {
    let began = Instant::now();
    let mut started = place.start(words);
    assert!(started.until(last).is_some(), "{what} ends");
    let memory = peak(started.id());
    let ran = started.ended().expect(0);
    let took = began.elapsed().as_secs_f32();
    println!("{what}: {took:.0} s, {memory} MiB at most, {} lines", ran.out.lines().count());
}

#[test]
#[ignore = "make measure-dev runs it: minutes"]
fn two_hundred_steps_and_a_thousand_items() {
    let place = Place::new("large");
    let quick = agent("quick", "", "echo 1 > \"$LOCKSTEP_OUT/result.json\"");
    let steps = (0..200).fold(String::new(), |mut all, n| {
        writeln!(all, "    - {{name: s{n}, agentId: quick}}").expect("a line");
        all
    });
    place.write("steps.yaml", &format!("{quick}{}", run("steps", steps.trim_end())));
    measured("200 steps", &place, &["-f", "steps.yaml"], "  steps  Completed");
    let list: Vec<u32> = (0..1000).collect();
    let items = format!("    - {{name: each, agentId: quick, forEach: {{in: '{list:?}', as: item, maxParallel: 50}}}}");
    // An expression has at most 1024 bytes: the list stands in the parameters.
    let items = items.replace(&format!("'{list:?}'"), "parameters.list");
    let flow = run("items", &items).replace("spec:\n", &format!("spec:\n  parameters: {{list: {list:?}}}\n"));
    place.write("items.yaml", &format!("{quick}{flow}"));
    measured("1,000 items", &place, &["-f", "items.yaml", "--jobs", "16"], "  items  Completed");
}
