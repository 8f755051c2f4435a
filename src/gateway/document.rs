//! Documents: the pinned ones are read out, the one that an attempt made is put up.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Resource};

use super::attempt::Asked;
use super::auth::Caller;
use super::refusal::{Reason, Refusal, Result};
use super::{Gateway, attempt, cluster, context, definitions};
use crate::api::document::OUTPUT_TYPE;
use crate::api::document::Scope;
use crate::api::step::{Format, Produces, WiderScope};
use crate::api::step_run::{Binding, StepRunSpec};
use crate::api::{Document, DocumentSpec, StepRun, Workflow, name};
use crate::decide::content::{Content, Loaded, Pin};
use crate::decide::seen;
use crate::definition::program::RunContext;
use crate::protocol::{AttemptRef, DocumentRequest};

/// The bytes of one pinned document.
pub async fn read(gateway: &Gateway, caller: &Caller, request: Asked<DocumentRequest>) -> Result<Response> {
    let who = &request.attempt;
    let step_run = attempt::read(gateway, who).await?;
    attempt::stands(&step_run, who)?;
    attempt::holds(&step_run, who, caller)?;
    let pinned = step_run.spec.documents.iter().find(|document| document.name == request.body.name).map(Pin::from);
    let pin = match pinned {
        Some(pin) => pin,
        None => rejected(gateway, &step_run, &request)
            .await?
            .ok_or_else(|| Refusal::new(Reason::NotFound, "the step does not read such a document"))?,
    };
    let content = content(gateway, &who.namespace, &pin).await?;
    let kind = [(http::header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, content.text().to_owned()).into_response())
}

/// What a Document holds, if it is the one that is meant. Where it is not, nothing starts: the operator, who looks before
/// it launches the next attempt, ends the step.
pub async fn content(gateway: &Gateway, namespace: &str, pin: &Pin) -> Result<Content> {
    let api: Api<Document> = Api::namespaced(gateway.client.clone(), namespace);
    let found = cluster::read(&api, &pin.name).await?.map(|document| Loaded::new(Arc::new(document)));
    Content::of(pin, found.as_ref()).map_err(|changed| {
        tracing::error!(namespace, document = pin.name, %changed, "a document is not the one that was meant");
        Refusal::new(Reason::NotFound, format!("DocumentChanged: {changed}"))
    })
}

/// The document that this step made in the round before, if it is asked for.
async fn rejected(gateway: &Gateway, step_run: &StepRun, request: &Asked<DocumentRequest>) -> Result<Option<Pin>> {
    let who = &request.attempt;
    let definition = gateway.definitions.get(&gateway.client, &who.namespace, &step_run.spec).await?;
    let (_, step) = definitions::step(&definition, &step_run.spec)?;
    let rejected = context::rejected(who, &attempt::status(step_run), step);
    Ok(rejected.filter(|pin| pin.name == request.body.name))
}

/// Where a document of an attempt comes from.
pub struct Origin<'a> {
    pub attempt: &'a AttemptRef,
    pub spec: &'a StepRunSpec,
    pub run: &'a RunContext,
    pub produces: &'a Produces,
}

/// What carries an output that is too large for a report: no lookup finds it, as it is never published.
pub fn internal() -> Produces {
    Produces { document_type: OUTPUT_TYPE.to_owned(), format: Format::Json, scope: None }
}

/// Makes the document, once: its name is the attempt's, so a second try finds the first one's. Gives its name, and what
/// it is bound to from now on. `Err` in `Ok` says why it cannot be.
pub async fn create(
    gateway: &Gateway,
    origin: &Origin<'_>,
    content: String,
) -> Result<std::result::Result<(String, Binding), String>> {
    let api: Api<Document> = Api::namespaced(gateway.client.clone(), &origin.attempt.namespace);
    let document = build(origin, content);
    let params = PostParams { field_manager: Some(name::GATEWAY.to_owned()), ..PostParams::default() };
    let name = document.metadata.name.clone().unwrap_or_default();
    let digest = name::digest_bytes(document.spec.content.as_bytes());
    let bound = |made: Document| (name.clone(), Binding { uid: made.metadata.uid, digest: digest.clone() });
    match cluster::call(|| api.create(&params, &document)).await {
        // What came back is what lies there: an admission plugin may have changed it.
        Ok(made) if made.spec != document.spec => {
            Ok(Err(format!("the document {name} was changed while it was made; an admission plugin does that")))
        }
        Ok(made) => Ok(Ok(bound(made))),
        Err(failure) if failure.is_already_exists() => {
            let found = cluster::read(&api, &name).await?;
            match found {
                Some(found) if found.spec == document.spec => Ok(Ok(bound(found))),
                Some(found) => Ok(Err(format!(
                    "NameConflict: somebody else's Document has the name {name} ({}); delete it",
                    seen::holder(&found.metadata)
                ))),
                None => Err(Refusal::unavailable("the document is being deleted")),
            }
        }
        Err(failure) if failure.is_invalid() => {
            tracing::warn!(error = %failure, document = name, "a document was refused");
            Ok(Err(format!("the document was refused: {failure}")))
        }
        Err(failure) => Err(failure.into()),
    }
}

fn build(origin: &Origin<'_>, content: String) -> Document {
    let Origin { attempt, spec, run, produces } = origin;
    let scope = match produces.scope {
        Some(WiderScope::Session) => Scope::Session,
        Some(WiderScope::Project) => Scope::Project,
        None if spec.item.is_some() => Scope::Item,
        None => Scope::Workflow,
    };
    // What outlives the run is not deleted with it.
    let owner = matches!(scope, Scope::Item | Scope::Workflow).then(|| OwnerReference {
        api_version: Workflow::api_version(&()).into_owned(),
        kind: Workflow::kind(&()).into_owned(),
        name: spec.workflow.name.clone(),
        uid: spec.workflow.uid.clone(),
        ..OwnerReference::default()
    });
    let name = name::document(&attempt.step_run, &attempt.uid, attempt.attempt, &produces.document_type);
    Document {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(attempt.namespace.clone()),
            labels: Some([(name::LABEL_WORKFLOW.to_owned(), name::label_value(&spec.workflow.name))].into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: DocumentSpec {
            document_type: produces.document_type.clone(),
            scope,
            scope_id: spec.scope_chain.last().map(|link| link.scope_id.clone()),
            session: Some(run.session.clone()),
            project: run.project.clone(),
            workflow: Some(spec.workflow.name.clone()),
            path: Some(spec.path.clone()),
            attempt: Some(attempt.attempt),
            format: produces.format,
            content,
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn documents_have_the_scope_and_owner_of_their_making() {
        let who = AttemptRef {
            namespace: "team".to_owned(),
            step_run: "s".to_owned(),
            uid: "u".to_owned(),
            attempt: 2,
            id: String::new(),
        };
        for (wider, item, scope, owned) in [
            (None, false, Scope::Workflow, true),
            (None, true, Scope::Item, true),
            (Some(WiderScope::Session), true, Scope::Session, false),
            (Some(WiderScope::Project), false, Scope::Project, false),
        ] {
            let mut spec = StepRunSpec::default();
            spec.workflow.name = "shop".to_owned();
            spec.workflow.uid = "w".to_owned();
            spec.scope_chain = serde_json::from_value(json!([
                {"scope": "workflow", "scopeId": "w"}, {"scope": "epic", "scopeId": "w/e1"}]))
            .expect("a chain");
            spec.item = item.then(Default::default);
            let run = RunContext { session: "ses".to_owned(), ..RunContext::default() };
            let produces = Produces { document_type: "plan".to_owned(), scope: wider, ..Produces::default() };
            let origin = Origin { attempt: &who, spec: &spec, run: &run, produces: &produces };
            let document = build(&origin, "text".to_owned());
            assert_eq!(document.spec.scope, scope);
            assert_eq!(document.spec.scope_id.as_deref(), Some("w/e1"));
            assert_eq!(document.spec.attempt, Some(2));
            let owners = document.metadata.owner_references.unwrap_or_default();
            assert_eq!(owners.len(), usize::from(owned));
            assert!(owners.iter().all(|owner| owner.controller.is_none() && owner.uid == "w"));
            // What carries the output is the run's or the item's, whatever the step's document is.
            let internal = internal();
            let carrier = build(&Origin { produces: &internal, ..origin }, "text".to_owned());
            assert_eq!(carrier.spec.scope, if item { Scope::Item } else { Scope::Workflow });
            assert_eq!((carrier.spec.document_type.as_str(), carrier.spec.format), (OUTPUT_TYPE, Format::Json));
            assert_eq!(carrier.metadata.owner_references.map(|owners| owners.len()), Some(1));
            assert_ne!(carrier.metadata.name, document.metadata.name);
        }
    }
}
