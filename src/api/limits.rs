//! Every bound of the product in one place. The CRDs state those that a structural schema reaches; the rest are checked
//! by `definition::validate` and the gateway.

/// Bytes. An output up to this size stays in its StepRun.
pub const OUTPUT_INLINE_BYTES: usize = 16 * 1024;
/// Bytes. A document's content, and the largest output.
pub const DOCUMENT_BYTES: usize = 512 * 1024;
/// Bytes. `Workflow.spec.input`.
pub const WORKFLOW_INPUT_BYTES: usize = 64 * 1024;
/// `Workflow.spec.documents`.
pub const WORKFLOW_DOCUMENTS: usize = 32;
/// Bytes. `Workflow.spec.documents` together.
pub const WORKFLOW_DOCUMENTS_BYTES: usize = 64 * 1024;
/// Bytes. A run's output that stays in its status.
pub const RUN_OUTPUT_BYTES: usize = 4 * 1024;
/// Bytes. Resolved parameters of one step.
pub const PARAMETERS_BYTES: usize = 32 * 1024;
/// Bytes. The end of an agent's log that is kept in a StepRun.
pub const LOG_TAIL_BYTES: usize = 4 * 1024;
/// Bytes. A message kept in a status.
pub const MESSAGE_BYTES: usize = 1024;
/// Lists and objects within each other: in parameters, items, outputs and schemas.
pub const FREE_VALUE_LEVELS: usize = 64;
/// Bytes. A JSON Schema as text.
pub const SCHEMA_BYTES: usize = 32 * 1024;
/// Bytes. One CEL expression.
pub const EXPRESSION_BYTES: usize = 1024;
/// Bytes. What an expression may read, and what it may return.
pub const EXPRESSION_DATA_BYTES: usize = 64 * 1024;
/// Bytes. What an expression that is nothing but a path may give.
pub const EXPRESSION_PATH_BYTES: usize = 512 * 1024;
/// Documents that the expressions of one step, or of one place in it, may read together.
pub const EXPRESSION_DOCUMENTS: usize = 64;
/// Bytes. Those documents together, and the outputs of steps that they read.
pub const EXPRESSION_DOCUMENTS_BYTES: usize = 4 * 1024 * 1024;
/// Bytes. Documents that one pass over a run holds at once for its expressions. It must hold what one place may read.
pub const PASS_DOCUMENTS_BYTES: usize = 16 * 1024 * 1024;
/// Seconds of processor time that one evaluation surely has.
pub const EXPRESSION_SECONDS: u64 = 1;
/// Bytes. Address space of the process that evaluates, its program and its stack included.
pub const EXPRESSION_MEMORY_BYTES: u64 = 256 << 20;
/// Items of one `forEach`.
pub const ITEMS: usize = 5_000;
/// Documents that a list was read from, as the status names them.
pub const COLLECTION_DOCUMENTS: usize = 16;
/// Steps of one list, by level.
pub const STEPS: [u32; 3] = [200, 32, 16];
/// Steps of a definition, groups and their steps counted: what one status can show.
pub const ALL_STEPS: usize = 200;
/// Characters of a metadata.name that Lockstep derives other names from.
pub const NAME_CHARS: usize = 52;
/// Questions that the agent of one StepRun may ask.
pub const QUESTIONS: usize = 20;
/// Bytes. A question of an agent.
pub const QUESTION_BYTES: usize = 4 * 1024;
/// Characters. A question of a step, its expressions resolved.
pub const QUESTION_CHARS: usize = 4096;
/// Bytes. The name that an agent gives a question.
pub const QUESTION_KEY_BYTES: usize = 128;
/// Bytes. The JSON Schema of the answer to a question of an agent, as text.
pub const QUESTION_SCHEMA_BYTES: usize = 4 * 1024;
/// Documents beyond those that its step names, which one attempt may read.
pub const DOCUMENTS_READ: usize = 20;
/// Seconds that an agent may wait for people in its pod: the longest time of an attempt.
pub const LONGEST_WAIT: i64 = 604_800;
/// Approvals of single actions that the agent of one StepRun may request.
pub const APPROVAL_REQUESTS: usize = 20;
/// Bytes. What an agent says of an action.
pub const ACTION_BYTES: usize = 1024;
/// Bytes. What an action is about, as canonical JSON text.
pub const ACTION_PAYLOAD_BYTES: usize = 8 * 1024;
/// Attempts remembered in a StepRun.
pub const ATTEMPTS_KEPT: usize = 10;
/// Attempts lost to the cluster (never claimed, pod evicted before the start) that one StepRun survives.
pub const INFRASTRUCTURE_BUDGET: i32 = 5;
/// Entries of `Workflow.status.activeSteps`.
pub const ACTIVE_STEPS: usize = 50;
/// Entries of the pending lists in `Workflow.status`.
pub const PENDING: usize = 20;
/// Entries of `Workflow.status.iterationProgress`.
pub const ITERATIONS_SHOWN: usize = 20;
/// Entries of `Workflow.status.acceptanceDecisions`, the newest.
pub const DECISIONS_SHOWN: usize = 10;
/// Steps of a definition up to which `Workflow.status.steps` says what each gave: with more, a status would be too large.
pub const STEPS_WITH_OUTPUTS: usize = 100;
/// Bytes. The summary of one step in `Workflow.status.steps`.
pub const SUMMARY_BYTES: usize = 120;
/// Bytes. The summaries of all steps together.
pub const SUMMARIES_BYTES: usize = 6 * 1024;

/// Bytes. One value of a Memory, as JSON text.
pub const MEMORY_VALUE_BYTES: usize = 64 * 1024;
/// Bytes. The keys and values of a Memory together.
pub const MEMORY_BYTES: usize = 256 * 1024;
/// Keys of a Memory.
pub const MEMORY_KEYS: usize = 1_000;
/// Bytes. One key of a Memory.
pub const MEMORY_KEY_BYTES: usize = 128;
/// Steps whose newest write a Memory knows.
pub const MEMORY_WRITERS: usize = 128;

/// Seconds from claim to exit, when neither step nor Agent says otherwise.
pub const TIMEOUT_SECONDS: i64 = 3_600;
/// Seconds from Job creation to claim, when the Agent does not say otherwise.
pub const START_TIMEOUT_SECONDS: i64 = 600;
/// Seconds that the end of an attempt may lag behind its deadline before the operator acts: clock skew of gateway and operator.
pub const SKEW_SECONDS: i64 = 5;
/// Seconds that a finished Job stays, so that its logs can be read.
pub const JOB_TTL_SECONDS: i32 = 86_400;
/// Repairs of one attempt, when the Agent does not say otherwise.
pub const MAX_REPAIRS: i32 = 3;
/// Calls of a model in one attempt, when the Agent does not say otherwise.
pub const MAX_TURNS: i32 = 20;
/// Attempts since the last act of a person.
pub const MAX_ATTEMPTS: i32 = 3;
/// Seconds before the second attempt; doubles up to `MAX_BACKOFF_SECONDS`.
pub const INITIAL_BACKOFF_SECONDS: i64 = 10;
/// Seconds between two attempts at most.
pub const MAX_BACKOFF_SECONDS: i64 = 300;
