//! The hands: what the cluster looks like, and acts upon it. Decides nothing.
//!
//! `world` holds the caches, `observe` gathers what a decision needs, `evaluator` works its expressions out, `apply` carries effects out, `publish` writes
//! status and Events, the status as a `merge_patch`; `fair` shares out places between namespaces, `stored` reads every object alone.

pub mod apply;
pub mod bounded_cache;
pub mod budgets;
pub mod cache;
pub mod certificate;
pub mod chance;
pub mod client;
pub mod clock;
pub mod consistency;
pub mod contents;
mod dry_run;
pub mod egress;
pub mod error;
pub mod evaluator;
pub mod fair;
pub mod guard;
pub mod lease;
mod mail;
pub mod memories;
pub mod merge_patch;
pub mod observe;
pub mod pod_events;
pub mod publish;
pub mod refusals;
pub mod revisions;
pub mod sinks;
pub mod slots;
pub mod stored;
pub mod tls;
mod triggers;
pub mod ttl_cache;
pub mod world;

pub use error::Error;
