//! What goes wrong, in one line: what, why, remedy. And the exit codes.

use std::process::ExitCode;

use kube::core::Status;

/// Exit codes; documented in `--help`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Done = 0,
    /// The run failed or was cancelled; or the wait is over.
    Failed = 1,
    Usage = 2,
    /// It waits for people.
    Waiting = 3,
    NotFound = 4,
    Api = 5,
    /// What is there is not what was reported.
    Exchanged = 6,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// An end that is not success. An empty text says nothing (the reader of our output went away).
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub code: Code,
    pub text: String,
}

impl Fault {
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
    pub fn usage(text: impl Into<String>) -> Self {
        Self::new(Code::Usage, text)
    }
    pub fn missing(text: impl Into<String>) -> Self {
        Self::new(Code::NotFound, text)
    }

    /// Of a call; `what` was tried.
    pub fn call(what: &str, wrong: &kube::Error) -> Self {
        match wrong {
            kube::Error::Api(status) => Self::refused(what, status),
            kube::Error::Auth(why) => Self::new(
                Code::Api,
                format!(
                    "cannot {what}: {}; log in again, or choose another user with --context",
                    one_line(&why.to_string())
                ),
            ),
            kube::Error::SerdeError(why) => Self::new(
                Code::Api,
                format!(
                    "cannot {what}: the answer is not understood ({why}); is this plugin older than the operator? see kubectl lockstep version"
                ),
            ),
            other => Self::new(
                Code::Api,
                format!(
                    "cannot {what}: {}; does the cluster answer? try kubectl version, or another --context",
                    root(other)
                ),
            ),
        }
    }

    /// Of an answer of the API server.
    pub fn refused(what: &str, status: &Status) -> Self {
        let message = one_line(&status.message);
        match status.code {
            401 => Self::new(
                Code::Api,
                format!("cannot {what}: not logged in ({message}); renew the credentials of this context"),
            ),
            403 => match policy_text(&message) {
                Some(own) => Self::new(Code::Api, own.to_owned()),
                None => Self::new(
                    Code::Api,
                    format!("cannot {what}: {message}; ask for the right, or see kubectl auth can-i --list"),
                ),
            },
            404 if message.contains("page not found") || message.contains("could not find the requested resource") => {
                Self::new(
                    Code::Api,
                    format!(
                        "cannot {what}: Lockstep's kinds are not installed in this cluster; install its CRDs, or choose another --context"
                    ),
                )
            }
            404 => Self::missing(format!("cannot {what}: {message}")),
            _ => Self::new(Code::Api, format!("cannot {what}: {message}")),
        }
    }
}

/// The policy's own words out of the API server's wrapping.
pub fn policy_text(message: &str) -> Option<&str> {
    let (_, own) = message.split_once("denied request: ")?;
    Some(own.trim())
}

fn root(wrong: &dyn std::error::Error) -> String {
    let mut last = wrong;
    while let Some(inner) = last.source() {
        last = inner;
    }
    one_line(&last.to_string())
}

fn one_line(text: &str) -> String {
    super::text::inline(text, 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        Status { code, message: message.to_owned(), ..Status::default() }
    }

    #[test]
    fn answers_of_the_api_server_become_one_line_and_a_code() {
        let table = [
            (
                403,
                "stepruns.lockstep.dev \"x\" is forbidden: ValidatingAdmissionPolicy 'lockstep-gate' with binding 'b' denied request: stale review, the output is now sha256:aaa",
                Code::Api,
                "stale review, the output is now sha256:aaa",
            ),
            (
                403,
                "User \"bob\" cannot patch",
                Code::Api,
                "cannot decide: User \"bob\" cannot patch; ask for the right, or see kubectl auth can-i --list",
            ),
            (
                404,
                "404 page not found",
                Code::Api,
                "cannot decide: Lockstep's kinds are not installed in this cluster; install its CRDs, or choose another --context",
            ),
            (
                404,
                "workflows.lockstep.dev \"x\" not found",
                Code::NotFound,
                "cannot decide: workflows.lockstep.dev \"x\" not found",
            ),
            (500, "etcd:\nno leader", Code::Api, "cannot decide: etcd: no leader"),
        ];
        for (code, message, expected, text) in table {
            assert_eq!(Fault::refused("decide", &status(code, message)), Fault::new(expected, text));
        }
    }
}
