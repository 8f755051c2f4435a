//! What the API server says of an Agent's pod template, before anything runs: a dry run of a Job, with strict validation of
//! its fields. So a misspelt field is told when the Agent is written, and not never.

use k8s_openapi::api::batch::v1::Job;
use kube::Client;
use kube::api::PostParams;
use kube::core::Status;
use serde_json::Value;

use super::client::post;
use crate::decide::agent::DryRun;

/// Asks it; what it cannot say is an answer, too.
pub async fn ask(client: &Client, namespace: &str, job: &Value) -> DryRun {
    let (body, params) = (job.to_string().into_bytes(), PostParams { dry_run: true, ..PostParams::default() });
    match post::<Job>(client, namespace, body, params, "&fieldValidation=Strict").await {
        Ok(_) => DryRun::Accepted,
        Err(kube::Error::Api(status)) => judged(&status),
        Err(error) => DryRun::Unknown(error.to_string()),
    }
}

/// A refusal of the template itself has paths in it; anything else says nothing about the Agent.
fn judged(status: &Status) -> DryRun {
    let faults = match status.code {
        400 => undecodable(&status.message),
        422 => invalid(status),
        _ => Vec::new(),
    };
    if faults.is_empty() { DryRun::Unknown(status.message.clone()) } else { DryRun::Refused(faults) }
}

fn invalid(status: &Status) -> Vec<String> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let of_template = causes.filter(|cause| cause.field.starts_with("spec.template"));
    of_template.map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// `... strict decoding error: unknown field "spec.template.spec.x", duplicate field "spec.template.spec.y"`.
fn undecodable(message: &str) -> Vec<String> {
    let Some((_, faults)) = message.split_once("cannot be handled as a Job: ") else { return Vec::new() };
    let Some(faults) = faults.strip_prefix("strict decoding error: ") else { return vec![faults.to_owned()] };
    let told = faults.split("\", ").filter_map(|fault| fault.trim_end_matches('"').split_once(" field \""));
    told.map(|(what, path)| match what {
        "unknown" => format!("{path}: is no field that this cluster knows; is it misspelt?"),
        _ => format!("{path}: stands there twice"),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    fn status(code: u16, message: &str, causes: &[(&str, &str)]) -> Status {
        let causes = causes.iter().map(|(field, message)| StatusCause {
            reason: String::new(),
            message: (*message).to_owned(),
            field: (*field).to_owned(),
        });
        let details = StatusDetails {
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            causes: causes.collect(),
            retry_after_seconds: 0,
        };
        Status { code, details: Some(details), ..Status::failure(message, "") }
    }

    #[test]
    fn only_what_speaks_of_the_template_is_a_fault() {
        let strict = "Job in version \"v1\" cannot be handled as a Job: strict decoding error: unknown field \"spec.template.spec.containers[0].resourcess\", duplicate field \"spec.template.spec.volumes\"";
        let typed = "Job in version \"v1\" cannot be handled as a Job: json: cannot unmarshal number into Go struct field EnvVar.value of type string";
        let place = "spec.template.spec.containers[0].resources.requests";
        for (status, faults) in [
            (
                status(400, strict, &[]),
                vec![
                    "spec.template.spec.containers[0].resourcess: is no field that this cluster knows; is it misspelt?",
                    "spec.template.spec.volumes: stands there twice",
                ],
            ),
            (
                status(400, typed, &[]),
                vec!["json: cannot unmarshal number into Go struct field EnvVar.value of type string"],
            ),
            (
                status(422, "Job is invalid", &[(place, "must be less than or equal to cpu limit")]),
                vec!["spec.template.spec.containers[0].resources.requests: must be less than or equal to cpu limit"],
            ),
            (status(422, "ValidatingAdmissionPolicy 'x' denied request: no", &[("", "no")]), vec![]),
            (status(400, "admission webhook \"w\" does not support dry run", &[]), vec![]),
            (status(403, "exceeded quota: jobs", &[]), vec![]),
            (status(500, "etcd", &[]), vec![]),
        ] {
            let expected = if faults.is_empty() {
                DryRun::Unknown(status.message.clone())
            } else {
                DryRun::Refused(faults.into_iter().map(str::to_owned).collect())
            };
            assert_eq!(judged(&status), expected);
        }
    }
}
