//! A request, once it is known who makes it and all of it was read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::HeaderMap;

use super::caller::Caller;
use super::problem::{Problem, Result};
use crate::api::Trigger;
use crate::cluster::fair::Permit;
use crate::server::Peer;

/// A request, as the calls see it.
pub struct Call {
    pub caller: Caller,
    pub namespace: String,
    /// What stands in the path.
    pub path: HashMap<String, String>,
    pub query: BTreeMap<String, String>,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub peer: Peer,
    /// Among the requests that are carried out; whoever waits for something else gives it back before.
    pub place: Option<Permit>,
    /// The Trigger whose secret proves who calls, where no token does.
    pub trigger: Option<Arc<Trigger>>,
}

impl Call {
    /// A part of the path.
    pub fn part(&self, name: &str) -> &str {
        self.path.get(name).map_or("", String::as_str)
    }

    /// A parameter of the query, as it was given.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// A parameter that is true or false.
    pub fn flag(&self, name: &str) -> Result<bool> {
        match self.query(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(Problem::field(name, "must be true or false")),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}
