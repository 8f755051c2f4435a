//! A terminal: the live tree, and the questions that are asked on it. `script` is the terminal.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::place::{PROGRAM, Place, agent, run};

#[test]
fn people_are_asked_on_the_terminal() {
    let place = Place::new("terminal");
    let work = r##"name=$(lockstep ask "Which name?" --choices north,south)
        echo "# Plan of $name, $ATTEMPT" > "$LOCKSTEP_OUT/plan.md"
        echo "\"$name\"" > "$LOCKSTEP_OUT/result.json""##;
    let steps = "    - {name: plan, agentId: planner, produces: {type: plan}, gate: {onReject: Revise}}";
    place.write("flow.yaml", &format!("{}{}", agent("planner", "", work), run("flow", steps)));
    let line = format!("{PROGRAM} dev -f flow.yaml");
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .current_dir(&place.folder)
        .envs([("USER", "ann"), ("TERM", "xterm"), ("PAGER", "cat"), ("COLUMNS", "100"), ("LINES", "40")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script runs");
    let mut typed = terminal.stdin.take().expect("a pipe");
    let mut out = terminal.stdout.take().expect("a pipe");
    let mut seen = String::new();
    let mut answers = [
        ("Which name?", "west\n"),
        ("answer (empty", "south\n"),
        ("accept (y)", "n\n"),
        ("why? ", "longer\n"),
        ("accept (y)", "y\n"),
    ]
    .into_iter()
    .peekable();
    let mut chunk = [0; 4096];
    let mut from = 0;
    loop {
        let count = std::io::Read::read(&mut out, &mut chunk).unwrap_or(0);
        if count == 0 {
            break;
        }
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
        while let Some((words, answer)) = answers.peek().copied() {
            let Some(at) = seen.get(from..).and_then(|new| new.find(words)) else { break };
            from += at + words.len();
            // What waits is drawn before it is asked about.
            let prompt = seen.get(from..).and_then(|new| new.find("? "));
            if words == "Which name?" && prompt.is_none() {
                from -= words.len();
                break;
            }
            typed.write_all(answer.as_bytes()).expect("typed");
            answers.next();
        }
    }
    drop(typed);
    let code = terminal.wait().expect("its end").code();
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("it takes one of north, south"), "{seen}");
    assert!(seen.contains("rejected by ann") && seen.contains("accepted by ann"), "{seen}");
    assert!(seen.contains("# Plan of south, 3"), "{seen}");
    assert!(seen.contains("\u{1b}["), "it is drawn in place");
}
