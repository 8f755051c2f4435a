//! What a step waits for, as people read it: who may end the wait, and the commands, ready to paste.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::actions;
use super::asked;
use super::connect::Connection;
use super::line::{Line, RenderOptions};
use super::rows::so_far;
use super::target::{label, waits_at_gate, waits_at_own_gate, waits_for_answer};
use super::text::{Style, clock, inline, quote, short_digest};
use crate::api::name::{ACTION, ANSWER, DECIDED_BY, DECISION, REVIEW};
use crate::api::step_run::{ApprovalRequest, WaitKind};
use crate::api::{StepRun, Workflow};

/// Before what the author of the run says: it stands among commands, and is none.
const MARGIN: &str = "    | ";

/// The steps of this run that wait for people.
pub fn open<'a>(run: &Workflow, steps: &'a [StepRun]) -> Vec<&'a StepRun> {
    let uid = run.uid().unwrap_or_default();
    let mut open: Vec<&StepRun> = steps
        .iter()
        .filter(|s| uid.is_empty() || s.spec.workflow.uid == uid)
        .filter(|s| waits_at_gate(s) || waits_for_answer(s))
        .collect();
    let listed = run.status.as_ref().map_or(&[][..], |s| &s.steps);
    open.sort_by_key(|step| {
        let place = listed.iter().position(|l| l.path == step.spec.path);
        let index = step.spec.item.as_ref().map_or(-1, |item| item.index);
        (place.unwrap_or(usize::MAX), index)
    });
    open
}

/// Whether it takes an answer: to a question of its own, or of its agent, or a higher budget; and not what becomes of it.
pub fn is_question(step: &StepRun) -> bool {
    let kind = step.status.as_ref().and_then(|s| s.waiting_for.as_ref()).map(|w| w.kind);
    matches!(kind, Some(WaitKind::Question | WaitKind::BudgetSpent))
}

/// Which commands are told of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// Those of this plugin: somebody sits at a terminal, is shown what waits, and is asked.
    Asked,
    /// The same where nobody can be asked: what was read is named.
    Unasked,
    /// First those of this plugin, then what plain kubectl takes.
    Kubectl(Signature),
    /// What `dev` takes when it is called again: it has no cluster that a command could reach.
    Dev,
}

/// Who puts the name of the person on a decision that plain kubectl writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// The API server, from Kubernetes 1.36 on.
    Stamped,
    Typed,
}

impl Signature {
    /// As the operator found it: it knows which policies the chart has installed, and puts commands on what waits.
    pub fn told(step: &StepRun) -> Option<Self> {
        let status = step.status.as_ref()?;
        let of_gate = status.gate.iter().flat_map(|gate| &gate.commands);
        let of_actions = status.approval_requests.iter().flat_map(|request| &request.gate.commands);
        let mut commands =
            of_gate.chain(of_actions).chain(status.waiting_for.iter().flat_map(|wait| &wait.commands)).peekable();
        commands.peek()?;
        let is_typed = commands.any(|command| command.contains(DECIDED_BY));
        Some(if is_typed { Self::Typed } else { Self::Stamped })
    }

    /// Where no operator has said it: the API server's, if it has the kind of policy that stamps names. Where the policy itself
    /// is not installed, the refusal of a decision without a name says what to add.
    pub async fn probable(on: &Connection) -> Self {
        let ask = on.client.list_api_group_resources("admissionregistration.k8s.io/v1");
        let kinds = on.call("ask for the kinds", ask).await.map(|list| list.resources).unwrap_or_default();
        if kinds.iter().any(|kind| kind.name == "mutatingadmissionpolicies") { Self::Stamped } else { Self::Typed }
    }
}

/// What one step waits for, who may end it, and the commands: the actions that its agent requested, then its own wait.
pub fn lines(step: &StepRun, ways: Ways) -> Vec<Line> {
    let actions = actions::waiting(step);
    let mut lines: Vec<Line> = actions.iter().flat_map(|view| own_lines(view, ways)).collect();
    if actions.is_empty() || waits_at_own_gate(step) || waits_for_answer(step) {
        lines.extend(own_lines(step, ways));
    }
    lines
}

fn own_lines(step: &StepRun, ways: Ways) -> Vec<Line> {
    let name = format!("{}/{}", step.spec.workflow.name, label(step));
    let mut lines = Vec::new();
    if let Some(request) = actions::of_view(step) {
        lines.push(Line::of(vec![
            ("◆ ".to_owned(), Style::Wait),
            (inline(&name, 600), Style::Bold),
            (format!(" requests an action{}", by(step, ways).replacen(" by", ", by", 1)), Style::Plain),
        ]));
        let message = step.spec.gate.as_ref().and_then(|g| g.message.as_deref());
        lines.extend(message.map(|m| Line::said(MARGIN, &inline(m, 1024))));
        lines.push(Line::said(MARGIN, &inline(&request.action, 1024)));
        lines.extend(request.payload.as_ref().map(|p| Line::said(MARGIN, &inline(p, 300))));
        lines.extend(agent_waits(request.agent_waits_until.as_ref(), "decision"));
    } else if waits_at_own_gate(step) {
        lines.push(Line::of(vec![
            ("◆ ".to_owned(), Style::Wait),
            (inline(&name, 600), Style::Bold),
            (format!(" waits for acceptance{}", by(step, ways)), Style::Plain),
        ]));
        let message = step.spec.gate.as_ref().and_then(|g| g.message.as_deref());
        lines.extend(message.map(|m| Line::said(MARGIN, &inline(m, 1024))));
    } else if let Some(wait) = step.status.as_ref().and_then(|s| s.waiting_for.as_ref()) {
        let word = if raise(step).is_some() {
            ": "
        } else if is_question(step) {
            " asks: "
        } else {
            " waits for an answer: "
        };
        lines.push(Line::of(vec![
            ("? ".to_owned(), Style::Wait),
            (inline(&name, 600), Style::Bold),
            (format!("{word}{}", inline(&wait.question, 600)), Style::Plain),
        ]));
        let taken = wait.schema.as_deref().map(|schema| asked::in_words(schema, 300));
        lines.extend(taken.map(|words| Line::said(MARGIN, &words)));
        lines.extend(agent_waits(wait.agent_waits_until.as_ref(), "answer"));
    }
    let whole = |command: &String| Line::whole(format!("    {command}"), Style::Plain);
    lines.extend(commands(step, ways).iter().map(whole));
    lines.extend(
        otherwise(step)
            .filter(|_| ways != Ways::Dev)
            .map(|o| Line::of(vec![(format!("    {}", inline(&o, 1024)), Style::Dim)])),
    );
    if let Ways::Kubectl(signature) = ways {
        lines.push(whole(&of_kubectl(step, signature)));
    }
    lines
}

/// How long a decision, or an answer, reaches the attempt that runs.
fn agent_waits(until: Option<&Time>, what: &str) -> Option<Line> {
    let at = clock(until?.0);
    Some(Line::said(MARGIN, &format!("its agent waits until {at}; after that the {what} starts another attempt")))
}

/// The same as text, for pages: words are folded to the window, commands stay whole, to be copied.
pub fn text(step: &StepRun, ways: Ways, options: RenderOptions) -> String {
    lines(step, ways).iter().map(|line| line.folded(options)).collect()
}

/// The same behind what waits. Without a cluster there are no permissions.
fn by(step: &StepRun, ways: Ways) -> String {
    match ways {
        Ways::Dev => so_far(step).map_or_else(String::new, |so_far| format!("; {so_far} accepted so far")),
        Ways::Asked | Ways::Unasked | Ways::Kubectl(_) => format!(" by {}", inline(&who(step), 600)),
    }
}

/// Who may end the wait at a gate, and how far it has come.
fn who(step: &StepRun) -> String {
    let Some(gate) = &step.spec.gate else { return String::new() };
    let acceptors = gate.acceptors.clone().unwrap_or_default();
    let members = acceptors.groups.iter().map(|group| format!("a member of {group}"));
    let named: Vec<String> = acceptors.users.iter().cloned().chain(members).collect();
    let right = format!("with the permission approve on gates/{}", gate.name);
    let mut text = match named.split_last() {
        None => format!("anyone {right}"),
        Some((one, [])) => format!("{one}, {right}"),
        Some((last, others)) => format!("{} or {last}, {right}", others.join(", ")),
    };
    if let Some(maker) = gate.not_by.as_deref().filter(|by| !by.is_empty()) {
        text.push_str(&format!("; not by {maker}, who made the run"));
    }
    if let Some(so_far) = so_far(step) {
        let who = accepted_by(step);
        let who = if who.is_empty() { String::new() } else { format!(": {}", who.join(", ")) };
        text.push_str(&format!("; {so_far} accepted so far{who}"));
    }
    text
}

/// Who has accepted in the round that the gate is in.
fn accepted_by(step: &StepRun) -> Vec<&str> {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    let of_round = gate.into_iter().flat_map(|g| g.decisions.iter().filter(|d| d.accepted && d.round == g.round));
    of_round.map(|d| d.decided_by.as_str()).collect()
}

/// The person's own name, for clusters that do not stamp it.
const WHOAMI: &str = "\"$(kubectl auth whoami -o jsonpath='{.status.userInfo.username}')\"";

/// What a spent budget is raised to, where one is.
fn raise(step: &StepRun) -> Option<&'static str> {
    let wait = step.status.as_ref()?.waiting_for.as_ref().filter(|wait| wait.kind == WaitKind::BudgetSpent)?;
    let of_tokens = wait.schema.as_ref().is_none_or(|schema| schema.contains("\"tokens\""));
    Some(if of_tokens { "'{\"tokens\": BUDGET}'" } else { "'{\"cost\": BUDGET}'" })
}

/// What is said of an attempt that is to do better.
const GUIDANCE: &str = "'WHAT TO DO BETTER'";

/// The one command that ends the wait, complete.
pub fn command(step: &StepRun) -> String {
    let (_, own, target) = callers(step);
    if let [first, ..] = actions::waiting(step).as_slice() {
        return command(first);
    }
    if waits_at_own_gate(step) {
        return format!("{own} approve {target}{}", named(step));
    }
    let first = step.status.as_ref().and_then(|s| s.waiting_for.as_ref()?.options.first().cloned());
    match first.filter(|_| !is_question(step)) {
        Some(act) if act == "retry" => format!("{own} answer {target} retry -m {GUIDANCE}"),
        Some(act) => format!("{own} answer {target} {}", quote(&act)),
        None => format!("{own} answer {target} {}", raise(step).unwrap_or("ANSWER")),
    }
}

/// Those of this plugin.
fn commands(step: &StepRun, ways: Ways) -> Vec<String> {
    if ways == Ways::Dev {
        return vec![again(step)];
    }
    if !waits_at_own_gate(step) {
        return vec![command(step)];
    }
    let (_, own, target) = callers(step);
    let reject = format!("{own} reject {target} -m WHY");
    if actions::of_view(step).is_some() {
        return vec![command(step), format!("{reject}{}", named(step))];
    }
    match ways {
        Ways::Unasked => vec![
            format!("{own} show {target}"),
            format!("{own} approve {target} --review {}", digest(step)),
            format!("{reject} --review {}", digest(step)),
        ],
        Ways::Asked | Ways::Kubectl(_) | Ways::Dev => vec![command(step), reject],
    }
}

/// What ends the wait when `dev` is called again.
fn again(step: &StepRun) -> String {
    let name = quote(&label(step));
    if waits_at_own_gate(step) {
        return format!("the same command with --approve {name}, or with --reject {name}=WHY");
    }
    let wait = step.status.as_ref().and_then(|s| s.waiting_for.as_ref());
    let options = wait.map(|wait| wait.options.as_slice()).unwrap_or_default();
    let answer = match options {
        [first, others @ ..] if !is_question(step) => {
            let first = std::iter::once(first.clone());
            first.chain(others.iter().map(|other| format!("or {other} in its place"))).collect::<Vec<_>>().join(", ")
        }
        _ => raise(step).unwrap_or("ANSWER").to_owned(),
    };
    format!("the same command with --answer {name}={answer}")
}

fn of_kubectl(step: &StepRun, signature: Signature) -> String {
    let (plain, ..) = callers(step);
    let by = if signature == Signature::Typed { format!(" {DECIDED_BY}={WHOAMI}") } else { String::new() };
    let said = if waits_at_own_gate(step) {
        format!("{DECISION}=accepted {REVIEW}={}", digest(step))
    } else if is_question(step) {
        format!("{ANSWER}={}", raise(step).unwrap_or("ANSWER"))
    } else {
        let first = step.status.as_ref().and_then(|s| s.waiting_for.as_ref()?.options.first().cloned());
        format!("{ACTION}={}", quote(&first.unwrap_or_else(|| "retry".to_owned())))
    };
    format!("{plain} {said}{by}")
}

/// Which of the actions of an agent is meant.
fn named(step: &StepRun) -> String {
    let digest = |request: &ApprovalRequest| format!(" --review {}", quote(&short_digest(&request.gate.output_digest)));
    actions::of_view(step).map_or_else(String::new, digest)
}

/// Of what is under review, as a word of the shell.
fn digest(step: &StepRun) -> String {
    let gate = step.status.as_ref().and_then(|s| s.gate.as_ref());
    quote(gate.map_or("", |gate| gate.output_digest.as_str()))
}

/// How to accept where nobody can be asked: with the digest of what was read.
pub fn unattended(step: &StepRun) -> Option<String> {
    let gate = step.status.as_ref()?.gate.as_ref().filter(|_| waits_at_own_gate(step))?;
    let (_, own, target) = callers(step);
    Some(format!("where nobody can be asked: {own} approve {target} --review {}", quote(&gate.output_digest)))
}

/// What else may be said, in words: shells differ in whether a pasted comment is one.
fn otherwise(step: &StepRun) -> Option<String> {
    let wait = step.status.as_ref()?.waiting_for.as_ref().filter(|_| !waits_at_own_gate(step))?;
    if is_question(step) {
        let flags: Vec<String> = wait.options.iter().map(|option| format!("--{option}")).collect();
        return (!flags.is_empty()).then(|| format!("or {} in the place of an answer", flags.join(" or ")));
    }
    let (first, others) = wait.options.split_first()?;
    (!others.is_empty()).then(|| format!("or {} in the place of {first}", others.join(" or ")))
}

/// The beginnings of the commands, and the target as a word of the shell.
fn callers(step: &StepRun) -> (String, String, String) {
    let namespace = step.namespace().unwrap_or_default();
    (
        format!("kubectl -n {namespace} annotate steprun {}", step.name_any()),
        format!("kubectl lockstep -n {namespace}"),
        quote(&format!("{}/{}", step.spec.workflow.name, label(step))),
    )
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "objects are built in place")]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const AT: &str = "2026-11-21T10:00:00Z";

    fn step(spec: Value, status: Value) -> StepRun {
        let mut all = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "plan", "parameters": "{}", "inputDigest": "d"});
        for (key, value) in spec.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-plan-1", "namespace": "team-a"}, "spec": all, "status": status}))
        .expect("a step")
    }

    fn at_gate(gate: Value, decisions: Value) -> StepRun {
        let open = json!({"state": "Waiting", "round": 1, "outputDigest": "sha256:00ff", "openedAt": AT, "policy": "p",
            "decisions": decisions});
        step(json!({"agentId": "a", "gate": gate}), json!({"phase": "WaitingForAcceptance", "gate": open}))
    }

    fn waiting(kind: &str, question: &str, options: Value) -> StepRun {
        let wait = json!({"id": "1", "kind": kind, "question": question, "options": options, "since": AT});
        let ask = if kind == "Question" {
            json!({"ask": {"name": "plan", "question": question}})
        } else {
            json!({"agentId": "a"})
        };
        step(ask, json!({"phase": "WaitingForInput", "waitingFor": wait}))
    }

    #[test]
    fn whoever_may_accept_is_told_in_words() {
        let accepted = json!([{"documentType": "plan", "scopeId": "u", "accepted": true, "decidedBy": "ann", "decidedAt": AT,
            "digest": "d", "round": 1}]);
        for (gate, decisions, expected) in [
            (json!({"name": "plan"}), json!([]), "anyone with the permission approve on gates/plan"),
            (
                json!({"name": "plan", "acceptors": {"users": ["ann"]}}),
                json!([]),
                "ann, with the permission approve on gates/plan",
            ),
            (
                json!({"name": "plan", "acceptors": {"users": ["ann", "bob"], "groups": ["product"]}}),
                json!([]),
                "ann, bob or a member of product, with the permission approve on gates/plan",
            ),
            (
                json!({"name": "plan", "notBy": "carol", "approvals": 2}),
                accepted,
                "anyone with the permission approve on gates/plan; not by carol, who made the run; 1 of 2 accepted so far: ann",
            ),
        ] {
            assert_eq!(who(&at_gate(gate, decisions)), expected);
        }
    }

    #[test]
    fn commands_can_be_copied_as_they_are() {
        let gate = at_gate(json!({"name": "plan", "message": "Is it right?"}), json!([]));
        let question = waiting("Question", "How much?", json!([]));
        let stuck = waiting("RetriesSpent", "all 3 attempts failed", json!(["retry", "skip", "fail"]));
        let told = |step: &StepRun, ways| text(step, ways, RenderOptions::default());
        assert_eq!(
            told(&gate, Ways::Asked),
            "◆ shop/plan waits for acceptance by anyone with the permission approve on gates/plan\n    | Is it right?\n    kubectl lockstep -n team-a approve shop/plan\n    kubectl lockstep -n team-a reject shop/plan -m WHY\n"
        );
        assert_eq!(
            told(&question, Ways::Unasked),
            "? shop/plan asks: How much?\n    kubectl lockstep -n team-a answer shop/plan ANSWER\n"
        );
        assert_eq!(
            told(&stuck, Ways::Asked),
            "? shop/plan waits for an answer: all 3 attempts failed\n    kubectl lockstep -n team-a answer shop/plan retry -m 'WHAT TO DO BETTER'\n    or skip or fail in the place of retry\n"
        );
        let spent =
            waiting("BudgetSpent", "the budget of the run is spent: 12 of 10 tokens (2 over)", json!(["skip", "fail"]));
        assert_eq!(
            told(&spent, Ways::Asked),
            "? shop/plan: the budget of the run is spent: 12 of 10 tokens (2 over)\n    kubectl lockstep -n team-a answer shop/plan '{\"tokens\": BUDGET}'\n    or --skip or --fail in the place of an answer\n"
        );
        let mut waited = question.clone();
        let wait = waited.status.as_mut().and_then(|s| s.waiting_for.as_mut()).expect("a wait");
        wait.agent_waits_until = serde_json::from_value(json!("2026-11-21T10:05:00Z")).expect("a time");
        assert_eq!(
            told(&waited, Ways::Asked),
            "? shop/plan asks: How much?\n    | its agent waits until 2026-11-21T10:05:00Z; after that the answer starts another attempt\n    kubectl lockstep -n team-a answer shop/plan ANSWER\n"
        );
        let unasked = told(&gate, Ways::Unasked);
        assert!(
            unasked.contains("    kubectl lockstep -n team-a approve shop/plan --review sha256:00ff\n"),
            "{unasked}"
        );
        let stamped = told(&gate, Ways::Kubectl(Signature::Stamped));
        assert!(
            stamped.ends_with(
                "    kubectl -n team-a annotate steprun shop-plan-1 lockstep.dev/decision=accepted lockstep.dev/review=sha256:00ff\n"
            ),
            "{stamped}"
        );
        assert!(
            told(&question, Ways::Kubectl(Signature::Typed))
                .contains("lockstep.dev/decided-by=\"$(kubectl auth whoami")
        );
        // However narrow the window is, a command stays in one piece.
        let narrow = text(&gate, Ways::Asked, RenderOptions { window: Some(30), colours: false });
        assert!(narrow.contains("\n    kubectl lockstep -n team-a reject shop/plan -m WHY\n"), "{narrow}");
    }
}
