//! What the cluster did to us. Waiting, invalid specs and failures of agents are data, not errors.

use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer {0} within {1:?}")]
    Timeout(&'static str, Duration),
    #[error("the API server refused Job {name}: {message}")]
    JobRefused { name: String, message: String },
    #[error("{kind} {name} is there and is not Lockstep's: {holder}")]
    NotOurs { kind: &'static str, name: String, holder: String },
    #[error("the cache is behind our own write of {0}")]
    Stale(String),
    #[error("{0}")]
    Unusable(String),
    #[error("the reconcile panicked: {0}")]
    Panic(String),
}

impl Error {
    /// Somebody else wrote first: the watch brings the news, nothing is wrong.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_conflict() && !status.is_already_exists())
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_not_found())
    }

    /// What the API server says where it understood the request and will not have it: a policy, a quota, a fault in it.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Api(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => Some(&status.message),
            _ => None,
        }
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.is_already_exists())
    }
}
