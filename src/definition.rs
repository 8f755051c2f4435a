//! What an author wrote, checked: workflows, templates and Agents. Pure, and below every decision: whoever wants to know
//! what a definition says asks here.
//!
//! Reading order: `program` (a definition, compiled), `expression` and `schema` (the two languages that authors write),
//! `compile` with `order` (how a program is made, and what is wrong where it cannot be), `validate` and `agent` (every fault
//! in words), `policy` (retries and timeouts), `pinned` (the definition that a run keeps), `digits` (how JSON is read), `free_value` (how deep
//! it may nest); `trigger` with
//! `schedule` (what starts runs).

pub mod agent;
pub mod compile;
pub mod digits;
pub mod expression;
pub mod free_value;
pub mod order;
pub mod pinned;
pub mod policy;
pub mod program;
pub mod schedule;
pub mod schema;
pub mod trigger;
pub mod validate;
