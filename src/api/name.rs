//! Names of children, labels and annotations. A child's name is computed from its parent's identity, so that making it
//! twice is impossible: a readable prefix, then 16 hex digits of a hash, always a legal name.

use sha2::{Digest, Sha256};

/// The operator's field manager and User-Agent; the gateway's; the plugin's; the HTTP API's.
pub const OPERATOR: &str = "lockstep-operator";
pub const GATEWAY: &str = "lockstep-gateway";
pub const CLI: &str = "lockstep-cli";
pub const API: &str = "lockstep-api";

pub const LABEL_WORKFLOW: &str = "lockstep.dev/workflow";
pub const LABEL_STEP_RUN: &str = "lockstep.dev/steprun";
pub const LABEL_AGENT: &str = "lockstep.dev/agent";
pub const LABEL_ATTEMPT: &str = "lockstep.dev/attempt";
pub const LABEL_SESSION: &str = "lockstep.dev/session";
/// On a NetworkPolicy, and on the Jobs and pods that it is for: which egress they have.
pub const LABEL_EGRESS: &str = "lockstep.dev/egress";
/// On a Workflow that `run`, the API or a Trigger made: no Git tool would make it again, so it may go when its time is up.
pub const LABEL_MADE_BY: &str = "lockstep.dev/made-by";

/// On a Workflow that a Trigger made: the name of that.
pub const LABEL_TRIGGER: &str = "lockstep.dev/trigger";
/// On it, too: the event that it was made for, as it was sent.
pub const EVENT_ID: &str = "lockstep.dev/event-id";
pub const EVENT_SOURCE: &str = "lockstep.dev/event-source";
pub const EVENT_TYPE: &str = "lockstep.dev/event-type";
/// Or the time of the schedule that it was made for.
pub const SCHEDULED_TIME: &str = "lockstep.dev/scheduled-time";
/// On it, where somebody else's run had its name: the UID of that, which is part of the name.
pub const NAME_SALT: &str = "lockstep.dev/name-salt";

/// On a Memory: when it was last written, or an attempt began that could read it.
pub const LAST_USED: &str = "lockstep.dev/last-used";

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

/// On a Workflow: whoever asked for it by HTTP was told which documents are missing, and not yet what it came to. Asking again
/// means this run.
pub const AWAITED: &str = "lockstep.dev/awaited";

/// On a Workflow: the W3C trace context of whoever asked for it; its trace is then the run's.
pub const TRACEPARENT: &str = "lockstep.dev/traceparent";

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

/// Small hexadecimal digits, two a byte.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
        text
    })
}

/// The other way round: as many bytes as are wanted, of just so many hexadecimal digits.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut all = [0; N];
    for (byte, at) in all.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(all)
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

/// What an agent remembers in a session.
pub fn memory(agent_id: &str, session: &str) -> String {
    let readable = format!("{}-{}", head(agent_id, 17), head(session, 17));
    legal(&readable, &hex([agent_id.as_bytes(), session.as_bytes(), b"memory".as_slice()]))
}

/// Whether a session is one run's alone: nobody can spell its name in a spec.
pub fn is_private(session: &str) -> bool {
    session.starts_with('_')
}

/// The pinned definition of a run.
pub fn revision(workflow: &str, workflow_uid: &str) -> String {
    legal(head(workflow, 34).as_str(), &hex([workflow_uid.as_bytes(), b"definition".as_slice()]))
}

/// The run that somebody starts with a key of their own, so that a repeated request starts it once.
pub fn keyed_run(template: &str, user: &str, key: &str) -> String {
    legal(&head(template, 34), &hex([b"key".as_slice(), template.as_bytes(), user.as_bytes(), key.as_bytes()]))
}

/// The run that an event starts by a Trigger: the same event, however often it is sent, is the same run. The salt is that of
/// `NAME_SALT`; none is no part of it.
pub fn event_run(trigger: &str, source: &str, id: &str, salt: &str) -> String {
    let parts = [b"event".as_slice(), trigger.as_bytes(), source.as_bytes(), id.as_bytes(), salt.as_bytes()];
    legal(&head(trigger, 34), &hex(parts.into_iter().take(if salt.is_empty() { 4 } else { 5 })))
}

/// The run of one time of a schedule, in seconds since 1970.
pub fn scheduled_run(trigger: &str, second: i64, salt: &str) -> String {
    let second = second.to_be_bytes();
    let parts = [b"schedule".as_slice(), trigger.as_bytes(), &second, salt.as_bytes()];
    legal(&head(trigger, 34), &hex(parts.into_iter().take(if salt.is_empty() { 3 } else { 4 })))
}

/// The session that a text means: the text itself where a session and a label may be called so, else a digest of it.
pub fn session(text: &str) -> String {
    let is_one = !text.is_empty() && label_value(text) == text;
    if is_one { text.to_owned() } else { format!("h-{}", &hex([text.as_bytes()])[..32]) }
}

/// A document that somebody puts, by what it is and holds; `copy` tells those apart that say the same once more. Its hash is
/// longer than that of what Lockstep makes: such names nobody else may take (`charts/lockstep/policies/document.yaml`).
pub fn put_document(document_type: &str, place: &str, content: &str, copy: u32) -> String {
    let copy = copy.to_be_bytes();
    let parts = [b"put".as_slice(), document_type.as_bytes(), place.as_bytes(), content.as_bytes(), &copy];
    format!("{}-{}", head(document_type, 31), &hex(parts)[..20])
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
            prop_assert!(is_legal(&memory(&key, &workflow)));
            prop_assert!(label_value(&key).len() <= 63);
        }
    }

    /// By the form alone the policy keeps those of runs for Lockstep.
    #[test]
    fn what_people_put_is_called_otherwise_than_what_runs_make() {
        let kept = |name: &str| {
            name.rsplit_once('-').is_some_and(|(_, hash)| hash.len() == 16 && from_hex::<8>(hash).is_some())
        };
        for kind in ["plan", "a-very-long-type-of-a-document-that-goes-on-and-on-and-on", "plan-2"] {
            let put = put_document(kind, "Namespace//Text", "text", 0);
            assert!(is_legal(&put) && !kept(&put), "{put}");
            for made in
                [document("s-1", "u", 2, kind), run_document("w", "u", kind), copied_document("w", "u", "a", kind)]
            {
                assert!(is_legal(&made) && kept(&made), "{made}");
            }
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
    fn a_session_is_the_text_where_it_may_be_called_so() {
        let long = "x".repeat(63);
        for text in ["a", "A.b_c-9", long.as_str()] {
            assert_eq!((session(text).as_str(), label_value(&session(text)).as_str()), (text, text));
        }
        let longer = "x".repeat(64);
        for text in ["", "a b", "a.", "-a", "_a", "a/b", "ä", "a\nb", longer.as_str()] {
            let session = session(text);
            assert!(session.starts_with("h-") && session.len() == 34 && label_value(&session) == session, "{text:?}");
        }
        let names = [
            event_run("t", "s", "1", ""),
            event_run("t", "s1", "", ""),
            event_run("t", "", "s1", ""),
            event_run("u", "s", "1", ""),
        ];
        assert!(names.iter().all(|name| is_legal(name)));
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{names:?}");
        assert_ne!(scheduled_run("t", 60, ""), scheduled_run("t", 120, ""));
    }

    #[test]
    fn digests_are_those_of_the_field() {
        assert_eq!(digest_bytes(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
