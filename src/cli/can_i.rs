//! `can-i`: whether somebody may approve at a gate, answer, or run a template: the API server's own word.

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::{Api, PostParams};

use super::complete;
use super::connect::Connection;
use super::fault::{Code, Fault};
use super::line::RenderOptions;
use super::mailbox::whoami;
use super::print;
use super::print::put;
use super::text::{Style, inline, quote};

/// Ask whether you may approve at a gate, answer a step's wait, or run a template
#[derive(clap::Args, Debug)]
#[command(after_help = "\
approve NAME   the gate NAME (gate.name; unless told the type of the document, else the step)
answer NAME    waits of steps of the agent NAME, or the question of the step NAME
run NAME       the WorkflowTemplate NAME; without NAME a Workflow with steps of its own
Without NAME approve and answer ask about all gates and all waits of the namespace.

--as USER and --as-group GROUP ask for somebody else; you need the right to impersonate them.
RBAC is asked, not the gate: whom a gate names as acceptors, and four eyes, come on top.

Exit codes: 0 yes, 1 no (the command that grants it is printed), 2 wrong usage, 5 the API server could not be asked.

Examples:
  kubectl lockstep can-i approve backlog
  kubectl lockstep can-i answer planner --as ann
  kubectl lockstep can-i run default --as ann --as-group product
  kubectl lockstep can-i run")]
pub struct Args {
    #[arg(value_enum)]
    verb: Verb,
    /// Gate, agent or question, or template
    #[arg(add = complete::by(complete::permissions))]
    name: Option<String>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Approve,
    Answer,
    Run,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Answer => "answer",
            Self::Run => "run",
        }
    }

    /// Gates and inputs are no objects, only permissions; `run` is one on the template itself.
    fn resource(self) -> &'static str {
        match self {
            Self::Approve => "gates",
            Self::Answer => "inputs",
            Self::Run => "workflowtemplates",
        }
    }

    /// The role of the chart that grants it.
    fn role(self, name: Option<&str>) -> &'static str {
        match (self, name) {
            (Self::Approve | Self::Answer, _) => "lockstep-approver",
            (Self::Run, Some(_)) => "lockstep-runner",
            (Self::Run, None) => "lockstep-edit",
        }
    }
}

pub async fn run(on: &Connection, args: &Args) -> Result<Code, Fault> {
    let name = args.name.as_deref().filter(|name| !name.is_empty());
    let ask = review(&on.namespace, args.verb, name);
    let api: Api<SelfSubjectAccessReview> = Api::all(on.client.clone());
    let told = on.call("ask what is allowed", api.create(&PostParams::default(), &ask)).await?;
    let status = told.status.clone().unwrap_or_default();
    let user = whoami(on).await?;
    let machine = user.as_deref().filter(|user| args.verb != Verb::Run && is_machine(user));
    let allowed = status.allowed && machine.is_none();
    if on.output.is_text() {
        let (word, style) = if allowed { ("yes", Style::Good) } else { ("no", Style::Bad) };
        put(&format!("{}\n", RenderOptions::for_stdout().paint(style, word)))?;
    } else {
        let value = serde_json::to_value(&told);
        let value = value.map_err(|wrong| Fault::new(Code::Api, format!("cannot print the answer: {wrong}")))?;
        print::plain(on.output, &value)?;
    }
    if allowed {
        return Ok(Code::Done);
    }
    if let Some(user) = machine {
        eprintln!("{} is a machine identity; only people approve and answer", inline(user, 256));
    } else {
        if let Some(reason) = status.reason.filter(|reason| !reason.is_empty()) {
            eprintln!("{}", inline(&reason, 1024));
        }
        eprintln!("{}", remedy(&on.namespace, args.verb, name, user.as_deref()));
    }
    Ok(Code::Failed)
}

fn review(namespace: &str, verb: Verb, name: Option<&str>) -> SelfSubjectAccessReview {
    let attributes = ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some(verb.word().to_owned()),
        group: Some("lockstep.dev".to_owned()),
        resource: Some(verb.resource().to_owned()),
        name: name.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() }
}

/// The policies refuse such names whatever RBAC says.
fn is_machine(user: &str) -> bool {
    user.starts_with("system:")
}

fn remedy(namespace: &str, verb: Verb, name: Option<&str>, user: Option<&str>) -> String {
    let role = verb.role(name);
    let user = user.unwrap_or("USER");
    let plain: String =
        user.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let binding = format!("{role}-{}", plain.trim_matches('-'));
    let grant = format!(
        "kubectl -n {} create rolebinding {binding} --clusterrole={role} --user={}",
        quote(namespace),
        quote(user)
    );
    match name {
        Some(name) => format!(
            "to grant it, with all others of this namespace: {grant}\nfor this one alone, a Role with: {{apiGroups: [lockstep.dev], resources: [{}], resourceNames: [{}], verbs: [{}]}}",
            verb.resource(),
            quote(name),
            verb.word()
        ),
        None => format!("to grant it: {grant}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_virtual_resources_of_the_policies_are_asked_for() {
        for (verb, name, resource) in [
            (Verb::Approve, Some("backlog"), "gates"),
            (Verb::Answer, Some("planner"), "inputs"),
            (Verb::Run, Some("default"), "workflowtemplates"),
            (Verb::Run, None, "workflowtemplates"),
        ] {
            let asked = review("team-a", verb, name).spec.resource_attributes.unwrap_or_default();
            let found = [&asked.group, &asked.resource, &asked.verb, &asked.namespace];
            let expected = ["lockstep.dev", resource, verb.word(), "team-a"].map(|word| Some(word.to_owned()));
            assert_eq!(found, [&expected[0], &expected[1], &expected[2], &expected[3]]);
            assert_eq!(asked.name.as_deref(), name);
        }
    }

    #[test]
    fn a_no_says_how_to_grant_it() {
        let told = remedy("team-a", Verb::Approve, Some("backlog"), Some("Ann@example.com"));
        assert_eq!(
            told,
            "to grant it, with all others of this namespace: kubectl -n team-a create rolebinding lockstep-approver-ann-example-com --clusterrole=lockstep-approver --user=Ann@example.com\nfor this one alone, a Role with: {apiGroups: [lockstep.dev], resources: [gates], resourceNames: [backlog], verbs: [approve]}"
        );
        for (verb, name, role) in [
            (Verb::Answer, None, "lockstep-approver"),
            (Verb::Run, Some("default"), "lockstep-runner"),
            (Verb::Run, None, "lockstep-edit"),
        ] {
            assert!(remedy("n", verb, name, None).contains(&format!("--clusterrole={role} --user=USER")));
        }
        assert!(is_machine("system:serviceaccount:a:b") && !is_machine("ann"));
    }
}
