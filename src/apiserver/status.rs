//! Refusals, with the codes, reasons and words of the real API server: clients branch on the first two, and people read
//! the third.

use kube::core::Status;
use kube::core::response::{StatusCause, StatusDetails, reason};

use super::kind::Kind;
use super::object::Object;

/// Why a request was refused.
pub type Refusal = Box<Status>;
pub type Result<T> = std::result::Result<T, Refusal>;

/// `workflows.lockstep.dev "shop"`.
fn qualified(kind: Kind, name: &str) -> String {
    let (plural, group) = (kind.plural(), kind.group());
    let dot = if group.is_empty() { "" } else { "." };
    format!("{plural}{dot}{group} {name:?}")
}

fn about(code: u16, reason: &str, message: &str, (kind, name): (Kind, &str)) -> Refusal {
    let details = StatusDetails { name: name.to_owned(), ..details(kind.group(), kind.plural()) };
    Status::failure(message, reason).with_code(code).with_details(details).boxed()
}

fn details(group: &str, kind: &str) -> StatusDetails {
    StatusDetails {
        name: String::new(),
        group: group.to_owned(),
        kind: kind.to_owned(),
        uid: String::new(),
        causes: Vec::new(),
        retry_after_seconds: 0,
    }
}

/// A refusal that is about no object.
pub fn plain(code: u16, reason: &str, message: &str) -> Refusal {
    Status::failure(message, reason).with_code(code).boxed()
}

pub fn not_found(kind: Kind, name: &str) -> Refusal {
    about(404, reason::NOT_FOUND, &format!("{} not found", qualified(kind, name)), (kind, name))
}

/// A path that nothing is served under.
pub fn no_such_path() -> Refusal {
    plain(404, reason::NOT_FOUND, "the server could not find the requested resource")
}

/// By what stands under that name, or is on its way out.
pub fn already_exists(there: &Object) -> Refusal {
    let (kind, name) = (there.key.kind, there.key.name.as_str());
    let going = if there.is_deleting() { "object is being deleted: " } else { "" };
    about(409, reason::ALREADY_EXISTS, &format!("{going}{} already exists", qualified(kind, name)), (kind, name))
}

pub fn conflict(kind: Kind, name: &str, why: &str) -> Refusal {
    let message = format!("Operation cannot be fulfilled on {}: {why}", qualified(kind, name));
    about(409, reason::CONFLICT, &message, (kind, name))
}

/// Somebody wrote since the version that the request states.
pub fn modified(kind: Kind, name: &str) -> Refusal {
    let why = "the object has been modified; please apply your changes to the latest version and try again";
    conflict(kind, name, why)
}

pub fn invalid(kind: Kind, name: &str, why: &str) -> Refusal {
    let group = kind.group();
    let dot = if group.is_empty() { "" } else { "." };
    let message = format!("{}{dot}{group} {name:?} is invalid: {why}", kind.name());
    about(422, reason::INVALID, &message, (kind, name))
}

/// A JSON patch that does not apply; a `test` that fails, for example.
pub fn patch_failed() -> Refusal {
    plain(422, reason::INVALID, "the server rejected our request due to an error in our request")
}

/// By an admission policy, or for want of rights.
pub fn forbidden(kind: Kind, name: &str, why: &str) -> Refusal {
    about(403, reason::FORBIDDEN, &format!("{} is forbidden: {why}", qualified(kind, name)), (kind, name))
}

/// The versions that a watch or a page needs are not kept any more: list again.
pub fn expired(why: &str) -> Refusal {
    plain(410, reason::EXPIRED, why)
}

/// A version that nothing has yet. The real server waits three seconds for it before it says so.
pub fn too_new(asked: u64, current: u64) -> Refusal {
    let cause = StatusCause {
        reason: "ResourceVersionTooLarge".to_owned(),
        message: "Too large resource version".to_owned(),
        field: String::new(),
    };
    let details = StatusDetails { causes: vec![cause], retry_after_seconds: 1, ..details("", "") };
    let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
    Status::failure(&message, reason::TIMEOUT).with_code(504).with_details(details).boxed()
}

/// What of the options of a list or a watch does not go together, a cause for each fault.
pub fn invalid_options(faults: Vec<StatusCause>) -> Refusal {
    let words: Vec<String> = faults.iter().map(|fault| format!("{}: {}", fault.field, fault.message)).collect();
    let words = if words.len() == 1 { words.concat() } else { format!("[{}]", words.join(", ")) };
    let details = StatusDetails { causes: faults, ..details("meta.k8s.io", "ListOptions") };
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {words}");
    Status::failure(&message, reason::INVALID).with_code(422).with_details(details).boxed()
}

pub fn bad_request(why: &str) -> Refusal {
    plain(400, reason::BAD_REQUEST, why)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::object::Key;

    #[test]
    fn refusals_speak_as_the_api_server_does() {
        let missing = not_found(Kind::Pod, "p");
        assert_eq!((missing.code, missing.message.as_str()), (404, "pods \"p\" not found"));
        let there = |meta| already_exists(&Object::new(Key::new(Kind::Job, "team", "j"), json!({"metadata": meta})));
        assert_eq!(there(json!({})).message, "jobs.batch \"j\" already exists");
        let going = there(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(going.message, "object is being deleted: jobs.batch \"j\" already exists");
        assert!(modified(Kind::Workflow, "shop").is_conflict());
        assert_eq!(
            invalid(Kind::Workflow, "shop", "metadata.uid: field is immutable").message,
            "Workflow.lockstep.dev \"shop\" is invalid: metadata.uid: field is immutable"
        );
    }
}
