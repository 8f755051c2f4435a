//! What may stand where: clocks, sleeping, randomness, the environment, `json!`; and what may stand nowhere.

use crate::source::{File, files, room, rust};
use crate::{none, one, refused};

/// Nothing that could make the same input decide otherwise, or wait.
const IMPURE: [&str; 13] = [
    "async",
    "await",
    "tokio",
    "std::env",
    "env::var",
    "std::fs",
    "std::net",
    "std::process",
    "thread",
    "Client",
    "Api",
    "static mut",
    "Mutex",
];

/// In `definition` and `decide` nothing impure. In `api` and `protocol` no client.
const NEVER: [(&str, &[&str]); 4] = [
    ("definition", &IMPURE),
    ("decide", &IMPURE),
    ("api", &["async", "tokio", "Client", "Api"]),
    ("protocol", &["async", "tokio", "kube", "k8s_openapi", "std::process", "std::fs"]),
];

const CLOCK: [&str; 4] = ["Timestamp::now", "Instant::now", "SystemTime", "Utc::now"];
const SLEEP: [&str; 2] = ["sleep", "sleep_until"];
const CHANCE: [&str; 4] = ["rand", "getrandom", "random", "thread_rng"];

/// Files that may, and why. A file that no longer needs its line must lose it.
const MAY_CLOCK: &[(&str, &str)] = &[
    ("src/cli/inbox.rs", "ages are shown relative to now"),
    ("src/cli/list.rs", "ages are shown relative to now"),
    ("src/cli/show.rs", "ages are shown relative to now"),
    ("src/cli/step_page.rs", "ages are shown relative to now"),
    ("src/cli/watch.rs", "ages are shown relative to now"),
    ("src/cluster/consistency.rs", "how long an own write is waited for in the cache"),
    ("src/cluster/guard.rs", "how long a proof of the policies is worth something"),
    ("src/cluster/lease.rs", "how long a lease stood still; when it was renewed, for people"),
    ("src/cluster/observe.rs", "the one place where `now` enters a decision"),
    ("src/cluster/tls.rs", "certificates have dates"),
    ("src/controllers/context.rs", "measures a pass"),
    ("src/gateway/attempt.rs", "stamps claims and reports"),
    ("src/gateway/auth.rs", "how long a verdict on a token is kept"),
    ("src/gateway/progress.rs", "progress is written at a bounded pace"),
    ("src/gateway/routes.rs", "measures a call"),
    ("src/server.rs", "connections come at a bounded pace"),
    ("src/server/connection.rs", "how long a connection may do nothing"),
    ("src/server/peer.rs", "since when a connection does nothing"),
    ("src/shim/gateway.rs", "how long an outage is waited for"),
    ("src/shim/run.rs", "the attempt's deadline"),
];
const MAY_SLEEP: &[(&str, &str)] = &[
    ("src/cluster/lease.rs", "the pace of renewals"),
    ("src/gateway/cluster.rs", "back-off between tries of one read"),
    ("src/gateway/tls.rs", "the certificate is waited for, and looked at again"),
    ("src/server.rs", "back-off of accept"),
    ("src/server/connection.rs", "the life and the idleness of a connection"),
    ("src/shim/local.rs", "the pace of progress, and back-off"),
    ("src/shim/run.rs", "back-off of the report, which nothing may interrupt"),
];
const MAY_CHANCE: &[(&str, &str)] = &[
    ("src/cli/run.rs", "five characters that make a run's name its own"),
    ("src/shim/gateway.rs", "the id of a claim, which nobody else may know"),
];
const MAY_JSON: &[(&str, &str)] = &[
    ("src/api/crd.rs", "corrections of the generated schemas"),
    ("src/api/schema.rs", "schemas that no type expresses"),
    ("src/cli/control.rs", "the merge patches of suspend and cancel"),
    ("src/cli/mailbox.rs", "the merge patch of the mailbox"),
    ("src/cli/print.rs", "lists as kubectl prints them"),
    ("src/cli/version.rs", "the output of -o json"),
    ("src/cluster/apply.rs", "the merge patches of effects"),
    ("src/cluster/guard.rs", "the dry run of the canary"),
    ("src/decide/scope.rs", "the variables that expressions see"),
    ("src/gateway/claim.rs", "an empty status for the JSON patch"),
    ("src/gateway/cluster.rs", "the operations of a JSON patch"),
    ("src/gateway/context.rs", "context.json, the contract with agents"),
    ("src/shim/calls.rs", "bodies of the agent's calls"),
    ("src/shim/local.rs", "answers to the agent's calls"),
];

/// Ways to evaluate an expression, or to compile a schema, on one's own stack.
const EVALUATES: [&str; 3] = ["InProcess", "in_process", "Compiled"];
const MAY_EVALUATE: &[(&str, &str)] = &[
    ("src/cli/answer.rs", "on the machine of whoever answers"),
    ("src/cli/lint/check.rs", "on the author's own machine"),
    ("src/cli/lint/structure.rs", "on the author's own machine, and the rules are those of our CRDs"),
    ("src/cli/value.rs", "on the machine of whoever types"),
    ("src/cluster/evaluator/serve.rs", "the process that evaluates"),
    ("src/definition/expression.rs", "where it is defined"),
    ("src/definition/expression/evaluate.rs", "where it is defined"),
    ("src/definition/schema.rs", "where it is defined"),
];

fn never(files: &[File]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        let own = room(&file.path);
        for (room, words) in NEVER.iter().filter(|(room, _)| own == Some(room)) {
            for word in *words {
                let found = file.words(word).into_iter();
                refusals.extend(found.map(|at| {
                    format!("{}: {word} in {room}; a higher floor does it and hands the value down", file.place(at))
                }));
            }
        }
    }
    refusals
}

/// Words that only listed files may use, and listed files that use none.
fn listed(files: &[File], words: &[&str], may: &[(&str, &str)]) -> Vec<String> {
    let mut refusals = Vec::new();
    for file in files {
        let uses: Vec<(usize, &str)> =
            words.iter().flat_map(|w| file.words(w).into_iter().map(move |at| (at, *w))).collect();
        let allowed = may.iter().any(|(path, reason)| *path == file.path && !reason.is_empty());
        if allowed && uses.is_empty() {
            refusals
                .push(format!("tests/house/words.rs: {} uses none of {words:?} any more; strike its line", file.path));
        }
        if !allowed {
            refusals.extend(uses.iter().map(|(at, word)| format!("{}: {word}; take the value as an argument, or list the file with its reason in tests/house/words.rs", file.place(*at))));
        }
    }
    let gone = may.iter().filter(|(path, _)| !files.iter().any(|f| f.path == *path));
    refusals.extend(gone.map(|(path, _)| format!("tests/house/words.rs: {path} does not exist; strike its line")));
    refusals
}

/// Something left to do needs somebody to do it.
fn left_to_do(files: &[File]) -> Vec<String> {
    let marks = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut refusals = Vec::new();
    for file in files {
        for mark in &marks {
            for (at, _) in file.text.match_indices(mark.as_str()) {
                let rest = &file.text[at + mark.len()..];
                let alone = !rest.starts_with(|c: char| c.is_alphanumeric())
                    && !file.text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.');
                if alone && !rest.starts_with('(') {
                    refusals.push(format!("{}: {mark} without an owner; write {mark}(name), or do it", file.place(at)));
                }
            }
        }
    }
    refusals
}

#[test]
fn lower_floors_are_pure() {
    none(&never(&files(rust)));
}

#[test]
fn clocks_are_listed() {
    none(&listed(&files(rust), &CLOCK, MAY_CLOCK));
}

#[test]
fn sleeps_are_listed() {
    none(&listed(&files(rust), &SLEEP, MAY_SLEEP));
}

#[test]
fn chance_is_listed() {
    none(&listed(&files(rust), &CHANCE, MAY_CHANCE));
}

#[test]
fn json_is_listed() {
    none(&listed(&files(rust), &["json!"], MAY_JSON));
}

/// What authors wrote is evaluated by processes of their own, never by the operator or the gateway.
#[test]
fn evaluating_is_listed() {
    none(&listed(&files(rust), &EVALUATES, MAY_EVALUATE));
}

#[test]
fn nothing_is_left_to_nobody() {
    none(&left_to_do(&files(|_| true)));
}

#[test]
fn tests_do_not_sleep() {
    let tests = files(|p| p.starts_with("tests/") && p.contains(".rs") && !p.starts_with("tests/house/"));
    let found = listed(&tests, &["thread::sleep"], &[]);
    none(&found);
}

#[test]
fn what_may_not_stand_there_is_refused() {
    refused(&never(&one("src/decide/x.rs", "async fn f() {}")), "async in decide");
    refused(&never(&one("src/definition/x.rs", "async fn f() {}")), "async in definition");
    refused(&never(&one("src/decide/x.rs", "fn f() { std::env::var(n) }")), "std::env");
    refused(&never(&one("src/api/x.rs", "use kube::Client;")), "Client in api");
    refused(&never(&one("src/protocol.rs", "use kube::Api;")), "kube in protocol");
    none(&never(&one(
        "src/decide/x.rs",
        "// async\nuse crate::protocol::env; #[cfg(test)] mod tests { async fn f() {} }",
    )));
    for (words, text) in [
        (&CLOCK[..], "Timestamp::now()"),
        (&SLEEP[..], "tokio::time::sleep(d)"),
        (&CHANCE[..], "rand::random()"),
        (&["json!"][..], "json!({})"),
        (&EVALUATES[..], "InProcess.evaluate(source, variables)"),
    ] {
        refused(&listed(&one("src/x.rs", text), words, &[]), "src/x.rs:1");
        none(&listed(&one("src/x.rs", text), words, &[("src/x.rs", "a reason")]));
        refused(&listed(&one("src/x.rs", text), words, &[("src/x.rs", "")]), "src/x.rs:1");
        refused(&listed(&one("src/x.rs", ""), words, &[("src/x.rs", "a reason")]), "any more");
        refused(&listed(&[], words, &[("src/x.rs", "a reason")]), "does not exist");
    }
    let mark = ["TO", "DO"].concat();
    refused(&left_to_do(&one("a.md", &format!("x\n{mark}: this"))), "a.md:2");
    none(&left_to_do(&one("a.md", &format!("{mark}(anna): this"))));
}
