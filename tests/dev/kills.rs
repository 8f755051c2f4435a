//! `dev` ended at every kind of moment, by SIGKILL and by Ctrl-C, and the same command again: it goes on where it was, nothing is
//! done twice, and nothing outlives it.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use super::place::{Place, agent, run};

/// Each attempt says that it begins, and that it ends; in between a process that would outlive an agent.
fn flow() -> String {
    let work = r#"me=$STEP_ID$(lockstep context /parameters/part || true)
        echo "begin $me $ATTEMPT" >> "$HERE/effects"
        (setsid sleep 60 > /dev/null 2>&1 &)
        lockstep progress 50 "half way"
        sleep 0.3
        echo "of $me" > "$LOCKSTEP_OUT/paper.txt"
        echo "[1, 2, 3]" > "$LOCKSTEP_OUT/result.json"
        echo "end $me $ATTEMPT" >> "$HERE/effects""#;
    let more = "  idempotent: true\n  retry: {initialBackoffSeconds: 1}\n";
    let steps = r#"    - {name: first, agentId: worker, produces: {type: paper, format: text}, gate: {}}
    - name: each
      forEach: {in: steps.first.output, as: part}
      agentId: worker
      parameters: {part: "${ part }"}
      produces: {type: paper, format: text}
    - {name: last, agentId: worker, produces: {type: paper, format: text}}"#;
    format!("{}{}", agent("worker", more, work), run("flow", steps))
}

/// Where it is ended: at what it says, or at what an agent has done since it was started.
enum Moment {
    Says(&'static str),
    Does(&'static str),
}
use Moment::{Does, Says};

const MOMENTS: [(Moment, Signal); 10] = [
    (Says("flow  "), Signal::SIGKILL),
    (Does("begin first"), Signal::SIGKILL),
    (Does("end first"), Signal::SIGKILL),
    (Says("waits for acceptance"), Signal::SIGKILL),
    (Says("accepted by ann"), Signal::SIGKILL),
    (Does("begin each"), Signal::SIGINT),
    (Does("begin each"), Signal::SIGKILL),
    (Does("end each"), Signal::SIGKILL),
    (Does("begin last"), Signal::SIGINT),
    (Does("end last"), Signal::SIGKILL),
];

#[test]
fn ended_at_ten_moments_it_goes_on_and_nothing_is_done_twice() {
    let place = Place::new("kills");
    place.write("flow.yaml", &flow());
    let words = ["-f", "flow.yaml", "--approve-all", "--jobs", "2"];
    let mut told = String::new();
    for (number, (moment, signal)) in MOMENTS.iter().enumerate() {
        let before = place.read("effects").len();
        let mut started = place.start(&words);
        let met = match moment {
            Says(line) => started.until(line).is_some(),
            Does(effect) => started.until_that(|| place.read("effects")[before..].contains(effect)),
        };
        assert!(met, "moment {number}: {:?}\n{told}", started.ended());
        started.signal(*signal);
        let ran = started.ended();
        // Between the moment and the signal it may have come to its end.
        let expected = if *signal == Signal::SIGINT { Some(130) } else { None };
        assert!(ran.code == expected || (number == 9 && ran.code == Some(0)), "moment {number}: {ran:?}");
        let left = survivors(&place);
        assert!(left.is_empty(), "after moment {number}: {left}");
        told.push_str(&format!("{number}\n{}", ran.out));
    }
    let ran = place.run(&words);
    assert!(ran.code == Some(0), "{}\n{}", ran.out, ran.err);
    let mut begun: BTreeMap<String, u32> = BTreeMap::new();
    let mut ended: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in place.read("effects").lines() {
        let mut parts = line.splitn(3, ' ');
        let (what, step, attempt) = (parts.next(), parts.next().expect("a step"), parts.next().expect("a number"));
        if what == Some("begin") {
            *begun.entry(format!("{step} {attempt}")).or_default() += 1;
        } else {
            ended.entry(step.to_owned()).or_default().push(attempt.to_owned());
        }
    }
    assert!(begun.values().all(|count| *count == 1), "an attempt ran twice: {begun:?}");
    assert_eq!(ended.keys().collect::<Vec<_>>(), ["each1", "each2", "each3", "first", "last"], "{begun:?}");
    let papers = ["each1", "each2", "each3"].iter().zip(["0", "1", "2"]);
    for (step, key) in papers {
        assert_eq!(place.read(&format!(".lockstep/flow/documents/paper/{key}.txt")), format!("of {step}\n"));
    }
    assert_eq!(place.read(".lockstep/flow/output.json"), "[1,2,3]\n");
    println!("attempts: {:?}", begun.keys().collect::<Vec<_>>());
}

/// Processes that know this folder.
fn survivors(place: &Place) -> String {
    let mark = format!("HERE={}", place.folder.display());
    let mut left = String::new();
    // They have been told; the last of them may be on its way.
    for _ in 0..1000 {
        left.clear();
        for entry in std::fs::read_dir("/proc").expect("processes").flatten() {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                left.push_str(&String::from_utf8_lossy(&line).replace('\0', " "));
                left.push('\n');
            }
        }
        if left.is_empty() {
            break;
        }
        std::thread::yield_now();
    }
    left
}

#[test]
fn an_attempt_of_which_nobody_knows_is_not_repeated_unasked() {
    let place = Place::new("unknown");
    let work = r#"echo "begin $ATTEMPT" >> "$HERE/effects"
        lockstep progress 50 "half way"
        test "$ATTEMPT" = 2 || sleep 60
        echo 1 > "$LOCKSTEP_OUT/result.json""#;
    place.write("flow.yaml", &format!("{}{}", agent("once", "", work), run("flow", "    - {name: a, agentId: once}")));
    let words = ["-f", "flow.yaml"];
    let mut started = place.start(&words);
    assert!(started.until("50% half way").is_some());
    started.signal(Signal::SIGKILL);
    started.ended();
    let waits = place.run(&words).expect(3);
    assert!(waits.out.contains("attempt 1 may or may not have had its effects"), "{}", waits.out);
    assert!(waits.out.contains("the same command with --answer a=retry, or skip in its place, or fail in its place"));
    assert_eq!(place.read("effects"), "begin 1\n");
    place.run(&["-f", "flow.yaml", "--answer", "a=retry"]).expect(0);
    assert_eq!(place.read("effects"), "begin 1\nbegin 2\n");
}

#[test]
fn a_folder_is_of_one_dev_at_a_time() {
    let place = Place::new("two");
    let work = r#"lockstep progress 50 "half way"
        until test -e "$HERE/go"; do sleep 0.05; done
        echo 1 > "$LOCKSTEP_OUT/result.json""#;
    place.write("flow.yaml", &format!("{}{}", agent("a", "", work), run("flow", "    - {name: a, agentId: a}")));
    let mut first = place.start(&["-f", "flow.yaml"]);
    assert!(first.until("50% half way").is_some());
    let second = place.run(&["-f", "flow.yaml"]).expect(5);
    assert!(second.err.contains("another kubectl lockstep dev (process "), "{}", second.err);
    assert!(second.err.contains("works in .lockstep/flow; end it, or choose another --state"), "{}", second.err);
    place.write("go", "");
    // Another folder is another run.
    place.run(&["-f", "flow.yaml", "--state", "other"]).expect(0);
    first.ended().expect(0);
}
