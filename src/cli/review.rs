//! What a reviewer decides on, whole.

use kube::ResourceExt;

use super::actions;
use super::difference;
use super::line::RenderOptions;
use super::spread::pretty;
use super::step_page::{decision, produced, section, taken_over};
use super::subject::Subject;
use super::target::label;
use super::text::{Style, block, framed, hanging, inline};
use crate::api::{Document, StepRun};

/// What a reviewer decides on, whole: output and document, and what changed since the round before.
pub fn under_review(step: &StepRun, subject: &Subject, before: Option<&Document>, options: RenderOptions) -> String {
    let gate = step.spec.gate.as_ref().map_or("", |g| g.name.as_str());
    let status = step.status.clone().unwrap_or_default();
    let open = status.gate.as_ref();
    let head = format!(
        "{}/{}  gate {}, round {}\nreview {}\n",
        inline(&step.spec.workflow.name, 253),
        inline(&label(step), 1024),
        inline(gate, 63),
        open.map_or(1, |g| g.round),
        inline(open.map_or("", |g| &g.output_digest), 80),
    );
    let head = hanging(&head, options.window);
    let (name, review) = head.split_once('\n').unwrap_or((&head, ""));
    let mut text = format!("{}\n{review}", options.paint(Style::Bold, name));
    let message = step.spec.gate.as_ref().and_then(|g| g.message.as_deref());
    section((&mut text, options), "ASKED", &framed(&block(message.unwrap_or_default(), 4096), "  ", options.window));
    section(
        (&mut text, options),
        "TAKEN OVER",
        &taken_over(step).map_or_else(String::new, |taken| framed(&taken, "  ", options.window)),
    );
    if let Some(request) = actions::of_view(step) {
        let action = framed(&block(&request.action, 1024), "  ", options.window);
        section((&mut text, options), "ACTION", &action);
        section((&mut text, options), "PAYLOAD", &framed(&actions::payload(request), "  ", options.window));
    }
    let alone = step.spec.agent_id.is_empty() && step.spec.ask.is_none() && step.spec.reuse.is_none();
    let title = if alone { "PARAMETERS" } else { "OUTPUT" };
    let output = subject.output.as_deref().map(pretty);
    section((&mut text, options), title, &framed(&output.unwrap_or_default(), "  ", options.window));
    text.push_str(&produced(subject, options));
    if let (Some(before), Some(now)) = (before, &subject.document) {
        let title = format!(
            "CHANGED SINCE ROUND {} (from {})",
            open.map_or(1, |g| g.round) - 1,
            inline(&before.name_any(), 253)
        );
        let changed = difference::lines(&before.spec.content, &now.spec.content, options);
        section((&mut text, options), &title, &changed.unwrap_or_else(|| "  nothing\n".to_owned()));
    }
    let decided: String = open.map_or_else(String::new, |g| g.decisions.iter().map(decision).collect());
    section((&mut text, options), "DECIDED SO FAR", &hanging(&decided, options.window));
    text
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "objects are built in place")]
mod tests {
    use super::*;
    use crate::cli::step_page::{Beside, page};
    use crate::cli::subject::Trouble;
    use serde_json::{Value, json};

    const AT: &str = "2026-11-21T10:00:00Z";

    fn step(more: Value, status: Value) -> StepRun {
        let mut spec = json!({"workflow": {"name": "shop", "uid": "u"}, "definition": {"revisionName": "r", "digest": "d"},
            "path": "plan", "agentId": "planner", "parameters": "{}", "inputDigest": "d"});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "StepRun",
            "metadata": {"name": "shop-plan-1", "namespace": "n", "uid": "s"}, "spec": spec, "status": status}))
        .expect("a step")
    }

    fn document(content: &str) -> Document {
        let spec = json!({"type": "plan", "scope": "Workflow", "content": content});
        serde_json::from_value(json!({"apiVersion": "lockstep.dev/v1alpha1", "kind": "Document",
            "metadata": {"name": "doc"}, "spec": spec}))
        .expect("a document")
    }

    #[test]
    fn what_is_under_review_is_shown_whole_and_what_was_exchanged_is_not() {
        let gate =
            json!({"state": "Waiting", "round": 2, "outputDigest": "sha256:review", "openedAt": AT, "policy": "p"});
        let step = step(
            json!({"gate": {"name": "plan", "message": "Is it right?"}}),
            json!({"phase": "WaitingForAcceptance", "gate": gate}),
        );
        let long = (0..2000).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n") + "\n";
        let mut subject =
            Subject { output: Some("{\"a\":1}".to_owned()), document: Some(document(&long)), trouble: None };
        let before = document(&long.replace("line 7\n", "line seven\n"));
        let text = under_review(&step, &subject, Some(&before), RenderOptions { window: Some(40), colours: false });
        for line in [
            "shop/plan  gate plan, round 2",
            "review sha256:review",
            "  Is it right?",
            "    \"a\": 1",
            "  | line 0",
            "  | line 1999",
            "CHANGED SINCE ROUND 1 (from doc)",
            "  - line seven",
            "  + line 7",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
        subject.trouble = Some(Trouble::Exchanged("it was exchanged".to_owned()));
        let reviewed = under_review(&step, &subject, None, RenderOptions::default());
        let at = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let page = page(&step, &Beside { subject, ..Beside::default() }, at, RenderOptions::default());
        for text in [page, reviewed] {
            assert!(text.contains("it was exchanged") && !text.contains("line 1999"));
        }
    }
}
