//! `run --from FILE`: a run that goes on from an exported one. Where that run still is, its results are taken over as `retry`
//! does; anywhere else every step runs, and every gate opens anew: a file proves nobody's decision.

use std::path::Path;

use kube::ResourceExt;

use super::connect::Connection;
use super::control;
use super::export::{self, Carried, Export};
use super::fault::{Code, Fault};
use super::file::read;
use super::text::inline;
use crate::api::document::Scope;
use crate::api::limits::{WORKFLOW_DOCUMENTS, WORKFLOW_DOCUMENTS_BYTES};
use crate::api::workflow::{InlineDocument, Phase};
use crate::api::{DocumentSpec, Workflow, WorkflowSpec};
use crate::decide::retry::again;

/// What the file makes: a run, and documents of its session that are put before.
#[derive(Debug, PartialEq)]
pub struct Made {
    pub run: Workflow,
    pub documents: Vec<DocumentSpec>,
    /// What a run is called unless told.
    pub base: String,
}

pub async fn from(on: &Connection, file: &Path, session: Option<&str>) -> Result<Made, Fault> {
    let export = export::read(&inline(&file.display().to_string(), 200), &read(file)?)?;
    let name = export.run.name.clone();
    let known = on.read::<Workflow>("look for the exported run", &name).await?;
    let Some(old) = known.filter(|run| run.uid().as_ref() == Some(&export.run.uid)) else {
        eprintln!(
            "the run {} of the namespace {} is not here: every step runs, and nothing counts as approved",
            inline(&name, 60),
            inline(&export.run.namespace, 63)
        );
        return elsewhere(export, session);
    };
    let Some((phase, _)) = control::over(&old) else {
        let phase = old.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
        let cancel = on.hint("cancel", &name);
        return Err(Fault::new(
            Code::Failed,
            format!("the exported run {name} is here, and not over ({phase}); to end it first: {cancel} --wait"),
        ));
    };
    let what = if phase == Phase::Completed { "all" } else { "what completed" };
    eprintln!("the exported run {name} is here: {what} is taken over, as kubectl lockstep retry does");
    Ok(Made { run: again(&old, None), documents: Vec::new(), base: name })
}

/// The run in a place that knows nothing of it: its pinned definition, what it was told, and the documents it was given.
fn elsewhere(export: Export, session: Option<&str>) -> Result<Made, Fault> {
    let mut spec = WorkflowSpec { retry_of: None, suspend: None, cancel: None, ..export.spec };
    if let Some(pinned) = export.definition {
        let definition = pinned.content;
        spec = WorkflowSpec {
            template_ref: None,
            order: Some(definition.order),
            steps: definition.steps,
            parameters_schema: None,
            parameters: Some(definition.parameters).filter(|parameters| !parameters.is_empty()),
            on_failure: Some(definition.on_failure),
            output: definition.output,
            timeout_seconds: definition.timeout_seconds,
            budget: definition.budget,
            ..spec
        };
    }
    spec.session = session.map(str::to_owned).or(spec.session);
    let given = export.documents.into_iter().filter(|document| {
        // What is of the run itself stands in its spec, or its steps make it again.
        document.step_id.is_none() && document.scope > Scope::Workflow
    });
    let rest = held(&mut spec, given.collect());
    let Some(session) = spec.session.clone().or_else(|| rest.is_empty().then(String::new)) else {
        let types: Vec<&str> = rest.iter().map(|document| document.document_type.as_str()).collect();
        return Err(Fault::usage(format!(
            "documents: a run holds {WORKFLOW_DOCUMENTS} documents with {WORKFLOW_DOCUMENTS_BYTES} bytes in all, and {} did not fit; say --session NAME, and they are put as documents of that session",
            inline(&types.join(", "), 300)
        )));
    };
    let documents = rest.into_iter().map(|document| DocumentSpec {
        document_type: document.document_type,
        scope: Scope::Session,
        session: Some(session.clone()),
        format: document.format,
        content: document.content,
        ..DocumentSpec::default()
    });
    let documents = documents.collect();
    Ok(Made { run: Workflow::new("", spec), documents, base: export.run.name })
}

/// Puts documents into the run itself, where only it sees them, the smallest first; gives back what does not fit.
fn held(spec: &mut WorkflowSpec, mut given: Vec<Carried>) -> Vec<Carried> {
    given.sort_by_key(|document| document.content.len());
    let mut bytes: usize = spec.documents.iter().map(|document| document.content.len()).sum();
    let mut rest = Vec::new();
    for document in given {
        if spec.documents.iter().any(|known| known.document_type == document.document_type) {
            continue;
        }
        bytes += document.content.len();
        if bytes > WORKFLOW_DOCUMENTS_BYTES || spec.documents.len() == WORKFLOW_DOCUMENTS {
            rest.push(document);
            continue;
        }
        spec.documents.push(InlineDocument {
            document_type: document.document_type,
            format: document.format,
            content: document.content,
        });
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::name::digest_bytes;

    #[test]
    fn elsewhere_a_run_begins_anew_with_all_that_it_was_given() {
        let mut export = super::super::export::tests::sample();
        export.spec.cancel = Some(true);
        export.spec.input = Some("bikes".to_owned());
        let made = elsewhere(export, None).expect("a run");
        let spec = &made.run.spec;
        assert_eq!((made.base.as_str(), spec.input.as_deref(), spec.cancel), ("shop", Some("bikes"), None));
        assert!(spec.template_ref.is_none() && spec.retry_of.is_none() && spec.steps.len() == 1);
        assert_eq!(spec.parameters.as_ref().map(|p| p["depth"].clone()), Some(2.into()));
        // What a step made is made again; only what the run was given goes with it.
        let documents: Vec<&str> = spec.documents.iter().map(|d| d.document_type.as_str()).collect();
        assert_eq!((documents, made.documents.len()), (vec!["brief"], 0));
        assert!(made.run.status.is_none());
    }

    #[test]
    fn what_does_not_fit_the_run_is_put_into_its_session() {
        let mut export = super::super::export::tests::sample();
        let large = "x".repeat(WORKFLOW_DOCUMENTS_BYTES + 1);
        let mut more = export.documents[0].clone();
        (more.document_type, more.digest, more.content) = ("law".to_owned(), digest_bytes(large.as_bytes()), large);
        export.documents.push(more);
        let fault = elsewhere(export.clone(), None).expect_err("no session");
        assert!(fault.code == Code::Usage && fault.text.contains("law did not fit; say --session"), "{}", fault.text);
        let made = elsewhere(export, Some("s")).expect("a run");
        assert_eq!(made.run.spec.session.as_deref(), Some("s"));
        let put: Vec<_> =
            made.documents.iter().map(|d| (d.document_type.as_str(), d.scope, d.session.as_deref())).collect();
        assert_eq!(put, [("law", Scope::Session, Some("s"))]);
    }
}
