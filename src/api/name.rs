//! Names of children, labels and annotations. A child's name is computed from its parent's identity, so that making it
//! twice is impossible: a readable prefix, then 16 hex digits of a hash, always a legal name.

use sha2::{Digest, Sha256};

/// The operator's field manager and User-Agent; the gateway's; the plugin's.
pub const OPERATOR: &str = "lockstep-operator";
pub const GATEWAY: &str = "lockstep-gateway";
pub const CLI: &str = "lockstep-cli";

pub const LABEL_WORKFLOW: &str = "lockstep.dev/workflow";
pub const LABEL_STEP_RUN: &str = "lockstep.dev/steprun";
pub const LABEL_AGENT: &str = "lockstep.dev/agent";
pub const LABEL_ATTEMPT: &str = "lockstep.dev/attempt";
pub const LABEL_SESSION: &str = "lockstep.dev/session";
/// On a Workflow that `run`, the API or a Trigger made: no Git tool would make it again, so it may go when its time is up.
pub const LABEL_MADE_BY: &str = "lockstep.dev/made-by";

/// The mailbox on a StepRun.
pub const DECISION: &str = "lockstep.dev/decision";
pub const COMMENT: &str = "lockstep.dev/comment";
pub const REVIEW: &str = "lockstep.dev/review";
pub const DECIDED_BY: &str = "lockstep.dev/decided-by";
/// `retry`, `skip` or `fail`: the answer to a wait for input.
pub const ACTION: &str = "lockstep.dev/action";
/// The answer to a step's question: JSON, or plain text.
pub const ANSWER: &str = "lockstep.dev/answer";
/// Nobody may set it: the probe that shows that the policies stand.
pub const CANARY: &str = "lockstep.dev/canary";
/// On a Workflow: who made it, stamped by admission.
pub const CREATED_BY: &str = "lockstep.dev/created-by";

/// `sha256:...` over parts; their lengths are part of it, so no two lists of parts meet.
pub fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    format!("sha256:{}", hex(parts))
}

/// `sha256:...` over the bytes alone, as `sha256sum` prints it.
pub fn digest_bytes(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    format!("sha256:{}", to_hex(&sum))
}

fn hex<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    to_hex(&hasher.finalize())
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
        text
    })
}

/// The StepRun of a step, for the item keys around it.
pub fn step_run(workflow: &str, workflow_uid: &str, path: &str, keys: &[String]) -> String {
    let mut parts = vec![workflow_uid.as_bytes(), path.as_bytes()];
    parts.extend(keys.iter().map(String::as_bytes));
    let last = path.rsplit('/').next().unwrap_or(path);
    let readable = match keys.last() {
        Some(key) => format!("{}-{}-{}", head(workflow, 12), head(last, 12), head(key, 8)),
        None => format!("{}-{}", head(workflow, 16), head(last, 17)),
    };
    legal(&readable, &hex(parts))
}

/// The Job of one attempt; its pods and labels take the same name, hence at most 52 characters.
pub fn job(step_run: &str, step_run_uid: &str, attempt: i32) -> String {
    salted_job(step_run, step_run_uid, attempt, "")
}

/// The Job of one attempt, where somebody has taken a name that could be foreseen; no salt is no part of it.
pub fn salted_job(step_run: &str, step_run_uid: &str, attempt: i32, salt: &str) -> String {
    let number = attempt.to_string();
    let parts = [step_run_uid.as_bytes(), number.as_bytes(), salt.as_bytes()];
    let hash = hex(parts.into_iter().take(if salt.is_empty() { 2 } else { 3 }));
    let readable = step_run.rsplit_once('-').map_or(step_run, |(readable, _)| readable);
    legal(&format!("{}-{attempt}", head(readable, 24)), &hash)
}

/// The document that one attempt makes.
pub fn document(step_run: &str, step_run_uid: &str, attempt: i32, document_type: &str) -> String {
    let hash = hex([step_run_uid.as_bytes(), attempt.to_string().as_bytes(), document_type.as_bytes()]);
    let readable = step_run.rsplit_once('-').map_or(step_run, |(readable, _)| readable);
    legal(&format!("{}-{attempt}", head(readable, 24)), &hash)
}

/// The document of run scope that stands in the run itself.
pub fn run_document(workflow: &str, workflow_uid: &str, document_type: &str) -> String {
    let hash = hex([workflow_uid.as_bytes(), document_type.as_bytes()]);
    legal(&format!("{}-{}", head(workflow, 16), head(document_type, 17)), &hash)
}

/// A run's copy of a document that another run made for the same place.
pub fn copied_document(workflow: &str, workflow_uid: &str, place: &str, document_type: &str) -> String {
    let hash = hex([workflow_uid.as_bytes(), place.as_bytes(), document_type.as_bytes()]);
    legal(&format!("{}-{}", head(workflow, 16), head(document_type, 17)), &hash)
}

/// The pinned definition of a run.
pub fn revision(workflow: &str, workflow_uid: &str) -> String {
    legal(head(workflow, 34).as_str(), &hex([workflow_uid.as_bytes(), b"definition".as_slice()]))
}

/// The audience of the token of one attempt's pod: it is good for nothing else.
pub fn audience(step_run_uid: &str, attempt: i32) -> String {
    format!("lockstep.dev/{step_run_uid}/{attempt}")
}

/// Identity of a scope: the run's UID, then the keys of the items inwards.
pub fn scope_id(workflow_uid: &str, keys: &[String]) -> String {
    keys.iter().fold(workflow_uid.to_owned(), |id, key| format!("{id}/{key}"))
}

/// A value as a label's, hashed where it is none.
pub fn label_value(value: &str) -> String {
    let legal = value.len() <= 63
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.ends_with(|c: char| c.is_ascii_alphanumeric())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if legal { value.to_owned() } else { format!("h-{}", &hex([value.as_bytes()])[..32]) }
}

fn head(text: &str, chars: usize) -> String {
    text.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(chars)
        .collect::<String>()
        .trim_matches('-')
        .to_owned()
}

/// At most 52 characters: the readable part may be cut, the hash is the identity.
fn legal(readable: &str, hash: &str) -> String {
    let readable = readable.trim_matches('-');
    let begins = readable.starts_with(|c: char| c.is_ascii_lowercase());
    let readable = if begins { head(readable, 35) } else { head(&format!("x{readable}"), 35) };
    format!("{readable}-{}", &hash[..16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_legal(name: &str) -> bool {
        name.len() <= 52
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.ends_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    }

    proptest! {
        #[test]
        fn names_of_children_are_always_legal(workflow in ".{0,300}", path in ".{0,600}", key in ".{0,4096}", attempt in 1..i32::MAX) {
            let step_run = step_run(&workflow, "uid", &path, std::slice::from_ref(&key));
            prop_assert!(is_legal(&step_run), "{step_run}");
            let job = job(&step_run, "uid", attempt);
            prop_assert!(is_legal(&job), "{job}");
            let revision = revision(&workflow, "uid");
            prop_assert!(is_legal(&revision), "{revision}");
            prop_assert!(is_legal(&run_document(&workflow, "uid", &path)));
            prop_assert!(label_value(&key).len() <= 63);
        }
    }

    #[test]
    fn names_differ_where_identities_do() {
        let keys = |a: &[&str]| a.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
        let base = step_run("w", "uid", "a/b", &keys(&["x"]));
        assert_ne!(base, step_run("w", "uid2", "a/b", &keys(&["x"])));
        assert_ne!(base, step_run("w", "uid", "a/c", &keys(&["x"])));
        assert_ne!(base, step_run("w", "uid", "a/b", &keys(&["x", ""])));
        assert_ne!(step_run("w", "uid", "a", &keys(&["bc"])), step_run("w", "uid", "ab", &keys(&["c"])));
        assert_ne!(job("s-1", "uid", 1), job("s-1", "uid", 2));
        assert_ne!(job("s-1", "uid", 1), salted_job("s-1", "uid", 1, "x"));
        assert_ne!(salted_job("s-1", "uid", 1, "y"), salted_job("s-1", "uid", 1, "x"));
    }

    #[test]
    fn digests_are_those_of_the_field() {
        assert_eq!(digest_bytes(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
