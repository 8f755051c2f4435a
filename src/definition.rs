//! What an author wrote, checked: workflows, templates and Agents. Pure, and below every decision: whoever wants to know
//! what a definition says asks here.
//!
//! Reading order: `expression` and `schema` (the two languages that authors write), `order` (what follows what), `validate`
//! and `agent` (every fault in words), `pinned` (the definition that a run keeps).

pub mod agent;
pub mod expression;
pub mod order;
pub mod pinned;
pub mod schema;
pub mod validate;
