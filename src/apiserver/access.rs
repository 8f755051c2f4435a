//! Who may do what: the seam where authentication, authorization and admission are decided by whoever runs the server.

use k8s_openapi::api::authentication::v1::UserInfo;
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use serde_json::Value;

use super::kind::{Kind, Part};
use super::object::Object;

/// The verb of a write, as admission policies know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// A write that is about to be stored, as an admission policy sees it.
#[derive(Debug)]
pub struct Attributes<'a> {
    pub user: &'a str,
    pub operation: Operation,
    pub kind: Kind,
    pub part: Part,
    pub name: &'a str,
    /// What is there; none where it is to be created.
    pub old: Option<&'a Object>,
    /// What is to be stored; none where it is to be deleted.
    pub new: Option<&'a Value>,
    pub is_dry_run: bool,
}

/// The default of each method lets everything pass and knows no token.
pub trait Access: Send {
    /// Whether a write is admitted; the error says why not.
    fn admit(&self, _write: &Attributes<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Who holds a token that is good for one of these audiences, and for which of them; without audiences for the API server's
    /// own, as the token of a request is.
    fn authenticate(&self, _token: &str, _audiences: &[String]) -> Option<(UserInfo, Vec<String>)> {
        None
    }

    /// Whether that user may do that.
    fn authorize(&self, _user: &str, _attributes: &ResourceAttributes) -> bool {
        true
    }
}

/// Everybody may do everything.
pub struct Open;

impl Access for Open {}
