//! What becomes of a run that is under way: cancelled, suspended, resumed.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde::Serialize;

use super::call::Call;
use super::caller::within;
use super::problem::{Problem, Result};
use super::{Http, runs, view};
use crate::api::Workflow;
use crate::api::name::API;

/// The fields of a run's spec that control it while it is under way.
#[derive(Serialize, Clone, Copy, Debug)]
struct ControlFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suspend: Option<bool>,
}

/// A merge patch of one run, and of no other of its name.
#[derive(Serialize, Debug)]
struct Change {
    metadata: Identity,
    spec: ControlFields,
}

#[derive(Serialize, Debug)]
struct Identity {
    uid: Option<String>,
}

pub async fn cancel(http: Arc<Http>, call: Call) -> Result<Response> {
    set_control_fields(http, call, ControlFields { cancel: Some(true), suspend: None }).await
}

pub async fn suspend(http: Arc<Http>, call: Call) -> Result<Response> {
    set_control_fields(http, call, ControlFields { cancel: None, suspend: Some(true) }).await
}

pub async fn resume(http: Arc<Http>, call: Call) -> Result<Response> {
    set_control_fields(http, call, ControlFields { cancel: None, suspend: Some(false) }).await
}

pub fn patch() -> PatchParams {
    PatchParams { field_manager: Some(API.to_owned()), ..PatchParams::default() }
}

async fn set_control_fields(http: Arc<Http>, call: Call, spec: ControlFields) -> Result<Response> {
    let run = runs::find(&http, &call).await?;
    let name = run.name_any();
    let status = run.status.clone().unwrap_or_default();
    if status.completed_at.is_some() {
        if spec.cancel.is_some() && run.spec.cancel == spec.cancel {
            // Said again: the answer was lost.
            return Ok(axum::Json(view::run(&run, [])).into_response());
        }
        let phase = status.phase.unwrap_or_default();
        return Err(Problem::conflict(format!("the run {name} is over ({phase})")).about(&name));
    }
    let api: Api<Workflow> = Api::namespaced(call.caller.client.clone(), &call.namespace);
    let change = Change { metadata: Identity { uid: run.uid() }, spec };
    let now = within(api.patch(&name, &patch(), &Patch::Merge(&change))).await?;
    Ok(axum::Json(view::run(&now, [])).into_response())
}
