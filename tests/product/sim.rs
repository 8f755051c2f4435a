//! The product itself in one thread and in virtual time: the operator from its watches to its writes, and the gateway's
//! calls, over the API server in memory (`src/apiserver`). Everything may go wrong with them; one seed is one story.
//!
//! Not simulated: the processes that evaluate expressions and schemas (they are evaluated in this thread), connections and
//! TLS, the shim's process (its calls are made here), validation by the schemas and rules of our kinds, and admission
//! policies, of which those that the product leans on are stated here.
//!
//! Read `world` (time, the judge's view, who acts), `door` (requests, and what becomes of them), `operator` (its lives),
//! `gateway` and `kubelet` (an attempt from both ends), `plans` (what a pass says that it will do), `run`. What is judged
//! and what is run is shared with `tests/simulation`, which runs a mirror of the operator instead.

#[path = "../simulation/chance.rs"]
pub mod chance;
#[path = "../simulation/control.rs"]
pub mod control;
pub mod door;
pub mod gateway;
#[path = "../simulation/judge.rs"]
pub mod judge;
pub mod kubelet;
#[path = "../simulation/maker.rs"]
pub mod maker;
pub mod operator;
#[path = "../simulation/people.rs"]
pub mod people;
pub mod plans;
pub mod policies;
pub mod run;
#[path = "../simulation/search.rs"]
pub mod search;
#[expect(dead_code, reason = "of the simulation with the mirror, which uses all of it")]
#[path = "../simulation/server.rs"]
pub mod server;
pub mod talk;
#[path = "../simulation/workload.rs"]
pub mod workload;
pub mod world;
