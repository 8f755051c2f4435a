//! The kinds of `lockstep.dev/v1alpha1`, one file a kind, and what they share.
//! Knows nothing of a client: these types are the words that everything else speaks.

pub mod agent;
pub mod condition;
pub mod crd;
pub mod definition;
pub mod document;
pub mod limits;
pub mod memory;
pub mod name;
pub mod notification;
pub mod schema;
pub mod step;
pub mod step_run;
pub mod trigger;
pub mod unreadable;
pub mod usage;
pub mod workflow;
pub mod workflow_template;

pub use agent::{Agent, AgentSpec};
pub use document::{Document, DocumentSpec};
pub use memory::{Memory, MemorySpec};
pub use step_run::{StepRun, StepRunSpec, StepRunStatus};
pub use trigger::{Trigger, TriggerSpec, TriggerStatus};
pub use workflow::{Workflow, WorkflowSpec, WorkflowStatus};
pub use workflow_template::{WorkflowTemplate, WorkflowTemplateSpec};
