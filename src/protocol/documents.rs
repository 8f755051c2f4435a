//! What shim and gateway say to each other of documents beyond those that lie in `LOCKSTEP_IN` from the start.

use serde::{Deserialize, Serialize};

/// Path of the gateway's agent API.
pub const DOCUMENTS: &str = "/v1/documents";

/// `POST /v1/documents`; the answer is a `DocumentsAnswer`. Agents write the fields beside `kind` so too.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum DocumentsRequest {
    /// The one document of a type: of the narrowest scope that has one, there the newest revision.
    Get {
        #[serde(rename = "type")]
        document_type: String,
        /// Only of this scope: `Item`, `Workflow`, `Session`, `Project` or `Namespace`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        /// That of the item below this step's place whose key this is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// All that the step can see, without their content.
    List {
        #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
        document_type: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
        /// Instead of these, those of that type of all items below this step's place.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        items: bool,
    },
}

/// What is there.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum DocumentsAnswer {
    Found(FoundDocument),
    /// There is no such document, or the step cannot see it.
    Absent,
    Listed(ListedDocuments),
}

/// A document with its content.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct FoundDocument {
    pub document: VisibleDocument,
    pub content: String,
}

/// The narrowest scope first.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedDocuments {
    pub documents: Vec<VisibleDocument>,
    /// There are more than one answer holds: name a type or a scope.
    #[serde(default)]
    pub more: bool,
}

/// A published document that the step can see.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct VisibleDocument {
    #[serde(rename = "type")]
    pub document_type: String,
    pub scope: String,
    /// The name of the Document object.
    pub name: String,
    /// Its number among those of its type and scope, from 1.
    pub revision: i64,
    /// `markdown`, `json`, `text` or `link`.
    pub format: String,
    pub digest: String,
    /// Of the item that it is of, where those of items were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_back_and_nothing_else_is() {
        let get =
            DocumentsRequest::Get { document_type: "brief".to_owned(), scope: Some("Session".to_owned()), key: None };
        let of_item =
            DocumentsRequest::Get { document_type: "brief".to_owned(), scope: None, key: Some("e1".to_owned()) };
        let list = DocumentsRequest::List { document_type: None, scope: None, items: false };
        let items = DocumentsRequest::List { document_type: Some("brief".to_owned()), scope: None, items: true };
        for request in [get, of_item, list, items] {
            let text = serde_json::to_string(&request).expect("it serializes");
            assert_eq!(serde_json::from_str::<DocumentsRequest>(&text).expect("it is read"), request, "{text}");
        }
        for text in [r#"{"kind":"get"}"#, r#"{"kind":"put","type":"brief"}"#, r#"{"kind":"list","session":"other"}"#] {
            assert!(serde_json::from_str::<DocumentsRequest>(text).is_err(), "{text}");
        }
    }
}
